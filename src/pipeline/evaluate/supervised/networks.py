"""Networks that are trained on labels alone, from fresh weights: on connectomes, or on clips of scans.

Legend: M people; R parcels; E edges, the upper triangle row by row; K scans of a person.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import numpy as np
import torch

from pipeline import models
from pipeline.config import Supervised as Settings
from pipeline.errors import InputError
from pipeline.evaluate.reading import Reader
from pipeline.evaluate.supervised.fit import CPU, Build, Kind, network_reader, own_randomness
from pipeline.evaluate.supervised.inputs import Arrays, Scan, Scans
from pipeline.models.learners.supervised import Supervised
from pipeline.models.parts.voxels import Raster

MIXUP = {"brainnettf": 1.0}  # as its authors train it
MOST_HEADS, MOST_CLUSTERS = 4, 100  # of BrainNetTF as published


def connectome_reader(
    name: str,
    arguments: Mapping[str, Any],
    connectome_MRR: np.ndarray,
    settings: Settings,
    kind: Kind,
    key: str,
    device: torch.device = CPU,
) -> Reader:
    """A network on connectomes, with the losses of its own.

    Parameters
    ----------
    name : of the registry, with connectomes as its input.
    arguments : of its class, over those of its `size` (default: as published), and `mixup`; parcels come from the data.
    connectome_MRR : Pearson correlations, 1 on the diagonal (`square` makes them of edges); M R^2 numbers of memory.

    Raises
    ------
    InputError : another kind of network, arguments it does not take, or connectomes that are not finite squares.
    """
    spec = connectome_arguments(name, arguments, require_squares(name, connectome_MRR))
    mixup = float(spec.pop("mixup"))
    build = builder(name, spec)
    return network_reader(build, Arrays(connectome_MRR, device), settings, kind, key, device, mixup)


def clip_reader(
    name: str,
    arguments: Mapping[str, Any],
    scans_MK: Sequence[Sequence[Scan]],
    raster: Raster,
    context: int,
    settings: Settings,
    kind: Kind,
    key: str,
    frames: int | None = None,
    clips_at_once: int | None = 8,
) -> Reader:
    """A network on clips of voxels, parcels or pixels.

    Trained on one random clip of each person a pass; a person's score is the mean over all clips of their scans.

    Parameters
    ----------
    arguments : of its class, over those of its `size`; the shape of what it sees comes from the raster.
    scans_MK : scans of each person.
    raster : where their columns lie in what the network sees; it decides the device.
    context : frames a clip.
    frames : scans end after so many; None: whole runs.
    clips_at_once : bounds the memory, together with one scan: so many clips have activations at one time.

    Raises
    ------
    InputError : a network on connectomes, arguments it does not take, or a person without a scan of one clip.
    """
    spec = clip_arguments(name, arguments, raster, context)
    inputs = Scans(scans_MK, raster, context, frames, clips_at_once)
    return network_reader(builder(name, spec), inputs, settings, kind, key, raster.index_V.device)


def builder(name: str, spec: Mapping[str, Any]) -> Build:
    """What makes a learner with fresh weights and one output; it is tried once, so that wrong arguments show now.

    Raises
    ------
    InputError : arguments that do not fit.
    """

    def build(_train_M: np.ndarray) -> Supervised:
        encoder, description = models.build(name, dict(spec)), models.describe(name)
        made = description.learner(encoder) if description.objective == "supervised" else Supervised(encoder)
        assert isinstance(made, Supervised)
        return made

    with own_randomness(0, CPU):
        build(np.zeros(0, dtype=bool))
    return build


def connectome_arguments(name: str, given: Mapping[str, Any], parcels: int) -> dict[str, Any]:
    """All arguments of a network on so many parcels, and `mixup`.

    Of BrainNetTF, heads divide the parcels and clusters are no more than them: the most up to the published numbers.

    Raises
    ------
    InputError : it does not take connectomes, or was asked for another number of parcels.
    """
    described = models.describe(name)
    if described.input != "connectome":
        raise InputError(f"model '{name}'", f"input {described.input}", "connectome", "Give it clips of scans.")
    asked = dict(given)
    if (named := asked.pop("parcels", parcels)) != parcels:
        raise InputError(f"model '{name}': parcels", f"{named}", f"{parcels}, as the data have", "Leave it out.")
    mixup = asked.pop("mixup", MIXUP.get(name, 0.0))
    spec = models.arguments(name, asked.pop("size", None), **{**asked, "parcels": parcels})
    if name == "brainnettf":
        spec.setdefault("heads", max(heads for heads in range(1, MOST_HEADS + 1) if parcels % heads == 0))
        spec.setdefault("clusters", min(MOST_CLUSTERS, parcels))
    return {**spec, "mixup": mixup}


def clip_arguments(name: str, given: Mapping[str, Any], raster: Raster, context: int) -> dict[str, Any]:
    """All arguments of a network on clips of this shape and length.

    Raises
    ------
    InputError : it takes connectomes.
    """
    described, known, asked = models.describe(name), models.takes(name), dict(given)
    if described.input == "connectome":
        raise InputError(f"model '{name}'", "input connectome", "clips of scans", "Give it connectomes.")
    spec = models.arguments(name, asked.pop("size", None), **asked)
    shape = {"volume": raster.shape, "raster": raster.shape, "parcels": raster.shape[0]}
    shape |= {"context_frames": context, "frames": context}
    if "grid" in known:
        patch = spec["patch"] if "patch" in spec else default_patch(name, spec)
        shape["grid"] = [ceil(length / edge) for length, edge in zip(raster.shape, patch, strict=False)]
    return {**spec, **{argument: value for argument, value in shape.items() if argument in known}}


def default_patch(name: str, spec: Mapping[str, Any]) -> Sequence[int]:
    """Voxels of a patch where nobody says so, of a network that is shaped but not filled."""
    with own_randomness(0, CPU), torch.device("meta"):
        encoder: Any = models.build(name, dict(spec))
    return tuple(encoder.patch)


def require_squares(name: str, connectome_MRR: np.ndarray) -> int:
    """R of finite square matrices.

    Raises
    ------
    InputError : they are none.
    """
    shape = connectome_MRR.shape
    if len(shape) != 3 or shape[1] != shape[2]:
        raise InputError(f"connectomes of '{name}'", f"shape {shape}", "(people, parcels, parcels)", "Use `square`.")
    broken = [row for row, matrix in enumerate(connectome_MRR) if not np.isfinite(matrix).all()]
    if broken:
        found = f"{len(broken)} people with edges that are not finite, first row {broken[0]}"
        hint = "A parcel without variance has correlations of 0; leave out people whose series are NaN."
        raise InputError(f"connectomes of '{name}'", found, "finite edges", hint)
    return int(shape[1])


def square(edges_ME: np.ndarray, fisher: bool = True) -> np.ndarray:
    """(M, R, R) float32 correlations with 1 on the diagonal, from their upper triangles; `fisher`: of z = atanh r.

    Raises
    ------
    ValueError : a number of edges that no number of parcels has.
    """
    people, edges = edges_ME.shape
    parcels = round((1 + (1 + 8 * edges) ** 0.5) / 2)
    if parcels * (parcels - 1) // 2 != edges:
        raise ValueError(f"{edges} edges, where R (R - 1) / 2 of some R parcels were expected")
    i, j = np.triu_indices(parcels, k=1)
    matrix_MRR = np.zeros((people, parcels, parcels), dtype=np.float32)
    matrix_MRR[:, i, j] = np.tanh(edges_ME) if fisher else edges_ME
    matrix_MRR += matrix_MRR.transpose(0, 2, 1)
    matrix_MRR[:, np.arange(parcels), np.arange(parcels)] = 1
    return matrix_MRR
