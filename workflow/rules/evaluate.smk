# Frozen encoders: probed, benchmarked and analysed for spectra in one job a cell (importing torch costs 2 s); systems
# outside the grid and the raw signal go through the same protocols; then one tidy table a stage.


rule evaluate:
    """Probe, benchmark and spectra of one cell's frozen encoder."""
    input:
        store_of("evaluate"),
        manifests("pretrain"),
        manifests("evaluate"),
        manifests("spectra"),
        participants("pretrain"),
        participants("evaluate"),
        template=rules.template.output.template,
        evaluation=rules.split.output.evaluation,
        draws=rules.split.output.draws,
        encoder=rules.pretrain.output.encoder,
        summary=rules.pretrain.output.summary,
    output:
        probe=f"{RESULTS}/probe/{{cell}}/probe.parquet",
        benchmark=f"{RESULTS}/benchmark/{{cell}}/benchmark.parquet",
        scores=f"{RESULTS}/benchmark/{{cell}}/scores.parquet",
        spectral=f"{RESULTS}/spectral/{{cell}}/spectral.parquet",
        spectra=f"{RESULTS}/spectral/{{cell}}/spectra.parquet",
    log:
        f"{RESULTS}/logs/evaluate/{{cell}}.log",
    conda:
        "../envs/pipeline.yaml"
    threads: study.compute.threads
    resources:
        mem_mb=study.compute.memory_mb,
        runtime=study.compute.runtime_min,
    params:
        config=CONFIG,
        version=stage_version("probe", "benchmark", "spectral"),
        settings=of_cell("evaluate"),
    shell:
        "pipeline evaluate --config {params.config:q} --cell {wildcards.cell:q} --threads {threads}"
        " --output {output.probe:q} 2> {log:q}"


rule baselines:
    """Systems outside the grid through the encoders' protocols: those that are not trained together, the others alone."""
    input:
        manifests("evaluate"),
        participants("evaluate"),
        template=rules.template.output.template,
        evaluation=rules.split.output.evaluation,
    output:
        probe=f"{RESULTS}/probe/{{systems}}/probe.parquet",
        benchmark=f"{RESULTS}/benchmark/{{systems}}/benchmark.parquet",
        scores=f"{RESULTS}/benchmark/{{systems}}/scores.parquet",
        tasks=f"{RESULTS}/benchmark/{{systems}}/tasks.parquet",
    log:
        f"{RESULTS}/logs/systems/{{systems}}.log",
    conda:
        "../envs/pipeline.yaml"
    threads: study.compute.threads
    resources:
        mem_mb=study.compute.memory_mb,
        runtime=study.compute.runtime_min,
    params:
        config=CONFIG,
        version=stage_version("probe", "benchmark"),
        settings=of_systems_job,
    shell:
        "pipeline baselines --config {params.config:q} --systems {wildcards.systems:q} --threads {threads}"
        " --output {output.probe:q} 2> {log:q}"


rule raw_spectra:
    """Slope and Hurst exponent of the raw signal and of controls whose truth is known."""
    input:
        manifests("evaluate"),
        manifests("spectra"),
        template=rules.template.output.template,
        evaluation=rules.split.output.evaluation,
    output:
        spectral=f"{RESULTS}/spectral/raw/spectral.parquet",
        spectra=f"{RESULTS}/spectral/raw/spectra.parquet",
    log:
        f"{RESULTS}/logs/raw_spectra.log",
    conda:
        "../envs/pipeline.yaml"
    threads: study.compute.threads
    params:
        config=CONFIG,
        version=stage_version("spectral"),
        settings=stage_settings(study, "spectral"),
    shell:
        "pipeline raw-spectra --config {params.config:q} --threads {threads} --output {output.spectral:q} 2> {log:q}"


rule tables:
    """One tidy table a stage, over every cell and baseline."""
    input:
        expand(
            "{results}/pretrain/{cell}/{file}",
            results=RESULTS,
            cell=cell_paths(grid.all_cells(study)),
            file=["summary.json", "history.parquet"],
        ),
        evaluated("{results}/probe/{cell}/probe.parquet"),
        evaluated("{results}/benchmark/{cell}/benchmark.parquet"),
        evaluated("{results}/benchmark/{cell}/scores.parquet"),
        evaluated("{results}/spectral/{cell}/spectral.parquet"),
        evaluated("{results}/spectral/{cell}/spectra.parquet"),
        of_systems("{results}/probe/{systems}/probe.parquet"),
        of_systems("{results}/benchmark/{systems}/benchmark.parquet"),
        of_systems("{results}/benchmark/{systems}/scores.parquet"),
        of_systems("{results}/benchmark/{systems}/tasks.parquet"),
        rules.raw_spectra.output,
        manifests_in("shards", study.datasets),
        participants("pretrain"),
        participants("evaluate"),
        rules.split.output.evaluation,
    output:
        tables=expand("{results}/tables/{stage}.parquet", results=RESULTS, stage=TABLES),
    log:
        f"{RESULTS}/logs/tables.log",
    conda:
        "../envs/pipeline.yaml"
    params:
        config=CONFIG,
        folder=lambda wildcards, output: Path(output.tables[0]).parent,
        version=stage_version("tables"),
        settings=stage_settings(study, "tables"),
    shell:
        "pipeline tables --config {params.config:q} --output {params.folder:q} 2> {log:q}"


rule comparisons:
    """Every system against the connectome, the best simple system and the best peer, over the splits that both ran."""
    input:
        benchmark=f"{RESULTS}/tables/benchmark.parquet",
        scores=f"{RESULTS}/tables/scores.parquet",
        tasks=f"{RESULTS}/tables/tasks.parquet",
        pretrain=f"{RESULTS}/tables/pretrain.parquet",
    output:
        comparisons=f"{RESULTS}/tables/comparisons.parquet",
    log:
        f"{RESULTS}/logs/comparisons.log",
    conda:
        "../envs/pipeline.yaml"
    params:
        config=CONFIG,
        version=stage_version("comparisons"),
        settings=stage_settings(study, "comparisons"),
    shell:
        "pipeline comparisons --config {params.config:q} --output {output.comparisons:q} 2> {log:q}"


rule scaling:
    """Fit the scaling laws and the N x T surface to the table of cells."""
    input:
        pretrain=f"{RESULTS}/tables/pretrain.parquet",
    output:
        scaling=f"{RESULTS}/tables/scaling.parquet",
    log:
        f"{RESULTS}/logs/scaling.log",
    conda:
        "../envs/pipeline.yaml"
    params:
        config=CONFIG,
        version=stage_version("scaling"),
        settings=stage_settings(study, "scaling"),
    shell:
        "pipeline scaling --config {params.config:q} --input {input.pretrain:q} --output {output.scaling:q} 2> {log:q}"
