"""The clinical audit: rates with intervals, thresholds, calibration, subgroups, domain shift."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from src.core.errors import UserError
from src.metrics import bootstrap, calibration, curves, thresholds
from src.metrics.bootstrap import COLUMNS, Predictions, gather
from src.metrics.registry import PRIMARY, class_metrics, overall_metrics
from src.metrics.settings import AuditSettings
from src.metrics.thresholds import TargetRate, Threshold
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
        target, usable = TargetRate("sensitivity", settings.sensitivity), None
        if on_val is not None:
            chosen = thresholds.choose_per_net(on_val, name, target)
            usable = None if any(threshold.problem for threshold in chosen) else chosen
        by_subgroup = subgroups.table(test, metadata, name, settings, usable)
    temperatures: tuple[float, ...] = ()
    scaled = None
    if on_val is not None:
        temperatures = tuple(calibration.fit(net, on_val.target) for net in on_val.probability)
        nets = zip(predictions.probability, temperatures, strict=True)
        scaled = np.stack([calibration.scale(net, temperature) for net, temperature in nets])
    operating = thresholds.points(predictions, on_val, name, settings)
    tables: dict[str, Any] = _rate_tables(predictions, name, settings)
    return ClinicalAudit(
        split=split,
        classes=predictions.classes,
        positive=name,
        settings=settings,
        images=len(predictions.target),
        lesions=predictions.groups,
        positives=int((predictions.target == predictions.classes.index(name)).sum()),
        seeds=len(predictions.probability),
        verdicts=verdicts(operating, name, settings, warnings),
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


def verdicts(
    operating: pd.DataFrame, class_name: str, settings: AuditSettings, warnings: Sequence[str] = ()
) -> tuple[RecallVerdict, ...]:
    """Verdicts on the predicted class and on the threshold that was chosen for sensitivity.

    `operating` is from `metrics.thresholds.points`.
    """
    rates = operating.set_index(["measure", "rule"])
    rows = operating[operating["measure"] == "sensitivity"]
    rows = rows[~rows["rule"].str.startswith("specificity")].rename(columns={"groups": "lesions"})
    same = ("rule", "low", "high", "images", "lesions", "problem")
    return tuple(
        RecallVerdict(
            class_name=class_name,
            goal=settings.goal,
            recall=row["estimate"],
            specificity=rates["estimate"].get(("specificity", row["rule"]), np.nan),
            warnings=tuple(warnings),
            level=settings.level,
            **{name: row[name] for name in same},
        )
        for row in rows.to_dict("records")
    )


def _validation(val: Sequence[pd.DataFrame], test: Predictions) -> Predictions:
    """Predictions of validation; they must be of as many nets and of the same classes."""
    predictions = gather(val, [f"validation predictions {n}" for n in range(1, len(val) + 1)])
    nets, expected = len(predictions.probability), len(test.probability)
    if nets != expected:
        problem = f"validation was predicted by {nets} nets, these images by {expected}"
        raise UserError(f"{problem}; give the predictions of the same nets")
    if predictions.classes != test.classes:
        classes, others = ", ".join(predictions.classes), ", ".join(test.classes)
        raise UserError(f"validation has the classes {classes}, but not {others}")
    return predictions


def _rate_tables(
    predictions: Predictions, name: str, settings: AuditSettings
) -> dict[str, pd.DataFrame]:
    """The tables `overall`, `per_class`, `ranking` and `fixed`."""
    classes, fixed = predictions.classes, curves.fixed_points(settings.fixed)
    isic = bootstrap.isic_balanced_accuracy(predictions)
    # A mean over classes is as sure as its rarest class.
    means = dict.fromkeys((name for name in overall_metrics() if name != "accuracy"), isic.bases[0])
    means |= {f"f1/{label}": predictions.basis(f"recall/{label}") for label in classes}
    scores = bootstrap.metric_statistics(predictions, list(means))
    statistics = [
        replace(bootstrap.metric_statistics(predictions, ["accuracy"]), shares=True),
        replace(scores, bases=tuple(means.values())),
        isic,
    ]
    names = {"sensitivity": "recall", "specificity": "specificity", "ppv": "precision"}
    for label in classes:
        named = {rate: f"{measure}/{label}" for rate, measure in names.items()}
        statistics.append(bootstrap.curve_statistics(predictions, label, curves.CURVES))
        statistics.append(thresholds.rates(predictions, label, names=named))
    statistics += [bootstrap.curve_statistics(predictions, name, fixed)] if fixed else []
    table = bootstrap.estimates(predictions, statistics, settings).reset_index()
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
        "ranking": ranking.assign(metric=ranking["measure"])[["class", "metric", *COLUMNS]],
        "fixed": table.loc[table["measure"].isin(fixed), ["metric", *COLUMNS]],
    }
    return {key: part.reset_index(drop=True) for key, part in rows.items()}


# ---- from the run's data to other data

_ENDS = ("", "_low", "_high")
SHIFT_COLUMNS = [
    "metric",
    *(f"{side}{end}" for side in ("own", "external") for end in _ENDS),
    *("difference", "low", "high"),
    *(f"{side}_{size}" for side in ("own", "external") for size in ("images", "groups")),
]


def domain_shift(
    internal: Sequence[pd.DataFrame],
    external: Sequence[pd.DataFrame],
    val: Sequence[pd.DataFrame],
    positive: str | None,
    settings: AuditSettings,
) -> pd.DataFrame:
    """Metrics on the run's test split and on other data, with intervals of the differences.

    Images of classes that only one side has are left out, so that means are over the same classes.
    Both sides have one frame for each net, in the same order and over the same classes, see
    `gather`. The threshold is chosen on `val`, the run's validation split, unless that is empty.
    `positive` is the class looked for, if there is one.

    Returns:
        A row for each metric, with `SHIFT_COLUMNS`; difference is external - own, negative is
        worse.
    """
    shared = sorted(set(internal[0]["label"]) & set(external[0]["label"]))
    looked_for = positive if positive in shared and len(shared) > 1 else None
    chosen: list[Threshold] = []
    if looked_for is not None and len(val):
        target = TargetRate("sensitivity", settings.sensitivity)
        chosen = thresholds.choose_per_net(gather(val), looked_for, target)
        chosen = [] if any(np.isnan(threshold.value) for threshold in chosen) else chosen
    samples, points, tables, bases = [], [], [], []
    for number, frames in enumerate((internal, external)):
        predictions = gather([frame[frame["label"].isin(shared)] for frame in frames])
        mean = bootstrap.metric_statistics(predictions, [PRIMARY])
        rates = ["accuracy", *(f"recall/{name}" for name in shared)]
        statistics = [mean, replace(bootstrap.metric_statistics(predictions, rates), shares=True)]
        if looked_for is not None:
            statistics += [
                bootstrap.curve_statistics(predictions, looked_for, {"auroc": curves.area})
            ]
        if looked_for is not None and chosen:
            names = {rate: f"chosen/{rate}/{looked_for}" for rate in ("sensitivity", "specificity")}
            statistics.append(thresholds.rates(predictions, looked_for, chosen, names))
        rng = np.random.default_rng([settings.seed, number])
        samples.append(bootstrap.resample(predictions, statistics, settings.samples, rng))
        points.append(bootstrap.evaluate(predictions, *statistics))
        tables.append(bootstrap.estimates(predictions, statistics, settings))
        bases.append([basis for statistic in statistics for basis in statistic.bases])
    # A net counts on both sides, so the seeds' error of the gap is that of their differences.
    gaps, rng = points[1] - points[0], np.random.default_rng(settings.seed + 2)
    drawn = bootstrap.over_seeds(samples[1] - samples[0], gaps, rng, difference=True)
    rows = []
    for at, (name, *pair) in enumerate(zip(tables[0].index, *bases, strict=True)):
        basis = min(pair, key=lambda groups: len(np.unique(groups)))
        of_run, of_data = (table.iloc[at, :6].tolist() for table in tables)
        gap = gaps[:, at].mean()
        _, low, high, kind, *_ = bootstrap.interval(drawn[:, at], gap, basis, settings.level)
        share = name.startswith(("accuracy", "recall/", "chosen/"))
        if "exact" in (of_run[3], of_data[3]) or (share and not kind):
            low, high = newcombe(of_data[:3], of_run[:3])
        elif not (of_run[3] and of_data[3]):
            low, high = np.nan, np.nan
        rows.append((name, *of_run[:3], *of_data[:3], gap, low, high, *of_run[4:], *of_data[4:]))
    return pd.DataFrame(rows, columns=SHIFT_COLUMNS)


def newcombe(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Interval of first - second in [-1, 1]: two independent shares, with low and high of each.

    Source: Newcombe, Interval estimation for the difference between independent proportions,
        Statistics in Medicine 17, 1998, method 10, there with Wilson's intervals.
    """
    (one, one_low, one_high), (two, two_low, two_high) = first, second
    low = one - two - np.hypot(one - one_low, two_high - two)
    return low, one - two + np.hypot(one_high - one, two - two_low)


def recall_by_original_label(
    external: Sequence[pd.DataFrame], settings: AuditSettings
) -> pd.DataFrame:
    """Recall of each class of the data set itself, such as AK and SCC apart.

    The predictions, one frame for each net, have a column `original_label`.

    Returns:
        A row for each class: original_label, counts_as, images, groups, recall, low, high.
    """
    tables = {}
    for name in sorted(external[0]["original_label"].unique()):
        frames = [frame[frame["original_label"] == name] for frame in external]
        predictions, counts_as = gather(frames), frames[0]["label"].iloc[0]
        recall = thresholds.rates(predictions, counts_as, names={"sensitivity": "recall"})
        tables[name, counts_as] = bootstrap.estimates(predictions, [recall], settings)
    table = pd.concat(tables, names=["original_label", "counts_as"]).reset_index()
    columns = ["original_label", "counts_as", "images", "groups", "recall", "low", "high"]
    return table.rename(columns={"estimate": "recall"})[columns]
