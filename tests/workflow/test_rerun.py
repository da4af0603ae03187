"""What reruns, and what does not: the promise that a reader can change one line and wait for little."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Checkout

from pipeline.stages import VERSIONS

pytestmark = pytest.mark.xdist_group("workflow")
Edit = Callable[[str, str, str], Checkout]

TINY = "study/tiny.yaml"
CELL = "results/tiny/pretrain/swift_v2/w12/N6-T140/draw0-main/seed0"
FROM_SHARDS = {"shard_batch", "manifest", "split", "pretrain", "evaluate", "baselines", "figure", "html_report"}


def test_the_whole_study_is_built(built: Checkout) -> None:
    results = built.root / "results" / "tiny"
    assert all(
        (results / "figures" / f"figure{n}.{kind}").stat().st_size
        for n in range(1, 6)
        for kind in ("png", "pdf", "csv")
    )
    assert "<html" in (results / "report.html").read_text()


def test_nothing_is_half_written(built: Checkout) -> None:
    assert not list((built.root / "results").rglob(".writing-*"))


def test_every_shard_verifies_and_a_flipped_byte_is_found(built: Checkout) -> None:
    manifest = "results/tiny/shards/cohort/manifest.json"
    done = built.run("pipeline", "verify", "--input", manifest)
    assert (done.returncode, "48 shards" in done.stdout) == (0, True), done.stderr
    chunk = next(path for path in (built.root / "results/tiny/shards/cohort").rglob("c/0/0"))
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    done = built.run("pipeline", "verify", "--input", manifest)
    chunk.write_bytes(whole)
    assert done.returncode == 2
    assert str(chunk.relative_to(built.root)) in done.stderr


def test_a_second_run_does_nothing(built: Checkout) -> None:
    assert built.planned() == {}


def test_naming_one_cell_runs_that_cell_alone(built: Checkout) -> None:
    encoder = built.root / CELL / "encoder.safetensors"
    before = encoder.read_bytes()
    done = built.snakemake("--force", f"{CELL}/summary.json")
    assert "1 of 1 steps (100%) done" in done.stdout + done.stderr
    assert encoder.read_bytes() == before, "the same cell on the same machine must be bitwise the same"
    built.snakemake("all")


@pytest.mark.parametrize(
    ("old", "new", "runs", "rests"),
    [
        ("splits: 10", "splits: 12", {"evaluate", "baselines", "figure"}, {"pretrain", "shard_batch", "simulate"}),
        ("steps: 10", "steps: 12", {"pretrain", "evaluate", "figure"}, {"shard_batch", "split", "baselines"}),
        ("dense: 16", "dense: 12", {"baselines", "comparisons", "figure"}, {"pretrain", "evaluate", "raw_spectra"}),
        ("people: 4\n  clips: 1", "people: 5\n  clips: 1", {"supplement_cell", "brains"}, {"evaluate", "baselines"}),
        ("bootstrap: 20", "bootstrap: 21", {"scaling", "figure", "html_report"}, {"pretrain", "evaluate", "tables"}),
        ("min_frames: 140", "min_frames: 139", FROM_SHARDS, {"simulate", "template", "people"}),
        (
            "label: SwiFT v1",
            "label: SwiFT one",
            {"figure", "html_report"},
            {"pretrain", "evaluate", "tables", "scaling"},
        ),
    ],
    ids=["evaluate", "pretrain", "networks", "supplement", "scaling", "shards", "label"],
)
def test_one_line_of_the_configuration_reruns_what_depends_on_it(
    edited: Edit, old: str, new: str, runs: set[str], rests: set[str]
) -> None:
    planned = edited(TINY, old, new).planned()
    assert runs <= planned.keys()
    assert not rests & planned.keys()


def test_an_argument_of_one_network_reruns_its_own_job(edited: Edit) -> None:
    assert edited(TINY, "dense: 16", "dense: 12").planned()["baselines"] == 1


def test_one_size_reruns_its_own_cells(edited: Edit) -> None:
    planned = edited(TINY, "w12: {width: 12", "w12: {width: 18").planned()
    assert planned["pretrain"] == planned["evaluate"] == 2, "one cell an architecture has that size"


def test_speed_settings_rerun_nothing(edited: Edit) -> None:
    assert edited(TINY, "scaling:\n  bootstrap: 20", "compute: {threads: 2}\nscaling:\n  bootstrap: 20").planned() == {}


@pytest.mark.parametrize(
    ("stage", "runs", "rests"),
    [
        ("shards", FROM_SHARDS, {"simulate", "template", "people"}),
        ("spectral", {"evaluate", "raw_spectra", "tables", "figure"}, {"pretrain", "baselines", "shard_batch"}),
        ("figures", {"figure", "html_report"}, {"tables", "scaling", "claims", "truths"}),
    ],
)
def test_raising_a_version_reruns_the_stage_and_what_follows(
    edited: Edit, stage: str, runs: set[str], rests: set[str]
) -> None:
    version = VERSIONS[stage]
    planned = edited("src/pipeline/stages.py", f'"{stage}": {version}', f'"{stage}": {version + 1}').planned()
    assert runs <= planned.keys()
    assert not rests & planned.keys()


def test_people_who_join_make_new_batches_only(fresh: Checkout) -> None:
    fresh.edit("study/tiny_cohort.yaml", "people: 24\nruns", "people: 18\nruns")
    fresh.snakemake("shards")
    first = (fresh.root / "results/tiny/shards/cohort/batch-0000.json").read_bytes()
    fresh.edit("study/tiny_cohort.yaml", "people: 18\nruns", "people: 24\nruns")
    assert fresh.planned("shards") == {"shard_batch": 1, "manifest": 1, "shards": 1}
    fresh.snakemake("shards")
    assert (fresh.root / "results/tiny/shards/cohort/batch-0000.json").read_bytes() == first


def test_an_encoder_goes_to_others_with_its_results_and_its_memory_checked(built: Checkout, tmp_path: Path) -> None:
    cell = CELL.removeprefix("results/tiny/pretrain/")
    config = ["--config", "results/tiny/config.yaml", "--cell", cell]
    out = tmp_path / "released"
    done = built.run("pipeline", "release", *config, "--licence", "Apache-2.0", "--output", str(out))
    assert done.returncode == 0, done.stderr
    assert (out / "encoder.safetensors").read_bytes() == (built.root / CELL / "encoder.safetensors").read_bytes()
    card = (out / "model_card.md").read_text()
    assert "frozen-v2" in card
    assert "too few people to say" in card or "sign of memorisation" in card
    first = (out / "encoder.safetensors").read_bytes(), card
    again = built.run("pipeline", "release", *config, "--licence", "Apache-2.0", "--output", str(out))
    assert again.returncode == 0, again.stderr
    assert ((out / "encoder.safetensors").read_bytes(), (out / "model_card.md").read_text()) == first
    refused = built.run("pipeline", "release", *config, "--licence", "", "--output", str(tmp_path / "unlicensed"))
    assert refused.returncode == 2
    assert not (tmp_path / "unlicensed").exists()
