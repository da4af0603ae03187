"""Who is in the study: normalised participants, batches of people, the evaluation set and the draws.

Everything is decided before any model exists, from hashes and seeds, and a later addition never moves anybody.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import artefact
from pipeline.bold.participants import normalised, read_participants, table_path
from pipeline.config import Study
from pipeline.errors import InputError, nearest
from pipeline.grid import all_cells

if TYPE_CHECKING:
    import pandas as pd


def write_people(study: Study, dataset: str, folder: Path) -> None:
    """Write the normalised `participants.tsv` of the people who are in (`membership`) into `folder`.

    Raises
    ------
    InputError : as `membership`; a column is missing, a label has no known value.
    """
    table = normalised(study, dataset, membership(study, dataset, folder))
    artefact.write_text(Path(folder) / "participants.tsv", table.to_csv(sep="\t", index=False))


def membership(study: Study, dataset: str, folder: Path) -> list[str]:
    """Who is in a data set, in the order in which batches are cut.

    Settled by the first job that asks and append-only: `state/membership.json` in `folder` outlives reruns and keeps
    the order of the people already in, so that a longer participants table adds batches and changes none but the last.
    Jobs that ask at once find the same answer and write the same file.

    Raises
    ------
    InputError : fewer people than declared, or a person has gone.
    """
    settings, state = study.datasets[dataset], Path(folder) / "state" / "membership.json"
    source = table_path(study, dataset)
    subjects = list(read_participants(study, dataset)["subject"])
    if len(subjects) < settings.people:
        hint = f"Correct datasets.{dataset}.people, or complete the table."
        raise InputError(source, f"{len(subjects)} people", f"at least the {settings.people} declared", hint)
    known = artefact.read_json(state) if state.is_file() else []
    members = _members(known, subjects, settings.people, source)
    if len(members) > len(known):
        artefact.write_json(state, members)
    return members


def _members(known: Sequence[str], subjects: Sequence[str], people: int, source: Path) -> list[str]:
    """Members so far in their order, then new people in the order of the table, `people` in all."""
    gone = sorted(set(known[:people]) - set(subjects))
    if gone:
        hint = "Put the row back, or delete the state/ folder of the people stage to form the batches anew."
        raise InputError(source, f"no participant '{gone[0]}'", "everybody who is already a member", hint)
    joined = set(known)
    return [*known, *(subject for subject in subjects if subject not in joined)][:people]


def read_people(path: Path) -> pd.DataFrame:
    """A normalised participants.tsv: text for subject, family and site, numbers (NaN where empty) elsewhere."""
    import pandas as pd

    if not Path(path).is_file():
        raise InputError(path, "no such file", "a normalised participants table", "Run `pipeline people` first.")
    text = {"subject": str, "family": str, "site": str}
    return pd.read_csv(path, sep="\t", dtype=text).fillna({"site": ""})


def write_split(
    study: Study,
    participants: Mapping[str, Path],
    manifests: Mapping[str, Path],
    evaluation_set: Path,
    draws: Path,
) -> None:
    """Fix who is evaluated, by family, and the nested orders in which the others are pretrained on.

    `participants` and `manifests` hold the files of each data set. The evaluation set rests on the participants
    alone; the draws hold the pretraining people who have a usable run and are in no family that is evaluated in any
    data set of the same people.
    """
    tables = {name: read_people(path) for name, path in participants.items()}
    chosen = {name: _evaluation_people(study, name, tables[name]) for name in study.with_role("evaluate")}
    artefact.write_json(evaluation_set, {"people": chosen, "hash": artefact.digest(chosen)})
    people: dict[str, dict[str, Any]] = {}
    for name in study.with_role("pretrain"):
        same = [other for other in study.same_people(name) if other in tables]
        evaluated = {subject for other in same for subject in chosen.get(other, [])}
        people |= _pool(name, tables[name], manifests[name], kin([tables[other] for other in same], evaluated))
    numbers = sorted({cell.draw for cell in all_cells(study)})
    artefact.write_json(draws, {str(number): _balanced_order(people, study.seed, number) for number in numbers})


def _evaluation_people(study: Study, dataset: str, table: pd.DataFrame) -> list[str]:
    """Whole families in the order of their hashes, as many people as asked for, or the most below that.

    A family has one hash in all data sets of the same people, so that the same people come first in each.
    """
    cohort = study.cohort_of(dataset)

    def rank(family: str) -> str:
        return hashlib.sha256(f"{study.seed}/{cohort}/{family}".encode()).hexdigest()

    members: dict[str, list[str]] = defaultdict(list)
    for subject, family in zip(table["subject"], table["family"], strict=True):
        members[family].append(subject)
    families = sorted(members, key=rank)
    kept = fill_exactly([len(members[family]) for family in families], study.datasets[dataset].evaluation_people)
    return sorted(subject for index in kept for subject in members[families[index]])


def fill_exactly(sizes: Sequence[int], target: int) -> list[int]:
    """Indices, the earliest first, whose sizes add up to `target`, or to the largest sum below it.

    Bit k of `reachable[i]` says whether sizes from i on can make the sum k; an index is taken whenever the rest can
    still complete the sum.
    """
    limit = (1 << (target + 1)) - 1
    reachable = [1]
    for size in reversed(sizes):
        reachable.append((reachable[-1] | reachable[-1] << size) & limit)
    reachable.reverse()
    left, kept = reachable[0].bit_length() - 1, []
    for index, size in enumerate(sizes):
        if size <= left and reachable[index + 1] >> (left - size) & 1:
            kept.append(index)
            left -= size
    return kept


def kin(tables: Sequence[pd.DataFrame], evaluated: Iterable[str]) -> set[str]:
    """`evaluated`, and whoever is of a family of theirs by any of these tables of the same people."""
    found = set(evaluated)
    families = {family for table in tables for family in table["family"][table["subject"].isin(found)]}
    return found.union(*(table["subject"][table["family"].isin(families)] for table in tables))


def _pool(dataset: str, table: pd.DataFrame, manifest: Path, unseen: set[str]) -> dict[str, dict[str, Any]]:
    """`dataset/subject` -> what draws are balanced on, of those who may be pretrained on: nobody of `unseen`."""
    displacement: dict[str, list[float]] = defaultdict(list)
    for entry in artefact.read_json(manifest)["runs"]:
        displacement[entry["subject"]].append(np.nan if entry["mean_fd_mm"] is None else entry["mean_fd_mm"])
    free = table[table["subject"].isin(displacement) & ~table["subject"].isin(unseen)]
    return {
        f"{dataset}/{row['subject']}": {
            "dataset": dataset,
            "sex": row.get("sex", np.nan),
            "age": row["age"],
            "mean_fd_mm": float(np.mean(displacement[row["subject"]])),
        }
        for row in free.to_dict("records")
    }


def _balanced_order(people: Mapping[str, Mapping[str, Any]], seed: int, draw: int) -> list[str]:
    """An order of all people of which every prefix mirrors the whole in data set, sex, age and motion.

    People are shuffled inside strata (age and motion halved at the median), and the next one comes from the stratum
    that keeps the prefix's margins nearest to the whole's: minimisation, Pocock and Simon (1975), ties at random.
    """
    if not people:
        return []
    rng = np.random.default_rng([seed, draw])
    names = sorted(people)
    levels_NL = _levels([people[name] for name in names])
    strata_SL, stratum_N = np.unique(levels_NL, axis=0, return_inverse=True)
    queues = [list(rng.permutation(np.flatnonzero(stratum_N.ravel() == stratum))) for stratum in range(len(strata_SL))]
    share_L, count_L, order = levels_NL.mean(axis=0), np.zeros(levels_NL.shape[1]), []
    for position in range(1, len(names) + 1):
        cost_S = np.sum((count_L + strata_SL - position * share_L) ** 2, axis=1) + 1e-9 * rng.random(len(queues))
        cost_S[[not queue for queue in queues]] = np.inf
        stratum = int(cost_S.argmin())
        count_L += strata_SL[stratum]
        order.append(names[queues[stratum].pop()])
    return order


def _levels(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """One column of 0/1 for each level of each factor, (people, levels)."""
    columns = []
    for factor in ("dataset", "sex", "age", "mean_fd_mm"):
        values = np.array([row[factor] for row in rows])
        if factor in ("age", "mean_fd_mm") and np.isfinite(values).any():
            values = np.where(np.isfinite(values), values > np.nanmedian(values), np.nan)
        text = values.astype(str)
        columns += [text == level for level in np.unique(text)]
    return np.stack(columns, axis=1).astype(float)


def cell_people(draws: Path, draw: int, people: int, datasets: Sequence[str] | None = None) -> list[str]:
    """The first `people` of a draw from `datasets` (None: from all), as `dataset/subject`; more people contain fewer.

    Raises
    ------
    InputError : no such draw, or fewer people than asked for.
    """
    orders = artefact.read_json(draws)
    if str(draw) not in orders:
        raise InputError(draws, f"no draw {draw}", "a draw of the grid", nearest(str(draw), orders))
    order = [name for name in orders[str(draw)] if datasets is None or name.split("/")[0] in datasets]
    if people > len(order):
        hint = "Lower N in the grid, or look for quarantined runs in the shards' manifest."
        raise InputError(draws, f"{len(order)} people to pretrain on", f"at least N = {people}", hint)
    return list(order[:people])
