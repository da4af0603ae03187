"""The ordinary stages over a folder: people, shards, evaluation set, in a working folder that a later call finds.

A batch of people is ingested again when what it hangs on has changed: place, size and time of change of one of its
files, its TR, a setting of shards or of quality, or the version of that stage. Everything else is written anew.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm import tqdm

from pipeline import artefact
from pipeline.bold.batches import collect_batches
from pipeline.bold.ingest import ingest_series
from pipeline.bold.inputs import Run
from pipeline.bold.people import write_people, write_split
from pipeline.bold.quality import Quarantined
from pipeline.bold.workers import each
from pipeline.config import Dataset, Evaluate, ProtocolName, Quality, Shards, Study, Template
from pipeline.errors import InputError
from pipeline.evaluate.cohort import stratum
from pipeline.evaluate.folder.columns import numbers
from pipeline.evaluate.folder.inferred import Folder, Options, runs_a_person
from pipeline.evaluate.splits import MIN_CLASS
from pipeline.evaluate.systems import require
from pipeline.stages import VERSIONS

if TYPE_CHECKING:
    import pandas as pd

BATCH = 64  # runs ingested, and remembered, together
LIST = "manifest.json"  # written last into a shard
FILE = re.compile(r"^(?:/[^:]*?|\S*?)\.(?:npz|1D|csv|tsv|txt|nii)(?:/\S*?)?(?=:? )", re.I)  # that a reason begins with
SPACE = Template(
    space="parcel series", resolution_mm=1, shape=(1, 1, 1), patch=(1, 1, 1)
)  # no volume is ever laid on it


class Cohort(NamedTuple):
    """What the benchmark's core is given: files by data set, and the evaluation set."""

    manifests: dict[str, Path]
    participants: dict[str, Path]
    evaluation_set: Path


def study_of_folder(options: Options, folder: Folder) -> Study:
    """The study that a user would have written for this folder.

    Raises
    ------
    InputError : an unknown system.
    """
    people, asked = len(folder.table), asked_of(options)
    protocols: tuple[ProtocolName, ...] = ("frozen", *(name for name in asked if name != "frozen"))
    dataset = Dataset(
        door="parcels",
        path=str(options.dataset.absolute()),
        participants=str(options.work_folder / "participants.tsv"),
        id_column="subject",
        missing=("",),
        atlas="unnamed",
        people=people,
        runs=runs_a_person(folder.scans),
        batch_people=people,
        roles=("evaluate",),
        evaluation_people=people,
        labels={options.label: folder.label.phenotype.model_copy(update={"column": options.label})},
        confounds=folder.confounds,
        family_column="family",
        site_column="site",
        denoising="not stated",
        filtered=True,  # as little stated: what is measured of each run is told (`unlike`) and refuses nobody
    )
    return Study(
        name=options.name,
        seed=options.seed,
        template=SPACE,
        datasets={options.name: dataset},
        shards=Shards(min_frames=options.min_frames),
        quality=Quality(min_coverage=options.min_coverage, pictures="none"),
        evaluate=Evaluate(splits=options.splits, protocols=protocols, systems=options.systems),
    )


def asked_of(options: Options) -> tuple[ProtocolName, ...]:
    """Protocols that are written and printed: those named, else each system's own."""
    if options.protocols:
        return tuple(dict.fromkeys(options.protocols))
    trained = {system.trained for system in require(options.systems, "--systems")}
    return (*(("frozen",) if False in trained else ()), *(("trained",) if True in trained else ()))


def run_stages(study: Study, folder: Folder, options: Options) -> Cohort:
    """Shards, people and evaluation set of the folder.

    Raises
    ------
    InputError : nobody's series can be used; people have different numbers of parcels; or a class is left with too few.
    """
    work = options.work_folder
    artefact.write_text(work / "participants.tsv", folder.table.to_csv(sep="\t", index=False))
    people, manifest = work / "people", work / "shards" / "manifest.json"
    shutil.rmtree(people, ignore_errors=True)  # the people of a former call: here nothing hangs on their order
    write_people(study, options.name, people)
    _ingest(study, folder, manifest, options.workers)
    _require_people(folder, manifest, options)
    cohort = Cohort(
        {options.name: manifest}, {options.name: people / "participants.tsv"}, work / "split" / "evaluation_set.json"
    )
    write_split(study, cohort.participants, cohort.manifests, cohort.evaluation_set, work / "split" / "draws.json")
    return cohort


def _ingest(study: Study, folder: Folder, manifest: Path, workers: int) -> None:
    """Every run's shard, batch after batch, and the list of them; what a former call left of others is removed."""
    runs, batches = folder.scans.runs, []
    for number, start in enumerate(range(0, len(runs), BATCH)):
        path, some = manifest.with_name(f"batch-{number:04d}.json"), runs[start : start + BATCH]
        key = artefact.digest([VERSIONS["shards"], study.shards, study.quality, "any filter", *map(_marks, some)])
        batches.append(Batch(path, key, some))
    _ingest_batches(study, [batch for batch in batches if not batch.is_done()], manifest.parent, workers)
    lost = [_entry(*one[:3], one.fault) for one in folder.scans.lost]
    artefact.write_json(manifest.with_name("lost.json"), {"runs": [], "quarantined": lost})
    paths = [*(batch.path for batch in batches), manifest.with_name("lost.json")]
    collect_batches(paths, manifest)
    listed = {Path(entry["path"]) for path in paths for entry in artefact.read_json(path)["runs"]}
    for shard in manifest.parent.glob("sub-*/ses-*"):
        if shard not in listed:
            shutil.rmtree(shard)


class Batch(NamedTuple):
    """Runs that are remembered together, and what their shards hang on."""

    path: Path
    key: str
    runs: list[Run]

    def is_done(self) -> bool:
        """Whether a former call left the shards of just this."""
        if not self.path.is_file():
            return False
        former = artefact.read_json(self.path)
        return former["key"] == self.key and all((Path(one["path"]) / LIST).is_file() for one in former["runs"])


def _ingest_batches(study: Study, batches: Sequence[Batch], store: Path, workers: int) -> None:
    """One pool of processes for all of them: a start costs 2 s of imports."""
    runs = [run for batch in batches for run in batch.runs]
    outcomes = each(partial(_attempt, study, store), runs, workers, __name__)
    shown = tqdm(outcomes, total=len(runs), desc="ingest", unit="run", disable=not (runs and sys.stderr.isatty()))
    remaining = iter(shown)
    for batch in batches:
        done = list(islice(remaining, len(batch.runs)))
        kept = [outcome for outcome in done if "reason" not in outcome]
        lost = [outcome for outcome in done if "reason" in outcome]
        artefact.write_json(batch.path, {"key": batch.key, "runs": kept, "quarantined": lost})


def _marks(run: Run) -> list[Any]:
    """What a run's shard hangs on, beside settings."""
    about = run.bold.stat()
    return [*run.folder.split("/"), run.dataset, str(run.bold), run.series, run.tr_s, about.st_size, about.st_mtime_ns]


def _attempt(study: Study, store: Path, run: Run) -> dict[str, Any]:
    """The run's entry in the list, with its number of parcels; or its name and the reason why it is lost."""
    try:
        entry = ingest_series(study, store, run)
    except (InputError, Quarantined) as fault:
        shutil.rmtree(store / run.folder, ignore_errors=True)  # a shard of a former call
        return _entry(run.subject, run.session, run.run, fault)
    return {**entry, "parcels": artefact.read_json(Path(entry["path"]) / LIST)["shape"][1]}


def _entry(subject: str, session: str, run: str, fault: Exception) -> dict[str, Any]:
    return {"subject": subject, "session": session, "run": run, "reason": str(fault)}


def _require_people(folder: Folder, manifest: Path, options: Options) -> None:
    """Enough people of one number of parcels, or an InputError that says what became of the others."""
    listing = artefact.read_json(manifest)
    runs, lost = listing["runs"], listing["quarantined"]
    if not runs:
        found = f"no usable series of {len(folder.table)} people; {_commonest(lost)}"
        raise InputError(options.dataset, found, "series of frames x parcels", "Mend what the reason names.")
    _require_one_width(runs, options)
    usable = folder.table["subject"].isin({run["subject"] for run in runs})
    told, least = _counted(folder, folder.table.loc[usable, options.label])
    if least < MIN_CLASS:
        excluded = f" ({len(lost)} runs or people are excluded; {_commonest(lost)})" if lost else ""
        hint = f"Add people, or mend what the reason names; all reasons: {manifest}." if lost else "Add people."
        found = f"{told} with a usable series{excluded}"
        raise InputError(options.dataset, found, f"at least {MIN_CLASS} of each", hint)


def _counted(folder: Folder, values: pd.Series[str]) -> tuple[str, int]:
    """People of each class in words, and how many the smaller has; of a number, those of its halves."""
    coding = folder.label.phenotype
    if coding.number:
        known = numbers(values).dropna().to_numpy()
        if len(known) and (known == known[0]).all():
            return f"{len(known)} people with the value {known[0]:g} and nobody with another", 0
        upper = int(stratum(known, "number").sum()) if len(known) else 0
        return f"{upper} people in the upper and {len(known) - upper} in the lower half", min(upper, len(known) - upper)
    positive, negative = (int(values.isin(which).sum()) for which in (coding.positive, coding.negative))
    return f"{positive} positive and {negative} negative people", min(positive, negative)


def _commonest(lost: Sequence[dict[str, Any]]) -> str:
    reason, count = Counter(plain(entry["reason"]) for entry in lost).most_common(1)[0]
    return f"{count} of them: {reason}"


def _require_one_width(runs: Sequence[dict[str, Any]], options: Options) -> None:
    widths = Counter(run["parcels"] for run in runs)
    if len(widths) == 1:
        return
    (most, many), *others = widths.most_common()
    odd = next(run for run in runs if run["parcels"] == others[0][0])
    turned = len({run["frames"] for run in runs}) == 1
    hint = "Use one parcellation for everybody, or take these people out of the table."
    if turned:
        hint += " If every series is parcels x frames (all have as many rows): turn them round (frames x parcels)."
    found = f"{many} series of {most} parcels and {len(runs) - many} of others: {odd['parcels']} of '{odd['subject']}'"
    raise InputError(options.dataset, found, "one number of parcels", hint)


def unlike(manifest: Path) -> str:
    """A warning where some runs are band-passed and others are not, as measured; "" where they are alike."""
    measured = Counter(run["quality"]["filtered"] for run in artefact.read_json(manifest)["runs"])
    if not (measured[True] and measured[False]):
        return ""
    told = f"{measured[True]} runs look band-passed and {measured[False]} do not"
    return f"WARNING: {told}: people may be told apart by how they were filtered."


def plain(reason: str) -> str:
    """A reason without the file that it begins with, so that people excluded for the same one are counted together."""
    return FILE.sub("the series", reason)


def excluded(manifest: Path) -> Iterator[tuple[str, str, str]]:
    """Reason, person and run ("" for a person) of everything that is in the folder and in no task."""
    for entry in artefact.read_json(manifest)["quarantined"]:
        yield entry["reason"], entry["subject"], entry["run"]
