"""A run's nets on data that they were not trained on: which images, their labels in the nets' words, predictions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from omegaconf import DictConfig

from src.config import check, instantiate, resolve
from src.data import cache
from src.data.geometry import Geometry
from src.data.module import DataModule
from src.data.source import Manifest
from src.entry import ROOT
from src.errors import ConfigError, UserError
from src.evaluation import labels, overlap, own, pictures
from src.evaluation.labels import Labels
from src.evaluation.own import OwnPictures
from src.evaluation.settings import Settings
from src.tracking.store import Store
from src.trained import inference
from src.trained.restore import restore
from src.trained.runs import Evaluated

EXAMPLES = 8  # images a class and set that are shown
MAPPINGS = ROOT / "conf" / "labels"


@dataclass(frozen=True)
class External:
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
    cache: cache.Cache
    rows: npt.NDArray[np.int64]
    labels: Labels

    @property
    def frame(self) -> pd.DataFrame:
        """Of `rows`: image_id, group, `label` (missing where unknown), `original_label`, and all metadata."""
        frame = self.cache.frame.iloc[self.rows]
        names = frame["label"].map(dict(enumerate(self.manifest.classes)))
        return frame.assign(label=self.labels.named(names), original_label=frame.get("original_label", names))


def open_data(config: DictConfig, evaluated: Evaluated, classes: Sequence[str], settings: Settings) -> External:
    """Read, decode and map the data that a config names.

    Args:
        config: The `data` part of a composed `conf/evaluate.yaml`.
        evaluated: The run; its size, and its geometry where none is named, are taken.
        classes: Of the run.
        settings: Which part, and which mapping.

    Raises:
        UserError: The data, or the mapping, are not as they should be.
    """
    config = _filled(config, evaluated)
    data: DataModule = instantiate(config, "data", ("root",))
    manifest = data.source.manifest()
    chosen = labels.choose(settings.mapping, manifest.classes, classes, MAPPINGS, settings.unknown)
    if settings.unknown == "refuse":
        labels.refuse_unknown(chosen, manifest.frame["label"].map(dict(enumerate(manifest.classes))))
    pixels = _load(data, manifest, data.image_size, data.geometry)
    rows = np.arange(len(pixels.frame))
    if settings.part != "all":
        try:
            rows = data.prepare().rows(settings.part)
        except ConfigError as error:
            raise (error if error.key.startswith("data.") else error.under("data")) from error
        if not len(rows):
            raise ConfigError("part", f"{data.name} has no image in {settings.part} by data.split={data.split_mode}")
    return External(data, manifest, pixels, rows, chosen)


def own_pictures(external: External, evaluated: Evaluated, settings: Settings) -> tuple[OwnPictures | None, list[str]]:
    """The run's own images, or None; and what is amiss with them.

    Raises:
        UserError: They are not here, or are not those, and overlapping images shall be left out.
    """
    try:
        mine = own.pictures(evaluated, settings.own_root, str(external.data.cache_dir))
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
        raise UserError(f"own_root={given}: is not what the run was trained on; give the right one, or overlap=keep")
    return mine, ["Overlap with the training images: the own data here are not what the run was trained on."]


def whole_frames(external: External) -> npt.NDArray[np.uint8]:
    """The images of `rows`, whole frames squashed to the size at which own images are compared."""
    data = external.data
    size = own.hashed_size(data.image_size, data.geometry)
    if (size, "squash") == (data.image_size, data.geometry):
        return external.cache.images[external.rows]
    return _load(data, external.manifest, size, "squash").images[external.rows]


def met_before(
    external: External,
    frames: npt.NDArray[np.uint8],
    mine: OwnPictures | None,
    recorded: Mapping[str, Sequence[pd.DataFrame]],
) -> pd.DataFrame:
    """The external images that the run has had, as `overlap.find` gives them.

    Args:
        external: The data.
        frames: From `whole_frames`.
        mine: The run's own, where they are here.
        recorded: By split what the nets predicted of it: those images they have had, whatever is here.
    """
    listed = [nets[0][["image_id", "group"]].assign(split=split) for split, nets in recorded.items() if nets]
    known = pd.concat(listed, ignore_index=True)
    own_frame, own_images = (mine.frame, mine.images) if mine is not None else (known.iloc[:0], frames[:0])
    return overlap.find(external.cache.frame.iloc[external.rows], own_frame, frames, own_images, known)


def overlap_told(
    found: pd.DataFrame, images: int, mine: OwnPictures | None, settings: Settings
) -> tuple[str, list[str]]:
    """How many external images the run has had, and what of it speaks against the figures.

    Args:
        found: From `met_before`.
        images: That were looked at.
        mine: The run's own; without all of them it is not known of which split the others were.
        settings: Whether they are left out.
    """
    if found.empty:
        how = "by id, by picture (hash) and by lesion" if mine is not None else "by id and lesion of its val and test"
        return f"Overlap with the run's own images: none of {images:,}, {how}.", []
    reasons = ", ".join(f"{number:,} {why}" for why, number in found["why"].value_counts().items())
    sides = ""
    if mine is not None and mine.same_split:
        sides = "; " + ", ".join(f"{number:,} of {side}" for side, number in found["own_split"].value_counts().items())
    told = f"Overlap with the run's own images: {len(found):,} of {images:,} ({reasons}{sides})"
    if settings.overlap == "exclude":
        return f"{told}, left out.", []
    apart = "The intervals of the differences take the own and these images for independent, which they are not."
    kept = f"{len(found):,} of these {images:,} images the run has had, and they were KEPT: the figures are too good."
    return f"{told}, kept. {apart}", [kept]


def without(external: External, found: pd.DataFrame) -> External:
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
    return External(external.data, external.manifest, external.cache, rows, external.labels)


def predictions(external: External, evaluated: Evaluated, classes: Sequence[str], store: Store) -> list[pd.DataFrame]:
    """What each net says of the images whose class is known.

    Returns:
        A frame a net: image_id, group, label (in the nets' words), original_label, p/<class> in label order.
    """
    frame = external.frame
    known = frame["label"].notna().to_numpy()
    frame, rows = frame[known], external.rows[known]
    if not len(rows):
        raise UserError(f"data={external.data.name}: no image is left whose class the mapping knows")
    found = []
    for number, net in enumerate(evaluated.nets, 1):
        classifier = restore(inference.build(evaluated.config, classes), store, net.run_id)
        title = f"{external.data.name}, net {number} of {len(evaluated.nets)}"
        probability = inference.predict(classifier, external.cache.images, rows, external.data.batch_size, title)
        table = frame[["image_id", "group", "label", "original_label"]].reset_index(drop=True)
        for label, name in enumerate(classes):
            table[f"p/{name}"] = probability[:, label]
        found.append(external.labels.told(table))
    return found


def examples(
    external: External, frames: npt.NDArray[np.uint8], mine: OwnPictures, classes: Sequence[str]
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
    ours = ours.where(ours.isin(asked), labels.REST)
    theirs = external.frame["label"]
    return {name: (mine.images[_evenly(ours == name)], frames[_evenly(theirs == name)]) for name in asked}


def _evenly(chosen: pd.Series) -> npt.NDArray[np.int64]:
    rows = np.flatnonzero(chosen)
    return rows[np.unique(np.linspace(0, len(rows) - 1, EXAMPLES).astype(int))] if len(rows) else rows


def images_told(
    external: External,
    evaluated: Evaluated,
    settings: Settings,
    frames: npt.NDArray[np.uint8],
    mine: OwnPictures | None,
) -> list[str]:
    """What the pictures are, beside those of the training.

    Args:
        external: The data.
        evaluated: The run.
        settings: Where its own data are.
        frames: From `whole_frames`.
        mine: The run's own, where they are here.
    """
    own_sizes = None if mine is None else pictures.sizes(*own.listed(evaluated, settings.own_root))
    theirs = pictures.sizes(external.data.source, external.manifest)
    trained = str(evaluated.config.data.geometry)
    lines = pictures.told(own_sizes, theirs, external.data.image_size, trained, external.data.geometry)
    share = pictures.dark_corners(frames)
    trained_with = f", {pictures.dark_corners(mine.images):.0%} in training" if mine is not None else ""
    return [*lines, f"Black in all four corners, as round dermatoscopes leave it: {share:.0%} here{trained_with}."]


def _filled(config: DictConfig, evaluated: Evaluated) -> DictConfig:
    """The config with the run's image size and, where none is named, its geometry."""
    config, size = config.copy(), evaluated.config.data.image_size
    if config.image_size not in (None, size):
        raise ConfigError("data.image_size", f"must be the run's, {size}, but got {config.image_size}; leave it out")
    config.image_size = size
    config.geometry = config.geometry or evaluated.config.data.geometry
    check(resolve(config), "data")
    return config


def _load(data: DataModule, manifest: Manifest, size: int, geometry: Geometry) -> cache.Cache:
    return cache.load(data.source, manifest, size, geometry, Path(data.cache_dir), data.on_unreadable)
