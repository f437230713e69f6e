"""The machine against scikit-learn's SVC, its state, its run record, and its errors."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.preprocessing import MinMaxScaler
from sklearn.svm import SVC

from src import run as runs
from src import train
from src.core.errors import ConfigError, DataError, UserError
from src.metrics.registry import PRIMARY, parse_limits, parse_objectives
from src.models import radiomics
from src.models.fit_once import is_fit_once
from src.models.svm import KERNELS, Kernel, KernelMachine, RadiomicsSVM, fit, folds_of
from src.models.weights import load_weights
from src.reporting.comparison import test_run as evaluate_on_test
from src.tracking import read
from src.tracking.store import Store

SETTINGS: dict[str, Any] = {
    "descriptors": ["hu", "histogram"],
    "bins": 2,
    "kernels": ["linear", "rbf"],
    "costs": [1.0],
}


def points(classes: int = 2, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    labels = np.arange(n) % classes
    return random.normal(size=(n, 5)) * [1, 10, 0.1, 5, 1] + labels[:, None], labels


def data_of(classes: int = 2, n: int = 24, rows: Any = None) -> Any:
    """What a fit reads of a data module: grey images, each class brighter than the one before."""
    labels = np.arange(n) % classes
    levels = np.random.default_rng(1).normal(60 + 60 * labels, 25, (8, 8, 3, n))
    images = np.clip(levels, 0, 255).astype(np.uint8).transpose(3, 0, 1, 2)
    return SimpleNamespace(
        cache=SimpleNamespace(images=np.ascontiguousarray(images)),
        labels=labels,
        rows=lambda split: np.arange(n) if rows is None else np.array(rows),
        split_mode="image",
        classes=["benign", "mel", "other"][:classes],
        oversample=None,
    )


def as_input(data: Any) -> torch.Tensor:
    return torch.from_numpy(data.cache.images).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("cost", "clip"), [(0.5, False), (20.0, True)])
def test_decision_values_are_those_of_scikit_learn(kernel: Kernel, cost: float, clip: bool) -> None:
    training, labels = points()
    others = points(n=50)[0][::-1] * 1.3
    scaler = MinMaxScaler(clip=clip).fit(training)
    theirs = SVC(kernel=kernel, C=cost, tol=1e-8).fit(scaler.transform(training), labels)
    expected = theirs.decision_function(scaler.transform(others))
    # the same support vectors: equal to the last digits
    scaling = scaler.data_min_, scaler.scale_
    vectors = theirs.support_vectors_, theirs.dual_coef_, theirs.intercept_
    copied = KernelMachine(kernel, theirs._gamma, *scaling, *vectors, clip)
    np.testing.assert_allclose(copied.decide(others)[:, 0], expected, rtol=1e-9, atol=1e-9)
    # our fit: equal within the tolerance of the solver
    ours = next(fit(training, labels, 1, kernel, [cost], np.ones(2), clip))
    assert ours.gamma == pytest.approx(theirs._gamma)
    np.testing.assert_allclose(ours.decide(others)[:, 0], expected, atol=0.02)


def test_several_classes_are_fitted_against_the_rest() -> None:
    training, labels = points(3)
    scaled = MinMaxScaler().fit_transform(training)
    weights = np.array([1.0, 3.0, 0.5])
    ours = next(fit(training, labels, 3, "rbf", [2.0], weights)).decide(training)
    for label in range(3):
        theirs = SVC(kernel="rbf", C=2.0)
        theirs.fit(scaled, labels == label, sample_weight=weights[labels])
        np.testing.assert_allclose(ours[:, label], theirs.decision_function(scaled), atol=5e-3)


def test_class_weight_is_a_repetition() -> None:
    training, labels = points()
    twice = np.concatenate([np.arange(len(labels)), np.flatnonzero(labels == 1)])
    weighted = next(fit(training, labels, 1, "linear", [1.0], np.array([1.0, 2.0])))
    repeated = next(fit(training[twice], labels[twice], 1, "linear", [1.0], np.ones(2)))
    np.testing.assert_allclose(weighted.decide(training), repeated.decide(training), atol=0.02)
    # 9 and 3 images: half of the larger class is 4.5, so each of the three counts 4.5 / 3 times
    few = np.repeat([0, 1], [9, 3])
    plain = RadiomicsSVM(1, **SETTINGS)
    assert plain.cost_factors(few, 2, oversample=0.5).tolist() == [1.0, 4.5 / 3]
    balanced = RadiomicsSVM(1, **SETTINGS, class_weight="balanced")
    factors = balanced.cost_factors(few, 2, oversample=None).tolist()
    assert factors == pytest.approx([12 / 18, 12 / 6])


@pytest.mark.parametrize("classes", [2, 3])
def test_checkpoint_gives_the_same_decisions(tmp_path: Path, classes: int) -> None:
    data = data_of(classes)
    outputs = 1 if classes == 2 else classes
    net = RadiomicsSVM(outputs, **SETTINGS)
    assert is_fit_once(net)
    assert not net.fitted
    assert net(as_input(data)).tolist() == [[0.0] * outputs] * 24
    net.fit_once(data, 0)
    assert net.fitted
    decisions = net(as_input(data))
    features = radiomics.extract(data.cache.images, net.descriptors, net.bins)
    np.testing.assert_allclose(decisions.numpy(), net.machine.decide(features), rtol=1e-6)
    guess = (decisions[:, 0] > 0).long() if classes == 2 else decisions.argmax(dim=1)
    assert (guess.numpy() == data.labels).mean() > 0.8
    torch.save({"state_dict": net.state_dict()}, tmp_path / "best.ckpt")
    again = RadiomicsSVM(outputs, **SETTINGS)
    load_weights(again, tmp_path / "best.ckpt")  # weights_only
    assert torch.equal(again(as_input(data)), decisions)
    assert not any(parameter.requires_grad for parameter in again.parameters())


@pytest.mark.parametrize(
    ("outputs", "bins", "state"), [(1, 3, {}), (3, 2, {}), (1, 2, {"kernel": torch.tensor(9)})]
)
def test_state_of_another_machine_is_refused(
    tmp_path: Path, outputs: int, bins: int, state: dict[str, torch.Tensor]
) -> None:
    net = RadiomicsSVM(1, **SETTINGS)
    net.fit_once(data_of(), 0)
    torch.save({"state_dict": net.state_dict() | state}, tmp_path / "best.ckpt")
    with pytest.raises(UserError, match="not a checkpoint of this network"):
        load_weights(RadiomicsSVM(outputs, **SETTINGS | {"bins": bins}), tmp_path / "best.ckpt")


def test_sample_is_seeded_and_stratified() -> None:
    data, net = data_of(n=48), RadiomicsSVM(1, **SETTINGS, max_samples=12)
    first, same, other = (net.fit_once(data, seed).rows for seed in (0, 0, 1))
    assert len(first) == 12
    assert (first % 2).sum() == 6  # labels alternate
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)


def test_search_table_holds_every_cell_and_marks_the_best_mean() -> None:
    net = RadiomicsSVM(1, **SETTINGS | {"costs": [0.1, 10.0]})
    table = net.fit_once(data_of(), 0).tables["search/grid.csv"]
    cells = list(zip(table["kernel"], table["C"], strict=True))
    assert cells == [(kernel, cost) for kernel in ("linear", "rbf") for cost in (0.1, 10.0)]
    assert table["chosen"].sum() == 1
    assert table.loc[table["chosen"], PRIMARY].item() == table[PRIMARY].max()
    assert {"accuracy", "macro_f1", "auroc", "spread", "support_vectors", "seconds"} <= set(table)


def test_groups_stay_in_one_fold() -> None:
    labels = np.repeat([0, 1], 12)
    groups = np.repeat(np.arange(8), 3).astype(object)
    for train_rows, held_out in folds_of(labels, groups, ["a", "b"], 3, 0):
        assert not set(groups[train_rows]) & set(groups[held_out])
    for _, held_out in folds_of(labels, None, ["a", "b"], 3, 0):
        assert np.bincount(labels[held_out]).tolist() == [4, 4]


@pytest.mark.parametrize(("rows", "count"), [(range(0, 24, 2), 0), ([0, 2, 4, 6, 1, 3], 2)])
def test_too_few_images_of_a_class(rows: Any, count: int) -> None:
    message = f"class mel has {count} images to fit on, fewer than the 3 folds"
    with pytest.raises(DataError, match=message) as caught:
        RadiomicsSVM(1, **SETTINGS).fit_once(data_of(rows=rows), 0)
    assert "\n" not in str(caught.value)


def test_unknown_score_is_refused() -> None:
    with pytest.raises(ConfigError, match="score: must be one of .*but got 'speed'"):
        RadiomicsSVM(1, **SETTINGS, score="speed")


def test_run_has_the_record_of_a_network_without_flops_and_epochs(
    empty_database: Path,
    tmp_path: Path,
    run_entry: Callable[..., tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "mlflow.db").write_bytes(empty_database.read_bytes())
    store = Store(experiment="paretoderm", folder=tmp_path, uri=f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    status, output = run_entry(
        train.main,
        *("experiment=smoke", "model=svm", "augment=none", "model.net.bins=2"),
        *("model.net.kernels=[linear,rbf]", "model.net.costs=[1]"),
        *("model.net.descriptors=[hu,histogram]", f"tracking.uri={store.uri}"),
    )
    assert status == 0, output
    (run,) = (row for _, row in read.runs(store).iterrows())
    assert run["status"] == "FINISHED"
    costs = ("params", "size_mb", "latency_ratio", "peak_memory_mb", "latency_ms/b1/p50")
    expected = [f"{split}/{name}" for split in ("best/val", "test") for name in ("loss", PRIMARY)]
    expected += [f"efficiency/{name}" for name in (*costs, "throughput")] + ["time/fit_s"]
    assert [name for name in expected if pd.isna(run.get(f"metrics.{name}"))] == []
    assert not [name for name in run.index if "flops" in name and name.startswith("metrics.")]
    assert "metrics.best/epoch" not in run
    assert run["metrics.efficiency/trainable_params"] == 0
    assert run["metrics.data/images/fitted"] == run["metrics.data/images/train"]
    assert run["tags.weights"] == "none"
    assert run["tags.chosen_by"] == f"train: 3-fold cross-validation, grouped, mean {PRIMARY}"
    folder = read.artifact(store, run["run_id"], "")
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names >= {
        *("config.yaml", "overrides.txt", "environment.json", "efficiency.json"),
        *("checkpoint/best.ckpt", "predictions/val.csv", "predictions/test.csv"),
        *("per_class/test.csv", "search/grid.csv", "search/sample.csv"),
        *("figures/contact_sheet.png", "figures/confusion_test.png"),
    }
    assert "figures/learning_curves.png" not in names
    sample, grid = (pd.read_csv(folder / "search" / name) for name in ("sample.csv", "grid.csv"))
    tested = set(pd.read_csv(folder / "predictions" / "test.csv")["image_id"])
    assert len(sample) == run["metrics.data/images/train"]
    assert not tested & set(sample["image_id"])
    assert f"{grid.loc[grid['chosen'], 'kernel'].item()}, C=" in run["tags.svm"]
    state = torch.load(folder / "checkpoint" / "best.ckpt", weights_only=True)["state_dict"]
    numbers = sum(tensor.numel() for tensor in state.values()) - 1  # without the kernel's number
    assert run["metrics.efficiency/params"] == numbers
    before = {name: run[f"metrics.{name}"] for name in expected if name.startswith("test/")}
    # from the checkpoint, whose shapes depend on the fit
    again = evaluate_on_test(store, run["run_id"])
    assert {name: again[name] for name in before} == pytest.approx(before, abs=1e-6)


@pytest.mark.parametrize("objective", ["efficiency/flops", "efficiency/latency_ratio"])
def test_study_over_flops_prunes_a_model_without_them(objective: str) -> None:
    outcomes: list[Any] = []
    plain = {"objectives": [{"metric": f"val/{PRIMARY}"}, {"metric": objective}]}
    context: Any = SimpleNamespace(
        objectives=parse_objectives(plain),
        limits=parse_limits(plain),
        give_up=lambda state, kind, reason: outcomes.append(f"{state}: {reason}"),
        commit=lambda metrics: outcomes.append("complete"),
    )
    metrics = {f"best/val/{PRIMARY}": 0.5, "efficiency/latency_ratio": 2.0}
    runs._commit(context, metrics)
    runs._commit(context, {**metrics, "efficiency/flops": 3.0})
    no_flops = "this model has no efficiency/flops; it is in the comparison, but not on the front"
    pruned = objective == "efficiency/flops"
    assert outcomes == [f"pruned: {no_flops}" if pruned else "complete", "complete"]
