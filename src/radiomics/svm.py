"""The radiomics baseline as a net: images in, decision values out, its whole state in tensors."""

import logging
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, MinLen
from torch import Tensor, nn

from src.losses.class_weights import balanced
from src.radiomics import features
from src.radiomics.machine import KERNELS, Kernel, Machine, Values, fit
from src.radiomics.once import Fit, TrainingSet
from src.radiomics.search import Labelled, Score, check_folds, grid
from src.radiomics.threads import blas

log = logging.getLogger(__name__)


class RadiomicsSVM(nn.Module):
    """Support vector machine on global descriptors: Sun & Sun 2023, section 3.2.

    It is fitted once: no epochs, no gradient, no augmentation. Its work is done by numpy on the CPU, wherever the rest
    of the model stands, with as many threads as torch has. Decision values are no log-odds: the probabilities that a
    softmax makes of them keep their order, but are not calibrated.

    Its parameters are the numbers that a fit leaves and that a prediction needs: ranges, support vectors and their
    weights. None is trained by an optimizer, and how many there are is not known before.

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
        class_weight: "balanced" multiplies C by n / (K n_c), so that rare classes count as much as frequent ones.
    """

    outside_torch = True  # see src.efficiency.profile
    loaded_weights = "none"  # for the record: there is nothing to start from

    def __init__(
        self,
        outputs: int,
        descriptors: Annotated[Sequence[features.Kind], MinLen(1)] = ("hu", "haralick", "histogram"),
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
        width = len(features.names(self.descriptors, bins))
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
    def machine(self) -> Machine:
        """The state as arrays, without a copy where it is on the CPU."""
        state = {name: tensor.detach().cpu().numpy() for name, tensor in self.named_parameters()}
        return Machine(KERNELS[int(self.kernel)], float(state.pop("gamma")), **state, clip=self.clip)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S), float in [0, 1] and not normalised -> decision values, float32 (B, outputs)."""
        pixels = images.detach().float().mul(255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
        threads = torch.get_num_threads()
        found = features.extract(pixels, self.descriptors, self.bins, threads=threads)
        with blas(threads):
            decided = self.machine.decide(found)
        return torch.from_numpy(decided).float().to(images.device)

    def fit_once(self, training: TrainingSet) -> Fit:
        """Draw the sample, choose kernel and C on it by cross-validation, and fit all of it with them.

        Raises:
            DataError: A class is too rare for the folds, or has no image.
        """
        rows = _drawn(training, self.max_samples)
        labels, groups = training.labels[rows], None if training.groups is None else training.groups[rows]
        check_folds(labels, groups, training.classes, self.folds)  # before the features, which take a while
        began, threads = time.perf_counter(), torch.get_num_threads()
        found = features.extract(training.images, self.descriptors, self.bins, rows, threads, "features")
        log.info("features of %d images in %.0f s", len(rows), time.perf_counter() - began)
        data = Labelled(found, labels, groups, training.classes, self._weights(training, labels), self.clip)
        with blas(threads):
            table = grid(data, self.kernels, self.costs, self.folds, self.score, training.seed, "kernel and C")
            kernel, cost = table.loc[table["chosen"], ["kernel", "C"]].iloc[0]
            machine = next(fit(found, labels, data.outputs, kernel, [cost], data.weights, self.clip))
        log.info("%d-fold search in %.0f s: %s, C=%g", self.folds, table["seconds"].sum(), kernel, cost)
        self._take(machine)
        by = "by image" if groups is None else "grouped"
        return Fit(
            rows=rows,
            tables={"search/grid.csv": table},
            chosen_by=f"train: {self.folds}-fold cross-validation, {by}, mean {self.score}",
            tags={"svm": f"{machine.kernel}, C={cost:g}, {len(machine.support)} support vectors"},
        )

    def _weights(self, training: TrainingSet, labels: np.ndarray) -> Values:
        """What C is multiplied by for each class; to an SVM an image that is there twice is one that counts twice."""
        counts = np.bincount(labels, minlength=len(training.classes))
        weights = balanced(counts.tolist()).double().numpy() if self.class_weight else np.ones(len(counts))
        if training.oversample is not None:
            weights = weights * np.maximum(1.0, training.oversample * counts.max() / counts)
        return weights

    def _take(self, machine: Machine) -> None:
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
    return np.sort(resample(training.rows, replace=False, n_samples=most, stratify=labels, random_state=training.seed))
