"""fMRI foundation models, from raw BOLD to the figures of a paper.

Targets a user names:   all   figure1 ... figure5   benchmark   supplement   cells   report   shards   parcels   flatmaps
A plan of them:         snakemake -n figure4   (needs no data)
One grid cell:          snakemake --cores 2 results/<study>/pretrain/<cell>/summary.json   (`pipeline cells` lists them)
Another study:          snakemake --cores 2 figure4 --configfile config/demo.yaml
On a cluster:           snakemake --profile slurm figure4

Files lie under results/<study>/<stage>/; a cell's files under the same path in each stage:
    <architecture>/<size>/N<subjects>-T<frames>/draw<d>-<variant>/seed<s>/
Every rule calls one `pipeline` verb that can be pasted into a shell. A job reruns when its inputs change, when the
part of the configuration that it depends on changes, or when its stage's version is raised (src/pipeline/stages.py).
"""

from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version

min_version("9.27")


include: "workflow/rules/study.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/derive.smk"
include: "workflow/rules/pretrain.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/supplement.smk"


onstart:
    begin()


localrules:
    all,
    shards,
    parcels,
    flatmaps,
    cells,
    benchmark,
    supplement,
    report,
    figure1,
    figure2,
    figure3,
    figure4,
    figure5,


rule all:
    """The whole paper: every figure, the claims, the truths where they are known, the report."""
    default_target: True
    input:
        [f"{RESULTS}/figures/figure{number}.png" for number in FIGURES],
        f"{RESULTS}/report.html",
        SUPPLEMENT,


rule shards:
    """Every run of every data set as a verified shard."""
    input:
        manifests_in("shards", study.datasets),


rule parcels:
    """Parcel series of every run, for each atlas of the study."""
    input:
        [manifests_in(f"parcels/{atlas}", VOXEL_DATASETS) for atlas in study.atlases],


rule flatmaps:
    """Cortical flat maps of every run."""
    input:
        manifests_in("flatmaps", VOXEL_DATASETS),


rule cells:
    """Every cell of the grid, pretrained."""
    input:
        [f"{RESULTS}/pretrain/{cell.path}/summary.json" for cell in grid.all_cells(study)],


rule benchmark:
    """The benchmark table: every encoder beside every baseline."""
    input:
        f"{RESULTS}/tables/benchmark.parquet",


rule supplement:
    """Figure S1 and attributions drawn on the brain."""
    input:
        SUPPLEMENT,


rule report:
    """One self-contained HTML page."""
    input:
        f"{RESULTS}/report.html",


for number in FIGURES:

    rule:
        name:
            f"figure{number}"
        input:
            f"{RESULTS}/figures/figure{number}.png",
