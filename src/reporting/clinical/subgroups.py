"""Figures of parts of the people: by age, sex, body site and skin type, if the metadata have them.

A subgroup's figures use its images and lesions only. With too few lesions it has none, because
those of a handful of images would be taken for more than they are.
"""

import functools
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from src.core.errors import ConfigError, UserError
from src.metrics import bootstrap, curves, thresholds
from src.metrics.bootstrap import COLUMNS, Predictions, Statistics, gather
from src.metrics.registry import PRIMARY
from src.metrics.settings import AuditSettings
from src.metrics.thresholds import Threshold

SOURCES: dict[str, list[str]] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_bytes())
# a column whose name has one of these words, and that is not in `SOURCES`, may be metadata
_WORDS = re.compile("age|sex|gender|site|loca[lt]|region|anatom|body|fit[sz]|skin|tone|ethnic|race")
AT_THRESHOLD = "recall_at_threshold"
UNKNOWN = "unknown"
AGES = (30, 40, 50, 60, 70, 80)
BANDS = (f"<{AGES[0]}", *(f"{start}-{start + 9}" for start in AGES[:-1]), f"{AGES[-1]}+")
_NO_VALUE = ("", "nan", "none", "n/a", "na")


def table(
    frames: Sequence[pd.DataFrame],
    metadata: pd.DataFrame,
    class_name: str,
    settings: AuditSettings,
    chosen: Sequence[Threshold] | None = None,
) -> pd.DataFrame:
    """Figures of every subgroup, from predictions, a frame for each seed.

    `metadata` has a column image_id and some of those in `SOURCES`; other images are unknown.
    `chosen` are thresholds from validation, one for each net, for recall by threshold.

    Returns:
        A row for each subgroup and measure: by ("all", "age", ...), subgroup, measure
        ("balanced_accuracy" over the classes with enough lesions; "recall" of the class looked for
        by the most probable class, "recall_at_threshold" by `chosen`; "auroc" against the others),
        positives and positive_lesions (images and lesions of that class), then as `estimates` with
        images and groups of the subgroup, classes (in balanced accuracy), and a note why a figure
        is withheld. Ages and skin types are in order, others by size, unknown is last.

    Raises:
        UserError: As `gather`; no column image_id, a repeated image, or an age that is no number.
    """
    ids = frames[0]["image_id"].astype(str)
    rows = _rows(gather(frames), class_name, settings, chosen, by="all", subgroup="all")
    people = attributes(ids, metadata)
    for by in people:
        names = list(people[by].value_counts().index)
        if by in ("age", "skin type"):
            names.sort(key=[*BANDS, UNKNOWN].index if by == "age" else None)
        for name in sorted(names, key=lambda name: name == UNKNOWN):
            images = people.index[people[by] == name]
            part = gather([frame[frame["image_id"].astype(str).isin(images)] for frame in frames])
            rows += _rows(part, class_name, settings, chosen, by=str(by), subgroup=str(name))
    sizes = ["positives", "positive_lesions"]
    columns = ["by", "subgroup", "measure", *sizes, *COLUMNS, "classes", "note"]
    return pd.DataFrame(rows, columns=columns)


def display_name(by: str, subgroup: str) -> str:
    """Such as "sex: male", or "all"."""
    return subgroup if by == subgroup else f"{by}: {subgroup}"


def informed(frame: pd.DataFrame, metadata: pd.DataFrame) -> int:
    """How many of the predicted images have metadata."""
    return int(frame["image_id"].astype(str).isin(_ids(metadata)).sum())


def attributes(images: pd.Series, metadata: pd.DataFrame) -> pd.DataFrame:
    """Age, sex, site and skin type of these images, as far as the metadata have them.

    Returns:
        Indexed by image; ages in bands of ten years; "unknown" where there is no value.
    """
    rows = metadata.assign(image_id=_ids(metadata))
    rows = rows[rows["image_id"].isin(images)]
    repeated = rows["image_id"][rows["image_id"].duplicated()]
    if len(repeated):
        raise UserError(f"the metadata name image {repeated.iloc[0]} twice")
    columns = {_spelled(column): column for column in metadata}
    people = pd.DataFrame(index=pd.Index(images, name="image_id"))
    for by, names in SOURCES.items():
        column = next((columns[name] for name in names if name in columns), None)
        if column is not None:
            values = rows.set_index("image_id")[column].reindex(people.index)
            # Whole numbers beside gaps are read as floats: type 3, not type 3.0.
            texts = values.convert_dtypes().astype(object).where(values.notna(), UNKNOWN)
            texts = texts.astype(str).str.strip()
            texts = texts.where(~texts.str.lower().isin(_NO_VALUE), UNKNOWN)
            people[by] = texts
    if "age" in people:
        texts = people["age"]
        years = pd.to_numeric(texts.where(texts != UNKNOWN), errors="coerce")
        bad = texts[years.isna() & (texts != UNKNOWN)]
        if len(bad):
            image, age = bad.index[0], bad.iloc[0]
            raise UserError(f"the metadata give image {image} the age {age!r}, which is no number")
        bands = pd.cut(years, [-np.inf, *AGES, np.inf], right=False, labels=list(BANDS))
        people["age"] = bands.astype(object).fillna(UNKNOWN)
    return people


def map_columns(metadata: pd.DataFrame, columns: Mapping[str, str | None]) -> pd.DataFrame:
    """Metadata with the columns that hold age, sex, site or skin_type under names in `SOURCES`.

    Raises:
        ConfigError: There is no such column.
    """
    for attribute, column in columns.items():
        if column is not None:
            if column not in metadata:
                listed = ", ".join(map(str, metadata.columns))
                problem = f"must be a column of the metadata ({listed}), but got {column}"
                raise ConfigError(f"columns.{attribute}", problem)
            name = SOURCES[attribute.replace("_", " ")][0]
            metadata = metadata.assign(**{name: metadata[column]})
    return metadata


def unknown_columns(metadata: pd.DataFrame) -> list[str]:
    """Columns that by their names may be metadata, but are not in `SOURCES`."""
    recognised = {*(name for names in SOURCES.values() for name in names), "image_id", "image"}
    words = (str(column) for column in metadata if _spelled(column) not in recognised)
    return [word for word in words if _WORDS.search(_spelled(word).replace("image", ""))]


def _spelled(column: Hashable) -> str:
    return re.sub(r"[\s-]+", "_", str(column).strip().lower())


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
) -> list[dict[Hashable, Any]]:
    """One row for each measure of a subgroup."""
    label = predictions.classes.index(class_name)
    target, groups = predictions.target, predictions.group
    lesions = [len(np.unique(predictions.basis(f"recall/{name}"))) for name in predictions.classes]
    negatives, least = len(np.unique(groups[target != label])), settings.smallest
    enough = [number for number, size in enumerate(lesions) if size >= least]
    few = "" if label in enough else f"too few: {lesions[label]} lesions of {class_name}"
    reason = "" if negatives >= least else f"too few: {negatives} lesions of other classes"
    classes = "" if len(enough) > 1 else f"too few: fewer than two classes with {least} lesions"
    rates = functools.partial(thresholds.rates, predictions, class_name)
    of_enough = predictions.of_classes(enough)
    measures: dict[str, tuple[str, Callable[[], Statistics]]] = {
        PRIMARY: (classes, lambda: bootstrap.metric_statistics(of_enough, [PRIMARY])),
        "recall": (few, lambda: rates(None, {"sensitivity": "recall"})),
        AT_THRESHOLD: (few, lambda: rates(chosen, {"sensitivity": AT_THRESHOLD})),
        "auroc": (
            few or reason,
            lambda: bootstrap.curve_statistics(predictions, class_name, {"auroc": curves.area}),
        ),
    }
    if chosen is None:
        del measures[AT_THRESHOLD]
    figures = [pd.DataFrame()]
    for measure, (note, statistics) in measures.items():
        data = of_enough if measure == PRIMARY else predictions
        figures += [] if note else [bootstrap.estimates(data, [statistics()], settings)]
    rows = pd.concat(figures).rename({f"auroc/{class_name}": "auroc"})
    rows = rows.reindex(list(measures), columns=COLUMNS)
    rows = rows.assign(
        **names,
        interval=rows["interval"].fillna(""),
        positives=int((target == label).sum()),
        positive_lesions=lesions[label],
        images=len(target),
        groups=predictions.groups,
        seeds=len(predictions.probability),
        classes=len(enough),
        note=[note for note, _ in measures.values()],
    )
    return rows.rename_axis("measure").reset_index().to_dict("records")
