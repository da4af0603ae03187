"""Who is in: labels as coded, batches that never shuffle, families that never straddle, draws that mirror the whole."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import artefact
from pipeline.bold.people import cell_people, fill_exactly, read_people, write_people, write_split
from pipeline.config import Study
from pipeline.errors import InputError


def _write(standard: dict[str, str], data: Path, out: Path, rows: int, people: int, **dataset: Any) -> list[str]:
    builders.write_participants(data, rows)
    write_people(builders.make_study(standard, data, {"people": people, **dataset}), "cohort", out)
    return list(read_people(out / "participants.tsv")["subject"])


def test_normalised_table_has_coded_labels_and_confounds(standard: dict[str, str], tmp_path: Path) -> None:
    dataset = {"family_column": "family_id", "confounds": ["age", "hand"]}
    builders.write_participants(tmp_path, 3, hand=lambda n: ["n/a", "right", "left"][n - 1], family_id="f{}".format)
    write_people(builders.make_study(standard, tmp_path, dataset), "cohort", tmp_path / "out")
    assert (tmp_path / "out/participants.tsv").read_text().splitlines() == [
        "subject\tfamily\tsite\tage\tsex\thand",
        "01\tf1\t\t21\t1\t",
        "02\tf2\t\t22\t0\tright",
        "03\tf3\t\t23\t1\tleft",
    ]


def test_declared_missing_label_stays_empty(standard: dict[str, str], tmp_path: Path) -> None:
    builders.write_participants(tmp_path, 3, sex=lambda n: "n/a" if n == 2 else "F")
    write_people(builders.make_study(standard, tmp_path), "cohort", tmp_path / "out")
    sex = read_people(tmp_path / "out/participants.tsv")["sex"]
    assert list(sex.isna()) == [False, True, False]


def test_without_a_family_everybody_is_a_family(standard: dict[str, str], tmp_path: Path) -> None:
    builders.write_participants(tmp_path, 3, family_id=lambda n: ["a", "n/a", ""][n - 1])
    write_people(builders.make_study(standard, tmp_path, {"family_column": "family_id"}), "cohort", tmp_path / "out")
    assert list(read_people(tmp_path / "out/participants.tsv")["family"]) == ["a", "02", "03"]


def test_membership_is_append_only(standard: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = _write(standard, tmp_path / "a", out, rows=5, people=3)
    # The table of the next release is longer and in another order.
    table = (tmp_path / "a/participants.tsv").read_text().splitlines()
    (tmp_path / "a/participants.tsv").write_text("\n".join([table[0], *reversed(table[1:])]) + "\n")
    study = builders.make_study(standard, tmp_path / "a", {"people": 5})
    write_people(study, "cohort", out)
    grown = list(read_people(out / "participants.tsv")["subject"])
    assert (first, grown) == (["01", "02", "03"], ["01", "02", "03", "05", "04"])


def test_growing_again_after_shrinking_gives_the_same_order(standard: dict[str, str], tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    orders = [_write(standard, data, out, rows=6, people=people) for people in (5, 2, 6)]
    assert orders == [["01", "02", "03", "04", "05"], ["01", "02"], ["01", "02", "03", "04", "05", "06"]]


@given(st.lists(st.integers(1, 5), max_size=9), st.integers(0, 20))
def test_families_fill_the_evaluation_set_exactly_where_any_choice_can(sizes: list[int], target: int) -> None:
    kept = fill_exactly(sizes, target)
    sums = {sum(chosen) for count in range(len(sizes) + 1) for chosen in combinations(sizes, count)}
    assert sum(sizes[index] for index in kept) == max(total for total in sums if total <= target)
    assert kept == sorted(set(kept))


@pytest.fixture(scope="module")
def split(standard: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    """A study of 80 people in 40 families, of whom 24 are evaluated and one has no usable run."""
    folder = tmp_path_factory.mktemp("split")
    rng = np.random.default_rng(0)
    sex, age = rng.integers(0, 2, 81), rng.integers(18, 80, 81)
    columns = {"sex": lambda n: "MF"[sex[n]], "age": lambda n: str(age[n]), "family_id": lambda n: f"f{n // 2}"}
    builders.write_participants(folder, 80, **columns)
    dataset = {"people": 80, "evaluation_people": 24, "family_column": "family_id"}
    study = builders.make_study(standard, folder, dataset)
    write_people(study, "cohort", folder / "people")
    runs = [
        {"subject": f"{n:02d}", "mean_fd_mm": float(displacement)}
        for n, displacement in zip(range(1, 80), rng.gamma(2, 0.1, 79), strict=True)
    ]
    artefact.write_json(folder / "manifest.json", {"runs": runs, "quarantined": []})
    _split(study, folder)
    return study, folder


def _split(study: Study, folder: Path) -> None:
    tables, manifests = {"cohort": folder / "people/participants.tsv"}, {"cohort": folder / "manifest.json"}
    write_split(study, tables, manifests, folder / "evaluation_set.json", folder / "draws.json")


def test_no_family_is_on_both_sides(split: tuple[Study, Path]) -> None:
    _, folder = split
    family = read_people(folder / "people/participants.tsv").set_index("subject")["family"]
    evaluated = artefact.read_json(folder / "evaluation_set.json")["people"]["cohort"]
    drawn = [name.split("/")[1] for name in cell_people(folder / "draws.json", 0, 55)]
    assert len(evaluated) == 24
    assert not set(family[evaluated]) & set(family[drawn])
    assert set(evaluated) | set(drawn) == set(family.index) - {"80"}


def test_fewer_people_are_the_first_of_more_and_draws_differ(split: tuple[Study, Path]) -> None:
    draws = split[1] / "draws.json"
    assert cell_people(draws, 0, 40)[:10] == cell_people(draws, 0, 10)
    assert cell_people(draws, 0, 40) != cell_people(draws, 1, 40)
    assert sorted(cell_people(draws, 0, 55)) == sorted(cell_people(draws, 1, 55))


def test_every_prefix_mirrors_sex_age_and_motion_of_the_whole(split: tuple[Study, Path]) -> None:
    _, folder = split
    people = read_people(folder / "people/participants.tsv").set_index("subject")
    motion = pd.DataFrame(artefact.read_json(folder / "manifest.json")["runs"]).set_index("subject")["mean_fd_mm"]
    names = [name.split("/")[1] for name in cell_people(folder / "draws.json", 0, 55)]
    traits = pd.DataFrame({"sex": people["sex"] == 1, "age": people["age"], "motion": motion}).loc[names]
    for name in ("age", "motion"):
        traits[name] = traits[name] > traits[name].median()
    prefix = traits.expanding().sum()
    expected = np.outer(np.arange(1, len(names) + 1), traits.mean())
    assert np.abs(prefix.to_numpy() - expected).max() <= 1.5


def test_split_is_the_same_for_the_same_seed_and_another_for_another(split: tuple[Study, Path], tmp_path: Path) -> None:
    study, folder = split
    before = [(folder / name).read_bytes() for name in ("evaluation_set.json", "draws.json")]
    _split(study, folder)
    assert [(folder / name).read_bytes() for name in ("evaluation_set.json", "draws.json")] == before
    tables, manifests = {"cohort": folder / "people/participants.tsv"}, {"cohort": folder / "manifest.json"}
    other = study.model_copy(update={"seed": 1})
    write_split(other, tables, manifests, tmp_path / "evaluation_set.json", tmp_path / "draws.json")
    assert (tmp_path / "evaluation_set.json").read_bytes() != before[0]


def test_quarantine_never_changes_who_is_evaluated(split: tuple[Study, Path], tmp_path: Path) -> None:
    study, folder = split
    fewer = artefact.read_json(folder / "manifest.json")["runs"][:40]
    artefact.write_json(tmp_path / "manifest.json", {"runs": fewer, "quarantined": []})
    tables = {"cohort": folder / "people/participants.tsv"}
    manifests = {"cohort": tmp_path / "manifest.json"}
    write_split(study, tables, manifests, tmp_path / "evaluation_set.json", tmp_path / "draws.json")
    assert (tmp_path / "evaluation_set.json").read_bytes() == (folder / "evaluation_set.json").read_bytes()


def _split_of_two(
    standard: dict[str, str], folder: Path, people_of: str | None, task_families: bool = True
) -> tuple[dict[str, list[str]], list[str]]:
    """Who is evaluated in `rest` and `task`, 10 of the same 40 people in 20 families each, and who is in the pool."""
    builders.write_participants(folder, 40, family_id=lambda n: f"f{n // 2}")
    cohort = builders.make_study(standard, folder).datasets["cohort"].model_dump(mode="json")
    rest = {**cohort, "people": 40, "evaluation_people": 10, "family_column": "family_id"}
    task = {**rest, "people_of": people_of, "family_column": "family_id" if task_families else None}
    study = builders.make_study(standard, folder, datasets={"rest": rest, "task": task})
    tables, manifests = {}, {}
    for name in study.datasets:
        write_people(study, name, folder / name)
        tables[name], manifests[name] = folder / name / "participants.tsv", folder / f"{name}.json"
        runs = [{"subject": f"{n:02d}", "mean_fd_mm": 0.1} for n in range(1, 41)]
        artefact.write_json(manifests[name], {"runs": runs, "quarantined": []})
    write_split(study, tables, manifests, folder / "evaluation_set.json", folder / "draws.json")
    draws = artefact.read_json(folder / "draws.json")
    return artefact.read_json(folder / "evaluation_set.json")["people"], draws["0"]


def test_whoever_is_evaluated_in_a_data_set_of_the_same_people_is_in_no_pool(
    standard: dict[str, str], tmp_path: Path
) -> None:
    evaluated, drawn = _split_of_two(standard, tmp_path / "same", "rest")
    assert evaluated["rest"] == evaluated["task"]
    assert len(evaluated["rest"]) == 10
    assert len(drawn) == 2 * 30
    assert not {name.split("/")[1] for name in drawn} & set(evaluated["rest"])
    apart, leaking = _split_of_two(standard, tmp_path / "apart", None)
    assert apart["rest"] == evaluated["rest"]  # who names no other data set keeps the order that they had
    assert {name.split("/")[1] for name in leaking} & {subject for people in apart.values() for subject in people}


def test_relatives_by_either_table_of_the_same_people_are_in_no_pool(standard: dict[str, str], tmp_path: Path) -> None:
    evaluated, drawn = _split_of_two(standard, tmp_path, "rest", task_families=False)
    families = {int(subject) // 2 for people in evaluated.values() for subject in people}
    assert not {int(name.split("/")[1]) // 2 for name in drawn} & families


def test_more_people_than_there_are_is_an_input_error(split: tuple[Study, Path]) -> None:
    with pytest.raises(InputError, match="found 55 people to pretrain on; expected at least N = 56"):
        cell_people(split[1] / "draws.json", 0, 56)
    with pytest.raises(InputError, match="no draw 7"):
        cell_people(split[1] / "draws.json", 7, 1)


def test_a_cell_takes_people_of_its_data_sets_alone(tmp_path: Path) -> None:
    artefact.write_json(tmp_path / "draws.json", {"0": ["a/1", "b/1", "a/2", "b/2", "b/3"]})
    assert cell_people(tmp_path / "draws.json", 0, 2, ["b"]) == ["b/1", "b/2"]
    with pytest.raises(InputError, match="found 2 people"):
        cell_people(tmp_path / "draws.json", 0, 3, ["a"])


def test_an_age_that_is_no_number_is_refused_with_the_person(standard: dict[str, str], tmp_path: Path) -> None:
    builders.write_participants(tmp_path, 3, age=lambda n: ["31", ">89", "n/a"][n - 1])
    study = builders.make_study(standard, tmp_path)
    with pytest.raises(InputError, match=r"participant '02', column 'age': found '>89'"):
        write_people(study, "cohort", tmp_path / "out")
