"""Packed voxels to volumes and patches: equal to laying them out and cutting them up, and differentiable."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.bold.template import Template
from pipeline.models.parts.layers import patchify
from pipeline.models.parts.voxels import gather_voxels, patch_index, scatter_patches, scatter_voxels

PATCHES = st.tuples(*[st.tuples(st.integers(1, 3), st.integers(1, 3)) for _ in range(3)])


def cut(bold_BTV: torch.Tensor, index_V: torch.Tensor, shape: tuple[int, ...], patch: tuple[int, ...]) -> torch.Tensor:
    """Patches (B, S, T, P) by way of the volume."""
    return patchify(scatter_voxels(bold_BTV, index_V, shape), (*patch, 1)).flatten(1, 3)


@given(PATCHES, st.integers(1, 2), st.integers(1, 4), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_patches_are_those_of_the_volume(axes, clips, frames, seed):
    generator = torch.Generator().manual_seed(seed)
    patch, shape = tuple(size for size, _ in axes), tuple(size * places for size, places in axes)
    box = shape[0] * shape[1] * shape[2]
    index_V = torch.randperm(box, generator=generator)[: max(1, box // 2)]
    bold_BTV = torch.randn(clips, frames, len(index_V), generator=generator)
    places, voxels = box // (patch[0] * patch[1] * patch[2]), patch[0] * patch[1] * patch[2]
    patches_BSTP = scatter_patches(bold_BTV, patch_index(index_V, shape, patch), places, voxels)
    assert torch.equal(patches_BSTP, cut(bold_BTV, index_V, shape, patch))


def test_a_template_packs_patch_after_patch(template: Template) -> None:
    index_V = patch_index(torch.from_numpy(template.voxel_index_V), template.shape, template.patch)
    assert (index_V.diff() > 0).all(), "so a patch is one block of columns, and the scatter walks through memory"


def test_the_gradient_flows_back_to_the_packed_voxels() -> None:
    index_V = torch.tensor([0, 5, 30, 63])
    bold_BTV = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    places_V = patch_index(index_V, (4, 4, 4), (2, 2, 2))
    assert torch.autograd.gradcheck(lambda bold: scatter_patches(bold, places_V, 8, 8), bold_BTV)


def test_half_precision_stays_half() -> None:
    index_V = patch_index(torch.arange(8), (2, 2, 2), (2, 2, 2))
    patches_BSTP = scatter_patches(torch.ones(1, 2, 8, dtype=torch.float16), index_V, 1, 8)
    assert (patches_BSTP.dtype, patches_BSTP.shape) == (torch.float16, (1, 1, 2, 8))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_lays_voxels_out_as_the_cpu_does() -> None:
    index_V, bold_BTV = torch.randperm(216)[:100], torch.randn(2, 3, 100)
    places_V = patch_index(index_V, (6, 6, 6), (3, 3, 3))
    on_gpu = scatter_patches(bold_BTV.cuda(), patch_index(index_V.cuda(), (6, 6, 6), (3, 3, 3)), 8, 27)
    assert on_gpu.is_cuda
    assert torch.equal(on_gpu.cpu(), scatter_patches(bold_BTV, places_V, 8, 27))


def test_patches_that_do_not_tile_are_refused() -> None:
    with pytest.raises(ValueError, match="do not tile"):
        patch_index(torch.arange(3), (4, 4, 4), (3, 2, 2))


def test_gather_is_the_inverse_of_scatter() -> None:
    index_V = torch.tensor([1, 5, 11, 20])
    bold_BTV = torch.randn(2, 3, 4)
    assert torch.equal(gather_voxels(scatter_voxels(bold_BTV, index_V, (2, 3, 4)), index_V), bold_BTV)
