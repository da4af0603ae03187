"""What the systems read: parcels of every run, from one pass over the runs of a cohort.

Memory is 4 B x runs x edges for each of three kinds (correlations, those of short scans, covariances): 160 MB for 657
runs of 200 parcels; the series themselves are read one run at a time. Axes: N people of a cohort, R runs, T frames,
P parcels, V columns of the shards (voxels or parcels), E edges = P (P - 1) / 2, D = P (P + 1) / 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np

from pipeline.bold.reader import Shard
from pipeline.bold.template import Template, parcel_means
from pipeline.config import Study
from pipeline.errors import InputError
from pipeline.evaluate.cohort import Cohort
from pipeline.evaluate.reading import RunFeatures
from pipeline.evaluate.systems.connectome import partial_correlation, pearson, shrunk_covariance
from pipeline.evaluate.systems.packing import pack, unpack

SAME = ("kind", "template", "atlas", "space", "denoising")  # fields of the contract that runs must share
_BLOCK_BYTES = 1 << 28  # of images or edges multiplied at once

Parcels = Callable[[np.ndarray], np.ndarray]  # (T, V) -> (T, P)


class Scan(NamedTuple):
    """Parcels of one run; image and SD are in units of the brain's signal."""

    edges_E: np.ndarray
    covariance_D: np.ndarray
    image_P: np.ndarray
    sd_P: np.ndarray
    short_edges_E: np.ndarray
    short_sd_P: np.ndarray


class Runs(NamedTuple):
    """The same of all runs, float32; short scans have no rows where nobody's two sessions are compared."""

    edges_RE: np.ndarray
    covariance_RD: np.ndarray
    image_RP: np.ndarray
    sd_RP: np.ndarray
    short_edges_RE: np.ndarray
    short_sd_RP: np.ndarray


@dataclass(frozen=True, eq=False)
class Material:
    """Everything that systems outside the grid read of one cohort, each computed once, when it is first asked for.

    `template` is the study's, for data sets of volumes; parcel series need none.
    """

    study: Study
    cohort: Cohort
    template: Template | None = None

    @cached_property
    def runs(self) -> Runs:
        """Parcels of every run; each is read once.

        Raises
        ------
        InputError : runs differ in kind, atlas, denoising or number of parcels, a value is not finite, or voxels come
            without a template.
        """
        settings = self.study.evaluate
        short = settings.identity_frames if len(self.cohort.session_pairs()[1]) > 1 else 0
        found: Runs | None = None
        for row, shard in enumerate(self.shards()):
            scan = read_scan(shard, self._parcels(shard), settings.frames, short)
            if found is None:
                found = _empty(scan, len(self.cohort.runs), len(self.cohort.runs) if short else 0)
            for kept, value in zip(found, scan, strict=True):
                kept[row : row + 1] = value
        assert found is not None, "a cohort has runs"
        return found

    @cached_property
    def edges_NE(self) -> np.ndarray:
        """Fisher z of Pearson correlations, mean over a person's runs, float32."""
        return self._of_people(self.runs.edges_RE)

    @cached_property
    def covariance_ND(self) -> np.ndarray:
        """Shrunk covariance of parcels at unit variance, packed, mean over a person's runs, float32."""
        return self._of_people(self.runs.covariance_RD)

    @cached_property
    def partial_NE(self) -> np.ndarray:
        """Fisher z of partial correlations by the mean covariance of a person, float32."""
        return np.array([partial_correlation(unpack(each_D)) for each_D in self.covariance_ND], dtype=np.float32)

    @cached_property
    def image_NP(self) -> np.ndarray:
        """Mean over time, in units of the brain's signal, mean over a person's runs."""
        return self._of_people(self.runs.image_RP)

    @cached_property
    def sd_NP(self) -> np.ndarray:
        """SD over time, in units of the brain's signal, mean over a person's runs."""
        return self._of_people(self.runs.sd_RP)

    @cached_property
    def edge_products_NN(self) -> np.ndarray:
        """Scalar products of people's connectomes, from which principal components of any part are found."""
        return products(lambda columns: self.edges_NE[:, columns], *self.edges_NE.shape)

    @cached_property
    def image_products_2NN(self) -> np.ndarray:
        """Scalar products of people's mean images and of their SD images, by voxel where there are voxels.

        Images are read again, as many columns at a time as fit into memory.
        """
        columns = next(self.shards()).voxels
        return np.array([products(partial(self._images, which), len(self.cohort.people), columns) for which in (0, 1)])

    def of_runs(self, full_RD: np.ndarray, short_RD: np.ndarray) -> RunFeatures | None:
        """Features of runs for identity; None where fewer than two people have two sessions."""
        return RunFeatures(full_RD, short_RD[:, None]) if len(short_RD) else None

    def _of_people(self, runs_RD: np.ndarray) -> np.ndarray:
        return self.cohort.per_person(runs_RD).astype(np.float32)

    def _images(self, which: int, columns: slice) -> np.ndarray:
        return self.cohort.per_person(np.array([images(shard)[which][columns] for shard in self.shards()]))

    def shards(self) -> Iterator[Shard]:
        """The runs, each checked against the first.

        Raises
        ------
        InputError : runs differ in kind, atlas, denoising or number of columns.
        """
        first: Shard | None = None
        for folder in self.cohort.folders:
            shard = Shard.open(folder, {} if first is None else _shared(first))
            first = first or shard
            if shard.voxels != first.voxels:
                found, hint = f"{shard.voxels} columns", "Use one parcellation a data set, or leave these people out."
                raise InputError(shard.folder, found, f"{first.voxels}, as in {first.folder}", hint)
            yield shard

    def _parcels(self, shard: Shard) -> Parcels:
        kind = shard.contract.get("kind")
        if kind == "parcels":
            return lambda bold_TP: bold_TP
        if kind != "voxels" or self.template is None or shard.contract["template"] != self.template.key:
            expected = "parcels, or voxels of the study's template"
            found = f"{kind} of template {shard.contract.get('template')}"
            raise InputError(shard.folder, found, expected, "Run the shards stage again.")
        return partial(parcel_means, template=self.template)


def _shared(first: Shard) -> dict[str, object]:
    return {field: first.contract[field] for field in SAME if field in first.contract}


def read_scan(shard: Shard, parcels: Parcels, frames: int | None, short: int) -> Scan:
    """One run, its first `frames` where that is a number; mean image and SD of columns are of the whole run.

    Raises
    ------
    InputError : a value is not finite.
    """
    bold_TV, (mean_V, std_V) = shard.read(0, frames), images(shard)
    if not (np.isfinite(bold_TV).all() and np.isfinite(mean_V).all() and np.isfinite(std_V).all()):
        hint = "Run the shards stage again: it quarantines such runs."
        raise InputError(shard.folder, "values that are not finite", "numbers", hint)
    parcels_TP = parcels(bold_TV).astype(float)
    signal_TP = parcels(bold_TV * std_V.astype(np.float32)).astype(float)
    return Scan(
        edges_E=pearson(parcels_TP),
        covariance_D=pack(shrunk_covariance(parcels_TP)),
        image_P=parcels(mean_V[None])[0],
        sd_P=signal_TP.std(0),
        short_edges_E=pearson(parcels_TP[:short]) if short else np.zeros(0),
        short_sd_P=signal_TP[:short].std(0) if short else np.zeros(0),
    )


def images(shard: Shard) -> tuple[np.ndarray, np.ndarray]:
    """(V,) mean and SD of each column over time, in units of the brain's mean root mean square.

    For BOLD that is the brain's mean within 1 %. A mean below the SD is what rounding and regression left of one that
    was taken away (up to 7 % of the SD in ABIDE's series): such a run has a mean image of 0.
    """
    mean_V, std_V = shard.mean.astype(float), shard.std.astype(float)
    if np.abs(mean_V).mean() < std_V.mean():
        mean_V = np.zeros_like(mean_V)
    unit = np.sqrt(mean_V**2 + std_V**2).mean() or 1.0
    return mean_V / unit, std_V / unit


def products(columns_of: Callable[[slice], np.ndarray], people: int, columns: int) -> np.ndarray:
    """(N, N) scalar products of rows that `columns_of` gives a block of columns at a time, in double precision."""
    products_NN, block = np.zeros((people, people)), max(1, _BLOCK_BYTES // (8 * people))
    for start in range(0, columns, block):
        rows_NF = np.asarray(columns_of(slice(start, start + block)), dtype=float)
        products_NN += rows_NF @ rows_NF.T
    return products_NN


def _empty(scan: Scan, runs: int, short: int) -> Runs:
    rows = [short if name.startswith("short") else runs for name in Scan._fields]
    return Runs(*(np.zeros((count, len(value)), np.float32) for count, value in zip(rows, scan, strict=True)))
