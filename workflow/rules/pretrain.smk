# Learning rate and pretraining: one job a cell. Training state lies in pretrain/<cell>/state/<hash>/, which is no
# declared output, so an interrupted cell resumes instead of starting over.


localrules:
    learning_rate,


rule learning_rate:
    """Choose an architecture's learning rate by the sweep's held-out loss."""
    input:
        sweep_of,
    output:
        rate=f"{RESULTS}/learning_rate/{{architecture}}/lr.json",
    log:
        f"{RESULTS}/logs/learning_rate/{{architecture}}.log",
    conda:
        "../envs/pipeline.yaml"
    params:
        config=CONFIG,
        version=stage_version("learning_rate"),
        settings=stage_settings(study, "learning_rate"),
    shell:
        "pipeline learning-rate --config {params.config:q} --architecture {wildcards.architecture:q}"
        " --output {output.rate:q} 2> {log:q}"


rule pretrain:
    """Pretrain one cell by its objective. Divergence and collapse are results, not failures."""
    input:
        store_of("pretrain"),
        learning_rate_of,
        template=rules.template.output.template,
        evaluation=rules.split.output.evaluation,
        draws=rules.split.output.draws,
    output:
        summary=f"{RESULTS}/pretrain/{{cell}}/summary.json",
        history=f"{RESULTS}/pretrain/{{cell}}/history.parquet",
        encoder=f"{RESULTS}/pretrain/{{cell}}/encoder.safetensors",
        card=f"{RESULTS}/pretrain/{{cell}}/model_card.md",
    log:
        f"{RESULTS}/logs/pretrain/{{cell}}.log",
    conda:
        "../envs/pipeline.yaml"
    threads: study.compute.threads
    resources:
        mem_mb=study.compute.memory_mb,
        runtime=study.compute.runtime_min,
        gpu=study.compute.gpus,
    params:
        config=CONFIG,
        version=stage_version("pretrain"),
        settings=of_cell("pretrain"),
    shell:
        "pipeline pretrain --config {params.config:q} --cell {wildcards.cell:q} --threads {threads}"
        " --output {output.summary:q} 2> {log:q}"
