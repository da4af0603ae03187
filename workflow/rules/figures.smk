# What a reader sees: claims, truths (where a simulation knows them), figures, the report. All from tables alone.


rule claims:
    """Decide every claim from the tables: supported, refuted or inconclusive."""
    input:
        FIGURE_TABLES,
        claims=study.claims,
    output:
        claims=f"{RESULTS}/tables/claims.parquet",
    log:
        f"{RESULTS}/logs/claims.log",
    conda:
        "../envs/pipeline.yaml"
    params:
        config=CONFIG,
        version=stage_version("claims"),
        settings=stage_settings(study, "claims"),
    shell:
        "pipeline claims --config {params.config:q} --input {input.claims:q} --output {output.claims:q} 2> {log:q}"


rule truths:
    """Hold what was found against what was planted in the simulated cohort."""
    input:
        FIGURE_TABLES,
    output:
        truths=f"{RESULTS}/tables/truths.parquet",
    log:
        f"{RESULTS}/logs/truths.log",
    conda:
        "../envs/pipeline.yaml"
    params:
        config=CONFIG,
        version=stage_version("truths"),
        settings=stage_settings(study, "truths"),
    shell:
        "pipeline truths --config {params.config:q} --output {output.truths:q} 2> {log:q}"


rule figure:
    """Draw one figure and write the numbers that it shows beside it."""
    input:
        FIGURE_TABLES,
        TRUTHS,
    output:
        png=f"{RESULTS}/figures/figure{{number}}.png",
        pdf=f"{RESULTS}/figures/figure{{number}}.pdf",
        csv=f"{RESULTS}/figures/figure{{number}}.csv",
        caption=f"{RESULTS}/figures/figure{{number}}.txt",
    log:
        f"{RESULTS}/logs/figures/figure{{number}}.log",
    conda:
        "../envs/pipeline.yaml"
    params:
        config=CONFIG,
        version=stage_version("figures"),
        settings=stage_settings(study, "figures"),
    shell:
        "pipeline figure --config {params.config:q} --number {wildcards.number} --output {output.png:q} 2> {log:q}"


rule html_report:
    """One self-contained page: figures, captions, claims, truths, counts, provenance."""
    input:
        FIGURE_TABLES,
        TRUTHS,
        expand(
            "{results}/figures/figure{number}.{kind}",
            results=RESULTS,
            number=FIGURES,
            kind=["png", "txt"],
        ),
        expand(
            "{results}/shards/{dataset}/manifest.json",
            results=RESULTS,
            dataset=study.datasets,
        ),
        rules.claims.output.claims,
    output:
        report=f"{RESULTS}/report.html",
    log:
        f"{RESULTS}/logs/report.log",
    conda:
        "../envs/pipeline.yaml"
    params:
        config=CONFIG,
        version=stage_version("report"),
        settings=stage_settings(study, "report"),
    shell:
        "pipeline report --config {params.config:q} --output {output.report:q} 2> {log:q}"
