"""One job a batch of people: a bad run is quarantined and the rest goes on; and one list over the batches."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline import artefact
from pipeline.bold import quality
from pipeline.bold.doors import nothing_found, runs_of_person
from pipeline.bold.ingest import Standard, ingest_run
from pipeline.bold.inputs import Run
from pipeline.bold.participants import require_folder
from pipeline.bold.people import membership
from pipeline.bold.placement import standard_on_grid
from pipeline.bold.template import load_template
from pipeline.bold.workers import each
from pipeline.config import Study
from pipeline.errors import InputError
from pipeline.stages import VERSIONS

NO_RUN = "no run found"
TELLING = 3  # people; a smaller batch among others may be lost whole without a fault of the study


@dataclass(frozen=True)
class Outcome:
    """A run's entry in the list; or its name, and the fault by which it was lost."""

    entry: dict[str, Any]
    fault: Exception | None = None


def shard_batch(
    study: Study, dataset: str, batch: int, people: Path, template_folder: Path, output: Path, workers: int = 1
) -> None:
    """Write the shards of one batch of people beside `output`, and last `output`, the list of them.

    `people` is the folder in which the data set keeps its `membership`. A run or a person that cannot be used is
    quarantined with the reason, and the rest goes on. Memory does not grow with the number of frames.

    Raises
    ------
    InputError : no folder or no table of people; or all of the batch was lost by input that must be mended, which is
        told by its first fault.
    """
    size = study.datasets[dataset].batch_people
    subjects = membership(study, dataset, people)[batch * size : (batch + 1) * size]
    require_folder(study, dataset)
    if not subjects:
        found = f"batch {batch}"
        raise InputError("--batch", found, f"0 to {study.datasets[dataset].batches - 1}", f"See people of '{dataset}'.")
    runs, lost = _found(study, dataset, subjects)
    template = load_template(template_folder)
    standard = Standard(template, standard_on_grid(study.template, template))
    make = partial(_attempt, study, standard, Path(output).parent)
    outcomes = [*each(make, runs, workers, __name__), *lost]
    if len(subjects) >= TELLING or study.datasets[dataset].batches == 1:
        _require_one(study, dataset, subjects, outcomes)
    listing = {
        "runs": [outcome.entry for outcome in outcomes if outcome.fault is None],
        "quarantined": [{**outcome.entry, "reason": str(outcome.fault)} for outcome in outcomes if outcome.fault],
        "provenance": artefact.provenance(
            "shards",
            VERSIONS["shards"],
            [study.shards.model_dump(), study.quality.model_dump()],
            {"people": Path(people) / "state" / "membership.json"},
        ),
    }
    artefact.write_json(output, listing)


def _found(study: Study, dataset: str, subjects: Sequence[str]) -> tuple[list[Run], list[Outcome]]:
    """Runs of these people, and who or what of them cannot be used."""
    runs, lost = [], []
    for subject in subjects:
        try:
            found = runs_of_person(study, dataset, subject)
        except InputError as fault:
            lost.append(Outcome(_name(subject), fault))
            continue
        runs += [run for _, run in found if isinstance(run, Run)]
        faults = [(file, run) for file, run in found if isinstance(run, InputError)]
        lost += [Outcome(_name(subject, file.session, file.run), fault) for file, fault in faults]
        if not found:
            lost.append(Outcome(_name(subject), quality.Quarantined(NO_RUN)))
    return runs, lost


def _name(subject: str, session: str = "", run: str = "") -> dict[str, str]:
    return {"subject": subject, "session": session, "run": run}


def _attempt(study: Study, standard: Standard, store: Path, run: Run) -> Outcome:
    try:
        return Outcome(ingest_run(study, standard, store, run))
    except (InputError, quality.Quarantined) as fault:
        shutil.rmtree(store / run.folder, ignore_errors=True)  # a shard of a former attempt
        return Outcome(_name(run.subject, run.session, run.run), fault)


def _require_one(study: Study, dataset: str, subjects: Sequence[str], outcomes: Sequence[Outcome]) -> None:
    """A batch that is lost whole by input to be mended is a fault of the study, not of its people."""
    if all(str(outcome.fault) == NO_RUN for outcome in outcomes):
        raise nothing_found(study, dataset, subjects[0])
    faults = [outcome.fault for outcome in outcomes if isinstance(outcome.fault, InputError)]
    if not faults or len(faults) < len(outcomes):
        return
    first = faults[0]
    more = f" ({len(faults) - 1} more runs or people of this batch could not be used either.)" if faults[1:] else ""
    raise InputError(first.where, first.found, first.expected, first.hint + more) from first


def collect_batches(paths: Iterable[Path], output: Path) -> None:
    """One list of a data set's runs from those of its batches.

    Runs of one content under several names are quarantined, all of them: nobody can tell whose they are.

    Raises
    ------
    InputError : a run is in two batches.
    """
    batches = {Path(path): artefact.read_json(path) for path in paths}
    runs = [entry for batch in batches.values() for entry in batch["runs"]]
    _require_once([entry["path"] for entry in runs], output)
    alike = _alike(runs)
    lost = [entry for batch in batches.values() for entry in batch["quarantined"]]
    lost += [
        {**_name(entry["subject"], entry["session"], entry["run"]), "reason": alike[entry["path"]]}
        for entry in runs
        if entry["path"] in alike
    ]
    runs = [entry for entry in runs if entry["path"] not in alike]
    record = artefact.provenance("shards", VERSIONS["shards"], None, {path.stem: path for path in batches})
    artefact.write_json(output, {"runs": runs, "quarantined": lost, "provenance": record})


def _require_once(places: Sequence[str], output: Path) -> None:
    seen: set[str] = set()
    for place in places:
        if place in seen:
            raise InputError(output, f"{place} in two batches", "each run once", "Run the people stage again.")
        seen.add(place)


def _alike(runs: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Path -> reason, of each run whose content another one has too."""
    same: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for entry in runs:
        # Registered through two T1ws one file becomes two contents: the file counts too. An archive holds many people.
        for mark in {entry["content"], entry.get("source", "")} - {""}:
            same[mark].append(entry)
    return {
        entry["path"]: f"same data as {', '.join(_label(other) for other in twins if other is not entry)}"
        for twins in same.values()
        if len(twins) > 1
        for entry in twins
    }


def _label(entry: dict[str, Any]) -> str:
    return f"sub-{entry['subject']} session {entry['session']} run {entry['run']}"
