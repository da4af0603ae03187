"""Our encoders as models of brainmarks 0.1.1: its samples to our clips, our features to its embeddings.

brainmarks gives a run as `bold` (T, V), each column at mean 0 and SD 1 over the run, with the `mean` and `std` that it
had, and `tr` in seconds; columns are the in-mask voxels of MNI152NLin6Asym at 2 mm, or parcels. It is not imported
here: what it asks of a model is the attribute `__space__` and three embeddings.

Legend: B run; K clip; T frames; V columns of brainmarks, v of ours; C channels; L tokens of all clips of a run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.bold.normalise import Gridding, zscore
from pipeline.bold.resample import resample_in_time
from pipeline.bold.template import Template, load_template
from pipeline.errors import InputError
from pipeline.models.parts.voxels import Raster
from pipeline.pretrain.engine.checkpoint import load_cell
from pipeline.pretrain.rasters import parcel_raster, voxel_raster

ENCODER, SPACE, MASK = "PIPELINE_BRAINMARKS_ENCODER", "PIPELINE_BRAINMARKS_SPACE", "PIPELINE_BRAINMARKS_MASK"
VOLUME, VOLUME_SPACE = "mni", "MNI152NLin6Asym"
MNI_SHAPE, MNI_VOXELS = (91, 109, 91), 228483
MNI_AFFINE = np.array([[2.0, 0, 0, -90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
PARCELS = {"schaefer400": 400, "schaefer400_tians3": 450, "schaefer400_tians3_buckner7": 457, "a424": 424}


class Embeddings(NamedTuple):
    """What brainmarks reads out; our encoders have neither class nor register tokens."""

    cls_embeds: Tensor | None
    reg_embeds: Tensor | None
    patch_embeds: Tensor  # (B, L, C)


class Wrapper(nn.Module):
    """An encoder that gives the tokens of all clips of a run, (B, L, C), clip after clip.

    Their mean is what `features.pool` takes for the run. Memory holds one clip of each run of the batch.
    """

    def __init__(self, encoder: nn.Module, raster: Raster, space: str) -> None:
        super().__init__()
        self.__space__ = space
        self.encoder, self.shape, self.channel = encoder, raster.shape, raster.channel
        self.register_buffer("index_V", raster.index_V, persistent=False)

    def forward(self, batch: Mapping[str, Tensor]) -> Embeddings:
        """`bold` is (B, K, T, V), as `Transform` makes it of each run."""
        clips_BKTV = batch["bold"]
        index_V: Any = self.index_V
        raster = Raster(self.shape, index_V, self.channel)
        tokens = [self.encoder(raster.lay(clips_BTV)).flatten(2) for clips_BTV in clips_BKTV.unbind(1)]
        return Embeddings(None, None, torch.cat(tokens, 2).transpose(1, 2))


@dataclass(frozen=True, eq=False)
class Transform:
    """A run of brainmarks as our clips: our voxels, our TR, z-scored over the run, cut without overlap.

    Attributes
    ----------
    context, tr_s : frames of a clip, and their distance in seconds.
    weights_vV : sparse; takes columns in the unit of the scan to ours. None: the columns are ours.
    clips : at most so many of a run, from its start; None: all. They are (K, T, v) float32 in memory.
    """

    context: int
    tr_s: float
    weights_vV: Any = None
    clips: int | None = None

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """The sample with `bold` (K, T, v) and our `tr`, without `mean` and `std`, which mean nothing any more.

        A rest of a run is dropped; one shorter than a clip is filled up with its mean, 0, as brainmarks' models do.
        """
        bold_TV = _array(sample["bold"])
        if self.weights_vV is not None:  # columns that are averaged must be in one unit; the mean would go anyway
            bold_TV = (self.weights_vV @ (bold_TV * _array(sample["std"])).T).T
        z_TV = zscore(resample_in_time(np.ascontiguousarray(bold_TV), float(sample["tr"]), self.tr_s))[0]
        if len(z_TV) < self.context:
            z_TV = np.pad(z_TV, ((0, self.context - len(z_TV)), (0, 0)))
        clips = min(len(z_TV) // self.context, self.clips or len(z_TV))
        clips_KTV = torch.from_numpy(z_TV[: clips * self.context]).view(clips, self.context, -1)
        kept = {name: value for name, value in sample.items() if name not in ("mean", "std")}
        return {**kept, "bold": clips_KTV, "tr": self.tr_s}


def _array(values: Any) -> np.ndarray:
    return np.asarray(values, dtype=np.float32)


def model_pair(
    ckpt_path: str | Path | None = None,
    space: str | None = None,
    mask: str | Path | None = None,
    clips: int | None = None,
) -> tuple[Transform, Wrapper]:
    """What brainmarks calls for the model `fmri_blueprint`, by `model_kwargs`; what is left out the environment says.

    Parameters
    ----------
    ckpt_path : folder with encoder.safetensors and, for encoders of voxels, template.npz: what `pipeline release`
        writes. Else $PIPELINE_BRAINMARKS_ENCODER.
    space : for encoders of parcels, the space of brainmarks whose parcels are the encoder's, in their order. Whoever
        gives it vouches for that (schaefer400 is in the order of the 17 networks). Else $PIPELINE_BRAINMARKS_SPACE.
    mask : brain mask of MNI152NLin6Asym at 2 mm. Else $PIPELINE_BRAINMARKS_MASK, else templateflow's.
    clips : see `Transform`.

    Raises
    ------
    InputError : no encoder, one whose inputs brainmarks does not have, or another mask.
    """
    named = ckpt_path or os.environ.get(ENCODER)
    if named is None:
        hint = f"Give ckpt_path in model_kwargs, or set {ENCODER}."
        raise InputError("fmri_blueprint", "no encoder", "the folder of one", hint)
    folder = Path(named)
    learner, metadata = load_cell(folder)
    contract, encoder = metadata["contract"], learner.encoder.requires_grad_(False).eval()
    if contract["kind"] == "parcels":
        found = _parcel_space(folder, metadata, space or os.environ.get(SPACE))
        raster, weights_vV = parcel_raster(metadata["spec"]["parcels"]), None
    elif contract["kind"] == "voxels":
        found, template = VOLUME, _template(folder, contract)
        raster, weights_vV = voxel_raster(template), columns_to_voxels(template, brain_mask(mask))
    else:
        hint = "Its flat maps are of another mesh."
        raise InputError(folder, f"an encoder of {contract['kind']}", "one of voxels or parcels", hint)
    return Transform(encoder.input_shape[-1], float(contract["tr_s"]), weights_vV, clips), Wrapper(
        encoder, raster, found
    )


def _parcel_space(folder: Path, metadata: Mapping[str, Any], space: str | None) -> str:
    parcels = metadata["spec"]["parcels"]
    if space is None or PARCELS.get(space) != parcels:
        fitting = [name for name, count in PARCELS.items() if count == parcels]
        found = f"{parcels} parcels of {metadata['contract']['atlas']}, and space {space}"
        hint = f"Give `space` in model_kwargs, or {SPACE}, if the parcels are the same and in the same order."
        expected = f"space {' or '.join(fitting)}" if fitting else f"one of {', '.join(PARCELS)}"
        raise InputError(folder, found, expected, hint)
    return space


def _template(folder: Path, contract: Mapping[str, Any]) -> Template:
    if contract["space"] != VOLUME_SPACE:
        hint = "Features of another space would mean something else."
        raise InputError(f"{folder}: contract.space", f"'{contract['space']}'", f"'{VOLUME_SPACE}'", hint)
    template = load_template(folder)
    if template.key != contract["template"]:
        hint = "Put the template.npz of the encoder's study there."
        raise InputError(folder / "template.npz", f"key {template.key}", contract["template"], hint)
    return template


def brain_mask(path: str | Path | None = None) -> np.ndarray:
    """(X, Y, Z) bool, RAS: the voxels that are brainmarks' columns.

    Raises
    ------
    InputError : it cannot be read, or is not that of MNI152NLin6Asym at 2 mm.
    """
    import nibabel as nib

    path = path or os.environ.get(MASK)
    if path is None:
        from templateflow import api

        path = api.get(VOLUME_SPACE, desc="brain", resolution=2, suffix="mask", extension="nii.gz")
    try:
        image = nib.as_closest_canonical(nib.load(Path(path)))
        mask_XYZ = np.asarray(image.dataobj) > 0
    except (OSError, EOFError, nib.filebasedimages.ImageFileError) as error:
        hint = f"Set {MASK} to a copy of it where templateflow has no network."
        raise InputError(path, f"{error}", f"the 2 mm brain mask of {VOLUME_SPACE}", hint) from error
    if mask_XYZ.shape != MNI_SHAPE or mask_XYZ.sum() != MNI_VOXELS or not np.allclose(image.affine, MNI_AFFINE):
        found = f"{int(mask_XYZ.sum())} voxels of a grid of {mask_XYZ.shape}"
        hint = f"Use tpl-{VOLUME_SPACE}_res-02_desc-brain_mask.nii.gz of templateflow."
        raise InputError(path, found, f"{MNI_VOXELS} of {MNI_SHAPE}, as brainmarks has", hint)
    return mask_XYZ


def columns_to_voxels(template: Template, mask_XYZ: np.ndarray) -> Any:
    """Sparse (v, V): brainmarks' columns, z slowest and x fastest, to the packed voxels of a template.

    As shards are made of volumes (`Gridding`): by copy where lattices agree, else by linear weights, several points a
    voxel. Outside brainmarks' mask nothing is known: a voxel takes the mean of what is inside, and is 0 where that is
    less than half of it.
    """
    from scipy import sparse

    column_V = np.flatnonzero(mask_XYZ.ravel(order="F"))
    gridding = Gridding.of(mask_XYZ.shape, MNI_AFFINE, template)
    if gridding.index_V is None:
        inside_vV = sparse.csc_array(gridding.weights_VN)[:, column_V]
    else:
        kept = np.isin(gridding.index_V, column_V)
        place = (np.flatnonzero(kept), np.searchsorted(column_V, gridding.index_V[kept]))
        size = (template.voxels, len(column_V))
        inside_vV = sparse.csr_array((np.ones(kept.sum(), np.float32), place), shape=size)
    total_v = inside_vV.sum(axis=1)
    scale_v = np.where(total_v >= 0.5, 1 / np.maximum(total_v, 0.5), 0).astype(np.float32)
    return (sparse.diags_array(scale_v) @ inside_vV).tocsr()
