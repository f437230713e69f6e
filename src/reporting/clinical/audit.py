"""The clinical audit of predictions."""

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
    Statistics,
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
from src.metrics.thresholds import TargetRate
from src.reporting.clinical import subgroups
from src.reporting.clinical.record import ClinicalAudit, verdicts


def rules(found: ClinicalAudit) -> dict[str, str]:
    """By which rules the subgroups have a recall: the measure there, and what to call the rule."""
    names = {
        "recall": "the most probable class",
        "recall_at_threshold": f"val's threshold for {TargetRate('sensitivity', found.settings.sensitivity)}",
    }
    there = set() if found.subgroups.empty else set(found.subgroups["measure"])
    return {measure: rule for measure, rule in names.items() if measure in there}


def metrics(found: ClinicalAudit) -> dict[str, float]:
    """Figures by record names, `<split>/...`; what is not defined is left out."""
    values: dict[str, float] = {}
    for row in found.ranking.to_dict("records"):
        values[f"{row['metric']}/{row['class']}"] = row["estimate"]
    for row in [*found.overall.to_dict("records"), *found.fixed.to_dict("records")]:
        values[row["metric"]] = row["estimate"]
    values = {
        name: value
        for name, value in values.items()
        if "/" in name or name == "isic_balanced_accuracy"
    }
    for row in found.calibration.to_dict("records"):
        values |= {row["measure"]: row["before"], f"{row['measure']}_scaled": row["after"]}
    if found.temperatures:
        values["temperature"] = float(np.mean(found.temperatures))
    chosen = found.operating[
        found.operating["rule"] == f"sensitivity >= {found.settings.sensitivity:g}"
    ]
    for row in chosen.to_dict("records"):
        values[f"chosen/{row['measure']}/{found.positive}"] = row["estimate"]
    return {
        f"{found.split}/{name}": float(value)
        for name, value in values.items()
        if np.isfinite(value)
    }


def audit_notes(found: ClinicalAudit, given: Predictions) -> tuple[str, ...]:
    """Plain sentences that a reader needs to judge the figures.

    Args:
        found: The audit, but for its notes.
        given: What it was made from.
    """
    share = found.positives / found.images
    several = f"Figures are means over {found.seeds} nets (seeds). " if found.seeds > 1 else ""
    told = [
        f"{several}Intervals: {100 * found.settings.level:g}%, {found.settings.samples} resamplings of whole lesions "
        f"or patients{' and of seeds' if found.seeds > 1 else ''}. Shares (recall, specificity, precision, predictive "
        "values, accuracy) get the wider of that and the exact one (Clopper-Pearson, a lesion counted once), end by "
        "end; * where an end is exact. A figure without an interval rests on fewer than two lesions of a kind, or no "
        "resampling changes it.",
        f"{share:.1%} of these images are {found.positive}. PPV and NPV hold for that share only; where it is rarer, "
        "PPV is lower.",
    ]
    if found.lesions == found.images:
        told.append(
            "Every image is a group of its own: if some show the same lesion, the intervals are too narrow."
        )
    missing = [
        name for label, name in enumerate(given.classes) if not (given.target == label).any()
    ]
    if missing:
        told.append(
            f"No images of {', '.join(missing)}: nothing is said of them, and means leave them out."
        )
    if found.temperatures:
        told += _on_temperatures(found)
    elif found.split == "val":
        told.append(
            "Thresholds and temperatures are chosen on these very images: here they are not applied."
        )
    else:
        told.append("No validation predictions: no threshold was chosen and no temperature fitted.")
    told.append(
        "A calibration error is biased upwards, more so with fewer images, and has no interval; sensitivity at a fixed "
        "specificity (and the reverse) is read off the ROC curve of these very images, so that it flatters."
    )
    return (*told, *_on_subgroups(found))


def _on_temperatures(found: ClinicalAudit) -> list[str]:
    told = [
        "Thresholds and temperatures were chosen on validation, one a net, and applied as they were; the intervals "
        "take them as given."
    ]
    if any(
        not calibration.TEMPERATURES[0] < each < calibration.TEMPERATURES[1]
        for each in found.temperatures
    ):
        told.append(
            "A temperature stands at the bound of the search: validation does not tell how sure the net may be."
        )
    return told


def _on_subgroups(found: ClinicalAudit) -> list[str]:
    if found.informed is None:
        return ["No metadata: no subgroups."]
    if not found.informed:
        return [f"No metadata: those given name none of the {found.images} images. No subgroups."]
    told = []
    if found.informed < found.images:
        told.append(
            f"The metadata know {found.informed} of the {found.images} images; the others are unknown."
        )
    if "skin type" not in set(found.subgroups["by"]):
        told.append("The metadata do not tell skin type: how it fares on darker skin is not known.")
    return told


__all__ = ["ClinicalAudit", "AuditSettings", "audit"]


def audit(
    test: Sequence[pd.DataFrame],
    val: Sequence[pd.DataFrame] = (),
    metadata: pd.DataFrame | None = None,
    settings: AuditSettings | None = None,
    split: str = "test",
    notes: Sequence[str] = (),
) -> ClinicalAudit:
    """Everything that recorded predictions say about clinical use.

    Args:
        test: Recorded predictions, one frame a net (seed), of the same images; see
            `src.metrics.bootstrap.gather`.
        val: The same nets' predictions for validation, in the same order. Thresholds and
            temperatures are fitted on them; without them there are none.
        metadata: A column image_id and what is known of the images, see `subgroups.SOURCES`.
        settings: What is asked; the defaults by default.
        split: Prefix of the metric names, such as "test" or the name of external data; "val": the
            images that thresholds are chosen on.
        notes: What the caller knows against these predictions, in sentences, such as that the split
            leaks: shown before all else and beside the verdicts.

    Raises:
        ConfigError: No class that could be the one looked for.
        UserError: Predictions or metadata that do not fit together; the message names the culprit.
    """
    settings = settings or AuditSettings()
    given = gather(test, [f"{split} predictions {number}" for number in range(1, len(test) + 1)])
    chosen_on = _validation(val, given)
    name = settings.looked_for(given.classes)
    informed = None if metadata is None else subgroups.informed(test[0], metadata)
    parts: dict[str, Any] = {
        **_intervals(test, given, name, settings),
        "operating": thresholds.points(given, chosen_on, name, settings),
        "isic": curves.isic_scores(given),
        **_calibration(given, chosen_on),
        "subgroups": subgroups.table(
            test, metadata, name, settings, thresholds.usable_thresholds(chosen_on, name, settings)
        )
        if metadata is not None and informed
        else pd.DataFrame(),
        "roc": curves.roc(given),
        "precision_recall": curves.precision_recall(given),
    }
    own = int((given.target == given.classes.index(name)).sum())
    found = ClinicalAudit(
        split=split,
        classes=given.classes,
        positive=name,
        settings=settings,
        images=len(given.target),
        lesions=given.groups,
        positives=own,
        seeds=len(given.probability),
        verdicts=verdicts(parts["operating"], name, settings.goal, notes),
        notes=(),
        warnings=tuple(notes),
        informed=informed,
        metrics={},
        **parts,
    )
    return replace(found, notes=(*notes, *audit_notes(found, given)), metrics=metrics(found))


def _validation(val: Sequence[pd.DataFrame], test: Predictions) -> Predictions | None:
    """The nets' predictions for validation, or None; they must be of as many nets and of the same classes."""
    if not val:
        return None
    given = gather(val, [f"validation predictions {number}" for number in range(1, len(val) + 1)])
    if len(given.probability) != len(test.probability):
        raise UserError(
            f"validation was predicted by {len(given.probability)} nets, these images by {len(test.probability)}; "
            "give the predictions of the same nets"
        )
    if given.classes != test.classes:
        raise UserError(
            f"validation has the classes {', '.join(given.classes)}, but not {', '.join(test.classes)}"
        )
    return given


def _intervals(
    frames: Sequence[pd.DataFrame], given: Predictions, name: str, settings: AuditSettings
) -> dict[str, pd.DataFrame]:
    """The tables of figures with intervals that are not of decisions by a threshold."""
    wanted = [
        isic_balanced_accuracy(given),
        *(curve_statistics(given, each, curves.CURVES) for each in given.classes),
    ]
    wanted += [_rates(given, each) for each in given.classes]
    fixed = curves.fixed_points(settings.fixed)
    if fixed:
        wanted.append(curve_statistics(given, name, fixed))
    known = _known(frames, given, settings)
    found = pd.concat([known, estimates(given, wanted, settings).reset_index()], ignore_index=True)
    measure = found["metric"].str.partition("/")[0].where(found["metric"].str.contains("/"), "")
    per_class = _by_class(found[measure.isin(class_metrics())], "measure")
    order = [
        (given.classes.index(row["class"]), class_metrics().index(row["measure"]))
        for _, row in per_class.iterrows()
    ]
    return {
        "overall": found[measure == ""].reset_index(drop=True),
        "per_class": per_class.loc[sorted(per_class.index, key=order.__getitem__)].reset_index(
            drop=True
        ),
        "ranking": _by_class(found[measure.isin(curves.CURVES)], "metric"),
        "fixed": found[measure.isin(fixed)].reset_index(drop=True),
    }


def _rates(given: Predictions, name: str) -> Statistics:
    """Recall, specificity and precision of one class, by the most probable class."""
    rates = thresholds.rates(given, name, thresholds.decide(given, name, None))
    return replace(
        rates,
        names=tuple(f"{each}/{name}" for each in ("recall", "specificity", "precision", "npv")),
    )


def _known(
    frames: Sequence[pd.DataFrame], given: Predictions, settings: AuditSettings
) -> pd.DataFrame:
    """What the analysis computes: figures over all classes, and F1. A mean over classes rests on the rarest of them."""
    metrics = [*overall_metrics(), *(f"f1/{each}" for each in given.classes)]
    known = intervals(frames, metrics, settings.samples, settings.seed, settings.level)
    own = [given.target == label for label in range(len(given.classes))]
    fewest = rarest_groups(given, [images for images in own if images.any()])
    rows = []
    for row in known.to_dict("records"):
        measure, _, name = str(row["metric"]).partition("/")
        basis = (
            given.group
            if measure == "accuracy"
            else given.basis(f"recall/{name}")
            if name
            else fewest
        )
        low, high, kind = adjusted_interval(
            row["low"], row["high"], row["estimate"], basis, settings.level, measure == "accuracy"
        )
        sizes = {"images": len(basis), "groups": len(np.unique(basis))}
        rows.append(row | {"low": low, "high": high, "interval": kind} | sizes)
    return pd.DataFrame(rows)[["metric", *COLUMNS]]


def _by_class(found: pd.DataFrame, measure: str) -> pd.DataFrame:
    """`metric` taken apart: the class and what was measured of it."""
    parts = found["metric"].str.partition("/")
    table = found.drop(columns="metric").reset_index(drop=True)
    table.insert(0, "class", parts[2].to_numpy())
    table.insert(1, measure, parts[0].to_numpy())
    return table


def _calibration(given: Predictions, val: Predictions | None) -> dict[str, Any]:
    """Calibration of the predictions, and what it is at the temperatures that validation asks for."""
    temperatures: tuple[float, ...] = ()
    scaled = None
    if val is not None:
        temperatures = tuple(calibration.fit(each, val.target) for each in val.probability)
        nets = zip(given.probability, temperatures, strict=True)
        scaled = np.stack([calibration.scale(each, temperature) for each, temperature in nets])
    return {
        "calibration": calibration.compare(given, scaled),
        "bins": calibration.bins(given, scaled),
        "temperatures": temperatures,
    }
