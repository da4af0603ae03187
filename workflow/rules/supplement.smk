# The supplement: scan lengths, ablations and attributions of the largest encoders, memory against frames, Figure S1 and
# drawings of attributions on the brain. What reconstructions keep between parcels comes with the spectra (`evaluate`).
#
# supplement/<cell>/supplement.parquet, attribution.parquet; supplement/memory.parquet; tables/ and figures/ as elsewhere.

from pipeline.evaluate.supplement.tables import supplemented_cells

SUPPLEMENTED = cell_paths(supplemented_cells(study))
DRAWN = [f"{RESULTS}/figures/figureS1.png", f"{RESULTS}/figures/attribution/drawn.json"]
SUPPLEMENT = DRAWN if SUPPLEMENTED else []


rule supplement_cell:
    """Scan lengths, ablations and attributions of one frozen encoder."""
    input:
        store_of("evaluate"),
        manifests("pretrain"),
        manifests("evaluate"),
        participants("pretrain"),
        participants("evaluate"),
        template=rules.template.output.template,
        evaluation=rules.split.output.evaluation,
        draws=rules.split.output.draws,
        encoder=rules.pretrain.output.encoder,
        summary=rules.pretrain.output.summary,
        benchmark=rules.evaluate.output.benchmark,
    output:
        supplement=f"{RESULTS}/supplement/{{cell}}/supplement.parquet",
        attribution=f"{RESULTS}/supplement/{{cell}}/attribution.parquet",
    log:
        f"{RESULTS}/logs/supplement/{{cell}}.log",
    conda:
        "../envs/pipeline.yaml"
    threads: study.compute.threads
    resources:
        mem_mb=study.compute.memory_mb,
        runtime=study.compute.runtime_min,
    params:
        config=CONFIG,
        version=stage_version("supplement"),
        settings=of_cell("supplement"),
    shell:
        "pipeline supplement --config {params.config:q} --cell {wildcards.cell:q} --threads {threads}"
        " --output {output.supplement:q} 2> {log:q}"


rule memory:
    """Memory of one clip's gradient against its frames, for every voxel architecture at its published size."""
    output:
        memory=f"{RESULTS}/supplement/memory.parquet",
    log:
        f"{RESULTS}/logs/memory.log",
    conda:
        "../envs/pipeline.yaml"
    params:
        config=CONFIG,
        version=stage_version("supplement"),
        settings=stage_settings(study, "memory"),
    shell:
        "pipeline memory --config {params.config:q} --output {output.memory:q} 2> {log:q}"


rule supplement_tables:
    """The supplement's tidy tables, over every cell that it looks into."""
    input:
        expand(
            "{results}/supplement/{cell}/{table}.parquet",
            results=RESULTS,
            cell=SUPPLEMENTED,
            table=["supplement", "attribution"],
        ),
        rules.memory.output,
    output:
        supplement=f"{RESULTS}/tables/supplement.parquet",
        attribution=f"{RESULTS}/tables/attribution.parquet",
    log:
        f"{RESULTS}/logs/supplement_tables.log",
    conda:
        "../envs/pipeline.yaml"
    params:
        config=CONFIG,
        folder=lambda wildcards, output: Path(output.supplement).parent,
        version=stage_version("tables"),
        settings=stage_settings(study, "supplement_tables"),
    shell:
        "pipeline supplement-tables --config {params.config:q} --output {params.folder:q} 2> {log:q}"


rule supplement_figure:
    """Draw Figure S1 and write the numbers that it shows beside it."""
    input:
        rules.supplement_tables.output,
        spectral=f"{RESULTS}/tables/spectral.parquet",
        scores=f"{RESULTS}/tables/scores.parquet",
    output:
        png=f"{RESULTS}/figures/figureS1.png",
        pdf=f"{RESULTS}/figures/figureS1.pdf",
        csv=f"{RESULTS}/figures/figureS1.csv",
        caption=f"{RESULTS}/figures/figureS1.txt",
    log:
        f"{RESULTS}/logs/figures/figureS1.log",
    conda:
        "../envs/pipeline.yaml"
    params:
        config=CONFIG,
        version=stage_version("figures"),
        settings=stage_settings(study, "figures"),
    shell:
        "pipeline supplement-figure --config {params.config:q} --output {output.png:q} 2> {log:q}"


rule brains:
    """Draw attributions on a glass brain and on cortex; the list of pictures is written last, beside them."""
    input:
        attribution=f"{RESULTS}/tables/attribution.parquet",
        template=rules.template.output.template,
    output:
        drawn=f"{RESULTS}/figures/attribution/drawn.json",
    log:
        f"{RESULTS}/logs/figures/attribution.log",
    conda:
        "../envs/pipeline.yaml"
    params:
        config=CONFIG,
        version=stage_version("figures"),
        settings=stage_settings(study, "figures"),
    shell:
        "pipeline brains --config {params.config:q} --output {output.drawn:q} 2> {log:q}"
