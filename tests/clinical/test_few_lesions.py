"""What few lesions allow to be said: intervals of shares and comparisons, and of what resampling cannot move."""

import numpy as np
import pandas as pd
import pytest
from clinical_cases import frame, made_up
from scipy.stats import binom

from src.metrics import curves
from src.metrics.bootstrap import (
    curve_statistics,
    estimates,
    gather,
)
from src.metrics.settings import AuditSettings
from src.metrics.thresholds import points
from src.reporting.clinical.audit import audit
from src.reporting.clinical.record import judge

FEW = AuditSettings(samples=100)
NAMES = ("nv", "mel")


def found_of(found: int, lesions: int, others: int = 3) -> pd.DataFrame:
    """So many of the lesions are found, all others are rejected; an image a lesion."""
    target = np.array([1] * lesions + [0] * others)
    predicted = np.array([1] * found + [0] * (lesions - found + others))
    return frame(np.eye(2)[predicted], target, NAMES)


@pytest.mark.parametrize("lesions", [16, 20, 30])
def test_a_recall_just_below_the_goal_passes_in_one_of_forty_at_most(lesions: int) -> None:
    outcomes, lows = [], []
    for found in range(lesions + 1):
        row = points(
            gather([found_of(found, lesions)]), None, "mel", AuditSettings(samples=500)
        ).iloc[0]
        outcomes.append(judge(row["low"], row["high"], 0.80))
        lows.append(row["low"])
    rise = np.diff(lows)
    assert np.all(rise >= 0)  # more found is never less proof
    assert np.all(rise[lesions // 2 :] > 0)
    chance = binom.pmf(np.arange(lesions + 1), lesions, 0.79)
    assert chance[[outcome == "PASS" for outcome in outcomes]].sum() <= 0.025
    assert outcomes[0] == "FAIL"


def test_one_lesion_of_the_class_gives_no_interval_to_an_order() -> None:
    rng = np.random.default_rng(0)
    target = np.array([1] * 4 + [0] * 60)
    group = np.concatenate([[0] * 4, np.arange(1, 61)])  # four images of one melanoma
    score = rng.random(64)
    table = frame(np.stack([1 - score, score], axis=1), target, NAMES, group)
    given_ = gather([table])
    statistics = curves.CURVES | curves.fixed_points((0.9,))
    found = estimates(given_, [curve_statistics(given_, "mel", statistics)], FEW)
    assert found["estimate"].notna().all()
    assert found[["low", "high"]].isna().all(axis=None)
    assert set(found["images"]) == {4}
    assert set(found["groups"]) == {1}
    overall = audit([table], settings=FEW).overall.set_index("metric")
    assert overall["low"].isna().to_dict() == {
        name: name != "accuracy"
        for name in ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "isic_balanced_accuracy")
    }


def test_what_no_resampling_changes_has_no_interval() -> None:
    target = np.arange(40) % 2
    perfect = audit([frame(np.eye(2)[target], target, NAMES)], settings=FEW)
    assert perfect.ranking["low"].isna().all()
    overall = perfect.overall.set_index("metric")
    assert overall.drop(index="accuracy")["low"].isna().all()
    per_class = perfect.per_class.set_index(["class", "measure"])
    assert per_class.loc[("mel", "f1"), "estimate"] == 1
    assert per_class.loc[("mel", "f1"), ["low", "high", "interval"]].fillna("").to_list() == [
        "",
        "",
        "",
    ]
    assert per_class.loc[("mel", "precision"), "low"] == pytest.approx(0.025 ** (1 / 20))
    assert overall.loc["accuracy", "low"] == pytest.approx(0.025 ** (1 / 40))
    wrong = audit([frame(np.eye(2)[1 - target], target, NAMES)], settings=FEW).per_class.set_index(
        ["class", "measure"]
    )
    assert wrong.loc[("mel", "f1"), "estimate"] == 0
    assert np.isnan(wrong.loc[("mel", "f1"), "low"])


def test_a_subgroup_is_measured_by_its_lesions() -> None:
    target = np.array([1] * 12 + [0] * 20)
    group = np.concatenate(
        [np.arange(12) // 4, np.arange(3, 23)]
    )  # twelve images of three melanomas
    table = frame(np.eye(2)[target], target, NAMES, group)
    people = pd.DataFrame({"image_id": table["image_id"], "sex": "male"})
    rows = audit([table], metadata=people, settings=FEW).subgroups.set_index(["by", "measure"])
    assert rows.loc[("sex", "recall"), "note"] == "too few: 3 lesions of mel"
    assert tuple(rows.loc[("sex", "recall"), ["positives", "positive_lesions"]]) == (12, 3)
    assert np.isnan(rows.loc[("sex", "recall"), "estimate"])
    assert rows.loc[("sex", "balanced_accuracy"), "note"].startswith(
        "too few: fewer than two classes"
    )


def test_a_mean_over_classes_rests_on_the_rarest() -> None:
    tables = made_up(4, images=60, nets=1)
    given_ = gather(tables)
    overall = audit(tables, settings=FEW).overall.set_index("metric")
    fewest = tables[0].groupby("label")["group"].nunique().min()
    assert set(overall.drop(index="accuracy")["groups"]) == {fewest}
    assert overall.loc["accuracy", "groups"] == given_.groups
