"""The report: one page that needs no other file, with every figure, claim and truth, and no name of a person."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fake_tables import demo_study, fake_tables, write_tables, write_truth
from PIL import Image

from pipeline.config import Study
from pipeline.errors import InputError
from pipeline.report.claims import evaluate_claims
from pipeline.report.html import interval, number, write_report
from pipeline.report.truths import check_truths


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    root = tmp_path_factory.mktemp("study")
    write_truth(root / "data")
    study = demo_study()
    simulated = study.datasets["simulated"].model_copy(update={"path": str(root / "data")})
    claims = Path(__file__).parents[2] / study.claims
    return study.model_copy(update={"claims": claims, "datasets": {**study.datasets, "simulated": simulated}})


@pytest.fixture(scope="module")
def results(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder as the stages leave it, with small pictures in the place of figures."""
    root = tmp_path_factory.mktemp("results")
    tables = write_tables(fake_tables(study), root / "tables")
    check_truths(study, tables, tables / "truths.parquet")
    evaluate_claims(study, tables, tables / "claims.parquet")
    (root / "figures").mkdir()
    for place in range(1, 6):
        Image.new("RGB", (40, 20), (place, 0, 0)).save(root / "figures" / f"figure{place}.png")
        (root / "figures" / f"figure{place}.txt").write_text(f"Figure {place}. What is <drawn> here.")
    run = {"subject": "SECRET01", "session": "1", "run": "1", "frames": 160}
    reasons = [f"sub-SECRET0{person}_bold.nii.gz is damaged: byte {person}" for person in (2, 3)]
    lost = [{"subject": "SECRET02", "session": "1", "run": "1", "reason": reason} for reason in reasons]
    (root / "shards" / "simulated").mkdir(parents=True)
    (root / "shards" / "simulated" / "manifest.json").write_text(json.dumps({"runs": [run], "quarantined": lost}))
    return root


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
    for text in ("scaling_wall", "benchmark_superiority/diagnosis", "connectome + logistic", "slope of white noise"):
        assert text in page
    assert "Simulated people." in page


def test_losses_are_counted_without_names(page: str) -> None:
    assert "2 × a file is damaged: byte #" in page
    assert "SECRET" not in page


def test_provenance_of_every_table_is_on_the_page(page: str, results: Path) -> None:
    section = page[page.index('id="provenance"') : page.index('id="configuration"')]
    for table in (results / "tables").glob("*.parquet"):
        assert f"<td>{table.stem}</td>" in section


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
    modules += ["pipeline.report.html", "pipeline.report.claims", "pipeline.report.truths"]
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
