"""The clinical audit: rates with intervals, thresholds, calibration, subgroups and the verdict."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from src.core.errors import UserError
from src.metrics import calibration, curves, thresholds
from src.metrics.bootstrap import (
    COLUMNS,
    Predictions,
    adjusted_interval,
    curve_statistics,
    estimates,
    gather,
    intervals,
    isic_balanced_accuracy,
    rarest_groups,
)
from src.metrics.registry import class_metrics, overall_metrics
from src.metrics.settings import AuditSettings
from src.reporting.clinical import subgroups
from src.reporting.clinical.results import ClinicalAudit, RecallVerdict


def audit(
    test: Sequence[pd.DataFrame],
    val: Sequence[pd.DataFrame] = (),
    metadata: pd.DataFrame | None = None,
    settings: AuditSettings | None = None,
    split: str = "test",
    warnings: Sequence[str] = (),
) -> ClinicalAudit:
    """Compute the clinical figures of recorded predictions.

    Args:
        test: One frame for each net (seed), of the same images; see `metrics.bootstrap.gather`.
        val: Predictions of validation by the same nets in the same order. Thresholds and
            temperatures are fitted on them; without them there are none.
        metadata: A column image_id and more, see `subgroups.SOURCES`.
        settings: The default ones by default.
        split: Prefix of the metric names, such as "test" or the name of other data; "val": the
            images on which thresholds are chosen.
        warnings: What speaks against these predictions, in sentences, such as that the split leaks.

    Raises:
        ConfigError: No class that could be the one looked for.
        UserError: Predictions or metadata that do not fit together; the message names the culprit.
    """
    settings = settings or AuditSettings()
    predictions = gather(test, [f"{split} predictions {n}" for n in range(1, len(test) + 1)])
    on_val = _validation(val, predictions)
    name = settings.looked_for(predictions.classes)
    informed = None if metadata is None else subgroups.informed(test[0], metadata)
    by_subgroup = pd.DataFrame()
    if metadata is not None and informed:
        usable = thresholds.usable_thresholds(on_val, name, settings)
        by_subgroup = subgroups.table(test, metadata, name, settings, usable)
    temperatures: tuple[float, ...] = ()
    scaled = None
    if on_val is not None:
        temperatures = tuple(calibration.fit(net, on_val.target) for net in on_val.probability)
        nets = zip(predictions.probability, temperatures, strict=True)
        scaled = np.stack([calibration.scale(net, temperature) for net, temperature in nets])
    operating = thresholds.points(predictions, on_val, name, settings)
    rates: dict[str, Any] = _rate_tables(test, predictions, name, settings)
    result = ClinicalAudit(
        split=split,
        classes=predictions.classes,
        positive=name,
        settings=settings,
        images=len(predictions.target),
        lesions=predictions.groups,
        positives=int((predictions.target == predictions.classes.index(name)).sum()),
        seeds=len(predictions.probability),
        verdicts=verdicts(operating, name, settings.goal, warnings),
        **rates,
        operating=operating,
        isic=curves.isic_scores(predictions),
        calibration=calibration.compare(predictions, scaled),
        bins=calibration.bins(predictions, scaled),
        subgroups=by_subgroup,
        roc=curves.roc(predictions),
        precision_recall=curves.precision_recall(predictions),
        temperatures=temperatures,
        warnings=tuple(warnings),
        informed=informed,
    )
    notes = _notes(result, predictions)
    return replace(result, notes=tuple(notes), metrics=_record_metrics(result))


def verdicts(
    operating: pd.DataFrame, class_name: str, goal: float, warnings: Sequence[str] = ()
) -> tuple[RecallVerdict, ...]:
    """Verdicts on the most probable class and on the threshold that was chosen for sensitivity.

    Args:
        operating: From `metrics.thresholds.points`.
        class_name: The class looked for.
        goal: The recall to reach.
        warnings: What speaks against the predictions.
    """
    specificity = operating[operating["measure"] == "specificity"].set_index("rule")["estimate"]
    judged = operating["measure"] == "sensitivity"
    judged &= ~operating["rule"].str.startswith("specificity")
    return tuple(
        RecallVerdict(
            rule=str(row["rule"]),
            class_name=class_name,
            goal=goal,
            recall=float(row["estimate"]),
            low=float(row["low"]),
            high=float(row["high"]),
            specificity=float(specificity.get(row["rule"], np.nan)),
            images=int(row["images"]),
            lesions=int(row["groups"]),
            problem=str(row["problem"]),
            warnings=tuple(warnings),
        )
        for row in operating[judged].to_dict("records")
    )


def _validation(val: Sequence[pd.DataFrame], test: Predictions) -> Predictions | None:
    """Predictions of validation, or None; they must be of as many nets and of the same classes."""
    if not val:
        return None
    predictions = gather(val, [f"validation predictions {n}" for n in range(1, len(val) + 1)])
    if len(predictions.probability) != len(test.probability):
        raise UserError(
            f"validation was predicted by {len(predictions.probability)} nets, these images by "
            f"{len(test.probability)}; give the predictions of the same nets"
        )
    if predictions.classes != test.classes:
        others = ", ".join(test.classes)
        message = f"validation has the classes {', '.join(predictions.classes)}, but not {others}"
        raise UserError(message)
    return predictions


def _rate_tables(
    frames: Sequence[pd.DataFrame], predictions: Predictions, name: str, settings: AuditSettings
) -> dict[str, pd.DataFrame]:
    """The tables `overall`, `per_class`, `ranking` and `fixed`."""
    fixed = curves.fixed_points(settings.fixed)
    statistics = [isic_balanced_accuracy(predictions)]
    statistics += [curve_statistics(predictions, c, curves.CURVES) for c in predictions.classes]
    for each in predictions.classes:
        rates = thresholds.rates(predictions, each, thresholds.decide(predictions, each, None))
        names = (f"{rate}/{each}" for rate in ("recall", "specificity", "precision", "npv"))
        statistics.append(replace(rates, names=tuple(names)))
    statistics += [curve_statistics(predictions, name, fixed)] if fixed else []
    table = estimates(predictions, statistics, settings).reset_index()
    table = pd.concat([_run_metrics(frames, predictions, settings), table], ignore_index=True)
    parts = table["metric"].str.partition("/")
    table = table.assign(measure=parts[0], **{"class": parts[2]})
    per_class = table[table["measure"].isin(class_metrics())]
    order = per_class["class"].map(list(predictions.classes).index) * len(class_metrics())
    order += per_class["measure"].map(class_metrics().index)
    per_class = per_class.loc[order.sort_values(kind="stable").index]
    columns = ["class", "measure", *COLUMNS]
    ranking = table[table["measure"].isin(curves.CURVES) & (table["class"] != "")]
    rows = {
        "overall": table.loc[table["class"] == "", ["metric", *COLUMNS]],
        "per_class": per_class[columns],
        "ranking": ranking[columns].rename(columns={"measure": "metric"}),
        "fixed": table.loc[table["measure"].isin(fixed), ["metric", *COLUMNS]],
    }
    return {key: part.reset_index(drop=True) for key, part in rows.items()}


def _run_metrics(
    frames: Sequence[pd.DataFrame], predictions: Predictions, settings: AuditSettings
) -> pd.DataFrame:
    """Metrics over all classes, and F1; a mean over classes is as sure as its rarest class."""
    metrics = [*overall_metrics(), *(f"f1/{name}" for name in predictions.classes)]
    table = intervals(frames, metrics, settings.samples, settings.seed, settings.level)
    kinds = [predictions.target == label for label in range(len(predictions.classes))]
    rarest = rarest_groups(predictions, [images for images in kinds if images.any()])
    rows = []
    for row in table.to_dict("records"):
        measure, _, name = str(row["metric"]).partition("/")
        basis = predictions.basis(f"recall/{name}") if name else rarest
        basis = predictions.group if measure == "accuracy" else basis
        low, high, kind = adjusted_interval(
            row["low"], row["high"], row["estimate"], basis, settings.level, measure == "accuracy"
        )
        sizes = {"images": len(basis), "groups": len(np.unique(basis))}
        rows.append(row | {"low": low, "high": high, "interval": kind} | sizes)
    return pd.DataFrame(rows)[["metric", *COLUMNS]]


def _record_metrics(result: ClinicalAudit) -> dict[str, float]:
    """Figures by record names, `<split>/...`; undefined ones are left out."""
    rows = [*result.overall.to_dict("records"), *result.fixed.to_dict("records")]
    values: dict[Any, float] = {
        row["metric"]: row["estimate"]
        for row in rows
        if "/" in row["metric"] or row["metric"] == "isic_balanced_accuracy"
    }
    for row in result.ranking.to_dict("records"):
        values[f"{row['metric']}/{row['class']}"] = row["estimate"]
    for row in result.calibration.to_dict("records"):
        values |= {row["measure"]: row["before"], f"{row['measure']}_scaled": row["after"]}
    if result.temperatures:
        values["temperature"] = float(np.mean(result.temperatures))
    rule = f"sensitivity >= {result.settings.sensitivity:g}"
    for row in result.operating[result.operating["rule"] == rule].to_dict("records"):
        values[f"chosen/{row['measure']}/{result.positive}"] = row["estimate"]
    return {f"{result.split}/{k}": float(v) for k, v in values.items() if np.isfinite(v)}


def _notes(result: ClinicalAudit, predictions: Predictions) -> list[str]:
    """How the figures are to be read, and what is missing."""
    settings, several = result.settings, result.seeds > 1
    notes = [
        f"{f'Figures are means over {result.seeds} nets (seeds). ' if several else ''}"
        f"Intervals: {100 * settings.level:g}%, {settings.samples} resamplings of whole lesions or "
        f"patients{' and of seeds' if several else ''}. Shares (recall, specificity, precision, "
        "predictive values, accuracy) get the wider of that and the exact one (Clopper-Pearson, a "
        "lesion counted once), end by end; * marks an exact end. A figure without an interval "
        "rests on fewer than two lesions of a kind, or no resampling changes it.",
        f"{result.positives / result.images:.1%} of these images are {result.positive}. PPV and "
        "NPV hold for that share only; where the class is rarer, PPV is lower.",
    ]
    if result.lesions == result.images:
        notes.append("Each image is its own group: if lesions repeat, intervals are too narrow.")
    labels = set(np.unique(predictions.target).tolist())
    missing = [name for label, name in enumerate(result.classes) if label not in labels]
    if missing:
        notes.append(f"No images of {', '.join(missing)}: means leave these classes out.")
    if result.temperatures:
        notes.append(
            "Thresholds and temperatures were chosen on validation, for each net, and applied "
            "unchanged; the intervals take them as fixed."
        )
    elif result.split == "val":
        notes.append("Thresholds and temperatures are chosen on these images: not applied here.")
    else:
        notes.append("No validation predictions: no threshold was chosen, no temperature fitted.")
    lowest, highest = calibration.TEMPERATURES
    if any(not lowest < temperature < highest for temperature in result.temperatures):
        notes.append("A temperature is at the bound of the search: validation does not define it.")
    notes.append(
        "A calibration error is biased upwards, more so with fewer images, and has no interval. "
        "Sensitivity at a fixed specificity (and the reverse) comes from the ROC curve of these "
        "images and is too good."
    )
    if not result.informed:
        known = "" if result.informed is None else f": it has none of the {result.images} images"
        return [*notes, f"No metadata{known}. No subgroups."]
    if result.informed < result.images:
        notes.append(f"The metadata cover {result.informed} of the {result.images} images.")
    if "skin type" not in set(result.subgroups["by"]):
        notes.append("The metadata have no skin type: the recall on darker skin is not known.")
    return notes
