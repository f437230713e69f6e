"""The machine against scikit-learn's own, its state, and what it refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.preprocessing import MinMaxScaler
from sklearn.svm import SVC

from src.core.config import check
from src.core.errors import ConfigError, DataError, UserError
from src.models import radiomics
from src.models.fit_once import TrainingSet, is_fit_once
from src.models.svm import KERNELS, Kernel, KernelMachine, RadiomicsSVM, fit, folds_of
from src.training.checkpoint import load_weights

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


def training_set(classes: int = 2, n: int = 24, **changes: Any) -> TrainingSet:
    """Grey pictures, each class brighter than the last."""
    random = np.random.default_rng(1)
    labels = np.arange(n) % classes
    images = (
        np.clip(random.normal(60 + 60 * labels, 25, (8, 8, 3, n)), 0, 255)
        .astype(np.uint8)
        .transpose(3, 0, 1, 2)
    )
    names = ["benign", "mel", "other"][:classes]
    given = {
        "rows": np.arange(n),
        "groups": None,
        "classes": names,
        "oversample": None,
        "seed": 0,
        **changes,
    }
    return TrainingSet(images=np.ascontiguousarray(images), labels=labels, **given)


def as_input(training: TrainingSet) -> torch.Tensor:
    return torch.from_numpy(training.images).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("cost", "clip"), [(0.5, False), (20.0, True)])
def test_decision_values_are_those_of_scikit_learn(kernel: Kernel, cost: float, clip: bool) -> None:
    known, labels = points()
    unknown = points(n=50)[0][::-1] * 1.3
    scaler = MinMaxScaler(clip=clip).fit(known)
    theirs = SVC(kernel=kernel, C=cost, tol=1e-8).fit(scaler.transform(known), labels)
    expected = theirs.decision_function(scaler.transform(unknown))
    # the same support vectors: the two ways to evaluate them agree to the last digits
    copied = KernelMachine(
        kernel,
        theirs._gamma,
        scaler.data_min_,
        scaler.scale_,
        theirs.support_vectors_,
        theirs.dual_coef_,
        theirs.intercept_,
        clip,
    )
    np.testing.assert_allclose(copied.decide(unknown)[:, 0], expected, rtol=1e-9, atol=1e-9)
    # a fit of our own: within the solver's tolerance
    ours = next(fit(known, labels, 1, kernel, [cost], np.ones(2), clip))
    assert ours.gamma == pytest.approx(theirs._gamma)
    np.testing.assert_allclose(ours.decide(unknown)[:, 0], expected, atol=0.02)


def test_several_classes_stand_each_against_the_rest() -> None:
    known, labels = points(3)
    scaled = MinMaxScaler().fit_transform(known)
    weights = np.array([1.0, 3.0, 0.5])
    ours = next(fit(known, labels, 3, "rbf", [2.0], weights)).decide(known)
    for label in range(3):
        theirs = SVC(kernel="rbf", C=2.0).fit(
            scaled, labels == label, sample_weight=weights[labels]
        )
        np.testing.assert_allclose(ours[:, label], theirs.decision_function(scaled), atol=5e-3)


def test_a_class_weight_is_a_repetition() -> None:
    known, labels = points()
    twice = np.concatenate([np.arange(len(labels)), np.flatnonzero(labels == 1)])
    weighted = next(fit(known, labels, 1, "linear", [1.0], np.array([1.0, 2.0])))
    repeated = next(fit(known[twice], labels[twice], 1, "linear", [1.0], np.ones(2)))
    np.testing.assert_allclose(weighted.decide(known), repeated.decide(known), atol=0.02)
    # 9 and 3 images: half of the larger class is 4.5, so each of the three counts 4.5 / 3 times
    few = training_set(rows=np.concatenate([np.arange(0, 24, 2)[:9], np.arange(1, 24, 2)[:3]]))
    fitted_labels = few.labels[few.rows]
    plain = RadiomicsSVM(1, **SETTINGS)
    assert plain.cost_factors(fitted_labels, 2, oversample=0.5).tolist() == [1.0, 4.5 / 3]
    balanced = RadiomicsSVM(1, **SETTINGS, class_weight="balanced")
    factors = balanced.cost_factors(fitted_labels, 2, oversample=None)
    assert factors.tolist() == pytest.approx([12 / 18, 12 / 6])


@pytest.mark.parametrize("classes", [2, 3])
def test_checkpoint_gives_the_same_decisions_and_is_tensors_only(
    tmp_path: Path, classes: int
) -> None:
    training = training_set(classes)
    outputs = 1 if classes == 2 else classes
    net = RadiomicsSVM(outputs, **SETTINGS)
    assert is_fit_once(net)
    assert not net.fitted
    assert net(as_input(training)).tolist() == [[0.0] * outputs] * 24
    net.fit_once(training)
    assert net.fitted
    decided = net(as_input(training))
    assert decided.shape == (24, outputs)
    guess = (decided[:, 0] > 0).long() if classes == 2 else decided.argmax(dim=1)
    assert (guess.numpy() == training.labels).mean() > 0.8
    torch.save({"state_dict": net.state_dict()}, tmp_path / "best.ckpt")
    again = RadiomicsSVM(outputs, **SETTINGS)
    load_weights(again, tmp_path / "best.ckpt")  # weights_only
    assert torch.equal(again(as_input(training)), decided)
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_state_of_another_machine_is_refused(tmp_path: Path) -> None:
    net = RadiomicsSVM(1, **SETTINGS)
    net.fit_once(training_set())
    state = net.state_dict()
    path = tmp_path / "best.ckpt"
    torch.save({"state_dict": state}, path)
    with pytest.raises(UserError, match="not a checkpoint of this network"):
        load_weights(RadiomicsSVM(1, **{**SETTINGS, "bins": 3}), path)
    with pytest.raises(UserError, match="not a checkpoint of this network"):
        load_weights(RadiomicsSVM(3, **SETTINGS), path)
    torch.save({"state_dict": state | {"kernel": torch.tensor(9)}}, path)
    with pytest.raises(UserError, match="not a checkpoint of this network"):
        load_weights(RadiomicsSVM(1, **SETTINGS), path)


def test_sample_is_seeded_and_keeps_each_class_share() -> None:
    def fitted(seed: int) -> np.ndarray:
        return (
            RadiomicsSVM(1, **SETTINGS, max_samples=12).fit_once(training_set(n=48, seed=seed)).rows
        )

    assert len(fitted(0)) == 12
    assert (fitted(0) % 2).sum() == 6  # labels alternate
    np.testing.assert_array_equal(fitted(0), fitted(0))
    assert not np.array_equal(fitted(0), fitted(1))


def test_search_table_holds_every_cell_and_marks_the_best_mean() -> None:
    table = (
        RadiomicsSVM(1, **{**SETTINGS, "costs": [0.1, 10.0]})
        .fit_once(training_set())
        .tables["search/grid.csv"]
    )
    assert list(zip(table["kernel"], table["C"], strict=True)) == [
        (kernel, cost) for kernel in ("linear", "rbf") for cost in (0.1, 10.0)
    ]
    assert table["chosen"].sum() == 1
    assert (
        table.loc[table["chosen"], "balanced_accuracy"].item() == table["balanced_accuracy"].max()
    )
    assert {"accuracy", "macro_f1", "auroc", "spread", "support_vectors", "seconds"} <= set(table)


def test_groups_stay_in_one_fold_and_images_need_not() -> None:
    labels = np.repeat([0, 1], 12)
    groups = np.repeat(np.arange(8), 3).astype(object)
    for train, held_out in folds_of(labels, groups, ["a", "b"], 3, 0):
        assert not set(groups[train]) & set(groups[held_out])
    for _, held_out in folds_of(labels, None, ["a", "b"], 3, 0):
        assert np.bincount(labels[held_out]).tolist() == [4, 4]


def test_features_of_the_forward_pass_are_those_of_the_pixels() -> None:
    training = training_set()
    net = RadiomicsSVM(1, **SETTINGS)
    net.fit_once(training)
    known = radiomics.extract(training.images, net.descriptors, net.bins)
    np.testing.assert_allclose(
        net(as_input(training)).numpy(), net.machine.decide(known), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.arange(0, 24, 2), "class mel has 0 images to fit on, fewer than the 3 folds"),
        (np.array([0, 2, 4, 6, 1, 3]), "class mel has 2 images to fit on, fewer than the 3 folds"),
    ],
)
def test_too_few_of_a_class_is_one_line(rows: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        RadiomicsSVM(1, **SETTINGS).fit_once(training_set(rows=rows))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"kernels": ["linear", "cosine"]}, "model.net.kernels"),
        ({"costs": [0.0]}, "model.net.costs"),
        ({"descriptors": []}, "model.net.descriptors"),
        ({"bins": 1}, "model.net.bins"),
        ({"folds": 1}, "model.net.folds"),
        ({"class_weight": "even"}, "model.net.class_weight"),
        ({"kernel": "rbf"}, "model.net.kernel: unknown key"),
    ],
)
def test_impossible_settings_name_their_key(change: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key) as caught:
        check({"model": {"net": {"_target_": "src.models.svm.RadiomicsSVM", **SETTINGS, **change}}})
    assert "\n" not in str(caught.value)
