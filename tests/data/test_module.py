from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_data import Made, noise, prepared
from PIL import Image
from torch import nn

from src.core.errors import ConfigError
from src.data.augment import Augment
from src.data.module import EpochBatches, oversampled


def squares(grouped_by: str = "lesion") -> Made:
    """Squares of one colour: the red channel is the number of the image; two of a group."""

    def paint(row: int) -> np.ndarray:
        return np.full((8, 8, 3), (row, 0, 0), dtype=np.uint8)

    labels = np.repeat([0, 1], [60, 20])
    return Made(paint, labels, np.arange(80) // 2, "square", grouped_by=grouped_by)


def copies() -> Made:
    """Pictures 40 and 41 are copies of 0, in other groups; 79 is one of another class."""

    def paint(row: int) -> np.ndarray:
        return noise(8, 0 if row in (40, 41, 79) else row)

    return Made(paint, np.repeat([0, 1], [60, 20]), np.arange(80) // 2, "copy")


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory):
    """Build a prepared module with changed settings."""
    folder = tmp_path_factory.mktemp("cache")
    return lambda **changes: prepared(changes.pop("source", squares()), folder, **changes)


def test_identical_pictures_share_a_group(module, caplog):
    data = module(source=copies())
    joined = data.frame["group"]
    assert set(joined[[0, 1, 40, 41, 78, 79]]) == {"g000"}  # with the others of their groups
    assert joined.nunique() == 40 - 2
    assert data.side[[0, 1, 40, 41, 78, 79]].nunique() == 1
    assert data.record()["data/duplicates"] == 3
    assert data.record()["data/duplicates_leaking"] == data.record()["data/images/leaking"] == 0
    assert "3 pictures are identical to others and share a group" in caplog.text
    assert "1 have another label" in caplog.text


@pytest.mark.parametrize("duplicates", ["warn", "ignore"])
def test_identical_pictures_are_only_counted(module, caplog, duplicates):
    unchanged = squares().manifest().frame["group"]
    data = module(source=copies(), duplicates=duplicates, split_seed=1)
    pd.testing.assert_series_equal(data.frame["group"], unchanged)
    side = data.side[[0, 40, 41, 79]]
    held_out = int((side != "train").sum()) if side.nunique() > 1 else 0
    if duplicates == "warn":
        assert data.record()["data/duplicates_leaking"] == held_out
        assert "3 pictures are identical" in caplog.text
    else:
        assert "data/duplicates" not in data.record()
        assert "identical" not in caplog.text


def test_leaking_pictures_of_an_image_split_are_counted(module, caplog):
    data = module(split="image")
    frame = data.frame.assign(side=data.side)
    pairs = frame.groupby("group")["side"].agg(["first", "last"])
    leaking = sum(
        (pair != "train").sum() for _, pair in pairs[pairs["first"] != pairs["last"]].iterrows()
    )
    assert data.record()["data/images/leaking"] == leaking > 0
    assert f"{leaking} of 32 pictures of val and test" in caplog.text


def rows_of(loader) -> list[int]:
    return [int(row) for batch in loader for row in batch["row"]]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_batches_are_the_pixels_of_their_rows_on_the_training_device(module, device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    data = module(source=copies())
    data.device = torch.device(device)
    for split, train in (("train", True), ("val", False)):
        for batch in data.loader(split, train=train):
            rows = batch["row"].numpy()
            expected = torch.from_numpy(data.cache.images[rows]).permute(0, 3, 1, 2)
            assert batch["image"].device.type == device
            assert batch["image"].stride() == expected.stride()
            assert batch["image"].is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(batch["image"].cpu(), expected)
            assert torch.equal(batch["label"], torch.from_numpy(data.labels[rows]))
            assert batch["label"].tolist() == [int(row >= 60) for row in rows]
    for batch in module().loader("train", train=True):
        assert batch["image"].dtype == torch.uint8
        assert batch["image"].shape == (16, 3, 8, 8)
        assert batch["image"][:, 0, 0, 0].tolist() == batch["row"].tolist()


labels_lists = st.lists(st.integers(0, 4), min_size=1, max_size=80)


@given(labels=labels_lists, ratio=st.floats(0.01, 1), seed=st.integers(0, 2**31))
def test_oversampling_repeats_evenly_up_to_the_ratio(labels, ratio, seed):
    labels, random = np.asarray(labels), np.random.default_rng(seed)
    assert oversampled(labels, None, random).tolist() == list(range(len(labels)))
    visits = np.bincount(oversampled(labels, ratio, random), minlength=len(labels))
    counts = np.bincount(labels)
    target = round(ratio * int(counts.max()))
    for label in np.unique(labels):
        of_class = visits[labels == label]
        assert of_class.sum() == max(counts[label], target)
        assert of_class.max() - of_class.min() <= 1
        assert of_class.min() >= 1


def test_oversampling_by_hand_and_invalid_ratios():
    labels, random = np.repeat([0, 1], [900, 30]), np.random.default_rng(0)
    assert labels[oversampled(labels, 0.5, random)].mean() == pytest.approx(1 / 3)
    labels = np.repeat([0, 1], [50, 7])
    draws = [oversampled(labels, 1.0, random).tolist() for _ in range(3)]
    assert draws[0] != draws[1] != draws[2]
    for ratio in (0.0, -0.5, 1.01, float("nan")):
        with pytest.raises(ConfigError, match="oversample: must be above 0 and at most 1"):
            oversampled([0, 1], ratio, random)


def test_splits_are_disjoint_and_complete_and_training_alone_is_oversampled(module):
    data = module()
    rows = [row for split in ("train", "val", "test") for row in rows_of(data.loader(split))]
    assert sorted(rows) == list(range(80))
    assert data.record()["data/groups_on_two_sides"] == 0
    assert data.outputs == 1
    more = module(oversample=0.5, batch_size=1)
    drawn = np.array(rows_of(more.loader("train", train=True)))
    # half of the majority: a third of the data
    assert [np.sum(drawn < 60), np.sum(drawn >= 60)] == more.seen_counts == [36, 18]
    assert len(rows_of(more.loader("val"))) == 16
    assert data.seen_counts == [36, 12]
    for each in (data, more):
        assert list(each.counts("train").values()) == [36, 12]


def test_training_epochs_differ_and_depend_on_the_seed_alone(module):
    first, second = (module().loader("train", train=True) for _ in range(2))
    state = torch.get_rng_state()
    epochs = []
    for epoch in (0, 1):
        for loader in (first, second):
            loader.sampler.set_epoch(epoch)
        assert rows_of(first) == rows_of(second)
        epochs.append(rows_of(first))
    assert epochs[0] != epochs[1]
    assert rows_of(module(seed=1).loader("train", train=True)) != epochs[0]
    assert torch.equal(torch.get_rng_state(), state)


def batches_of(rows: int, size: int = 4, train: bool = True, **options: int) -> EpochBatches:
    return EpochBatches(np.arange(rows), np.zeros(rows, dtype=np.int64), size, train, **options)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_an_epoch_without_overlap(world):
    shards = [batches_of(50, rank=rank, world_size=world) for rank in range(world)]
    assert len({len(shard) for shard in shards}) == 1
    drawn = [row for shard in shards for batch in shard for row in batch]
    assert len(drawn) == len(set(drawn)) == 4 * world * len(shards[0])
    assert 50 - len(drawn) < 4 * world


@pytest.mark.parametrize(
    ("size", "train", "sizes"), [(4, False, [4, 4, 2]), (4, True, [4, 4]), (64, True, [10])]
)
def test_short_last_batch_is_kept_in_evaluation_only(size, train, sizes):
    batches = batches_of(10, size, train)
    assert [len(batch) for batch in batches] == sizes
    assert len(batches) == len(sizes)


@pytest.mark.parametrize("at_once", [2, 3, 8])
def test_batches_that_come_as_one_are_those_of_single_steps(at_once):
    single, several = (batches_of(31, at_once=number) for number in (1, at_once))
    assert several.steps == len(single) == 7
    assert len(list(several)) == len(several)
    assert np.concatenate(list(several)).tolist() == np.concatenate(list(single)).tolist()


class Negative(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.dtype == torch.float32
        assert float(images.max()) <= 1
        return 1 - images


def test_training_batches_alone_are_augmented_as_floats_and_mixed_with_their_labels(module):
    data = module(augment=Negative())
    batch = next(iter(data.loader("train")))
    red = batch["image"][0, 0, 0, 0].item()
    data.trainer = SimpleNamespace(training=False)
    assert data.on_after_batch_transfer(dict(batch), 0)["image"].dtype == torch.uint8
    data.trainer = SimpleNamespace(training=True)
    augmented = data.on_after_batch_transfer(dict(batch), 0)["image"]
    assert augmented[0, 0, 0, 0].item() == pytest.approx(1 - red / 255)

    data = module(augment=Augment(mixup=1.0))
    batch = next(iter(data.loader("train", train=True)))
    hard, red = batch["label"], batch["image"][:, 0, 0, 0] / 255  # all different
    data.trainer = SimpleNamespace(training=True)
    mixed = data.on_after_batch_transfer(dict(batch), 0)
    share = (mixed["image"][:, 0, 0, 0] - red.roll(1)) / (red - red.roll(1))
    ones = torch.eye(2)[hard]
    expected = share[:, None] * ones + (1 - share[:, None]) * ones.roll(1, 0)
    torch.testing.assert_close(mixed["label"], expected, atol=1e-3, rtol=0)
    data.trainer = SimpleNamespace(training=False)
    assert torch.equal(data.on_after_batch_transfer(dict(batch), 0)["label"], hard)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"fractions": [0.8, 0.2]}, "fractions: must be three parts"),
        ({"siblings": "in", "split": "image"}, "siblings: needs data.split=grouped"),
        ({"siblings": "out", "source": squares("image")}, "siblings: must be null"),
    ],
)
def test_impossible_splits_are_refused(module, changes, problem):
    with pytest.raises(ConfigError, match=problem):
        module(**changes)


@pytest.mark.parametrize(
    ("siblings", "label", "leaking"),
    [
        ("out", "grouped, siblings of test left out", 0),
        ("in", "grouped, siblings of test in training", 8),
    ],
)
def test_leakage_arm_records_what_it_is(module, siblings: str, label: str, leaking: int):
    plain, data = module(), module(siblings=siblings)
    arms = (plain, data, module(siblings={"in": "out", "out": "in"}[siblings]))
    assert len({arm.split_fingerprint for arm in arms}) == 3
    assert data.split_mode == label
    assert data.seen_counts == plain.seen_counts == [36, 12]
    assert data.rows("val").tolist() == plain.rows("val").tolist()
    # 80 images, two of each group: every second of the 16 test images is tested
    assert data.record() == {
        "data/images/train": 48,
        "data/images/val": 16,
        "data/images/test": 8,
        "data/images/unused": 8,
        "data/images/test_with_sibling": 8,
        "data/unreadable": 0,
        "data/duplicates": 0,
        "data/duplicates_leaking": 0,
        "data/near_duplicates": 78,  # plain colours: all look like the first one
        "data/images/leaking": leaking,  # one tested image of each group
        "data/groups_on_two_sides": leaking,
    }
    tested = data.predictions(data.rows("test"), np.full((8, 2), 0.5))
    assert tested["has_sibling"].all()
    assert "has_sibling" not in data.predictions(data.rows("val"), np.full((16, 2), 0.5))
    assert "has_sibling" not in plain.predictions(plain.rows("test"), np.full((16, 2), 0.5))


def test_part_of_the_public_set_and_size_of_the_stored_pictures_are_named(module, tmp_path):
    data = module()
    assert data.share == "80 images"
    data.source.published = {"a": 1_500, "b": 100}
    changed = "a 75.0% (published 93.8%), b 25.0% (published 6.2%)"
    assert data.share == f"80 of 1,600 images (5.0%), {changed}"
    data.source.published = {"a": 60, "b": 20}
    assert data.share == "80 of 80 images (100.0%)"
    for name, size in {"large.png": (40, 30), "small.png": (20, 15)}.items():
        Image.new("RGB", size).save(tmp_path / name)
    names = pd.Series(["large.png"] * 50 + ["small.png"] * 30)
    data.frame["path"] = f"{tmp_path}/" + names
    # 16 of 80 rows, 79 / 15 apart: those before row 50 are number 0 to 9
    assert data.share == "80 of 80 images (100.0%), 40x30 px in 10 of 16 looked at"
    data.source.published = {}
    assert data.share == "80 images, 40x30 px in 10 of 16 looked at"
    data.source.published = {"a": 60, "b": 20}
    data.frame["path"] = f"{tmp_path}/large.png"
    assert data.share == "80 of 80 images (100.0%), 40x30 px"
    data.frame["path"] = [str(tmp_path / "large.png")] * 79 + [""]  # one is drawn
    assert data.share == "80 of 80 images (100.0%)"
