import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk
from torch import Tensor

from src.core.errors import ConfigError
from src.metrics.classification import ClassificationMetrics, mean_auroc, probabilities

HAM = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")


def batches(k: int, present: list[int], n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Probabilities with ties among them, and labels out of `present`."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(1, 6, (n, k), generator=generator).float()
    target = torch.tensor(present)[torch.randint(len(present), (n,), generator=generator)]
    return raw / raw.sum(1, keepdim=True), target


def reference_auroc(probability: np.ndarray, target: np.ndarray) -> float:
    k = probability.shape[1]
    areas = [
        sk.roc_auc_score(target == label, probability[:, label])
        for label in ([1] if k == 2 else range(k))
        if 0 < (target == label).sum() < len(target)
    ]
    return float(np.mean(areas)) if areas else math.nan


@given(
    st.integers(2, 7).flatmap(
        lambda k: st.tuples(st.just(k), st.sets(st.integers(0, k - 1), min_size=1))
    ),
    st.integers(1, 60),
    st.integers(0, 999),
)
def test_auroc_is_scikit_learns_over_the_classes_that_have_one(
    classes: tuple[int, set[int]], n: int, seed: int
) -> None:
    probability, target = batches(classes[0], sorted(classes[1]), n, seed)
    expected = reference_auroc(probability.numpy(), target.numpy())
    assert mean_auroc(probability, target) == pytest.approx(expected, abs=1e-5, nan_ok=True)


@pytest.mark.parametrize("k", [3, 7])
def test_auroc_with_all_classes_present_is_the_usual_macro_average(k: int) -> None:
    target = batches(k, list(range(k)), 500, 0)[1]
    logits = torch.randn(500, k, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    probability = probabilities(logits)
    expected = sk.roc_auc_score(target, probability, multi_class="ovr")
    assert mean_auroc(probability, target) == pytest.approx(expected, abs=1e-5)


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
    defined = {
        f"recall/{name}": value
        for name, value in zip(HAM, recall, strict=True)
        if not math.isnan(value)
    }
    assert {
        key: value for key, value in values.items() if key.startswith("recall/")
    } == pytest.approx(defined)
    assert {f"recall/{HAM[label]}" for label in present} == defined.keys()
    assert set(values) - defined.keys() == {
        "accuracy",
        "balanced_accuracy",
        "macro_f1",
        "auroc",
    } | {f"{measure}/{name}" for measure in ("precision", "f1", "specificity") for name in HAM}
    expected = sk.confusion_matrix(true, predicted, labels=range(7))
    np.testing.assert_array_equal(metrics.confusion().numpy(), expected)


def test_two_classes_are_judged_by_the_second() -> None:
    logits, target = torch.tensor([[-2.0], [0.5], [1.0], [-0.5]]), torch.tensor([0, 0, 1, 1])
    metrics = ClassificationMetrics(("benign", "malignant"))
    metrics.update(probabilities(logits), target)
    values = metrics.compute()
    assert values["auroc"] == pytest.approx(sk.roc_auc_score(target, logits[:, 0]))
    assert values["recall/malignant"] == 0.5
    assert values["specificity/malignant"] == values["recall/benign"] == 0.5


def test_one_class_alone_has_no_auroc() -> None:
    metrics = ClassificationMetrics(("a", "b"))
    metrics.update(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0, 0]))
    assert metrics.compute() == pytest.approx(
        {
            "accuracy": 0.5,
            "balanced_accuracy": 0.5,
            "macro_f1": 1 / 3,  # b was predicted: it counts, with 0
            "recall/a": 0.5,
            "precision/a": 1.0,
            "precision/b": 0.0,
            "f1/a": 2 / 3,
            "f1/b": 0.0,
            "specificity/b": 0.5,
        }
    )


def test_reset_forgets_and_pickle_keeps() -> None:
    probability, target = batches(3, [0, 1, 2], 30, 2)
    metrics = ClassificationMetrics(("a", "b", "c"))
    metrics.update(probability, target)
    before = metrics.compute()
    assert pickle.loads(pickle.dumps(metrics)).compute() == before
    metrics.reset()
    assert metrics.confusion().sum() == 0
    metrics.update(probability, target)
    assert metrics.compute() == before


def rank_of_two(rank: int, folder: str) -> None:
    """One of two ranks, with its own part of the images; each writes what it computed."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    probability, target = batches(4, [0, 1, 3], 50, 3)
    metrics = ClassificationMetrics(("a", "b", "c", "d"))
    for rows in (torch.arange(27).split(20), torch.arange(27, 50).split(30))[rank]:  # unequal parts
        metrics.update(probability[rows], target[rows])
    Path(folder, f"{rank}.json").write_text(json.dumps(metrics.compute()))
    torch.distributed.destroy_process_group()


def test_two_processes_measure_what_one_does(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(rank_of_two, (str(tmp_path),), nprocs=2)
    metrics = ClassificationMetrics(("a", "b", "c", "d"))
    metrics.update(*batches(4, [0, 1, 3], 50, 3))
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == pytest.approx(
            metrics.compute()
        )


@pytest.mark.parametrize(
    "name", ["mel@1", "naïve", "a:b", "", "../x", "a//b", "a/", "./a", "tab\t"]
)
def test_name_that_no_metric_can_have_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="^classes: must be made of"):
        ClassificationMetrics(("nv", name))


@pytest.mark.parametrize("classes", [(), ("a",), ("a", "b", "a")])
def test_classes_must_be_several_and_different(classes: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="^classes: must be two or more different"):
        ClassificationMetrics(classes)


def test_names_may_hold_what_mlflow_allows() -> None:
    names = ("Actinic keratosis", "benign/other", "type-1.b_2")
    assert ClassificationMetrics(names).classes == names


@pytest.mark.parametrize(("shape", "n"), [((4, 2), 4), ((4, 3), 5), ((4,), 4)])
def test_batch_of_another_shape_is_refused(shape: tuple[int, ...], n: int) -> None:
    with pytest.raises(ValueError, match=r"expected probabilities \(N, 3\)"):
        ClassificationMetrics(("a", "b", "c")).update(
            torch.zeros(shape), torch.zeros(n, dtype=torch.int64)
        )


def test_probabilities_of_both_conventions() -> None:
    z = torch.randn(6, 1)
    torch.testing.assert_close(probabilities(z), torch.cat([1 - z.sigmoid(), z.sigmoid()], 1))
    many = torch.randn(6, 5)
    torch.testing.assert_close(probabilities(many), many.softmax(1))
