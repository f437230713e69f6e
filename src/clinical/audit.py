"""The clinical audit of recorded predictions: everything is computed here once, pages and pictures only show it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from src.analysis.bootstrap import OVERALL, PER_CLASS, Predictions, gather, intervals
from src.clinical import calibration, curves, headline, isic, operating, ranks, subgroups
from src.clinical.record import ClinicalAudit
from src.clinical.resampling import COLUMNS, Statistics, estimates, rarest, settled
from src.clinical.settings import Settings
from src.clinical.verdicts import verdicts
from src.errors import UserError

__all__ = ["ClinicalAudit", "Settings", "audit"]


def audit(
    test: Sequence[pd.DataFrame],
    val: Sequence[pd.DataFrame] = (),
    metadata: pd.DataFrame | None = None,
    settings: Settings | None = None,
    split: str = "test",
    notes: Sequence[str] = (),
) -> ClinicalAudit:
    """Everything that recorded predictions say about clinical use.

    Args:
        test: Recorded predictions, one frame a net (seed), of the same images; see `src.analysis.bootstrap.gather`.
        val: The same nets' predictions for validation, in the same order. Thresholds and temperatures are fitted on
            them; without them there are none.
        metadata: A column image_id and what is known of the images, see `subgroups.SOURCES`.
        settings: What is asked; the defaults by default.
        split: Prefix of the metric names, such as "test" or the name of external data; "val": the images that
            thresholds are chosen on.
        notes: What the caller knows against these predictions, in sentences, such as that the split leaks: shown before
            all else and beside the verdicts.

    Raises:
        ConfigError: No class that could be the one looked for.
        UserError: Predictions or metadata that do not fit together; the message names the culprit.
    """
    settings = settings or Settings()
    given = gather(test, [f"{split} predictions {number}" for number in range(1, len(test) + 1)])
    chosen_on = _validation(val, given)
    name = settings.looked_for(given.classes)
    informed = None if metadata is None else subgroups.informed(test[0], metadata)
    parts: dict[str, Any] = {
        **_intervals(test, given, name, settings),
        "operating": operating.points(given, chosen_on, name, settings),
        "isic": isic.scores(given),
        **_calibration(given, chosen_on),
        "subgroups": subgroups.table(test, metadata, name, settings, operating.usable(chosen_on, name, settings))
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
    return replace(found, notes=(*notes, *headline.notes(found, given)), metrics=headline.metrics(found))


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
        raise UserError(f"validation has the classes {', '.join(given.classes)}, but not {', '.join(test.classes)}")
    return given


def _intervals(
    frames: Sequence[pd.DataFrame], given: Predictions, name: str, settings: Settings
) -> dict[str, pd.DataFrame]:
    """The tables of figures with intervals that are not of decisions by a threshold."""
    wanted = [isic.balanced_accuracy(given), *(ranks.statistics(given, each, ranks.CURVES) for each in given.classes)]
    wanted += [_rates(given, each) for each in given.classes]
    fixed = ranks.fixed(settings.fixed)
    if fixed:
        wanted.append(ranks.statistics(given, name, fixed))
    known = _known(frames, given, settings)
    found = pd.concat([known, estimates(given, wanted, settings).reset_index()], ignore_index=True)
    measure = found["metric"].str.partition("/")[0].where(found["metric"].str.contains("/"), "")
    per_class = _by_class(found[measure.isin(PER_CLASS)], "measure")
    order = [(given.classes.index(row["class"]), PER_CLASS.index(row["measure"])) for _, row in per_class.iterrows()]
    return {
        "overall": found[measure == ""].reset_index(drop=True),
        "per_class": per_class.loc[sorted(per_class.index, key=order.__getitem__)].reset_index(drop=True),
        "ranking": _by_class(found[measure.isin(ranks.CURVES)], "metric"),
        "fixed": found[measure.isin(fixed)].reset_index(drop=True),
    }


def _rates(given: Predictions, name: str) -> Statistics:
    """Recall, specificity and precision of one class, by the most probable class."""
    rates = operating.rates(given, name, operating.decide(given, name, None))
    return replace(rates, names=tuple(f"{each}/{name}" for each in ("recall", "specificity", "precision", "npv")))


def _known(frames: Sequence[pd.DataFrame], given: Predictions, settings: Settings) -> pd.DataFrame:
    """What the analysis computes: figures over all classes, and F1. A mean over classes rests on the rarest of them."""
    metrics = [*OVERALL, *(f"f1/{each}" for each in given.classes)]
    known = intervals(frames, metrics, settings.samples, settings.seed, settings.level)
    own = [given.target == label for label in range(len(given.classes))]
    fewest = rarest(given, [images for images in own if images.any()])
    rows = []
    for row in known.to_dict("records"):
        measure, _, name = str(row["metric"]).partition("/")
        basis = given.group if measure == "accuracy" else given.basis(f"recall/{name}") if name else fewest
        low, high, kind = settled(
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
        "calibration": calibration.compared(given, scaled),
        "bins": calibration.bins(given, scaled),
        "temperatures": temperatures,
    }
