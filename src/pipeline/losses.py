"""Who was lost on the way from a data set's table of people into each part of the study, and by what.

People are counted in the data set ("all") and in each part that it serves: pretraining, evaluation (whose spectra are
taken too), or spectra alone. A person with several runs is lost when none of them could be used, and by what the first
of them was lost by.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.artefact import read_json
from pipeline.config import Study
from pipeline.errors import InputError
from pipeline.layout import Layout

ALL, PRETRAIN, EVALUATE, SPECTRA = "all", "pretrain", "evaluate", "spectra"
NAMES = {ALL: "people", PRETRAIN: "pretraining", EVALUATE: "evaluation", SPECTRA: "spectra"}

# Words of a reason -> what a run was lost by. The first of them that stands in a reason decides.
FAULTS = {
    "quality.max_zero_frames": "zero frames",
    "quality.min_coverage": "coverage",
    "quality.min_overlap": "overlap",
    "quality.min_similarity": "similarity",
    "quality.min_tsnr": "tSNR",
    "quality.max_mean_fd_mm": "mean FD",
    "quality.max_moved": "moved frames",
    "quality.refuse_mirrored": "left is right",
    "quality.refuse_filtered": "band-passed",
    "shards.min_frames": "too short",
    "is damaged": "damaged file",
    "not finite": "values not finite",
    "no run found": "no run found",
    "same data as": "same data twice",
    "registration failed": "registration",
    "folds the brain": "registration",
    "a brain of": "no brain found",
    "no brain found": "no brain found",
}
NAMED = re.compile(r"\S*sub-\S+|\S*/\S+|\S+\.[A-Za-z]\w*|'[^']*'")  # people, files, values


def fault_of(reason: str) -> str:
    """What a run was lost by, without names and numbers, so that like ones count together."""
    places = {reason.find(words): fault for words, fault in FAULTS.items() if words in reason}
    if places:
        return places[min(places)]
    told = reason.partition(": found ")[2] or reason  # an InputError begins with the place
    told = NAMED.sub("…", re.split(r"[;:(]", told)[0])
    return re.sub(r"\d+(\.\d+)?", "#", told).strip()[:60]


def count_losses(study: Study) -> list[dict[str, Any]]:
    """Rows of the table of losses, data set after data set.

    `outcome` is declared (of runs: found), kept or lost, and lost rows carry their fault; of evaluation people also
    unlabelled, where `fault` names the task, and of pretraining people related: of the family of an evaluated person.

    Raises
    ------
    InputError : a manifest, a table of people or the evaluation set is missing or damaged.
    """
    layout = Layout(study)
    evaluated = read_json(layout.evaluation_set)["people"]
    rows = []
    for name, dataset in study.datasets.items():
        manifest = read_json(layout.manifest(name))
        counted = _dataset_rows(dataset.people, manifest)
        if {PRETRAIN, EVALUATE} & {*dataset.roles}:
            people = _read_people(layout.people(name) / "participants.tsv")
            for part in (PRETRAIN, EVALUATE):
                if part in dataset.roles:
                    counted += _part_rows(part, manifest, people, evaluated.get(name, []), list(dataset.labels))
        else:
            counted += [{**row, "part": SPECTRA} for row in counted if row["unit"] == "people"]
        rows += [{"dataset": name, "simulated": dataset.simulated, **row} for row in counted]
    return rows


def _read_people(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise InputError(path, "no such file", "a normalised participants table", "Run `pipeline people` first.")
    return pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)


def _dataset_rows(declared: int, manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """People of the whole data set, and its runs."""
    kept, lost = _fates(manifest)
    found = [entry for entry in manifest["quarantined"] if entry["run"]]  # without a run it tells of a person
    faults = Counter(fault_of(entry["reason"]) for entry in found)
    runs = len(manifest["runs"])
    return [
        *_rows(ALL, "people", declared, len(kept), Counter(lost.values())),
        *_rows(ALL, "runs", runs + len(found), runs, faults),
    ]


def _fates(manifest: Mapping[str, Any]) -> tuple[set[str], dict[str, str]]:
    """People with a usable run; and by what the others were lost."""
    kept = {entry["subject"] for entry in manifest["runs"]}
    lost: dict[str, str] = {}
    for entry in manifest["quarantined"]:
        if entry["subject"] not in kept:
            lost.setdefault(entry["subject"], fault_of(entry["reason"]))
    return kept, lost


def _part_rows(
    part: str, manifest: Mapping[str, Any], people: pd.DataFrame, evaluated: Sequence[str], tasks: Sequence[str]
) -> list[dict[str, Any]]:
    """People who are pretrained on, or evaluated."""
    of_evaluated = people["subject"].isin(evaluated)
    related = people["family"].isin(people.loc[of_evaluated, "family"]) & ~of_evaluated
    members = people[of_evaluated] if part == EVALUATE else people[~of_evaluated & ~related]
    kept, lost = _fates(manifest)
    inside = members["subject"].isin(kept)
    faults = Counter(lost.get(subject, "no run found") for subject in members.loc[~inside, "subject"])
    others = {("related", ""): int(related.sum())}
    if part == EVALUATE:
        others = {("unlabelled", task): int((members.loc[inside, task] == "").sum()) for task in tasks}
    rows = _rows(part, "people", len(members), int(inside.sum()), faults)
    return rows + [_row(part, "people", *what, count) for what, count in others.items() if count]


def _rows(part: str, unit: str, declared: int, kept: int, faults: Mapping[str, int]) -> list[dict[str, Any]]:
    lost = sorted(faults.items(), key=lambda item: (-item[1], item[0]))
    return [
        _row(part, unit, "declared", "", declared),
        _row(part, unit, "kept", "", kept),
        *(_row(part, unit, "lost", fault, count) for fault, count in lost),
    ]


def _row(part: str, unit: str, outcome: str, fault: str, n: int) -> dict[str, Any]:
    return {"part": part, "unit": unit, "outcome": outcome, "fault": fault, "n": n}


def told(losses: pd.DataFrame, part: str, unit: str = "people") -> str:
    """`48 of 50 people; lost 2: mean FD 1, overlap 1`, of one data set's rows."""
    rows = losses[(losses["part"] == part) & (losses["unit"] == unit)]
    declared, kept = (int(rows.loc[rows["outcome"] == outcome, "n"].sum()) for outcome in ("declared", "kept"))
    lost = rows[rows["outcome"] == "lost"]
    faults = ", ".join(f"{fault} {n}" for fault, n in zip(lost["fault"], lost["n"], strict=True))
    return f"{kept:,} of {declared:,} {unit}" + (f"; lost {int(lost['n'].sum()):,}: {faults}" if faults else "")


def sentence(losses: pd.DataFrame, parts: Collection[str]) -> str:
    """Who of each data set is in the parts that a figure draws, and who was lost by what; runs too, where any was lost.

    For example: `People of simulated: pretraining 30 of 32 (lost 2: mean FD 1, overlap 1), evaluation 48 of 48.`
    """
    names = losses.loc[losses["part"].isin(list(parts)), "dataset"]
    return " ".join(_of_dataset(name, losses[losses["dataset"] == name], parts) for name in dict.fromkeys(names))


def _of_dataset(name: str, losses: pd.DataFrame, parts: Iterable[str]) -> str:
    phrases = []
    for part in parts:
        if (losses["part"] == part).any():
            kept, _, lost = told(losses, part).partition("; ")
            phrases.append(f"{NAMES[part]} {kept.removesuffix(' people')}{f' ({lost})' if lost else ''}")
    runs, _, lost = told(losses, ALL, "runs").partition("; ")
    phrases += [f"runs {runs.removesuffix(' runs')} ({lost})"] if lost else []
    unlabelled = losses[(losses["outcome"] == "unlabelled") & losses["part"].isin(list(parts))]
    phrases += [f"without {fault} {n}" for fault, n in zip(unlabelled["fault"], unlabelled["n"], strict=True)]
    return f"People of {name}: {', '.join(phrases)}."
