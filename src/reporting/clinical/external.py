"""Other data: labels mapped, overlap found, drop."""

import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import imagehash
import numpy as np
import numpy.typing as npt
import pandas as pd
import yaml
from omegaconf import DictConfig
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from src.core.cli import ROOT
from src.core.config import check, instantiate, resolve
from src.core.errors import ConfigError, UserError
from src.data import cache
from src.data.cache import Geometry
from src.data.module import DataModule
from src.data.source import Manifest, Source
from src.deployment import trained as inference
from src.deployment.trained import RecordedModel, restore
from src.metrics.bootstrap import (
    adjusted_interval,
    gather,
    interval,
    intervals,
    metric_values,
    over_seeds,
    resampled_metrics,
    streams,
)
from src.metrics.settings import AuditSettings
from src.metrics.thresholds import TargetRate, choose_each
from src.reporting.clinical.record import EvaluateSettings
from src.tracking.store import Store

HASHED_SIZE = (
    64  # px, of pictures that are compared, where the net's own are cropped, padded or smaller
)


@dataclass(frozen=True)
class SourceData:
    """A run's own images.

    Attributes:
        frame: Manifest rows with their `split` (train, val, test); empty where it is not that of
            the run's record.
        images: Whole frames squashed, uint8 (N, S, S, 3).
        same_split: Whether images, labels and split are those of the run's record.
    """

    frame: pd.DataFrame
    images: npt.NDArray[np.uint8]
    same_split: bool


def listed(evaluated: RecordedModel, root: str | None) -> tuple[Source, Manifest]:
    """The source and its list of images, metadata included.

    Args:
        evaluated: The run.
        root: Where the data lie; None: where they were.

    Raises:
        UserError: They are not here.
    """
    source: Source = instantiate(_data_config(evaluated, root).source, "data.source")
    return source, source.manifest()


def source_data(evaluated: RecordedModel, root: str | None, cache_dir: str) -> SourceData:
    """All own images, to be compared with others.

    Args:
        evaluated: The run.
        root: Where the data lie; None: where they were.
        cache_dir: Where decoded pictures are kept.

    Raises:
        UserError: They are not here.
    """
    config = _data_config(evaluated, root)
    config.image_size, config.geometry = hashed_size(config.image_size, config.geometry), "squash"
    config.cache_dir = cache_dir
    data: DataModule = instantiate(config, "data", ("root",))
    data.prepare()
    same = data.split_fingerprint == evaluated.split_fingerprint
    return SourceData(data.frame.assign(split=data.side if same else ""), data.cache.images, same)


def refuse_root(evaluated: RecordedModel, root: str | None) -> None:
    """Raise if a folder is named for data that lie in none, such as synthetic ones.

    Raises:
        ConfigError: It is named for nothing.
    """
    if root is not None and "root" not in evaluated.config.data.source:
        raise ConfigError(
            "own_root", f"the run's own data ({evaluated.data}) lie in no folder; leave it out"
        )


def hashed_size(image_size: int, geometry: str) -> int:
    """At which size pictures are compared: the net's own, decoded already, where those are whole and large enough."""
    return image_size if geometry == "squash" and image_size >= HASHED_SIZE else HASHED_SIZE


def metadata(evaluated: RecordedModel, root: str | None) -> tuple[pd.DataFrame | None, str]:
    """What is known of the images beside their labels, or None and why it is not to be had."""
    try:
        return listed(evaluated, root)[1].frame, ""
    except UserError as error:
        return (
            None,
            f"No metadata (age, sex, site): the run's own data are not here ({error}); say own_root=<folder>.",
        )


def _data_config(evaluated: RecordedModel, root: str | None) -> DictConfig:
    config: DictConfig = evaluated.config.data.copy()
    if root is not None:
        config.root = config.source.root = root
    return config


BITS = 64
MOST_BITS = 10  # that differ between the hashes of two encodings of one picture
LEAST_CORRELATION = 0.98  # of their grey pixels
SIDE = 32  # px of those
CHUNK = 1000  # hashes that are compared with all others at once
# ids that mean the same wherever they stand: images, lesions and patients of the ISIC archive
ARCHIVE = re.compile(r"((?:ISIC|HAM|BCN|MSK\d*|IP|IL)_\d+)(?:_downsampled)?")
COLUMNS = ["image_id", "why", "own_image_id", "own_split", "hash_bits", "correlation"]
REASONS = (
    "same image id",
    "same picture",
    "same lesion or patient",
    "lesion or patient of such an image",
)


def find(
    external: pd.DataFrame,
    own: pd.DataFrame,
    external_images: npt.NDArray[np.uint8],
    own_images: npt.NDArray[np.uint8],
    listed: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Images of a set that are also in another one, each once, by the first of `REASONS` that holds.

    Args:
        external: Manifest rows: image_id and group; N images.
        own: The other set's, with their `split` beside it; M images.
        external_images: uint8 (N, S, S, 3), whole frames squashed.
        own_images: uint8 (M, T, T, 3), likewise.
        listed: More of the other set's images, of which there are no pictures: image_id, group and
            split.

    Returns:
        Columns image_id, why, own_image_id, own_split, hash_bits (of 64 that differ) and
        correlation, the last two missing unless the picture gave it away. Sorted by image id.
    """
    known = own if listed is None else pd.concat([listed, own], ignore_index=True)
    table = _together(
        _shared(external, known, "image_id", REASONS[0]),
        _same_pictures(external, own, external_images, own_images) if len(own) else own.iloc[:0],
        _shared(external, known, "group", REASONS[2]),
    )
    table = _together(table, _beside(external, table))
    return table.sort_values("image_id", ignore_index=True)


def _together(*found: pd.DataFrame) -> pd.DataFrame:
    """Each image once, by the first table that has it."""
    some = [each for each in found if len(each)] or [pd.DataFrame(columns=COLUMNS)]
    return pd.concat(some, ignore_index=True).drop_duplicates("image_id")[COLUMNS]


def _beside(external: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """All images of the external groups that an image that was found is of."""
    groups = external[["image_id", "group"]]
    met = found.merge(groups, on="image_id").drop_duplicates("group")[
        ["group", "own_image_id", "own_split"]
    ]
    return groups.merge(met, on="group").assign(
        why=REASONS[3], hash_bits=np.nan, correlation=np.nan
    )


def _shared(external: pd.DataFrame, own: pd.DataFrame, column: str, why: str) -> pd.DataFrame:
    """Rows whose id of the archive stands in both sets."""
    ours = pd.DataFrame(
        {
            "key": own[column].map(_archive_id),
            "own_image_id": own["image_id"],
            "own_split": own["split"],
        }
    )
    theirs = pd.DataFrame(
        {"image_id": external["image_id"], "key": external[column].map(_archive_id)}
    )
    both = theirs.dropna().merge(ours.dropna(subset="key").drop_duplicates("key"), on="key")
    return both.drop(columns="key").assign(why=why, hash_bits=np.nan, correlation=np.nan)


def _archive_id(name: object) -> str | None:
    match = ARCHIVE.fullmatch(str(name))
    return match[1] if match else None


def _same_pictures(
    external: pd.DataFrame,
    own: pd.DataFrame,
    external_images: npt.NDArray[np.uint8],
    own_images: npt.NDArray[np.uint8],
) -> pd.DataFrame:
    theirs, ours = _hashes(external_images, "external images"), _hashes(own_images, "own images")
    rows = []
    for row, candidates, bits in _close(theirs, ours):
        correlation = _grey(own_images[candidates]) @ _grey(external_images[row : row + 1])[0]
        best = int(correlation.argmax())
        if correlation[best] >= LEAST_CORRELATION:
            place = candidates[best]
            rows.append((row, place, int(bits[best]), float(correlation[best])))
    table = pd.DataFrame(rows, columns=["row", "place", "hash_bits", "correlation"])
    return pd.DataFrame(
        {
            "image_id": external["image_id"].to_numpy()[table["row"].to_numpy(dtype=int)],
            "why": REASONS[1],
            "own_image_id": own["image_id"].to_numpy()[table["place"].to_numpy(dtype=int)],
            "own_split": own["split"].to_numpy()[table["place"].to_numpy(dtype=int)],
            "hash_bits": table["hash_bits"],
            "correlation": table["correlation"],
        }
    )


def _hashes(images: npt.NDArray[np.uint8], what: str) -> npt.NDArray[np.float32]:
    """PHash of each image as signs, float32 (N, 64): the product of two counts the bits that differ."""
    bar = tqdm(
        images, desc=f"hashing {what}", unit="image", file=sys.stderr, disable=None, leave=False
    )
    found = np.array(
        [imagehash.phash(Image.fromarray(image)).hash.ravel() for image in bar], dtype=bool
    )
    return 2 * found.reshape(-1, BITS).astype(np.float32) - 1


def _close(
    theirs: npt.NDArray[np.float32], ours: npt.NDArray[np.float32]
) -> Iterator[tuple[int, npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    """Each row with a close hash: its number, the rows of `ours` that are close, and the bits that differ."""
    for start in range(0, len(theirs), CHUNK):
        differ = (BITS - theirs[start : start + CHUNK] @ ours.T) / 2
        for offset in np.flatnonzero((differ <= MOST_BITS).any(axis=1)):
            places = np.flatnonzero(differ[offset] <= MOST_BITS)
            yield start + int(offset), places, differ[offset, places]


def _grey(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Grey pixels without mean and of length 1, float32 (N, SIDE^2): products are correlations."""
    size = (SIDE, SIDE)
    small = [
        Image.fromarray(each).convert("L").resize(size, Image.Resampling.BILINEAR)
        for each in images
    ]
    pixels = np.stack([np.asarray(each, dtype=np.float32).ravel() for each in small])
    pixels -= pixels.mean(axis=1, keepdims=True)
    return pixels / np.maximum(np.linalg.norm(pixels, axis=1, keepdims=True), 1e-6)


REST = "rest"  # in a mapping: none of the classes that the mapping's other lines name
AUTO = "auto"
Unknown = Literal["refuse", "list"]


@dataclass(frozen=True)
class Labels:
    """What each class of a data set is to a net.

    Attributes:
        name: Of the file in conf/labels, its path, or "identity".
        to: Class of the data set -> class of the net, or `REST`. Those that are missing are
            unknown.
        classes: Between which the evaluation decides, in label order: the net's, or `REST` and the
            classes that the mapping asks for, where it has a `REST`.
    """

    name: str
    to: Mapping[str, str]
    classes: tuple[str, ...]

    def named(self, labels: pd.Series) -> pd.Series:
        """Labels in the evaluation's words; missing where the class is unknown."""
        return labels.map(dict(self.to))

    def told(self, predictions: pd.DataFrame) -> pd.DataFrame:
        """Predictions of the net over its own classes, as predictions over `classes`.

        Args:
            predictions: With `label` (of the net's classes, or already of `classes`) and p/<class>
                columns. The rest's probability is the sum over the classes that are not asked for.
        """
        if REST not in self.classes:
            return predictions
        others = predictions.drop(
            columns=[f"p/{name}" for name in self.classes if f"p/{name}" in predictions]
        )
        others = others[[column for column in others if str(column).startswith("p/")]]
        found = predictions.drop(columns=others.columns)
        found["label"] = found["label"].where(found["label"].isin(self.classes), REST)
        found.insert(list(found).index("label") + 1, f"p/{REST}", others.sum(axis=1))
        return found


def choose(
    wanted: str, given: Sequence[str], own: Sequence[str], folder: Path, unknown: Unknown = "refuse"
) -> Labels:
    """The mapping from the classes of a data set to those of a net.

    Args:
        wanted: Name of a file in `folder`, a path that ends in .yaml, or "auto": by name where the
            net has all of the classes, else the one file that knows all of them and speaks of the
            net's.
        given: Classes of the data set.
        own: Classes of the net.
        folder: Of the mappings.
        unknown: "list": "auto" goes by name also where the net has only some of the classes.

    Raises:
        ConfigError: No such mapping, or none or several that fit.
    """
    if wanted != AUTO:
        return _of(wanted, _read(wanted, folder), own)
    if set(given) <= set(own):
        return Labels("identity", {name: name for name in given}, tuple(own))
    known = {path.stem: _read(path.stem, folder) for path in sorted(folder.glob("*.yaml"))}
    able = [
        name
        for name, to in known.items()
        if set(given) <= set(to) and set(to.values()) <= {*own, REST}
    ]
    exact = [name for name in able if set(given) == set(known[name])] or able
    if len(exact) == 1:
        return _of(exact[0], known[exact[0]], own)
    if not exact and unknown == "list" and set(given) & set(own):
        return Labels("identity", {name: name for name in given if name in own}, tuple(own))
    told = f"the data have {', '.join(given)}, the net {', '.join(own)}"
    if exact:
        raise ConfigError("labels", f"{' and '.join(exact)} both fit; name one ({told})")
    strange = ", ".join(name for name in given if name not in own)
    raise ConfigError(
        "labels",
        f"no mapping for {strange}: {told}; write one as conf/labels/<name>.yaml and name it, or leave those images "
        "out with unknown=list",
    )


def refuse_unknown(labels: Labels, names: pd.Series) -> None:
    """Raise if images have a class that the mapping does not know.

    Args:
        labels: The mapping.
        names: Class of each image in the data set's words.

    Raises:
        ConfigError: The message lists the classes with their numbers of images.
    """
    counts = names[~names.isin(list(labels.to))].value_counts()
    if len(counts):
        listed = ", ".join(f"{name} ({number:,} images)" for name, number in counts.items())
        raise ConfigError(
            "labels",
            f"{labels.name} does not know {listed}; add to the mapping, or leave them out with unknown=list",
        )


def _of(name: str, to: dict[str, str], own: Sequence[str]) -> Labels:
    strange = sorted(set(to.values()) - {*own, REST})
    if strange:
        raise ConfigError(
            "labels",
            f"{name} speaks of {', '.join(strange)}, which the net does not have; it has {', '.join(own)}",
        )
    if REST not in to.values():
        return Labels(name, to, tuple(own))
    asked = tuple(each for each in own if each in to.values())
    if not asked or REST in own:
        raise ConfigError(
            "labels",
            f"{name} must name a class of the net beside {REST}, and the net have no {REST}",
        )
    return Labels(name, to, (REST, *asked))


def _read(name: str, folder: Path) -> dict[str, str]:
    path = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        known = ", ".join([AUTO, *sorted(each.stem for each in folder.glob("*.yaml"))])
        raise ConfigError(
            "labels", f"{name}: no such mapping; there are {known}, or name a .yaml file"
        ) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            "labels", f"{path} cannot be read: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(content, dict) or not content:
        raise ConfigError(
            "labels", f"{path} must have lines like `ak: akiec`: the data's class and the net's"
        )
    strange = [each for each in (*content, *content.values()) if not _is_name(each)]
    if strange:
        listed = ", ".join(dict.fromkeys(map(repr, strange)))
        raise ConfigError(
            "labels",
            f"{path} has {listed} where a class is named; put names like yes and no in quotes",
        )
    return {str(given): str(own) for given, own in content.items()}


def _is_name(value: object) -> bool:
    """Text or a number; to YAML a bare yes or no is neither."""
    return isinstance(value, str | int | float) and not isinstance(value, bool)


OTHER_CLASSES = "not it"  # every class but the one that is looked for
SHIFT_COLUMNS = [
    "metric",
    "own",
    "own_low",
    "own_high",
    "external",
    "external_low",
    "external_high",
]
DIFFERENCE = [
    "difference",
    "low",
    "high",
    "own_images",
    "own_groups",
    "external_images",
    "external_groups",
]


@dataclass(frozen=True)
class SourceResult:
    """Some metrics on one of the two sets; S nets, B bootstrap samples, M metrics.

    Attributes:
        values: Of each net, float (S, M).
        samples: Of each net on each bootstrap sample, float (B, S, M).
        bases: Groups of the images that each metric rests on.
    """

    values: np.ndarray
    samples: np.ndarray
    bases: list[np.ndarray]


def compared(
    own: Sequence[pd.DataFrame],
    external: Sequence[pd.DataFrame],
    val: Sequence[pd.DataFrame],
    positive: str | None,
    settings: AuditSettings,
) -> pd.DataFrame:
    """Own test beside external data.

    Own images of classes that the external data do not have are left out, so that the means are
    over the same classes.

    Args:
        own: Predictions of the run's own test split, a frame a net; see
            `src.metrics.bootstrap.gather`.
        external: Of the external data, by the same nets in the same order, over the same classes.
        val: Of the run's own validation split, on which the threshold is chosen; none, and there is
            none.
        positive: The class that is looked for, if there is one.
        settings: Sensitivity that the threshold is chosen for, samples, seed and level.

    Returns:
        A row a metric: metric, own with its interval, external with its interval, difference
        (external - own; below 0 it got worse) with its interval, images and groups that either
        rests on.
    """
    shared = sorted(set(own[0]["label"]) & set(external[0]["label"]))
    mine, theirs = (
        [frame[frame["label"].isin(shared)] for frame in side] for side in (own, external)
    )
    metrics = ["balanced_accuracy", "accuracy", *(f"recall/{name}" for name in shared)]
    streams_of = {"own": streams(settings.seed, 4), "external": streams(settings.seed + 1, 4)}
    names = list(metrics)
    sides = {"own": [_side(mine, metrics, settings, streams_of["own"][0])]}
    sides["external"] = [_side(theirs, metrics, settings, streams_of["external"][0])]
    if positive is not None and positive in shared and len(shared) > 1:
        names.append(f"auroc/{positive}")
        for key, frames in (("own", mine), ("external", theirs)):
            sides[key].append(
                _side(_one_against_rest(frames, positive), ["auroc"], settings, streams_of[key][1])
            )
        thresholds = (
            [each.value for each in choose_each(gather(val), positive, _wish(settings))]
            if len(val)
            else []
        )
        if thresholds and not np.isnan(thresholds).any():
            names += [f"chosen/sensitivity/{positive}", f"chosen/specificity/{positive}"]
            hard = [f"recall/{positive}", f"recall/{OTHER_CLASSES}"]
            for key, frames in (("own", mine), ("external", theirs)):
                decided = _decided(frames, positive, thresholds)
                sides[key].append(_side(decided, hard, settings, streams_of[key][2]))
    return _rows(names, _joined(sides["own"]), _joined(sides["external"]), settings)


def apart(
    first: tuple[float, float, float], second: tuple[float, float, float]
) -> tuple[float, float]:
    """Interval of first - second, two independent shares, from the interval of each.

    Source: Newcombe, Interval estimation for the difference between independent proportions,
        Statistics in Medicine 17,
    1998, method 10, there with Wilson's intervals.

    Args:
        first: The share, low and high, in [0, 1].
        second: Likewise.

    Returns:
        Low and high, in [-1, 1].
    """
    (one, one_low, one_high), (two, two_low, two_high) = first, second
    low = one - two - math.hypot(one - one_low, two_high - two)
    return low, one - two + math.hypot(one_high - one, two - two_low)


def by_original_label(external: Sequence[pd.DataFrame], settings: AuditSettings) -> pd.DataFrame:
    """Recall of each class of the data set itself, such as AK and SCC apart.

    Args:
        external: Predictions, a frame a net, with a column `original_label`.
        settings: Samples, seed and level.

    Returns:
        A row a class of the data set: original_label, counts_as, images, groups, recall, low, high.
    """
    rows = []
    for name in sorted(external[0]["original_label"].unique()):
        frames = [frame[frame["original_label"] == name] for frame in external]
        counts_as = frames[0]["label"].iloc[0]
        found = intervals(
            frames, [f"recall/{counts_as}"], settings.samples, settings.seed, settings.level
        ).iloc[0]
        recall, low, high = (float(found[key]) for key in ("estimate", "low", "high"))
        images, groups = int(found["images"]), int(found["groups"])
        low, high, _ = adjusted_interval(
            low, high, recall, frames[0]["group"].to_numpy(), settings.level, share=True
        )
        rows.append((name, counts_as, images, groups, recall, low, high))
    return pd.DataFrame(
        rows, columns=["original_label", "counts_as", "images", "groups", "recall", "low", "high"]
    )


def _wish(settings: AuditSettings) -> TargetRate:
    return TargetRate("sensitivity", settings.sensitivity)


def _side(
    frames: Sequence[pd.DataFrame],
    metrics: list[str],
    settings: AuditSettings,
    rng: np.random.Generator,
) -> SourceResult:
    given = gather(frames)
    samples = resampled_metrics(given, metrics, settings.samples, rng)
    return SourceResult(
        metric_values(given, metrics), samples, [given.basis(name) for name in metrics]
    )


def _joined(parts: Sequence[SourceResult]) -> SourceResult:
    bases = [basis for part in parts for basis in part.bases]
    return SourceResult(
        np.concatenate([part.values for part in parts], axis=1),
        np.concatenate([part.samples for part in parts], axis=2),
        bases,
    )


def _one_against_rest(frames: Sequence[pd.DataFrame], positive: str) -> list[pd.DataFrame]:
    """The same predictions between two classes: the rest, and the one that is looked for."""
    return [_two_classes(frame, positive, frame[f"p/{positive}"]) for frame in frames]


def _decided(
    frames: Sequence[pd.DataFrame], positive: str, thresholds: Sequence[float]
) -> list[pd.DataFrame]:
    """Decisions by each net's threshold, as predictions that are sure of themselves."""
    # in single precision, as the thresholds were chosen
    return [
        _two_classes(
            frame, positive, (frame[f"p/{positive}"].astype(np.float32) >= threshold).astype(float)
        )
        for frame, threshold in zip(frames, thresholds, strict=True)
    ]


def _two_classes(frame: pd.DataFrame, positive: str, probability: pd.Series) -> pd.DataFrame:
    label = frame["label"].where(frame["label"] == positive, OTHER_CLASSES)
    columns = {f"p/{OTHER_CLASSES}": 1 - probability, f"p/{positive}": probability}
    return frame[["image_id", "group"]].assign(label=label, **columns)


def _rows(
    names: Sequence[str], own: SourceResult, external: SourceResult, settings: AuditSettings
) -> pd.DataFrame:
    difference = external.samples - own.samples
    [seed_rng] = streams(settings.seed + 2, 1)
    # one draw of seeds for all three: a drawn net counts on both sides
    together = over_seeds(
        np.concatenate([own.samples, external.samples, difference], axis=2), seed_rng
    )
    of_own, of_external, of_both = np.split(together, 3, axis=1)
    rows = []
    for at, name in enumerate(names):
        bases = own.bases[at], external.bases[at]
        points = own.values[:, at].mean(), external.values[:, at].mean()
        is_share = name.startswith(("accuracy", "recall/", "chosen/"))
        (*ours, of_ours), (*theirs, of_theirs) = (
            interval(values[:, at], point, basis, settings.level, is_share)[1:4]
            for values, point, basis in zip((of_own, of_external), points, bases, strict=True)
        )
        gap = points[1] - points[0]
        fewest = min(bases, key=lambda basis: len(np.unique(basis)))
        low, high, kind = interval(of_both[:, at], gap, fewest, settings.level, share=False)[1:4]
        both = low, high
        if is_share and ("exact" in (of_ours, of_theirs) or not kind):
            both = apart((points[1], *theirs), (points[0], *ours))
        elif not (of_ours and of_theirs):
            both = np.nan, np.nan
        sizes = [size for basis in bases for size in (len(basis), len(np.unique(basis)))]
        rows.append((name, points[0], *ours, points[1], *theirs, gap, *both, *sizes))
    return pd.DataFrame(rows, columns=[*SHIFT_COLUMNS, *DIFFERENCE])


MOST = 2000  # files that are looked into
MOST_DRAWN = 50  # pictures that are made to know their size, where a source has no file an image
BLACK = 40  # mean brightness of a corner, of 255, that counts as black
SAME_SHAPE = 0.02  # relative difference of width to height that does not matter


@dataclass(frozen=True)
class ImageSizes:
    """Sizes of pictures.

    Attributes:
        table: A row a size, the most frequent first: width, height, images.
        looked_at: Pictures that were looked at, evenly over the set.
        images: Of the set.
    """

    table: pd.DataFrame
    looked_at: int
    images: int

    @property
    def shape(self) -> float:
        """Median of width / height."""
        return float(
            np.median(np.repeat(self.table["width"] / self.table["height"], self.table["images"]))
        )

    @property
    def shortest(self) -> int:
        """The shortest side of any, px."""
        return int(self.table[["width", "height"]].to_numpy().min())

    @property
    def text(self) -> str:
        """In words, such as "84x84 px (all of 12,381)"."""
        first = self.table.iloc[0]
        of = "all" if self.looked_at == self.images else f"{self.looked_at:,} looked at"
        if len(self.table) == 1:
            return f"{first['width']}x{first['height']} px ({of} of {self.images:,})"
        smallest, largest = (
            self.table.loc[(self.table["width"] * self.table["height"]).agg(pick)]
            for pick in ("idxmin", "idxmax")
        )
        share = first["images"] / self.looked_at
        return (
            f"{smallest['width']}x{smallest['height']} to {largest['width']}x{largest['height']} px, most often "
            f"{first['width']}x{first['height']} ({share:.0%}; {of} of {self.images:,}), width/height {self.shape:.2f} "
            "in the middle"
        )


def sizes(source: Source, manifest: Manifest) -> ImageSizes | None:
    """Sizes of a set's pictures as they are stored; None where none can be read.

    Args:
        source: Makes the pictures, where they are no files.
        manifest: Of the set.
    """
    paths = manifest.frame["path"]
    files = bool(len(paths)) and paths.nunique() == len(paths)
    rows = np.unique(np.linspace(0, len(paths) - 1, MOST if files else MOST_DRAWN).astype(int))
    found = [size for row in rows if (size := _size(source, manifest, int(row), files)) is not None]
    if not found:
        return None
    table = (
        pd.DataFrame(found, columns=["width", "height"])
        .value_counts()
        .rename("images")
        .reset_index()
    )
    return ImageSizes(table, len(found), len(paths))


def dark_corners(images: npt.NDArray[np.uint8]) -> float:
    """Share of images that are black in all four corners, in [0, 1].

    Args:
        images: Whole frames, uint8 (N, S, S, 3); N over 0.
    """
    side = max(1, images.shape[1] // 8)
    ends = (slice(None, side), slice(-side, None))
    brightness = [
        images[:, rows, columns].mean(axis=(1, 2, 3)) for rows in ends for columns in ends
    ]
    return float((np.max(brightness, axis=0) < BLACK).mean())


def _size(source: Source, manifest: Manifest, row: int, is_file: bool) -> tuple[int, int] | None:
    """Width and height; of a file from its header. What cannot be read is told by the cache."""
    try:
        if not is_file:
            return source.picture(manifest, row).size
        with Image.open(str(manifest.frame.at[row, "path"])) as image:
            return image.size
    except (OSError, UnidentifiedImageError):
        return None


def told(
    own: ImageSizes | None, external: ImageSizes | None, image_size: int, trained: str, now: str
) -> list[str]:
    """What the net was trained on, what it is shown here, and what that does to the pictures.

    Args:
        own: Sizes of the training data's pictures, if they are known.
        external: Of the external ones.
        image_size: Side of the net's input, px.
        trained: The geometry of training: squash, center_crop or pad.
        now: The geometry here.
    """
    own_text = own.text if own else "of sizes that are not known here"
    lines = [
        f"Trained at {image_size} px, geometry {trained}, on pictures {own_text}.",
        f"Shown here at {image_size} px, geometry {now}, pictures {external.text if external else 'of unknown sizes'}.",
    ]
    if now != trained:
        lines.append(f"The geometry differs from the training's ({now} here, {trained} there).")
    if own and external and abs(own.shape / external.shape - 1) > SAME_SHAPE:
        squashed = (
            " (or they were squashed before, which the files do not tell)"
            if external.shape == 1
            else ""
        )
        lines.append(
            f"The shapes differ: width/height {own.shape:.2f} in training, {external.shape:.2f} here{squashed}; "
            "a squashed lesion has another outline."
        )
    if external and external.shortest < image_size:
        lines.append(
            f"Pictures smaller than {image_size} px are enlarged, to a sharpness the net has not seen."
        )
    return lines


EXAMPLES = 8  # images a class and set that are shown
MAPPINGS = ROOT / "conf" / "labels"


@dataclass(frozen=True)
class ExternalData:
    """External data, ready for the nets.

    Attributes:
        data: As configured; its size is the net's.
        manifest: All of its images.
        cache: Those that can be read.
        rows: Those that are asked for, row numbers in the cache.
        labels: Their classes in the nets' words.
    """

    data: DataModule
    manifest: Manifest
    cache: cache.ImageCache
    rows: npt.NDArray[np.int64]
    labels: Labels

    @property
    def frame(self) -> pd.DataFrame:
        """Of `rows`: image_id, group, `label` (missing where unknown), `original_label`, and all metadata."""
        frame = self.cache.frame.iloc[self.rows]
        names = frame["label"].map(dict(enumerate(self.manifest.classes)))
        return frame.assign(
            label=self.labels.named(names), original_label=frame.get("original_label", names)
        )


def open_data(
    config: DictConfig, evaluated: RecordedModel, classes: Sequence[str], settings: EvaluateSettings
) -> ExternalData:
    """Read, decode and map the data that a config names.

    Args:
        config: The `data` part of a composed `conf/command/evaluate.yaml`.
        evaluated: The run; its size, and its geometry where none is named, are taken.
        classes: Of the run.
        settings: Which part, and which mapping.

    Raises:
        UserError: The data, or the mapping, are not as they should be.
    """
    config = _filled(config, evaluated)
    data: DataModule = instantiate(config, "data", ("root",))
    manifest = data.source.manifest()
    chosen = choose(settings.mapping, manifest.classes, classes, MAPPINGS, settings.unknown)
    if settings.unknown == "refuse":
        refuse_unknown(chosen, manifest.frame["label"].map(dict(enumerate(manifest.classes))))
    pixels = _load(data, manifest, data.image_size, data.geometry)
    rows = np.arange(len(pixels.frame))
    if settings.part != "all":
        try:
            rows = data.prepare().rows(settings.part)
        except ConfigError as error:
            raise (error if error.key.startswith("data.") else error.under("data")) from error
        if not len(rows):
            raise ConfigError(
                "part",
                f"{data.name} has no image in {settings.part} by data.split={data.split_mode}",
            )
    return ExternalData(data, manifest, pixels, rows, chosen)


def find_source_data(
    external: ExternalData, evaluated: RecordedModel, settings: EvaluateSettings
) -> tuple[SourceData | None, list[str]]:
    """The run's own images, or None; and what is amiss with them.

    Raises:
        UserError: They are not here, or are not those, and overlapping images shall be left out.
    """
    try:
        mine = source_data(evaluated, settings.own_root, str(external.data.cache_dir))
    except UserError as error:
        if settings.overlap == "keep":
            return None, [f"Overlap with the training images: not checked ({error})."]
        raise UserError(
            f"overlap=exclude: needs the run's own data ({error}); say own_root=<folder>, or overlap=keep"
        ) from error
    if mine.same_split:
        return mine, []
    if settings.overlap == "exclude":
        given = settings.own_root or evaluated.config.data.get("root") or evaluated.data
        raise UserError(
            f"own_root={given}: is not what the run was trained on; give the right one, or overlap=keep"
        )
    return mine, [
        "Overlap with the training images: the own data here are not what the run was trained on."
    ]


def whole_frames(external: ExternalData) -> npt.NDArray[np.uint8]:
    """The images of `rows`, whole frames squashed to the size at which own images are compared."""
    data = external.data
    size = hashed_size(data.image_size, data.geometry)
    if (size, "squash") == (data.image_size, data.geometry):
        return external.cache.images[external.rows]
    return _load(data, external.manifest, size, "squash").images[external.rows]


def met_before(
    external: ExternalData,
    frames: npt.NDArray[np.uint8],
    mine: SourceData | None,
    recorded: Mapping[str, Sequence[pd.DataFrame]],
) -> pd.DataFrame:
    """The external images that the run has had, as `overlap.find` gives them.

    Args:
        external: The data.
        frames: From `whole_frames`.
        mine: The run's own, where they are here.
        recorded: By split what the nets predicted of it: those images they have had, whatever is
            here.
    """
    listed = [
        nets[0][["image_id", "group"]].assign(split=split)
        for split, nets in recorded.items()
        if nets
    ]
    known = pd.concat(listed, ignore_index=True)
    own_frame, own_images = (
        (mine.frame, mine.images) if mine is not None else (known.iloc[:0], frames[:0])
    )
    return find(external.cache.frame.iloc[external.rows], own_frame, frames, own_images, known)


def overlap_told(
    found: pd.DataFrame, images: int, mine: SourceData | None, settings: EvaluateSettings
) -> tuple[str, list[str]]:
    """How many external images the run has had, and what of it speaks against the figures.

    Args:
        found: From `met_before`.
        images: That were looked at.
        mine: The run's own; without all of them it is not known of which split the others were.
        settings: Whether they are left out.
    """
    if found.empty:
        how = (
            "by id, by picture (hash) and by lesion"
            if mine is not None
            else "by id and lesion of its val and test"
        )
        return f"Overlap with the run's own images: none of {images:,}, {how}.", []
    reasons = ", ".join(f"{number:,} {why}" for why, number in found["why"].value_counts().items())
    sides = ""
    if mine is not None and mine.same_split:
        sides = "; " + ", ".join(
            f"{number:,} of {side}" for side, number in found["own_split"].value_counts().items()
        )
    told = f"Overlap with the run's own images: {len(found):,} of {images:,} ({reasons}{sides})"
    if settings.overlap == "exclude":
        return f"{told}, left out.", []
    apart = "The intervals of the differences take the own and these images for independent, which they are not."
    kept = f"{len(found):,} of these {images:,} images the run has had, and they were KEPT: the figures are too good."
    return f"{told}, kept. {apart}", [kept]


def without(external: ExternalData, found: pd.DataFrame) -> ExternalData:
    """The same data without the images that were found.

    Raises:
        UserError: None is left.
    """
    ids = external.cache.frame["image_id"].to_numpy()[external.rows]
    rows = external.rows[~np.isin(ids, found["image_id"].to_numpy(dtype=str))]
    if not len(rows):
        raise UserError(
            f"data={external.data.name}: the run has had all of these images; leave data= out to see its own splits, "
            "or say overlap=keep"
        )
    return ExternalData(external.data, external.manifest, external.cache, rows, external.labels)


def predictions(
    external: ExternalData, evaluated: RecordedModel, classes: Sequence[str], store: Store
) -> list[pd.DataFrame]:
    """What each net says of the images whose class is known.

    Returns:
        A frame a net: image_id, group, label (in the nets' words), original_label, p/<class> in
        label order.
    """
    frame = external.frame
    known = frame["label"].notna().to_numpy()
    frame, rows = frame[known], external.rows[known]
    if not len(rows):
        raise UserError(
            f"data={external.data.name}: no image is left whose class the mapping knows"
        )
    found = []
    for number, net in enumerate(evaluated.nets, 1):
        classifier = restore(
            inference.build_classifier(evaluated.config, classes), store, net.run_id
        )
        title = f"{external.data.name}, net {number} of {len(evaluated.nets)}"
        probability = inference.predict(
            classifier, external.cache.images, rows, external.data.batch_size, title
        )
        table = frame[["image_id", "group", "label", "original_label"]].reset_index(drop=True)
        for label, name in enumerate(classes):
            table[f"p/{name}"] = probability[:, label]
        found.append(external.labels.told(table))
    return found


def examples(
    external: ExternalData, frames: npt.NDArray[np.uint8], mine: SourceData, classes: Sequence[str]
) -> dict[str, tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]]:
    """Some own and some external images of each class of the evaluation, evenly over each set.

    Args:
        external: The data.
        frames: From `whole_frames`.
        mine: The run's own.
        classes: Of the run.
    """
    asked = external.labels.classes
    ours = mine.frame["label"].map(dict(enumerate(classes)))
    ours = ours.where(ours.isin(asked), REST)
    theirs = external.frame["label"]
    return {
        name: (mine.images[_evenly(ours == name)], frames[_evenly(theirs == name)])
        for name in asked
    }


def _evenly(chosen: pd.Series) -> npt.NDArray[np.int64]:
    rows = np.flatnonzero(chosen)
    return (
        rows[np.unique(np.linspace(0, len(rows) - 1, EXAMPLES).astype(int))] if len(rows) else rows
    )


def images_told(
    external: ExternalData,
    evaluated: RecordedModel,
    settings: EvaluateSettings,
    frames: npt.NDArray[np.uint8],
    mine: SourceData | None,
) -> list[str]:
    """What the pictures are, beside those of the training.

    Args:
        external: The data.
        evaluated: The run.
        settings: Where its own data are.
        frames: From `whole_frames`.
        mine: The run's own, where they are here.
    """
    own_sizes = None if mine is None else sizes(*listed(evaluated, settings.own_root))
    theirs = sizes(external.data.source, external.manifest)
    trained = str(evaluated.config.data.geometry)
    lines = told(own_sizes, theirs, external.data.image_size, trained, external.data.geometry)
    share = dark_corners(frames)
    trained_with = f", {dark_corners(mine.images):.0%} in training" if mine is not None else ""
    return [
        *lines,
        f"Black in all four corners, as round dermatoscopes leave it: {share:.0%} here{trained_with}.",
    ]


def _filled(config: DictConfig, evaluated: RecordedModel) -> DictConfig:
    """The config with the run's image size and, where none is named, its geometry."""
    config, size = config.copy(), evaluated.config.data.image_size
    if config.image_size not in (None, size):
        raise ConfigError(
            "data.image_size",
            f"must be the run's, {size}, but got {config.image_size}; leave it out",
        )
    config.image_size = size
    config.geometry = config.geometry or evaluated.config.data.geometry
    check(resolve(config), "data")
    return config


def _load(data: DataModule, manifest: Manifest, size: int, geometry: Geometry) -> cache.ImageCache:
    return cache.load(
        data.source, manifest, size, geometry, Path(data.cache_dir), data.on_unreadable
    )
