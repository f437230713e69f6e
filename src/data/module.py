"""The data of a run: cached pictures, split, sampled and augmented, given to Lightning batch by batch."""
from annotated_types import Ge
from annotated_types import Gt
from annotated_types import Le
from collections.abc import Iterator
from pathlib import Path
from pytorch_lightning import LightningDataModule
from src.core.errors import ConfigError
from src.core.errors import DataError
from src.data import cache
from src.data import sampling
from src.data import splits
from src.data import splits as leakage
from src.data.source import SPLITS
from src.data.source import Source
from torch import Tensor
from torch import nn
from typing import Annotated
from typing import Any
from typing import Literal
import hashlib
import logging
import numpy as np
import pandas as pd
import torch


log = logging.getLogger(__name__)


class EpochOrder:
    """The rows that one epoch visits, in order: sampled anew every epoch, the same for the same seed.

    Args:
        rows: Row numbers in the cache.
        labels: Label of each of `rows`, for oversampling.
        shuffle: Whether order and oversampling are drawn; otherwise every row once, as given.
        oversample: Wanted size of every minority class as part of the majority's, or None.
        seed: Seed of the draws.
    """

    def __init__(
        self, rows: np.ndarray, labels: np.ndarray, shuffle: bool, oversample: float | None, seed: int
    ) -> None:
        self._rows = rows
        self._labels = labels
        self._shuffle = shuffle
        self._oversample = oversample
        self._seed = seed
        self._epoch = 0
        self.size = len(self._draw()) if shuffle else len(rows)

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this at the start of each epoch."""
        self._epoch = epoch

    def rows(self) -> np.ndarray:
        """Row numbers of this epoch, shape (size,)."""
        return self._rows[self._draw()] if self._shuffle else self._rows

    def _draw(self) -> np.ndarray:
        random = np.random.default_rng((self._seed, self._epoch))
        indices = sampling.epoch_indices(self._labels, self._oversample, random)
        random.shuffle(indices)
        return indices


class BatchLoader:
    """Batches straight from the memory-mapped cache: one gather a batch, no worker processes.

    Yields dicts of `image` (uint8, (B, 3, S, S), channels last in memory), `label` (int64, (B,))
    and `row` (int64, (B,)). Under distributed training each rank takes every world-size-th batch;
    all ranks take the same number.

    Args:
        images: Cache, uint8 (N, S, S, 3).
        labels: Labels of the whole cache, (N,).
        order: Which rows an epoch visits.
        batch_size: Images a batch.
        drop_last: Leave a short last batch out (in training: BatchNorm cannot take a batch of one).
        pin: Copy batches to page-locked memory, for faster transfer to a GPU.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        order: EpochOrder,
        batch_size: int,
        drop_last: bool = False,
        pin: bool = False,
    ) -> None:
        self._images = images
        self._labels = labels
        self.sampler = order  # the name under which Lightning looks for set_epoch
        self.batch_sampler = None  # Lightning asks for it wherever there is a sampler
        self.batch_size = batch_size
        self._drop_last = drop_last and order.size >= batch_size
        self._pin = pin
        self.rank, self.world_size = 0, 1

    def shard(self, rank: int, world_size: int) -> "BatchLoader":
        """Give only the batches of this rank."""
        self.rank, self.world_size = rank, world_size
        return self

    def __len__(self) -> int:
        whole, rest = divmod(self.sampler.size, self.batch_size)
        batches = whole if self._drop_last or rest == 0 else whole + 1
        return batches // self.world_size if self.world_size > 1 else batches

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        rows = self.sampler.rows()
        for number in range(len(self)):
            start = (number * self.world_size + self.rank) * self.batch_size
            yield self._batch(rows[start : start + self.batch_size])

    def _batch(self, rows: np.ndarray) -> dict[str, Tensor]:
        image = torch.from_numpy(self._images[rows]).permute(0, 3, 1, 2)
        batch = {
            "image": image,
            "label": torch.from_numpy(self._labels[rows]),
            "row": torch.from_numpy(rows),
        }
        return {key: value.pin_memory() for key, value in batch.items()} if self._pin else batch


class DataModule(LightningDataModule):
    """A source, cached, split and sampled as the config says.

    Args:
        name: Name of the data set, for the record.
        source: Where the pictures come from.
        image_size: Side of the square that the network sees, px.
        geometry: How a frame becomes a square.
        split: "grouped" keeps a lesion or patient on one side; "image" is the papers' protocol and
            leaks; "official" is the owners' own.
        fractions: Parts of train, val and test; they add up to 1. Val or test may be 0.
        split_seed: Seed of the split, apart from the run's seed so that repeats share one split.
        oversample: Wanted size of every minority class as part of the majority's (0.5: half), or
            None. Train only.
        on_unreadable: What to do about pictures that cannot be read.
        batch_size: Images a batch (per process).
        cache_dir: Folder of the decoded pictures.
        siblings: What becomes of the other photographs of test lesions, of which one is tested, see
            `src.data.splits`: "out" of use, "in" train (leaks: this is measured), or None: they are
            tested too. Grouped splits only.
        augment: Module for float images (B, 3, S, S) in [0, 1]; applied to training batches on the
            training device.
        seed: Seed of shuffling and oversampling.
    """

    config_only = ("root",)  # read by the source, through interpolation

    def __init__(
        self,
        name: str,
        source: Source,
        image_size: Annotated[int, Ge(4)],
        geometry: Literal["squash", "center_crop", "pad"],
        split: Literal["grouped", "image", "official"],
        fractions: list[float],
        split_seed: Annotated[int, Ge(0)],
        oversample: Annotated[float, Gt(0), Le(1)] | None,
        on_unreadable: Literal["error", "skip"],
        batch_size: Annotated[int, Ge(1)],
        cache_dir: str,
        siblings: leakage.Siblings | None = None,
        augment: nn.Module | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if len(fractions) != len(SPLITS):
            raise ConfigError("fractions", f"must be three numbers, of train, val and test, but got {fractions}")
        self.name = name
        self.source = source
        self.image_size = image_size
        self.geometry = geometry
        self._split = split
        self.split_mode = leakage.LABELS[siblings] if siblings else split
        self.fractions = (fractions[0], fractions[1], fractions[2])
        self.split_seed = split_seed
        self.oversample = oversample
        self.on_unreadable = on_unreadable
        self.batch_size = batch_size
        self.cache_dir = Path(cache_dir)
        self.siblings = siblings
        self.augment = augment
        self.seed = seed
        self._ready = False

    def prepare(self) -> "DataModule":
        """Read the list, build or open the cache, split. Fills the attributes that a net and a loss are built from.

        Raises:
            DataError: The data are not as they should be; the message names the file and the way
                out.
        """
        if self._ready:
            return self
        manifest = self.source.manifest()
        self.cache = cache.load(
            self.source, manifest, self.image_size, self.geometry, self.cache_dir, self.on_unreadable
        )
        self.classes = manifest.classes
        self.positive = manifest.positive
        self.grouped_by = manifest.grouped_by
        self.frame: pd.DataFrame = self.cache.frame
        self.labels: np.ndarray = self.frame["label"].to_numpy(dtype=np.int64, copy=True)
        self.side = self._sides()
        self._rows = {name: np.flatnonzero((self.side == name).to_numpy()) for name in SPLITS}
        if len(self._rows["train"]) == 0:
            raise DataError(f"{self.name}: no image is left to train on")
        self._ready = True
        return self

    def _sides(self) -> pd.Series:
        sides = splits.load(self.frame, self._split, self.fractions, self.split_seed, self.cache_dir, self.classes)
        if self.siblings is None:
            return sides
        leakage.check(self._split, self.grouped_by)
        self._has_sibling = leakage.has_sibling(self.frame, sides)
        return leakage.arrange(self.frame, sides, self.siblings, self.split_seed, self.classes)

    @property
    def outputs(self) -> int:
        """Logits of a net for these data: one for two classes, else one a class."""
        return 1 if len(self.classes) == 2 else len(self.classes)

    @property
    def class_counts(self) -> list[int]:
        """Training images of each class, before oversampling."""
        return [int(count) for count in sampling.class_counts(self.labels[self._rows["train"]], len(self.classes))]

    @property
    def seen_counts(self) -> list[int]:
        """Images of each class that an epoch of training visits, oversampled ones as often as they are."""
        visited = self.labels[self._rows["train"]]
        indices = sampling.epoch_indices(visited, self.oversample, np.random.default_rng(self.seed))
        return [int(count) for count in sampling.class_counts(visited[indices], len(self.classes))]

    @property
    def split_fingerprint(self) -> str:
        """The same for two runs whose images stand on the same sides with the same labels, at whatever size."""
        sides = self.frame.assign(side=self.side)[["image_id", "label", "side"]].sort_values("image_id")
        return hashlib.sha256(sides.to_csv(index=False).encode()).hexdigest()[:16]

    def rows(self, split: str) -> np.ndarray:
        """Row numbers of a split in the cache."""
        return self._rows[split]

    def has(self, split: str) -> bool:
        """Whether a split has any image."""
        return len(self._rows[split]) > 0

    def record(self) -> dict[str, Any]:
        """What the run record says about the data."""
        counts = {f"data/images/{name}": len(self._rows[name]) for name in SPLITS}
        if self.siblings is not None:
            counts["data/images/unused"] = int((self.side == leakage.UNUSED).sum())
            counts["data/images/test_with_sibling"] = int(self._has_sibling.iloc[self._rows["test"]].sum())
        return {
            **counts,
            "data/unreadable": len(self.cache.unreadable),
            "data/groups_on_two_sides": splits.groups_on_two_sides(self.frame, self.side),
        }

    def predictions(self, rows: np.ndarray, probability: np.ndarray) -> pd.DataFrame:
        """One line an image: its id, group, true label and the probability of each class.

        With `siblings`, of test images also whether their lesion has another photograph
        (`leakage.HAS_SIBLING`).

        Args:
            rows: Row numbers in the cache, (N,).
            probability: (N, K).
        """
        frame = self.frame.iloc[rows]
        table = pd.DataFrame({"image_id": frame["image_id"].to_numpy(), "group": frame["group"].to_numpy()})
        table["label"] = [self.classes[label] for label in frame["label"]]
        if self.siblings is not None and (self.side.iloc[rows] == "test").all():
            table[leakage.HAS_SIBLING] = self._has_sibling.iloc[rows].to_numpy()
        for number, name in enumerate(self.classes):
            table[f"p/{name}"] = probability[:, number]
        return table

    def loader(self, split: str, train: bool = False) -> BatchLoader:
        """Batches of a split: shuffled, oversampled and full ones for training, in order and complete otherwise."""
        rows = self._rows[split]
        order = EpochOrder(rows, self.labels[rows], train, self.oversample if train else None, self.seed)
        return BatchLoader(
            self.cache.images,
            self.labels,
            order,
            self.batch_size,
            drop_last=train,
            pin=torch.cuda.is_available(),
        )

    def train_dataloader(self) -> BatchLoader:
        """Lightning's hook: training batches of this rank."""
        loader = self.loader("train", train=True)
        return loader.shard(self.trainer.global_rank, self.trainer.world_size) if self.trainer else loader

    def val_dataloader(self) -> BatchLoader | list[BatchLoader]:
        """Lightning's hook: validation batches, whole on every rank, so that the metrics are exact."""
        return self.loader("val") if self.has("val") else []

    def test_dataloader(self) -> BatchLoader:
        """Lightning's hook: test batches."""
        return self.loader("test")

    def on_after_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> dict[str, Tensor]:
        """Augmentation while training, on the device that trains."""
        if self.augment is not None and self.trainer is not None and self.trainer.training:
            batch["image"] = self.augment(batch["image"].float().div_(255))
        return batch
