"""A copy of the workflow and of the package in a folder of its own, in which Snakemake runs for real."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

LONGEST_S = 900  # a command that never ends is a fault, and not a test that hangs


@dataclass(frozen=True)
class Checkout:
    """A working copy, and how commands run in it."""

    root: Path

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(self.root / "src"), "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            command, cwd=self.root, env=environment, capture_output=True, text=True, check=False, timeout=LONGEST_S
        )

    def snakemake(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = self.run(
            "snakemake", "--cores", "2", "--show-failed-logs", *arguments, "--configfile", "study/tiny.yaml"
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
        return done

    def planned(self, *targets: str) -> dict[str, int]:
        """Jobs a rule that a run would start now."""
        done = self.snakemake("--dry-run", *(targets or ("all",)))
        table = re.search(r"^job +count\n-+ +-+\n(.*?)\n\n", done.stdout, re.DOTALL | re.MULTILINE)
        if table is None:
            return {}
        rows = (line.split() for line in table[1].splitlines())
        return {rule: int(count) for rule, count in rows if rule not in ("total", "all")}

    def edit(self, file: str, old: str, new: str) -> None:
        path = self.root / file
        text = path.read_text()
        assert old in text, f"{file} has no {old!r}"
        path.write_text(text.replace(old, new))


def check_out(root: Path) -> Checkout:
    """A copy below `root`."""
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("src", "workflow", "config"):
        shutil.copytree(REPOSITORY / folder, root / folder, ignore=ignore)
    shutil.copy(REPOSITORY / "Snakefile", root)
    study = root / "study"
    study.mkdir()
    for name in ("tiny.yaml", "tiny_cohort.yaml"):
        shutil.copy(Path(__file__).parent / name, study)
    return Checkout(root)


@pytest.fixture
def fresh(tmp_path: Path) -> Checkout:
    """A checkout in which nothing has run."""
    return check_out(tmp_path)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout in which the tiny study has run through; read it, or take `edited` to change it."""
    checkout = check_out(tmp_path_factory.mktemp("study"))
    checkout.snakemake("all")
    return checkout


@pytest.fixture
def edited(built: Checkout) -> Callable[[str, str, str], Checkout]:
    """Edit a file of the built checkout for the length of one test."""
    kept: dict[Path, str] = {}

    def edit(file: str, old: str, new: str) -> Checkout:
        kept.setdefault(built.root / file, (built.root / file).read_text())
        built.edit(file, old, new)
        return built

    yield edit
    for path, text in kept.items():
        path.write_text(text)
