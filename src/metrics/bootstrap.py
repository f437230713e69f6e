"""Cluster bootstrap of every statistic: lesions or patients are drawn with replacement.

Images of one lesion or patient are not independent, so whole groups are drawn, the same ones for
all nets (seeds) of a model. The seeds add an error by Student's t, see `over_seeds`. An interval is
the middle part of the results (Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
chapter 13).
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.special import betaincinv  # scipy.stats takes half a second to import

from src.core.errors import ConfigError, UserError
from src.metrics import registry
from src.metrics.curves import Curve, RocCurve, area
from src.metrics.registry import PRIMARY
from src.metrics.settings import AuditSettings

COLUMNS = ["estimate", "low", "high", "interval", "images", "groups", "seeds"]
COLUMNS += ["seed_sd", "seed_values"]
ARGMAX, DECISION = "argmax", "decision/"  # decided without a rule; column of what one decides
CELLS = 2_000_000  # of the largest array that is held at once
FEW = 10  # lesions, with fewer of which drawing them again says too little
ISIC = f"isic_{PRIMARY}"  # as PRIMARY the mean of the recalls of all classes
_ROUNDING = 1e-9  # of a mean over seeds
Shares = Sequence[tuple[float, int]]  # shares in [0, 1] with their numbers of groups


class DifferentImagesError(UserError):
    """Predictions that should be for the same images and are not."""


@dataclass(frozen=True)
class Predictions:
    """Predictions of S nets (seeds) for the same N images in G groups; K classes.

    `group` is the number of the image's lesion or patient, int (N,) in [0, G), `target` the true
    label, int (N,), and `probability` float32 (S, N, K), as the metrics of the run record use it.
    `predicted`, int (S, N), is by the decision rule of each net, by default the most probable
    class; `rule` is that of the first net.
    """

    classes: tuple[str, ...]
    group: np.ndarray
    target: np.ndarray
    probability: np.ndarray
    predicted: np.ndarray
    rule: str = ARGMAX

    @property
    def groups(self) -> int:
        """Number of lesions or patients, G."""
        return int(self.group.max()) + 1

    @property
    def metrics(self) -> list[str]:
        """All metrics that can be computed, by their names without the split."""
        per_class = registry.class_metrics()
        of_classes = [f"{metric}/{name}" for metric in per_class for name in self.classes]
        return [*registry.overall_metrics(), *of_classes]

    def basis(self, metric: str) -> np.ndarray:
        """Groups of the images that a metric depends on.

        Recall depends on the images of the class, specificity on the others, the rest on all.
        """
        measure, _, name = metric.partition("/")
        positive = self.target == (self.classes.index(name) if name else -1)
        rows = {"recall": positive, "specificity": ~positive}
        return self.group[rows.get(measure, slice(None))]

    def of_classes(self, labels: Sequence[int]) -> "Predictions":
        """The images of these classes only."""
        rows = np.isin(self.target, labels)
        nets, group = self.probability[:, rows], pd.factorize(self.group[rows])[0]
        predicted = self.predicted[:, rows]
        return Predictions(self.classes, group, self.target[rows], nets, predicted, self.rule)


@dataclass(frozen=True)
class Statistics:
    """M statistics that are computed together for S nets.

    `bases` are for each statistic the groups of the images that it depends on, int (up to N,); for
    a mean over kinds of images, the groups of the rarest kind, see `rarest_groups`. `measure` maps
    weights of the groups (G, B), whole numbers, to values (B, S, M), NaN if undefined. `shares`:
    each is a share of its basis, such as sensitivity, and has an exact interval too.
    """

    names: tuple[str, ...]
    bases: tuple[np.ndarray, ...]
    measure: Callable[[np.ndarray], np.ndarray]
    shares: bool = False


def gather(frames: Sequence[pd.DataFrame], names: Sequence[str] = ()) -> Predictions:
    """Recorded predictions for the same images, in the same order.

    A frame for each net has the columns image_id, group, label, and p/<class> in label order, and
    decision/<rule> if its run has a decision rule. An image without a group is a group of its own.
    `names` are those of the frames in errors.

    Raises:
        DifferentImagesError: Other images, labels, groups or classes than in the first frame.
        UserError: No frame, an empty one, a missing column, a repeated image, a label that is no
            class or a probability that is not finite.
    """
    if not frames:
        raise UserError("no predictions to resample; evaluate the run first")
    names = names or [f"predictions {number}" for number in range(1, len(frames) + 1)]
    ordered = [_ordered(frame, name) for frame, name in zip(frames, names, strict=True)]
    first, classes = ordered[0], classes_of(ordered[0])
    for frame, name in zip(ordered[1:], names[1:], strict=True):
        if classes_of(frame) != classes:
            listed = ", ".join(classes_of(frame))
            raise DifferentImagesError(f"{name} has other classes than {names[0]}: {listed}")
        only = pd.Index(first["image_id"]).symmetric_difference(pd.Index(frame["image_id"]))
        if len(only):
            lacks = name if only[0] in set(first["image_id"]) else names[0]
            message = f"{lacks} lacks image {only[0]} ({len(only)} differ)"
            raise DifferentImagesError(f"{message}; compare runs on the same split")
        for named in ("label", "group"):
            differs = first["image_id"][first[named] != frame[named]]
            if len(differs):
                what = f"image {differs.iloc[0]} has another {named} in {name} than in {names[0]}"
                raise DifferentImagesError(f"{what}; compare runs on the same data")
    target = pd.Index(classes).get_indexer(pd.Index(first["label"]))
    columns = [f"p/{name}" for name in classes]
    probability = np.stack([frame[columns].to_numpy(dtype=np.float32) for frame in ordered])
    if broken := int((~np.isfinite(probability)).any(axis=(0, 2)).sum()):
        problem = f"probabilities of {broken} of {len(target)} images are not finite"
        raise UserError(f"{problem}: the net has diverged, train it again")
    # The predicted class is the first of the most probable ones, in single precision.
    predicted = probability.argmax(axis=2)
    rule = str(next(iter(first.filter(regex=f"^{DECISION}")), ARGMAX)).removeprefix(DECISION)
    for frame, row in zip(ordered, predicted, strict=True):
        for column in frame.filter(regex=f"^{DECISION}"):
            row[:] = pd.Index(classes).get_indexer(pd.Index(frame[column]))
    group = pd.factorize(first["group"])[0]
    return Predictions(classes, group, target, probability, predicted, rule)


def metric_statistics(predictions: Predictions, metrics: Sequence[str]) -> Statistics:
    """Metrics of the run record, computed as training computes them.

    Raises:
        ConfigError: A metric that predictions do not define.
    """
    for name in metrics:
        if name not in predictions.metrics:
            names = ", ".join(predictions.metrics)
            raise ConfigError("metric", f"predictions give {names}, but not {name!r}")
    classes, groups = len(predictions.classes), predictions.groups
    rows = predictions.group * classes + predictions.target
    cells = rows * classes + predictions.predicted
    counts = [np.bincount(row, minlength=groups * classes**2).reshape(groups, -1) for row in cells]
    table = np.concatenate(counts, axis=1).astype(float)  # (G, S * K * K)
    labels = range(1 if classes == 2 else 0, classes if "auroc" in metrics else 0)
    curves = [
        [
            RocCurve(score[:, k], predictions.target == k, predictions.group, groups, True)
            for k in labels
        ]
        for score in predictions.probability
    ]

    def measure(weights: np.ndarray) -> np.ndarray:
        matrices = (weights.T @ table).reshape(weights.shape[1], -1, classes, classes)
        values = registry.count_metrics(matrices, predictions.classes, metrics)
        if labels:
            areas = [[area(*curve.counts(weights)) for curve in of_net] for of_net in curves]
            values["auroc"] = registry.mean_of_defined(np.array(areas).transpose(2, 0, 1))
        return np.stack([values[name] for name in metrics], axis=2)

    return Statistics(tuple(metrics), tuple(map(predictions.basis, metrics)), measure)


def curve_statistics(
    predictions: Predictions, class_name: str, curves: Mapping[str, Curve]
) -> Statistics:
    """Statistics of one class's ROC curve, for each net, named `<statistic>/<class>`."""
    label = predictions.classes.index(class_name)
    positive = predictions.target == label
    rocs = [
        RocCurve(score[:, label], positive, predictions.group, predictions.groups)
        for score in predictions.probability
    ]

    def measure(weights: np.ndarray) -> np.ndarray:
        counts = [roc.counts(weights) for roc in rocs]
        values = [[curve(*of_net) for curve in curves.values()] for of_net in counts]
        return np.array(values).transpose(2, 0, 1)

    names = tuple(f"{name}/{class_name}" for name in curves)
    basis = rarest_groups(predictions, (positive, ~positive))
    return Statistics(names, (basis,) * len(curves), measure)


def isic_balanced_accuracy(predictions: Predictions) -> Statistics:
    """Balanced accuracy of ISIC 2018 task 3 and 2019: an image with two top classes is wrong."""
    judged, target = _isic_decisions(predictions), predictions.target
    basis = rarest_groups(predictions, (target == label for label in np.unique(target)))
    return replace(metric_statistics(judged, [PRIMARY]), names=(ISIC,), bases=(basis,))


def _isic_decisions(predictions: Predictions) -> Predictions:
    """The top class of each image, whatever the decision rule; with two of them a wrong class."""
    target, classes = predictions.target, len(predictions.classes)
    top = predictions.probability == predictions.probability.max(axis=2, keepdims=True)
    right = top[:, np.arange(len(target)), target] & (top.sum(axis=2) == 1)
    return replace(predictions, predicted=np.where(right, target, (target + 1) % classes))


def evaluate(predictions: Predictions, *statistics: Statistics) -> np.ndarray:
    """The statistics of each net on all images, float (S, M in all)."""
    weights = np.ones((predictions.groups, 1))
    return np.concatenate([part.measure(weights)[0] for part in statistics], axis=1)


def resample(
    predictions: Predictions,
    statistics: Sequence[Statistics],
    samples: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """The statistics of each net on `samples` draws of the groups, float (samples, S, M in all).

    Raises:
        ConfigError: `samples` below 1.
    """
    if samples < 1:
        raise ConfigError("samples", f"must be at least 1, but got {samples}")
    groups = predictions.groups
    seeds, images, classes = predictions.probability.shape
    at_once = max(1, CELLS // max(groups, images, seeds * classes**2))
    values = []
    for start in range(0, samples, at_once):
        rows = min(at_once, samples - start)
        drawn = rng.integers(groups, size=(rows, groups)) + groups * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * groups).reshape(rows, groups)
        weights = np.ascontiguousarray(counts.T, dtype=float)
        values.append(np.concatenate([part.measure(weights) for part in statistics], axis=2))
    return np.concatenate(values)


def over_seeds(
    values: np.ndarray, points: np.ndarray, rng: np.random.Generator, difference: bool = False
) -> np.ndarray:
    """Draws of the mean over S seeds that hold the images' and the seeds' share of its error.

    The spread of few seeds is itself uncertain: drawing them with replacement gives intervals that
    are too short (three seeds: 75 to 90% instead of 95%). So the mean of the S nets on each draw
    of the images gets an error of the seeds, which follows Student's t with S - 1 degrees of
    freedom. Its variance is that of the values on all images less the part that the images explain.
    One net has no such share: its interval holds for this net only.

    Args:
        values: Of each net on draws of the images, (samples, S, M).
        points: Of each net on all images, (S, M).
        rng: For the errors of the seeds, the same ones for all M statistics.
        difference: The values are differences in [-1, 1].

    Returns:
        (samples, M), within [0, 1] or, for differences and metrics that can be negative, [-1, 1];
        NaN where a net's value is.

    Source: Behrens and Fisher's problem by fiducial draws, as in Weerahandi, Generalized confidence
        intervals, Journal of the American Statistical Association 88, 1993. Coverage is simulated
        in `benchmarks/coverage.py`.
    """
    means, seeds = values.mean(axis=1), values.shape[1]
    if seeds == 1:
        return means
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a statistic without a defined value
        of_images = np.nanvar(values - means[:, None], axis=0).sum(axis=0) / (seeds - 1)
    variance = np.maximum(points.var(axis=0, ddof=1) - of_images, 0.0)
    errors = np.sqrt(variance / seeds) * rng.standard_t(seeds - 1, size=(len(values), 1))
    least = -1.0 if difference or (values < 0).any() else 0.0
    return np.clip(means + errors, least, 1.0)


def streams(seed: int, number: int) -> list[np.random.Generator]:
    """Independent random generators from one seed; the first do not depend on `number`."""
    return [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(number)]


def intervals(
    predictions: Sequence[pd.DataFrame],
    metrics: Sequence[str] | None = None,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> pd.DataFrame:
    """Percentile intervals of metrics on one split; the estimate is the mean over the seeds.

    A recall, specificity or accuracy with fewer than `FEW` lesions right or wrong gets the wider of
    it and the exact interval, a balanced accuracy or AUROC with fewer lesions of a class that of
    `exact_mean`. An interval without width is left out.

    Means of a sample are over the classes with images in it, as in the run record. A sample in
    which a metric is undefined is left out for that metric. There is one frame for each seed, of
    the same images, see `gather`. Metrics are named without the split; all by default.

    Returns:
        A row for each metric: metric, estimate (NaN unless every seed defines it), low, high (NaN
        where `interval` has none), images and groups of its basis, seeds, their standard deviation
        (NaN for one) and their values as text.

    Raises:
        ConfigError: An unknown metric, `samples` below 1 or `level` outside (0, 1).
        UserError: As `gather`.
    """
    gathered = gather(predictions)
    statistics = metric_statistics(gathered, gathered.metrics if metrics is None else metrics)
    table = _estimates(gathered, [statistics], samples, seed, level)
    return table.reset_index().drop(columns="interval")


def estimates(
    predictions: Predictions, statistics: Sequence[Statistics], settings: AuditSettings
) -> pd.DataFrame:
    """Means over the seeds with intervals that hold for few lesions, see `interval`.

    Returns:
        A row for each statistic, indexed by its name: estimate (NaN unless every seed defines it),
        low, high, interval ("bootstrap"; "exact" where an end is Clopper and Pearson's; "" for
        none), images and groups of its basis, seeds, their standard deviation and values as text.
    """
    return _estimates(predictions, statistics, settings.samples, settings.seed, settings.level)


def _estimates(
    predictions: Predictions, parts: Sequence[Statistics], samples: int, seed: int, level: float
) -> pd.DataFrame:
    points = evaluate(predictions, *parts)
    group_rng, seed_rng = streams(seed, 2)
    values = over_seeds(resample(predictions, parts, samples, group_rng), points, seed_rng)
    columns, rows = zip(values.T, points.T, strict=True), []
    for part in parts:
        for name, basis in zip(part.names, part.bases, strict=True):
            column, of_seeds = next(columns)
            estimate, groups = of_seeds.mean(), len(np.unique(basis))
            few = not FEW <= estimate * groups <= groups - FEW
            few = few and name.startswith(("accuracy", "recall/", "specificity/"))
            if name.startswith(("auroc/", "average_precision/")):
                few = groups > 1 and _is_few(estimate, groups)
            shares: Shares = [(estimate, groups)] if part.shares or few else []
            if name == "auroc":
                shares = class_areas(predictions)
                if min((number for _, number in shares), default=2) < 2:
                    column, shares = np.full_like(column, np.nan), []
            if name in (PRIMARY, ISIC):
                decided = predictions if name == PRIMARY else _isic_decisions(predictions)
                shares = class_recalls(decided)
            deviation = float(of_seeds.std(ddof=1)) if len(of_seeds) > 1 else np.nan
            row = interval(column, estimate, basis, level, shares)
            texts = " ".join(f"{value:.4f}" for value in of_seeds)
            rows.append((name, *row, len(of_seeds), deviation, texts))
    return pd.DataFrame(rows, columns=["metric", *COLUMNS]).set_index("metric")


def percentile_interval(
    values: np.ndarray, estimate: float, basis: np.ndarray, level: float
) -> tuple[float, float]:
    """The middle `level` of the defined values; NaN without an estimate or with one group only.

    Raises:
        ConfigError: `level` outside (0, 1).
    """
    if not 0 < level < 1:
        raise ConfigError("level", f"must be between 0 and 1, but got {level:g}")
    defined = values[~np.isnan(values)]
    if np.isnan(estimate) or not defined.size or len(np.unique(basis)) < 2:
        return np.nan, np.nan
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def interval(
    values: np.ndarray, estimate: float, basis: np.ndarray, level: float, shares: Shares = ()
) -> tuple[float, float, float, str, int, int]:
    """A row of `estimates` without the seeds, from the values of the samples.

    A share, or the mean of `shares`, gets the wider of the percentile interval and the exact one,
    end by end. Other statistics, and the mean of several shares, have no interval with fewer than
    two groups (of one of them) or if the interval has no width.
    """
    low, high = percentile_interval(values, estimate, basis, level)
    groups, kind = len(np.unique(basis)), "bootstrap"
    single = len(shares) > 1 and min(number for _, number in shares) < 2
    if shares and groups and not single and not np.isnan(estimate):
        least, most = exact_mean(shares, level)
        kind = "bootstrap" if low <= least and high >= most else "exact"
        low, high = float(np.fmin(low, least)), float(np.fmax(high, most))
    elif single or groups < 2 or not high - low > _ROUNDING:
        low, high, kind = np.nan, np.nan, ""
    return float(estimate), low, high, kind, len(basis), groups


def clopper_pearson(estimate: float, groups: int, level: float) -> tuple[float, float]:
    """Exact interval of a share in which each lesion counts once, however many images it has.

    With several images per lesion the number of recognised lesions need not be whole.

    Source: Clopper and Pearson, The use of confidence or fiducial limits, Biometrika 26, 1934, by
        quantiles of beta distributions, which are defined between whole numbers too.
    """
    hits, tail = estimate * groups, (1 - level) / 2
    low = betaincinv(hits, groups - hits + 1, tail) if hits > _ROUNDING else 0.0
    high = betaincinv(hits + 1, groups - hits, 1 - tail) if hits < groups - _ROUNDING else 1.0
    return float(low), float(high)


def exact_mean(shares: Shares, level: float) -> tuple[float, float]:
    """Interval of the mean of independent shares, from the exact one of each share.

    Source: Zou and Donner, Construction of confidence limits about effect measures, Statistics in
        Medicine 27, 2008.
    """
    ends = np.array([[share, *clopper_pearson(share, n, level)] for share, n in shares])
    mean, (below, above) = ends[:, 0].mean(), np.hypot.reduce(ends[:, 1:] - ends[:, :1])
    return max(0.0, mean - below / len(ends)), min(1.0, mean + above / len(ends))


def class_recalls(predictions: Predictions) -> Shares:
    """Recalls, as means over the nets, and the numbers of groups of the classes with images.

    Empty with `FEW` groups of each class: then drawing groups again says enough.
    """
    names = [f"recall/{name}" for name in predictions.classes]
    shares = evaluate(predictions, metric_statistics(predictions, names)).mean(axis=0)
    sizes = [len(np.unique(predictions.basis(name))) for name in names]
    recalls = [(share, groups) for share, groups in zip(shares, sizes, strict=True) if groups]
    return recalls if min(groups for _, groups in recalls) < FEW else []


def class_areas(predictions: Predictions) -> Shares:
    """AUROCs as `class_recalls`, of two classes that of the second; groups of the rarer side.

    An AUROC is the mean over a class of values in [0, 1], which vary less than hits and misses do:
    the exact interval of a share holds for it. Empty if drawing groups again says enough.
    """
    names = predictions.classes[len(predictions.classes) == 2 :]
    parts = [curve_statistics(predictions, name, {"auroc": area}) for name in names]
    areas = evaluate(predictions, *parts).mean(axis=0)
    sizes = [len(np.unique(part.bases[0])) for part in parts]
    shares = [(value, groups) for value, groups in zip(areas, sizes, strict=True) if groups]
    return shares if any(_is_few(value, groups) for value, groups in shares) else []


def _is_few(area: float, groups: int) -> bool:
    """Whether draws of the groups say too little of an area: they are few, or all are separated."""
    return groups < FEW or groups * (1 - area) < 1


def rarest_groups(predictions: Predictions, kinds: Iterable[np.ndarray]) -> np.ndarray:
    """Groups of the kind of images, bool (N,), with the fewest: it limits how sure a mean is."""
    groups = (predictions.group[kind] for kind in kinds)
    return min(groups, key=lambda numbers: len(np.unique(numbers)))


def classes_of(frame: pd.DataFrame) -> tuple[str, ...]:
    """The classes of recorded predictions, in label order."""
    return tuple(str(column).removeprefix("p/") for column in frame if str(column).startswith("p/"))


def _ordered(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """The checked frame sorted by image; ids and names as text, groups filled in."""
    classes = classes_of(frame)
    needed = ("image_id", "group", "label", *(() if len(classes) > 1 else ("p/<class>",)))
    missing = [column for column in needed if column not in frame]
    if missing:
        raise UserError(f"{name}: no column {missing[0]}; these are no recorded predictions")
    if frame.empty:
        raise UserError(f"{name}: no image in it; evaluate the run again")
    named = ["label", *map(str, frame.filter(regex=f"^{DECISION}"))]
    texts = {column: frame[column].astype(str) for column in ("image_id", "group", *named)}
    texts["group"] = texts["group"].where(frame["group"].notna(), "alone: " + texts["image_id"])
    ordered = frame.assign(**texts).sort_values("image_id", kind="stable", ignore_index=True)
    repeated = ordered["image_id"][ordered["image_id"].duplicated()]
    if len(repeated):
        message = f"image {repeated.iloc[0]} is in it twice; each image must be predicted once"
        raise UserError(f"{name}: {message}")
    for column in named:
        if unknown := sorted(set(ordered[column]) - set(classes)):
            problem = f"{column} {unknown[0]!r} is none of its classes {', '.join(classes)}"
            raise UserError(f"{name}: {problem}")
    return ordered
