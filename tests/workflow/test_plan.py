"""Planning: the paper's whole DAG without data, documented commands, and refusals before any job starts."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from conftest import REPOSITORY, Checkout

pytestmark = pytest.mark.xdist_group("workflow")


def test_the_papers_whole_dag_is_planned_without_data(fresh: Checkout) -> None:
    done = fresh.run("snakemake", "-n", "all", "--configfile", "config/config.yaml")
    assert done.returncode == 0, done.stderr[-3000:]
    counts = dict(re.findall(r"^(\w+) +(\d+)$", done.stdout, re.MULTILINE))
    cells = fresh.run("pipeline", "cells", "--config", "config/config.yaml").stdout.splitlines()
    assert int(counts["pretrain"]) == len(cells) > 300
    assert int(counts["shard_batch"]) >= 41_080 / 64, "41,080 people to pretrain on, 64 a job, and the clinical sets"
    assert not (fresh.root / "results").exists(), "a plan writes nothing"


def test_a_mistyped_key_ends_the_workflow_in_one_message(fresh: Checkout) -> None:
    fresh.edit("study/tiny.yaml", "batch_clips: 2", "batch_clip: 2")
    done = fresh.run("snakemake", "-n", "all", "--configfile", "study/tiny.yaml")
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert "study/tiny.yaml: pretrain.batch_clip" in said
    assert "Did you mean 'batch_clips'?" in said
    assert "Traceback" not in said


def _documented() -> list[str]:
    blocks = re.findall(r"```\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    lines = [line.split("  #")[0].split(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("source")]


@pytest.mark.parametrize("command", _documented())
def test_every_command_of_the_readme_runs(fresh: Checkout, command: str) -> None:
    """`make` and `snakemake` are asked for their plan: the demo itself is CI's smoke run, the tests are this run."""
    words = shlex.split(command)
    if words[0] == "make":
        done = subprocess.run([*words, "--dry-run"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    else:
        done = fresh.run(*words, *(["--dry-run"] if words[0] == "snakemake" else []))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_the_slurm_profile_is_found_as_typed() -> None:
    assert (REPOSITORY / "slurm").resolve() == REPOSITORY / "profiles" / "slurm"
    assert not Path(REPOSITORY, "profiles", "default").exists(), "it would be loaded silently and win over --profile"
