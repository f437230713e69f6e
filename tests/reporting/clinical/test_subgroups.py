"""Subgroups: who is in them, their figures, and what is withheld."""

import numpy as np
import pandas as pd
import pytest
from clinical_cases import frame, made_up
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from src.core.errors import UserError
from src.metrics.settings import AuditSettings
from src.reporting.clinical.subgroups import attributes, table

IMAGES = pd.Series([f"i{number:04d}" for number in range(8)])


def about(**columns: list[object]) -> pd.DataFrame:
    return pd.DataFrame({"image_id": IMAGES[: len(next(iter(columns.values())))], **columns})


def test_ages_are_in_bands_and_what_is_not_told_is_unknown() -> None:
    found = attributes(IMAGES, about(age=[0, 29.9, 30, 39, 79, 80, 85, None]))
    assert found["age"].to_list() == [
        "<30",
        "<30",
        "30-39",
        "30-39",
        "70-79",
        "80+",
        "80+",
        "unknown",
    ]


def test_each_data_sets_names_are_known_and_missing_images_are_unknown() -> None:
    theirs = about(
        age_approx=[55.0, 50.0],
        anatom_site_general_challenge=["torso", None],
        Sex=["male", " female "],
    )
    found = attributes(IMAGES[:3], theirs.assign(fitzpatrick_skin_type=["II", ""]))
    assert found.loc["i0001"].to_dict() == {
        "age": "50-59",
        "sex": "female",
        "site": "unknown",
        "skin type": "unknown",
    }
    assert found.loc["i0002"].to_list() == ["unknown"] * 4
    assert list(attributes(IMAGES, about(sex=["male"] * 8))) == ["sex"]


@pytest.mark.parametrize(
    ("metadata", "culprit"),
    [
        (pd.DataFrame({"name": ["i0000"]}), "no column image_id"),
        (pd.DataFrame({"image_id": ["i0000", "i0000"], "sex": ["male", "female"]}), "i0000 twice"),
        (about(age=["old"]), "'old', which is no number"),
    ],
)
def test_metadata_that_cannot_be_are_refused(metadata: pd.DataFrame, culprit: str) -> None:
    with pytest.raises(UserError, match=culprit):
        attributes(IMAGES, metadata)


def test_skin_types_are_in_order_and_whole_numbers() -> None:
    tables = made_up(8, images=60, nets=1)
    types = [3.0, None, 1.0, 3.0, 3.0, 2.0] * 10
    metadata = pd.DataFrame({"image_id": tables[0]["image_id"], "fitzpatrick": types})
    found = table(tables, metadata, "mel", AuditSettings(samples=100))
    assert list(found["subgroup"].unique()) == ["all", "1", "2", "3", "unknown"]


def test_figures_are_those_of_the_groups_own_images() -> None:
    tables = made_up(8, nets=2)
    sex = np.where(np.arange(len(tables[0])) % 3 == 0, "male", "female")
    metadata = pd.DataFrame({"image_id": tables[0]["image_id"], "sex": sex})
    found = table(tables, metadata, "mel", AuditSettings(samples=100)).set_index(
        ["subgroup", "measure"]
    )
    for subgroup in ("male", "female"):
        parts = [each[sex == subgroup] for each in tables]
        names = [column for column in parts[0] if column.startswith("p/")]
        predicted = [each[names].to_numpy().argmax(axis=1) for each in parts]
        target = parts[0]["label"].map([name.removeprefix("p/") for name in names].index).to_numpy()
        own = target == names.index("p/mel")
        expected = {
            "balanced_accuracy": [balanced_accuracy_score(target, each) for each in predicted],
            "recall": [(each[own] == names.index("p/mel")).mean() for each in predicted],
            "auroc": [roc_auc_score(own, each["p/mel"]) for each in parts],
        }
        for measure, values in expected.items():
            row = found.loc[(subgroup, measure)]
            assert row["estimate"] == pytest.approx(np.mean(values))
            assert row["low"] <= row["estimate"] <= row["high"]
            sizes = (len(target), parts[0]["group"].nunique(), own.sum(), 2, 3)
            assert tuple(row[["images", "groups", "positives", "seeds", "classes"]]) == sizes


def test_too_small_a_group_gets_words_instead_of_figures() -> None:
    target = np.array([0] * 30 + [1] * 12 + [2] * 3)
    right = frame(np.eye(3)[target], target, ("nv", "mel", "df"))
    sex = ["male"] * 30 + ["male"] * 3 + ["female"] * 9 + ["unknown"] * 3
    metadata = pd.DataFrame({"image_id": right["image_id"], "sex": sex})
    found = table([right], metadata, "mel", AuditSettings(samples=100)).set_index(
        ["subgroup", "measure"]
    )
    assert found.loc[("all", "recall"), "estimate"] == 1
    assert (
        found.loc[("all", "balanced_accuracy"), "classes"] == 2
    )  # three of df are too few to count
    assert found.loc[("male", "recall"), "note"] == "too few: 3 lesions of mel"
    assert found.loc[("female", "auroc"), "note"] == "too few: 9 lesions of mel"
    assert (
        found.loc[("female", "balanced_accuracy"), "note"]
        == "too few: fewer than two classes with 10 lesions"
    )
    assert found.loc[["male", "female", "unknown"], "estimate"].isna().all()
    assert list(found.index.get_level_values(0).unique()) == [
        "all",
        "male",
        "female",
        "unknown",
    ]  # unknown is last


def test_all_of_the_class_and_few_others_has_a_recall_but_no_area() -> None:
    target = np.array([1] * 12 + [0] * 2)
    given = frame(np.eye(2)[target], target, ("nv", "mel"))
    metadata = pd.DataFrame({"image_id": given["image_id"]})
    found = table([given], metadata, "mel", AuditSettings(samples=100)).set_index("measure")
    assert found.loc["recall", "estimate"] == 1
    assert found.loc["auroc", "note"] == "too few: 2 lesions of other classes"
