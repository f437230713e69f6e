"""What the clinical audit found: a record that pages and pictures draw and a test can read."""

from dataclasses import dataclass, fields

import pandas as pd

from src.clinical.settings import Settings
from src.clinical.verdicts import Verdict


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
        per_class: class, measure (recall, precision, f1, specificity), then as `resampling.estimates` has it.
        overall: metric, then as `per_class`; images and groups of a mean over classes are the rarest class's.
        operating: See `operating.points`.
        fixed: metric, then as `per_class`: sensitivity at fixed specificities and the reverse, read off the ROC curve
            of these images themselves.
        ranking: class, metric (auroc, average_precision, auroc_above_80_sensitivity, pauc_80), then as `per_class`;
            images and groups are those of the rarer kind: the class, or the rest.
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
    settings: Settings
    images: int
    lesions: int
    positives: int
    seeds: int
    verdicts: tuple[Verdict, ...]
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
        return {name: table for name, table in found.items() if isinstance(table, pd.DataFrame) and len(table)}
