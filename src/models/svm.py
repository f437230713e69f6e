"""Support vector machine on global descriptors (Sun & Sun 2023) as a network."""

import itertools
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from annotated_types import Ge, Gt, Le, MinLen
from torch import Tensor, nn
from tqdm import tqdm

from src.core.errors import ConfigError, DataError
from src.metrics.classification import ClassificationMetrics, probabilities
from src.metrics.registry import PRIMARY, overall_metrics
from src.models import radiomics
from src.models.fit_once import FitOnceRecord

if TYPE_CHECKING:
    from src.data.module import DataModule

log = logging.getLogger(__name__)
Kernel = Literal["linear", "poly", "rbf", "sigmoid"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)
Values = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
# Of the polynomial and sigmoid kernels; with gamma "scale", the defaults of scikit-learn's SVC.
DEGREE, COEF0 = 3, 0.0
ABSENT = -1.0  # decision value of a class without training images: at the margin of "no"
_CACHE_MB = 500


@dataclass(frozen=True)
class KernelMachine:
    """The result of a fit.

    Attributes:
        gamma: Width of all kernels but the linear one.
        minimum: Of each feature in the training set, (F,).
        scale: Factor of each feature after its minimum is subtracted, (F,): 1 / range, or 1.
        support: Scaled features of the support vectors, (S, F).
        dual: Weight of each support vector in each decision value, (K, S).
        intercept: (K,).
        clip: Whether features are clipped to the range of the training set. A colour that is rare
            there has a range near 0: elsewhere its scaled feature would be a hundred, and its cube
            would decide alone.
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
        if self.clip:
            scaled = scaled.clip(0, 1)
        similarity = _kernel_matrix(scaled, self.support, self.kernel, self.gamma)
        return similarity @ self.dual.T + self.intercept


def _kernel_matrix(a: Values, b: Values, kernel: Kernel, gamma: float) -> Values:
    """Kernel matrix (N, M) of scaled features (N, F) and (M, F)."""
    from sklearn.metrics.pairwise import pairwise_kernels

    settings = {"gamma": gamma, "degree": DEGREE, "coef0": COEF0}
    return pairwise_kernels(a, b, metric=kernel, filter_params=True, **settings)


def fit(
    features: Values,
    labels: Labels,
    outputs: int,
    kernel: Kernel,
    costs: Sequence[float],
    weights: Values,
    clip: bool = False,
) -> Iterator[KernelMachine]:
    """Fit one machine for each cost; the kernel matrix is computed once for all of them.

    Features are scaled to [0, 1] by their minimum and maximum. Several classes are fitted one
    against the rest.

    Args:
        features: (N, F).
        labels: 0 to K - 1, (N,).
        outputs: K; 1 for two classes: the machine of label 1.
        kernel: One of `KERNELS`.
        costs: C, the price of an image on the wrong side of its margin.
        weights: Factor of C for each class, (2,) or (K,).
        clip: See `KernelMachine`; it does not change the fit.
    """
    from sklearn.preprocessing import MinMaxScaler
    from sklearn.svm import SVC

    scaler = MinMaxScaler().fit(features)
    scaling = scaler.data_min_, scaler.scale_
    scaled = (features - scaler.data_min_) * scaler.scale_
    spread = scaled.var()
    gamma = 1.0 / (scaled.shape[1] * spread) if spread > 0 else 1.0
    gram = _kernel_matrix(scaled, scaled, kernel, gamma)
    for cost in costs:
        dual = np.zeros((outputs, len(labels)))
        intercept = np.full(outputs, ABSENT)
        for output in range(outputs):
            positive = labels == (1 if outputs == 1 else output)
            if positive.any():
                svc = SVC(C=cost, kernel="precomputed", cache_size=_CACHE_MB)
                svc.fit(gram, positive, sample_weight=weights[labels])
                dual[output, svc.support_] = svc.dual_coef_[0]
                intercept[output] = svc.intercept_[0]
        used = np.flatnonzero(dual.any(axis=0))
        vectors = scaled[used], dual[:, used], intercept
        yield KernelMachine(kernel, gamma, *scaling, *vectors, clip)


def folds_of(
    labels: Labels, groups: np.ndarray | None, classes: Sequence[str], folds: int, seed: int
) -> list[tuple[Labels, Labels]]:
    """Rows of the training and held-out images of each fold, stratified, groups in one fold.

    Groups are lesions or patients, (N,); None: the folds are by image.

    Raises:
        DataError: A class has fewer groups (or images) than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    units, what = (np.arange(len(labels)), "images") if groups is None else (groups, "groups")
    for label, name in enumerate(classes):
        count = len(set(units[labels == label]))
        if count < folds:
            raise DataError(
                f"class {name} has {count} {what} to fit on, fewer than the {folds} folds of the "
                "search: add images of it, or set model.net.folds or data.fractions to others"
            )
    folding = StratifiedKFold if groups is None else StratifiedGroupKFold
    splitter = folding(folds, shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros((len(labels), 1)), labels, groups))


class RadiomicsSVM(nn.Module):
    """Support vector machine on global descriptors: Sun & Sun 2023, section 3.2.

    It is fitted once: no epochs, no gradient, no augmentation. numpy does the work on the CPU,
    with as many threads as torch has. Decision values are not log-odds: the probabilities that a
    softmax makes of them keep their order, but are not calibrated.

    Its parameters are the numbers that a fit leaves and a prediction needs: ranges, support vectors
    and their weights. An optimizer trains none of them; their number is unknown before the fit.

    Args:
        outputs: Decision values: 1 for two classes, else one per class, each against the rest.
        bins: Intervals per channel of the histogram.
        kernels: Kernels to try; poly has degree 3.
        costs: Values of C to try.
        score: The mean of this score over the folds chooses kernel and C.
        max_samples: Largest number of training images; drawn with the share of every class.
        clip: Whether features of other images are clipped to the range of the training images.
        class_weight: "balanced" multiplies C by n / (K n_c), so that rare classes count as much as
            frequent ones.

    Raises:
        ConfigError: `score` is not a metric of all classes.
    """

    outside_torch = True
    loaded_weights = "none"  # for the run record
    support: Tensor
    dual: Tensor
    intercept: Tensor
    kernel: Tensor  # buffer: position in KERNELS

    def __init__(
        self,
        outputs: int,
        descriptors: Annotated[Sequence[radiomics.Descriptor], MinLen(1)] = radiomics.DESCRIPTORS,
        bins: Annotated[int, Ge(2), Le(16)] = 8,
        kernels: Annotated[Sequence[Kernel], MinLen(1)] = KERNELS,
        costs: Annotated[Sequence[Annotated[float, Gt(0)]], MinLen(1)] = (0.1, 1.0, 10.0, 100.0),
        folds: Annotated[int, Ge(2)] = 3,
        score: str = PRIMARY,
        max_samples: Annotated[int, Ge(1)] = 5000,
        clip: bool = True,
        class_weight: Literal["balanced"] | None = None,
    ) -> None:
        super().__init__()
        if score not in overall_metrics():
            message = f"must be one of {', '.join(overall_metrics())}, but got {score!r}"
            raise ConfigError("score", message)
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
        empty = {
            "minimum": np.zeros(width),
            "scale": np.ones(width),
            "support": np.zeros((0, width)),
            "dual": np.zeros((outputs, 0)),
            "intercept": np.zeros(outputs),
            "gamma": np.ones(()),
        }
        for name, values in empty.items():
            parameter = nn.Parameter(torch.from_numpy(values), requires_grad=False)
            self.register_parameter(name, parameter)
        self.register_buffer("kernel", torch.tensor(0))

    @property
    def fitted(self) -> bool:
        """Whether there is a fit; without one, all decision values are 0."""
        return len(self.support) > 0

    @property
    def machine(self) -> KernelMachine:
        """The state as arrays, without a copy if it is on the CPU."""
        state = {name: tensor.detach().cpu().numpy() for name, tensor in self.named_parameters()}
        gamma = float(state.pop("gamma"))
        return KernelMachine(KERNELS[int(self.kernel)], gamma, **state, clip=self.clip)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) in [0, 1], not normalised -> decision values (B, outputs)."""
        levels = images.detach().float().mul(255).round().clamp(0, 255).byte()
        pixels = levels.permute(0, 2, 3, 1).cpu().numpy()
        threads = torch.get_num_threads()
        features = radiomics.extract(pixels, self.descriptors, self.bins, threads=threads)
        with radiomics.limit_blas(threads):
            decisions = self.machine.decide(features)
        return torch.from_numpy(decisions).float().to(images.device)

    def fit_once(self, data: "DataModule", seed: int) -> FitOnceRecord:
        """Draw the sample, choose kernel and C on it by cross-validation, and fit all of it.

        Raises:
            DataError: A class is too rare for the folds, or has no image.
        """
        rows = data.rows("train")
        if len(rows) > self.max_samples:
            from sklearn.utils import resample

            options = {"n_samples": self.max_samples, "stratify": data.labels[rows]}
            rows = np.sort(resample(rows, replace=False, random_state=seed, **options))
        labels = data.labels[rows]
        groups = None if data.split_mode == "image" else data.frame["group"].to_numpy()[rows]
        # Before the features, because these take a while.
        folds = folds_of(labels, groups, data.classes, self.folds, seed)
        start, threads = time.perf_counter(), torch.get_num_threads()
        features = radiomics.extract(
            data.cache.images, self.descriptors, self.bins, rows, threads, "features"
        )
        log.info("features of %d images in %.0f s", len(rows), time.perf_counter() - start)
        weights = self.cost_factors(labels, len(data.classes), data.oversample)
        with radiomics.limit_blas(threads):
            table = self._grid_search(features, labels, data.classes, folds, weights)
            kernel, cost = table.loc[table["chosen"], ["kernel", "C"]].iloc[0]
            outputs = len(self.intercept)
            machine = next(fit(features, labels, outputs, kernel, [cost], weights, self.clip))
        seconds = table["seconds"].sum()
        log.info("%d-fold search in %.0f s: %s, C=%g", self.folds, seconds, kernel, cost)
        for name, parameter in self.named_parameters():
            parameter.data = torch.as_tensor(getattr(machine, name), dtype=torch.float64)
        self.kernel.fill_(KERNELS.index(machine.kernel))
        by = "by image" if groups is None else "grouped"
        chosen_by = f"train: {self.folds}-fold cross-validation, {by}, mean {self.score}"
        tags = {"svm": f"{machine.kernel}, C={cost:g}, {len(machine.support)} support vectors"}
        return FitOnceRecord(rows, {"search/grid.csv": table}, chosen_by, tags)

    def _grid_search(
        self,
        features: Values,
        labels: Labels,
        classes: Sequence[str],
        folds: Sequence[tuple[Labels, Labels]],
        weights: Values,
    ) -> pd.DataFrame:
        """Cross-validate every kernel with every C; the scaling is fitted in each fold.

        Returns:
            One row per kernel and C: `kernel`, `C`, the mean of each score over the folds, `spread`
            (sample standard deviation of the chosen score over the folds), `support_vectors`
            (mean), `seconds` (all folds) and `chosen`: the best mean, the first of equals.
        """
        rows: list[dict[str, object]] = []
        outputs, cells = len(self.intercept), list(itertools.product(folds, self.kernels))
        bar = tqdm(cells, "kernel and C", unit="fit", leave=False, disable=None)
        for (train, held_out), kernel in bar:
            start = time.perf_counter()
            arguments = (outputs, kernel, self.costs, weights, self.clip)
            machines = fit(features[train], labels[train], *arguments)
            for cost, machine in zip(self.costs, machines, strict=True):
                metrics = ClassificationMetrics(tuple(classes))
                decisions = torch.from_numpy(machine.decide(features[held_out]))
                metrics.update(probabilities(decisions), torch.from_numpy(labels[held_out]))
                values = metrics.compute()
                scores = {name: values.get(name, float("nan")) for name in overall_metrics()}
                seconds, start = time.perf_counter() - start, time.perf_counter()
                support = float(len(machine.support))
                row = {"kernel": kernel, "C": cost, **scores}
                rows.append({**row, "support_vectors": support, "seconds": seconds})
        grouped = pd.DataFrame(rows).groupby(["kernel", "C"], sort=False)
        table = grouped.mean()
        table.insert(len(table.columns) - 2, "spread", grouped[self.score].std())
        table["seconds"] *= len(folds)
        table["chosen"] = table.index == table[self.score].idxmax()
        return table.reset_index()

    def cost_factors(self, labels: Labels, n_classes: int, oversample: float | None) -> Values:
        """Factor of C for each of K classes; repeating an image has the same effect as a factor.

        Every class occurs in the labels. `oversample`: see `src.data.module.oversampled`.
        """
        from sklearn.utils.class_weight import compute_class_weight

        factors = compute_class_weight(self.class_weight, classes=np.arange(n_classes), y=labels)
        if oversample is not None:
            counts = np.bincount(labels, minlength=n_classes)
            factors = factors * np.maximum(1.0, oversample * counts.max() / counts)
        return factors

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Resize to the support vectors of the state; other differences are refused as usual."""
        support = state_dict.get(f"{prefix}support")
        if isinstance(support, Tensor) and support.dim() == 2:
            self.support.data = self.support.new_zeros(len(support), self.support.shape[1])
            self.dual.data = self.dual.new_zeros(self.dual.shape[0], len(support))
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if not 0 <= int(self.kernel) < len(KERNELS):
            rest[-1].append(f"kernel number {int(self.kernel)} is none of {len(KERNELS)}")
