"""The report: one page that needs no other file, with every figure, claim and truth, and no name of a person."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_tables import demo_study, fake_tables, write_tables, write_truth
from PIL import Image

from pipeline.artefact import read_table
from pipeline.config import State, Study
from pipeline.errors import InputError
from pipeline.evaluate.protocols import MEANING
from pipeline.report.benchmark import exclusions
from pipeline.report.claims import evaluate_claims
from pipeline.report.html import interval, number, write_report
from pipeline.report.losses import histogram
from pipeline.report.truths import check_truths
from pipeline.tables import LOSSES_SCHEMA


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    root = tmp_path_factory.mktemp("study")
    write_truth(root / "data")
    study = demo_study(quality={"max_mean_fd_mm": 0.5, "min_overlap": 0.8}, evaluate={"bootstrap": 50})
    simulated = study.datasets["simulated"].model_copy(update={"path": str(root / "data")})
    claims = Path(__file__).parents[2] / study.claims
    return study.model_copy(update={"claims": claims, "datasets": {**study.datasets, "simulated": simulated}})


@pytest.fixture(scope="module")
def results(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder as the stages leave it, with small pictures in the place of figures."""
    root = tmp_path_factory.mktemp("results")
    tables = write_tables(fake_tables(study, compared=True), root / "tables")
    check_truths(study, tables, tables / "truths.parquet")
    evaluate_claims(study, tables, tables / "claims.parquet")
    (root / "figures").mkdir()
    for place in range(1, 6):
        Image.new("RGB", (40, 20), (place, 0, 0)).save(root / "figures" / f"figure{place}.png")
        (root / "figures" / f"figure{place}.txt").write_text(f"Figure {place}. What is <drawn> here.")
    write_runs(root / "shards" / "simulated")
    (root / "shards" / "rapidtide").mkdir()
    (root / "shards" / "rapidtide" / "manifest.json").write_text(json.dumps({"runs": [], "quarantined": []}))
    return root


def write_runs(folder: Path) -> None:
    """A manifest of 20 measured runs and two lost ones, of which one was measured and has its picture."""

    def measured(fd: float) -> dict[str, object]:
        return {"mean_fd_mm": fd, "tsnr": None, "overlap": 0.9, "filtered": fd > 0.3, "left_right": "undecided"}

    names = {"session": "1", "run": "1"}
    runs = [
        {"subject": f"SECRET{place}", **names, "frames": 160, "quality": measured(0.1 + 0.01 * place)}
        for place in range(20)
    ]
    reasons = {"SECRET98": "sub-SECRET98_bold.nii.gz is damaged", "SECRET99": "mean FD 0.81 mm, more than quality..."}
    lost = [{"subject": subject, **names, "reason": reason} for subject, reason in reasons.items()]
    kept_aside = folder / "quarantine" / "sub-SECRET99" / "ses-1_run-1"
    kept_aside.mkdir(parents=True)
    (kept_aside / "quality.png").touch()
    (kept_aside / "quality.json").write_text(json.dumps({"measures": measured(0.81), "reasons": ["mean FD"]}))
    (folder / "manifest.json").write_text(json.dumps({"runs": runs, "quarantined": lost}))


@pytest.fixture(scope="module")
def page(study: Study, results: Path) -> str:
    write_report(study, results, results / "report.html")
    return (results / "report.html").read_text(encoding="utf-8")


def test_the_page_needs_no_other_file(page: str) -> None:
    assert page.count("data:image/png;base64,") == 5
    sources = re.findall(r'(?:src|<link[^>]*href)="([^"]+)"', page)
    assert all(source.startswith("data:") for source in sources)
    assert "http://" not in page
    assert "https://" not in page


def test_every_link_inside_the_page_has_its_place(page: str) -> None:
    targets = set(re.findall(r'href="#([^"]+)"', page))
    assert targets
    assert targets <= set(re.findall(r'id="([^"]+)"', page))


def test_captions_are_escaped(page: str) -> None:
    assert "What is &lt;drawn&gt; here." in page


def test_claims_truths_and_benchmark_are_on_the_page(page: str) -> None:
    for text in ("scaling_wall", "benchmark_superiority/diagnosis", "connectome, logistic", "slope of white noise"):
        assert text in page
    assert "Simulated people." in page


def section(page: str, name: str, following: str) -> str:
    """A part of the page as it is read, without tags."""
    text = re.sub(r"<[^>]+>", " ", page[page.index(f'id="{name}"') : page.index(f'id="{following}"')])
    return " ".join(text.split())


def test_the_benchmark_says_on_whom_by_what_protocol_and_with_what_budget(page: str) -> None:
    told = section(page, "benchmark", "data")
    assert "Every system may try 4 settings" in told
    for protocol in ("frozen-v2", "trained-v1", "leave-site-out-v1", "low-shot-v1"):
        assert f"{protocol} {MEANING[protocol]}" in told
    row = f"sex, simulated frozen-v2 48 24 24 + 24 20 4 0.178 {'e' * 16} {'0' * 16}"
    assert row in told
    assert "sex, simulated 48 0 – 0 0 48" in told, "exclusions"


def test_a_state_counts_the_people_of_both_its_data_sets(study: Study) -> None:
    rows = [
        (name, "evaluate", "people", outcome, fault, n, False)
        for name, unlabelled in (("motor", 3), ("rest", 0))
        for outcome, fault, n in (
            ("declared", "", 30), ("kept", "", 24), ("lost", "mean FD", 6), ("unlabelled", "state", unlabelled)
        )
    ]  # fmt: skip
    losses = pd.DataFrame(rows, columns=LOSSES_SCHEMA.names)
    state = study.model_copy(
        update={
            "evaluate": study.evaluate.model_copy(
                update={"states": {"state": State(positive="motor", negative="rest")}}
            )
        }
    )
    tasks = pd.DataFrame({"dataset": ["motor_rest", "motor"], "task": ["state", "state"], "n": [48, 21]})
    of_state, of_label = exclusions(state, losses, tasks)
    assert (of_state["declared"], of_state["lost"], of_state["told"], of_state["other"]) == (60, 12, "mean FD 12", 0)
    assert of_state["note"] == "people of motor and of rest; who is in both counts twice"
    assert (of_label["declared"], of_label["unlabelled"], of_label["other"], of_label["note"]) == (30, 3, 0, "")


def test_every_system_is_in_the_benchmark_with_its_comparisons(page: str, results: Path) -> None:
    told = section(page, "benchmark", "data")
    for system in ("BrainNetCNN", "SwiFT v2 (factorised), w24, fine-tuned", "confounds only", "time-averaged image"):
        assert system in told
    compared = read_table(results / "tables" / "comparisons.parquet")
    row = compared[compared["system"].eq("temporal_sd") & compared["role"].eq("connectome")].iloc[0]
    shown = f"{row['difference']:+.3f} [{row['low']:.3f}, {row['high']:.3f}] {row['p_holm']:.3f}"
    assert shown in told
    for family in compared["family"].unique():
        assert family in told


def test_losses_are_counted_without_names(page: str) -> None:
    data = section(page, "data", "provenance")
    assert "simulated simulated pretrain, evaluate 3,200 people 80 78 2 overlap 1; mean FD 1" in data
    assert "runs 160 156 4 overlap 2; mean FD 2 pretraining people 32 30 2 overlap 1; mean FD 1" in data
    assert "evaluation people 48 48 0 –" in data
    assert "SECRET" not in page


def test_quality_of_runs_is_shown_with_those_that_were_lost_by_it(page: str) -> None:
    data = section(page, "data", "provenance")
    assert "mean FD, mm 21 0.100 0.110 0.200 0.290 0.810 0.50" in data
    assert "tSNR" not in data, "a measure that no run has"
    assert "overlap, Dice 21 0.900 0.900 0.900 0.900 0.900 0.80" in data
    assert "measured as band-passed: 1 of 21 runs; left and right: undecided 21" in data
    assert 'href="shards/simulated/quarantine/"' in page
    assert "pictures of 1 quarantined run" in data


def test_a_histogram_counts_every_run_once() -> None:
    kept, lost = np.array([0.0, 0.1, 0.1, 1.0]), np.array([0.1, 2.0])
    bars, line = histogram(kept, lost, 1.0)
    assert [round(3 * bar["kept"]) for bar in bars] == [1, 2, 1, 0]
    assert [round(3 * bar["lost"]) for bar in bars] == [0, 1, 0, 1]
    assert line == pytest.approx(0.5)
    assert histogram(kept, lost, 3.0)[1] is None
    assert len(histogram(np.full(5, 0.9), lost[:0], None)[0]) == 1


def test_provenance_of_every_table_is_on_the_page(page: str, results: Path) -> None:
    records = page[page.index('id="provenance"') : page.index('id="configuration"')]
    for table in (results / "tables").glob("*.parquet"):
        assert f"<td>{table.stem}</td>" in records


def test_a_missing_figure_is_bad_input(study: Study, results: Path, tmp_path: Path) -> None:
    (results / "figures" / "figure3.png").rename(tmp_path / "figure3.png")
    with pytest.raises(InputError, match=r"figure3\.png"):
        write_report(study, results, tmp_path / "report.html")
    (tmp_path / "figure3.png").rename(results / "figures" / "figure3.png")
    assert not (tmp_path / "report.html").exists()


def test_numbers_are_written_to_be_read() -> None:
    assert number(0.12345) == "0.123"
    assert number(float("nan")) == "–"
    assert number(12345.6) == "12,346"
    assert interval({"low": 0.1, "high": 0.25}, 2) == "[0.10, 0.25]"
    assert interval({"low": float("nan"), "high": 0.2}) == "–"


def test_figures_and_report_never_import_torch() -> None:
    modules = [f"pipeline.figures.figure{place}" for place in range(1, 6)]
    modules += [f"pipeline.report.{name}" for name in ("html", "claims", "truths")] + [
        "pipeline.evaluate.comparison.compare"
    ]
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
