"""Other data for a trained run: labels mapped, overlap with its own images, loss of quality."""

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

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
from src.data.cache import Geometry, ImageCache
from src.data.source import Manifest, Source
from src.deployment import trained
from src.deployment.trained import RecordedModel
from src.metrics import curves, thresholds
from src.metrics.bootstrap import (
    Predictions,
    Statistics,
    curve_statistics,
    estimates,
    evaluate,
    gather,
    interval,
    metric_statistics,
    over_seeds,
    resample,
    streams,
)
from src.metrics.registry import PRIMARY
from src.metrics.settings import AuditSettings
from src.metrics.thresholds import TargetRate, Threshold
from src.reporting.clinical.results import EvaluateSettings, Images
from src.reporting.clinical.subgroups import recall
from src.tracking.store import Store

if TYPE_CHECKING:
    from src.data.module import DataModule

REST = "rest"  # in a mapping: none of the classes that its other lines name
AUTO = "auto"
MAPPINGS = ROOT / "conf" / "labels"
EXAMPLES = 8  # images of each class and set that are shown

# ---- labels


@dataclass(frozen=True)
class Labels:
    """What each class of a data set means to a net.

    Attributes:
        name: Of the file in conf/labels, its path, or "identity".
        to: Class of the data set -> class of the net, or `REST`. Missing ones are unknown.
        classes: The evaluation's classes in label order: the net's, or `REST` and the classes that
            the mapping names, if it has a `REST`.
    """

    name: str
    to: Mapping[str, str]
    classes: tuple[str, ...]

    def merged(self, predictions: pd.DataFrame) -> pd.DataFrame:
        """Predictions over the net's classes, as predictions over `classes`.

        The probability of the rest is the sum over the classes that are not in question.
        """
        if REST not in self.classes:
            return predictions
        columns = [str(column) for column in predictions if str(column).startswith("p/")]
        others = [name for name in columns if name.removeprefix("p/") not in self.classes]
        merged = predictions.drop(columns=others)
        merged["label"] = merged["label"].where(merged["label"].isin(self.classes), REST)
        place = list(merged).index("label") + 1
        merged.insert(place, f"p/{REST}", predictions[others].sum(axis=1))
        return merged


def choose_labels(
    name: str,
    data_classes: Sequence[str],
    net_classes: Sequence[str],
    folder: Path = MAPPINGS,
    unknown: Literal["refuse", "list"] = "refuse",
) -> Labels:
    """The mapping from the classes of a data set to those of a net.

    Args:
        name: Name of a file in `folder`, a path that ends in .yaml, or "auto": by name if the net
            has all of the classes, else the one file that maps all of them to the net's.
        data_classes: Of the data set.
        net_classes: Of the net.
        folder: Of the mappings.
        unknown: "list": "auto" goes by name also if the net has only some of the classes.

    Raises:
        ConfigError: No such mapping, or none or several that fit.
    """
    if name != AUTO:
        return _labels(name, _read_mapping(name, folder), net_classes)
    if set(data_classes) <= set(net_classes):
        return Labels("identity", {each: each for each in data_classes}, tuple(net_classes))
    mappings = {path.stem: _read_mapping(path.stem, folder) for path in folder.glob("*.yaml")}
    fitting = sorted(
        name
        for name, to in mappings.items()
        if set(data_classes) <= set(to) and set(to.values()) <= {*net_classes, REST}
    )
    exact = [name for name in fitting if set(data_classes) == set(mappings[name])] or fitting
    if len(exact) == 1:
        return _labels(exact[0], mappings[exact[0]], net_classes)
    shared = {name: name for name in data_classes if name in net_classes}
    if not exact and unknown == "list" and shared:
        return Labels("identity", shared, tuple(net_classes))
    classes = f"the data have {', '.join(data_classes)}, the net {', '.join(net_classes)}"
    if exact:
        raise ConfigError("labels", f"{' and '.join(exact)} both fit; name one ({classes})")
    strange = ", ".join(name for name in data_classes if name not in net_classes)
    raise ConfigError(
        "labels",
        f"no mapping for {strange}: {classes}; write one as conf/labels/<name>.yaml and name it, "
        "or leave those images out with unknown=list",
    )


def refuse_unknown(labels: Labels, names: pd.Series) -> None:
    """Raise if images have a class that the mapping does not contain.

    Args:
        labels: The mapping.
        names: Class of each image in the data set.

    Raises:
        ConfigError: The message lists the classes with their numbers of images.
    """
    counts = names[~names.isin(list(labels.to))].value_counts()
    if len(counts):
        listed = ", ".join(f"{name} ({number:,} images)" for name, number in counts.items())
        way_out = "add to the mapping, or leave them out with unknown=list"
        raise ConfigError("labels", f"{labels.name} does not know {listed}; {way_out}")


def _labels(name: str, to: Mapping[str, str], net_classes: Sequence[str]) -> Labels:
    strange = ", ".join(sorted(set(to.values()) - {*net_classes, REST}))
    if strange:
        has = ", ".join(net_classes)
        message = f"{name} speaks of {strange}, which the net does not have; it has {has}"
        raise ConfigError("labels", message)
    if REST not in to.values():
        return Labels(name, to, tuple(net_classes))
    named = tuple(each for each in net_classes if each in to.values())
    if not named or REST in net_classes:
        message = f"{name} must name a class of the net beside {REST}, and the net have no {REST}"
        raise ConfigError("labels", message)
    return Labels(name, to, (REST, *named))


def _read_mapping(name: str, folder: Path) -> dict[str, str]:
    path = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        names = ", ".join([AUTO, *sorted(each.stem for each in folder.glob("*.yaml"))])
        message = f"{name}: no such mapping; there are {names}, or name a .yaml file"
        raise ConfigError("labels", message) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        message = f"{path} cannot be read: {' '.join(str(error).split())}"
        raise ConfigError("labels", message) from error
    if not isinstance(content, dict) or not content:
        message = f"{path} must have lines like `ak: akiec`: the data's class and the net's"
        raise ConfigError("labels", message)
    # to YAML a bare yes or no is neither text nor a number
    strange = [
        repr(each)
        for each in (*content, *content.values())
        if not isinstance(each, str | int | float) or isinstance(each, bool)
    ]
    if strange:
        listed = ", ".join(dict.fromkeys(strange))
        message = f"{path} has {listed} where a class is named; put names like yes and no in quotes"
        raise ConfigError("labels", message)
    return {str(key): str(value) for key, value in content.items()}


# ---- the run's own images

COMPARED_SIZE = 64  # px, of pictures that are compared, if the net's own are cropped or smaller


@dataclass(frozen=True)
class SourceData:
    """A run's own images.

    Attributes:
        frame: Manifest rows with their `split`; empty texts if the split is not the recorded one.
        images: Whole frames squashed, uint8 (N, S, S, 3).
        same_split: Whether images, labels and split are those of the run's record.
        sizes: Of the pictures as they are stored; None if unknown.
    """

    frame: pd.DataFrame
    images: Images
    same_split: bool
    sizes: "ImageSizes | None" = None


def refuse_root(evaluated: RecordedModel, root: str | None) -> None:
    """Raise if a folder is named for data without one, such as synthetic data.

    Raises:
        ConfigError: `root` has no meaning.
    """
    if root is not None and "root" not in evaluated.config.data.source:
        message = f"the run's own data ({evaluated.data}) lie in no folder; leave it out"
        raise ConfigError("own_root", message)


def own_metadata(evaluated: RecordedModel, root: str | None) -> tuple[pd.DataFrame | None, str]:
    """Metadata of the run's own images, or None and a note why they are missing."""
    try:
        source: Source = instantiate(_data_config(evaluated, root).source, "data.source")
        return source.manifest().frame, ""
    except UserError as error:
        reason = f"the run's own data are not here ({error}); name them by own_root=<folder>"
        return None, f"No metadata (age, sex, site): {reason}."


def find_source_data(
    external: "ExternalData", evaluated: RecordedModel, settings: EvaluateSettings
) -> tuple[SourceData | None, list[str]]:
    """The run's own images, or None, and warnings about them.

    Raises:
        UserError: They are missing, or are other images, and overlapping images must be excluded.
    """
    config = _data_config(evaluated, settings.own_root)
    config.image_size = compared_size(config.image_size, config.geometry)
    config.geometry, config.cache_dir = "squash", str(external.data.cache_dir)
    try:
        data: DataModule = instantiate(config, "data", ("root",))
        data.prepare()
    except UserError as error:
        if settings.overlap == "keep":
            return None, [f"Overlap with the training images: not checked ({error})."]
        way_out = "name them by own_root=<folder>, or use overlap=keep"
        message = f"overlap=exclude: needs the run's own data ({error}); {way_out}"
        raise UserError(message) from error
    same = data.split_fingerprint == evaluated.split_fingerprint
    frame = data.frame.assign(split=data.side if same else "")
    own = SourceData(
        frame, data.cache.images, same, image_sizes(data.source, data.source.manifest())
    )
    if same:
        return own, []
    if settings.overlap == "exclude":
        root = settings.own_root or evaluated.config.data.get("root") or evaluated.data
        message = "is not what the run was trained on; give the right one, or use overlap=keep"
        raise UserError(f"own_root={root}: {message}")
    reason = "the own data here are not what the run was trained on"
    return own, [f"Overlap with the training images: {reason}."]


def compared_size(image_size: int, geometry: str) -> int:
    """The size at which pictures are compared: the net's, if they are whole and large enough."""
    return image_size if geometry == "squash" and image_size >= COMPARED_SIZE else COMPARED_SIZE


def _data_config(evaluated: RecordedModel, root: str | None) -> DictConfig:
    config: DictConfig = evaluated.config.data.copy()
    if root is not None:
        config.root = config.source.root = root
    return config


# ---- overlap

BITS = 64
MOST_BITS = 10  # that differ between the hashes of two encodings of one picture
LEAST_CORRELATION = 0.98  # of their grey pixels
SIDE = 32  # px of those
CHUNK = 1000  # hashes that are compared with all others at once
# ids with one meaning everywhere: images, lesions and patients of the ISIC archive
ARCHIVE = r"^((?:ISIC|HAM|BCN|MSK\d*|IP|IL)_\d+)(?:_downsampled)?$"
OVERLAP_COLUMNS = ["image_id", "why", "own_image_id", "own_split", "hash_bits", "correlation"]
REASONS = (
    "same image id",
    "same picture",
    "same lesion or patient",
    "lesion or patient of such an image",
)


def find_overlap(
    external: pd.DataFrame,
    own: pd.DataFrame,
    external_images: Images,
    own_images: Images,
    listed: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Images of a set that are also in another set, by the first of `REASONS` that holds.

    Args:
        external: Manifest rows: image_id and group; N images.
        own: The other set's, with their `split`; M images.
        external_images: uint8 (N, S, S, 3), whole frames squashed.
        own_images: uint8 (M, T, T, 3), likewise.
        listed: More of the other set's images, without pictures: image_id, group and split.

    Returns:
        `OVERLAP_COLUMNS`: hash_bits (of 64 that differ) and correlation are missing unless the
        picture is the reason. Sorted by image id.
    """
    known = own if listed is None else pd.concat([listed, own], ignore_index=True)
    tables = [
        _same_ids(external, known, "image_id").assign(why=REASONS[0]),
        _same_pictures(external, own, external_images, own_images).assign(why=REASONS[1]),
        _same_ids(external, known, "group").assign(why=REASONS[2]),
    ]
    overlap = _first_reasons(tables)
    groups = external[["image_id", "group"]]
    met = overlap.merge(groups, on="image_id").drop_duplicates("group")
    beside = groups.merge(met[["group", "own_image_id", "own_split"]], on="group")
    overlap = _first_reasons([overlap, beside.assign(why=REASONS[3])])
    return overlap.sort_values("image_id", ignore_index=True)


def _first_reasons(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    tables = [table for table in tables if len(table)]
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    table = table.reindex(columns=OVERLAP_COLUMNS).drop_duplicates("image_id")
    return table.astype({"hash_bits": float, "correlation": float})


def _same_ids(external: pd.DataFrame, own: pd.DataFrame, column: str) -> pd.DataFrame:
    """Rows whose id of the archive is in both sets."""
    keys = [table[column].astype(str).str.extract(ARCHIVE)[0] for table in (external, own)]
    theirs = external[["image_id"]].assign(key=keys[0]).dropna(subset="key")
    ours = own[["image_id", "split"]].assign(key=keys[1])
    ours = ours.rename(columns={"image_id": "own_image_id", "split": "own_split"})
    return theirs.merge(ours.dropna(subset="key").drop_duplicates("key"), on="key")


def _same_pictures(
    external: pd.DataFrame, own: pd.DataFrame, external_images: Images, own_images: Images
) -> pd.DataFrame:
    """Pictures with a close perceptual hash and the same grey pixels, the best match of each."""
    rows = []
    if len(own):
        hashes = [_hashes(external_images, "external images"), _hashes(own_images, "own images")]
        for row, candidates, bits in _close(*hashes):
            correlation = _grey(own_images[candidates]) @ _grey(external_images[row : row + 1])[0]
            best = int(correlation.argmax())
            if correlation[best] >= LEAST_CORRELATION:
                match = own.iloc[candidates[best]]
                ids = (external["image_id"].iloc[row], match["image_id"], match["split"])
                rows.append((*ids, float(bits[best]), float(correlation[best])))
    return pd.DataFrame(rows, columns=[name for name in OVERLAP_COLUMNS if name != "why"])


def _hashes(images: Images, what: str) -> npt.NDArray[np.float32]:
    """Perceptual hashes as signs, float32 (N, 64): products count the bits that differ."""
    import imagehash  # it imports SciPy

    bar = tqdm(images, f"hashing {what}", unit="image", file=sys.stderr, disable=None, leave=False)
    bits = [imagehash.phash(Image.fromarray(image)).hash.ravel() for image in bar]
    return 2 * np.array(bits, dtype=np.float32).reshape(-1, BITS) - 1


def _close(
    theirs: npt.NDArray[np.float32], ours: npt.NDArray[np.float32]
) -> Iterator[tuple[int, npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    """Each row with a close hash: its number, the close rows of `ours`, the bits that differ."""
    for start in range(0, len(theirs), CHUNK):
        differ = (BITS - theirs[start : start + CHUNK] @ ours.T) / 2
        for offset in np.flatnonzero((differ <= MOST_BITS).any(axis=1)):
            places = np.flatnonzero(differ[offset] <= MOST_BITS)
            yield start + int(offset), places, differ[offset, places]


def _grey(images: Images) -> npt.NDArray[np.float32]:
    """Grey pixels without mean and of length 1, float32 (N, SIDE^2): products are correlations."""
    small = [Image.fromarray(image).convert("L").resize((SIDE, SIDE), 2) for image in images]
    pixels = np.stack([np.asarray(image, dtype=np.float32).ravel() for image in small])
    pixels -= pixels.mean(axis=1, keepdims=True)
    return pixels / np.maximum(np.linalg.norm(pixels, axis=1, keepdims=True), 1e-6)


# ---- from own to other data


def domain_shift(
    own: Sequence[pd.DataFrame],
    external: Sequence[pd.DataFrame],
    val: Sequence[pd.DataFrame],
    positive: str | None,
    settings: AuditSettings,
) -> pd.DataFrame:
    """Metrics on the own test split and on other data, with intervals of the differences.

    Images of classes that only one side has are left out, so that means are over the same classes.

    Args:
        own: Predictions of the own test split, one frame for each net; see `gather`.
        external: Of the other data, by the same nets in the same order, over the same classes.
        val: Of the own validation split, on which the threshold is chosen; may be empty.
        positive: The class looked for, if there is one.
        settings: Target sensitivity of the threshold, samples, seed and level.

    Returns:
        A row for each metric: metric, own, own_low, own_high, external, external_low,
        external_high, difference (external - own, negative is worse), low, high, and images and
        groups of both sides.
    """
    shared = sorted(set(own[0]["label"]) & set(external[0]["label"]))
    names = [PRIMARY, "accuracy", *(f"recall/{name}" for name in shared)]
    metrics, chosen = list(names), None
    looked_for = positive if positive in shared and len(shared) > 1 else None
    if looked_for is not None:
        names.append(f"auroc/{looked_for}")
        target = TargetRate("sensitivity", settings.sensitivity)
        chosen = thresholds.choose_each(gather(val), looked_for, target) if len(val) else []
        if not chosen or any(math.isnan(threshold.value) for threshold in chosen):
            chosen = None
        else:
            names += [f"chosen/{rate}/{looked_for}" for rate in ("sensitivity", "specificity")]
    sides = []
    for number, frames in enumerate((own, external)):
        predictions = gather([frame[frame["label"].isin(shared)] for frame in frames])
        statistics = _shift_statistics(predictions, metrics, looked_for, chosen)
        values = np.concatenate([evaluate(predictions, each) for each in statistics], axis=1)
        rngs = streams(settings.seed + number, 4)
        samples = [
            resample(predictions, [each], settings.samples, rng)
            for each, rng in zip(statistics, rngs, strict=False)
        ]
        bases = [basis for each in statistics for basis in each.bases]
        sides.append((values.mean(axis=0), np.concatenate(samples, axis=2), bases))
    (_, own_samples, _), (_, external_samples, _) = sides
    # one draw of seeds for all three: a drawn net counts on both sides
    stacked = [own_samples, external_samples, external_samples - own_samples]
    [seed_rng] = streams(settings.seed + 2, 1)
    drawn = np.split(over_seeds(np.concatenate(stacked, axis=2), seed_rng), 3, axis=1)
    rows = []
    for at, name in enumerate(names):
        is_share = name.startswith(("accuracy", "recall/", "chosen/"))
        row: dict[str, object] = {"metric": name}
        ends, kinds = [], []
        for key, (points, _, bases), values in zip(("own", "external"), sides, drawn, strict=False):
            figures = interval(values[:, at], points[at], bases[at], settings.level, is_share)
            ends.append(figures[:3])
            kinds.append(figures[3])
            row |= dict(zip((key, f"{key}_low", f"{key}_high"), figures[:3], strict=True))
            row |= {f"{key}_images": figures[4], f"{key}_groups": figures[5]}
        gap = ends[1][0] - ends[0][0]
        fewest = min((side[2][at] for side in sides), key=lambda basis: len(np.unique(basis)))
        low, high, both = interval(drawn[2][:, at], gap, fewest, settings.level, share=False)[1:4]
        if is_share and ("exact" in kinds or not both):
            low, high = newcombe(ends[1], ends[0])
        elif not all(kinds):
            low, high = np.nan, np.nan
        rows.append(row | {"difference": gap, "low": low, "high": high})
    sizes = [f"{key}_{what}" for key in ("own", "external") for what in ("images", "groups")]
    columns = [f"{key}{end}" for key in ("own", "external") for end in ("", "_low", "_high")]
    order = ["metric", *columns, "difference", "low", "high", *sizes]
    return pd.DataFrame(rows)[order]


def _shift_statistics(
    predictions: Predictions,
    metrics: Sequence[str],
    positive: str | None,
    chosen: Sequence[Threshold] | None,
) -> list[Statistics]:
    statistics = [metric_statistics(predictions, metrics)]
    if positive is not None:
        auroc = curve_statistics(predictions, positive, {"auroc": curves.area})
        statistics.append(replace(auroc, bases=(predictions.group,)))
        if chosen is not None:
            decisions = thresholds.decide(predictions, positive, chosen)
            rates = thresholds.rates(predictions, positive, decisions)
            statistics.append(
                Statistics(rates.names[:2], rates.bases[:2], lambda w: rates.measure(w)[..., :2])
            )
    return statistics


def newcombe(
    first: tuple[float, float, float], second: tuple[float, float, float]
) -> tuple[float, float]:
    """Interval of first - second, two independent shares, from the interval of each.

    Source: Newcombe, Interval estimation for the difference between independent proportions,
        Statistics in Medicine 17, 1998, method 10, there with Wilson's intervals.

    Args:
        first: The share, low and high, in [0, 1].
        second: Likewise.

    Returns:
        Low and high, in [-1, 1].
    """
    (one, one_low, one_high), (two, two_low, two_high) = first, second
    low = one - two - math.hypot(one - one_low, two_high - two)
    return low, one - two + math.hypot(one_high - one, two - two_low)


def recall_by_original_label(
    external: Sequence[pd.DataFrame], settings: AuditSettings
) -> pd.DataFrame:
    """Recall of each class of the data set itself, such as AK and SCC apart.

    Args:
        external: Predictions, one frame for each net, with a column `original_label`.
        settings: Samples, seed and level.

    Returns:
        A row for each class: original_label, counts_as, images, groups, recall, low, high.
    """
    rows = []
    for name in sorted(external[0]["original_label"].unique()):
        frames = [frame[frame["original_label"] == name] for frame in external]
        predictions, counts_as = gather(frames), frames[0]["label"].iloc[0]
        row = estimates(predictions, [recall(predictions, counts_as)], settings).iloc[0]
        sizes = (int(row["images"]), int(row["groups"]))
        rows.append((name, counts_as, *sizes, row["estimate"], row["low"], row["high"]))
    columns = ["original_label", "counts_as", "images", "groups", "recall", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


# ---- pictures

MOST = 2000  # files whose size is read
MOST_DRAWN = 50  # pictures that are created to read their size, if they are no files
BLACK = 40  # mean brightness of a corner, of 255, that counts as black
SAME_SHAPE = 0.02  # relative difference of width to height that does not matter


@dataclass(frozen=True)
class ImageSizes:
    """Sizes of pictures.

    Attributes:
        table: A row for each size, the most frequent first: width, height, images.
        read: Number of pictures that were looked at, evenly over the set.
        images: Of the set.
    """

    table: pd.DataFrame
    read: int
    images: int

    @property
    def shape(self) -> float:
        """Median of width / height."""
        ratio = self.table["width"] / self.table["height"]
        return float(np.median(np.repeat(ratio, self.table["images"])))

    @property
    def shortest(self) -> int:
        """The shortest side, px."""
        return int(self.table[["width", "height"]].to_numpy().min())

    @property
    def text(self) -> str:
        """Such as "84x84 px (all of 12,381)"."""
        sizes = [f"{width}x{height}" for width, height, _ in self.table.to_numpy().tolist()]
        of = "all" if self.read == self.images else f"{self.read:,} looked at"
        if len(sizes) == 1:
            return f"{sizes[0]} px ({of} of {self.images:,})"
        areas = self.table["width"] * self.table["height"]
        share = self.table["images"].iloc[0] / self.read
        return (
            f"{sizes[int(areas.argmin())]} to {sizes[int(areas.argmax())]} px, most often "
            f"{sizes[0]} ({share:.0%}; {of} of {self.images:,}), median width/height "
            f"{self.shape:.2f}"
        )


def image_sizes(source: Source, manifest: Manifest) -> ImageSizes | None:
    """Sizes of a set's pictures as they are stored; None if none can be read.

    Args:
        source: Creates the pictures, if they are no files.
        manifest: Of the set.
    """
    paths = manifest.frame["path"]
    files = bool(len(paths)) and paths.nunique() == len(paths)
    sizes = []
    for row in np.unique(np.linspace(0, len(paths) - 1, MOST if files else MOST_DRAWN).astype(int)):
        try:
            if files:
                with Image.open(str(paths.iloc[row])) as image:
                    sizes.append(image.size)
            else:
                sizes.append(source.picture(manifest, int(row)).size)
        except (OSError, UnidentifiedImageError):
            continue  # the cache reports unreadable pictures
    if not sizes:
        return None
    table = pd.DataFrame(sizes, columns=["width", "height"]).value_counts().rename("images")
    return ImageSizes(table.reset_index(), len(sizes), len(paths))


def dark_corners(images: Images) -> float:
    """Share of images that are black in all four corners, in [0, 1].

    Args:
        images: Whole frames, uint8 (N, S, S, 3); N over 0.
    """
    side = max(1, images.shape[1] // 8)
    ends = (slice(None, side), slice(-side, None))
    corners = [images[:, rows, columns].mean(axis=(1, 2, 3)) for rows in ends for columns in ends]
    return float((np.max(corners, axis=0) < BLACK).mean())


def picture_notes(
    own: ImageSizes | None, external: ImageSizes | None, image_size: int, trained: str, now: str
) -> list[str]:
    """What the net was trained on, what it gets here, and how the pictures differ.

    Args:
        own: Sizes of the training data's pictures, if known.
        external: Of the other data.
        image_size: Side of the net's input, px.
        trained: The geometry of training: squash, center_crop or pad.
        now: The geometry here.
    """
    sizes = [each.text if each else "of unknown sizes" for each in (own, external)]
    notes = [
        f"Trained at {image_size} px, geometry {trained}, on pictures {sizes[0]}.",
        f"Shown here at {image_size} px, geometry {now}, pictures {sizes[1]}.",
    ]
    if now != trained:
        notes.append(f"The geometry differs from the training's ({now} here, {trained} there).")
    if own and external and abs(own.shape / external.shape - 1) > SAME_SHAPE:
        squashed = " (or they were squashed before)" if external.shape == 1 else ""
        notes.append(
            f"The shapes differ: width/height {own.shape:.2f} in training, {external.shape:.2f} "
            f"here{squashed}; a squashed lesion has another outline."
        )
    if external and external.shortest < image_size:
        notes.append(f"Pictures smaller than {image_size} px are enlarged and lack sharpness.")
    return notes


# ---- the other data


@dataclass(frozen=True)
class ExternalData:
    """Other data, ready for the nets.

    Attributes:
        data: As configured; its size is the net's.
        manifest: All of its images.
        cache: Those that can be read.
        rows: The selected ones, row numbers in the cache.
        labels: Their classes for the nets.
    """

    data: "DataModule"
    manifest: Manifest
    cache: ImageCache
    rows: npt.NDArray[np.int64]
    labels: Labels

    @property
    def frame(self) -> pd.DataFrame:
        """Of `rows`: image_id, group, label (missing if unknown), original_label, metadata."""
        frame = self.cache.frame.iloc[self.rows]
        names = frame["label"].map(dict(enumerate(self.manifest.classes)))
        original = frame.get("original_label", names)
        return frame.assign(label=names.map(dict(self.labels.to)), original_label=original)


def open_data(
    config: DictConfig, evaluated: RecordedModel, classes: Sequence[str], settings: EvaluateSettings
) -> ExternalData:
    """Read, decode and map the data that a config names.

    Args:
        config: The `data` part of a composed conf/command/evaluate.yaml.
        evaluated: The run; its size is used, and its geometry if none is named.
        classes: Of the run.
        settings: Part and mapping.

    Raises:
        UserError: The data, or the mapping, cannot be used.
    """
    config, size = config.copy(), evaluated.config.data.image_size
    if config.image_size not in (None, size):
        message = f"must be the run's, {size}, but got {config.image_size}; leave it out"
        raise ConfigError("data.image_size", message)
    config.image_size = size
    config.geometry = config.geometry or evaluated.config.data.geometry
    check(resolve(config), "data")
    data: DataModule = instantiate(config, "data", ("root",))
    manifest = data.source.manifest()
    labels = choose_labels(settings.mapping, manifest.classes, classes, MAPPINGS, settings.unknown)
    if settings.unknown == "refuse":
        names = manifest.frame["label"].map(dict(enumerate(manifest.classes)))
        refuse_unknown(labels, names)
    pixels = _load(data, manifest, data.image_size, data.geometry)
    rows = np.arange(len(pixels.frame))
    if settings.part != "all":
        try:
            rows = data.prepare().rows(settings.part)
        except ConfigError as error:
            raise (error if error.key.startswith("data.") else error.under("data")) from error
        if not len(rows):
            message = f"{data.name} has no image in {settings.part} by data.split={data.split_mode}"
            raise ConfigError("part", message)
    return ExternalData(data, manifest, pixels, rows, labels)


def whole_frames(external: ExternalData) -> Images:
    """The images of `rows`, whole frames squashed to the size at which own images are compared."""
    data = external.data
    size = compared_size(data.image_size, data.geometry)
    if (size, "squash") == (data.image_size, data.geometry):
        return external.cache.images[external.rows]
    return _load(data, external.manifest, size, "squash").images[external.rows]


def exclude(external: ExternalData, overlap: pd.DataFrame) -> ExternalData:
    """The same data without overlapping images.

    Raises:
        UserError: None remains.
    """
    ids = external.cache.frame["image_id"].to_numpy()[external.rows]
    rows = external.rows[~np.isin(ids, overlap["image_id"].to_numpy(dtype=str))]
    if not len(rows):
        raise UserError(
            f"data={external.data.name}: the run has had all of these images; leave data= out to "
            "evaluate its own splits, or use overlap=keep"
        )
    return replace(external, rows=rows)


def predict(
    external: ExternalData, evaluated: RecordedModel, classes: Sequence[str], store: Store
) -> list[pd.DataFrame]:
    """Predictions of the images whose class is known.

    Returns:
        One frame for each net: image_id, group, label (the net's classes), original_label, then
        p/<class> in label order.
    """
    frame = external.frame
    known = frame["label"].notna().to_numpy()
    rows, name = external.rows[known], external.data.name
    columns = ["image_id", "group", "label", "original_label"]
    frame = frame.loc[known, columns].reset_index(drop=True)
    if not len(rows):
        raise UserError(f"data={name}: no image remains whose class the mapping knows")
    tables = []
    for number, net in enumerate(evaluated.nets, 1):
        camera = trained.load(store, net.run_id, evaluated.config, classes)
        title = f"{name}, net {number} of {len(evaluated.nets)}"
        images, batch = external.cache.images, external.data.batch_size
        probability = trained.predict(camera, images, rows, batch, title)
        scores = pd.DataFrame(probability, columns=[f"p/{each}" for each in classes])
        tables.append(external.labels.merged(pd.concat([frame, scores], axis=1)))
    return tables


def examples(
    external: ExternalData, frames: Images, own: SourceData, classes: Sequence[str]
) -> dict[str, tuple[Images, Images]]:
    """Some own and some external images of each class, evenly over each set.

    Args:
        external: The data.
        frames: From `whole_frames`.
        own: The run's own.
        classes: Of the run.
    """
    named = own.frame["label"].map(dict(enumerate(classes)))
    named = named.where(named.isin(external.labels.classes), REST)

    def some(labels: pd.Series, name: str) -> npt.NDArray[np.int64]:
        rows = np.flatnonzero(labels == name)
        places = np.unique(np.linspace(0, len(rows) - 1, EXAMPLES).astype(int))
        return rows[places] if len(rows) else rows

    return {
        name: (own.images[some(named, name)], frames[some(external.frame["label"], name)])
        for name in external.labels.classes
    }


def _load(data: "DataModule", manifest: Manifest, size: int, geometry: Geometry) -> ImageCache:
    folder = Path(data.cache_dir)
    return cache.load(data.source, manifest, size, geometry, folder, data.on_unreadable)
