"""The clinical audit of recorded predictions: everything is computed here once, pages and pictures only show it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from src.analysis.bootstrap import OVERALL, Predictions, gather, intervals
from src.clinical import calibration, curves, headline, isic, operating, ranks, subgroups
from src.clinical.record import ClinicalAudit
from src.clinical.resampling import COLUMNS, estimates, exact
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
) -> ClinicalAudit:
    """Everything that recorded predictions say about clinical use.

    Args:
        test: Recorded predictions, one frame a net (seed), of the same images; see `src.analysis.bootstrap.gather`.
        val: The same nets' predictions for validation, in the same order. Thresholds and temperatures are fitted on
            them; without them there are none.
        metadata: A column image_id and what is known of the images, see `subgroups.SOURCES`.
        settings: What is asked; the defaults by default.
        split: Prefix of the metric names, such as "test" or the name of external data.

    Raises:
        ConfigError: No class that could be the one looked for.
        UserError: Predictions or metadata that do not fit together; the message names the culprit.
    """
    settings = settings or Settings()
    given = gather(test, [f"{split} predictions {number}" for number in range(1, len(test) + 1)])
    chosen_on = _validation(val, given)
    name = settings.looked_for(given.classes)
    parts: dict[str, Any] = {
        **_intervals(test, given, name, settings),
        "operating": operating.points(given, chosen_on, name, settings),
        "isic": isic.scores(given),
        **_calibration(given, chosen_on),
        "subgroups": pd.DataFrame() if metadata is None else subgroups.table(test, metadata, name, settings),
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
        verdicts=verdicts(parts["operating"], name, settings.goal),
        notes=(),
        metrics={},
        **parts,
    )
    return replace(found, notes=headline.notes(found, given), metrics=headline.metrics(found))


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
    known = intervals(frames, samples=settings.samples, seed=settings.seed, level=settings.level)
    known["interval"] = np.where(known["low"].isna(), "", "bootstrap")
    known = _exact_where_flat(known, settings.level)[["metric", *COLUMNS]]
    wanted = [isic.balanced_accuracy(given), *(ranks.statistics(given, each, ranks.CURVES) for each in given.classes)]
    wanted.append(ranks.statistics(given, name, ranks.fixed(settings.fixed)))
    found = estimates(given, wanted, settings).reset_index()
    at = len(wanted[-1].names)
    ranking = found.iloc[1:-at] if at else found.iloc[1:]
    overall = known[known["metric"].isin(OVERALL)]
    per_class = _by_class(known[~known["metric"].isin(OVERALL)], "measure")
    per_class["order"] = per_class["class"].map(given.classes.index)
    return {
        "overall": pd.concat([overall, found.iloc[:1]], ignore_index=True),
        "per_class": per_class.sort_values("order", kind="stable", ignore_index=True).drop(columns="order"),
        "ranking": _by_class(ranking, "metric"),
        "fixed": found.iloc[len(found) - at :].reset_index(drop=True),
    }


def _exact_where_flat(known: pd.DataFrame, level: float) -> pd.DataFrame:
    """Recalls and specificities of 0 or 1 get an exact interval: resampling can show no spread of them."""
    flat = known["metric"].str.match("(recall|specificity)/") & known["estimate"].isin([0.0, 1.0])
    rows = known[flat]
    spans = [exact(estimate, groups, level) for estimate, groups in zip(rows["estimate"], rows["groups"], strict=True)]
    known.loc[flat, "low"] = [low for low, _ in spans]
    known.loc[flat, "high"] = [high for _, high in spans]
    known.loc[flat, "interval"] = "exact"
    return known


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
