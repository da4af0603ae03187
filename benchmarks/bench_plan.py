"""Planning a study of 41,000 people: seconds from the command to the list of jobs, without any data.

The reference is the same plan with one job a person. Run `make bench`, or this file.
"""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from pipeline.config import load_study

ROOT = Path(__file__).resolve().parents[1]
PEOPLE = 41_000


def plan(batch_people: int, folder: Path) -> tuple[float, int]:
    """Seconds and jobs of `snakemake -n shards` for one data set of PEOPLE people."""
    study = load_study(ROOT / "config/config.yaml").model_dump(mode="json")
    cohort = study["datasets"]["ukb"] | {"people": PEOPLE, "batch_people": batch_people, "roles": ["pretrain"]}
    study |= {"name": f"plan{batch_people}", "datasets": {"ukb": cohort}}
    study["grid"] = json.loads(json.dumps(study["grid"]).replace('"hcp"', '"ukb"'))
    config = folder / f"{batch_people}.yaml"
    config.write_text(yaml.safe_dump(study))
    command = ["snakemake", "-n", "shards", "--configfile", str(config), "--quiet", "rules", "--snakefile"]
    start = time.perf_counter()
    outcome = subprocess.run([*command, str(ROOT / "Snakefile")], cwd=folder, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if outcome.returncode:
        sys.exit(outcome.stderr + outcome.stdout)
    jobs = re.search(r"^total\s+(\d+)", outcome.stdout + outcome.stderr, re.MULTILINE)
    return seconds, int(jobs[1]) if jobs else 0


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        print(f"{PEOPLE} people\n\n| people a job | jobs | seconds | ratio |\n|---|---|---|---|")
        single, _ = timed = plan(1, Path(scratch))
        for batch_people, (seconds, jobs) in [(1, timed), (64, plan(64, Path(scratch)))]:
            print(f"| {batch_people} | {jobs} | {seconds:.1f} | {single / seconds:.1f} |")
    peak_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"\nPeak memory of the larger plan: {peak_mb:.0f} MB.")


if __name__ == "__main__":
    main()
