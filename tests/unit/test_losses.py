"""Who was lost and by what: counted from manifests, told in words, never by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from builders import make_study
from test_quality import GOOD

from pipeline.artefact import write_json, write_text
from pipeline.bold.quality import LIMITS, judge
from pipeline.config import Quality, Study
from pipeline.errors import InputError
from pipeline.layout import Layout
from pipeline.losses import FAULTS, count_losses, fault_of, sentence, told
from pipeline.tables import LOSSES_SCHEMA

MOVED = "mean FD 0.81 mm, more than quality.max_mean_fd_mm = 0.5"
PLACED = "overlap 0.71 with the template, less than quality.min_overlap = 0.8"


def entry(subject: str, session: str = "1", reason: str = "") -> dict[str, object]:
    name = {"subject": subject, "session": session, "run": "1" if session else ""}
    return {**name, "reason": reason} if reason else {**name, "frames": 100}


@pytest.fixture
def lossy(standard: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """Ten people: a and b evaluated, c of b's family; d lost both runs, e one of two, f has none, a has no sex."""
    monkeypatch.chdir(tmp_path)
    study = make_study(standard, tmp_path, {"people": 10, "evaluation_people": 2})
    layout = Layout(study)
    runs = [entry(subject, session) for subject in "abcghij" for session in "12"] + [entry("e")]
    lost = [entry("d", "1", MOVED), entry("d", "2", PLACED), entry("e", "2", MOVED), entry("f", "", "no run found")]
    write_json(layout.manifest("cohort"), {"runs": runs, "quarantined": lost})
    write_json(layout.evaluation_set, {"people": {"cohort": ["a", "b"]}, "hash": ""})
    family = {"c": "b"}
    rows = [f"{subject}\t{family.get(subject, subject)}\t{'' if subject == 'a' else 1}" for subject in "abcdefghij"]
    write_text(layout.people("cohort") / "participants.tsv", "\n".join(["subject\tfamily\tsex", *rows]) + "\n")
    return study


def counted(study: Study) -> pd.DataFrame:
    return pd.DataFrame(count_losses(study), columns=LOSSES_SCHEMA.names)


def test_everybody_is_counted_once_in_the_data_set_and_in_each_part(lossy: Study) -> None:
    losses = counted(lossy)
    assert told(losses, "all") == "8 of 10 people; lost 2: mean FD 1, no run found 1"
    assert told(losses, "all", "runs") == "15 of 18 runs; lost 3: mean FD 2, overlap 1"
    assert told(losses, "evaluate") == "2 of 2 people"
    assert told(losses, "pretrain") == "5 of 7 people; lost 2: mean FD 1, no run found 1"
    others = losses[losses["outcome"].isin(["related", "unlabelled"])]
    assert others[["part", "outcome", "fault", "n"]].values.tolist() == [
        ["pretrain", "related", "", 1],
        ["evaluate", "unlabelled", "sex", 1],
    ]
    for _, part in losses[losses["outcome"].isin(["declared", "kept", "lost"])].groupby(["part", "unit"]):
        by = part.groupby("outcome")["n"].sum()
        assert by["declared"] == by["kept"] + by.get("lost", 0)


def test_a_sentence_tells_a_figure_who_was_lost(lossy: Study) -> None:
    assert sentence(counted(lossy), ("pretrain", "evaluate")) == (
        "People of cohort: pretraining 5 of 7 (lost 2: mean FD 1, no run found 1), evaluation 2 of 2, "
        "runs 15 of 18 (lost 3: mean FD 2, overlap 1), without sex 1."
    )
    assert sentence(counted(lossy), ("spectra",)) == ""


def test_people_who_serve_spectra_alone_need_no_participants_table(lossy: Study) -> None:
    alone = lossy.datasets["cohort"].model_copy(update={"roles": ("spectra",), "evaluation_people": 0, "labels": {}})
    study = lossy.model_copy(update={"datasets": {"cohort": alone}})
    (Layout(study).people("cohort") / "participants.tsv").unlink()
    assert sentence(counted(study), ("evaluate", "spectra")).startswith("People of cohort: spectra 8 of 10 (lost 2:")
    with pytest.raises(InputError, match=r"participants\.tsv: found no such file"):
        count_losses(lossy)


@pytest.mark.parametrize(
    ("reason", "fault"),
    [
        (f"{PLACED}; {MOVED}", "overlap"),
        ("24 frames, fewer than shards.min_frames = 40", "too short"),
        ("sub-X1_bold.nii.gz is damaged: CRC check failed 0x1", "damaged file"),
        ("frames 16 to 32 hold values that are not finite", "values not finite"),
        ("same data as sub-X2 session 1 run 1", "same data twice"),
        ("/data/sub-X1/func/sub-X1_bold.nii.gz: found no TR; expected one. Write it.", "no TR"),
        ("Movement_X1.txt has 12 rows, the run 40 frames", "… has # rows, the run # frames"),
        ("participant 'X1' has 3 columns", "participant … has # columns"),
    ],
)
def test_like_reasons_count_together_and_name_nobody(reason: str, fault: str) -> None:
    assert fault_of(reason) == fault
    assert "X1" not in fault_of(reason)


def test_every_reason_of_a_verdict_has_its_own_fault() -> None:
    worst = {limit.measure: -1.0 if limit.floor else 1e9 for limit in LIMITS}
    strict = {limit.key: 0.5 for limit in LIMITS if limit.key != "max_zero_frames"}
    bad = replace(GOOD, **worst, left_right="mirrored", filtered=True)
    reasons = judge(bad, Quality(**strict, refuse_filtered=True))
    faults = [fault_of(reason) for reason in reasons]
    assert len(reasons) == len(LIMITS) + 2
    assert len(set(faults)) == len(faults)
    assert set(faults) <= set(FAULTS.values())
