"""The supplement's stage on a small cohort, the units that it sums by, its figure and its drawings."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from small_cohort import CONTRACT, SmallCohort, make_cohort, small_cell, small_template, write_cell

from pipeline.artefact import read_table
from pipeline.bold.template import build_template, save_template
from pipeline.config import Study, Template, load_study, merge
from pipeline.errors import InputError
from pipeline.evaluate.supplement.stage import count_memory, supplement_cell
from pipeline.evaluate.supplement.tables import supplemented_cells
from pipeline.evaluate.supplement.units import eighth, network_of, planted_network, units_of
from pipeline.grid import block_cells
from pipeline.tables import RESULT_SCHEMA

SETTINGS = {
    "runs": 1,
    "frames": [10, 20, 40, 80],
    "parts": ["time", "position", "order"],
    "people": 8,
    "clips": 2,
    "components": 3,
    "steps": 32,
    "shuffles": 49,
    "memory_frames": [20, 40],
}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> SmallCohort:
    made = make_cohort(tmp_path_factory.mktemp("supplement"))
    changed = merge(made.study.model_dump(mode="json"), {"supplement": SETTINGS, "evaluate": {"splits": 10}})
    return SmallCohort(Study.model_validate(changed), made.root)


@pytest.fixture(scope="module")
def tables(cohort: SmallCohort) -> tuple[pd.DataFrame, pd.DataFrame]:
    cell, folder = small_cell(cohort.study), cohort.root / "cell"
    contract = {"kind": "voxels", "template": small_template().key, "tr_s": CONTRACT["tr_s"]}
    write_cell(cell, folder, contract)
    outputs = cohort.root / "supplement.parquet", cohort.root / "attribution.parquet"
    raw = cohort.inputs["manifests"]
    supplement_cell(
        cohort.study,
        cell,
        folder,
        raw_manifests=raw,
        **cohort.inputs,
        supplement_out=outputs[0],
        attribution_out=outputs[1],
    )
    return read_table(outputs[0]), read_table(outputs[1])


def test_every_scan_length_has_a_value_or_the_reason_for_its_gap(tables: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    rows = tables[0][tables[0]["split"].str.startswith("T")].set_index(["task", "split"])
    assert rows.loc[("sex", "T10"), "status"] == "shorter_than_a_clip"
    assert rows.loc[("sex", "T80"), "status"] == "too_short"
    assert np.isfinite(rows.loc[[("sex", "T20"), ("sex", "T40")], "value"]).all()
    assert rows.loc[("sex", "T40"), "low"] <= rows.loc[("sex", "T40"), "value"] <= rows.loc[("sex", "T40"), "high"]
    assert rows["value"].isna().sum() == 4


def test_changes_are_those_of_the_values(tables: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    rows = tables[0].set_index(["task", "split", "metric"])["value"]
    for split in ("without time", "without position", "frames shuffled"):
        change = rows["sex", split, "auroc"] - rows["sex", "intact", "auroc"]
        assert rows["sex", split, "auroc_change"] == pytest.approx(change)


def test_attributions_are_complete_shared_out_and_the_same_by_parcel_and_network(
    tables: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    told = tables[0][tables[0]["metric"] == "completeness_error"]
    assert (told["value"] < 0.1).all()
    assert (told["n"] == 8).all()
    for _, part in tables[1].groupby("task"):
        parcels, networks = part[part["level"] == "parcel"], part[part["level"] == "network"]
        assert len(parcels) == small_template().parcels
        assert parcels["share"].sum() == pytest.approx(1)
        for column in ("share", "signed", "effect"):
            sums = parcels.groupby("network")[column].sum()
            assert networks.set_index("part")[column].sort_index().to_numpy() == pytest.approx(sums.to_numpy())
        assert part["p"].between(1 / 50, 1).all()
        assert (part["share_low"] <= part["share"] + 1e-9).all()


def test_an_encoder_of_other_data_is_refused(cohort: SmallCohort, tmp_path: Path) -> None:
    cell = small_cell(cohort.study)
    write_cell(cell, tmp_path / "cell", {"kind": "voxels", "template": "another", "tr_s": CONTRACT["tr_s"]})
    with pytest.raises(InputError, match="another"):
        supplement_cell(
            cohort.study, cell, tmp_path / "cell", raw_manifests=cohort.inputs["manifests"], **cohort.inputs,
            supplement_out=tmp_path / "s.parquet", attribution_out=tmp_path / "a.parquet",
        )  # fmt: skip
    assert not (tmp_path / "s.parquet").exists()


def test_memory_is_written_for_every_voxel_model(cohort: SmallCohort, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.evaluate.supplement.stage.voxel_models", lambda: ["tff"])
    count_memory(cohort.study, cohort.root / "memory.parquet")
    rows = read_table(cohort.root / "memory.parquet")
    assert list(rows["split"]) == ["T20", "T40"]
    assert rows["value"][1] == pytest.approx(2 * rows["value"][0], rel=0.05)  # of 109 M parameters, 75 x 93 x 81 voxels
    assert rows["value"][0] > 1000
    assert set(rows.columns) == set(RESULT_SCHEMA.names)


def test_one_seed_of_the_largest_of_each_architecture_is_looked_into() -> None:
    study = load_study(Path(__file__).resolve().parents[2] / "config/demo.yaml")
    cells = supplemented_cells(study)
    assert [(cell.architecture, cell.size, cell.seed) for cell in cells] == [
        ("swift_v1", "w24", 0),
        ("swift_v2", "w24", 0),
    ]
    assert set(cells) <= set(block_cells(study, "scaling"))


@pytest.mark.parametrize(
    ("label", "network"),
    [
        ("7Networks_LH_Vis_1", "visual"),
        ("7Networks_RH_SalVentAttn_FrOperIns_2", "ventral attention"),
        ("17Networks_LH_DefaultA_PFCm_3", "default"),
        ("17Networks_RH_ContB_PFClv_1", "frontoparietal"),
        ("LH_DorsAttn_Post_4", "dorsal attention"),
        ("7Networks_5", "limbic"),
        ("HIP-rh", None),
        ("Left Thalamus", None),
    ],
)
def test_networks_are_read_from_the_names_of_parcels(label: str, network: str | None) -> None:
    assert network_of(label) == network


def test_places_have_a_planted_network_or_an_eighth_of_the_brain() -> None:
    assert planted_network(np.array([-38, -24, 54])) == "motor hand"
    assert planted_network(np.array([0, 0, 300])) == "other"
    assert eighth(np.array([-30, -60, 40])) == "left back top"


def test_an_atlas_that_names_networks_takes_the_place_of_the_cubes(tmp_path: Path, cohort: SmallCohort) -> None:
    template = small_template()
    labels_XYZ = np.zeros(template.shape, np.int16)
    labels_XYZ[:3], labels_XYZ[3:, :3] = 4, 9
    nib.save(nib.Nifti1Image(labels_XYZ, template.affine), tmp_path / "schaefer_atlas.nii.gz")
    (tmp_path / "schaefer_labels.tsv").write_text("index\tname\n4\t7Networks_LH_Vis_1\n9\t7Networks_RH_Default_PFC_1\n")
    study = cohort.study.model_copy(update={"atlases": {"schaefer": tmp_path / "schaefer_atlas.nii.gz"}})
    units = units_of(study, "simulated", {}, template)
    assert units.networks == ("visual", "default")
    where = labels_XYZ[tuple(template.coordinates_V3.T)]
    assert units.parcel_C.tolist() == [{4: 0, 9: 1, 0: -1}[int(code)] for code in where]
    names, sums = units.network_sums(np.array([[2.0, 3.0]]))
    assert (names, sums.tolist()) == (["visual", "default"], [[2.0, 3.0]])
    series = units_of(
        study, "simulated", {"kind": "parcels", "atlas": "schaefer", "labels": list(units.names)}, template
    )
    assert series.parcel_V.tolist() == units.parcel_V.tolist()
    assert series.parcel_C.tolist() == [0, 1]


def test_figure_draws_the_tables_and_says_that_they_are_simulated(
    cohort: SmallCohort, tables: tuple[pd.DataFrame, pd.DataFrame]
) -> None:
    from pipeline.figures.supplement import draw

    columns = ["system", "architecture", "size", "variant", "draw", "seed", "dataset", "metric", "split"]
    empty = pd.DataFrame({name: [] for name in RESULT_SCHEMA.names})
    scores = pd.DataFrame({"dataset": [], "person": [], "family": []})
    content = {"spectral": empty.astype(dict.fromkeys(columns, str)), "scores": scores}
    figure, plotted, caption = draw(cohort.study, {**content, "supplement": tables[0], "attribution": tables[1]})
    words = " ".join(text.get_text() for text in figure.findobj(match=lambda each: hasattr(each, "get_text")))
    assert "SIMULATED COHORT" in words
    assert {"D", "E", "F"} <= set(plotted["panel"])
    assert "Simulated cohort" in caption
    effects = plotted[plotted["panel"] == "F"]["y"].to_numpy()
    assert effects == pytest.approx(tables[1][tables[1]["level"] == "network"]["effect"].to_numpy())


def test_brains_are_drawn(tmp_path: Path) -> None:
    from pipeline.figures.brains import draw_attribution, parcel_image

    settings = Template(space="MNI152NLin2009aSym", resolution_mm=8, shape=(24, 24, 24), parcel_voxels=6)
    template = build_template(settings)
    save_template(template, tmp_path / "template")
    values_P = np.linspace(-1, 2, template.parcels)
    image = parcel_image(template, values_P, template.parcel_V)
    found_V = np.asarray(image.dataobj)[tuple(template.coordinates_V3.T)]
    assert found_V == pytest.approx(values_P[template.parcel_V], abs=1e-6)
    drawn = draw_attribution(template, values_P, tmp_path / "brain.png", title="a test")
    assert drawn.read_bytes().startswith(b"\x89PNG")
    assert drawn.stat().st_size > 50_000
