"""The one place that knows a metric's name, unit, label and which way is better."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import pandas as pd

from src.core.errors import ConfigError

LOST = "compression/lost"  # before the name of a metric: the origin's less the compressed net's
MELANOMA = (
    "mel",
    "melanoma",
    "malignant",
)  # what the class whose missed cases cost lives is called, by data set
COMPRESSION = (
    "compression",
    "origin",
    "lost_on",
)  # tags: how, of which run, and on which split that was judged


def recorded_name(metric: str) -> str:
    """Under which name a run holds its final value: validation metrics at the chosen epoch, the others as they are."""
    return f"best/{metric}" if metric.startswith("val/") else metric


def melanoma_class(table: pd.DataFrame, prefix: str) -> str:
    """The class that is melanoma in these runs, or "mel" where none of them has it."""
    recalls = [
        str(name).removeprefix(f"{prefix}/recall/")
        for name in table
        if str(name).startswith(f"{prefix}/recall/")
    ]
    return next((name for name in recalls if name.lower() in MELANOMA), MELANOMA[0])


Direction = Literal["maximize", "minimize"]
Operator = Literal["<=", ">="]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
OPERATORS: tuple[Operator, ...] = get_args(Operator)


@dataclass(frozen=True)
class Metric:
    """What is known of a metric.

    Attributes:
        name: As in the run record, such as "val/recall/mel".
        label: For people: axis titles, table heads; without the unit.
        unit: "ms", "MB", "multiply-adds" ...; empty for fractions in [0, 1] and other bare numbers.
        direction: Which way is better.
        audited: Whether only the clinical audit (src.evaluate) computes it, so that no training can
            choose by it.
    """

    name: str
    label: str
    unit: str
    direction: Direction
    audited: bool = False

    @property
    def axis(self) -> str:
        """Label with its unit, such as "FLOPs (multiply-adds)"."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


@dataclass(frozen=True)
class Objective:
    """A metric that is to be made better.

    Attributes:
        metric: Name from the run record.
        direction: Which way; the table's, unless the config says otherwise.
    """

    metric: str
    direction: Direction

    def __str__(self) -> str:
        return f"{self.direction} {self.metric}"


@dataclass(frozen=True)
class Limit:
    """A bound that a metric must keep.

    Attributes:
        metric: Name from the run record.
        operator: "<=" or ">=".
        value: The bound; a value equal to it keeps it.
    """

    metric: str
    operator: Operator
    value: float

    def violation(self, measured: float) -> float:
        """By how much `measured` breaks the limit, in the metric's unit; zero or less where it is kept, NaN for NaN."""
        return measured - self.value if self.operator == "<=" else self.value - measured

    def holds(self, measured: float) -> bool:
        """Whether `measured` keeps the limit; NaN does not."""
        return self.violation(measured) <= 0

    def __str__(self) -> str:
        return f"{self.metric} {self.operator} {self.value:g}"


# Quality, for a prefix of a split: name behind the prefix -> label, direction. All are fractions in
# [0, 1], but for the loss and the negative log-likelihood (nats) and the temperature, of which
# neither way is better.
_QUALITY: dict[str, tuple[str, Direction]] = {
    "loss": ("loss", "minimize"),
    "accuracy": ("accuracy", "maximize"),
    "balanced_accuracy": ("balanced accuracy", "maximize"),
    "macro_f1": ("macro F1", "maximize"),
    "auroc": ("AUROC", "maximize"),
    r"recall/(?P<class_name>.+)": ("recall of {class_name}", "maximize"),
    r"precision/(?P<class_name>.+)": ("precision of {class_name}", "maximize"),
    r"f1/(?P<class_name>.+)": ("F1 of {class_name}", "maximize"),
    r"specificity/(?P<class_name>.+)": ("specificity of {class_name}", "maximize"),
}
# What only the clinical audit computes, likewise.
_AUDITED: dict[str, tuple[str, Direction]] = {
    r"auroc/(?P<class_name>.+)": ("AUROC of {class_name}", "maximize"),
    r"average_precision/(?P<class_name>.+)": ("average precision of {class_name}", "maximize"),
    r"auroc_above_80_sensitivity/(?P<class_name>.+)": (
        "AUC above 80% sensitivity of {class_name}",
        "maximize",
    ),
    r"pauc_80/(?P<class_name>.+)": (
        "pAUC above 80% TPR (ISIC 2024, at most 0.2) of {class_name}",
        "maximize",
    ),
    r"sensitivity_at_spec(?P<per_cent>[\d.]+)/(?P<class_name>.+)": (
        "sensitivity at {per_cent}% specificity of {class_name}",
        "maximize",
    ),
    r"specificity_at_sens(?P<per_cent>[\d.]+)/(?P<class_name>.+)": (
        "specificity at {per_cent}% sensitivity of {class_name}",
        "maximize",
    ),
    r"chosen/(?P<measure>sensitivity|specificity|ppv|npv)/(?P<class_name>.+)": (
        "{measure} of {class_name} at the threshold chosen on validation",
        "maximize",
    ),
    "isic_balanced_accuracy": ("balanced accuracy, ties undecided (ISIC)", "maximize"),
    r"(?P<measure>ece|adaptive_ece|brier|nll)": ("{measure} of the probabilities", "minimize"),
    r"(?P<measure>ece|adaptive_ece|brier|nll)_scaled": (
        "{measure} after temperature scaling",
        "minimize",
    ),
    "temperature": ("temperature fitted on validation", "minimize"),
}
_SPLITS = {"val": "validation", "test": "test", "best/val": "validation, chosen epoch"}
# Name, as a regular expression -> label, unit, direction.
_TABLE: dict[str, tuple[str, str, Direction]] = {
    "train/loss": ("training loss", "", "minimize"),
    **{
        f"{prefix}/{name}": (f"{label} ({split})", "", direction)
        for prefix, split in _SPLITS.items()
        for name, (label, direction) in {**_QUALITY, **_AUDITED}.items()
    },
    "efficiency/flops": ("FLOPs", "multiply-adds", "minimize"),
    "efficiency/params": ("parameters", "", "minimize"),
    "efficiency/trainable_params": ("trainable parameters", "", "minimize"),
    "efficiency/size_mb": ("size of the weights", "MB", "minimize"),
    r"efficiency/latency_ms/b(?P<batch>[1-9]\d*)/p(?P<percentile>\d+)": (
        "latency of a batch of {batch}, percentile {percentile}",
        "ms",
        "minimize",
    ),
    "efficiency/latency_ratio": ("latency relative to the reference net", "", "minimize"),
    "efficiency/throughput": ("throughput", "images/s", "maximize"),
    "efficiency/peak_memory_mb": ("peak memory of inference", "MB", "minimize"),
    "time/fit_s": ("training time", "s", "minimize"),
    "time/tracking_s": ("time spent on recording", "s", "minimize"),
    "time/images_per_s": ("training speed", "images/s", "maximize"),
}


def describe(name: str) -> Metric:
    """What is known of the metric called `name`.

    Raises:
        ConfigError: The run record has no such metric; the message lists close names.
    """
    for pattern, (label, unit, direction) in _TABLE.items():
        match = re.fullmatch(pattern, name)
        if match:
            audited = any(pattern.endswith(f"/{other}") for other in _AUDITED)
            return Metric(name, label.format(**match.groupdict()), unit, direction, audited)
    raise ConfigError("metric", f"unknown metric {name!r}{_suggestion(name)}")


def recorded_in_training(name: str) -> Metric:
    """As `describe`, of a metric by which a run, a study or an epoch may be chosen.

    Raises:
        ConfigError: As `describe`, or only the clinical audit computes it.
    """
    metric = describe(name)
    if metric.audited:
        raise ConfigError(
            "metric",
            f"must be one that training records, but {name} is computed by src.evaluate alone",
        )
    return metric


def parse_objectives(config: Mapping[str, Any]) -> list[Objective]:
    """The objectives of a `conf/objective/` file.

    Args:
        config: `objectives`: a list of `{metric: ..., direction: maximize | minimize}`; a direction
            that is left out is the way that is better, one that is given holds even against it (to
            draw a worst case).

    Raises:
        ConfigError: No objective, an unknown or doubled metric, or another direction; the message
            names the key.
    """
    entries = config.get("objectives") or []
    if not entries:
        raise ConfigError(
            "objective.objectives",
            "must list at least one {metric: ..., direction: ...}, but is empty",
        )
    found: list[Objective] = []
    for number, entry in enumerate(entries):
        key = f"objective.objectives[{number}]"
        objective = _objective(entry, key)
        if objective.metric in [other.metric for other in found]:
            raise ConfigError(
                f"{key}.metric", f"must name each metric once, but got {objective.metric} again"
            )
        found.append(objective)
    return found


def parse_limits(config: Mapping[str, Any]) -> list[Limit]:
    """The limits of a `conf/objective/` file.

    Args:
        config: `limits`: a list of texts such as "efficiency/params <= 692e3"; may be absent or
            empty.

    Raises:
        ConfigError: A text that is no limit or an unknown metric; the message names the key.
    """
    return [
        _limit(text, f"objective.limits[{number}]")
        for number, text in enumerate(config.get("limits") or [])
    ]


def _objective(entry: Any, key: str) -> Objective:
    if (
        not isinstance(entry, Mapping)
        or "metric" not in entry
        or set(entry) - {"metric", "direction"}
    ):
        raise ConfigError(
            key, f"must be {{metric: <name>, direction: maximize | minimize}}, but got {entry!r}"
        )
    metric = _described(str(entry["metric"]), key)
    direction = entry.get("direction") or metric.direction
    if direction not in DIRECTIONS:
        raise ConfigError(
            f"{key}.direction", f"must be {' or '.join(DIRECTIONS)}, but got {direction!r}"
        )
    return Objective(metric.name, direction)


def _limit(text: Any, key: str) -> Limit:
    parts = re.fullmatch(r"\s*(.*?)\s*(<=|>=)\s*(\S+)\s*", str(text))
    value = _number(parts[3]) if parts else None
    if parts is None or value is None:
        raise ConfigError(key, f'must be like "efficiency/params <= 692e3", but got {str(text)!r}')
    return Limit(_described(parts[1], key).name, "<=" if parts[2] == "<=" else ">=", value)


def _described(name: str, key: str) -> Metric:
    if name.startswith("test/"):
        raise ConfigError(
            key, f"must not be read on the split that is reported, but got {name}; take val/..."
        )
    try:
        return recorded_in_training(name)
    except ConfigError as error:
        raise error.under(key) from None


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None  # NaN and infinity bound nothing


def _suggestion(name: str) -> str:
    shown = [re.sub(r"\(\?P(<\w+>).*?\)", r"\1", pattern) for pattern in _TABLE]
    close = difflib.get_close_matches(name, shown, n=3, cutoff=0.6)
    # the first word alone finds a metric that was typed without its prefix
    close = close or [other for other in shown if f"/{name.split('/')[0]}" in other][:3]
    return (
        f"; did you mean {' or '.join(close)}?"
        if close
        else "; see src/objectives.py for all names"
    )
