"""Who was trained on and who was not, and what a learner makes of the clips of both.

Legend: K clips; D channels; P people; T frames; V columns of a shard.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.artefact import digest, read_json
from pipeline.bold.clips import Runs
from pipeline.bold.people import cell_people, read_people
from pipeline.config import Study
from pipeline.errors import InputError
from pipeline.grid import Cell, cell_datasets
from pipeline.models.learners.reconstruction import Reconstructor
from pipeline.models.parts.voxels import Raster
from pipeline.pretrain.lesson import VALIDATION_RATIO, VALIDATION_SEED
from pipeline.pretrain.masks import hidden_tokens
from pipeline.pretrain.objectives import is_additive, objective_of
from pipeline.pretrain.objectives.batch import Objective
from pipeline.pretrain.people import Entry, Paths, person
from pipeline.pretrain.samples import Samples, real_values

CLIPS, MASKS = 4, 2  # clips a person at most, and masks a clip


class Side(NamedTuple):
    """Clips of one side, person after person."""

    runs: Runs
    place_K: list[tuple[int, int]]  # number of the run, and first frame
    person_K: np.ndarray  # number of the person
    family_P: np.ndarray

    def clip(self, number: int, context: int) -> np.ndarray:
        """(T, V) a clip, z-scored over its run."""
        run, start = self.place_K[number]
        return self.runs.clip(run, start, context)


class Measured(NamedTuple):
    """What a learner makes of them."""

    features_KD: np.ndarray
    loss_K: np.ndarray | None


def choose_sides(
    study: Study,
    cell: Cell,
    contract: Mapping[str, Any],
    manifests: Paths,
    participants: Paths,
    draws: str | Path,
    people: int,
) -> tuple[Side, Side]:
    """First runs of people that a cell was trained on, and of everybody else who is of no family of theirs.

    Parameters
    ----------
    contract : of the cell; every shard must agree with it.
    people : at most so many of each side, drawn by the hash of their names.

    Raises
    ------
    InputError : fewer than two people on a side have runs of one clip.
    """
    context, datasets = study.context_frames(cell.architecture), cell_datasets(study, cell)
    first = _first_runs([manifests[name] for name in datasets], context)
    family = _families({name: participants[name] for name in datasets})
    names = set(cell_people(Path(draws), cell.draw, cell.subjects, datasets))
    theirs = {family[name] for name in names if name in family}
    others = [name for name in first if name not in names and family.get(name, name) not in theirs]
    sides: list[Side] = []
    for what, chosen in (("trained on", names & first.keys()), ("held out", others)):
        kept = sorted(chosen, key=digest)[:people]
        if len(kept) < 2:
            hint = "Keep people for evaluation: without them nobody can be compared."
            raise InputError(f"cell {cell.path}", f"{len(kept)} people {what} with runs", "at least 2", hint)
        family_P = np.array([family.get(name, name) for name in kept])
        sides.append(side_of([first[name] for name in kept], family_P, contract, cell.frames, context))
    return sides[0], sides[1]


def _first_runs(manifests: Iterable[str | Path], frames: int) -> dict[str, Entry]:
    """The first run of `frames` frames of everybody."""
    first: dict[str, Entry] = {}
    for manifest in manifests:
        for entry in sorted(read_json(manifest)["runs"], key=lambda run: (run["session"], run["run"])):
            if entry["frames"] >= frames:
                first.setdefault(person(entry), entry)
    return first


def _families(participants: Paths) -> dict[str, str]:
    family: dict[str, str] = {}
    for dataset, path in participants.items():
        table = read_people(Path(path))
        found = zip(table["subject"], table["family"], strict=True)
        family |= {f"{dataset}/{subject}": f"{dataset}/{name}" for subject, name in found}
    return family


def side_of(
    entries: Sequence[Entry], family_P: np.ndarray, contract: Mapping[str, Any], frames: int, context: int
) -> Side:
    """Clips evenly spaced over the frames that training would have seen, without overlap."""
    place_K = []
    for run, entry in enumerate(entries):
        seen = min(frames, entry["frames"])
        clips = max(1, min(CLIPS, seen // context))
        place_K += [(run, start) for start in np.linspace(0, seen - context, clips).astype(int).tolist()]
    return Side(Runs(entries, contract), place_K, np.array([run for run, _ in place_K]), family_P)


def objective_for(
    learner: Any, metadata: Mapping[str, Any], raster: Raster, options: Mapping[str, Any], context: int
) -> Objective:
    """The objective that the learner was trained by, hiding as much as in validation."""
    masks, hide = metadata["masks"], None
    if isinstance(learner, Reconstructor):
        places = real_values(learner, raster).flatten(-2).any(-1).cpu()
        times = context // learner.encoder.frames_per_token
        hide = partial(hidden_tokens, places=places, times=times, ratio=VALIDATION_RATIO, kind=masks["kind"])
    return objective_of(metadata["objective"], learner, hide, masks["loss"], options, context)


@torch.inference_mode()
def measure(learner: Any, raster: Raster, side: Side, context: int, objective: Objective) -> Measured:
    """Features of each clip, and its loss over `MASKS` masks where the objective has one of a clip alone.

    Memory holds one clip, and the features of all.
    """
    learner.eval()
    inside = real_values(learner, raster) if isinstance(learner, Reconstructor) else None
    samples = Samples(partial(side.clip, context=context), raster, VALIDATION_SEED, inside, masks_per_clip=MASKS)
    features, losses = [], []
    for number in range(len(side.place_K)):
        batch = samples.batch(range(number * MASKS, (number + 1) * MASKS), progress=1.0)
        features.append(learner.encoder(batch.clip[:1]).flatten(2).mean(-1).float().cpu().numpy()[0])
        if is_additive(objective):
            losses.append(float(objective.loss(batch)))
    return Measured(np.array(features, dtype=np.float32), np.array(losses) if losses else None)
