"""Calibration errors by hand and against torchmetrics and scikit-learn; temperature scaling."""

import numpy as np
import pytest
import torch
from clinical_cases import frame, made_up
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from src.metrics import calibration
from src.metrics.bootstrap import gather


def answers(seed: int, classes: int = 3, images: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    probability = rng.dirichlet(np.ones(classes), size=images).astype(np.float32)
    return probability, rng.integers(classes, size=images)


@pytest.mark.parametrize(("seed", "classes"), [(0, 3), (1, 2), (2, 4)])
def test_measures_are_those_of_torchmetrics_and_scikit_learn(seed: int, classes: int) -> None:
    probability, target = answers(seed, classes)
    tensors = torch.tensor(probability), torch.tensor(target)
    expected = multiclass_calibration_error(*tensors, classes, n_bins=15, norm="l1")
    values = calibration.summary(probability, target)
    assert values["ece"] == pytest.approx(float(expected), abs=1e-6)
    exact = probability.astype(float) / probability.astype(float).sum(axis=1, keepdims=True)
    values = calibration.summary(exact, target)
    assert values["nll"] == pytest.approx(log_loss(target, exact))
    brier = brier_score_loss(target, exact, labels=range(classes), scale_by_half=True)
    assert values["brier"] == pytest.approx(brier)
    if classes == 2:
        assert values["brier"] == pytest.approx(brier_score_loss(target, exact[:, 1]))


def test_errors_and_bins_by_hand() -> None:
    # ten answers at 0.9 of which six are right, ten at 0.6 of which six are right
    probability = np.array([[0.9, 0.1]] * 10 + [[0.6, 0.4]] * 10)
    values = calibration.summary(probability, np.array(([0] * 6 + [1] * 4) * 2))
    assert values["ece"] == pytest.approx(0.5 * 0.3 + 0.5 * 0)
    assert values["adaptive_ece"] == pytest.approx(0.15)  # ties stay together: two bins
    # bins are closed above, or equal in content
    numbers = calibration.equal_width(np.array([0, 1 / 15, 0.067, 0.5, 1.0]))
    assert numbers.tolist() == [0, 0, 1, 7, 14]
    counts = np.bincount(calibration.equal_content(np.random.default_rng(0).random(150)))
    assert counts.tolist() == [10] * 15
    assert calibration.equal_content(np.array([0.3, 0.3, 0.3])).tolist() == [0, 0, 0]
    probability = np.array([[0.7, 0.3], [0.7, 0.3], [0.7, 0.3], [0.2, 0.8]])
    table = frame(probability, np.array([0, 0, 1, 1]), ("nv", "mel"))
    rows = calibration.bins(gather([table]), None).set_index(["class", "bin"])
    columns = ["images", "confidence", "frequency"]
    assert rows.loc[("mel", 4), columns].to_list() == pytest.approx([3, 0.3, 1 / 3])
    assert rows.loc[(calibration.TOP, 10), columns].to_list() == pytest.approx([3, 0.7, 2 / 3])


@given(st.integers(0, 10**6), st.integers(2, 5))
@settings(max_examples=30)
def test_a_temperature_of_one_changes_nothing_and_none_changes_the_order(
    seed: int, classes: int
) -> None:
    probability, _ = answers(seed, classes, images=20)
    np.testing.assert_allclose(calibration.scale(probability, 1.0), probability, atol=1e-6)
    for temperature, sign in ((0.3, 1), (4.0, -1)):
        scaled = calibration.scale(probability, temperature)
        np.testing.assert_allclose(scaled.sum(axis=1), 1)
        assert (scaled.argmax(axis=1) == probability.argmax(axis=1)).all()
        change = scaled.max(axis=1) - probability.max(axis=1)
        assert (sign * change >= -1e-6).all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("classes", [2, 4])
def test_the_true_temperature_is_recovered(temperature: float, classes: int) -> None:
    rng = np.random.default_rng(7)
    logits = 2 * rng.normal(size=(20_000, classes))
    truth = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    target = (truth.cumsum(axis=1) < rng.random((len(truth), 1))).sum(axis=1)
    # labels follow `truth`; the net's logits are too big by `temperature`
    predicted = calibration.scale(truth, 1 / temperature)
    fitted = calibration.fit(predicted, target)
    assert fitted == pytest.approx(temperature, rel=0.04)
    before = calibration.summary(predicted, target)
    after = calibration.summary(calibration.scale(predicted, fitted), target)
    assert after["nll"] <= before["nll"]
    assert after["ece"] < 0.02


@given(st.integers(0, 10**6))
@settings(max_examples=8)
def test_no_temperature_nearby_is_better(seed: int) -> None:
    probability, target = answers(seed, images=60)
    best = calibration.fit(probability, target)
    others = np.clip([best * 0.9, best * 1.1, 0.05, 1.0, 20.0], *calibration.TEMPERATURES)
    losses = [
        calibration.summary(calibration.scale(probability, temperature), target)["nll"]
        for temperature in (best, *others)
    ]
    assert losses[0] == pytest.approx(min(losses), abs=1e-6)


def test_labels_that_are_all_predicted_take_the_lowest_temperature() -> None:
    probability = np.array([[0.9, 0.1], [0.2, 0.8]])
    assert calibration.fit(probability, np.array([0, 1])) == calibration.TEMPERATURES[0]
    assert calibration.fit(probability, np.array([1, 0])) == calibration.TEMPERATURES[1]
    zeros = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], dtype=np.float32)
    assert np.isfinite(list(calibration.summary(zeros, np.array([0, 1, 1])).values())).all()
    assert np.isfinite(calibration.scale(zeros, 2.0)).all()


def test_reliability_bins_count_each_image_once_a_net() -> None:
    predictions = gather(made_up(2))
    table = calibration.bins(predictions, None)
    assert table["scaled"].dtype == bool
    assert not table["scaled"].any()
    for name in (calibration.TOP, *predictions.classes):
        rows = table[table["class"] == name]
        assert rows["images"].sum() == pytest.approx(len(predictions.target))
        if name != calibration.TOP:
            share = (predictions.target == predictions.classes.index(name)).mean()
            assert np.average(rows["frequency"], weights=rows["images"]) == pytest.approx(share)
    both = calibration.bins(predictions, predictions.probability.astype(float))
    assert both["scaled"].tolist() == [False] * len(table) + [True] * len(table)
