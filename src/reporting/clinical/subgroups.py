"""Figures of parts of the people: by age, sex, body site and skin type, if the metadata have them.

A subgroup's figures use its images and lesions only. With too few lesions it has none, because
those of a handful of images would be taken for more than they are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from src.core.errors import UserError
from src.metrics import curves, thresholds
from src.metrics.bootstrap import (
    COLUMNS,
    Predictions,
    Statistics,
    curve_statistics,
    estimates,
    gather,
    mean_recall,
)
from src.metrics.settings import AuditSettings
from src.metrics.thresholds import Threshold

# attribute -> columns of metadata that hold it; the first that exists is used
SOURCES = {
    "age": ("age", "age_approx"),
    "sex": ("sex",),
    "site": (
        "localization",
        "anatom_site_general",
        "anatom_site_general_challenge",
        "anatom_site_special",
    ),
    "skin type": (
        *("fitzpatrick", "fitzpatrick_skin_type", "fitzpatrick_scale"),
        *("skin_type", "skin_tone"),
    ),
}
AT_THRESHOLD = "recall_at_threshold"
MEASURES = ("balanced_accuracy", "recall", AT_THRESHOLD, "auroc")
UNKNOWN = "unknown"
AGES = (30, 40, 50, 60, 70, 80)
BANDS = (f"<{AGES[0]}", *(f"{start}-{start + 9}" for start in AGES[:-1]), f"{AGES[-1]}+")
_NO_VALUE = ("", "nan", "none", "n/a", "na")
_SIZES = ["positives", "positive_lesions"]


def table(
    frames: Sequence[pd.DataFrame],
    metadata: pd.DataFrame,
    class_name: str,
    settings: AuditSettings,
    chosen: Sequence[Threshold] | None = None,
) -> pd.DataFrame:
    """Figures of every subgroup.

    Args:
        frames: Recorded predictions, one frame for each seed.
        metadata: A column image_id and some of those in `SOURCES`; other images are unknown.
        class_name: The class looked for.
        settings: Intervals, and the smallest number of lesions.
        chosen: Thresholds from validation, one for each net, for recall by threshold.

    Returns:
        A row for each subgroup and measure: by ("all", "age", ...), subgroup, measure
        ("balanced_accuracy" over the classes with enough lesions; "recall" of the class looked for
        by the most probable class, "recall_at_threshold" by `chosen`; "auroc" against the others),
        positives and positive_lesions (images and lesions of that class), then as `estimates` with
        images and groups of the subgroup, classes (in balanced accuracy), and a note why a figure
        is withheld.

    Raises:
        UserError: As `gather`; no column image_id, a repeated image, or an age that is no number.
    """
    ids = frames[0]["image_id"].astype(str)
    rows = _rows(gather(frames), class_name, settings, chosen, by="all", subgroup="all")
    for by, subgroup, images in _parts(attributes(ids, metadata)):
        part = [frame[frame["image_id"].astype(str).isin(images)] for frame in frames]
        rows += _rows(gather(part), class_name, settings, chosen, by=by, subgroup=subgroup)
    columns = ["by", "subgroup", "measure", *_SIZES, *COLUMNS, "classes", "note"]
    return pd.DataFrame(rows, columns=columns)


def informed(frame: pd.DataFrame, metadata: pd.DataFrame) -> int:
    """How many of the predicted images have metadata."""
    return int(frame["image_id"].astype(str).isin(_ids(metadata)).sum())


def attributes(images: pd.Series, metadata: pd.DataFrame) -> pd.DataFrame:
    """Age, sex, site and skin type of these images, as far as the metadata have them.

    Returns:
        Indexed by image; ages in bands of ten years; "unknown" where nothing is given.
    """
    rows = metadata.assign(image_id=_ids(metadata))
    rows = rows[rows["image_id"].isin(images)]
    repeated = rows["image_id"][rows["image_id"].duplicated()]
    if len(repeated):
        raise UserError(f"the metadata name image {repeated.iloc[0]} twice")
    columns = {str(column).lower(): column for column in metadata}
    found = pd.DataFrame(index=pd.Index(images, name="image_id"))
    for by, names in SOURCES.items():
        column = next((columns[name] for name in names if name in columns), None)
        if column is not None:
            values = rows.set_index("image_id")[column].reindex(found.index)
            found[by] = _bands(_texts(values)) if by == "age" else _texts(values)
    return found


def _ids(metadata: pd.DataFrame) -> pd.Series:
    if "image_id" not in metadata:
        names = ", ".join(map(str, metadata.columns))
        raise UserError(f"the metadata have no column image_id, but {names}")
    return metadata["image_id"].astype(str)


def _rows(
    predictions: Predictions,
    class_name: str,
    settings: AuditSettings,
    chosen: Sequence[Threshold] | None,
    **names: str,
) -> list[dict[str, Any]]:
    """One row for each measure of a subgroup."""
    label = predictions.classes.index(class_name)
    positive = predictions.target == label
    lesions = np.array(
        [_lesions(predictions, predictions.target == k) for k in range(len(predictions.classes))]
    )
    enough = lesions >= settings.smallest
    notes = dict.fromkeys(MEASURES, "")
    if enough.sum() < 2:
        notes["balanced_accuracy"] = (
            f"too few: fewer than two classes with {settings.smallest} lesions"
        )
    if (others := _lesions(predictions, ~positive)) < settings.smallest:
        notes["auroc"] = f"too few: {others} lesions of other classes"
    if not enough[label]:
        few = f"too few: {lesions[label]} lesions of {class_name}"
        notes |= dict.fromkeys(("recall", AT_THRESHOLD, "auroc"), few)
    measures = [name for name in MEASURES if name != AT_THRESHOLD or chosen is not None]
    shown = [name for name in measures if not notes[name]]
    statistics = [_statistics(predictions, label, enough, name, chosen) for name in shown]
    figures = estimates(predictions, statistics, settings).to_dict("records") if shown else []
    by_measure: dict[str, dict[Any, Any]] = dict(zip(shown, figures, strict=True))
    sizes = {"positives": int(positive.sum()), "positive_lesions": int(lesions[label])}
    sizes |= {"images": len(predictions.target), "groups": predictions.groups}
    sizes |= {"seeds": len(predictions.probability), "classes": int(enough.sum())}
    rows: list[dict[str, Any]] = []
    for name in measures:
        row: dict[str, Any] = {"interval": ""} | by_measure.get(name, {}) | names | sizes
        rows.append(row | {"measure": name, "note": notes[name]})
    return rows


def _statistics(
    predictions: Predictions,
    label: int,
    enough: np.ndarray,
    measure: str,
    chosen: Sequence[Threshold] | None,
) -> Statistics:
    """One measure; `enough`: the classes with enough lesions to count in balanced accuracy."""
    name = predictions.classes[label]
    if measure == "auroc":
        return curve_statistics(predictions, name, {"auroc": curves.area})
    if measure == "balanced_accuracy":
        right = predictions.probability.argmax(axis=2) == predictions.target
        return mean_recall(predictions, right, np.flatnonzero(enough).tolist(), measure)
    return recall(predictions, name, None if measure == "recall" else chosen)


def recall(
    predictions: Predictions, class_name: str, chosen: Sequence[Threshold] | None = None
) -> Statistics:
    """Recall of a class by the most probable class, or by thresholds, one for each net."""
    decisions = thresholds.decide(predictions, class_name, chosen)
    rates = thresholds.rates(predictions, class_name, decisions)
    return replace(
        rates,
        names=("recall",),
        bases=rates.bases[:1],
        measure=lambda weights: rates.measure(weights)[..., :1],
    )


def _lesions(predictions: Predictions, images: np.ndarray) -> int:
    return len(np.unique(predictions.group[images]))


def _parts(known: pd.DataFrame) -> Iterator[tuple[str, str, pd.Index]]:
    """Subgroups and their images: ages and skin types in order, others by size, unknown last."""
    for by in known:
        names = list(known[by].value_counts().index)
        if by == "age":
            names.sort(key=[*BANDS, UNKNOWN].index)
        elif by == "skin type":
            names.sort()
        names.sort(key=lambda name: name == UNKNOWN)
        for name in names:
            yield str(by), str(name), known.index[known[by] == name]


def _bands(texts: pd.Series) -> pd.Series:
    years = pd.to_numeric(texts.where(texts != UNKNOWN), errors="coerce")
    bad = texts[years.isna() & (texts != UNKNOWN)]
    if len(bad):
        image, age = bad.index[0], bad.iloc[0]
        raise UserError(f"the metadata give image {image} the age {age!r}, which is no number")
    bands = pd.cut(years, [-np.inf, *AGES, np.inf], right=False, labels=list(BANDS))
    return bands.astype(object).fillna(UNKNOWN)


def _texts(values: pd.Series) -> pd.Series:
    def text(value: object) -> str:
        # whole numbers beside gaps are read as floats: type 3, not type 3.0
        whole = isinstance(value, float) and value.is_integer()
        return str(int(value)) if whole else str(value).strip()  # type: ignore[call-overload]

    texts = values.astype(object).where(values.notna(), UNKNOWN).map(text)
    return texts.where(~texts.str.lower().isin(_NO_VALUE), UNKNOWN)
