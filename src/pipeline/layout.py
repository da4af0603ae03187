"""Where a study's files lie: results/<study>/<stage>/..., and a cell's under the same path in each stage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.config import Role, Study
from pipeline.grid import Cell

QUARANTINE = "quarantine"  # folder beside a data set's shards, with measures and pictures of runs that were lost


def run_folder(subject: str, session: str, run: str) -> str:
    """Folder of a run's shard below its data set's, and of its measures below the quarantine."""
    return f"sub-{subject}/ses-{session}_run-{run}"


@dataclass(frozen=True)
class Layout:
    """Paths of one study, relative to the working directory."""

    study: Study

    @property
    def root(self) -> Path:
        """results/<study>."""
        return self.study.results

    @property
    def template(self) -> Path:
        """Folder of template.json and template.npz."""
        return self.root / "template"

    @property
    def evaluation_set(self) -> Path:
        """People who are never pretrained on."""
        return self.root / "split" / "evaluation_set.json"

    @property
    def draws(self) -> Path:
        """Nested orders of the people who are."""
        return self.root / "split" / "draws.json"

    @property
    def tables(self) -> Path:
        """Folder of the tidy tables."""
        return self.root / "tables"

    def table(self, stage: str) -> Path:
        """One tidy table."""
        return self.tables / f"{stage}.parquet"

    def people(self, dataset: str) -> Path:
        """Folder of participants.tsv and of the membership."""
        return self.root / "people" / dataset

    def participants(self, role: Role) -> dict[str, Path]:
        """Participants tables by data set."""
        return {name: self.people(name) / "participants.tsv" for name in self.study.with_role(role)}

    def shards(self, dataset: str) -> Path:
        """Folder of a data set's shards and of their manifest."""
        return self.root / "shards" / dataset

    def store(self, architecture: str, *roles: Role) -> dict[str, Path]:
        """Manifests by data set of the store that an architecture reads: voxels, parcels or flat maps."""
        store = self.study.architectures[architecture].store
        return {name: self.store_manifest(store, name) for name in self.manifests(*roles)}

    def store_manifest(self, store: str, dataset: str) -> Path:
        """The list of a data set's shards in a store; parcel series that came as such lie with the shards."""
        given = self.study.datasets[dataset].door == "parcels"
        return self.root / ("shards" if given else store) / dataset / "manifest.json"

    @property
    def features(self) -> Path:
        """Folder in which features of encoders are kept, a cell's under its path."""
        return self.root / "features"

    @property
    def flatmap(self) -> Path:
        """Way from the template's voxels to the raster of flat maps."""
        return self.root / "flatmaps" / "flatmap.npz"

    def manifest(self, dataset: str) -> Path:
        """The list of a data set's shards."""
        return self.shards(dataset) / "manifest.json"

    def manifests(self, *roles: Role) -> dict[str, Path]:
        """Manifests by data set, of those that serve any of the roles."""
        names = dict.fromkeys(name for role in roles for name in self.study.with_role(role))
        return {name: self.manifest(name) for name in names}

    def cell(self, stage: str, cell: Cell) -> Path:
        """Folder of a cell in a stage."""
        return self.root / stage / cell.path

    def learning_rate(self, architecture: str) -> Path:
        """Verdict of an architecture's sweep."""
        return self.root / "learning_rate" / architecture / "lr.json"
