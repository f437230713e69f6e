"""ClinicalAudit, Evaluation, verdicts, settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from src.core.errors import ConfigError
from src.deployment.trained import RecordedModel, require_run_id
from src.metrics.settings import AuditSettings
from src.metrics.settings import AuditSettings as Clinical

Outcome = Literal["PASS", "FAIL", "UNDECIDED"]


@dataclass(frozen=True)
class RecallVerdict:
    """One rule's recall beside the goal.

    Attributes:
        rule: How images are called positive: "argmax", or what the threshold was chosen for on
            validation.
        name: The class that is looked for.
        goal: Recall to reach.
        estimate: Reached, the mean over the seeds; NaN if it is not known.
        low: Of the interval.
        high: Of the interval.
        images: Of the class.
        lesions: Of the class.
        outcome: PASS: all of the interval reaches the goal; FAIL: none of it does; else UNDECIDED,
            as it is where there is a problem.
        problem: What is wrong with the rule, or empty.
        specificity: Reached by the same rule, for recall alone can be bought; NaN if it is not
            known.
        beware: What the caller knows against the predictions, in sentences.
    """

    rule: str
    name: str
    goal: float
    estimate: float
    low: float
    high: float
    images: int
    lesions: int
    outcome: Outcome
    problem: str = ""
    specificity: float = np.nan
    beware: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The verdict in a sentence, and what stands against it."""
        return " ".join([self._sentence, *(f"Beware: {each}" for each in self.beware)])

    @property
    def _sentence(self) -> str:
        how = (
            "the most probable class"
            if self.rule == "argmax"
            else f"the threshold chosen for {self.rule}"
        )
        size = f"{self.images} images of {self.lesions} lesions"
        if np.isnan(self.estimate):
            return f"{self.outcome}: recall of {self.name} by {how} is not known ({self.problem or size})."
        price = (
            f" at a specificity of {self.specificity:.3f}" if not np.isnan(self.specificity) else ""
        )
        return (
            f"{self.outcome}: recall of {self.name} by {how} is {self.estimate:.3f} {span(self.low, self.high)}{price} "
            f"on {size}; {self._because} the goal of {self.goal:g}."
        )

    @property
    def _because(self) -> str:
        if self.problem:
            return f"{self.problem} fulfils it on validation, which says nothing of"
        if np.isnan(self.low):
            return "without an interval nothing is said of"
        reasons = {"PASS": "the whole interval reaches", "FAIL": "the whole interval is below"}
        return reasons.get(self.outcome, "the interval contains")


def span(low: float, high: float) -> str:
    """An interval in words: "[0.500, 0.680]", or that there is none."""
    return "(no interval)" if np.isnan(low) else f"[{low:.3f}, {high:.3f}]"


def judge(low: float, high: float, goal: float) -> Outcome:
    """PASS if all of [low, high] is at least `goal`, FAIL if all of it is below; NaN decides nothing."""
    if low >= goal:
        return "PASS"
    return "FAIL" if high < goal else "UNDECIDED"


def verdicts(
    points: pd.DataFrame, name: str, goal: float, beware: Sequence[str] = ()
) -> tuple[RecallVerdict, ...]:
    """A verdict on the most probable class, and one on the threshold that was chosen for sensitivity.

    Args:
        points: From `operating.points`.
        name: The class that is looked for.
        goal: Its recall must reach it.
        beware: What the caller knows against the predictions.
    """
    specificity = points[points["measure"] == "specificity"].set_index("rule")["estimate"]
    asked = (points["measure"] == "sensitivity") & ~points["rule"].str.startswith("specificity")
    rows = points[asked].to_dict("records")
    return tuple(
        RecallVerdict(
            rule=str(row["rule"]),
            name=name,
            goal=goal,
            estimate=float(row["estimate"]),
            low=float(row["low"]),
            high=float(row["high"]),
            images=int(row["images"]),
            lesions=int(row["groups"]),
            outcome="UNDECIDED"
            if row["problem"]
            else judge(float(row["low"]), float(row["high"]), goal),
            problem=str(row["problem"]),
            specificity=float(specificity.get(row["rule"], np.nan)),
            beware=tuple(beware),
        )
        for row in rows
    )


@dataclass(frozen=True)
class ClinicalAudit:
    """What was found. Rates are in [0, 1]; figures are means over the seeds; intervals are by lesion.

    Attributes:
        split: Prefix of the metric names: the split, or the external data, that was predicted.
        classes: Names in label order.
        positive: The class that is looked for.
        settings: What was asked.
        images: Predicted.
        lesions: Or patients, as the data group images.
        positives: Images of the class that is looked for.
        seeds: Nets.
        verdicts: Recall against the goal, a rule each.
        per_class: class, measure (recall, precision, f1, specificity), then as
            `resampling.estimates` has it.
        overall: metric, then as `per_class`; images and groups of a mean over classes are the
            rarest class's.
        operating: See `operating.points`.
        fixed: metric, then as `per_class`: sensitivity at fixed specificities and the reverse, read
            off the ROC curve of these images themselves.
        ranking: class, metric (auroc, average_precision, auroc_above_80_sensitivity, pauc_80), then
            as `per_class`; images and groups are those of the rarer kind: the class, or the rest.
        isic: See `isic.scores`.
        calibration: See `calibration.compared`.
        bins: See `calibration.bins`.
        subgroups: See `subgroups.table`; empty without metadata of these images.
        roc: See `curves.roc`.
        precision_recall: See `curves.precision_recall`.
        temperatures: Fitted on validation, one a net; none without validation.
        notes: What a reader must know; `warnings` first.
        metrics: Headline figures by record names, finite ones.
        warnings: What the caller knows against these predictions.
        informed: How many of the images the metadata name; None without metadata.
    """

    split: str
    classes: tuple[str, ...]
    positive: str
    settings: AuditSettings
    images: int
    lesions: int
    positives: int
    seeds: int
    verdicts: tuple[RecallVerdict, ...]
    per_class: pd.DataFrame
    overall: pd.DataFrame
    operating: pd.DataFrame
    fixed: pd.DataFrame
    ranking: pd.DataFrame
    isic: pd.DataFrame
    calibration: pd.DataFrame
    bins: pd.DataFrame
    subgroups: pd.DataFrame
    roc: pd.DataFrame
    precision_recall: pd.DataFrame
    temperatures: tuple[float, ...]
    notes: tuple[str, ...]
    metrics: dict[str, float]
    warnings: tuple[str, ...] = ()
    informed: int | None = None

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """All tables that have rows, by what to call their files."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: table
            for name, table in found.items()
            if isinstance(table, pd.DataFrame) and len(table)
        }


Images = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of a run.

    Attributes:
        evaluated: The run.
        data: Name of the external data; empty: it is of the run's own splits.
        audits: Clinical audits by what was predicted, the most important first.
        notes: Plain sentences that a reader needs: data, overlap, geometry, what is absent. What
            speaks against a verdict is among the warnings of its audit.
        drop: From the own test (or, where there is none, validation) to the external data, see
            `drop.compared`.
        compared_with: Which own split that is.
        by_original_label: See `drop.by_original_label`.
        overlap: See `overlap.find`.
        mapping: Original classes and what they count as: original_label, counts_as (empty: left
            out), images.
        predictions: Of the external images, a frame a net, by its seed.
        tags: Of the external evaluation's run.
        examples: By class, some own and some external images, uint8 (n, S, S, 3).
        choices: What is not as by default, such as "part=val".
    """

    evaluated: RecordedModel
    data: str
    audits: Mapping[str, ClinicalAudit]
    notes: tuple[str, ...]
    drop: pd.DataFrame = field(default_factory=pd.DataFrame)
    compared_with: str = ""
    by_original_label: pd.DataFrame = field(default_factory=pd.DataFrame)
    overlap: pd.DataFrame = field(default_factory=pd.DataFrame)
    mapping: pd.DataFrame = field(default_factory=pd.DataFrame)
    predictions: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    examples: Mapping[str, tuple[Images, Images]] = field(default_factory=dict)
    choices: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """One line for people."""
        chosen = f" ({', '.join(self.choices)})" if self.choices else ""
        return f"{self.evaluated.title} on {self.data or 'its own ' + self.evaluated.data}{chosen}"

    @property
    def folder(self) -> str:
        """Name of its folder: other choices, another folder."""
        chosen = (each.replace("=", "-") for each in self.choices)
        return "_".join(["evaluation", self.evaluated.run_id[:8], self.data or "own", *chosen])

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """Tables that have rows, by the names of their files."""
        found = {
            "drop": self.drop,
            "by_original_label": self.by_original_label,
            "labels": self.mapping,
            "overlap": self.overlap,
        }
        return {name: table for name, table in found.items() if len(table)}


@dataclass
class EvaluateSettings:
    """What is evaluated, and how; `clinical` says what is asked of it."""

    run: str | None = None
    test: bool = False
    own_root: str | None = None
    part: Literal["all", "train", "val", "test"] = "all"
    mapping: str = "auto"
    unknown: Literal["refuse", "list"] = "refuse"
    overlap: Literal["exclude", "keep"] = "exclude"
    folder: str = "reports"
    publish: bool = True

    @property
    def wanted(self) -> str:
        """The run's id, or the start of it.

        Raises:
            ConfigError: There is none.
        """
        return require_run_id(self.run)

    @property
    def choices(self) -> tuple[str, ...]:
        """What of other data is evaluated in another way than by default, such as "part=val": for names."""
        keys = {"part": "part", "labels": "mapping", "unknown": "unknown", "overlap": "overlap"}
        default = EvaluateSettings()
        changed = {
            key: getattr(self, each)
            for key, each in keys.items()
            if getattr(self, each) != getattr(default, each)
        }
        return tuple(
            f"{key}={Path(value).stem}" for key, value in changed.items()
        )  # labels may be a path


def clinical(values: dict[str, object]) -> Clinical:
    """The `clinical` part.

    Raises:
        ConfigError: A value out of its range; the message names the key.
    """
    try:
        return Clinical(**values)  # type: ignore[arg-type]  # checked against its signature before
    except ConfigError as error:
        raise error.under("clinical") from error
