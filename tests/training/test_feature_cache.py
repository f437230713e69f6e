"""Cached outputs: right for each view, computed once, another entry for other networks or data."""

import errno
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import kornia.augmentation as K
import numpy as np
import pytest
import torch
from made_data import Made, noise, prepared

from src.core.errors import UserError
from src.data.augment import Augment, RandomTranspose
from src.data.module import DataModule
from src.training import features
from src.training.features import CachedOutputs

FLIPS = (K.RandomHorizontalFlip(), K.RandomVerticalFlip(), RandomTranspose())


def module(folder: Path, *transforms: Any, seed: int = 0, **changes: object) -> DataModule:
    """Pictures without any symmetry, of 4 px."""
    augment = Augment(**{f"step{number}": step for number, step in enumerate(transforms)})
    source = Made(partial(noise, 4, seed), [0, 1] * 40, range(80), seed, grouped_by="image")
    return prepared(source, folder, image_size=4, split="image", augment=augment, **changes)


def pixels(images: torch.Tensor) -> torch.Tensor:
    """The simplest network: its outputs are the pixels of the view."""
    return images.permute(0, 2, 3, 1).flatten(1)


def load(data: DataModule, identity: str = "net", **options: Any) -> CachedOutputs:
    outputs = features.load(data, pixels, identity, **options)
    assert outputs is not None
    return outputs


def drawn(outputs: CachedOutputs, row: int) -> set[tuple[int, ...]]:
    """The views of a training image that 300 draws show: all of them, but for 1 case in 10^17."""
    values = outputs(np.full(300, row), outputs.draw(300)).numpy()
    return {tuple(view) for view in (values * 255).round().astype(int).tolist()}


def batch_entries(outputs: CachedOutputs, rows: Any, train: bool) -> dict[str, torch.Tensor]:
    return {"features": outputs(rows, outputs.draw(len(rows)) if train else None)}


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("made-4-features-*"))


def stored(folder: Path) -> bytes:
    (entry,) = entries(folder)
    return (entry / "values.bin").read_bytes()


def symmetries_by_numpy(image: np.ndarray) -> list[np.ndarray]:
    turned = [np.rot90(image, k) for k in range(4)]
    return turned + [np.fliplr(turn) for turn in turned]


@pytest.mark.parametrize("steps", range(4))
def test_a_training_batch_has_the_views_that_augmentation_would_draw(tmp_path, steps):
    data = module(tmp_path, *FLIPS[:steps])
    outputs, results = load(data), []
    for cached in (None, partial(batch_entries, outputs)):
        data.cached = cached
        torch.manual_seed(7)
        batches = list(data.loader("train", train=True))
        if cached is None:
            images = [data.augment(batch["image"] / 255) for batch in batches]
            batches = [{"features": pixels(image)} for image in images]
        results.append(torch.cat([batch["features"] for batch in batches]))
        results.append(torch.rand(3))  # as many random numbers were used
    torch.testing.assert_close(results[2:], results[:2])
    batch = next(iter(data.loader("val")))
    expected = data.cache.images[batch["row"].numpy()].reshape(len(batch["row"]), -1)
    np.testing.assert_allclose(batch["features"] * 255, expected, atol=1e-4)
    # all symmetries are drawn, and nothing else
    rows, views = data.rows("train"), 2**steps
    for row in rows[:5]:
        seen = drawn(outputs, row)
        expected = {tuple(v.ravel().tolist()) for v in symmetries_by_numpy(data.cache.images[row])}
        assert len(seen) == views
        assert seen <= expected
    itself = outputs(np.arange(80)).numpy() * 255
    np.testing.assert_allclose(itself, data.cache.images.reshape(80, -1), atol=1e-4)
    assert len(stored(tmp_path)) == (80 + (views - 1) * len(rows)) * 48 * 4


def test_random_views_are_the_same_for_all_and_cost_no_random_number(tmp_path: Path) -> None:
    results = []
    for seed in (1, 2):
        data = module(tmp_path / str(seed), K.RandomBrightness((0.5, 1.5), p=1.0))
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        outputs = load(data, random=3)
        assert torch.equal(torch.get_rng_state(), before)
        results.append(stored(tmp_path / str(seed)))
        row = data.rows("train")[0]
        views = drawn(outputs, row)
        assert len(views) == 3
        assert tuple(data.cache.images[row].ravel().tolist()) not in views
    assert results[0] == results[1]


def test_another_network_picture_split_or_augmentation_is_another_entry(tmp_path):
    variants: list[Callable[[], CachedOutputs]] = [
        partial(load, module(tmp_path, *FLIPS)),
        partial(load, module(tmp_path, *FLIPS), "other weights"),
        partial(load, module(tmp_path, *FLIPS, seed=1)),
        partial(load, module(tmp_path, *FLIPS, split_seed=1)),
        partial(load, module(tmp_path, *FLIPS[:2])),
        partial(load, module(tmp_path)),
        partial(load, module(tmp_path, *FLIPS), random=7),
    ]
    for number, variant in enumerate(variants):
        variant()
        assert len(entries(tmp_path)) == number + 1
    for variant in variants:
        variant()
    assert len(entries(tmp_path)) == len(variants)
    data = module(tmp_path, *FLIPS)
    assert features.load(data, pixels, "absent", build=False) is None
    assert features.load(data, pixels, "net", build=False) is not None


def test_a_damaged_entry_is_computed_again_and_a_full_disk_is_one_line(
    tmp_path, monkeypatch, caplog
):
    """Other damages: tests/data/test_cache.py."""
    data = module(tmp_path, *FLIPS)
    load(data)
    expected = stored(tmp_path)
    (entry,) = entries(tmp_path)
    (entry / "values.bin").write_bytes(expected[:1000] + b"x" + expected[1001:])
    caplog.clear()
    load(data)
    assert stored(tmp_path) == expected
    assert [record.getMessage() for record in caplog.records] == [
        f"{entry} is damaged and is rebuilt"
    ]

    def refuse(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    with pytest.raises(UserError, match=r"No space left.*data.feature_views=0") as caught:
        load(data, "other weights")
    assert "\n" not in str(caught.value)
    assert entries(tmp_path) == [entry]


def test_who_wants_it_while_another_computes_it_waits_and_computes_nothing(tmp_path):
    """Two threads; two processes: tests/data/test_cache.py."""
    both, batches = threading.Barrier(2), []

    def compute(images: torch.Tensor) -> torch.Tensor:
        if len(images) == 1:  # by which the width is known: then both want the outputs
            both.wait(60)
        else:
            batches.append(images)
        return pixels(images)

    data = [module(tmp_path, *FLIPS) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        outputs = list(pool.map(lambda one: features.load(one, compute, "net"), data))
    assert len(batches) == -(-80 // 64) + 7 * -(-len(data[0].rows("train")) // 64)
    first, second = (of_one(np.arange(80)).tolist() for of_one in outputs)
    assert first == second == load(data[0])(np.arange(80)).tolist()
