"""The LightningDataModule: cached images, split, oversampled, in batches, augmented."""

import hashlib
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le
from pytorch_lightning import LightningDataModule
from torch import Tensor, nn

from src.core.errors import ConfigError, DataError
from src.data import cache, splits
from src.data.augment import symmetry
from src.data.decoding import Geometry
from src.data.source import SPLITS, Source, file_sizes, size_summary

log = logging.getLogger(__name__)
Rows = npt.NDArray[np.int64]
_SIZES_READ = 16  # files whose size is read for the run record
CPU, DEVICE_SHARE = torch.device("cpu"), 0.05  # of a GPU's memory, for the pixels of a run
Cached = Callable[[Rows, bool], dict[str, Tensor]]  # rows, in training? -> entries of a batch


def oversampled(
    labels: npt.ArrayLike, ratio: float | None, random: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Positions of the training images that an epoch visits, sorted: all once, rare classes more.

    Every class with fewer than `ratio` times the images of the largest class is repeated up to
    that number: for two classes, 0.5 makes the malignant images a third of all (Sun & Sun 2023,
    section 3.3). All images of a class are repeated equally often; a remainder is drawn. See Buda,
    Maki & Mazurowski, Neural Networks 106, 2018, who prefer oversampling to other simple remedies.

    Args:
        labels: Labels of the training images, (N,).
        ratio: Smallest size of a class relative to the largest, in (0, 1]; None: no oversampling.
        random: Draws the remainder.

    Returns:
        (M,) with M >= N.

    Raises:
        ConfigError: The ratio is not in (0, 1].
    """
    labels = np.asarray(labels, dtype=np.int64)
    if ratio is None:
        return np.arange(len(labels))
    if not 0 < ratio <= 1:
        raise ConfigError("oversample", f"must be above 0 and at most 1, or null, but got {ratio}")
    counts = np.bincount(labels)
    target = round(ratio * int(counts.max(initial=0)))
    repeats = np.ones(len(labels), dtype=np.int64)
    for label in np.flatnonzero((counts > 0) & (counts < target)):
        members = np.flatnonzero(labels == label)
        repeats[members], remainder = divmod(target, len(members))
        repeats[random.choice(members, remainder, replace=False)] += 1
    return np.repeat(np.arange(len(labels)), repeats)


def with_shares(
    positions: npt.NDArray[np.int64],
    sources: npt.ArrayLike,
    shares: Mapping[str, float] | None,
    random: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """Repeat or omit positions so that each source has its share; their number stays the same.

    All positions of a source come equally often; the rest is drawn without replacement.

    Args:
        positions: Positions of training images, (N,).
        sources: Name of the source of each training image.
        shares: Source -> share, in (0, 1]; their sum is 1. None: nothing is changed.
        random: Draws the remainders.

    Raises:
        ConfigError: The data are of one source, or the shares are not of exactly these sources,
            not above 0 or do not sum to 1.
    """
    if not shares:
        return positions
    if not len(np.asarray(sources)):
        raise ConfigError("shares", "needs several sources: data=joined")
    of_positions = np.asarray(sources)[positions]
    present = sorted(set(of_positions.tolist()))
    if sorted(shares) != present or abs(sum(shares.values()) - 1) > 1e-6:
        listed = ", ".join(present)
        problem = f"must name the sources of training ({listed}) with a sum of 1, but got "
        raise ConfigError("shares", problem + str(dict(shares)))
    if min(shares.values()) <= 0:
        raise ConfigError("shares", f"must be above 0, but got {dict(shares)}")
    parts = []
    for name, share in shares.items():
        members = positions[of_positions == name]
        repeats, remainder = divmod(round(share * len(positions)), len(members))
        parts += [np.repeat(members, repeats), random.choice(members, remainder, replace=False)]
    return np.concatenate(parts)


@dataclass(eq=False)
class EpochBatches:
    """The batches of an epoch, drawn from seed and epoch number; no workers are needed.

    They are row numbers, or what `read` makes of them.

    In distributed training each rank takes every world-size-th batch; all ranks take the same
    number of batches.

    With `train`, rows are shuffled and oversampled, and a short last batch is omitted (BatchNorm
    fails on a batch of one); without it, every row comes one time, in order.
    """

    rows: np.ndarray  # row numbers in the cache
    labels: np.ndarray  # of these rows
    batch_size: int
    train: bool = False
    oversample: float | None = None  # see `oversampled`
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    sources: npt.ArrayLike = ()  # of these rows, and shares: see `with_shares`
    shares: Mapping[str, float] | None = None
    at_once: int = 1  # batches that are joined to one, on one rank
    read: Callable[[np.ndarray], Any] | None = None
    epoch: int = 0
    batch_sampler = None  # Lightning asks for it

    def __post_init__(self) -> None:
        self._size = len(self.order())  # of an epoch of all ranks
        self.sampler = self  # which Lightning tells the number of the epoch

    def set_epoch(self, epoch: int) -> None:
        """Lightning's hook."""
        self.epoch = epoch

    @property
    def steps(self) -> int:
        """Batches of an epoch of this rank."""
        full, remainder = divmod(self._size, self.batch_size)
        short = remainder > 0 and not (self.train and full)
        return (full + short) // self.world_size

    def __len__(self) -> int:
        return math.ceil(self.steps / self.at_once)

    def __iter__(self) -> Iterator[Any]:
        order = self.order()[: self.steps * self.world_size * self.batch_size]
        size = self.batch_size * self.at_once
        for number in range(len(self)):
            start = (number * self.world_size + self.rank) * size
            rows = order[start : start + size]
            yield rows if self.read is None else self.read(rows)

    def order(self) -> np.ndarray:
        """Row numbers of this epoch, of all ranks."""
        if not self.train:
            return self.rows
        random = np.random.default_rng((self.seed, self.epoch))
        positions = oversampled(self.labels, self.oversample, random)
        positions = with_shares(positions, self.sources, self.shares, random)
        random.shuffle(positions)
        return self.rows[positions]


@dataclass(eq=False, repr=False)
class DataModule(LightningDataModule):
    """A source, cached, split and sampled by the config.

    The framework passes `augment` and `seed`; all other arguments come from conf/data.

    Attributes:
        name: Name of the data set, for the run record.
        image_size: Side of the square input of the network, px.
        geometry: How an image becomes a square, see `src.data.cache.square`.
        split: "grouped" keeps a lesion or patient on one side; "image" is the papers' protocol and
            leaks; "official" is the owners' split.
        fractions: Parts of train, val and test; their sum is 1. Val or test may be 0.
        split_seed: Of the split, separate from the seed of the run: repeats share one split.
        oversample: Smallest size of a class relative to the largest in training (0.5: half of it),
            or None.
        shares: Share of each source of joined data in training, see `with_shares`.
        on_unreadable: See `src.data.cache.load`.
        batch_size: Images per batch (per process).
        duplicates: Identical pictures under other names: "group" keeps them on one side of a
            grouped split, "warn" only counts them, "ignore" does nothing.
        siblings: Leakage experiment with one test image per lesion, see
            `src.data.splits.arrange_siblings`: its other images are unused ("out") or in training
            ("in"). None: all are tested. Grouped splits only.
        feature_views: Whether features of a frozen net are cached: "auto": where exact; 0: no; a
            number: also so many random views, an approximation. See `src.training.features`.
        augment: Module for float images (B, 3, S, S) in [0, 1]; applied to training batches on the
            training device.
        seed: Of shuffling and oversampling.
        cached: If set, it adds entries to batches: `features` of the images, in place of `image`;
            or `teacher_logits` (B, T, K) and `view`, the number of the symmetry that they are of.
        at_once: Batches of cached features that Lightning gets as one, see
            `src.training.classifier.Classifier.training_step`.
        device: On which batches are used: the pixels are there, where they fit.
    """

    name: str = field()  # without the default of Lightning's attribute
    source: Source
    image_size: Annotated[int, Ge(4), Le(16384)]
    geometry: Geometry
    split: splits.SplitMode
    fractions: list[float]
    split_seed: Annotated[int, Ge(0)]
    oversample: Annotated[float, Gt(0), Le(1)] | None
    on_unreadable: cache.OnUnreadable
    batch_size: Annotated[int, Ge(1)]
    cache_dir: str
    shares: Mapping[str, float] | None = None
    duplicates: Literal["group", "warn", "ignore"] = "group"
    siblings: splits.Siblings | None = None
    feature_views: Literal["auto"] | Annotated[int, Ge(0)] = "auto"
    augment: nn.Module | None = None
    seed: int = 0

    config_only = ("root",)  # the source reads it through interpolation

    def __post_init__(self) -> None:
        super().__init__()
        splits.check_fractions(self.fractions, needs_train=not self.source.only_train)
        self.split_mode = splits.SIBLING_LABELS[self.siblings] if self.siblings else self.split
        self.cached: Cached | None = None
        self.at_once = 1
        self.device = CPU
        self._images: Tensor | None = None
        self._ready = False

    def prepare(self, pictures: bool = True) -> "DataModule":
        """Read the list, build or open the cache, split. Later calls do nothing.

        Without `pictures`, for an estimate, one of them stands for all (`src.data.cache.stand_in`).

        Raises:
            ConfigError: The split is impossible with these data.
            DataError: The data are invalid; the message names the file and the way out.
        """
        if self._ready:
            return self
        manifest = self.source.manifest()
        folder, seed = Path(self.cache_dir), self.split_seed
        images = self.source, manifest, self.image_size, self.geometry
        self.cache = (
            cache.load(*images, folder, self.on_unreadable) if pictures else cache.stand_in(*images)
        )
        self.classes, self.grouped_by = manifest.classes, manifest.grouped_by
        self.frame: pd.DataFrame = self.cache.frame
        if self.duplicates == "group":
            joined = splits.join_groups(self.frame["group"], self.cache.identical)
            self.frame = self.frame.assign(group=joined)
        self.labels: np.ndarray = self.frame["label"].to_numpy(dtype=np.int64, copy=True)
        arguments = self.split, self.fractions, seed, self.classes
        self.side = splits.load(self.frame, *arguments, folder)
        if self.siblings is not None:
            if self.split != "grouped":
                problem = "needs data.split=grouped, which it changes, but got data.split="
                raise ConfigError("siblings", f"{problem}{self.split}")
            if self.grouped_by == "image":
                problem = "must be null: these data do not say which images show one lesion"
                raise ConfigError("siblings", problem)
            self._has_sibling = splits.has_sibling(self.frame, self.side)
            self.side = splits.arrange_siblings(
                self.frame, self.side, self.siblings, seed, self.classes
            )
        self._rows = {name: np.flatnonzero((self.side == name).to_numpy()) for name in SPLITS}
        if not self.has("train"):
            raise DataError(f"{self.name}: there is no image to train on")
        self.source_names: tuple[str, ...] = ()  # of joined data
        self._sources: np.ndarray | None = None
        if "source_row" in self.frame:
            self._sources, names = pd.factorize(self.frame["source"], sort=True)
            self.source_names = tuple(names)
        self._batches("train", train=True)  # checks the shares
        if pictures:
            self._count_copies()
        self._ready = True
        return self

    def pixels(self, image_size: int) -> cache.ImageCache:
        """The same images as squares of another side (px), for a network that sees them so."""
        if image_size == self.image_size:
            return self.cache
        images = self.source, self.source.manifest(), image_size, self.geometry
        return cache.load(*images, Path(self.cache_dir), self.on_unreadable)

    def _count_copies(self) -> None:
        """Count identical and similar pictures, and those that leak; say so."""
        rows, names = np.arange(len(self.frame)), self.frame["image_id"]
        self._copies: dict[str, int] = {}
        if self.duplicates != "ignore":
            identical, similar = self.cache.identical, self.cache.similar
            other_group = self.frame["group"].to_numpy() != self.frame["group"].to_numpy()[similar]
            conflicts = int((self.labels != self.labels[identical]).sum())
            copied = pd.Series(names.to_numpy()[identical], self.frame.index)
            self._copies = {
                "data/duplicates": int((identical != rows).sum()),
                "data/duplicates_leaking": splits.leaking(copied, self.side),
                "data/near_duplicates": int((other_group & (identical == rows)).sum()),
            }
            number, leaking, near = self._copies.values()
            if number:
                effect = "share a group" if self.duplicates == "group" else "are kept as they are"
                log.warning(
                    "%s: %d pictures are identical to others and %s (data.duplicates=%s); %d of "
                    "them are in val or test and on another side too; %d have another label",
                    *(self.name, number, effect, self.duplicates, leaking, conflicts),
                )
            if near:
                log.warning("%s: %d pictures look like one of another group", self.name, near)
        shared = splits.leaking(self.frame["group"], self.side)
        if shared:
            held_out = sum(len(self._rows[side]) for side in ("val", "test"))
            text = "%s: %d of %d pictures of val and test have one of their group on another side"
            log.warning(text, self.name, shared, held_out)
        self._copies["data/images/leaking"] = shared

    @property
    def outputs(self) -> int:
        """Logits of a network for these data: one for two classes, else one per class."""
        return 1 if len(self.classes) == 2 else len(self.classes)

    def counts(self, split: str) -> dict[str, int]:
        """Images of each class in a split, before oversampling."""
        numbers = np.bincount(self.labels[self._rows[split]], minlength=len(self.classes))
        return dict(zip(self.classes, numbers.tolist(), strict=True))

    @property
    def seen_counts(self) -> list[int]:
        """Images of each class in a training epoch; an oversampled image counts repeatedly."""
        labels = self.labels[self._batches("train", train=True).order()]
        return np.bincount(labels, minlength=len(self.classes)).tolist()

    @property
    def source_counts(self) -> list[list[int]]:
        """Images of each class in a training epoch for each source of joined data.

        Rows are in the order of `source_names`, columns in that of the classes; empty otherwise.
        """
        rows = self._batches("train", train=True).order()
        counts = np.zeros((len(self.source_names), len(self.classes)), dtype=np.int64)
        if self._sources is not None:
            np.add.at(counts, (self._sources[rows], self.labels[rows]), 1)
        return counts.tolist()

    @property
    def split_fingerprint(self) -> str:
        """Equal for two runs whose images are on the same sides with the same labels."""
        sides = self.frame.assign(side=self.side)[["image_id", "label", "side"]]
        text = sides.sort_values("image_id").to_csv(index=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def share(self) -> str:
        """The used part of the public set, the stored size, classes whose share differs by 1%.

        The size is of a few files, as they are stored; absent if images are no picture files.
        """
        used = pd.Series(np.bincount(self.labels, minlength=len(self.classes)), self.classes)
        public = pd.Series(self.source.published).reindex(used.index)
        sizes = size_summary(file_sizes(self.frame["path"], _SIZES_READ))
        looked_at, size = min(_SIZES_READ, len(self.frame)), ""
        if sizes.get("read") == looked_at:
            size = f", {sizes['most']} px"
            if sizes["different"] > 1:
                size += f" in {sizes['share'] * looked_at:.0f} of {looked_at} looked at"
        if public.isna().any():
            return f"{used.sum():,} images{size}"
        share = f"{used.sum() / public.sum():.1%}"
        text = f"{used.sum():,} of {public.sum():,.0f} images ({share}){size}"
        now, before = used / used.sum(), public / public.sum()
        changed = now.index[(now - before).abs() >= 0.01]
        return ", ".join(
            [text, *(f"{c} {now[c]:.1%} (published {before[c]:.1%})" for c in changed)]
        )

    def rows(self, split: str) -> np.ndarray:
        """Row numbers of a split in the cache."""
        return self._rows[split]

    def has(self, split: str) -> bool:
        """Whether a split has an image."""
        return len(self._rows[split]) > 0

    def record(self) -> dict[str, Any]:
        """Metrics of the data for the run record."""
        values = {f"data/images/{name}": len(self._rows[name]) for name in SPLITS}
        if unused := int((self.side == splits.UNUSED).sum()):
            values["data/images/unused"] = unused
        if self.siblings is not None:
            siblings = self._has_sibling.iloc[self._rows["test"]]
            values["data/images/test_with_sibling"] = int(siblings.sum())
        values["data/unreadable"] = len(self.cache.unreadable)
        leaking = splits.groups_on_two_sides(self.frame, self.side)
        return {**values, **self._copies, "data/groups_on_two_sides": leaking}

    def predictions(self, rows: np.ndarray, probability: np.ndarray) -> pd.DataFrame:
        """One row per image: id, group, true label and the probability (N, K) of each class.

        With `siblings`, test images have the column `splits.HAS_SIBLING` too.
        """
        frame = self.frame.iloc[rows]
        table = frame[["image_id", "group"]].reset_index(drop=True)
        table["label"] = [self.classes[label] for label in frame["label"]]
        if self.siblings is not None and (self.side.iloc[rows] == "test").all():
            table[splits.HAS_SIBLING] = self._has_sibling.iloc[rows].to_numpy()
        for number, name in enumerate(self.classes):
            table[f"p/{name}"] = probability[:, number]
        return table

    def loader(
        self, split: str, train: bool = False, rank: int = 0, world_size: int = 1
    ) -> EpochBatches:
        """Batches of a split: shuffled, oversampled and full for training, else all in order.

        They are `image` (uint8, (B, 3, S, S), channels last) or what `cached` has in its place,
        `label` and `row` (int64), and of joined data `source` (int64). Several batches at once have
        no images: the training step reads the entries of each.
        """
        # the images are on the training device if they take little of its memory
        device = self.device if self.device.type == "cuda" else CPU
        if device.type == "cuda":
            memory = torch.cuda.get_device_properties(device).total_memory
            device = device if self.cache.images.nbytes <= DEVICE_SHARE * memory else CPU
        if self._images is None or self._images.device.type != device.type:
            with warnings.catch_warnings(action="ignore"):  # the mapped file cannot be written to
                self._images = torch.from_numpy(self.cache.images).to(device)
        batches = self._batches(split, train, rank, world_size)
        batches.read = partial(self._read, self._images, train)
        return batches

    def _read(self, pixels: Tensor, train: bool, rows: np.ndarray) -> dict[str, Tensor]:
        """One gather per batch, where the pixels are."""
        batch = {"label": torch.from_numpy(self.labels[rows]), "row": torch.from_numpy(rows)}
        if self._sources is not None:
            batch["source"] = torch.from_numpy(self._sources[rows])
        if train and self.at_once > 1:
            return batch
        cached = self.cached(rows, train) if self.cached else {}
        if "features" not in cached:
            index = batch["row"].to(pixels.device)
            cached["image"] = pixels.index_select(0, index).permute(0, 3, 1, 2)
            if self.device.type == "cuda" and pixels.device.type == "cpu":
                cached["image"] = cached["image"].pin_memory()  # which a GPU reads faster
        return cached | batch

    def _batches(self, split: str, train: bool, rank: int = 0, world_size: int = 1) -> EpochBatches:
        rows = self._rows[split]
        batches = (rows, self.labels[rows], self.batch_size, train, self.oversample, self.seed)
        sources = self.frame["source"].to_numpy()[rows] if self.source_names else ()
        return EpochBatches(*batches, rank, world_size, sources, self.shares, self.at_once)

    def train_dataloader(self) -> EpochBatches:
        """Lightning's hook: training batches of this rank."""
        if self.trainer is None:
            return self.loader("train", train=True)
        return self.loader("train", True, self.trainer.global_rank, self.trainer.world_size)

    def val_dataloader(self) -> EpochBatches | list[Any]:
        """Lightning's hook: all validation batches on every rank, so that metrics are exact."""
        return self.loader("val") if self.has("val") else []

    def test_dataloader(self) -> EpochBatches:
        """Lightning's hook: test batches."""
        return self.loader("test")

    def on_after_batch_transfer(
        self, batch: dict[str, Tensor], dataloader_idx: int
    ) -> dict[str, Tensor]:
        """Augment training batches on the training device."""
        augment: Any = self.augment
        if "view" in batch:
            batch["image"] = symmetry(batch["image"].float().div_(255), batch["view"])
        elif "image" in batch and augment and getattr(self.trainer, "training", False):
            batch["image"] = augment(batch["image"].float().div_(255))
            if getattr(augment, "mixes", False):
                shares = F.one_hot(batch["label"], len(self.classes)).float()
                batch["image"], batch["label"] = augment.mix(batch["image"], shares)
        return batch
