"""Which kernel and which C: cross-validation on the training images."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from tqdm import tqdm

from src.errors import DataError
from src.metrics.classification import ClassificationMetrics, probabilities
from src.radiomics.machine import Kernel, fit

Score = Literal["accuracy", "balanced_accuracy", "macro_f1", "auroc"]


@dataclass(frozen=True)
class Labelled:
    """Features and what is known of their images.

    Attributes:
        features: float64 (N, F).
        labels: 0 to K - 1, (N,).
        groups: Lesion or patient, (N,), whose images stay in one fold; None: folds are dealt by image.
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

    def only(self, chosen: npt.NDArray[np.int64]) -> "Labelled":
        """Some of the images."""
        groups = None if self.groups is None else self.groups[chosen]
        return Labelled(self.features[chosen], self.labels[chosen], groups, self.classes, self.weights, self.clip)


def grid(
    data: Labelled, kernels: Sequence[Kernel], costs: Sequence[float], folds: int, score: Score, seed: int, title: str
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
        A row a kernel and C: `kernel`, `C`, the mean over the folds of each score, `spread` (of the one that chooses:
        sample standard deviation over the folds), `support_vectors` (mean), `seconds` (all folds) and `chosen`.
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


def _fold(known: Labelled, unknown: Labelled, kernel: Kernel, costs: Sequence[float]) -> Iterator[dict[str, object]]:
    began = time.perf_counter()
    machines = fit(known.features, known.labels, known.outputs, kernel, costs, known.weights, known.clip)
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
    labels: npt.NDArray[np.int64], groups: npt.NDArray[np.object_] | None, classes: Sequence[str], folds: int
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


def _folds(data: Labelled, folds: int, seed: int) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    kind = StratifiedKFold if data.groups is None else StratifiedGroupKFold
    return list(kind(folds, shuffle=True, random_state=seed).split(data.features, data.labels, data.groups))
