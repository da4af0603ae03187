"""The demo's Figure 4 on a real SLURM, by the command that a user types: every rule and job, fewer people and cells."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from checkout import DEMO, check_out
from cluster import Cluster


def test_figure4_runs_through_the_profile(cluster: Cluster, tmp_path: Path) -> None:
    site = check_out(tmp_path / "site", cluster)
    done = site.run("snakemake", "--profile", "slurm", "figure4", "--configfile", *DEMO)
    jobs = cluster.jobs()
    print(f"{len(jobs)} jobs\n{cluster.listing()}")
    assert done.returncode == 0, done.stderr[-6000:] + site.told()
    assert (site.results / "figures" / "figure4.png").is_file()
    assert {job.state for job in jobs} == {"COMPLETED"}
    assert site.left() == []
    # One job a cell, on the partition with GPUs, and the same encoders as on this machine alone.
    alone = check_out(tmp_path / "alone")
    alone.take_data(site)
    alone.build("cells", config=DEMO)
    trained = Counter(job.name.split("#")[0] for job in jobs if job.name.startswith("slurm/"))
    assert trained == Counter(f"slurm/{cell}" for cell in alone.encoders())
    assert site.encoders() == alone.encoders()
