"""The metrics that training records against scikit-learn and hand arithmetic."""

import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from clinical_cases import frame
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from torch import Tensor

from src.core.errors import ConfigError
from src.metrics.bootstrap import intervals
from src.metrics.classification import ClassificationMetrics, mean_auroc, probabilities
from src.metrics.registry import (
    METRICS,
    Metric,
    class_metrics,
    count_metrics,
    overall_metrics,
    parse_objectives,
    short_label,
)

HAM = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")


def batches(k: int, present: list[int], n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Probabilities with ties among them, and labels out of `present`."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(1, 6, (n, k), generator=generator).float()
    target = torch.tensor(present)[torch.randint(len(present), (n,), generator=generator)]
    return raw / raw.sum(1, keepdim=True), target


def reference_auroc(probability: np.ndarray, target: np.ndarray) -> float:
    k = probability.shape[1]
    labels = [1] if k == 2 else range(k)
    kinds = [(target == label, probability[:, label]) for label in labels]
    areas = [sk.roc_auc_score(*kind) for kind in kinds if 0 < kind[0].sum() < len(target)]
    return float(np.mean(areas)) if areas else math.nan


CLASSES = st.integers(2, 7).flatmap(
    lambda k: st.tuples(st.just(k), st.sets(st.integers(0, k - 1), min_size=1))
)


@given(CLASSES, st.integers(1, 60), st.integers(0, 999))
@settings(max_examples=50)
def test_auroc_is_scikit_learns_over_the_classes_that_have_one(
    classes: tuple[int, set[int]], n: int, seed: int
) -> None:
    probability, target = batches(classes[0], sorted(classes[1]), n, seed)
    expected = reference_auroc(probability.numpy(), target.numpy())
    assert mean_auroc(probability, target) == pytest.approx(expected, abs=1e-5, nan_ok=True)


@pytest.mark.parametrize("present", [list(range(7)), [0, 5]])
def test_epoch_in_batches_has_the_keys_and_values_of_the_run_record(present: list[int]) -> None:
    probability, target = batches(7, present, 200, 1)
    metrics = ClassificationMetrics(HAM)
    for rows in torch.arange(200).split(64):
        metrics.update(probability[rows], target[rows])
    values = metrics.compute()
    predicted, true = probability.argmax(1).numpy(), target.numpy()
    assert all(type(value) is float and 0 <= value <= 1 for value in values.values())
    assert values["accuracy"] == pytest.approx(sk.accuracy_score(true, predicted))
    assert values["auroc"] == pytest.approx(reference_auroc(probability.numpy(), true), abs=1e-5)
    recall = sk.recall_score(true, predicted, labels=range(7), average=None, zero_division=math.nan)
    recalls = {f"recall/{name}": value for name, value in zip(HAM, recall, strict=True)}
    defined = {f"recall/{HAM[label]}" for label in present}
    assert {name for name in values if name.startswith("recall/")} == defined
    for name in defined:
        assert values[name] == pytest.approx(recalls[name])
    others = {f"{measure}/{name}" for measure in ("precision", "f1", "specificity") for name in HAM}
    assert set(values) == defined | others | set(overall_metrics())
    expected = sk.confusion_matrix(true, predicted, labels=range(7))
    np.testing.assert_array_equal(metrics.confusion().numpy(), expected)
    assert overall_metrics() == ["accuracy", "balanced_accuracy", "macro_f1", "auroc"]
    assert class_metrics() == ["recall", "precision", "f1", "specificity"]


def test_two_classes_are_judged_by_the_second() -> None:
    logits, target = torch.tensor([[-2.0], [0.5], [1.0], [-0.5]]), torch.tensor([0, 0, 1, 1])
    metrics = ClassificationMetrics(("benign", "malignant"))
    metrics.update(probabilities(logits), target)
    values = metrics.compute()
    assert values["auroc"] == pytest.approx(sk.roc_auc_score(target, logits[:, 0]))
    assert values["recall/malignant"] == 0.5
    assert values["specificity/malignant"] == values["recall/benign"] == 0.5
    one = probabilities(logits)
    torch.testing.assert_close(one, torch.cat([1 - logits.sigmoid(), logits.sigmoid()], 1))
    many = torch.randn(6, 5)
    torch.testing.assert_close(probabilities(many), many.softmax(1))


def test_one_class_alone_has_no_auroc() -> None:
    metrics = ClassificationMetrics(("a", "b"))
    metrics.update(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0, 0]))
    expected = {"accuracy": 0.5, "balanced_accuracy": 0.5}
    expected |= {"macro_f1": 1 / 3}  # b was predicted: it counts, with 0
    expected |= {"recall/a": 0.5, "precision/a": 1.0, "f1/a": 2 / 3}
    expected |= {"precision/b": 0.0, "f1/b": 0.0, "specificity/b": 0.5}
    assert metrics.compute() == pytest.approx(expected)


def test_reset_and_pickle_and_parts_of_several_processes() -> None:
    probability, target = batches(4, [0, 1, 3], 50, 3)
    metrics = ClassificationMetrics(tuple("abcd"))
    metrics.update(probability, target)
    expected = metrics.compute()
    assert pickle.loads(pickle.dumps(metrics)).compute() == expected
    metrics.reset()
    assert metrics.confusion().sum() == 0
    metrics.update(probability, target)
    assert metrics.compute() == expected
    parts = []
    for rows in (torch.arange(27), torch.arange(27, 50)):  # unequal parts
        metrics = ClassificationMetrics(tuple("abcd"))
        for batch in rows.split(20):
            metrics.update(probability[batch], target[batch])
        parts.append(metrics)
    parts[0].merge_state(parts[1])  # by each state's dist_reduce_fx, as between processes
    assert parts[0].compute() == pytest.approx(expected)


@pytest.mark.parametrize(("shape", "n"), [((4, 2), 4), ((4, 3), 5), ((4,), 4)])
def test_batch_of_another_shape_is_refused(shape: tuple[int, ...], n: int) -> None:
    metrics = ClassificationMetrics(("a", "b", "c"))
    with pytest.raises(ValueError, match=r"expected probabilities \(N, 3\)"):
        metrics.update(torch.zeros(shape), torch.zeros(n, dtype=torch.int64))


BAD_NAMES = ["mel@1", "a\x1b[31m", "a|b", "", "../x", "a//b", "a/", "./a", "tab\t"]


@pytest.mark.parametrize(
    ("classes", "problem"),
    [
        *((("nv", name), "must be made of") for name in BAD_NAMES),
        *((tuple(names), "must be two or more different") for names in ("", "a", "aba")),
    ],
)
def test_bad_class_names_are_refused(classes: tuple[str, ...], problem: str) -> None:
    with pytest.raises(ConfigError, match=f"^classes: {problem}"):
        ClassificationMetrics(classes)


def test_names_may_hold_what_mlflow_allows() -> None:
    names = ("Actinic keratosis", "benign/other", "type-1.b_2", "nævus é", "黑", "a: b")
    assert ClassificationMetrics(names).classes == names


# a number of classes, any of which may be absent, then pairs of true and predicted labels
LABELS = st.integers(2, 7).flatmap(
    lambda k: st.tuples(
        st.just(k),
        st.lists(st.tuples(st.integers(0, k - 1), st.integers(0, k - 1)), min_size=1, max_size=40),
    )
)


@given(LABELS)
@settings(max_examples=50)
def test_count_metrics_are_those_of_scikit_learn(drawn: tuple[int, list[tuple[int, int]]]) -> None:
    k, pairs = drawn
    true, predicted = np.array(pairs).T
    matrix = sk.confusion_matrix(true, predicted, labels=range(k))
    values = count_metrics(matrix, [str(label) for label in range(k)])
    options = {"labels": range(k), "average": None, "zero_division": math.nan}
    expected = {
        "recall": sk.recall_score(true, predicted, **options),
        "precision": sk.precision_score(true, predicted, **options),
        "f1": sk.f1_score(true, predicted, **options),
        # the specificity is the recall of "not this class"
        "specificity": [
            sk.recall_score(true != label, predicted != label, zero_division=math.nan)
            for label in range(k)
        ],
    }
    for measure, of_classes in expected.items():
        computed = [values[f"{measure}/{label}"] for label in range(k)]
        np.testing.assert_allclose(computed, of_classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes that are predicted and absent
        for name, score in {
            "accuracy": sk.accuracy_score(true, predicted),
            "balanced_accuracy": sk.balanced_accuracy_score(true, predicted),
            "macro_f1": sk.f1_score(true, predicted, average="macro"),
        }.items():
            assert values[name] == pytest.approx(score)


def test_count_metrics_of_many_matrices() -> None:
    # The third class is neither there nor predicted.
    matrix = np.array([[8, 2, 0], [1, 3, 0], [0, 0, 0]])
    assert all(np.isnan(value) for value in count_metrics(0 * matrix, "abc").values())
    # Only the measures asked for are computed.
    both = count_metrics(np.stack([matrix, matrix.T]), "abc", ["recall/b", "accuracy"])
    assert both["recall/b"] == pytest.approx([3 / 4, 3 / 5])
    assert np.isnan(both["recall/c"]).all()
    assert set(both) == {"accuracy", "recall/a", "recall/b", "recall/c"}


def kappa(counts: np.ndarray) -> np.ndarray:
    total = counts.sum(axis=(-2, -1))
    chance = (counts.sum(axis=-1) * counts.sum(axis=-2)).sum(axis=-1) / total**2
    return (np.trace(counts, axis1=-2, axis2=-1) / total - chance) / (1 - chance)


def test_a_new_metric_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Metric("<split>/kappa", "Cohen's kappa", "kappa", from_counts=kappa)
    monkeypatch.setattr("src.metrics.registry.METRICS", [*METRICS, entry])
    probability, target = batches(3, [0, 1, 2], 90, 4)
    metrics = ClassificationMetrics(("a", "b", "c"))
    metrics.update(probability, target)
    expected = sk.cohen_kappa_score(target, probability.argmax(1))
    assert metrics.compute()["kappa"] == pytest.approx(expected)  # training records it
    assert short_label("best/val/kappa") == "kappa"  # tables label it
    [objective] = parse_objectives({"objectives": [{"metric": "val/kappa"}]})
    assert str(objective) == "maximize best/val/kappa"
    table = frame(probability.numpy(), target.numpy(), "abc")
    row = intervals([table], ["kappa"], samples=50).iloc[0]  # the bootstrap resamples it
    assert row["estimate"] == pytest.approx(expected)
    assert row["low"] < expected < row["high"]
