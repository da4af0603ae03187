"""Imported encoders: hashes, what a file may hold, the command, and SwiFT's files to the letter."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import pickle
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import released_files as files
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.cli import main
from pipeline.errors import EXIT_BAD_INPUT, InputError
from pipeline.models import create
from pipeline.pretrain.released import SYSTEMS, import_checkpoint, load_released
from pipeline.pretrain.released.reading import read_checkpoint

FRAMES = 2  # of a clip of the full encoder: enough to tell weights apart, a second a forward pass


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def take_over(system: str, path: Path, output: Path) -> dict[str, Any]:
    return import_checkpoint(system, path, output, sha256(path))


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return files.random(files.swift())


@pytest.fixture(scope="module")
def checkpoint(weights, tmp_path_factory) -> Path:
    return files.swift_file(tmp_path_factory.mktemp("swift") / "contrastive_pretrained.ckpt", weights)


def test_the_list_that_the_files_are_made_from_is_the_published_one() -> None:
    shapes = files.swift()
    assert (len(shapes), sum(math.prod(shape) for shape in shapes.values())) == (165, 4_315_212)


def test_the_command_writes_an_encoder_that_computes_as_the_released_one(weights, checkpoint, tmp_path, capsys) -> None:
    output = tmp_path / "swift"
    arguments = ["--system", "swift-contrastive", "--input", str(checkpoint), "--output", str(output)]
    assert main(["import-checkpoint", *arguments, "--sha256", sha256(checkpoint)]) == 0
    assert "Licence of the weights: Apache-2.0" in capsys.readouterr().out
    assert sorted(path.name for path in output.iterdir()) == ["encoder.safetensors", "model_card.md"]
    encoder, record = load_released(output)
    direct = create("swift_v1", "paper")
    direct.load_state_dict(weights)
    clip = torch.randn(1, 1, 96, 96, 96, FRAMES, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found, expected = encoder(clip), direct.eval()(clip)
    assert found.shape == (1, 288, 2, 2, 2, FRAMES)
    assert torch.equal(found, expected)
    assert not encoder.training
    assert record["released"]["sha256"] == sha256(checkpoint)
    assert record["released"]["decoder"] is False
    card = (output / "model_card.md").read_text()
    for told in (sha256(checkpoint), "Apache-2.0", "LAS", "global-z", "no decoder", "[0.72, 0.8]", "75x93x81"):
        assert told in card


def test_a_file_of_the_encoder_alone_gives_the_same_tensors(weights, checkpoint, tmp_path) -> None:
    bare = tmp_path / "model.safetensors"
    save_file({**weights, "head.weight": torch.zeros(2, 288)}, bare)
    take_over("swift-hcp-sex", bare, tmp_path / "bare")
    take_over("swift-hcp-sex", checkpoint, tmp_path / "lightning")
    found, expected = (load_file(tmp_path / name / "encoder.safetensors") for name in ("bare", "lightning"))
    assert found.keys() == expected.keys() == weights.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_equal_files_give_equal_bytes(checkpoint, tmp_path) -> None:
    for name in ("one", "two"):
        take_over("swift-contrastive", checkpoint, tmp_path / name)
    assert sha256(tmp_path / "one" / "encoder.safetensors") == sha256(tmp_path / "two" / "encoder.safetensors")


def changed(checkpoint: Path, path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    content = torch.load(checkpoint, weights_only=False)  # our own file
    change(content)
    torch.save(content, path)
    return path


QKV = "model.layers.2.blocks.3.attn.qkv.weight"
FAULTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "missing": (lambda content: content["state_dict"].pop(QKV), r"no tensor 'layers\.2\.blocks\.3\.attn\.qkv\.weight'"),
    "extra": (
        lambda content: content["state_dict"].update({"model.layers.9.odd": torch.zeros(1)}),
        r"an unknown tensor 'layers\.9\.odd' \(1 such\)",
    ),
    "outside": (lambda content: content["state_dict"].update(teacher=torch.zeros(1)), "an unknown tensor 'teacher'"),
    "shape": (
        lambda content: content["state_dict"].update({QKV: torch.zeros(432, 140)}),
        r"found shape \(432, 140\); expected shape \(432, 144\)",
    ),
    "width": (
        lambda content: content["state_dict"].update({"model.patch_embed.fc.weight": torch.zeros(24, 216)}),
        r"patch_embed\.fc\.weight: found shape \(24, 216\); expected \(36, 216\)",
    ),
    "nan": (lambda content: content["state_dict"][QKV].fill_(math.nan), "values that are not finite"),
    "no tensor": (lambda content: content["state_dict"].update(note="hello"), "'note', which is no tensor"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_the_encoder_is_refused_and_nothing_is_written(checkpoint, tmp_path, fault) -> None:
    change, message = FAULTS[fault]
    path = changed(checkpoint, tmp_path / "bad.ckpt", change)
    with pytest.raises(InputError, match=message):
        take_over("swift-contrastive", path, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["bad.ckpt"]


@pytest.mark.parametrize(
    ("beside", "expected"),
    [
        ({"hyper_parameters": {"a": 1}}, {"a": 1}),
        ({"args": argparse.Namespace(a=1)}, {"a": 1}),
        ({"hyper_parameters": None}, {}),
        ({"hyper_parameters": None, "args": {"a": 1}}, {"a": 1}),
        ({"args": "--a 1"}, {}),
        ({"args": [1, 2]}, {}),
        ({"hyper_parameters": 3}, {}),
    ],
    ids=str,
)
def test_options_that_are_no_values_by_name_are_ignored(tmp_path, beside, expected) -> None:
    path = tmp_path / "file.ckpt"
    torch.save({"state_dict": {"a": torch.zeros(1)}, **beside}, path)
    assert read_checkpoint(path, "").options == expected


class Payload:
    """A pickle that would create a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_with_code_in_it_is_refused_and_never_run(checkpoint, tmp_path, capsys) -> None:
    trap = tmp_path / "the payload ran"
    path = changed(
        checkpoint, tmp_path / "evil.ckpt", lambda content: content.update(hyper_parameters={"x": Payload(trap)})
    )
    arguments = ["--system", "swift-contrastive", "--input", str(path), "--output", str(tmp_path / "out")]
    assert main(["import-checkpoint", *arguments, "--sha256", sha256(path)]) == EXIT_BAD_INPUT
    told = capsys.readouterr().err
    assert "asks for more than tensors" in told
    assert "It was not run" in told
    assert "will likely succeed" not in told, "torch's advice is to run it"
    assert not trap.exists()
    torch.load(path, weights_only=False)
    assert trap.exists(), "the payload works, so its absence above was the reader's doing"


class System:
    """Asks for a function of a module that torch blocks by name."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


def test_a_blocked_module_is_named_too(checkpoint, tmp_path, capsys) -> None:
    path = changed(checkpoint, tmp_path / "evil.ckpt", lambda content: content.update(callbacks={"x": System()}))
    arguments = ["--system", "swift-contrastive", "--input", str(path), "--output", str(tmp_path / "out")]
    assert main(["import-checkpoint", *arguments, "--sha256", sha256(path)]) == EXIT_BAD_INPUT
    told = capsys.readouterr().err
    assert "posix.system" in told
    assert "will likely succeed" not in told


def test_a_class_beside_the_allowed_one_is_named(checkpoint, tmp_path) -> None:
    path = changed(checkpoint, tmp_path / "odd.ckpt", lambda content: content.update(share=Fraction(1, 2)))
    with pytest.raises(InputError, match=r"fractions\.Fraction"):
        take_over("swift-contrastive", path, tmp_path / "out")


def _truncated(checkpoint: Path, path: Path) -> None:
    path.write_bytes(checkpoint.read_bytes()[:-5000])


def _half_safetensors(_: Path, path: Path) -> None:
    save_file({"patch_embed.fc.weight": torch.zeros(36, 216)}, path)
    path.write_bytes(path.read_bytes()[:-100])


BROKEN: dict[str, Callable[[Path, Path], Any]] = {
    "truncated": _truncated,
    "truncated safetensors": _half_safetensors,
    "empty": lambda _, path: path.write_bytes(b""),
    "text": lambda _, path: path.write_text("<html>404: not found</html>"),
    "a pickled list": lambda _, path: torch.save([torch.zeros(2)], path),
    "a plain pickle": lambda _, path: path.write_bytes(pickle.dumps({"a": 1}, protocol=2)),
    "no weights": lambda _, path: torch.save({"epoch": 3}, path),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_damaged_file_or_no_checkpoint_is_told_so(checkpoint, tmp_path, broken) -> None:
    path = tmp_path / "file.ckpt"
    BROKEN[broken](checkpoint, path)
    with pytest.raises(InputError, match=r"file\.ckpt"):
        take_over("swift-contrastive", path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_hashes(checkpoint, tmp_path, monkeypatch) -> None:
    with pytest.raises(InputError, match="5922c84b31b4e59de1c26ed4839689234ce401216f5a2a4fbbf6a4d5940cce3e"):
        import_checkpoint("swift-contrastive", checkpoint, tmp_path / "out")
    with pytest.raises(InputError, match=f"found SHA-256 {sha256(checkpoint)}; expected {'0' * 64}"):
        import_checkpoint("swift-contrastive", checkpoint, tmp_path / "out", "0" * 64)
    with pytest.raises(InputError, match=r"none is pinned for this system.*--sha256"):
        import_checkpoint("swift-hcp-sex", checkpoint, tmp_path / "out")
    with pytest.raises(InputError, match="64 hexadecimal digits"):
        import_checkpoint("swift-hcp-sex", checkpoint, tmp_path / "out", "abc")
    with pytest.raises(InputError, match=r"no such file.*pretrained_models"):
        import_checkpoint("swift-contrastive", tmp_path / "nothing.ckpt", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setitem(SYSTEMS["swift-contrastive"].sha256, sha256(checkpoint), "this test")
    assert import_checkpoint("swift-contrastive", checkpoint, tmp_path / "out")["released"]["vouched_by"] == "this test"


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_release_says_whose_it_is_and_pins_whole_hashes(system, capsys) -> None:
    release = SYSTEMS[system]
    assert all((release.about, release.source, release.licence, release.citation))
    assert all(len(pinned) == 64 and int(pinned, 16) >= 0 for pinned in release.sha256)
    assert json.loads(json.dumps(release.contract)) == release.contract
    with pytest.raises(SystemExit):
        main(["import-checkpoint", "--help"])
    assert system in " ".join(capsys.readouterr().out.split())


def test_other_files_are_never_replaced(checkpoint, tmp_path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"thesis\.txt"):
        take_over("swift-contrastive", checkpoint, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    take_over("swift-contrastive", checkpoint, tmp_path / "again")
    take_over("swift-contrastive", checkpoint, tmp_path / "again")


def test_an_unknown_system_is_told_the_nearest(checkpoint, tmp_path, capsys) -> None:
    arguments = ["--system", "swift-contrastiv", "--input", str(checkpoint), "--output", str(tmp_path / "out")]
    assert main(["import-checkpoint", *arguments]) == EXIT_BAD_INPUT
    assert "Did you mean 'swift-contrastive'?" in capsys.readouterr().err


def test_a_damaged_import_is_not_loaded(checkpoint, tmp_path) -> None:
    take_over("swift-contrastive", checkpoint, tmp_path / "out")
    path = tmp_path / "out" / "encoder.safetensors"
    content = bytearray(path.read_bytes())
    content[-7] ^= 64
    path.write_bytes(content)
    with pytest.raises(InputError, match="other bytes than were written"):
        load_released(tmp_path / "out")
    with pytest.raises(InputError, match="no such file"):
        load_released(tmp_path / "nowhere")
