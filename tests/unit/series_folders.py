"""Folders of parcel series with a planted effect, in the forms in which people keep them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

PEOPLE, PARCELS, FRAMES, SITES = 48, 6, 40, ("NYU", "PITT", "YALE")


@dataclass
class People:
    """Series by id, and the lines of their table; a test spoils either before it is written."""

    series: dict[str, np.ndarray]
    table: list[list[str]]
    header: list[str] = field(default_factory=lambda: ["participant_id", "dx", "site", "age", "sex", "mean_fd", "TR"])

    def write_table(self, folder: Path, name: str = "participants.tsv") -> None:
        separator = "," if name.endswith(".csv") else "\t"
        lines = [separator.join(line) for line in (self.header, *self.table)]
        (folder / name).write_text("\n".join(lines) + "\n")

    def set(self, column: str, values: Mapping[int, str]) -> None:
        """Change a column of some rows."""
        for row, value in values.items():
            self.table[row][self.header.index(column)] = value


def planted_people(people: int = PEOPLE, effect: float = 1.5, parcels: int = PARCELS, frames: int = FRAMES) -> People:
    """Every other person is a patient (ASD), in whom parcels 0 and 1, and 2 and 3, are coupled by `effect`."""
    rng, series, table = np.random.default_rng(7), {}, []
    for person in range(people):
        name, patient = f"{50003 + 7 * person}", person % 2
        series_TR = rng.normal(0, 1, (frames, parcels))
        series_TR[:, [1, 3]] += patient * effect * series_TR[:, [0, 2]]
        series[name] = 1000 + 10 * series_TR
        known = [f"{rng.uniform(8, 40):.2f}", "MF"[rng.integers(2)], f"{rng.uniform(0.05, 0.3):.4f}", "2.0"]
        table.append([name, ["TC", "ASD"][patient], SITES[person // 2 % 3], *known])
    return People(series, table)


def write_quantised(people: People, folder: Path) -> None:
    """One archive a site: <SITE>_00<id>/q, mean and step, as int16."""
    sites = {line[0]: line[people.header.index("site")] for line in people.table}
    for site in {*sites.values()}:
        arrays: dict[str, np.ndarray] = {}
        for name, series_TR in people.series.items():
            if sites.get(name) == site:
                mean_R, step_R = series_TR.mean(0), np.maximum(np.abs(series_TR - series_TR.mean(0)).max(0), 1) / 32000
                parts = {"q": np.rint((series_TR - mean_R) / step_R).astype(np.int16), "mean": mean_R, "step": step_R}
                arrays |= {f"{site}_{int(name):07d}/{part}": array for part, array in parts.items()}
        np.savez_compressed(folder / f"{site}.npz", **arrays)


def write_archive(people: People, folder: Path) -> None:
    """One archive of everybody: sub-<id>, an array each."""
    np.savez(folder / "series.npz", **{f"sub-{name}": series_TR for name, series_TR in people.series.items()})


def write_archives(people: People, folder: Path) -> None:
    """One archive a person, with two arrays more that are no series."""
    for name, series_TR in people.series.items():
        np.savez(folder / f"{name}_ts.npz", timeseries=series_TR, tr=2.0, labels=np.arange(series_TR.shape[1]))


def write_text(people: People, folder: Path) -> None:
    """C-PAC's names, seven digits: 0050003_rois_cc200.1D; and tables beside them that are no series."""
    for name, series_TR in people.series.items():
        np.savetxt(folder / f"{int(name):07d}_rois_cc200.1D", series_TR, fmt="%.5f", header="#1\t#2", comments="")
    (folder / "README.txt").write_text("Series.\n")
    (folder / "phenotypic.csv").write_text("SUB_ID,DX\n1,2\n")


def write_cpac(people: People, folder: Path) -> None:
    """C-PAC's text with a site before the id, a label a parcel in its header, and tabs."""
    header = "\t".join(f"#{parcel + 1}" for parcel in range(next(iter(people.series.values())).shape[1]))
    sites = {line[0]: line[people.header.index("site")].title() for line in people.table}
    for name, series_TR in people.series.items():
        path = folder / f"{sites[name]}_{int(name):07d}_rois_cc200.1D"
        np.savetxt(path, series_TR, fmt="%.5f", delimiter="\t", header=header, comments="")


def write_plain_archive(people: People, folder: Path) -> None:
    """One archive of everybody, by id alone."""
    np.savez(folder / "cohort.npz", **people.series)


def write_csv(people: People, folder: Path) -> None:
    """A table a person, with names of parcels above; Windows line ends, and a mark of its encoding at the beginning."""
    for name, series_TR in people.series.items():
        header = ",".join(f"L_region {parcel}" for parcel in range(series_TR.shape[1]))
        path = folder / f"sub-{name}_timeseries.csv"
        np.savetxt(path, series_TR, "%.5f", ",", "\r\n", "\ufeff" + header, comments="", encoding="utf-8")


FORMS = {
    "quantised": write_quantised,
    "archive": write_archive,
    "archives": write_archives,
    "text": write_text,
    "cpac": write_cpac,
    "plain archive": write_plain_archive,
    "csv": write_csv,
}
