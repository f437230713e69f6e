"""From the run's own test to external data: how much each figure changes, with an interval.

The two sets of images are independent: each is resampled by its own lesions or patients, and the difference is taken
sample by sample. The nets (seeds) are the same on both, so a drawn seed counts on both sides. Where the interval of
a share is exact on either side, resampling shows too little spread, and that of the difference is made from the two
(`apart`); another figure that has none on one side has none of the difference.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from src.analysis.bootstrap import gather, intervals, measured, over_seeds, resampled, streams
from src.clinical.operating import Wish, chosen
from src.clinical.resampling import interval, settled
from src.clinical.settings import Settings

REST = "not it"  # every class but the one that is looked for
COLUMNS = ["metric", "own", "own_low", "own_high", "external", "external_low", "external_high"]
DIFFERENCE = ["difference", "low", "high", "own_images", "own_groups", "external_images", "external_groups"]


@dataclass(frozen=True)
class Side:
    """Some metrics on one of the two sets; S nets, B bootstrap samples, M metrics.

    Attributes:
        values: Of each net, float (S, M).
        samples: Of each net on each bootstrap sample, float (B, S, M).
        bases: Groups of the images that each metric rests on.
    """

    values: np.ndarray
    samples: np.ndarray
    bases: list[np.ndarray]


def compared(
    own: Sequence[pd.DataFrame],
    external: Sequence[pd.DataFrame],
    val: Sequence[pd.DataFrame],
    positive: str | None,
    settings: Settings,
) -> pd.DataFrame:
    """Own test beside external data.

    Own images of classes that the external data do not have are left out, so that the means are over the same classes.

    Args:
        own: Predictions of the run's own test split, a frame a net; see `src.analysis.bootstrap.gather`.
        external: Of the external data, by the same nets in the same order, over the same classes.
        val: Of the run's own validation split, on which the threshold is chosen; none, and there is none.
        positive: The class that is looked for, if there is one.
        settings: Sensitivity that the threshold is chosen for, samples, seed and level.

    Returns:
        A row a metric: metric, own with its interval, external with its interval, difference (external - own; below 0
        it got worse) with its interval, images and groups that either rests on.
    """
    shared = sorted(set(own[0]["label"]) & set(external[0]["label"]))
    mine, theirs = ([frame[frame["label"].isin(shared)] for frame in side] for side in (own, external))
    metrics = ["balanced_accuracy", "accuracy", *(f"recall/{name}" for name in shared)]
    streams_of = {"own": streams(settings.seed, 4), "external": streams(settings.seed + 1, 4)}
    names = list(metrics)
    sides = {"own": [_side(mine, metrics, settings, streams_of["own"][0])]}
    sides["external"] = [_side(theirs, metrics, settings, streams_of["external"][0])]
    if positive is not None and positive in shared and len(shared) > 1:
        names.append(f"auroc/{positive}")
        for key, frames in (("own", mine), ("external", theirs)):
            sides[key].append(_side(_one_against_rest(frames, positive), ["auroc"], settings, streams_of[key][1]))
        thresholds = [each.value for each in chosen(gather(val), positive, _wish(settings))] if len(val) else []
        if thresholds and not np.isnan(thresholds).any():
            names += [f"chosen/sensitivity/{positive}", f"chosen/specificity/{positive}"]
            hard = [f"recall/{positive}", f"recall/{REST}"]
            for key, frames in (("own", mine), ("external", theirs)):
                decided = _decided(frames, positive, thresholds)
                sides[key].append(_side(decided, hard, settings, streams_of[key][2]))
    return _rows(names, _joined(sides["own"]), _joined(sides["external"]), settings)


def apart(first: tuple[float, float, float], second: tuple[float, float, float]) -> tuple[float, float]:
    """Interval of first - second, two independent shares, from the interval of each.

    Source: Newcombe, Interval estimation for the difference between independent proportions, Statistics in Medicine 17,
    1998, method 10, there with Wilson's intervals.

    Args:
        first: The share, low and high, in [0, 1].
        second: Likewise.

    Returns:
        Low and high, in [-1, 1].
    """
    (one, one_low, one_high), (two, two_low, two_high) = first, second
    low = one - two - math.hypot(one - one_low, two_high - two)
    return low, one - two + math.hypot(one_high - one, two - two_low)


def by_original_label(external: Sequence[pd.DataFrame], settings: Settings) -> pd.DataFrame:
    """Recall of each class of the data set itself, such as AK and SCC apart.

    Args:
        external: Predictions, a frame a net, with a column `original_label`.
        settings: Samples, seed and level.

    Returns:
        A row a class of the data set: original_label, counts_as, images, groups, recall, low, high.
    """
    rows = []
    for name in sorted(external[0]["original_label"].unique()):
        frames = [frame[frame["original_label"] == name] for frame in external]
        counts_as = frames[0]["label"].iloc[0]
        found = intervals(frames, [f"recall/{counts_as}"], settings.samples, settings.seed, settings.level).iloc[0]
        recall, low, high = (float(found[key]) for key in ("estimate", "low", "high"))
        images, groups = int(found["images"]), int(found["groups"])
        low, high, _ = settled(low, high, recall, frames[0]["group"].to_numpy(), settings.level, share=True)
        rows.append((name, counts_as, images, groups, recall, low, high))
    return pd.DataFrame(rows, columns=["original_label", "counts_as", "images", "groups", "recall", "low", "high"])


def _wish(settings: Settings) -> Wish:
    return Wish("sensitivity", settings.sensitivity)


def _side(frames: Sequence[pd.DataFrame], metrics: list[str], settings: Settings, rng: np.random.Generator) -> Side:
    given = gather(frames)
    samples = resampled(given, metrics, settings.samples, rng)
    return Side(measured(given, metrics), samples, [given.basis(name) for name in metrics])


def _joined(parts: Sequence[Side]) -> Side:
    bases = [basis for part in parts for basis in part.bases]
    return Side(
        np.concatenate([part.values for part in parts], axis=1),
        np.concatenate([part.samples for part in parts], axis=2),
        bases,
    )


def _one_against_rest(frames: Sequence[pd.DataFrame], positive: str) -> list[pd.DataFrame]:
    """The same predictions between two classes: the rest, and the one that is looked for."""
    return [_two_classes(frame, positive, frame[f"p/{positive}"]) for frame in frames]


def _decided(frames: Sequence[pd.DataFrame], positive: str, thresholds: Sequence[float]) -> list[pd.DataFrame]:
    """Decisions by each net's threshold, as predictions that are sure of themselves."""
    # in single precision, as the thresholds were chosen
    return [
        _two_classes(frame, positive, (frame[f"p/{positive}"].astype(np.float32) >= threshold).astype(float))
        for frame, threshold in zip(frames, thresholds, strict=True)
    ]


def _two_classes(frame: pd.DataFrame, positive: str, probability: pd.Series) -> pd.DataFrame:
    label = frame["label"].where(frame["label"] == positive, REST)
    columns = {f"p/{REST}": 1 - probability, f"p/{positive}": probability}
    return frame[["image_id", "group"]].assign(label=label, **columns)


def _rows(names: Sequence[str], own: Side, external: Side, settings: Settings) -> pd.DataFrame:
    difference = external.samples - own.samples
    [seed_rng] = streams(settings.seed + 2, 1)
    # one draw of seeds for all three: a drawn net counts on both sides
    together = over_seeds(np.concatenate([own.samples, external.samples, difference], axis=2), seed_rng)
    of_own, of_external, of_both = np.split(together, 3, axis=1)
    rows = []
    for at, name in enumerate(names):
        bases = own.bases[at], external.bases[at]
        points = own.values[:, at].mean(), external.values[:, at].mean()
        is_share = name.startswith(("accuracy", "recall/", "chosen/"))
        (*ours, of_ours), (*theirs, of_theirs) = (
            interval(values[:, at], point, basis, settings.level, is_share)[1:4]
            for values, point, basis in zip((of_own, of_external), points, bases, strict=True)
        )
        gap = points[1] - points[0]
        fewest = min(bases, key=lambda basis: len(np.unique(basis)))
        low, high, kind = interval(of_both[:, at], gap, fewest, settings.level, share=False)[1:4]
        both = low, high
        if is_share and ("exact" in (of_ours, of_theirs) or not kind):
            both = apart((points[1], *theirs), (points[0], *ours))
        elif not (of_ours and of_theirs):
            both = np.nan, np.nan
        sizes = [size for basis in bases for size in (len(basis), len(np.unique(basis)))]
        rows.append((name, points[0], *ours, points[1], *theirs, gap, *both, *sizes))
    return pd.DataFrame(rows, columns=[*COLUMNS, *DIFFERENCE])
