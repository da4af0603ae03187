"""Registry of the systems outside the grid: what every encoder is compared with.

A system says what it is and which module makes it; that module is imported when the system is made, so that whoever
only needs names and labels (the figures) imports nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pipeline.config import Study
from pipeline.errors import InputError, nearest

if TYPE_CHECKING:
    from pipeline.evaluate.cohort import Task
    from pipeline.evaluate.reading import Reader, RunFeatures
    from pipeline.evaluate.systems.material import Material

SystemKind: TypeAlias = Literal["simple", "network", "control", "chance"]
Needs: TypeAlias = Literal["parcels", "voxels", "people"]


@dataclass(frozen=True)
class System:
    """One row of the benchmark.

    Attributes
    ----------
    label : how figures and reports call it; `meaning` is one sentence on what it is.
    kind : simple: reads BOLD, learns no representation; network: trained on labels alone; control: reads no BOLD.
    needs : what it is made from; parcels are made of voxels where a data set has volumes.
    trained : learns by itself and is slow: it runs on the declared splits, under the protocol of such systems.
    module : file of this package with the function that makes it; `function` is its name, `arguments` are what it takes
        beside material and task, and `identity_by` names the one that gives features of short scans, empty for none.
    extra : package that must be installed for it; such a system runs where it is named, never by default.
    """

    name: str
    label: str
    kind: SystemKind
    needs: Needs
    meaning: str
    module: str
    function: str
    trained: bool = False
    identity_by: str = ""
    extra: str = ""
    arguments: tuple[str, ...] = ()

    def make(self, material: Material, task: Task) -> Reader | None:
        """What learns one task; None where this cohort has nothing that it could read (a single site, no motion)."""
        reader: Reader | None = self._load(self.function)(material, task, *self.arguments)
        return reader

    def identity(self, material: Material) -> RunFeatures | None:
        """Features of runs, whole and short; None where the system has none, or too few people have two sessions."""
        return self._load(self.identity_by)(material) if self.identity_by else None

    def _load(self, function: str) -> Any:
        return getattr(import_module(f"{__name__}.{self.module}"), function)


def _network(name: str, label: str, needs: Needs, meaning: str) -> System:
    function = "on_connectomes" if needs == "parcels" else "on_clips"
    return System(name, label, "network", needs, meaning, "networks", function, trained=True, arguments=(name,))


_ALL = (
    System(
        "connectome_logistic",
        "connectome, logistic",
        "simple",
        "parcels",
        "Fisher z of Pearson correlations between parcels, L2 logistic regression (ridge for numbers).",
        "connectome",
        "pearson_logistic",
        identity_by="identity",
    ),
    System(
        "connectome_ridge",
        "connectome, ridge",
        "simple",
        "parcels",
        "The same correlations, ridge on -1 and +1; for numbers connectome_logistic is ridge already.",
        "connectome",
        "pearson_ridge",
    ),
    System(
        "partial_logistic",
        "partial correlation, logistic",
        "simple",
        "parcels",
        "Fisher z of partial correlations from covariances shrunk by Ledoit and Wolf, L2 logistic regression.",
        "connectome",
        "partial_logistic",
    ),
    System(
        "tangent_logistic",
        "tangent space, logistic",
        "simple",
        "parcels",
        "The same covariances in the tangent space at the training people's mean, L2 logistic regression.",
        "tangent",
        "tangent_logistic",
        trained=True,  # the space is learnt anew in each split: 1.5 s for 500 people of 200 parcels
    ),
    System(
        "gradient_boosting",
        "connectome, gradient boosting",
        "simple",
        "parcels",
        "Boosted trees (scikit-learn's histogram gradient boosting) on principal components of the connectome.",
        "boosting",
        "gradient_boosting",
        trained=True,
    ),
    System(
        "xgboost",
        "connectome, XGBoost",
        "simple",
        "parcels",
        "Boosted trees (XGBoost) on principal components of the connectome.",
        "boosting",
        "xgboost",
        trained=True,
        extra="xgboost",
    ),
    System(
        "time_averaged",
        "time-averaged image",
        "simple",
        "parcels",
        "Mean of each parcel over time in units of the brain's signal: anatomy and coil, no dynamics.",
        "volume",
        "time_averaged",
        identity_by="time_averaged_identity",
    ),
    System(
        "temporal_sd",
        "temporal SD",
        "simple",
        "parcels",
        "SD of each parcel over time in units of the brain's signal.",
        "volume",
        "temporal_sd",
        identity_by="temporal_sd_identity",
    ),
    System(
        "parcel_mean_sd",
        "parcel mean and SD",
        "simple",
        "parcels",
        "Mean and SD of each parcel over time, side by side.",
        "volume",
        "parcel_mean_sd",
    ),
    System(
        "pca",
        "PCA of mean and SD images",
        "simple",
        "parcels",
        "Principal components of mean and SD images by voxel (by parcel without volumes), L2 logistic regression.",
        "volume",
        "principal_components",
    ),
    _network(
        "brainnetcnn",
        "BrainNetCNN",
        "parcels",
        "Convolutions along rows and columns of the connectome, trained on labels.",
    ),
    _network(
        "braingnn", "BrainGNN", "parcels", "Graph network on the connectome that pools parcels, trained on labels."
    ),
    _network(
        "brainnettf",
        "Brain Network Transformer",
        "parcels",
        "Attention between the connectome's rows with a clustering read-out, trained on labels.",
    ),
    _network("tff", "TFF", "voxels", "Convolutions over volumes and attention over time, trained on labels alone."),
    _network("brainmt", "BrainMT", "voxels", "Convolutions, state-space scans and attention, trained on labels alone."),
    System(
        "confounds",
        "confounds only",
        "control",
        "people",
        "Mean framewise displacement, age, site, sex and the named columns, without what the task predicts.",
        "people",
        "confounds",
    ),
    System(
        "motion_only", "motion only", "control", "people", "Mean framewise displacement alone.", "people", "motion_only"
    ),
    System("site_only", "site only", "control", "people", "The scanner's site alone.", "people", "site_only"),
    System(
        "chance",
        "chance",
        "chance",
        "people",
        "No features: the same answer for everybody.",
        "people",
        "chance",
        identity_by="chance_identity",
    ),
)

SYSTEMS: Mapping[str, System] = MappingProxyType({system.name: system for system in _ALL})


def require(names: Iterable[str], where: str = "evaluate.systems") -> list[System]:
    """The systems of these names, each once.

    Raises
    ------
    InputError : no system has that name, or the optional package that it needs is not installed.
    """
    return [_usable(_known(name, where), where) for name in dict.fromkeys(names)]


def applicable(study: Study, dataset: str) -> list[System]:
    """What runs on a data set: the systems that the study names, or all but the optional ones and unnamed networks.

    Systems of voxels are left out where a data set holds parcel series alone.

    Raises
    ------
    InputError : as `require`; `evaluate.supervised.systems` names what is no network of the registry.
    """
    networks = _networks(study)
    named = study.evaluate.systems
    chosen = require(named) if named else [each for each in _ALL if each.kind != "network" and not each.extra]
    if not named:
        chosen = [*(each for each in chosen if each.kind == "simple"), *networks, *_others(chosen)]
    volumes = study.datasets[dataset].door != "parcels"
    return [each for each in chosen if volumes or each.needs != "voxels"]


def _others(systems: Iterable[System]) -> list[System]:
    return [each for each in systems if each.kind != "simple"]


def _networks(study: Study) -> list[System]:
    where = "evaluate.supervised.systems"
    found = require(study.evaluate.supervised.systems, where)
    for system in found:
        if system.kind != "network":
            known = [each.name for each in _ALL if each.kind == "network"]
            raise InputError(where, f"'{system.name}'", "a network trained on labels", f"Known: {', '.join(known)}.")
    return found


def _known(name: str, where: str) -> System:
    if name not in SYSTEMS:
        raise InputError(where, f"'{name}'", "a system of the benchmark", nearest(name, SYSTEMS))
    return SYSTEMS[name]


def _usable(system: System, where: str) -> System:
    if system.extra and find_spec(system.extra) is None:
        hint = f"pip install 'fmri-blueprint[{system.extra}]', or leave it out: gradient_boosting needs nothing more."
        raise InputError(f"{where}: {system.name}", f"no package '{system.extra}'", "it installed", hint)
    return system
