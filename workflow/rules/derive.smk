# Stores derived from voxel shards, for models that see parcels or flat maps: `snakemake parcels`, `snakemake flatmaps`.
#
# parcels_batch      parcel series of one batch of shards, for each atlas of the study
# flatmap            the way from the template's voxels to the raster of the flattened cortex
# flatmaps_batch     cortical flat maps of one batch of shards
# derived_manifest   one list over the batches of a store


localrules:
    derived_manifest,


rule parcels_batch:
    """Parcel series of one batch of shards."""
    input:
        batch=f"{RESULTS}/shards/{{dataset}}/batch-{{batch}}.json",
        template=rules.template.output.template,
        atlas=atlas_files,
    output:
        batch=f"{RESULTS}/parcels/{{atlas}}/{{dataset}}/batch-{{batch}}.json",
    log:
        f"{RESULTS}/logs/parcels/{{atlas}}/{{dataset}}/batch-{{batch}}.log",
    conda:
        "../envs/pipeline.yaml"
    threads: study.compute.workers
    resources:
        mem_mb=lambda wildcards, threads: 1000 * threads,
        runtime=240,
    params:
        config=CONFIG,
        version=stage_version("parcels"),
        settings=stage_settings(study, "parcels"),
        atlas_path=lambda wildcards: str(study.atlases[wildcards.atlas]),
    shell:
        "pipeline parcels --config {params.config:q} --dataset {wildcards.dataset:q} --atlas {wildcards.atlas:q}"
        " --input {input.batch:q} --template {input.template:q} --workers {threads} --output {output.batch:q} 2> {log:q}"


rule flatmap:
    """From the template's voxels to a raster of the flattened fsaverage5 cortex."""
    input:
        template=rules.template.output.template,
    output:
        flatmap=f"{RESULTS}/flatmaps/flatmap.npz",
    log:
        f"{RESULTS}/logs/flatmap.log",
    conda:
        "../envs/pipeline.yaml"
    params:
        config=CONFIG,
        version=stage_version("flatmaps"),
        settings=stage_settings(study, "flatmap"),
    shell:
        "pipeline flatmap --config {params.config:q} --template {input.template:q} --output {output.flatmap:q} 2> {log:q}"


rule flatmaps_batch:
    """Cortical flat maps of one batch of shards."""
    input:
        batch=f"{RESULTS}/shards/{{dataset}}/batch-{{batch}}.json",
        template=rules.template.output.template,
        flatmap=rules.flatmap.output.flatmap,
    output:
        batch=f"{RESULTS}/flatmaps/{{dataset}}/batch-{{batch}}.json",
    log:
        f"{RESULTS}/logs/flatmaps/{{dataset}}/batch-{{batch}}.log",
    conda:
        "../envs/pipeline.yaml"
    threads: study.compute.workers
    resources:
        mem_mb=lambda wildcards, threads: 1500 * threads,
        runtime=240,
    params:
        config=CONFIG,
        version=stage_version("flatmaps"),
        settings=stage_settings(study, "flatmaps"),
    shell:
        "pipeline flatmaps --config {params.config:q} --dataset {wildcards.dataset:q} --input {input.batch:q}"
        " --template {input.template:q} --workers {threads} --output {output.batch:q} 2> {log:q}"


rule derived_manifest:
    """One list of a derived store's shards."""
    input:
        lambda wildcards: batches_in(f"{wildcards.store}/{wildcards.dataset}", wildcards.dataset),
    output:
        manifest=f"{RESULTS}/{{store}}/{{dataset}}/manifest.json",
    log:
        f"{RESULTS}/logs/manifest/{{store}}/{{dataset}}.log",
    wildcard_constraints:
        store="parcels/[A-Za-z0-9_-]+|flatmaps",
    conda:
        "../envs/pipeline.yaml"
    params:
        config=CONFIG,
        version=stage_version("shards"),
        settings=of_dataset("manifest"),
    shell:
        "pipeline manifest --config {params.config:q} --dataset {wildcards.dataset:q}"
        " --output {output.manifest:q} 2> {log:q}"
