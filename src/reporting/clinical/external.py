"""Other data for a trained run: labels mapped, overlap with its training images."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import yaml
from omegaconf import DictConfig
from PIL import Image
from tqdm import tqdm

from src.core.config import check, instantiate, resolve
from src.core.errors import ConfigError, UserError
from src.core.files import CONF
from src.data import cache
from src.data.cache import ImageCache
from src.data.decoding import Geometry
from src.data.source import Manifest
from src.deployment import trained
from src.deployment.runtimes.base import in_batches
from src.deployment.trained import RecordedModel
from src.metrics.bootstrap import DECISION
from src.reporting.clinical.results import EvaluateSettings, Images
from src.tracking.store import Store

if TYPE_CHECKING:
    from src.data.module import DataModule

# ---- labels

REST = "rest"  # in a mapping: none of the classes that its other lines name
AUTO = "auto"
MAPPINGS = CONF / "labels"


@dataclass(frozen=True)
class Labels:
    """What each class of a data set means to a net.

    Attributes:
        name: Of the file in conf/labels, its path, or "identity".
        to: Class of the data set -> class of the net, or `REST`. Missing classes are unknown.
        classes: The evaluation's classes in label order: the net's, or `REST` and the classes that
            the mapping names, if it has a `REST`.
    """

    name: str
    to: Mapping[str, str]
    classes: tuple[str, ...]

    def merge(self, predictions: pd.DataFrame) -> pd.DataFrame:
        """Predictions over the net's classes, as predictions over `classes`.

        The probability of the rest is the sum over the classes that are not in question; decisions
        for one of them are for the rest.
        """
        if REST not in self.classes:
            return predictions
        columns = [str(column) for column in predictions if str(column).startswith("p/")]
        others = [name for name in columns if name.removeprefix("p/") not in self.classes]
        merged = predictions.drop(columns=others)
        decided = [name for name in merged if str(name).startswith(DECISION)]
        for name in ("label", *decided):
            merged[name] = merged[name].where(merged[name].isin(self.classes), REST)
        position = list(merged).index("label") + 1
        merged.insert(position, f"p/{REST}", predictions[others].sum(axis=1))
        return merged


def choose_labels(
    name: str,
    data_classes: Sequence[str],
    net_classes: Sequence[str],
    folder: Path = MAPPINGS,
    unknown: Literal["refuse", "list"] = "refuse",
) -> Labels:
    """The mapping from the classes of a data set to those of a net.

    `name` is that of a file in `folder`, a path that ends in .yaml, or "auto": by name if the net
    has all of the classes, else the one file that maps all of them to the net's. With `unknown`
    "list", "auto" goes by name also if the net has only some of the classes.

    Raises:
        ConfigError: No such mapping, or none or several that fit.
    """
    if name != AUTO:
        return _labels(name, _read_mapping(name, folder), net_classes)
    shared = {name: name for name in data_classes if name in net_classes}
    if len(shared) < len(data_classes):
        mappings = {path.stem: _read_mapping(path.stem, folder) for path in folder.glob("*.yaml")}
        fitting = sorted(
            name
            for name, to in mappings.items()
            if set(data_classes) <= set(to) and set(to.values()) <= {*net_classes, REST}
        )
        exact = [name for name in fitting if set(data_classes) == set(mappings[name])] or fitting
        classes = f"the data have {', '.join(data_classes)}, the net {', '.join(net_classes)}"
        if len(exact) > 1:
            raise ConfigError("labels", f"{' and '.join(exact)} both fit; name one ({classes})")
        if exact:
            return _labels(exact[0], mappings[exact[0]], net_classes)
        if unknown == "refuse" or not shared:
            unmapped = ", ".join(name for name in data_classes if name not in net_classes)
            raise ConfigError(
                "labels",
                f"no mapping for {unmapped}: {classes}; write one as conf/labels/<name>.yaml and "
                "name it, or leave those images out with unknown=list",
            )
    return Labels("identity", shared, tuple(net_classes))


def _labels(name: str, to: Mapping[str, str], net_classes: Sequence[str]) -> Labels:
    if missing := ", ".join(sorted(set(to.values()) - {*net_classes, REST})):
        has = ", ".join(net_classes)
        message = f"{name} speaks of {missing}, which the net does not have; it has {has}"
        raise ConfigError("labels", message)
    if REST not in to.values():
        return Labels(name, to, tuple(net_classes))
    named = tuple(label for label in net_classes if label in to.values())
    if not named or REST in net_classes:
        message = f"{name} must name a class of the net beside {REST}, and the net have no {REST}"
        raise ConfigError("labels", message)
    return Labels(name, to, (REST, *named))


def _read_mapping(name: str, folder: Path) -> dict[str, str]:
    path = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    try:
        # the base loader takes each name as it is typed; to others yes and no are Booleans
        content = yaml.load(path.read_text(), yaml.BaseLoader)
    except FileNotFoundError as error:
        names = ", ".join([AUTO, *sorted(file.stem for file in folder.glob("*.yaml"))])
        message = f"{name}: no such mapping; there are {names}, or name a .yaml file"
        raise ConfigError("labels", message) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        message = f"{path} cannot be read: {' '.join(str(error).split())}"
        raise ConfigError("labels", message) from error
    named = content if isinstance(content, dict) else {}
    if not named or not all(isinstance(name, str) and name for name in named.values()):
        message = f"{path} must have lines like `ak: akiec`: the data's class and the net's"
        raise ConfigError("labels", message)
    return named


# ---- the other data


@dataclass(frozen=True)
class ExternalData:
    """Other data, ready for the nets.

    `data` is as configured, with the net's image size, and `manifest` lists all of its images.
    `cache` has those that can be read, `rows` are the numbers of the selected ones in it, int (N,).
    `labels` are their classes for the nets.
    """

    data: "DataModule"
    manifest: Manifest
    cache: ImageCache
    rows: np.ndarray
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
    """Read, decode and map the data that the `data` part of conf/command/evaluate.yaml names.

    The image size is the run's, as is the geometry if none is named. `classes` are the run's.

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
    names = manifest.frame["label"].map(dict(enumerate(manifest.classes)))
    counts = names[~names.isin(list(labels.to))].value_counts()
    if len(counts) and settings.unknown == "refuse":
        listed = ", ".join(f"{name} ({number:,} images)" for name, number in counts.items())
        way_out = "add to the mapping, or leave them out with unknown=list"
        raise ConfigError("labels", f"{labels.name} does not know {listed}; {way_out}")
    images = _load(data, manifest, data.image_size, data.geometry)
    rows = np.arange(len(images.frame))
    if settings.part != "all":
        try:
            rows = data.prepare().rows(settings.part)
        except ConfigError as error:
            raise (error if error.key.startswith("data.") else error.under("data")) from error
        if not len(rows):
            message = f"{data.name} has no image in {settings.part} by data.split={data.split_mode}"
            raise ConfigError("part", message)
    return ExternalData(data, manifest, images, rows, labels)


def _load(data: "DataModule", manifest: Manifest, size: int, geometry: Geometry) -> ImageCache:
    return cache.load(data.source, manifest, size, geometry, data.cache_dir, data.on_unreadable)


def full_frames(external: ExternalData) -> Images:
    """The images of `rows` without crops, squashed to the size at which pictures are compared."""
    data = external.data
    size = _compared_size(data.image_size, data.geometry)
    if (size, "squash") == (data.image_size, data.geometry):
        return external.cache.images[external.rows]
    return _load(data, external.manifest, size, "squash").images[external.rows]


def exclude(external: ExternalData, overlap: pd.DataFrame) -> ExternalData:
    """The same data without overlapping images.

    Raises:
        UserError: None remains.
    """
    rows = external.rows[~external.frame["image_id"].isin(overlap["image_id"]).to_numpy()]
    if not len(rows):
        way_out = "leave data= out to evaluate its own splits, or use overlap=keep"
        problem = f"the run has had all of these images; {way_out}"
        raise UserError(f"data={external.data.name}: {problem}")
    return replace(external, rows=rows)


def predict(
    external: ExternalData, evaluated: RecordedModel, classes: Sequence[str], store: Store
) -> list[pd.DataFrame]:
    """Predictions of the images whose class is mapped, one frame for each net.

    Columns: image_id, group, label (the net's classes), original_label, p/<class> in label order.
    """
    data, frame = external.data, external.frame[["image_id", "group", "label", "original_label"]]
    rows = external.rows[frame["label"].notna()]
    if not len(rows):
        raise UserError(f"data={data.name}: no image remains whose class the mapping knows")
    frame = frame.dropna(subset="label").reset_index(drop=True)
    import torch

    device, tables = "cuda" if torch.cuda.is_available() else "cpu", []
    for number, net in enumerate(evaluated.nets, 1):
        camera = trained.load(store, net.run_id, evaluated.config, classes).to(device)
        title = f"{data.name}, net {number} of {len(evaluated.nets)}"
        images = external.cache.images
        probability = in_batches(camera.probabilities, images, data.batch_size, title, rows)
        scores = pd.DataFrame(probability, columns=[f"p/{label}" for label in classes])
        tables.append(pd.concat([frame, scores], axis=1))
    return tables


# ---- the run's own images

COMPARED_SIZE = 64  # px, of pictures that are compared, if the net's own are cropped or smaller


def source_data(
    external: ExternalData, evaluated: RecordedModel, settings: EvaluateSettings
) -> tuple["DataModule | None", list[str]]:
    """The run's images, full frames squashed, or None; and warnings about them.

    Raises:
        UserError: They are missing, or are other images, and overlapping images must be excluded.
    """
    config = trained.data_config(evaluated, settings.own_root)
    config.image_size = _compared_size(config.image_size, config.geometry)
    config.geometry, config.cache_dir = "squash", external.data.cache_dir
    try:
        data: DataModule = instantiate(config, "data", ("root",))
        data.prepare()
    except UserError as error:
        if settings.overlap == "keep":
            return None, [f"Overlap with the training images: not checked ({error})."]
        way_out = "name them by own_root=<folder>, or use overlap=keep"
        message = f"overlap=exclude: needs the run's own data ({error}); {way_out}"
        raise UserError(message) from error
    if data.split_fingerprint == evaluated.split_fingerprint:
        return data, []
    if settings.overlap == "exclude":
        root = settings.own_root or evaluated.config.data.get("root") or evaluated.data
        message = "is not what the run was trained on; give the right one, or use overlap=keep"
        raise UserError(f"own_root={root}: {message}")
    reason = "the run's data here are not what it was trained on"
    return data, [f"Overlap with the training images: {reason}."]


def _compared_size(image_size: int, geometry: str) -> int:
    """The size at which pictures are compared: the net's, if they are full and large enough."""
    return image_size if geometry == "squash" and image_size >= COMPARED_SIZE else COMPARED_SIZE


# ---- overlap

BITS = 64
MOST_BITS = 10  # that differ between the hashes of two encodings of one picture
LEAST_CORRELATION = 0.98  # of their grey pixels
SIDE = 32  # px of those
CHUNK = 1000  # hashes that are compared with all others at once
# Ids with one meaning everywhere: images, lesions and patients of the ISIC archive.
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
    source: pd.DataFrame,
    external_images: Images,
    source_images: Images,
    listed: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Images of a set that are also in another set, by the first of `REASONS` that holds.

    `external` and `source` are manifest rows: image_id and group, of the other set also `split`.
    The pictures are full frames squashed, uint8 (N, S, S, 3). `listed` are more rows of the other
    set, without pictures.

    Returns:
        `OVERLAP_COLUMNS`: hash_bits (of 64 that differ) and correlation are missing unless the
        picture is the reason. Sorted by image id.
    """
    members = source if listed is None else pd.concat([listed, source], ignore_index=True)
    tables = [
        _same_ids(external, members, "image_id"),
        _same_pictures(external, source, external_images, source_images),
        _same_ids(external, members, "group"),
    ]
    tables = [table.assign(why=why) for table, why in zip(tables, REASONS, strict=False)]
    overlap = pd.concat([table for table in tables if len(table)] or tables)
    groups = external[["image_id", "group"]]
    first = overlap.drop_duplicates("image_id").merge(groups).drop_duplicates("group")
    beside = groups.merge(first[["group", "own_image_id", "own_split"]]).assign(why=REASONS[3])
    overlap = pd.concat([overlap, beside]) if len(beside) else overlap
    overlap = overlap.drop_duplicates("image_id").reindex(columns=OVERLAP_COLUMNS)
    overlap = overlap.astype({"hash_bits": float, "correlation": float})
    return overlap.sort_values("image_id", ignore_index=True)


def _same_ids(external: pd.DataFrame, source: pd.DataFrame, column: str) -> pd.DataFrame:
    """Rows whose id of the archive is in both sets."""
    keys = [table[column].astype(str).str.extract(ARCHIVE)[0] for table in (external, source)]
    ids = external[["image_id"]].assign(key=keys[0]).dropna(subset="key")
    members = source[["image_id", "split"]].assign(key=keys[1])
    members = members.rename(columns={"image_id": "own_image_id", "split": "own_split"})
    return ids.merge(members.dropna(subset="key").drop_duplicates("key"), on="key")


def _same_pictures(
    external: pd.DataFrame, source: pd.DataFrame, external_images: Images, source_images: Images
) -> pd.DataFrame:
    """Pictures with a close perceptual hash and the same grey pixels, the best match of each."""
    columns = [name for name in OVERLAP_COLUMNS if name != "why"]
    if source.empty:
        return pd.DataFrame(columns=columns)
    external_hashes = _hashes(external_images, "external images")
    source_hashes = _hashes(source_images, "the run's images")
    rows = []
    for start in range(0, len(external_hashes), CHUNK):
        differ = (BITS - external_hashes[start : start + CHUNK] @ source_hashes.T) / 2
        for offset in np.flatnonzero((differ <= MOST_BITS).any(axis=1)):
            row, candidates = start + int(offset), np.flatnonzero(differ[offset] <= MOST_BITS)
            correlation = _grey(source_images[candidates]) @ _grey(external_images[[row]])[0]
            best = int(correlation.argmax())
            if correlation[best] >= LEAST_CORRELATION:
                match, bits = source.iloc[candidates[best]], float(differ[offset, candidates[best]])
                ids = (external["image_id"].iloc[row], match["image_id"], match["split"])
                rows.append((*ids, bits, float(correlation[best])))
    return pd.DataFrame(rows, columns=columns)


def _hashes(images: Images, what: str) -> np.ndarray:
    """Perceptual hashes as signs, float32 (N, 64): products count the bits that differ."""
    import imagehash  # it imports SciPy

    bar = tqdm(images, f"hashing {what}", unit="image", file=sys.stderr, disable=None, leave=False)
    bits = [imagehash.phash(Image.fromarray(image)).hash.ravel() for image in bar]
    return 2 * np.array(bits, dtype=np.float32).reshape(-1, BITS) - 1


def _grey(images: Images) -> np.ndarray:
    """Grey pixels without mean and of length 1, float32 (N, SIDE^2): products are correlations."""
    small = [Image.fromarray(image).convert("L").resize((SIDE, SIDE), 2) for image in images]
    pixels = np.stack([np.asarray(image, dtype=np.float32).ravel() for image in small])
    pixels -= pixels.mean(axis=1, keepdims=True)
    return pixels / np.maximum(np.linalg.norm(pixels, axis=1, keepdims=True), 1e-6)
