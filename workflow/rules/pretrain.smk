# Learning rate and pretraining. `pretrain` is a local rule: on a laptop its command trains; under a profile that names a
# slurm_partition the command puts one job a cell into the queue, with what the cell's size needs (`compute` of the
# configuration), and waits for it as a shell of 1 MB. Training state lies in pretrain/<cell>/state/, which is no declared
# output, so an interrupted cell resumes, and a finished one whose outputs were deleted has them again in seconds.


localrules:
    learning_rate,
    pretrain,


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
    # A job that dies is started again by SLURM and by the command itself: one owner of requeueing, and it is not Snakemake.
    retries: 0
    conda:
        "../envs/pipeline.yaml"
    threads: study.compute.threads
    resources:
        mem_mb=compute_of("memory_mb"),
        runtime=compute_of("runtime_min"),
        gpu=compute_of("gpus"),
        nodes=compute_of("nodes"),
    params:
        config=CONFIG,
        version=stage_version("pretrain"),
        settings=of_cell("pretrain"),
        launch=launch_options,
    shell:
        "pipeline pretrain --config {params.config:q} --cell {wildcards.cell:q} --threads {threads} {params.launch:q}"
        " --output {output.summary:q} 2> {log:q}"
