"""ONE cluster-by-seed bootstrap for every statistic."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.sparse import csr_array
from scipy.stats import beta

from src.core.errors import ConfigError, UserError
from src.metrics.settings import AuditSettings

OVERALL = ("accuracy", "balanced_accuracy", "macro_f1", "auroc")
PER_CLASS = ("recall", "precision", "f1", "specificity")
CELLS = 2_000_000  # of the largest table that is held at once


class DifferentImagesError(UserError):  # noqa: N818  it reads as what is wrong
    """Predictions that should be of the same images and are not."""


@dataclass(frozen=True)
class Predictions:
    """What several trained nets said of the same images; K classes, N images in G groups, S nets (seeds).

    Attributes:
        classes: Names in label order.
        group: Number of the image's lesion or patient, int (N,) in [0, G).
        target: True labels, int (N,).
        probability: float32 (S, N, K), as the metrics of the run record saw them.
    """

    classes: tuple[str, ...]
    group: np.ndarray
    target: np.ndarray
    probability: np.ndarray

    @property
    def groups(self) -> int:
        """Number of lesions or patients, G."""
        return int(self.group.max()) + 1

    @property
    def metrics(self) -> list[str]:
        """All that can be computed, by the run record's names without the split."""
        return [*OVERALL, *(f"{measure}/{name}" for measure in PER_CLASS for name in self.classes)]

    def basis(self, metric: str) -> np.ndarray:
        """Groups of the images that a metric rests on: those of the class for recall, the others for specificity."""
        measure, _, name = metric.partition("/")
        own = self.target == (self.classes.index(name) if name else -1)
        return self.group[{"recall": own, "specificity": ~own}.get(measure, slice(None))]


def gather(frames: Sequence[pd.DataFrame], names: Sequence[str] = ()) -> Predictions:
    """Recorded predictions of the same images, brought into the same order.

    Args:
        frames: One a net: columns image_id, group, label, and p/<class> in label order. An image
            without a group is one of its own.
        names: What to call the frames in errors; "predictions 1" and so on by default.

    Raises:
        DifferentImages: Other images, labels, groups or classes than in the first frame; the
            message names one.
        UserError: No frame, an empty one, a missing column, an image twice or a label that is no
            class.
    """
    if not frames:
        raise UserError("no predictions to resample; evaluate the run first")
    names = names or [f"predictions {number}" for number in range(1, len(frames) + 1)]
    ordered = [_ordered(frame, name) for frame, name in zip(frames, names, strict=True)]
    first, classes = ordered[0], _classes(ordered[0])
    for frame, name in zip(ordered[1:], names[1:], strict=True):
        _same_images(first, frame, (names[0], name))
    target = pd.Index(classes).get_indexer(pd.Index(first["label"]))
    columns = [f"p/{name}" for name in classes]
    probability = np.stack([frame[columns].to_numpy(dtype=np.float32) for frame in ordered])
    return Predictions(classes, pd.factorize(first["group"])[0], target, probability)


def intervals(
    predictions: Sequence[pd.DataFrame],
    metrics: Sequence[str] | None = None,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> pd.DataFrame:
    """Percentile intervals of metrics on one split; see the module for how and why.

    Means of a sample are over the classes that have images in it, as in the run record. A sample in
    which a metric is undefined is left out for that metric.

    Args:
        predictions: One frame a seed, of the same images, see `gather`. The estimate is the mean
            over the seeds.
        metrics: Names without the split, such as balanced_accuracy or recall/mel; all by default.
        samples: How many bootstrap samples.
        seed: Of the random numbers.
        level: Coverage, in (0, 1).

    Returns:
        A row a metric: metric, estimate (NaN unless every seed defines it), low, high (NaN also
        with fewer than two groups), images and groups that it rests on (see `Predictions.basis`),
        seeds.

    Raises:
        ConfigError: An unknown metric, `samples` below 1 or `level` outside (0, 1).
        UserError: As `gather`.
    """
    given = gather(predictions)
    names = list(given.metrics if metrics is None else metrics)
    estimates = measured(given, names).mean(axis=0)
    group_rng, seed_rng = streams(seed, 2)
    values, rows = over_seeds(resampled(given, names, samples, group_rng), seed_rng), []
    for name, estimate, column in zip(names, estimates, values.T, strict=True):
        basis = given.basis(name)
        low, high = percentile_interval(column, estimate, basis, level)
        rows.append(
            (name, estimate, low, high, len(basis), len(np.unique(basis)), len(predictions))
        )
    return pd.DataFrame(
        rows, columns=["metric", "estimate", "low", "high", "images", "groups", "seeds"]
    )


def streams(seed: int, number: int) -> list[np.random.Generator]:
    """Independent random numbers from one seed; the first streams do not depend on how many there are."""
    return [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(number)]


def percentile_interval(
    values: np.ndarray, estimate: float, basis: np.ndarray, level: float
) -> tuple[float, float]:
    """The middle `level` of the defined values; NaN without an estimate or if `basis` names fewer than two groups."""
    if not 0 < level < 1:
        raise ConfigError("level", f"must be between 0 and 1, but got {level:g}")
    defined = values[~np.isnan(values)]
    if np.isnan(estimate) or not defined.size or len(np.unique(basis)) < 2:
        return np.nan, np.nan
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def measured(given: Predictions, metrics: Sequence[str]) -> np.ndarray:
    """The metrics of each net as the run record has them, float (S, M); undefined ones are NaN."""
    return _evaluate(given, metrics, iter([np.ones((1, given.groups))]))[0]


def resampled(
    given: Predictions, metrics: Sequence[str], samples: int, rng: np.random.Generator
) -> np.ndarray:
    """The metrics of each net on `samples` resamplings of the groups, the same for all nets; float (samples, S, M)."""
    if samples < 1:
        raise ConfigError("samples", f"must be at least 1, but got {samples}")
    seeds, images, classes = given.probability.shape
    most = max(1, CELLS // max(given.groups, images, seeds * classes**2))
    return _evaluate(given, metrics, _draws(given.groups, samples, rng, most))


def over_seeds(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means over S seeds drawn with replacement, (samples, S, M) -> (samples, M); missing where a drawn value is."""
    seeds = values.shape[1]
    drawn = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=len(values))[:, :, None]
    return np.where(drawn > 0, drawn * values, 0.0).sum(axis=1) / seeds


def _draws(groups: int, samples: int, rng: np.random.Generator, most: int) -> Iterator[np.ndarray]:
    """How often each group is drawn, a row a sample, float (up to `most`, G) at a time; each row sums to G."""
    for start in range(0, samples, most):
        rows = min(most, samples - start)
        drawn = rng.integers(groups, size=(rows, groups)) + groups * np.arange(rows)[:, None]
        yield (
            np.bincount(drawn.ravel(), minlength=rows * groups).reshape(rows, groups).astype(float)
        )


def _evaluate(
    given: Predictions, metrics: Sequence[str], draws: Iterator[np.ndarray]
) -> np.ndarray:
    """Metrics under weights of the groups, which come in chunks (B, G); float (all B, S, M)."""
    for name in metrics:
        if name not in given.metrics:
            raise ConfigError(
                "metric", f"predictions give {', '.join(given.metrics)}, but not {name!r}"
            )
    table, classes = _confusion_by_group(given), len(given.classes)
    rankings = _rankings(given) if "auroc" in metrics else []
    found = []
    for weights in draws:
        counts = (weights @ table).reshape(len(weights), -1, classes, classes)
        values = _from_confusion(counts, given.classes)
        if rankings:
            columns = np.ascontiguousarray(weights.T)
            values["auroc"] = np.stack(
                [_mean_area(columns, of_seed) for of_seed in rankings], axis=1
            )
        found.append(np.stack([values[name] for name in metrics], axis=2))
    return np.concatenate(found)


def _confusion_by_group(given: Predictions) -> np.ndarray:
    """Confusion matrices (true, predicted) of each group by each seed, laid flat: float (G, S * K * K)."""
    classes, groups = len(given.classes), given.groups
    # in single precision and the first of equals, as the run record decides, with one logit too
    predicted = given.probability.argmax(axis=2)
    cells = (given.group * classes + given.target) * classes + predicted
    flat = [
        np.bincount(of_seed, minlength=groups * classes**2).reshape(groups, -1) for of_seed in cells
    ]
    return np.concatenate(flat, axis=1).astype(float)


def _from_confusion(counts: np.ndarray, classes: Sequence[str]) -> dict[str, np.ndarray]:
    """`src.metrics.classification` for many matrices at once: counts (B, S, K, K) -> metric -> float (B, S)."""
    hits = np.diagonal(counts, axis1=2, axis2=3)
    actual, predicted = counts.sum(axis=3), counts.sum(axis=2)
    total = actual.sum(axis=2)
    others = total[..., None] - actual
    by_class = {
        "recall": _ratio(hits, actual),
        "precision": _ratio(hits, predicted),
        "f1": _ratio(2 * hits, actual + predicted),
        "specificity": _ratio(others - (predicted - hits), others),
    }
    return {
        "accuracy": _ratio(hits.sum(axis=2), total),
        "balanced_accuracy": _mean_of_defined(by_class["recall"]),
        "macro_f1": _mean_of_defined(by_class["f1"]),
        **{
            f"{measure}/{name}": by_class[measure][..., at]
            for measure in PER_CLASS
            for at, name in enumerate(classes)
        },
    }


def _rankings(given: Predictions) -> list[list[tuple[csr_array, csr_array]]]:
    """For each seed, the rankings of the classes that its AUROC is the mean of: class 1 of two, else all."""
    candidates = [1] if len(given.classes) == 2 else range(len(given.classes))
    return [
        [_ranking(given, scores[:, label], label) for label in candidates]
        for scores in given.probability
    ]


def _ranking(given: Predictions, score: np.ndarray, label: int) -> tuple[csr_array, csr_array]:
    """Images of class `label` and the others, counted by rank and group: two tables (T, G), the lowest score first.

    Equal scores share a rank, and so do neighbours of one kind, since only the order between kinds
    makes the area under the ROC curve. That leaves few ranks for a rare class.
    """
    order = np.argsort(score, kind="stable")
    own, group = given.target[order] == label, given.group[order]
    rank = np.concatenate([[0], np.cumsum(np.diff(score[order]) != 0)])
    share = np.bincount(rank, own) / np.bincount(rank)
    opens = np.ones(len(share), dtype=bool)
    opens[1:] = (share[1:] != share[:-1]) | ((share[1:] > 0) & (share[1:] < 1))
    merged = (np.cumsum(opens) - 1)[rank]
    cells, shape = (merged, group), (int(opens.sum()), given.groups)
    return csr_array((own.astype(float), cells), shape=shape), csr_array(
        ((~own).astype(float), cells), shape=shape
    )


def _mean_area(weights: np.ndarray, rankings: Sequence[tuple[csr_array, csr_array]]) -> np.ndarray:
    """Mean area under the ROC curve over the classes that have images and others; weights (G, B) -> (B,)."""
    areas = []
    for inside, outside in rankings:
        own, others = inside @ weights, outside @ weights
        beaten = np.cumsum(others, axis=0) - others / 2  # a tie counts half
        areas.append(_ratio((own * beaten).sum(axis=0), own.sum(axis=0) * others.sum(axis=0)))
    return _mean_of_defined(np.stack(areas, axis=1))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def _mean_of_defined(values: np.ndarray) -> np.ndarray:
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0.0).sum(axis=-1), defined.sum(axis=-1))


def _classes(frame: pd.DataFrame) -> tuple[str, ...]:
    return tuple(str(column).removeprefix("p/") for column in frame if str(column).startswith("p/"))


def _ordered(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """The frame by image, ids and names as text, an image without a group in one of its own."""
    classes = _classes(frame)
    needed = ("image_id", "group", "label", *(() if len(classes) > 1 else ("p/<class>",)))
    missing = [column for column in needed if column not in frame]
    if missing:
        raise UserError(f"{name}: no column {missing[0]}; these are no recorded predictions")
    if frame.empty:
        raise UserError(f"{name}: no image in it; evaluate the run again")
    texts = {column: frame[column].astype(str) for column in ("image_id", "group", "label")}
    texts["group"] = texts["group"].where(frame["group"].notna(), "alone: " + texts["image_id"])
    ordered = frame.assign(**texts).sort_values("image_id", kind="stable", ignore_index=True)
    twice = ordered["image_id"][ordered["image_id"].duplicated()]
    if len(twice):
        raise UserError(
            f"{name}: image {twice.iloc[0]} stands in it twice; each image must be predicted once"
        )
    strange = sorted(set(ordered["label"]) - set(classes))
    if strange:
        raise UserError(f"{name}: label {strange[0]!r} is none of its classes {', '.join(classes)}")
    return ordered


def _same_images(first: pd.DataFrame, second: pd.DataFrame, names: tuple[str, str]) -> None:
    if _classes(second) != _classes(first):
        raise DifferentImagesError(
            f"{names[1]} has other classes than {names[0]}: {', '.join(_classes(second))}"
        )
    only = pd.Index(first["image_id"]).symmetric_difference(pd.Index(second["image_id"]))
    if len(only):
        lacks = names[int(only[0] in set(first["image_id"]))]
        raise DifferentImagesError(
            f"{lacks} lacks image {only[0]} ({len(only)} differ); compare runs on the same split"
        )
    for column in ("label", "group"):
        differs = first["image_id"][first[column] != second[column]]
        if len(differs):
            other = f"image {differs.iloc[0]} has another {column} in {names[1]} than in {names[0]}"
            raise DifferentImagesError(f"{other}; compare runs on the same data")


COLUMNS = ["estimate", "low", "high", "interval", "images", "groups", "seeds"]
_SLACK = 1e-9  # what a mean over seeds may be off by


@dataclass(frozen=True)
class Statistics:
    """Some statistics that are computed together; M of them, on N images in G groups by S nets.

    Attributes:
        names: M names.
        bases: For each of them the groups of the images that it rests on, int (up to N,); where
            several kinds of images are averaged or compared, those of the rarest kind (see
            `rarest`).
        measure: Weights of the groups (G, B), whole numbers -> values (B, S, M); what is undefined
            is NaN.
        shares: Whether each is a share of its basis, such as sensitivity: those have an exact
            interval too.
    """

    names: tuple[str, ...]
    bases: tuple[np.ndarray, ...]
    measure: Callable[[np.ndarray], np.ndarray]
    shares: bool = False


def estimates(
    given: Predictions, wanted: Sequence[Statistics], settings: AuditSettings
) -> pd.DataFrame:
    """Estimates with intervals, the mean over the seeds.

    Args:
        given: The predictions.
        wanted: What to compute; names must differ.
        settings: Samples, seed and level.

    Returns:
        A row a statistic, indexed by its name: estimate (NaN unless every seed defines it), low,
        high, interval ("bootstrap"; "exact" where an end is Clopper and Pearson's; "" for none),
        images and groups that it rests on, seeds.
    """
    group_rng, seed_rng = streams(settings.seed, 2)
    weights = _resampling_draws(given, settings.samples, group_rng)
    at_once = max(1, CELLS // max(given.groups, len(given.target)))
    chunks = [
        np.concatenate(
            [each.measure(weights[:, start : start + at_once].astype(float)) for each in wanted],
            axis=2,
        )
        for start in range(0, settings.samples, at_once)
    ]
    values = over_seeds(np.concatenate(chunks), seed_rng)
    points = np.concatenate([bootstrap_statistics(given, each) for each in wanted], axis=1).mean(
        axis=0
    )
    bases = [basis for each in wanted for basis in each.bases]
    shares = [each.shares for each in wanted for _ in each.names]
    rows = [
        (
            *interval(values[:, at], points[at], bases[at], settings.level, shares[at]),
            len(given.probability),
        )
        for at in range(len(points))
    ]
    index = pd.Index([name for each in wanted for name in each.names], name="metric")
    return pd.DataFrame(rows, columns=COLUMNS, index=index)


def bootstrap_statistics(given: Predictions, wanted: Statistics) -> np.ndarray:
    """The statistics of each net on all images, float (S, M)."""
    return wanted.measure(np.ones((given.groups, 1)))[0]


def interval(
    values: np.ndarray, estimate: float, basis: np.ndarray, level: float, share: bool
) -> tuple[float, float, float, str, int, int]:
    """One row of `estimates` but for the seeds, from the values on the samples."""
    low, high = percentile_interval(values, estimate, basis, level)
    return (
        float(estimate),
        *settled(low, high, estimate, basis, level, share),
        len(basis),
        len(np.unique(basis)),
    )


def settled(
    low: float, high: float, estimate: float, basis: np.ndarray, level: float, share: bool
) -> tuple[float, float, str]:
    """What resampling found, held against what it cannot see: low, high and the kind of interval, as in `estimates`.

    A share gets the wider of this interval and the exact one, end by end; another figure gets none
    from fewer than two groups, and none without width.
    """
    groups = len(np.unique(basis))
    if share and groups and not np.isnan(estimate):
        least, most = exact(estimate, groups, level)
        kind = "bootstrap" if low <= least and high >= most else "exact"
        return float(np.fmin(low, least)), float(np.fmax(high, most)), kind
    if groups < 2 or not high - low > _SLACK:
        return np.nan, np.nan, ""
    return low, high, "bootstrap"


def exact(estimate: float, groups: int, level: float) -> tuple[float, float]:
    """Clopper-Pearson interval of a share, each lesion counted once however many images it has.

    Images of a lesion may be found in part: the number of lesions found is then no whole one.

    Source: Clopper and Pearson, The use of confidence or fiducial limits, Biometrika 26, 1934, by
        quantiles of beta
    distributions, which are defined between whole numbers too.
    """
    found, tail = estimate * groups, (1 - level) / 2
    low = beta.ppf(tail, found, groups - found + 1) if found > _SLACK else 0.0
    high = beta.ppf(1 - tail, found + 1, groups - found) if found < groups - _SLACK else 1.0
    return float(low), float(high)


def rarest(given: Predictions, kinds: Iterable[np.ndarray]) -> np.ndarray:
    """Groups of the images of the kind with the fewest of them: a figure over several kinds is no surer than that one.

    Args:
        given: The images.
        kinds: Which images are of each kind, bool (N,).
    """
    return min((given.group[kind] for kind in kinds), key=lambda groups: len(np.unique(groups)))


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """`part` of `whole`, NaN where there is nothing to be a part of."""
    part, whole = np.broadcast_arrays(part, whole)
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def by_group(given: Predictions, values: np.ndarray) -> np.ndarray:
    """Sums over the images of each group: (N, ...) -> float (G, ...)."""
    table = np.zeros((given.groups, *values.shape[1:]))
    np.add.at(table, given.group, values)
    return table


def mean_recall(
    given: Predictions, right: np.ndarray, labels: Sequence[int], name: str
) -> Statistics:
    """Balanced accuracy: the mean recall over those of the classes that were drawn.

    Args:
        given: The images.
        right: Whether each net recognised an image, bool (S, N).
        labels: Numbers of the classes that count.
        name: What to call it.
    """
    own = given.target[:, None] == np.asarray(list(labels))
    images = by_group(given, own.astype(float))
    hits = by_group(given, (right.T[:, :, None] & own[:, None, :]).astype(float))

    def measure(weights: np.ndarray) -> np.ndarray:
        found = (weights.T @ hits.reshape(given.groups, -1)).reshape(-1, *hits.shape[1:])
        recalls = share(found, (weights.T @ images)[:, None, :])
        defined = ~np.isnan(recalls)
        return share(np.nan_to_num(recalls).sum(axis=2), defined.sum(axis=2))[..., None]

    return Statistics((name,), (rarest(given, own.T[own.any(axis=0)]),), measure)


def _resampling_draws(given: Predictions, samples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each group is drawn, (G, samples); the very draws of `src.metrics.bootstrap` with the same numbers."""
    drawn = (rng.integers(given.groups, size=given.groups) for _ in range(samples))
    return np.stack(
        [np.bincount(each, minlength=given.groups).astype(np.uint16) for each in drawn], axis=1
    )
