"""A support vector machine as plain arrays: fitted by scikit-learn, evaluated by its pairwise kernels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

Kernel = Literal["linear", "poly", "rbf", "sigmoid"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)
Values = npt.NDArray[np.float64]

DEGREE, COEF0 = 3, 0.0  # of the polynomial and sigmoid kernels; with gamma "scale", scikit-learn's defaults for an SVC
ABSENT = -1.0  # decision value of a class that has no image to learn from: the margin of a plain no
_CACHE_MB = 500


@dataclass(frozen=True)
class Machine:
    """What is left of a fit.

    Attributes:
        kernel: Its name.
        gamma: Width of all kernels but the linear one.
        minimum: Of each feature in the training set, (F,).
        scale: What a feature is multiplied by once its minimum is off, (F,): 1 / range, or 1 where that is 0.
        support: Scaled features of the support vectors, (S, F).
        dual: Weight of each support vector in each decision value, (K, S).
        intercept: (K,).
        clip: Whether features beyond the training set's range count as its ends. A colour that hardly occurs there has
            a range near 0: where it occurs, its feature would be a hundred, and its cube decide alone.
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
        near = similarity(scaled.clip(0, 1) if self.clip else scaled, self.support, self.kernel, self.gamma)
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
) -> Iterator[Machine]:
    """Fit a machine for each cost; the kernel matrix is computed once for all of them.

    Features are brought to [0, 1] by the least and greatest value of each. For several classes there is one machine a
    class, against all the rest.

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
                dual[output], intercept[output] = _against_the_rest(gram, own, cost, weights[labels])
        used = np.flatnonzero(dual.any(axis=0))
        yield Machine(kernel, gamma, scaler.data_min_, scaler.scale_, scaled[used], dual[:, used], intercept, clip)


def _against_the_rest(gram: Values, own: npt.NDArray[np.bool_], cost: float, weights: Values) -> tuple[Values, float]:
    """Weight of every image and the intercept."""
    from sklearn.svm import SVC

    fitted = SVC(C=cost, kernel="precomputed", cache_size=_CACHE_MB).fit(gram, own, sample_weight=weights)
    dual = np.zeros(len(own))
    dual[fitted.support_] = fitted.dual_coef_[0]
    return dual, float(fitted.intercept_[0])
