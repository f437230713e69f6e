from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from src.data.module import BatchLoader
from src.data.module import DataModule
from src.data.module import EpochOrder
from src.data.source import Manifest
from src.data.source import Source
from src.core.errors import ConfigError


class Squares(Source):
    """One-coloured squares: the red channel is the image's number."""

    name = "squares"

    def __init__(self, counts: tuple[int, ...] = (60, 20)) -> None:
        self.counts = counts

    def manifest(self) -> Manifest:
        labels = np.repeat(np.arange(len(self.counts)), self.counts)
        ids = [f"s{number}" for number in range(len(labels))]
        groups = [f"g{number // 2}" for number in range(len(labels))]
        frame = pd.DataFrame({"image_id": ids, "label": labels, "group": groups, "path": ""})
        return Manifest("squares", tuple("abcdefg"[: len(self.counts)]), frame, "lesion")

    def picture(self, manifest: Manifest, row: int) -> Image.Image:
        return Image.new("RGB", (8, 8), (row, 0, 0))

    def stamps(self, manifest: Manifest) -> list[str]:
        return [str(row) for row in range(len(manifest.frame))]


def module(tmp_path: Path, **changes: object) -> DataModule:
    settings: dict[str, object] = {
        "name": "squares",
        "source": Squares(),
        "image_size": 8,
        "geometry": "squash",
        "split": "grouped",
        "fractions": [0.6, 0.2, 0.2],
        "split_seed": 0,
        "oversample": None,
        "on_unreadable": "error",
        "batch_size": 16,
        "cache_dir": str(tmp_path),
        **changes,
    }
    return DataModule(**settings).prepare()  # type: ignore[arg-type]


def rows_of(loader: BatchLoader) -> list[int]:
    return [int(row) for batch in loader for row in batch["row"]]


def test_batches_are_the_cached_pictures_with_their_labels(tmp_path: Path) -> None:
    data = module(tmp_path)
    for batch in data.loader("train", train=True):
        assert batch["image"].dtype == torch.uint8
        assert batch["image"].shape == (16, 3, 8, 8)
        assert batch["image"].is_contiguous(memory_format=torch.channels_last)
        assert batch["image"][:, 0, 0, 0].tolist() == batch["row"].tolist()
        assert batch["label"].tolist() == [int(row >= 60) for row in batch["row"]]


def test_splits_share_nothing_and_leave_nothing(tmp_path: Path) -> None:
    data = module(tmp_path)
    rows = {split: rows_of(data.loader(split)) for split in ("train", "val", "test")}
    assert sorted(rows["train"] + rows["val"] + rows["test"]) == list(range(80))
    assert data.class_counts == [36, 12]
    assert data.record()["data/groups_on_two_sides"] == 0
    assert data.outputs == 1


def test_training_epochs_differ_and_repeat_with_the_seed(tmp_path: Path) -> None:
    first, second = module(tmp_path).loader("train", train=True), module(tmp_path).loader("train", train=True)
    epochs = []
    for epoch in (0, 1):
        for loader in (first, second):
            loader.sampler.set_epoch(epoch)
        assert rows_of(first) == rows_of(second)
        epochs.append(rows_of(first))
    assert epochs[0] != epochs[1]
    other = module(tmp_path, seed=1).loader("train", train=True)
    assert rows_of(other) != epochs[0]


def test_oversampling_is_for_training_only(tmp_path: Path) -> None:
    data = module(tmp_path, oversample=0.5, batch_size=1)
    drawn = np.array(rows_of(data.loader("train", train=True)))
    # half of the majority: a third of the data
    assert (np.sum(drawn < 60), np.sum(drawn >= 60)) == (36, 18)
    assert len(rows_of(data.loader("val"))) == 16
    assert data.class_counts == [36, 12]


def test_seen_counts_are_those_of_an_epoch(tmp_path: Path) -> None:
    plain, oversampled = module(tmp_path).prepare(), module(tmp_path, oversample=0.5, batch_size=1).prepare()
    assert plain.seen_counts == plain.class_counts
    seen = np.bincount(oversampled.labels[rows_of(oversampled.loader("train", train=True))])
    assert oversampled.seen_counts == list(seen)
    assert min(seen) == round(0.5 * max(plain.class_counts))


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_an_epoch_without_overlap(world: int) -> None:
    images = np.zeros((50, 4, 4, 3), dtype=np.uint8)
    labels = np.zeros(50, dtype=np.int64)
    order = EpochOrder(np.arange(50), labels, shuffle=True, oversample=None, seed=0)
    shards = [BatchLoader(images, labels, order, 4, drop_last=True).shard(rank, world) for rank in range(world)]
    assert len({len(shard) for shard in shards}) == 1
    drawn = [row for shard in shards for row in rows_of(shard)]
    assert len(drawn) == len(set(drawn)) == 4 * world * len(shards[0])
    assert 50 - len(drawn) < 4 * world


def test_the_last_short_batch_is_kept_in_evaluation_only() -> None:
    images = np.zeros((10, 4, 4, 3), dtype=np.uint8)
    labels = np.zeros(10, dtype=np.int64)
    order = EpochOrder(np.arange(10), labels, shuffle=False, oversample=None, seed=0)
    assert [len(batch["row"]) for batch in BatchLoader(images, labels, order, 4)] == [4, 4, 2]
    assert [len(batch["row"]) for batch in BatchLoader(images, labels, order, 4, drop_last=True)] == [4, 4]
    assert [len(batch["row"]) for batch in BatchLoader(images, labels, order, 64, drop_last=True)] == [10]


def test_augmentation_sees_floats_and_only_training_batches(tmp_path: Path) -> None:
    class Negative(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            assert images.dtype == torch.float32
            assert float(images.max()) <= 1
            return 1 - images

    class Training:
        def __init__(self, training: bool) -> None:
            self.training = training

    data = module(tmp_path, augment=Negative())
    batch = next(iter(data.loader("train")))
    red = batch["image"][0, 0, 0, 0].item()
    data.trainer = Training(False)  # type: ignore[assignment]
    assert data.on_after_batch_transfer(dict(batch), 0)["image"].dtype == torch.uint8
    data.trainer = Training(True)  # type: ignore[assignment]
    assert data.on_after_batch_transfer(dict(batch), 0)["image"][0, 0, 0, 0].item() == pytest.approx(1 - red / 255)


def test_fractions_must_be_three(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fractions: must be three numbers"):
        module(tmp_path, fractions=[0.8, 0.2])


@pytest.mark.parametrize(
    ("siblings", "label", "leaking"),
    [("out", "grouped, siblings of test left out", 0), ("in", "grouped, siblings of test in training", 8)],
)
def test_an_arm_says_what_it_is(tmp_path: Path, siblings: str, label: str, leaking: int) -> None:
    whole, data = module(tmp_path), module(tmp_path, siblings=siblings)
    assert data.split_mode == label
    assert data.class_counts == whole.class_counts == [36, 12]
    assert data.rows("val").tolist() == whole.rows("val").tolist()
    # 80 images, two of each group: of 16 to be tested, every second one is
    assert data.record() == {
        "data/images/train": 48,
        "data/images/val": 16,
        "data/images/test": 8,
        "data/images/unused": 8,
        "data/images/test_with_sibling": 8,
        "data/unreadable": 0,
        "data/groups_on_two_sides": leaking,
    }
    tested = data.predictions(data.rows("test"), np.full((8, 2), 0.5))
    assert tested["has_sibling"].all()
    assert "has_sibling" not in data.predictions(data.rows("val"), np.full((16, 2), 0.5))
    assert "has_sibling" not in whole.predictions(whole.rows("test"), np.full((16, 2), 0.5))


def test_the_arms_have_fingerprints_of_their_own(tmp_path: Path) -> None:
    assert len({module(tmp_path, siblings=arm).split_fingerprint for arm in (None, "out", "in")}) == 3
