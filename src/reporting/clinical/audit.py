"""The clinical audit: rates with intervals, thresholds, calibration, subgroups and the verdict."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from src.core.errors import UserError
from src.metrics import bootstrap, calibration, curves, thresholds
from src.metrics.bootstrap import COLUMNS, Predictions, gather
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
    on_val = _validation(val, predictions) if val else None
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
    tables: dict[str, Any] = _rate_tables(test, predictions, name, settings)
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
        **tables,
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

    `operating` is from `metrics.thresholds.points`.
    """
    specificity = operating[operating["measure"] == "specificity"].set_index("rule")["estimate"]
    rows = operating[operating["measure"] == "sensitivity"]
    rows = rows[~rows["rule"].str.startswith("specificity")].rename(columns={"groups": "lesions"})
    return tuple(
        RecallVerdict(
            class_name=class_name,
            goal=goal,
            recall=row["estimate"],
            specificity=specificity.get(row["rule"], np.nan),
            warnings=tuple(warnings),
            **{str(key): row[key] for key in ("rule", "low", "high", "images", "lesions")},
            problem=row["problem"],
        )
        for row in rows.to_dict("records")
    )


def _validation(val: Sequence[pd.DataFrame], test: Predictions) -> Predictions:
    """Predictions of validation; they must be of as many nets and of the same classes."""
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
    fixed, classes = curves.fixed_points(settings.fixed), predictions.classes
    statistics = [bootstrap.isic_balanced_accuracy(predictions)]
    statistics += [bootstrap.curve_statistics(predictions, c, curves.CURVES) for c in classes]
    for label in classes:
        rates = thresholds.rates(predictions, label, thresholds.decide(predictions, label, None))
        names = tuple(f"{rate}/{label}" for rate in ("recall", "specificity", "precision", "npv"))
        statistics.append(replace(rates, names=names))
    statistics += [bootstrap.curve_statistics(predictions, name, fixed)] if fixed else []
    table = bootstrap.estimates(predictions, statistics, settings).reset_index()
    table = pd.concat([_run_metrics(frames, predictions, settings), table], ignore_index=True)
    parts = table["metric"].str.partition("/")
    table = table.assign(measure=parts[0], **{"class": parts[2]})
    per_class = table[table["measure"].isin(class_metrics())].sort_values(
        ["class", "measure"],
        key=lambda column: column.map([*classes, *class_metrics()].index),
        kind="stable",
    )
    ranking = table[table["measure"].isin(curves.CURVES) & (table["class"] != "")]
    rows = {
        "overall": table.loc[table["class"] == "", ["metric", *COLUMNS]],
        "per_class": per_class[["class", "measure", *COLUMNS]],
        "ranking": ranking[["class", "measure", *COLUMNS]].rename(columns={"measure": "metric"}),
        "fixed": table.loc[table["measure"].isin(fixed), ["metric", *COLUMNS]],
    }
    return {key: part.reset_index(drop=True) for key, part in rows.items()}


def _run_metrics(
    frames: Sequence[pd.DataFrame], predictions: Predictions, settings: AuditSettings
) -> pd.DataFrame:
    """Metrics over all classes, and F1; a mean over classes is as sure as its rarest class."""
    metrics = [*overall_metrics(), *(f"f1/{name}" for name in predictions.classes)]
    how = (settings.samples, settings.seed, settings.level)
    table = bootstrap.intervals(frames, metrics, *how)
    kinds = [predictions.target == label for label in np.unique(predictions.target)]
    rarest = bootstrap.rarest_groups(predictions, kinds)
    rows = []
    for row in table.to_dict("records"):
        name, share = str(row["metric"]).partition("/")[2], row["metric"] == "accuracy"
        basis = predictions.basis(f"recall/{name}") if name else rarest
        basis = predictions.group if share else basis
        ends = (row["low"], row["high"], row["estimate"])
        ends = bootstrap.adjusted_interval(*ends, basis, settings.level, share)
        row |= dict(zip(("low", "high", "interval"), ends, strict=True))
        rows.append(row | {"images": len(basis), "groups": len(np.unique(basis))})
    return pd.DataFrame(rows)[["metric", *COLUMNS]]


def _record_metrics(result: ClinicalAudit) -> dict[str, float]:
    """Figures by record names, `<split>/...`; undefined ones are left out."""
    rows = pd.concat([result.overall, result.fixed]).to_dict("records")
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
    settings, several, informed = result.settings, result.seeds > 1, result.informed
    labels = np.unique(predictions.target)
    missing = [name for label, name in enumerate(result.classes) if label not in labels]
    lowest, highest = calibration.TEMPERATURES
    no_metadata = "" if informed is None else f": it has none of the {result.images} images"
    skin_type = bool(informed) and "skin type" in set(result.subgroups["by"])
    fitting = "No validation predictions: no threshold was chosen, no temperature fitted."
    if result.temperatures:
        fitting = (
            "Thresholds and temperatures were chosen on validation, for each net, and applied "
            "unchanged; the intervals take them as fixed."
        )
    elif result.split == "val":
        fitting = "Thresholds and temperatures are chosen on these images: not applied here."
    notes = {
        f"{f'Figures are means over {result.seeds} nets (seeds). ' if several else ''}"
        f"Intervals: {100 * settings.level:g}%, {settings.samples} resamplings of whole lesions or "
        f"patients{' and of seeds' if several else ''}. Shares (recall, specificity, precision, "
        "predictive values, accuracy) get the wider of that and the exact one (Clopper-Pearson, a "
        "lesion counted once), end by end; * marks an exact end. A figure without an interval "
        "rests on fewer than two lesions of a kind, or no resampling changes it.": True,
        f"{result.positives / result.images:.1%} of these images are {result.positive}. PPV and "
        "NPV hold for that share only; where the class is rarer, PPV is lower.": True,
        "Each image is its own group: if lesions repeat, intervals are too narrow.": (
            result.lesions == result.images
        ),
        f"No images of {', '.join(missing)}: means leave these classes out.": bool(missing),
        fitting: True,
        "A temperature is at the bound of the search: validation does not define it.": any(
            not lowest < temperature < highest for temperature in result.temperatures
        ),
        "A calibration error is biased upwards, more so with fewer images, and has no interval. "
        "Sensitivity at a fixed specificity (and the reverse) comes from the ROC curve of these "
        "images and is too good.": True,
        f"No metadata{no_metadata}. No subgroups.": not informed,
        f"The metadata cover {informed} of the {result.images} images.": (
            0 < (informed or 0) < result.images
        ),
        "The metadata have no skin type: the recall on darker skin is not known.": (
            bool(informed) and not skin_type
        ),
    }
    return [note for note, holds in notes.items() if holds]
