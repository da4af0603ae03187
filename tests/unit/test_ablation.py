"""Parts taken out of encoders do what they say, and memory is linear in frames."""

from __future__ import annotations

import pytest
import torch
from tiny_models import TINY, clips, tiny

from pipeline.evaluate.supplement.ablation import MEANING, parts, voxel_models, without

WINDOWED = ("swift_v1", "swift_4d", "swift_v2", "neurostorm")
ENCODERS = [name for name in TINY if name not in ("brainnetcnn", "braingnn", "brainnettf")]


@pytest.mark.parametrize("name", WINDOWED)
def test_without_time_a_token_depends_on_its_own_frame_alone(name: str) -> None:
    encoder = tiny(name).eval()
    clip = clips(encoder, 1)
    other = clip.clone()
    other[..., 3] = torch.randn(clip.shape[:-1], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole, changed = encoder(clip), encoder(other)
        cut, still = (without(encoder, "time").eval()(each) for each in (clip, other))
    rest = [time for time in range(clip.shape[-1]) if time != 3]
    assert not torch.allclose(whole[..., rest], changed[..., rest], atol=1e-6)
    assert torch.allclose(cut[..., rest], still[..., rest], atol=1e-6)
    assert not torch.allclose(cut[..., 3], still[..., 3], atol=1e-4)


@pytest.mark.parametrize("name", WINDOWED)
def test_without_space_a_token_of_one_stage_depends_on_its_own_place_alone(name: str) -> None:
    heads = {} if name == "neurostorm" else {"heads": (2,)}
    encoder = tiny(name, depths=(2,), **heads).eval()
    clip = clips(encoder, 1)
    other = clip.clone()
    other[:, :, :3, :3, :3] += 1.5  # the patch at place 0, 0, 0
    cut = without(encoder, "space").eval()
    with torch.no_grad():
        moved = (cut(clip) - cut(other)).abs().amax(dim=(0, 1, 5))
        moved_whole = (encoder(clip) - encoder(other)).abs().amax(dim=(0, 1, 5))
    elsewhere = torch.ones(2, 2, 2, dtype=torch.bool)
    elsewhere[0, 0, 0] = False
    assert moved[elsewhere].max() < 1e-6
    assert moved[0, 0, 0] > 1e-4
    assert moved_whole[elsewhere].max() > 1e-5


def test_without_position_parcels_in_another_order_give_the_same_features() -> None:
    encoder = tiny("brainlm").eval()
    clip, order = clips(encoder, 1), torch.randperm(12, generator=torch.Generator().manual_seed(0))
    cut = without(encoder, "position").eval()
    with torch.no_grad():
        assert torch.allclose(cut(clip).flatten(2).mean(-1), cut(clip[:, order]).flatten(2).mean(-1), atol=1e-5)
        assert not torch.allclose(
            encoder(clip).flatten(2).mean(-1), encoder(clip[:, order]).flatten(2).mean(-1), atol=1e-4
        )


def test_without_position_swift_v1_is_blind_to_the_order_of_frames_in_a_window() -> None:
    encoder = tiny("swift_v1", window=(2, 2, 2, 8), depths=(1,), heads=(2,)).eval()
    clip, order = clips(encoder, 1), torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    with torch.no_grad():
        for network, blind in ((without(encoder, "position").eval(), True), (encoder, False)):
            assert torch.allclose(network(clip)[..., order], network(clip[..., order]), atol=1e-5) == blind


@pytest.mark.parametrize("name", ENCODERS)
def test_every_part_changes_a_copy_and_leaves_the_encoder_as_it_was(name: str) -> None:
    encoder = tiny(name).eval()
    clip = clips(encoder, 1)
    with torch.no_grad():
        before = encoder(clip)
        for part in parts(encoder):
            changed = without(encoder, part).eval()(clip)
            assert changed.shape == before.shape
            assert not torch.allclose(changed, before, atol=1e-5), part
        assert torch.equal(encoder(clip), before)
    with pytest.raises(ValueError, match="it has"):
        without(encoder, next(part for part in MEANING if part not in parts(encoder)))


def test_memory_is_counted_for_every_architecture_that_sees_voxels() -> None:
    assert voxel_models() == ["swift_v1", "swift_4d", "swift_v2", "neurostorm", "brainmt", "tff"]
