"""The ISIC challenges' metrics: against isic-challenge-scoring 5.6.0 where it is installed, and what it gave once."""

import warnings

import numpy as np
import pandas as pd
import pytest
from clinical_cases import frame
from hypothesis import given, settings
from hypothesis import strategies as st

from src.metrics import curves
from src.metrics.bootstrap import bootstrap_statistics, gather

LABELS = "aaaabbbbbccc"
# the second and the eleventh image are undecided
PROBABILITIES = [
    (0.7, 0.2, 0.1),
    (0.4, 0.4, 0.2),
    (0.3, 0.5, 0.2),
    (0.6, 0.3, 0.1),
    (0.1, 0.8, 0.1),
    (0.2, 0.6, 0.2),
    (0.4, 0.3, 0.3),
    (0.25, 0.5, 0.25),
    (0.3, 0.3, 0.4),
    (0.1, 0.1, 0.8),
    (0.2, 0.4, 0.4),
    (0.5, 0.25, 0.25),
]
# per_category of isic_challenge_scoring.ClassificationScore 5.6.0 for these predictions
NAMES = ("accuracy", "sensitivity", "specificity", "dice", "ppv", "npv", "auc", "auc_sens_80", "ap")
PER_CATEGORY = {
    "a": dict(
        zip(
            NAMES, (5 / 6, 0.5, 1.0, 2 / 3, 1.0, 0.8, 0.875, 0.715, 0.7928571428571429), strict=True
        )
    ),
    "b": dict(
        zip(
            NAMES,
            (0.75, 0.4, 1.0, 4 / 7, 1.0, 0.7, 11 / 14, 0.4928571428571429, 0.7722222222222223),
            strict=True,
        )
    ),
    "c": dict(
        zip(
            NAMES,
            (5 / 6, 1 / 3, 1.0, 0.5, 1.0, 9 / 11, 8 / 9, 0.7266666666666667, 13 / 18),
            strict=True,
        )
    ),
}


def case() -> pd.DataFrame:
    target = np.array(["abc".index(label) for label in LABELS])
    return frame(np.array(PROBABILITIES), target, "abc")


def test_the_packages_own_figures() -> None:
    found = curves.scores(gather([case()])).set_index("class")
    for name, expected in PER_CATEGORY.items():
        assert found.loc[name].to_dict() == pytest.approx(expected)
    assert found.loc["macro_average"].to_dict() == pytest.approx(
        pd.DataFrame(PER_CATEGORY).mean(axis=1).to_dict()
    )


def test_balanced_accuracy_calls_a_tie_wrong() -> None:
    given_ = gather([case()])
    # a: 2 of 4 (one of the others is undecided), b: 3 of 5, c: 1 of 3 (one undecided)
    assert bootstrap_statistics(given_, curves.balanced_accuracy(given_)).item() == pytest.approx(
        (2 / 4 + 3 / 5 + 1 / 3) / 3
    )


def test_a_class_without_images_is_left_out_and_a_rate_of_nothing_is_one() -> None:
    table = case()
    table = table[table["label"] != "c"]
    given_ = gather([table])
    assert bootstrap_statistics(given_, curves.balanced_accuracy(given_)).item() == pytest.approx(
        (2 / 4 + 3 / 5) / 2
    )
    row = curves.scores(given_).set_index("class").loc["c"]
    assert row["sensitivity"] == row["ppv"] == row["dice"] == row["npv"] == 1
    assert row[["auc", "auc_sens_80", "ap"]].isna().all()


def test_several_nets_are_averaged() -> None:
    first = case()
    second = first.assign(**{"p/a": first["p/b"], "p/b": first["p/a"]})
    alone = [curves.scores(gather([each])).set_index("class") for each in (first, second)]
    both = curves.scores(gather([first, second])).set_index("class")
    pd.testing.assert_frame_equal(both, (alone[0] + alone[1]) / 2)


@given(st.integers(0, 10**6), st.integers(2, 4), st.integers(8, 40))
@settings(max_examples=10, deadline=None)
def test_the_installed_package_agrees(seed: int, classes: int, images: int) -> None:
    scoring = pytest.importorskip(
        "isic_challenge_scoring.classification", reason="isic-challenge-scoring is absent"
    )
    rng = np.random.default_rng(seed)
    target = np.concatenate([np.arange(classes), rng.integers(classes, size=images - classes)])
    share = rng.integers(1, 5, size=(images, classes)).astype(float)  # few values: ties
    table = frame(share / share.sum(axis=1, keepdims=True), target, "abcd"[:classes])
    names = list("abcd"[:classes])
    truth = pd.DataFrame(np.eye(classes)[target], columns=names)
    said = table[[f"p/{name}" for name in names]].astype(float).set_axis(names, axis=1)
    weights = pd.DataFrame({"score_weight": 1.0, "validation_weight": 1.0}, index=truth.index)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        score = scoring.ClassificationScore(
            truth, said, weights, scoring.ClassificationMetric.BALANCED_ACCURACY
        )
    given_ = gather([table])
    found = curves.scores(given_).set_index("class")
    np.testing.assert_allclose(found.loc[names].to_numpy(float), score.per_category.to_numpy(float))
    assert bootstrap_statistics(given_, curves.balanced_accuracy(given_)).item() == pytest.approx(
        score.aggregate["balanced_accuracy"]
    )
