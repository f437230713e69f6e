"""Cached outputs: right for each view, computed once, another entry for other networks or data."""

import errno
import functools
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kornia.augmentation as K
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from src.core.errors import UserError
from src.data.augment import Augment, RandomTranspose
from src.data.module import DataModule
from src.data.source import Manifest, Source
from src.training import features
from src.training.features import CachedOutputs

FLIPS = (K.RandomHorizontalFlip(), K.RandomVerticalFlip(), RandomTranspose())


class Noise(Source):
    """Pictures without any symmetry."""

    name = "noise"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def manifest(self) -> Manifest:
        names = [f"n{row}" for row in range(80)]
        frame = pd.DataFrame({"image_id": names, "label": [0, 1] * 40, "group": names, "path": ""})
        return Manifest(self.name, ("a", "b"), frame, "image")

    def picture(self, manifest: Manifest, row: int) -> Image.Image:
        noise = np.random.default_rng((self.seed, row))
        return Image.fromarray(noise.integers(0, 256, (4, 4, 3), dtype=np.uint8))

    def stamps(self, manifest: Manifest) -> list[str]:
        return [f"{self.seed} {row}" for row in range(80)]


def module(folder: Path, *transforms: Any, seed: int = 0, split_seed: int = 0) -> DataModule:
    arguments: dict[str, Any] = {
        **{"name": "noise", "source": Noise(seed), "image_size": 4, "geometry": "squash"},
        **{"split": "image", "fractions": [0.6, 0.2, 0.2], "split_seed": split_seed},
        **{"oversample": None, "on_unreadable": "error", "batch_size": 16},
        "augment": Augment(**{f"step{number}": step for number, step in enumerate(transforms)}),
    }
    return DataModule(**arguments, cache_dir=str(folder)).prepare()


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
    return sorted(folder.glob("noise-4-features-*"))


def stored(folder: Path) -> bytes:
    (entry,) = entries(folder)
    return (entry / "values.bin").read_bytes()


def symmetries_by_numpy(image: np.ndarray) -> list[np.ndarray]:
    turned = [np.rot90(image, k) for k in range(4)]
    return turned + [np.fliplr(turn) for turn in turned]


@pytest.mark.parametrize("steps", range(4))
def test_views_are_the_symmetries_that_are_drawn(tmp_path: Path, steps: int) -> None:
    data = module(tmp_path, *FLIPS[:steps])
    outputs, views = load(data), 2**steps
    rows = data.rows("train")
    for row in rows[:5]:
        seen = drawn(outputs, row)
        expected = {tuple(v.ravel().tolist()) for v in symmetries_by_numpy(data.cache.images[row])}
        assert len(seen) == views
        assert seen <= expected
    everything = np.arange(80)
    itself = outputs(everything).numpy() * 255
    np.testing.assert_allclose(itself, data.cache.images.reshape(80, -1), atol=1e-4)
    assert len(stored(tmp_path)) == (80 + (views - 1) * len(rows)) * 48 * 4


@pytest.mark.parametrize("steps", range(4))
def test_a_training_batch_has_the_views_that_augmentation_would_draw(
    tmp_path: Path, steps: int
) -> None:
    data = module(tmp_path, *FLIPS[:steps])
    drawn = []
    for outputs in (None, load(data)):
        data.cached = outputs and functools.partial(batch_entries, outputs)
        torch.manual_seed(7)
        batches = list(data.loader("train", train=True))
        if outputs is None:
            images = [data.augment(batch["image"] / 255) for batch in batches]  # type: ignore[misc]
            batches = [{"features": pixels(image)} for image in images]
        drawn.append(torch.cat([batch["features"] for batch in batches]))
        drawn.append(torch.rand(3))  # as many random numbers were used
    torch.testing.assert_close(drawn[2:], drawn[:2])
    batch = next(iter(data.loader("val")))
    expected = data.cache.images[batch["row"].numpy()].reshape(len(batch["row"]), -1)
    np.testing.assert_allclose(batch["features"] * 255, expected, atol=1e-4)


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


def test_another_network_picture_split_or_augmentation_is_another_entry(tmp_path: Path) -> None:
    variants: list[Callable[[], CachedOutputs]] = [
        functools.partial(load, module(tmp_path, *FLIPS)),
        functools.partial(load, module(tmp_path, *FLIPS), "other weights"),
        functools.partial(load, module(tmp_path, *FLIPS, seed=1)),
        functools.partial(load, module(tmp_path, *FLIPS, split_seed=1)),
        functools.partial(load, module(tmp_path, *FLIPS[:2])),
        functools.partial(load, module(tmp_path)),
        functools.partial(load, module(tmp_path, *FLIPS), random=7),
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


@pytest.mark.parametrize("damage", [b"", bytes(100), None])
def test_a_damaged_entry_is_computed_again(
    tmp_path: Path, damage: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    data = module(tmp_path, *FLIPS)
    load(data)
    expected = stored(tmp_path)
    (entry,) = entries(tmp_path)
    values = entry / "values.bin"
    content = bytearray(values.read_bytes())
    content[1000] ^= 1  # of the right size
    values.write_bytes(bytes(content) if damage is None else damage)
    caplog.clear()
    load(data)
    assert stored(tmp_path) == expected
    assert [record.getMessage() for record in caplog.records] == [
        f"{entry} is damaged and is rebuilt"
    ]


def test_a_full_disk_is_one_line_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = module(tmp_path, *FLIPS)

    def refuse(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    with pytest.raises(UserError, match=r"No space left.*data.feature_views=0") as caught:
        load(data)
    assert "\n" not in str(caught.value)
    assert entries(tmp_path) == []


def build_slowly(folder: Path, barrier: Any) -> None:
    """What a process does that wants the outputs; each computed batch leaves a mark in a file."""

    def compute(images: torch.Tensor) -> torch.Tensor:
        if len(images) > 1:  # not the one by which the width is known
            with (folder / "marks").open("a") as file:
                file.write("x")
        return pixels(images)

    data = module(folder, *FLIPS)
    barrier.wait(200)
    outputs = features.load(data, compute, "net")
    assert outputs is not None
    values = outputs(np.arange(80)).numpy()
    (folder / f"done{os.getpid()}").write_bytes(values.tobytes())


def test_two_processes_that_want_it_at_once_compute_it_once(tmp_path: Path) -> None:
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["src.training.loop"])  # unless one runs already
    barrier = processes.Barrier(2)
    both = [processes.Process(target=build_slowly, args=(tmp_path, barrier)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(300)
        assert process.exitcode == 0
    data = module(tmp_path, *FLIPS)
    images, rows = 80, len(data.rows("train"))
    batches = -(-images // 64) + 7 * -(-rows // 64)
    assert len((tmp_path / "marks").read_text()) == batches
    first, second = (path.read_bytes() for path in tmp_path.glob("done*"))
    assert first == second == load(data)(np.arange(80)).numpy().tobytes()
