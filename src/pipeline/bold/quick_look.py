"""What a shard holds, from the shard alone: its contract as text, and a picture.

Axes: T frames, t frames of a block, V columns, X, Y, Z of the template's grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artefact import read_json
from pipeline.bold.quality import Measures, Watch, measure
from pipeline.bold.quality_page import ROWS, Page, draw_page, spoken
from pipeline.bold.reader import Shard
from pipeline.bold.spool import BLOCK
from pipeline.bold.template import Template, load_template
from pipeline.errors import InputError


def inspect(folder: str | Path, template_folder: str | Path | None = None, output: str | Path | None = None) -> str:
    """The contract and the measures of a shard as text; with `output`, a picture of it there (PNG).

    `template_folder` places its voxels; by default it is sought beside the folders that the shard lies in, as a study
    keeps it. Without a template the picture has no slices.

    Raises
    ------
    InputError : no shard, a damaged one, or a template that is not its own.
    """
    shard = Shard.open(folder)
    told = describe(shard)
    if output is None:
        return told
    quick_look(shard, Path(output), find_template(shard, template_folder))
    return f"{told}\n\npicture  {output}"


def describe(shard: Shard) -> str:
    """Every field of the contract, then every measure, one a line."""
    contract = [*_lines("", shard.contract)]
    known = stored_measures(shard) or {}
    measures = [(name, spoken(known[name])) for name, *_ in ROWS if name in known]
    width = max(len(name) for name, _ in [*contract, *measures])
    blocks = [f"{shard.folder}", _table(contract, width)]
    if measures:
        blocks += ["measures", _table(measures, width)]
    return "\n".join(blocks)


def _table(lines: list[tuple[str, str]], width: int) -> str:
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in lines)


def _lines(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Names and values; what is nested gets a dotted name, a matrix a line a row."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _lines(f"{prefix}{name}.", value)
        elif isinstance(value, list) and value and isinstance(value[0], list):
            for place, row in enumerate(value):
                yield (f"{prefix}{name}" if place == 0 else ""), " ".join(f"{number:10.4g}" for number in row)
        elif isinstance(value, list) and len(value) > 6:
            yield f"{prefix}{name}", f"{len(value)} values: {', '.join(map(str, value[:4]))}, …"
        else:
            yield f"{prefix}{name}", str(value)


def stored_measures(shard: Shard) -> dict[str, Any] | None:
    """What its job measured of the run; None where the shard was derived from another."""
    path = shard.folder / "quality.json"
    return dict(read_json(path)["measures"]) if path.is_file() else None


def find_template(shard: Shard, folder: str | Path | None) -> Template | None:
    """The shard's template, from `folder` or from the study that the shard lies in; None for columns of another kind.

    Raises
    ------
    InputError : the template in `folder` is not the shard's.
    """
    if shard.contract.get("kind") != "voxels":
        return None
    if folder is not None:
        template = load_template(folder)
        if template.key != shard.contract["template"]:
            hint = "Give the template folder of the study that wrote the shard."
            raise InputError(folder, f"template {template.key}", f"template {shard.contract['template']}", hint)
        return template
    beside = [parent / "template" for parent in shard.folder.resolve().parents]
    found = [load_template(place) for place in beside if (place / "template.npz").is_file()]
    return next((template for template in found if template.key == shard.contract["template"]), None)


def quick_look(shard: Shard, path: Path, template: Template | None = None) -> None:
    """Draw a shard: mean and SD over time on the template's grid, traces, carpet, spectrum, measures.

    Frames are read in blocks, and every checksum that is passed is verified.
    """
    watch = Watch(shard.voxels, shard.tr_s)
    mean_V, std_V = shard.mean, shard.std
    for start in range(0, shard.frames, BLOCK):
        watch.update(shard.read(start, start + BLOCK) * std_V + mean_V)
    traces = watch.traces(mean_V, std_V)
    known = stored_measures(shard)
    measures = Measures(**known) if known else measure(traces, mean_V, std_V)
    images = {} if template is None else _maps(mean_V, std_V, template)
    draw_page(path, Page(_title(shard), traces, measures, None, images, template))


def _title(shard: Shard) -> str:
    names = [shard.contract.get(name) for name in ("dataset", "subject", "session", "run")]
    if None in names:
        return shard.folder.name
    return "{}: sub-{}, session {}, run {}".format(*names)


def _maps(mean_V: np.ndarray, std_V: np.ndarray, template: Template) -> dict[str, np.ndarray]:
    """Mean and SD of each voxel at its place, zero outside the mask."""
    maps = {}
    for name, values_V in (("mean over time", mean_V), ("SD over time", std_V)):
        volume_N = np.zeros(template.mask_XYZ.size, np.float32)
        volume_N[template.voxel_index_V] = values_V
        maps[name] = volume_N.reshape(template.shape)
    return maps
