"""The registry of metrics: name, label, unit, direction, format and computation of each, once.

A new metric is one entry in `METRICS`. Training then records it (if it has `from_counts`), tables
label it, and objectives and limits accept it.
"""

import difflib
import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np

from src.core.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

Direction = Literal["maximize", "minimize"]
Operator = Literal["<=", ">="]
Kind = Literal["fraction", "number", "cost", "time"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)

# The metric that models are compared by unless a config names another one, without its split.
PRIMARY = "balanced_accuracy"
# The costs of a short table.
COSTS: tuple[str, ...] = ("efficiency/flops", "efficiency/params")
# Kind of time -> the value that is there whenever it was measured.
MAIN_TIMES = {"latency": "efficiency/latency_ms/b1/p50", "ratio": "efficiency/latency_ratio"}
COSTS += tuple(MAIN_TIMES.values())
# Prefix of what a compression lost: the origin's value minus the compressed net's.
LOST = "compression/lost"
# Names of the class whose missed cases cost lives, in the data sets.
MELANOMA = ("mel", "melanoma", "malignant")
# Tags of a compressed run: the method, the run it was made from, and the split of the comparison.
COMPRESSION = ("compression", "origin", "lost_on")

_SPLITS = {"val": "validation, each epoch", "test": "test", "best/val": "validation"}
# Prefix of a split's metrics in the run record: validation figures are those of the kept epoch.
RECORDED = {"val": "best/val", "test": "test"}
_PLACEHOLDERS = {  # in a metric's name, as <placeholder> -> regular expression
    "split": "|".join(_SPLITS),
    "class": ".+",
    "batch": r"[1-9]\d*",
    "percentile": r"\d+",
    "percent": r"[\d.]+",
    "rate": "sensitivity|specificity|ppv|npv",
    "rule": "balanced|accuracy|recall_floor",
}


@dataclass(frozen=True)
class Metric:
    """One entry of the registry, or, as `describe` returns it, one metric of the run record.

    Attributes:
        name: As in the run record, such as "val/recall/mel". In the registry with placeholders,
            such as "<split>/recall/<class>". The texts below may use the same placeholders.
        label: For axis titles and tables, without the unit. `describe` adds the split.
        short: For the head of a narrow table; the label, if empty.
        unit: "ms", "MB", "multiply-adds" ...; empty for bare numbers.
        direction: Which way is better.
        kind: "fraction": a quality in [0, 1]; "number": another value of a split, such as a loss;
            "cost" and "time": what a model costs.
        noun: In a sentence behind the value and in place of the label: "30M multiply-adds".
        phrase: The metric with its value in a sentence; `<quantity>` is the value with its unit.
        format: In a table cell: a format specification or "engineering" (30.0M).
        audited: Only the clinical audit (src.evaluate) computes it: no training can choose by it.
        fitted: By a decision that is fitted on validation: recorded after training, by no epoch.
            On validation itself it is fitted on the other folds (`metrics.decision_rules`).
        from_counts: Confusion matrices (..., K, K), rows are true classes and columns predicted
            ones -> values (...,), or (..., K) for a metric of each class; NaN where undefined.
        hub: Name in the Hugging Face library of metrics, if it has one.
        split: For people, such as "test"; filled in by `describe`.
    """

    name: str
    label: str
    short: str = ""
    unit: str = ""
    direction: Direction = "maximize"
    kind: Kind = "fraction"
    noun: str = ""
    phrase: str = "<label> <quantity>"
    format: str = ".3f"
    audited: bool = False
    fitted: bool = False
    from_counts: Callable[[np.ndarray], np.ndarray] | None = None
    hub: str = ""
    split: str = ""

    @property
    def plain_label(self) -> str:
        """The label without the split."""
        return self.label.removesuffix(f" ({self.split})") if self.split else self.label

    @property
    def axis(self) -> str:
        """The label with its unit, such as "FLOPs (multiply-adds)"."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


def ratio(part: np.ndarray, total: np.ndarray) -> np.ndarray:
    """`part` divided by `total`, NaN where the total is 0."""
    part, total = np.broadcast_arrays(part, total)
    return np.divide(part, total, out=np.full(part.shape, np.nan), where=total > 0)


def mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of the values that are not NaN; NaN where all are."""
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0.0).sum(axis=-1), defined.sum(axis=-1))


def _hits(counts: np.ndarray) -> np.ndarray:
    return np.diagonal(counts, axis1=-2, axis2=-1)


def _recall(counts: np.ndarray) -> np.ndarray:
    return ratio(_hits(counts), counts.sum(axis=-1))


def _f1(counts: np.ndarray) -> np.ndarray:
    return ratio(2 * _hits(counts), counts.sum(axis=-1) + counts.sum(axis=-2))


def _specificity(counts: np.ndarray) -> np.ndarray:
    negatives = counts.sum(axis=(-2, -1))[..., None] - counts.sum(axis=-1)
    return ratio(negatives - (counts.sum(axis=-2) - _hits(counts)), negatives)


def _accuracy(counts: np.ndarray) -> np.ndarray:
    return ratio(_hits(counts).sum(axis=-1), counts.sum(axis=(-2, -1)))


def _split(name: str, label: str, short: str = "", **values: Any) -> Metric:
    return Metric(f"<split>/{name}", label, short, **values)


# A metric that only the clinical audit computes, and one by a decision fitted on validation.
_audit = functools.partial(_split, audited=True)
_fitted = functools.partial(_split, fitted=True)


def _by_rule(name: str, label: str, short: str) -> Metric:
    return _fitted(f"decision/<rule>/{name}", f"{label}, decision <rule>", f"{short} (<rule>)")


def _cost(name: str, label: str, short: str = "", unit: str = "", **values: Any) -> Metric:
    return Metric(name, label, short, unit, **{"direction": "minimize", "kind": "cost"} | values)


def _latency(batch: str, percentile: str, short: str) -> Metric:
    name = f"efficiency/latency_ms/b{batch}/p{percentile}"
    phrase = f"<quantity> for a batch of {batch} (p{percentile})"
    label = f"latency of a batch of {batch}, p{percentile}"
    return _cost(name, label, short, "ms", phrase=phrase, format=".2f")


_LOSS: dict[str, Any] = {"direction": "minimize", "kind": "number"}
_ERROR: dict[str, Any] = {"direction": "minimize"}
_COUNT: dict[str, Any] = {"phrase": "<quantity>", "format": "engineering"}
_TIME: dict[str, Any] = {"kind": "time"}
_TRAINABLE = "trainable parameters"
_SCALED, _CHOSEN = "after temperature scaling", "chosen on validation"
_AT, _ABOVE = "at <percent>", "above 80%"

# The order is that of tables. The first entry whose name matches describes a metric.
METRICS: list[Metric] = [
    Metric("train/loss", "training loss", **_LOSS),
    # Of augmented images, with dropout, while the weights change: not that of the kept epoch.
    Metric("train/accuracy", "accuracy in training steps", "train accuracy"),
    _split("loss", "loss", **_LOSS),
    _split("accuracy", "accuracy", from_counts=_accuracy, hub="accuracy"),
    _split(
        PRIMARY,
        "balanced accuracy",
        "bal. acc.",
        from_counts=lambda counts: mean_of_defined(_recall(counts)),
        hub=PRIMARY,
    ),
    _split("macro_f1", "macro F1", from_counts=lambda c: mean_of_defined(_f1(c)), hub="f1"),
    # From the scores: `metrics.classification.mean_auroc`, resampled by `metrics.bootstrap`.
    _split("auroc", "AUROC", hub="roc_auc"),
    _split("recall/<class>", "recall of <class>", "<class> recall", from_counts=_recall),
    _split(
        "precision/<class>",
        "precision of <class>",
        from_counts=lambda c: ratio(_hits(c), c.sum(axis=-2)),
    ),
    _split("f1/<class>", "F1 of <class>", from_counts=_f1),
    _split("specificity/<class>", "specificity of <class>", from_counts=_specificity),
    # From `metrics.curves`.
    _audit("auroc/<class>", "AUROC of <class>", "AUROC"),
    _audit("average_precision/<class>", "average precision of <class>", "average precision"),
    _audit(
        "auroc_above_80_sensitivity/<class>",
        f"AUC {_ABOVE} sensitivity of <class>",
        f"AUC {_ABOVE} sensitivity",
    ),
    _audit(
        "pauc_80/<class>",
        f"pAUC {_ABOVE} TPR (ISIC 2024, at most 0.2) of <class>",
        f"pAUC {_ABOVE} TPR",
    ),
    _audit("sensitivity_at_spec<percent>/<class>", f"sensitivity {_AT}% specificity of <class>"),
    _audit("specificity_at_sens<percent>/<class>", f"specificity {_AT}% sensitivity of <class>"),
    # From `metrics.decision_rules`.
    _by_rule(PRIMARY, "balanced accuracy", "bal. acc."),
    _by_rule("accuracy", "accuracy", "accuracy"),
    _by_rule("recall/<class>", "recall of <class>", "<class> recall"),
    _by_rule("specificity/<class>", "specificity of <class>", "<class> specificity"),
    # At 80% sensitivity; the clinical audit's figures replace those of test.
    _fitted("chosen/<rate>/<class>", f"<rate> of <class> at the threshold {_CHOSEN}", "<rate>"),
    _audit(f"isic_{PRIMARY}", "balanced accuracy, ties undecided (ISIC)", "bal. acc. (ISIC)"),
    # From `metrics.calibration`.
    _audit("ece", "expected calibration error", "ECE", **_ERROR),
    _audit("ece_scaled", f"expected calibration error {_SCALED}", "ECE, scaled", **_ERROR),
    _audit("adaptive_ece", "adaptive calibration error", "adaptive ECE", **_ERROR),
    _audit("adaptive_ece_scaled", f"adaptive calibration error {_SCALED}", **_ERROR),
    _audit("brier", "Brier score", "Brier", **_ERROR),
    _audit("brier_scaled", f"Brier score {_SCALED}", "Brier, scaled", **_ERROR),
    _audit("nll", "negative log-likelihood", "NLL", **_LOSS),
    _audit("nll_scaled", f"negative log-likelihood {_SCALED}", "NLL, scaled", **_LOSS),
    _audit("temperature", "temperature fitted on validation", "temperature", **_LOSS),
    _cost("efficiency/flops", "FLOPs", unit="multiply-adds", noun="multiply-adds", **_COUNT),
    _cost("efficiency/params", "parameters", "params", noun="parameters", **_COUNT),
    _cost("efficiency/trainable_params", _TRAINABLE, "trainable", noun=_TRAINABLE, **_COUNT),
    _cost("efficiency/size_mb", "size of the weights", "size", "MB"),
    _latency("1", "50", short="ms/image"),
    _latency("<batch>", "<percentile>", short="ms b<batch> p<percentile>"),
    _cost(
        "efficiency/latency_ratio",
        "latency relative to the reference net",
        "x ref",
        noun="x the reference net",
        phrase="latency <quantity>",
        format=".2f",
    ),
    _cost("efficiency/throughput", "throughput", unit="images/s", direction="maximize"),
    _cost("efficiency/peak_memory_mb", "peak memory of inference", "peak MB", "MB"),
    _cost("efficiency/energy_mj", "energy of an inference, other work included", "energy", "mJ"),
    _cost("efficiency/train_peak_memory_mb", "peak GPU memory of training", unit="MB"),
    _cost("time/fit_s", "training time", unit="s", **_TIME),
    _cost("time/epoch_s", "median time of an epoch with its validation", unit="s", **_TIME),
    _cost("time/test_s", "time of the evaluation on the test split", unit="s", **_TIME),
    _cost("time/compile_s", "time of compiling the training step", unit="s", **_TIME),
    _cost("time/compile_speedup", "speed-up by compiling", direction="maximize", **_TIME),
    _cost("system/tracking_s", "time spent on recording", unit="s", **_TIME),
    _cost("time/images_per_s", "training speed", unit="images/s", direction="maximize", **_TIME),
]


def describe(name: str) -> Metric:
    """The registry's entry for a metric, with `name`, its texts and its split filled in.

    Raises:
        ConfigError: The run record has no such metric; the message lists close names.
    """
    for entry in METRICS:
        match = _pattern(entry.name).fullmatch(name)
        if match:
            texts = [entry.label, entry.short, entry.phrase]
            for key, value in match.groupdict().items():
                texts = [text.replace(f"<{key}>", value) for text in texts]
            label, short, phrase = texts
            split = _SPLITS.get(match.groupdict().get("split", ""), "")
            label += f" ({split})" if split else ""
            return replace(entry, name=name, label=label, short=short, phrase=phrase, split=split)
    splits = [(entry.name, _SPLITS if "<split>" in entry.name else [""]) for entry in METRICS]
    names = [name.replace("<split>", split) for name, parts in splits for split in parts]
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    # The first part alone finds a metric that was typed without its prefix.
    close = close or [other for other in names if f"/{name.split('/')[0]}" in other][:3]
    hint = "see src/metrics/registry.py for all names"
    hint = f"did you mean {' or '.join(close)}?" if close else hint
    raise ConfigError("metric", f"unknown metric {name!r}; {hint}")


def recorded_in_training(name: str) -> Metric:
    """As `describe`, for a metric by which a run, a study or an epoch may be chosen.

    A ConfigError also if only the clinical audit computes it.
    """
    metric = describe(name)
    if metric.audited:
        problem = f"must be one that training records, but {name} is computed by src.evaluate alone"
        raise ConfigError("metric", problem)
    return metric


def short_label(name: str) -> str:
    """The head of a table column, such as "bal. acc.", "mel recall" or "params".

    The name is that of the run record, with or without the split; after `compression/lost/` too.
    A ConfigError if there is no such metric.
    """
    name = name.removeprefix(f"{LOST}/")
    try:
        metric = describe(name)
    except ConfigError:
        metric = describe(f"val/{name}")
    return metric.short or metric.plain_label


def overall_metrics() -> list[str]:
    """Metrics of all classes together that training records, without split and loss."""
    return [name for name in _recorded_qualities() if "/" not in name]


def class_metrics() -> list[str]:
    """Metrics of one class that training records, without split and class, such as "recall"."""
    return [name.removesuffix("/<class>") for name in _recorded_qualities() if "/" in name]


def default_quality_metrics(classes: Iterable[str] = ()) -> list[str]:
    """The metrics of a short table, without split: the primary one, accuracy, melanoma recall.

    The recall is left out where none of the classes is melanoma.
    """
    melanoma = melanoma_of(classes)
    return [PRIMARY, "accuracy", *([f"recall/{melanoma}"] if melanoma else [])]


def count_metrics(
    counts: np.ndarray, classes: Sequence[str], metrics: Iterable[str] | None = None
) -> dict[str, np.ndarray]:
    """All metrics that follow from confusion matrices (..., K, K); rows are true classes.

    Args:
        counts: The matrices.
        classes: K names in label order.
        metrics: Compute at least these; all by default.

    Returns:
        Name without the split -> values (...,) in [0, 1]. NaN if undefined: the recall of a class
        without images, the precision of a class never predicted, the F1 of a class without both,
        the specificity of a class that all images belong to. Means are over the defined classes.
    """
    values: dict[str, np.ndarray] = {}
    recorded = _recorded_qualities()
    measures = {name.partition("/")[0] for name in (recorded if metrics is None else metrics)}
    for name, metric in recorded.items():
        measure = name.partition("/")[0]
        if metric.from_counts is None or measure not in measures:
            continue
        computed = metric.from_counts(counts)
        if "/" in name:
            values |= {f"{measure}/{key}": computed[..., at] for at, key in enumerate(classes)}
        else:
            values[name] = computed
    return values


def melanoma_of(classes: Iterable[str]) -> str | None:
    """The class that is melanoma, or None."""
    return next((name for name in classes if name.lower() in MELANOMA), None)


def melanoma_class(table: "pd.DataFrame", prefix: str) -> str:
    """The melanoma class of a table of runs, by its columns `<prefix>/recall/<class>`, or "mel"."""
    head = f"{prefix}/recall/"
    columns = (str(name) for name in table)
    names = (name.removeprefix(head) for name in columns if name.startswith(head))
    return melanoma_of(names) or MELANOMA[0]


@dataclass(frozen=True)
class _Measured:
    """A metric of a run; `val/...` is its value at the kept epoch, recorded as `best/val/...`."""

    metric: str

    def __post_init__(self) -> None:
        """Replace the name that a user types by that of the value in the run record."""
        if self.metric.startswith("val/"):
            object.__setattr__(self, "metric", f"best/{self.metric}")

    @property
    def per_epoch(self) -> str:
        """The name of its values after each epoch, such as `val/loss`."""
        return self.metric.removeprefix("best/")


@dataclass(frozen=True)
class Objective(_Measured):
    """A metric of the run record to optimise; the direction is the registry's unless configured."""

    direction: Direction

    def __str__(self) -> str:
        return f"{self.direction} {self.metric}"


@dataclass(frozen=True)
class Limit(_Measured):
    """A bound on a metric of the run record; a value equal to it satisfies the limit."""

    operator: Operator
    value: float

    def violation(self, measured: float) -> float:
        """Distance beyond the bound in the metric's unit; <= 0 if satisfied, NaN for NaN."""
        return measured - self.value if self.operator == "<=" else self.value - measured

    def holds(self, measured: float) -> bool:
        """Whether `measured` satisfies the limit; NaN does not."""
        return self.violation(measured) <= 0

    def __str__(self) -> str:
        return f"{self.metric} {self.operator} {self.value:g}"


def parse_objectives(config: Mapping[str, Any]) -> list[Objective]:
    """The objectives of a `conf/objective/` file: a list of `{metric: ..., direction: ...}`.

    The direction may be left out; the opposite of the better one is accepted (worst case).

    Raises:
        ConfigError: No objective, an unknown or repeated metric, or another direction.
    """
    entries = config.get("objectives") or []
    if not entries or isinstance(entries, str) or not isinstance(entries, Sequence):
        problem = f"must list at least one {{metric: ..., direction: ...}}, but is {entries!r}"
        raise ConfigError("objective.objectives", problem)
    objectives: dict[str, Objective] = {}
    for number, entry in enumerate(entries):
        key = f"objective.objectives[{number}]"
        keys = set(entry) if isinstance(entry, Mapping) else set()
        if "metric" not in keys or keys - {"metric", "direction"}:
            form = "{metric: <name>, direction: maximize | minimize}"
            raise ConfigError(key, f"must be {form}, but got {entry!r}")
        metric = _choosable(str(entry["metric"]), key)
        direction = entry.get("direction") or metric.direction
        if direction not in DIRECTIONS:
            message = f"must be {' or '.join(DIRECTIONS)}, but got {direction!r}"
            raise ConfigError(f"{key}.direction", message)
        objective = Objective(metric.name, direction)
        if objective.metric in objectives:
            message = f"must name each metric once, but got {metric.name} again"
            raise ConfigError(f"{key}.metric", message)
        objectives[objective.metric] = objective
    return list(objectives.values())


def parse_limits(config: Mapping[str, Any]) -> list[Limit]:
    """The limits of a `conf/objective/` file: texts such as "efficiency/params <= 692e3".

    Raises:
        ConfigError: A text that is no limit, or an unknown metric; the message names the key.
    """
    entries, limits = config.get("limits") or [], []
    if isinstance(entries, str) or not isinstance(entries, Sequence):
        problem = f'must be a list like ["efficiency/params <= 692e3"], but got {entries!r}'
        raise ConfigError("objective.limits", problem)
    for number, text in enumerate(entries):
        key = f"objective.limits[{number}]"
        parts = re.fullmatch(r"\s*(.*?)\s*(<=|>=)\s*(\S+)\s*", str(text))
        value = math.nan
        with suppress(ValueError):
            value = float(parts[3]) if parts else math.nan
        if parts is None or not math.isfinite(value):
            message = f'must be like "efficiency/params <= 692e3", but got {str(text)!r}'
            raise ConfigError(key, message)
        limits.append(Limit(_choosable(parts[1], key).name, cast("Operator", parts[2]), value))
    return limits


def _choosable(name: str, key: str) -> Metric:
    if name.startswith("test/"):
        problem = "must not be read on the split that is reported, but got "
        raise ConfigError(key, f"{problem}{name}; take val/...")
    try:
        return recorded_in_training(name)
    except ConfigError as error:
        raise error.under(key) from None


def _recorded_qualities() -> dict[str, Metric]:
    """Entries that each epoch records for a split, by name without the split; not the loss."""
    return {
        metric.name.removeprefix("<split>/"): metric
        for metric in METRICS
        if metric.name.startswith("<split>/")
        and metric.kind == "fraction"
        and not (metric.audited or metric.fitted)
    }


@functools.cache
def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"<(\w+)>", lambda m: f"(?P<{m[1]}>{_PLACEHOLDERS[m[1]]})", name))
