"""Attributions drawn on the brain: a glass brain, and the inflated cortex of fsaverage5.

nilearn is imported when something is drawn, not before: it takes two seconds. Its meshes ship inside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from pipeline.artefact import atomic_file, read_table, write_json
from pipeline.bold.template import Template, load_template
from pipeline.config import Study
from pipeline.evaluate.supplement.units import units_of
from pipeline.figures.select import pick

VIEWS = (("left", "lateral"), ("left", "medial"), ("right", "medial"), ("right", "lateral"))
TOLD = {  # columns of the attribution table that may be drawn
    "share": "share of absolute attributions",
    "signed": "mean signed attribution, SD of the score",
    "effect": "difference of classes in attribution, SD of the score",
}


def write_brains(study: Study, tables_folder: Path, template_folder: Path, output: Path) -> list[Path]:
    """Draw each attribution whose parcels have a place: `<architecture>-<dataset>-<task>-<column>.png` beside `output`.

    `output` is a JSON list of what was drawn, written last.
    """
    template = load_template(template_folder)
    parcels = pick(read_table(tables_folder / "attribution.parquet"), level="parcel")
    drawn = [
        draw_attribution(template, values_P, output.with_name(f"{name}.png"), parcel_V, title)
        for name, values_P, parcel_V, title in _drawings(study, parcels, template)
    ]
    write_json(output, {"drawn": [path.name for path in drawn]})
    return drawn


def _drawings(
    study: Study, parcels: pd.DataFrame, template: Template
) -> Iterator[tuple[str, np.ndarray, np.ndarray, str]]:
    for key, part in parcels.groupby(["architecture", "size", "dataset", "task"], sort=False):
        architecture, size, dataset, task = map(str, key)
        row = study.architectures[architecture]
        contract = {"voxels": {}, "flat map": {}, "parcels": {"kind": "parcels", "atlas": row.atlas}}[row.input]
        parcel_V = units_of(study, dataset, {**contract, "labels": part["part"].tolist()}, template).parcel_V
        if not (parcel_V >= 0).any():
            continue  # series whose atlas the study does not have: nobody knows where its parcels lie
        whose = "simulated cohort" if part["simulated"].any() else dataset
        for column in study.supplement.drawn:
            title = f"{row.label}, {size}. {task}: {TOLD[column]} ({whose}, n = {part['n'].max()})"
            yield f"{architecture}-{dataset}-{task}-{column}", part[column].to_numpy(dtype=float), parcel_V, title


def draw_attribution(
    template: Template, values_P: np.ndarray, output: Path, parcel_V: np.ndarray | None = None, title: str = ""
) -> Path:
    """Draw one value a parcel on a glass brain and on cortex, as one PNG.

    Parameters
    ----------
    values_P : in any unit; where any is negative, colours are symmetric about 0.
    parcel_V : parcel of each voxel of the template, -1 for none; None: the template's own cubes.
    """
    import matplotlib.pyplot as plt
    from nilearn.plotting import plot_glass_brain

    image = parcel_image(template, values_P, template.parcel_V if parcel_V is None else parcel_V)
    signed, most = bool((values_P < 0).any()), float(np.abs(values_P).max()) or 1.0
    colours: dict[str, Any] = {"vmax": most, "vmin": -most if signed else 0.0, "cmap": "RdBu_r" if signed else "YlOrRd"}
    figure = plt.figure(figsize=(10, 5.6))
    glass: dict[str, Any] = {"display_mode": "lyrz", "plot_abs": False, "colorbar": True, "threshold": 1e-9 * most}
    plot_glass_brain(image, figure=figure, axes=(0.0, 0.47, 1.0, 0.44), symmetric_cbar=signed, **glass, **colours)
    _draw_cortex(figure, image, colours)
    figure.text(0.01, 0.965, title, fontsize=10.5, weight="bold", ha="left", va="center")
    try:
        with atomic_file(output) as temporary:
            figure.savefig(temporary, format="png", dpi=130, metadata={"Software": None})
    finally:
        plt.close(figure)
    return output


def parcel_image(template: Template, values_P: np.ndarray, parcel_V: np.ndarray) -> nib.Nifti1Image:
    """A volume on the template's grid, each voxel with the value of its parcel, 0 where it has none."""
    volume_XYZ = np.zeros(template.shape, np.float32)
    volume_XYZ[tuple(template.coordinates_V3.T)] = np.where(parcel_V >= 0, values_P[parcel_V], 0)
    return nib.Nifti1Image(volume_XYZ, template.affine)


def _draw_cortex(figure: Any, image: nib.Nifti1Image, colours: dict[str, Any]) -> None:
    from nilearn.datasets import fetch_surf_fsaverage
    from nilearn.plotting import plot_surf_stat_map
    from nilearn.surface import vol_to_surf

    meshes = fetch_surf_fsaverage("fsaverage5")  # inside nilearn: nothing is fetched
    values = {
        side: vol_to_surf(image, meshes[f"pial_{side}"], inner_mesh=meshes[f"white_{side}"])
        for side in ("left", "right")
    }
    for place, (side, view) in enumerate(VIEWS):
        axes = figure.add_axes((0.25 * place, 0.0, 0.25, 0.47), projection="3d")
        plot_surf_stat_map(
            meshes[f"infl_{side}"],
            values[side],
            hemi=side,
            view=view,
            bg_map=meshes[f"sulc_{side}"],
            bg_on_data=False,
            colorbar=False,
            threshold=None,
            axes=axes,
            figure=figure,
            **colours,
        )
        figure.text(0.25 * place + 0.125, 0.02, f"{side}, {view}", fontsize=8, ha="center")
