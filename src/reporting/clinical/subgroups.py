"""The same net on parts of the people: by age, sex, site of the body and skin type, where the data say so.

A group's figures come from its own images and lesions. Where it is too small for a figure it gets
none, for one from a handful of images would be read as if it were more.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from src.core.errors import UserError
from src.metrics import curves
from src.metrics import thresholds as operating
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

# What people are told apart by -> columns of metadata that say it, the first that is there
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
        "fitzpatrick",
        "fitzpatrick_skin_type",
        "fitzpatrick_scale",
        "skin_type",
        "skin_tone",
    ),
}
AT_THRESHOLD = "recall_at_threshold"
MEASURES = ("balanced_accuracy", "recall", AT_THRESHOLD, "auroc")
UNKNOWN = "unknown"
AGES = (30, 40, 50, 60, 70, 80)
BANDS = (f"<{AGES[0]}", *(f"{start}-{start + 9}" for start in AGES[:-1]), f"{AGES[-1]}+")
_NO_VALUE = ("", "nan", "none", "n/a", "na")
_FRAME = ["by", "subgroup", "measure", "positives", "positive_lesions", *COLUMNS, "classes", "note"]


def table(
    frames: Sequence[pd.DataFrame],
    metadata: pd.DataFrame,
    name: str,
    settings: AuditSettings,
    thresholds: Sequence[operating.Threshold] | None = None,
) -> pd.DataFrame:
    """Figures of every subgroup.

    Args:
        frames: Recorded predictions, one a seed.
        metadata: A column image_id and some of those in `SOURCES`; images that it lacks are
            unknown.
        name: The class that is looked for.
        settings: Intervals, and the smallest number of lesions.
        thresholds: Chosen on validation, one a net, for a recall by them; None: there is none.

    Returns:
        A row a subgroup and measure: by ("all", "age", ...), subgroup, measure
        ("balanced_accuracy", over the classes with enough lesions; "recall" of the class looked for
        by the most probable class, "recall_at_threshold" by `thresholds`; "auroc" against the
        rest), positives and positive_lesions (images and lesions of that class), then what
        `estimates` gives, classes (that balanced accuracy is over), and a note where a figure is
        withheld. Images and groups are those of the subgroup.

    Raises:
        UserError: As `gather`; no column image_id, an image twice, or an age that is no number.
    """
    known = metadata_of(frames[0]["image_id"].astype(str), metadata)
    rows = _rows("all", "all", gather(frames), name, settings, thresholds)
    for by, subgroup, images in _parts(known):
        part = [frame[frame["image_id"].astype(str).isin(images)] for frame in frames]
        rows += _rows(by, subgroup, gather(part), name, settings, thresholds)
    return pd.DataFrame(rows, columns=_FRAME)


def informed(frame: pd.DataFrame, metadata: pd.DataFrame) -> int:
    """How many of the predicted images the metadata name."""
    return int(frame["image_id"].astype(str).isin(_named(metadata)).sum())


def metadata_of(images: pd.Series, metadata: pd.DataFrame) -> pd.DataFrame:
    """What is known of these images, indexed by them: those of age, sex, site and skin type that the metadata have.

    Ages are in bands of ten years; what is not told is "unknown".
    """
    own = metadata.assign(image_id=_named(metadata))
    own = own[own["image_id"].isin(images)]
    twice = own["image_id"][own["image_id"].duplicated()]
    if len(twice):
        raise UserError(
            f"the metadata name image {twice.iloc[0]} twice; each image must stand in them once"
        )
    by_name = {str(column).lower(): column for column in metadata}
    found = pd.DataFrame(index=pd.Index(images, name="image_id"))
    for by, columns in SOURCES.items():
        column = next((by_name[each] for each in columns if each in by_name), None)
        if column is not None:
            values = own.set_index("image_id")[column].reindex(found.index)
            found[by] = _bands(values) if by == "age" else _words(values)
    return found


def _named(metadata: pd.DataFrame) -> pd.Series:
    if "image_id" not in metadata:
        raise UserError(
            f"the metadata have no column image_id, but {', '.join(map(str, metadata.columns))}"
        )
    return metadata["image_id"].astype(str)


def _rows(
    by: str,
    subgroup: str,
    given: Predictions,
    name: str,
    settings: AuditSettings,
    thresholds: Sequence[operating.Threshold] | None,
) -> list[tuple[object, ...]]:
    label = given.classes.index(name)
    own = given.target == label
    lesions = np.array(
        [_lesions(given, given.target == each) for each in range(len(given.classes))]
    )
    notes = _too_few(given, label, lesions, settings.smallest)
    wanted = {
        measure: statistics
        for measure, statistics in _statistics(
            given, label, lesions >= settings.smallest, thresholds
        ).items()
        if not notes[measure]
    }
    found = (
        estimates(given, list(wanted.values()), settings)
        if wanted
        else pd.DataFrame(columns=COLUMNS)
    )
    rows: list[tuple[object, ...]] = []
    for measure in MEASURES:
        if measure == AT_THRESHOLD and thresholds is None:
            continue
        # by position: a statistic keeps the name that it has in the whole audit
        figures = found.iloc[list(wanted).index(measure)].to_dict() if measure in wanted else {}
        values = {"estimate": np.nan, "low": np.nan, "high": np.nan, "interval": "", **figures}
        values |= {
            "images": len(given.target),
            "groups": given.groups,
            "seeds": len(given.probability),
        }
        sizes = (int(own.sum()), int(lesions[label]))
        enough = int((lesions >= settings.smallest).sum())
        rows.append(
            (
                by,
                subgroup,
                measure,
                *sizes,
                *(values[key] for key in COLUMNS),
                enough,
                notes[measure],
            )
        )
    return rows


def _statistics(
    given: Predictions,
    label: int,
    enough: np.ndarray,
    thresholds: Sequence[operating.Threshold] | None,
) -> dict[str, Statistics]:
    """All that could be asked; `enough` tells which classes have the lesions to count in balanced accuracy."""
    name = given.classes[label]
    predicted = given.probability.argmax(axis=2)
    wanted = {"auroc": curve_statistics(given, name, {"auroc": curves.area})}
    if enough.any():
        right = predicted == given.target
        wanted["balanced_accuracy"] = mean_recall(
            given, right, np.flatnonzero(enough).tolist(), "balanced_accuracy"
        )
    wanted["recall"] = _recall(given, name, predicted == label)
    if thresholds is not None:
        wanted[AT_THRESHOLD] = _recall(given, name, operating.decide(given, name, thresholds))
    return wanted


def _recall(given: Predictions, name: str, positive: np.ndarray) -> Statistics:
    rates = operating.rates(given, name, positive)
    return Statistics(
        rates.names[:1],
        rates.bases[:1],
        lambda weights: rates.measure(weights)[..., :1],
        shares=True,
    )


def _too_few(given: Predictions, label: int, lesions: np.ndarray, smallest: int) -> dict[str, str]:
    """Why a measure is withheld, or empty."""
    notes = dict.fromkeys(MEASURES, "")
    others = _lesions(given, given.target != label)
    if (lesions >= smallest).sum() < 2:
        notes["balanced_accuracy"] = f"too few: fewer than two classes with {smallest} lesions"
    if others < smallest:
        notes["auroc"] = f"too few: {others} lesions of other classes"
    if lesions[label] < smallest:
        few = f"too few: {lesions[label]} lesions of {given.classes[label]}"
        notes |= dict.fromkeys(("recall", AT_THRESHOLD, "auroc"), few)
    return notes


def _lesions(given: Predictions, images: np.ndarray) -> int:
    return len(np.unique(given.group[images]))


def _parts(known: pd.DataFrame) -> Iterator[tuple[str, str, pd.Index]]:
    """Subgroups and their images: ages and skin types in order, others the biggest first, the unknown last."""
    for by in known:
        sizes = known[by].value_counts()
        orders = {
            "age": [band for band in BANDS if band in sizes],
            "skin type": sorted(sizes.index),
        }
        order = orders.get(str(by), list(sizes.index))
        for subgroup in [
            *(each for each in order if each != UNKNOWN),
            *([UNKNOWN] if UNKNOWN in sizes else []),
        ]:
            yield str(by), str(subgroup), known.index[known[by] == subgroup]


def _bands(values: pd.Series) -> pd.Series:
    texts = _words(values)
    years = pd.to_numeric(texts.where(texts != UNKNOWN), errors="coerce")
    strange = texts[years.isna() & (texts != UNKNOWN)]
    if len(strange):
        raise UserError(
            f"the metadata give image {strange.index[0]} the age {strange.iloc[0]!r}, which is no number"
        )
    bands = pd.cut(years, [-np.inf, *AGES, np.inf], right=False, labels=list(BANDS))
    return bands.astype(object).fillna(UNKNOWN)


def _words(values: pd.Series) -> pd.Series:
    def word(value: object) -> str:
        # numbers beside gaps are read as floats: type 3, not type 3.0
        return (
            str(int(value))
            if isinstance(value, float) and value.is_integer()
            else str(value).strip()
        )

    texts = values.astype(object).where(values.notna(), UNKNOWN).map(word)
    return texts.where(~texts.str.lower().isin(_NO_VALUE), UNKNOWN)
