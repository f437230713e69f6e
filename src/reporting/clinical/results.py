"""The results of a clinical audit and of an evaluation, with their settings."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from src.core.config import DecisionRule
from src.deployment.trained import RecordedModel, require_run_id
from src.metrics import formatting
from src.metrics.calibration import TEMPERATURES
from src.metrics.settings import AuditSettings
from src.metrics.thresholds import lesions_to_settle, rule_text

if TYPE_CHECKING:
    from src.reporting.clinical.external import ExternalData

Images = npt.NDArray[np.uint8]  # (N, S, S, 3)
sentences = functools.partial(formatting.sentences, Path(__file__).with_name("sentences.j2"))


@dataclass(frozen=True)
class RecallVerdict:
    """Recall of the class looked for, by one rule, compared with the goal.

    The rule says how images are called positive: the decision rule, such as "argmax", or the target
    rate of the threshold that was chosen on validation. The recall, a mean over the seeds, its
    interval and the specificity by the same rule are NaN if unknown. Images and lesions are of the
    class. `problem`: why the threshold is of no use; `warnings`: what speaks against the
    predictions, in sentences; `level`: coverage of the interval.
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
    level: float = 0.95

    @property
    def outcome(self) -> Literal["PASS", "FAIL", "UNDECIDED"]:
        """PASS: the whole interval reaches the goal; FAIL: all of it is below; else UNDECIDED."""
        if self.low >= self.goal and not self.problem:
            return "PASS"
        return "FAIL" if self.high < self.goal and not self.problem else "UNDECIDED"

    @property
    def by(self) -> str:
        """How images are called positive, for a sentence."""
        return rule_text(self.rule)

    @property
    def more_lesions(self) -> float:
        """How many more lesions of the class would decide at this recall; NaN if it is decided."""
        undecided = self.outcome == "UNDECIDED" and not self.problem
        sizes = self.recall, self.lesions, self.goal
        return lesions_to_settle(*sizes, self.level) if undecided else np.nan

    @property
    def text(self) -> str:
        """The verdict in a sentence, followed by the warnings."""
        return sentences("verdict", v=self)[0]


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
    informed: int | None = None

    @functools.cached_property
    def notes(self) -> tuple[str, ...]:
        """How the figures are to be read, and what is missing."""
        recall = self.per_class[self.per_class["measure"] == "recall"]
        lowest, highest = TEMPERATURES
        notes = sentences(
            "notes",
            audit=self,
            missing=recall.loc[recall["images"] == 0, "class"].tolist(),
            at_bound=any(not lowest < temperature < highest for temperature in self.temperatures),
            skin_type="by" in self.subgroups and "skin type" in set(self.subgroups["by"]),
        )
        return tuple(notes)

    @functools.cached_property
    def metrics(self) -> dict[str, float]:
        """Figures by record names, `<split>/...`; undefined ones are left out."""
        isic = self.overall[self.overall["metric"].str.startswith("isic")]
        points = pd.concat([self.fixed, isic]).set_index("metric")["estimate"]
        areas = self.ranking.set_index(self.ranking["metric"] + "/" + self.ranking["class"])
        errors = self.calibration.set_index("measure")
        rule = f"sensitivity >= {self.settings.sensitivity:g}"
        chosen = self.operating[self.operating["rule"] == rule].set_index("measure")["estimate"]
        values = {
            **points,
            **areas["estimate"],
            **errors["before"],
            **errors["after"].add_suffix("_scaled"),
            **chosen.add_prefix("chosen/").add_suffix(f"/{self.positive}"),
        }
        if self.temperatures:
            values["temperature"] = float(np.mean(self.temperatures))
        return {f"{self.split}/{k}": float(v) for k, v in values.items() if np.isfinite(v)}

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """All tables with rows, by the names of their files."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {k: v for k, v in values.items() if isinstance(v, pd.DataFrame) and len(v)}

    @property
    def rules(self) -> dict[str, str]:
        """Measures of recall in `subgroups` -> the rule by which an image is called positive."""
        threshold = f"val's threshold for sensitivity >= {self.settings.sensitivity:g}"
        names = {"recall": self.verdicts[0].by, "recall_at_threshold": threshold}
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
            other data, see `audit.domain_shift`.
        by_original_label: See `audit.recall_by_original_label`.
        overlap: See `external.find_overlap`.
        examples: See `evaluate.examples`.
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
        data = self.data or f"{self.evaluated.data}, its own data"
        return f"{self.evaluated.title} on {data}{choices}"

    @property
    def source(self) -> str:
        """The split that the other data are compared with, such as "the run's test"."""
        return f"the run's {self.compared_with}"

    @property
    def folder(self) -> str:
        """Name of its folder, another one for other choices."""
        choices = (choice.replace("=", "-") for choice in self.choices)
        return "_".join(["evaluation", self.evaluated.run_id[:8], self.data or "own", *choices])

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """All tables with rows, by the names of their files; labels counts_as: empty if unknown."""
        tables = {name: getattr(self, name) for name in ("drop", "by_original_label", "overlap")}
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
    decision: DecisionRule | None = None
    overlap: Literal["exclude", "keep"] = "exclude"
    columns: dict[str, str | None] = field(default_factory=dict)
    folder: str = "reports"
    publish: bool = True
    verbose: bool = False

    @property
    def run_id(self) -> str:
        """The run's id, or the start of it; ConfigError if there is none."""
        return require_run_id(self.run)

    @property
    def choices(self) -> tuple[str, ...]:
        """How other data are evaluated, where not as by default, such as "part=val"."""
        names = ("part", "mapping", "unknown", "overlap", "decision")
        typed = {name: getattr(self, name) for name in names}
        return tuple(
            f"{'labels' if name == 'mapping' else name}={Path(value).stem}"  # it may be a path
            for name, value in typed.items()
            if value != getattr(EvaluateSettings, name)
        )
