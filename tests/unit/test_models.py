"""What every encoder of the registry owes to those who use it, and masked reconstruction around the voxel ones."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny_models import CONNECTOMES, TINY, clips, own_objective, tiny

from pipeline.cli import main
from pipeline.config import Architecture
from pipeline.errors import InputError
from pipeline.models import create, describe, names, takes
from pipeline.models.encoder import VoxelEncoder
from pipeline.models.learners.reconstruction import MaskedReconstruction
from pipeline.models.listing import count
from pipeline.models.parts.layers import patchify, unpatchify
from pipeline.models.parts.voxels import gather_voxels, scatter_voxels
from pipeline.models.parts.windows import join, partition

PAGE = (Path(__file__).resolve().parents[2] / "docs/models.md").read_text()
DOCUMENTED = [line.split("  #")[0] for line in PAGE.split("```")[1].strip().splitlines()][
    1:
]  # the first, all, is below
SMALL = {"width": 12, "depths": (2, 2), "heads": (2, 4), "grid": (4, 4, 4), "patch": (2, 2, 2, 1), "context_frames": 10}
OPTIONS = {"swift_v1": {"window": (2, 2, 2, 4)}, "swift_v2": {"window": (2, 2, 2), "temporal_window": 4}}


def small(name: str, **over: object) -> MaskedReconstruction:
    torch.manual_seed(0)
    return MaskedReconstruction(create(name, **{**SMALL, **OPTIONS[name], **over}))


# --- the registry --------------------------------------------------------------------------------------------------


def test_registry_names_what_it_builds():
    assert names() == list(TINY)
    assert describe("swift_v2").input == "voxels"
    with pytest.raises(InputError, match="Did you mean 'swift_v2'"):
        create("swift_v22")
    with pytest.raises(InputError, match="Did you mean 'paper'"):
        create("swift_v1", "papers")
    with pytest.raises(InputError, match="windw"):
        create("swift_v1", **SMALL, windw=3)
    with pytest.raises(InputError, match="patches of 3 do not tile"):
        create("swift_v2", **{**SMALL, "patch": (2, 2, 2, 3)})


def test_the_table_lists_every_architecture_at_every_size(capsys):
    assert main(["models", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {(row["name"], row["size"]) for row in rows} == {
        (name, size) for name in names() for size in describe(name).sizes
    }
    assert all(row["parameters"] > 0 and row["gflops"] > 0 and row["activations_mb"] > 0 for row in rows)
    paper = next(row for row in rows if (row["name"], row["size"]) == ("swift_v1", "paper"))
    assert (paper["parameters"], paper["clip"]) == (4_315_212, [1, 96, 96, 96, 20])
    assert main(["models", "brainnetcnn"]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[0].split()[:3] == ["name", "size", "input"]
    assert describe("brainnetcnn").source in text
    assert all(note in text for note in describe("brainnetcnn").defects)
    assert main(["models", "brainnet"]) == 2
    assert "Did you mean" in capsys.readouterr().err


@pytest.mark.parametrize("line", DOCUMENTED)
def test_every_command_of_the_page_runs(line, capsys):
    assert main(shlex.split(line)[1:]) == 0
    assert capsys.readouterr().out


def test_the_snippet_and_the_example_of_the_page_hold():
    (snippet,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    with torch.device("meta"):
        exec(snippet, {})
    (example,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    rows = yaml.safe_load(example)["architectures"]
    assert {name: Architecture(**row).store for name, row in rows.items()} == {
        "swift_v2": "shards",
        "brainlm": "parcels/a424",
    }


def test_arguments_are_known_by_name_and_no_catch_all_is_among_them():
    own = {"width", "heads", "base_width", "base_heads"}
    assert own | {"grid", "window", "attention_scale"} <= takes("swift_4d"), "those of SwiFT v1 too"
    for name in names():
        assert not takes(name) & {"self", "others", "args", "kwargs"}
        assert {argument for size in describe(name).sizes.values() for argument in size} <= takes(name)


@pytest.mark.parametrize("name", names())
def test_default_is_a_size_and_both_variants_build(name):
    description = describe(name)
    assert description.default in description.sizes
    assert set(description.published) <= set(description.sizes)
    if description.defects:
        with torch.device("meta"):
            upstream = create(name, variant="upstream")
        assert sum(value.numel() for value in upstream.parameters()) > 0


# --- every encoder -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", names())
def test_features_have_the_promised_shape_whatever_is_in_the_batch(name):
    encoder = tiny(name).eval()
    clip = clips(encoder, 3)
    with torch.no_grad():
        features, alone = encoder(clip), encoder(clip[1:2])
    assert features.shape[:2] == (3, encoder.channels)
    if name not in CONNECTOMES:
        times = encoder.input_shape[-1] // encoder.frames_per_token
        assert features.shape[-1] == times
    assert torch.allclose(features[1:2], alone, atol=1e-5), "who else is in a batch must not matter"
    assert torch.equal(encoder(clip), features), "nothing is random outside of training"


@pytest.mark.parametrize("name", [name for name in names() if name not in CONNECTOMES])
def test_the_last_axis_is_time(name):
    """The features of a clip whose last half is repeated from its first: only there do they come near themselves."""
    encoder = tiny(name).eval()
    clip = clips(encoder, 1)
    other = clip.clone()
    half = clip.shape[-1] // 2
    other[..., half:] = clips(encoder, 1, seed=1)[..., half:]
    with torch.no_grad():
        change_t = (encoder(other) - encoder(clip)).square().flatten(0, -2).mean(0)
    times = len(change_t) // 2
    assert change_t[times:].mean() > 1.5 * change_t[:times].mean()


@pytest.mark.parametrize("name", names())
def test_a_gradient_reaches_every_parameter_that_is_not_excused(name):
    learner = describe(name).learner(tiny(name))
    clip = clips(learner.encoder, 4)
    parameters = dict(learner.named_parameters())
    reached: set[str] = set()
    for seed in range(3):  # a pooled graph, a token that no clip of a batch has, a map that starts at 0
        torch.manual_seed(seed)
        objective, batch = own_objective(name, learner, clip)
        learner.zero_grad()
        objective.loss(batch).backward()
        reached |= {key for key, value in parameters.items() if value.grad is not None and value.grad.abs().sum() > 0}
        with torch.no_grad():
            for key in reached:
                if parameters[key].grad is not None:
                    parameters[key] -= 0.01 * parameters[key].grad
    without = {key for key, value in parameters.items() if value.requires_grad} - reached
    excused = tuple(describe(name).without_gradient)
    assert {key for key in without if not key.removeprefix("encoder.").startswith(excused or ("-",))} == set()


@pytest.mark.parametrize("name", names())
def test_weights_survive_a_file(name, tmp_path):
    learner = describe(name).learner(tiny(name)).eval()
    save_file(
        {key: value.contiguous() for key, value in learner.state_dict().items()}, tmp_path / "weights.safetensors"
    )
    other = describe(name).learner(tiny(name)).eval()
    with torch.no_grad():
        for value in other.parameters():
            value.add_(1.0)
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    clip = clips(learner.encoder)
    with torch.no_grad():
        assert torch.equal(other.encoder(clip), learner.encoder(clip))


@pytest.mark.parametrize("name", names())
def test_every_encoder_in_bf16_is_close_to_fp32(name):
    encoder = tiny(name).eval()
    clip = clips(encoder)
    with torch.no_grad():
        exact = encoder(clip)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = encoder(clip)
    assert (rough.float() - exact).norm() < 0.06 * exact.norm()


def test_counts_are_those_of_the_built_model():
    row = count("signal_vit", "0.1m")
    assert row.parameters == sum(value.numel() for value in create("signal_vit", "0.1m").parameters())


# --- voxel encoders and masked reconstruction ----------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIONS)
def test_features_have_time_last_and_the_promised_channels(name):
    encoder = small(name).encoder
    features = encoder(torch.randn(2, 1, 8, 8, 8, 10))
    assert features.shape == (2, encoder.channels, 2, 2, 2, 10)


@pytest.mark.parametrize("name", OPTIONS)
def test_odd_grids_are_merged_and_split_again(name):
    model = small(name, grid=(5, 4, 3), depths=(1, 1))
    clip = torch.randn(1, 1, 10, 8, 6, 10)
    hidden = torch.rand(1, 5, 4, 3, 10) < 0.5
    assert model.features(clip, hidden).shape == (1, 24, 3, 2, 2, 10)
    assert model(clip, hidden).shape == clip.shape


@pytest.mark.parametrize("name", OPTIONS)
def test_temporal_patches_shorten_the_token_axis_alone(name):
    model = small(name, patch=(2, 2, 2, 2))
    clip = torch.randn(1, 1, 8, 8, 8, 10)
    hidden = torch.zeros(1, 4, 4, 4, 5, dtype=torch.bool)
    assert model.features(clip, hidden).shape[-1] == 5
    assert model(clip, hidden).shape == clip.shape


@pytest.mark.parametrize("name", OPTIONS)
def test_one_frame_moves_only_its_temporal_receptive_field(name):
    """Windows of four: block 0 joins 4-7 and 8-9, the shifted block 1 joins 2-5 and 6-9; the last stage likewise."""
    over = {"swift_v1": {"depths": (2, 1), "full_last_stage": True}, "swift_v2": {"depths": (2, 1)}}[name]
    encoder = small(name, **over).encoder
    clip = torch.randn(1, 1, 8, 8, 8, 10)
    other = clip.clone()
    other[..., 9] += torch.randn(8, 8, 8)
    with torch.no_grad():
        changed = (encoder(other) - encoder(clip)).abs().amax(dim=(0, 1, 2, 3, 4))
    # frame 9 -> {8, 9} -> (windows 0-1, 2-5, 6-9) {6..9} -> (windows 0-3, 4-7, 8-9) {4..9}
    assert changed[:4].max() < 1e-6
    assert changed[4:].min() > 1e-5


@pytest.mark.parametrize("name", OPTIONS)
def test_training_may_follow_inference_in_one_process(name):
    model = small(name, grid=(4, 4, 2))
    clip, hidden = torch.randn(1, 1, 8, 8, 4, 9), torch.rand(1, 4, 4, 2, 9) < 0.5
    with torch.inference_mode():
        before = model(clip, hidden)
    after = model(clip, hidden)
    after.square().mean().backward()
    assert torch.equal(before, after.detach()), "what inference caches must not change the result"
    moved = [parameter.grad is not None and bool(parameter.grad.any()) for parameter in model.decoder.parameters()]
    assert moved
    assert all(moved), "what inference caches must not cut the gradient"


def test_an_architecture_without_encode_cannot_be_made():
    class Unfinished(VoxelEncoder):
        pass

    with pytest.raises(TypeError, match=r"abstract method '?encode"):
        Unfinished(6, (1,), (1,), (2, 2, 2), (2, 2, 2), 4, embedding_norm=False)


@pytest.mark.parametrize("name", OPTIONS)
def test_hidden_tokens_cannot_be_seen(name):
    model = small(name)
    clip = torch.randn(1, 1, 8, 8, 8, 10)
    hidden = torch.rand(1, 4, 4, 4, 10) < 0.5
    voxels = hidden.repeat_interleave(2, 1).repeat_interleave(2, 2).repeat_interleave(2, 3)[:, None]
    with torch.no_grad():
        first, second = model(clip, hidden), model(torch.where(voxels, torch.randn_like(clip), clip), hidden)
        third = model(torch.where(voxels, clip, torch.randn_like(clip)), hidden)
    assert torch.equal(first, second)
    assert not torch.allclose(first, third, atol=1e-4)


@pytest.mark.parametrize("name", OPTIONS)
def test_training_decodes_the_same_voxels_as_the_whole_clip(name):
    model = small(name)
    clip = torch.randn(2, 1, 8, 8, 8, 10)
    hidden = torch.rand(2, 4, 4, 4, 10) < 0.5
    token_M = hidden.flatten().nonzero()[:, 0]
    with torch.no_grad():
        whole = patchify(model(clip, hidden), model.encoder.patch).flatten(0, 4)
        assert torch.allclose(model.patches(model.features(clip, hidden), token_M), whole[token_M], atol=1e-6)


@pytest.mark.parametrize("name", OPTIONS)
def test_bf16_is_close_to_fp32(name):
    model = small(name)
    clip, hidden = torch.randn(1, 1, 8, 8, 8, 10), torch.rand(1, 4, 4, 4, 10) < 0.5
    with torch.no_grad():
        exact = model.features(clip, hidden)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = model.features(clip, hidden)
    assert (rough - exact).norm() < 0.05 * exact.norm()


def test_a_clip_of_two_channels_is_refused():
    with pytest.raises(ValueError, match="2 channels"):
        tiny("swift_v1")(torch.randn(1, 2, 6, 6, 6, 8))


def test_patches_put_x_slowest_and_come_back():
    clip = torch.arange(4 * 6 * 8 * 3.0).view(1, 1, 4, 6, 8, 3)
    patches = patchify(clip, (2, 3, 4, 1))
    assert patches.shape == (1, 2, 2, 2, 3, 24)
    assert torch.equal(patches[0, 1, 0, 1, 2], clip[0, 0, 2:4, 0:3, 4:8, 2].flatten())
    assert torch.equal(unpatchify(patches, (2, 3, 4, 1)), clip)


def test_windows_come_back():
    tokens = torch.randn(2, 4, 6, 2, 9, 5)
    windows = partition(tokens, (2, 3, 2, 3))
    assert torch.equal(windows[1, 4, 7], tokens[1, 0, 4, 0, 4])  # window (0, 1, 0, 1), and the same token inside it
    assert torch.equal(join(windows, (4, 6, 2, 9), (2, 3, 2, 3)), tokens)


def test_voxels_land_where_the_index_says_and_come_back():
    index = torch.tensor([7, 0, 22])
    bold = torch.randn(2, 5, 3)
    clip = scatter_voxels(bold, index, (2, 3, 4))
    assert torch.equal(clip[1, 0, 0, 1, 3], bold[1, :, 0])  # 7 = (0 * 3 + 1) * 4 + 3
    assert clip.abs().sum() == pytest.approx(bold.abs().sum().item(), rel=1e-5)
    assert torch.equal(gather_voxels(clip, index), bold)
