"""The results of a clinical audit and of an evaluation, with their settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from src.deployment.trained import RecordedModel, require_run_id
from src.metrics.settings import AuditSettings

if TYPE_CHECKING:
    from src.reporting.clinical.external import ExternalData

Images = npt.NDArray[np.uint8]  # (N, S, S, 3)
REASONS = {
    "PASS": "the whole interval reaches the goal of",
    "FAIL": "the whole interval is below the goal of",
    "UNDECIDED": "the interval contains the goal of",
}


@dataclass(frozen=True)
class RecallVerdict:
    """Recall of the class looked for, by one rule, compared with the goal.

    The rule says how images are called positive: "argmax", or the target rate of the threshold that
    was chosen on validation. The recall, a mean over the seeds, its interval and the specificity by
    the same rule are NaN if unknown. Images and lesions are of the class. `problem`: why the
    threshold is of no use; `warnings`: what speaks against the predictions, in sentences.
    """

    rule: str
    class_name: str
    goal: float
    recall: float
    low: float
    high: float
    specificity: float
    images: int
    lesions: int
    problem: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def outcome(self) -> Literal["PASS", "FAIL", "UNDECIDED"]:
        """PASS: the whole interval reaches the goal; FAIL: all of it is below; else UNDECIDED."""
        if self.low >= self.goal and not self.problem:
            return "PASS"
        return "FAIL" if self.high < self.goal and not self.problem else "UNDECIDED"

    @property
    def text(self) -> str:
        """The verdict in a sentence, followed by the warnings."""
        argmax = self.rule == "argmax"
        rule = "the most probable class" if argmax else f"the threshold chosen for {self.rule}"
        sentence = f"{self.outcome}: recall of {self.class_name} by {rule} is"
        size = f"{self.images} images of {self.lesions} lesions"
        reason = REASONS[self.outcome]
        if self.problem:
            reason = f"no verdict, because on validation it is {self.problem}; the goal is"
        elif np.isnan(self.low):
            reason = "without an interval there is no verdict; the goal is"
        if np.isnan(self.recall):
            sentence += f" not known ({self.problem or size})."
        else:
            cost = f" at a specificity of {self.specificity:.3f}"
            cost = "" if np.isnan(self.specificity) else cost
            interval = interval_text(self.low, self.high)
            sentence += f" {self.recall:.3f} {interval}{cost} on {size}; {reason} {self.goal:g}."
        return " ".join([sentence, *(f"Warning: {warning}" for warning in self.warnings)])


def interval_text(low: float, high: float) -> str:
    """Such as "[0.500, 0.680]"."""
    return "(no interval)" if np.isnan(low) else f"[{low:.3f}, {high:.3f}]"


@dataclass(frozen=True)
class ClinicalAudit:
    """Clinical figures of predictions; rates in [0, 1], means over the seeds, intervals by lesion.

    Attributes:
        split: Prefix of the metric names: the split or the other data set.
        classes: Names in label order.
        positive: The class looked for.
        settings: Of the audit.
        images, lesions, positives, seeds: Numbers of images, of lesions or patients, of images of
            the class looked for, and of nets.
        verdicts: Recall against the goal, one for each rule.
        per_class: class, measure (recall, precision, f1, specificity), then as
            `metrics.bootstrap.estimates` returns it.
        overall: metric, then as `per_class`; the groups of a mean over classes are the rarest
            class's.
        operating: See `metrics.thresholds.points`.
        fixed: metric, then as `per_class`: sensitivity at fixed specificities and the reverse, from
            the ROC curve of these images.
        ranking: class, metric (of `metrics.curves.CURVES`), then as `per_class`; the groups are
            those of the rarer kind: the class, or the others.
        isic: See `metrics.curves.isic_scores`.
        calibration, bins: See `metrics.calibration.compare` and `bins`.
        subgroups: See `subgroups.table`; empty without metadata of these images.
        roc, precision_recall: See `metrics.curves`.
        temperatures: Fitted on validation, one for each net; empty without validation.
        warnings: What speaks against these predictions.
        notes: How the figures are to be read.
        metrics: Figures by record names, finite ones.
        informed: How many of the images have metadata; None without metadata.
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
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    informed: int | None = None

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """All tables with rows, by the names of their files."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {k: v for k, v in values.items() if isinstance(v, pd.DataFrame) and len(v)}

    @property
    def rules(self) -> dict[str, str]:
        """Measures of recall in `subgroups` -> the rule by which an image is called positive."""
        names = {
            "recall": "the most probable class",
            "recall_at_threshold": (
                f"val's threshold for sensitivity >= {self.settings.sensitivity:g}"
            ),
        }
        measures = set() if self.subgroups.empty else set(self.subgroups["measure"])
        return {measure: rule for measure, rule in names.items() if measure in measures}


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of a run.

    Attributes:
        data: Name of the other data set; empty: the run's own splits.
        audits: By what was predicted, the most important first.
        notes: On data, overlap, geometry and what is missing. Warnings are part of the audits.
        external: The other data, without excluded images.
        drop: From a split of the run, `compared_with` (validation, where there is no test), to the
            other data, see `external.domain_shift`.
        by_original_label, overlap, examples: See the functions of `external`.
        predictions: Of the other data, one frame for each net, by its seed.
        choices: Settings that are not the default, such as "part=val".
    """

    evaluated: RecordedModel
    data: str
    audits: Mapping[str, ClinicalAudit]
    notes: tuple[str, ...]
    external: "ExternalData | None" = None
    drop: pd.DataFrame = field(default_factory=pd.DataFrame)
    compared_with: str = ""
    by_original_label: pd.DataFrame = field(default_factory=pd.DataFrame)
    overlap: pd.DataFrame = field(default_factory=pd.DataFrame)
    predictions: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    examples: Mapping[str, tuple[Images, Images]] = field(default_factory=dict)
    choices: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """One line for people."""
        choices = f" ({', '.join(self.choices)})" if self.choices else ""
        return f"{self.evaluated.title} on {self.data or 'its own ' + self.evaluated.data}{choices}"

    @property
    def folder(self) -> str:
        """Name of its folder, another one for other choices."""
        choices = (choice.replace("=", "-") for choice in self.choices)
        return "_".join(["evaluation", self.evaluated.run_id[:8], self.data or "own", *choices])

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """All tables with rows, by the names of their files; labels counts_as: empty if unknown."""
        tables = {
            "drop": self.drop,
            "by_original_label": self.by_original_label,
            "overlap": self.overlap,
        }
        if self.external is not None:
            labels = self.external.frame[["original_label", "label"]].fillna({"label": ""})
            counts = labels.rename(columns={"label": "counts_as"}).value_counts(sort=False)
            tables["labels"] = counts.rename("images").reset_index()
        return {name: table for name, table in tables.items() if len(table)}


@dataclass
class EvaluateSettings:
    """The values of conf/command/evaluate.yaml, which says what each means."""

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
    def run_id(self) -> str:
        """The run's id, or the start of it; ConfigError if there is none."""
        return require_run_id(self.run)

    @property
    def choices(self) -> tuple[str, ...]:
        """How other data are evaluated, where not as by default, such as "part=val"."""
        keys = {"part": "part", "labels": "mapping", "unknown": "unknown", "overlap": "overlap"}
        values = {key: getattr(self, name) for key, name in keys.items()}
        return tuple(
            f"{key}={Path(value).stem}"  # labels may be a path
            for key, value in values.items()
            if value != getattr(EvaluateSettings, keys[key])
        )
