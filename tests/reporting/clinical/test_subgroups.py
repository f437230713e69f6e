"""Subgroups: their members, their figures, and what is withheld."""

import numpy as np
import pandas as pd
import pytest
from clinical_cases import frame, made_up
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from src.core.errors import ConfigError, UserError
from src.metrics.settings import AuditSettings
from src.reporting.clinical.subgroups import attributes, map_columns, table, unknown_columns

IMAGES = pd.Series([f"i{number:04d}" for number in range(8)])
FEW = AuditSettings(samples=100)
NAMES = ("nv", "mel", "df")


def about(**columns: list[object]) -> pd.DataFrame:
    return pd.DataFrame({"image_id": IMAGES[: len(next(iter(columns.values())))], **columns})


def test_ages_are_in_bands_and_missing_ones_unknown() -> None:
    ages = attributes(IMAGES, about(age=[0, 29.9, 30, 39, 79, 80, 85, None]))["age"]
    bands = ["<30", "<30", "30-39", "30-39", "70-79", "80+", "80+", "unknown"]
    assert ages.to_list() == bands


def test_columns_of_every_data_set() -> None:
    columns = {"age_approx": [55.0, 50.0], "anatom_site_general_challenge": ["torso", None]}
    columns |= {"Sex": ["male", " female "], "fitzpatrick_skin_type": ["II", ""]}
    people = attributes(IMAGES[:3], about(**columns))
    expected = {"age": "50-59", "sex": "female", "site": "unknown", "skin type": "unknown"}
    assert people.loc["i0001"].to_dict() == expected
    assert people.loc["i0002"].to_list() == ["unknown"] * 4
    assert list(attributes(IMAGES, about(sex=["male"] * 8))) == ["sex"]


@pytest.mark.parametrize(
    "spelled",
    [
        # PAD-UFES-20, Derm7pt, Fitzpatrick17k and DDI, and a hospital's own
        {"fitspatrick": "skin type", "gender": "sex", "region": "site", "age": "age"},
        {"location": "site", "sex": "sex"},
        {"fitzpatrick_scale": "skin type"},
        {"skin_tone": "skin type"},
        # SCIN, MIDAS and ISIC 2024
        {"sex_at_birth": "sex", "midas_fitzpatrick": "skin type", "tbp_lv_location": "site"},
        {"Patient Age": "age", "Body-Site": "site", " Skin type": "skin type"},
    ],
)
def test_columns_are_known_by_their_public_spellings(spelled: dict[str, str]) -> None:
    metadata = about(**{column: ["3"] * 8 for column in spelled})
    assert set(attributes(IMAGES, metadata)) == set(spelled.values())
    assert unknown_columns(metadata) == []


def test_other_columns_are_listed_and_can_be_mapped() -> None:
    metadata = about(
        FST_of_skin=["II"] * 8, race=["a"] * 8, diameter=[3] * 8, image_quality=[1] * 8
    )
    assert list(attributes(IMAGES, metadata)) == []
    assert unknown_columns(metadata) == ["FST_of_skin", "race"]
    mapped = map_columns(metadata, {"age": None, "skin_type": "FST_of_skin"})
    assert attributes(IMAGES, mapped)["skin type"].to_list() == ["II"] * 8
    with pytest.raises(ConfigError, match=r"^columns\.sex: must be a column .*but got gendr"):
        map_columns(metadata, {"sex": "gendr"})


@pytest.mark.parametrize(
    ("metadata", "culprit"),
    [
        (pd.DataFrame({"name": ["i0000"]}), "no column image_id"),
        (pd.DataFrame({"image_id": ["i0000", "i0000"], "sex": ["male", "female"]}), "i0000 twice"),
        (about(age=["old"]), "'old', which is no number"),
    ],
)
def test_bad_metadata_are_refused(metadata: pd.DataFrame, culprit: str) -> None:
    with pytest.raises(UserError, match=culprit):
        attributes(IMAGES, metadata)


def test_skin_types_are_in_order_and_whole_numbers() -> None:
    tables = made_up(8, images=60, nets=1)
    types = [3.0, None, 1.0, 3.0, 3.0, 2.0] * 10
    metadata = pd.DataFrame({"image_id": tables[0]["image_id"], "fitzpatrick": types})
    names = table(tables, metadata, "mel", FEW)["subgroup"].unique()
    assert list(names) == ["all", "1", "2", "3", "unknown"]


def test_figures_are_of_the_subgroups_images() -> None:
    tables = made_up(8, nets=2)
    sex = np.where(np.arange(len(tables[0])) % 3 == 0, "male", "female")
    metadata = pd.DataFrame({"image_id": tables[0]["image_id"], "sex": sex})
    rows = table(tables, metadata, "mel", FEW).set_index(["subgroup", "measure"])
    columns = [column for column in tables[0] if column.startswith("p/")]
    for subgroup in ("male", "female"):
        parts = [frame[sex == subgroup] for frame in tables]
        predicted = [part[columns].to_numpy().argmax(axis=1) for part in parts]
        target = parts[0]["label"].radd("p/").map(columns.index).to_numpy()
        melanoma = target == columns.index("p/mel")
        expected = {
            "balanced_accuracy": [balanced_accuracy_score(target, labels) for labels in predicted],
            "recall": [(labels == target)[melanoma].mean() for labels in predicted],
            "auroc": [roc_auc_score(melanoma, part["p/mel"]) for part in parts],
        }
        for measure, values in expected.items():
            row = rows.loc[(subgroup, measure)]
            assert row["estimate"] == pytest.approx(np.mean(values))
            assert row["low"] <= row["estimate"] <= row["high"]
            sizes = (len(target), parts[0]["group"].nunique(), melanoma.sum(), 2, 3)
            assert tuple(row[["images", "groups", "positives", "seeds", "classes"]]) == sizes


def test_small_subgroups_have_a_note_instead_of_figures() -> None:
    target = np.array([0] * 30 + [1] * 12 + [2] * 3)
    right = frame(np.eye(3)[target], target, NAMES)
    sex = ["male"] * 30 + ["male"] * 3 + ["female"] * 9 + ["unknown"] * 3
    metadata = pd.DataFrame({"image_id": right["image_id"], "sex": sex})
    rows = table([right], metadata, "mel", FEW).set_index(["subgroup", "measure"])
    assert rows.loc[("all", "recall"), "estimate"] == 1
    assert rows.loc[("all", "balanced_accuracy"), "classes"] == 2  # three of df do not count
    notes = {
        ("male", "recall"): "too few: 3 lesions of mel",
        ("female", "auroc"): "too few: 9 lesions of mel",
        ("female", "balanced_accuracy"): "too few: fewer than two classes with 10 lesions",
    }
    assert rows.loc[list(notes), "note"].to_dict() == notes
    assert rows.loc[["male", "female", "unknown"], "estimate"].isna().all()
    order = ["all", "male", "female", "unknown"]  # by size, unknown is last
    assert list(rows.index.get_level_values(0).unique()) == order


def test_few_other_lesions_give_a_recall_but_no_area() -> None:
    target = np.array([1] * 12 + [0] * 2)
    right = frame(np.eye(2)[target], target, NAMES[:2])
    rows = table([right], right[["image_id"]], "mel", FEW).set_index("measure")
    assert rows.loc["recall", "estimate"] == 1
    assert rows.loc["auroc", "note"] == "too few: 2 lesions of other classes"
