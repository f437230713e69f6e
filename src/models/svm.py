"""Radiomics SVM as a net: kernels, search over kernel and C."""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from annotated_types import Ge, Gt, Le, MinLen
from torch import Tensor, nn
from tqdm import tqdm

from src.core.errors import DataError
from src.losses.class_weights import balanced
from src.metrics.classification import ClassificationMetrics, probabilities
from src.models import radiomics
from src.models.fit_once import FitOnceRecord, TrainingSet
from src.models.radiomics import blas

Kernel = Literal["linear", "poly", "rbf", "sigmoid"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)
Values = npt.NDArray[np.float64]
DEGREE, COEF0 = (
    3,
    0.0,
)  # of the polynomial and sigmoid kernels; with gamma "scale", scikit-learn's defaults for an SVC
ABSENT = -1.0  # decision value of a class that has no image to learn from: the margin of a plain no
_CACHE_MB = 500


@dataclass(frozen=True)
class KernelMachine:
    """What is left of a fit.

    Attributes:
        kernel: Its name.
        gamma: Width of all kernels but the linear one.
        minimum: Of each feature in the training set, (F,).
        scale: What a feature is multiplied by once its minimum is off, (F,): 1 / range, or 1 where
            that is 0.
        support: Scaled features of the support vectors, (S, F).
        dual: Weight of each support vector in each decision value, (K, S).
        intercept: (K,).
        clip: Whether features beyond the training set's range count as its ends. A colour that
            hardly occurs there has a range near 0: where it occurs, its feature would be a hundred,
            and its cube decide alone.
    """

    kernel: Kernel
    gamma: float
    minimum: Values
    scale: Values
    support: Values
    dual: Values
    intercept: Values
    clip: bool = False

    def decide(self, features: Values) -> Values:
        """Decision values (N, K) of features (N, F); above 0: this class rather than the rest."""
        if len(self.support) == 0:
            return np.broadcast_to(self.intercept, (len(features), len(self.intercept))).copy()
        scaled = (features - self.minimum) * self.scale
        near = similarity(
            scaled.clip(0, 1) if self.clip else scaled, self.support, self.kernel, self.gamma
        )
        return near @ self.dual.T + self.intercept


def similarity(left: Values, right: Values, kernel: Kernel, gamma: float) -> Values:
    """Kernel matrix (N, M) of scaled features (N, F) and (M, F)."""
    from sklearn.metrics.pairwise import pairwise_kernels

    settings = {"gamma": gamma, "degree": DEGREE, "coef0": COEF0}
    return pairwise_kernels(left, right, metric=kernel, filter_params=True, **settings)


def fit(
    features: Values,
    labels: npt.NDArray[np.int64],
    outputs: int,
    kernel: Kernel,
    costs: Sequence[float],
    weights: Values,
    clip: bool = False,
) -> Iterator[KernelMachine]:
    """Fit a machine for each cost; the kernel matrix is computed once for all of them.

    Features are brought to [0, 1] by the least and greatest value of each. For several classes
    there is one machine a class, against all the rest.

    Args:
        features: (N, F).
        labels: 0 to K - 1, (N,).
        outputs: K; 1 for two classes, whose machine is that of label 1.
        kernel: One of `KERNELS`.
        costs: C, the price of an image on the wrong side of its margin.
        weights: What that price is multiplied by for each class, (2,) or (K,).
        clip: See `Machine`; it alters no fit.
    """
    from sklearn.preprocessing import MinMaxScaler

    scaler = MinMaxScaler().fit(features)
    scaled = (features - scaler.data_min_) * scaler.scale_
    spread = scaled.var()
    gamma = 1.0 / (scaled.shape[1] * spread) if spread > 0 else 1.0
    gram = similarity(scaled, scaled, kernel, gamma)
    for cost in costs:
        dual = np.zeros((outputs, len(labels)))
        intercept = np.full(outputs, ABSENT)
        for output in range(outputs):
            own = labels == (1 if outputs == 1 else output)
            if own.any():
                dual[output], intercept[output] = _against_the_rest(
                    gram, own, cost, weights[labels]
                )
        used = np.flatnonzero(dual.any(axis=0))
        yield KernelMachine(
            kernel,
            gamma,
            scaler.data_min_,
            scaler.scale_,
            scaled[used],
            dual[:, used],
            intercept,
            clip,
        )


def _against_the_rest(
    gram: Values, own: npt.NDArray[np.bool_], cost: float, weights: Values
) -> tuple[Values, float]:
    """Weight of every image and the intercept."""
    from sklearn.svm import SVC

    fitted = SVC(C=cost, kernel="precomputed", cache_size=_CACHE_MB).fit(
        gram, own, sample_weight=weights
    )
    dual = np.zeros(len(own))
    dual[fitted.support_] = fitted.dual_coef_[0]
    return dual, float(fitted.intercept_[0])


Score = Literal["accuracy", "balanced_accuracy", "macro_f1", "auroc"]


@dataclass(frozen=True)
class LabelledFeatures:
    """Features and what is known of their images.

    Attributes:
        features: float64 (N, F).
        labels: 0 to K - 1, (N,).
        groups: Lesion or patient, (N,), whose images stay in one fold; None: folds are dealt by
            image.
        classes: K names.
        weights: What C is multiplied by for each class, (K,).
        clip: Whether a machine clips features to the range of its training set.
    """

    features: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    groups: npt.NDArray[np.object_] | None
    classes: Sequence[str]
    weights: npt.NDArray[np.float64]
    clip: bool = False

    @property
    def outputs(self) -> int:
        """Decision values of a machine: one for two classes, else one a class."""
        return 1 if len(self.classes) == 2 else len(self.classes)

    def only(self, chosen: npt.NDArray[np.int64]) -> "LabelledFeatures":
        """Some of the images."""
        groups = None if self.groups is None else self.groups[chosen]
        return LabelledFeatures(
            self.features[chosen],
            self.labels[chosen],
            groups,
            self.classes,
            self.weights,
            self.clip,
        )


def grid(
    data: LabelledFeatures,
    kernels: Sequence[Kernel],
    costs: Sequence[float],
    folds: int,
    score: Score,
    seed: int,
    title: str,
) -> pd.DataFrame:
    """Every kernel with every C, each held against the fold that it has not seen; min-max scaling is fitted anew too.

    Args:
        data: The training images.
        kernels: To be tried.
        costs: Values of C to be tried.
        folds: Number of folds.
        score: What chooses, the mean over the folds; the first of equals.
        seed: Deals out the folds.
        title: Of the progress bar.

    Returns:
        A row a kernel and C: `kernel`, `C`, the mean over the folds of each score, `spread` (of the
        one that chooses: sample standard deviation over the folds), `support_vectors` (mean),
        `seconds` (all folds) and `chosen`.
    """
    found: list[dict[str, object]] = []
    bar = tqdm(total=folds * len(kernels), desc=title, unit="fit", leave=False, disable=None)
    with bar:
        for train, held_out in _folds(data, folds, seed):
            known, unknown = data.only(train), data.only(held_out)
            for kernel in kernels:
                found += _fold(known, unknown, kernel, costs)
                bar.update()
    by_cell = pd.DataFrame(found).groupby(["kernel", "C"], sort=False)
    table = by_cell.mean()
    table.insert(len(table.columns) - 2, "spread", by_cell[score].std())
    table["seconds"] *= folds
    table["chosen"] = table.index == table[score].idxmax()
    return table.reset_index()


def _fold(
    known: LabelledFeatures, unknown: LabelledFeatures, kernel: Kernel, costs: Sequence[float]
) -> Iterator[dict[str, object]]:
    began = time.perf_counter()
    machines = fit(
        known.features, known.labels, known.outputs, kernel, costs, known.weights, known.clip
    )
    for cost, machine in zip(costs, machines, strict=True):
        metrics = ClassificationMetrics(tuple(known.classes))
        decided = torch.from_numpy(machine.decide(unknown.features))
        metrics.update(probabilities(decided), torch.from_numpy(unknown.labels))
        values = metrics.compute()
        scores = {name: values.get(name, float("nan")) for name in Score.__args__}  # type: ignore[attr-defined]
        seconds, began = time.perf_counter() - began, time.perf_counter()
        yield {
            "kernel": kernel,
            "C": cost,
            **scores,
            "support_vectors": float(len(machine.support)),
            "seconds": seconds,
        }


def check_folds(
    labels: npt.NDArray[np.int64],
    groups: npt.NDArray[np.object_] | None,
    classes: Sequence[str],
    folds: int,
) -> None:
    """Whether every class can be in every fold.

    Raises:
        DataError: One cannot; the message names it.
    """
    units, what = (np.arange(len(labels)), "images") if groups is None else (groups, "groups")
    for label, name in enumerate(classes):
        count = len(set(units[labels == label]))
        if count < folds:
            raise DataError(
                f"class {name} has {count} {what} to fit on, fewer than the {folds} folds of the search: "
                "add images of it, or set model.net.folds or data.fractions to others"
            )


def _folds(
    data: LabelledFeatures, folds: int, seed: int
) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    kind = StratifiedKFold if data.groups is None else StratifiedGroupKFold
    return list(
        kind(folds, shuffle=True, random_state=seed).split(data.features, data.labels, data.groups)
    )


log = logging.getLogger(__name__)


class RadiomicsSVM(nn.Module):
    """Support vector machine on global descriptors: Sun & Sun 2023, section 3.2.

    It is fitted once: no epochs, no gradient, no augmentation. Its work is done by numpy on the
    CPU, wherever the rest of the model stands, with as many threads as torch has. Decision values
    are no log-odds: the probabilities that a softmax makes of them keep their order, but are not
    calibrated.

    Its parameters are the numbers that a fit leaves and that a prediction needs: ranges, support
    vectors and their weights. None is trained by an optimizer, and how many there are is not known
    before.

    Args:
        outputs: Decision values: 1 for two classes, else one a class, each class against the rest.
        descriptors: Which of "hu", "haralick", "histogram".
        bins: Intervals a channel of the histogram.
        kernels: To be tried: linear, poly (degree 3), rbf, sigmoid.
        costs: Values of C to be tried.
        folds: Of the cross-validation that chooses.
        score: What it chooses by; the mean over the folds.
        max_samples: Training images at the most, drawn at random with every class's share.
        clip: Whether features of other images are kept within the range of the training images'.
        class_weight: "balanced" multiplies C by n / (K n_c), so that rare classes count as much as
            frequent ones.
    """

    outside_torch = True  # see src.efficiency.profile
    loaded_weights = "none"  # for the record: there is nothing to start from

    def __init__(
        self,
        outputs: int,
        descriptors: Annotated[Sequence[radiomics.Kind], MinLen(1)] = (
            "hu",
            "haralick",
            "histogram",
        ),
        bins: Annotated[int, Ge(2), Le(16)] = 8,
        kernels: Annotated[Sequence[Kernel], MinLen(1)] = KERNELS,
        costs: Annotated[Sequence[Annotated[float, Gt(0)]], MinLen(1)] = (0.1, 1.0, 10.0, 100.0),
        folds: Annotated[int, Ge(2)] = 3,
        score: Score = "balanced_accuracy",
        max_samples: Annotated[int, Ge(1)] = 5000,
        clip: bool = True,
        class_weight: Literal["balanced"] | None = None,
    ) -> None:
        super().__init__()
        self.descriptors = tuple(descriptors)
        self.bins = bins
        self.kernels = tuple(kernels)
        self.costs = tuple(costs)
        self.folds = folds
        self.score = score
        self.max_samples = max_samples
        self.clip = clip
        self.class_weight = class_weight
        width = len(radiomics.names(self.descriptors, bins))
        self.minimum = _numbers(np.zeros(width))
        self.scale = _numbers(np.ones(width))
        self.support = _numbers(np.zeros((0, width)))
        self.dual = _numbers(np.zeros((outputs, 0)))
        self.intercept = _numbers(np.zeros(outputs))
        self.gamma = _numbers(np.ones(()))
        self.kernel: Tensor
        self.register_buffer("kernel", torch.tensor(0))

    @property
    def fitted(self) -> bool:
        """Whether there is anything to predict with; without, all decision values are 0."""
        return len(self.support) > 0

    @property
    def machine(self) -> KernelMachine:
        """The state as arrays, without a copy where it is on the CPU."""
        state = {name: tensor.detach().cpu().numpy() for name, tensor in self.named_parameters()}
        return KernelMachine(
            KERNELS[int(self.kernel)], float(state.pop("gamma")), **state, clip=self.clip
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S), float in [0, 1] and not normalised -> decision values, float32 (B, outputs)."""
        pixels = (
            images.detach()
            .float()
            .mul(255)
            .round()
            .clamp(0, 255)
            .byte()
            .permute(0, 2, 3, 1)
            .cpu()
            .numpy()
        )
        threads = torch.get_num_threads()
        found = radiomics.extract(pixels, self.descriptors, self.bins, threads=threads)
        with blas(threads):
            decided = self.machine.decide(found)
        return torch.from_numpy(decided).float().to(images.device)

    def fit_once(self, training: TrainingSet) -> FitOnceRecord:
        """Draw the sample, choose kernel and C on it by cross-validation, and fit all of it with them.

        Raises:
            DataError: A class is too rare for the folds, or has no image.
        """
        rows = _drawn(training, self.max_samples)
        labels, groups = (
            training.labels[rows],
            None if training.groups is None else training.groups[rows],
        )
        check_folds(
            labels, groups, training.classes, self.folds
        )  # before the features, which take a while
        began, threads = time.perf_counter(), torch.get_num_threads()
        found = radiomics.extract(
            training.images, self.descriptors, self.bins, rows, threads, "features"
        )
        log.info("features of %d images in %.0f s", len(rows), time.perf_counter() - began)
        data = LabelledFeatures(
            found, labels, groups, training.classes, self._weights(training, labels), self.clip
        )
        with blas(threads):
            table = grid(
                data,
                self.kernels,
                self.costs,
                self.folds,
                self.score,
                training.seed,
                "kernel and C",
            )
            kernel, cost = table.loc[table["chosen"], ["kernel", "C"]].iloc[0]
            machine = next(
                fit(found, labels, data.outputs, kernel, [cost], data.weights, self.clip)
            )
        log.info(
            "%d-fold search in %.0f s: %s, C=%g", self.folds, table["seconds"].sum(), kernel, cost
        )
        self._take(machine)
        by = "by image" if groups is None else "grouped"
        return FitOnceRecord(
            rows=rows,
            tables={"search/grid.csv": table},
            chosen_by=f"train: {self.folds}-fold cross-validation, {by}, mean {self.score}",
            tags={"svm": f"{machine.kernel}, C={cost:g}, {len(machine.support)} support vectors"},
        )

    def _weights(self, training: TrainingSet, labels: np.ndarray) -> Values:
        """What C is multiplied by for each class; to an SVM an image that is there twice is one that counts twice."""
        counts = np.bincount(labels, minlength=len(training.classes))
        weights = (
            balanced(counts.tolist()).double().numpy()
            if self.class_weight
            else np.ones(len(counts))
        )
        if training.oversample is not None:
            weights = weights * np.maximum(1.0, training.oversample * counts.max() / counts)
        return weights

    def _take(self, machine: KernelMachine) -> None:
        for name, parameter in self.named_parameters():
            parameter.data = torch.as_tensor(getattr(machine, name), dtype=torch.float64)
        self.kernel.fill_(KERNELS.index(machine.kernel))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Make room for as many support vectors as the state has; whatever else differs is refused as in any net."""
        support = state_dict.get(f"{prefix}support")
        if isinstance(support, Tensor) and support.dim() == 2:
            self.support.data = self.support.new_zeros(len(support), self.support.shape[1])
            self.dual.data = self.dual.new_zeros(self.dual.shape[0], len(support))
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if not 0 <= int(self.kernel) < len(KERNELS):
            rest[-1].append(f"kernel number {int(self.kernel)} is none of {len(KERNELS)}")


def _numbers(values: Values) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(values), requires_grad=False)


def _drawn(training: TrainingSet, most: int) -> np.ndarray:
    """Rows to fit on: all, or so many drawn with every class's share."""
    if len(training.rows) <= most:
        return training.rows
    from sklearn.utils import resample

    labels = training.labels[training.rows]
    return np.sort(
        resample(
            training.rows,
            replace=False,
            n_samples=most,
            stratify=labels,
            random_state=training.seed,
        )
    )
