"""Decision rules: offsets on simulated data, cross-fitting under the null, figures by hand."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from clinical_cases import frame, made_up
from scipy.special import softmax
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, recall_score

from src.core.errors import ConfigError, UserError
from src.metrics import decision_rules
from src.metrics.bootstrap import gather, intervals
from src.metrics.decision_rules import check, decide, evaluate, fit, with_decisions
from src.metrics.thresholds import TargetRate, choose

CLASSES = ("bkl", "mel", "nv")
FITTED = ("balanced", "accuracy", "recall_floor")


def simulated(
    priors: np.ndarray, believed: np.ndarray, images: int, seed: int = 0, spread: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Posteriors of a net that believes in other priors than those of the images, and labels.

    Class k has features N(spread e_k, 1): its log-likelihood is spread x_k up to a constant.
    """
    rng = np.random.default_rng(seed)
    target = rng.choice(len(priors), size=images, p=priors)
    features = rng.normal(size=(images, len(priors))) + spread * np.eye(len(priors))[target]
    return softmax(spread * features + np.log(believed), axis=1), target


@pytest.mark.parametrize(
    ("priors", "believed"),
    [([0.7, 0.2, 0.1], [0.2, 0.2, 0.6]), ([0.8, 0.2], [0.5, 0.5]), ([0.6, 0.4], [0.1, 0.9])],
)
def test_offsets_recover_a_prior_shift(priors: list[float], believed: list[float]) -> None:
    """Bayes' rule: the log of the wanted prior over the believed one, up to a constant."""
    probability, target = simulated(np.array(priors), np.array(believed), 60_000)
    wanted = {"accuracy": np.array(priors), "balanced": np.full(len(priors), 1 / len(priors))}
    for rule, prior in wanted.items():
        expected = np.log(prior / np.array(believed))
        offsets = fit(rule, probability, target)
        np.testing.assert_allclose(offsets, expected - expected.mean(), atol=0.06)
        assert offsets.sum() == pytest.approx(0, abs=1e-4)


def test_offsets_are_the_optimum_of_the_penalised_likelihood() -> None:
    """Equal to what another optimiser finds for Kish's size times the weighted mean."""
    from scipy.optimize import minimize

    probability, target = simulated(np.array([0.7, 0.2, 0.1]), np.array([0.3, 0.3, 0.4]), 120)
    counts = np.bincount(target)
    weights = 1 / (3 * counts[target])

    def loss(values: np.ndarray) -> float:
        scaled = softmax(np.log(probability) + values, axis=1)
        size = 9 / (1 / counts).sum()  # 1 / the sum of squared weights
        return float(-size * weights @ np.log(scaled[np.arange(120), target]) + values @ values / 2)

    expected = minimize(loss, np.zeros(3), method="Nelder-Mead", options={"xatol": 1e-7}).x
    np.testing.assert_allclose(fit("balanced", probability, target), expected, atol=1e-4)


def noise(seed: int, names: Sequence[str], lesions: int, spread: float) -> pd.DataFrame:
    """Predictions without knowledge of three images of each lesion."""
    rng, group = np.random.default_rng(seed), np.arange(3 * lesions) // 3
    target = rng.integers(len(names), size=lesions)[group]
    probability = softmax(spread * rng.normal(size=(3 * lesions, len(names))), axis=1)
    return frame(probability, target, names, group)


@pytest.mark.parametrize(("rule", "classes"), [("balanced", 2), ("balanced", 7), ("accuracy", 3)])
def test_cross_fitting_is_not_optimistic_for_noise(rule: str, classes: int) -> None:
    """A net without knowledge has chance level; fitted on the same images it would have more."""
    values = []
    for seed in range(20):
        table = with_decisions(noise(seed, "abcdefg"[:classes], 50, 2), rule)
        values.append(balanced_accuracy_score(table["label"], table[f"decision/{rule}"]))
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values) - 1 / classes) < 3 * error


def test_the_specificity_on_validation_is_not_optimistic_for_noise() -> None:
    """At a recall of 0.8 noise has a specificity of 0.2, if lesions do not choose their own."""
    measured = [evaluate(noise(seed, CLASSES, 60, 1), "argmax")[1] for seed in range(10)]
    names = ("chosen/sensitivity/mel", "chosen/specificity/mel")
    rates = [[values[name] for name in names] for values in measured]
    means, errors = np.mean(rates, axis=0), np.std(rates, axis=0) / np.sqrt(10)
    assert means[0] + means[1] <= 1 + 3 * np.hypot(*errors)
    assert abs(means[0] - 0.8) < 0.05


def test_what_is_fitted_on_an_image_does_not_decide_it() -> None:
    """The decisions of a lesion do not change with its own labels."""
    [table] = made_up(5, images=120, nets=1)
    lesion = table["group"] == table.loc[17, "group"]
    for rule in FITTED:
        before = with_decisions(table, rule)
        for label in CLASSES:
            changed = table.assign(label=table["label"].where(~lesion, label))
            after = with_decisions(changed, rule)
            pd.testing.assert_frame_equal(
                before[lesion][[f"decision/{rule}"]], after[lesion][[f"decision/{rule}"]]
            )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_the_recall_floor_is_reached_on_validation(seed: int, classes: int) -> None:
    probability, target = simulated(
        np.full(classes, 1 / classes), np.full(classes, 1 / classes), 200, seed
    )
    offsets = fit("recall_floor", probability, target, positive=1)
    assert np.flatnonzero(offsets).tolist() == [1]
    decided = decide(probability, offsets)
    recall = recall_score(target == 1, decided == 1)
    assert 0.8 <= recall < 0.8 + 1 / (target == 1).sum()  # one image less does not reach it
    others = np.delete(probability, 1, axis=1).argmax(axis=1)
    kept = decided != 1
    np.testing.assert_array_equal(decided[kept], np.delete(np.arange(classes), 1)[others[kept]])


def test_two_classes_have_a_threshold() -> None:
    """With offsets b the second class is decided from p = 1 / (1 + exp(b1 - b0)) on."""
    probability = np.array([[1 - p, p] for p in np.linspace(0.01, 0.99, 99)])
    decided = decide(probability, [0.4, -0.4])
    np.testing.assert_array_equal(decided, probability[:, 1] > 1 / (1 + np.exp(-0.8)))
    np.testing.assert_array_equal(decide(probability, [0, 0]), probability.argmax(axis=1))


def test_a_class_absent_from_validation_is_not_moved() -> None:
    probability, target = simulated(np.array([0.5, 0.3, 0.2]), np.full(3, 1 / 3), 400)
    probability, target = probability[target != 2], target[target != 2]
    pair = probability[:, :2] / probability[:, :2].sum(axis=1, keepdims=True)
    for rule in ("balanced", "accuracy"):
        offsets = fit(rule, probability, target)
        assert offsets[2] == 0
        # the others are those of the two classes alone
        np.testing.assert_allclose(offsets[:2], fit(rule, pair, target), atol=1e-4)
    assert fit("recall_floor", probability, target, positive=2).tolist() == [0, 0, 0]
    assert fit("balanced", probability[:0], target[:0]).tolist() == [0, 0, 0]
    few, labels = probability[:20].copy(), target[:20]
    few[[3, 5], 1] = np.nan
    with pytest.raises(UserError, match=r"decision=balanced: 2 of 20 predictions .* not finite"):
        fit("balanced", few, labels)


def test_figures_are_those_of_the_decisions() -> None:
    val, test = made_up(1, images=300, nets=1)[0], made_up(2, images=200, nets=1)[0]
    columns = [f"p/{name}" for name in CLASSES]
    for split, fitted_on in ((val, None), (test, val)):
        values = evaluate(split, "argmax", fitted_on)[1]
        for rule in FITTED:
            decided = with_decisions(split, rule, fitted_on)[f"decision/{rule}"]
            matrix = confusion_matrix(split["label"], decided, labels=CLASSES)
            recalls = np.diag(matrix) / matrix.sum(axis=1)
            others = np.delete(matrix, 1, axis=0)
            for name, value in {
                "balanced_accuracy": recalls.mean(),
                "recall/mel": recalls[1],
                "accuracy": np.trace(matrix) / matrix.sum(),
                "specificity/mel": 1 - others[:, 1].sum() / others.sum(),
            }.items():
                assert values[f"decision/{rule}/{name}"] == pytest.approx(value)
    # what is applied to test: offsets of all of validation, by hand
    offsets = fit("balanced", val[columns].to_numpy(), pd.Categorical(val["label"], CLASSES).codes)
    by_hand = (np.log(test[columns].to_numpy(float)) + offsets).argmax(axis=1)
    table = with_decisions(test, "balanced", val)
    assert table["decision/balanced"].tolist() == [CLASSES[label] for label in by_hand]
    recorded = decision_rules.offsets_by_rule(val)
    assert list(recorded) == list(FITTED)
    assert list(recorded["balanced"].values()) == pytest.approx(offsets.tolist())
    # the rates of test at the threshold of validation
    score, is_melanoma = val["p/mel"].to_numpy(float), (val["label"] == "mel").to_numpy()
    threshold = choose(score, is_melanoma, TargetRate("sensitivity", 0.8)).value
    called, positive = test["p/mel"].astype(float) >= threshold, test["label"] == "mel"
    for rate, value in {
        "sensitivity": called[positive].mean(),
        "specificity": (~called)[~positive].mean(),
        "ppv": positive[called].mean(),
        "npv": (~positive)[~called].mean(),
    }.items():
        assert values[f"chosen/{rate}/mel"] == pytest.approx(value)


def test_decisions_are_what_the_bootstrap_counts() -> None:
    tables = [with_decisions(table, "balanced") for table in made_up(6)]
    predictions = gather(tables)
    assert predictions.rule == "balanced"
    recalls = [recall_score(t["label"], t["decision/balanced"], average="macro") for t in tables]
    table = intervals(tables, ["balanced_accuracy"], samples=20)
    assert table.loc[0, "estimate"] == pytest.approx(np.mean(recalls))
    mixed = gather([tables[0], made_up(6)[1]])  # each net by the rule of its own run
    np.testing.assert_array_equal(mixed.predicted[1], mixed.probability[1].argmax(axis=1))
    assert with_decisions(tables[0], "argmax").equals(made_up(6)[0])
    assert [name for name in with_decisions(tables[0], "accuracy") if "/" in name][
        -1
    ] == "decision/accuracy"
    wrong = tables[0].assign(**{"decision/balanced": "scc"})
    with pytest.raises(UserError, match="decision/balanced 'scc' is none of its classes"):
        gather([wrong])


def test_rules_that_cannot_be_fitted_are_refused() -> None:
    check("argmax", ("a", "b"), False)
    check("balanced", ("a", "b"), True)
    check("recall_floor", ("a", "Melanoma"), True)
    with pytest.raises(ConfigError, match="decision: accuracy is fitted on validation, which is"):
        check("accuracy", ("a", "b"), False)
    with pytest.raises(ConfigError, match="recall_floor needs a class that is called one of mel"):
        check("recall_floor", ("a", "b"), True)
    two = ("benign", "other")
    probability, target = simulated(np.array([0.7, 0.3]), np.array([0.5, 0.5]), 60)
    names = {name.split("/")[1] for name in evaluate(frame(probability, target, two), "argmax")[1]}
    assert names == {"balanced", "accuracy"}  # no melanoma, no floor and no threshold
