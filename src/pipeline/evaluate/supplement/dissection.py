"""An encoder, whole or in part, read by the frozen probe: scan lengths and ablations of the supplement.

Axes: N people of a cohort, M of a task, R resamples (row 0: the sample itself), U runs that are used, D features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.evaluate.benchmark import judge
from pipeline.evaluate.cohort import Cohort, Task
from pipeline.evaluate.encoders import Frozen
from pipeline.evaluate.features import encode_runs
from pipeline.evaluate.judged import Row
from pipeline.evaluate.probes.linear import linear_reader
from pipeline.evaluate.rows import HEADLINE, TIME_SHUFFLED
from pipeline.evaluate.splits import seeded
from pipeline.evaluate.supplement import ablation
from pipeline.evaluate.systems.readers import harmonisation
from pipeline.intervals import Interval, family_weights, percentile_interval
from pipeline.tables import NONE

INTACT, SHUFFLED_FRAMES = "intact", "frames shuffled"


def result(task: str, metric: str, split: str, value: Interval | float, n: int) -> Row:
    """The columns of a result but for whose it is."""
    interval = value if isinstance(value, Interval) else Interval(value, np.nan, np.nan)
    found = {"task": task, "metric": metric, "split": split, "fold": NONE, "n": n, "unit": "1"}
    return {**found, **interval._asdict()}


def resamples_of(task: Task, resamples: int) -> np.ndarray:
    """(R, M) as `Contest.weights_RM`."""
    drawn_RM = family_weights(task.families_M, resamples, seeded(task.key, "bootstrap"))
    return np.vstack([np.ones(len(task.target_M)), drawn_RM])


@dataclass(frozen=True, eq=False)
class Probed:
    """An encoder, whole or in part, read by the frozen probe on the runs of a cohort that the supplement uses."""

    frozen: Frozen
    cohort: Cohort

    @property
    def used_R(self) -> np.ndarray:
        """Which runs are used: the first of each person, as many as the study says."""
        most, person_R = self.frozen.study.supplement.runs, self.cohort.person_R
        number_R = np.arange(len(person_R)) - np.searchsorted(person_R, person_R)
        return np.flatnonzero(number_R < (most or len(person_R)))

    def scan_rows(self) -> Iterator[Row]:
        """Rows of each scan length; a gap where a person's runs are shorter."""
        scans = self.frozen.scans(self.cohort)
        longest = min(scans[run].frames for run in self.used_R)
        for frames in self.frozen.study.supplement.frames:
            if not self.frozen.context <= frames <= longest:
                for task in self.cohort.tasks:
                    gap = result(task.name, HEADLINE[task.kind], f"T{frames}", np.nan, len(task.target_M))
                    yield {**gap, "status": "too_short" if frames > longest else "shorter_than_a_clip"}
                continue
            same = frames == self.frozen.study.evaluate.frames
            person_ND = self._whole() if same else self._encode(self.frozen.encoder, frames)
            for task in self.cohort.tasks:
                value_R = self._read(task, person_ND)
                yield self._told(task, HEADLINE[task.kind], f"T{frames}", value_R)

    def part_rows(self) -> Iterator[Row]:
        """Rows of the intact encoder, without each part and on shuffled frames, with the change, paired over people."""
        intact = {task.name: self._read(task, self._whole()) for task in self.cohort.tasks}
        for task in self.cohort.tasks:
            yield self._told(task, HEADLINE[task.kind], INTACT, intact[task.name])
        for name, person_ND in self._changed():
            for task in self.cohort.tasks:
                value_R, metric = self._read(task, person_ND), HEADLINE[task.kind]
                yield self._told(task, metric, name, value_R)
                yield self._told(task, f"{metric}_change", name, value_R - intact[task.name])

    def _changed(self) -> Iterator[tuple[str, np.ndarray]]:
        study, frames = self.frozen.study, self.frozen.study.evaluate.frames
        for part in ablation.parts(self.frozen.encoder):
            if part in study.supplement.parts:
                yield f"without {part}", self._encode(ablation.without(self.frozen.encoder, part), frames)
        if "order" in study.supplement.parts:
            rng = seeded(self.cohort.key, TIME_SHUFFLED)
            yield SHUFFLED_FRAMES, self._encode(self.frozen.encoder, frames, rng)

    def _whole(self) -> np.ndarray:
        """(N, D) features of the intact encoder, which the benchmark has kept."""
        return self._of_runs(self.frozen.features(self.cohort, shuffled=False).full_RD[self.used_R])

    def _encode(self, encoder: Any, frames: int | None, shuffle: np.random.Generator | None = None) -> np.ndarray:
        """(N, D) mean feature of each person's used runs."""
        frozen, shards = self.frozen, self.frozen.shards(self.cohort)
        used = [shards[run] for run in self.used_R]
        clips = encode_runs(
            encoder, used, frozen.raster, frozen.context, frames=frames, shuffle=shuffle, tr_s=frozen.contract["tr_s"]
        )
        return self._of_runs(np.array([clips_KD.mean(0) for clips_KD in clips]))

    def _of_runs(self, runs_UD: np.ndarray) -> np.ndarray:
        total_ND = np.zeros((len(self.cohort.people), runs_UD.shape[1]))
        np.add.at(total_ND, self.cohort.person_R[self.used_R], runs_UD)
        counts_N = np.bincount(self.cohort.person_R[self.used_R], minlength=len(total_ND))
        return np.asarray(total_ND / counts_N[:, None])

    def _read(self, task: Task, person_ND: np.ndarray) -> np.ndarray:
        """(R,) headline metric of averaged scores under resamples of families; row 0 is the sample itself."""
        settings, features_MD = self.frozen.study.evaluate, person_ND[task.rows_M]
        splits = self.frozen.study.supplement.splits
        weights_RM = resamples_of(task, settings.bootstrap)
        if not np.isfinite(features_MD).all():
            return np.full(len(weights_RM), np.nan)
        harmonise = harmonisation(self.frozen.study, self.cohort, task)
        reader = linear_reader(features_MD, task.families_M, settings.penalties, task.kind, harmonise)
        return judge(reader, task, task.parts_SM[:splits]).averaged_metrics(weights_RM)[HEADLINE[task.kind]]

    def _told(self, task: Task, metric: str, split: str, value_R: np.ndarray) -> Row:
        interval = percentile_interval(float(value_R[0]), value_R[1:], self.frozen.study.evaluate.confidence)
        return result(task.name, metric, split, interval, len(task.target_M))
