"""The supplement's stage: what the features of one frozen encoder rest on: frames of a scan, parts of it, places.

Writes `supplement.parquet` (RESULT_SCHEMA) and `attribution.parquet` (ATTRIBUTION_SCHEMA). Splits of the first: `T80`,
a scan of 80 frames; `intact`, `without time`, `frames shuffled`, all of the benchmark's scan; `explained`,
the read-out whose attributions are in the second.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from pipeline.artefact import provenance, write_table
from pipeline.bold.template import load_template
from pipeline.config import Study
from pipeline.evaluate.cohort import Paths, load_cohorts
from pipeline.evaluate.encoders import open_frozen
from pipeline.evaluate.supplement.ablation import memory_of, voxel_models
from pipeline.evaluate.supplement.dissection import Probed, result
from pipeline.evaluate.supplement.explanation import explain
from pipeline.evaluate.supplement.units import units_of
from pipeline.grid import Cell
from pipeline.stages import VERSIONS
from pipeline.tables import ATTRIBUTION_SCHEMA, NONE, RESULT_SCHEMA, cell_columns


def supplement_cell(
    study: Study,
    cell: Cell,
    pretrain_folder: str | Path,
    template_folder: str | Path,
    manifests: Paths,
    raw_manifests: Paths,
    participants: Paths,
    evaluation_set: str | Path,
    supplement_out: str | Path,
    attribution_out: str | Path,
    features_folder: str | Path | None = None,
    flatmap_folder: str | Path | None = None,
) -> None:
    """Scan lengths, ablations and attributions of one encoder; paths as in `encoders.evaluate_cell`.

    Raises
    ------
    InputError : it was pretrained on an evaluation person or their family, or for shards of another contract.
    """
    template, draws = load_template(template_folder), Path(evaluation_set).with_name("draws.json")
    frozen = open_frozen(study, cell, pretrain_folder, template, draws, features_folder, flatmap_folder)
    results, places = [], []
    for cohort in load_cohorts(study, manifests, participants, evaluation_set):
        frozen.require_strangers(cohort, participants, raw_manifests)
        about = {"dataset": cohort.dataset, "simulated": cohort.simulated, "status": frozen.status}
        about = {**cell_columns(cell), **about}
        probed = Probed(frozen, cohort)
        results += [{**about, **row} for row in (*probed.scan_rows(), *probed.part_rows())]
        units = units_of(study, cohort.dataset, frozen.contract, template, flatmap_folder)
        told, where = explain(frozen, cohort, units)
        results += [{**about, **row} for row in told]
        places += [{**about, **row} for row in where]
    files = {"encoder": frozen.folder / "encoder.safetensors", "evaluation_set": evaluation_set}
    record = provenance("supplement", VERSIONS["supplement"], study.supplement.model_dump(), files)
    for path, rows, schema in ((supplement_out, results, RESULT_SCHEMA), (attribution_out, places, ATTRIBUTION_SCHEMA)):
        write_table(path, pd.DataFrame(rows, columns=schema.names), schema, record)


def count_memory(study: Study, output: str | Path) -> None:
    """Memory of one clip's gradient against its frames, every voxel architecture at the size its authors published."""
    rows = [
        {
            **cell_columns(Cell("", found.size, NONE, NONE, NONE, "", NONE), found.name),
            **result("memory", "activations_mb", f"T{found.frames}", found.activations_mb, 1),
            **{"dataset": "", "status": "completed", "simulated": False, "unit": "MB"},
        }
        for name in voxel_models()
        for found in (memory_of(name, frames) for frames in study.supplement.memory_frames)
    ]
    record = provenance("supplement", VERSIONS["supplement"], list(study.supplement.memory_frames), {})
    write_table(output, pd.DataFrame(rows, columns=RESULT_SCHEMA.names), RESULT_SCHEMA, record)
