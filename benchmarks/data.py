"""Speed of the image cache relative to Pillow, and augmentation as a share of a training step.

    python -m benchmarks.data [HAM10000 folder]

On CPU or, where there is one, on the GPU.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.composing import composed
from src.core.config import instantiate
from src.training import loop
from src.training.classifier import as_float

BATCH = 64
SIZE = 64
ROUNDS = 5
WANTED_CACHE = 20
WANTED_SHARE = {"cpu": {"flips": 0.10, "sun2023": 0.40}, "cuda": {"flips": 0.10, "sun2023": 0.10}}


class Jpegs(Dataset[tuple[Tensor, int]]):
    """The rival: each image opened and resized whenever it is asked for."""

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with Image.open(self.paths[index]) as image:
            pixels = np.array(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR))
        return torch.from_numpy(pixels), index


def images_per_s(batches: Callable[[], int]) -> float:
    """Images a second of a function that reads some and says how many."""
    began = time.perf_counter()
    return batches() / (time.perf_counter() - began)


def reading(parts: loop.RunParts) -> None:
    """Print the speed of both readers, in turn, and its ratio."""
    rows = parts.data.rows("train")
    rival = DataLoader(
        Jpegs(parts.data.frame["path"].iloc[rows].tolist()), BATCH, shuffle=True, num_workers=2
    )
    ratios = []
    for _ in range(ROUNDS):
        slow = images_per_s(lambda: sum(len(batch) for batch, _ in rival))
        fast = images_per_s(
            lambda: sum(len(b["row"]) for b in parts.data.loader("train", train=True))
        )
        ratios.append(fast / slow)
        print(
            f"cache {fast:,.0f} images/s, Pillow in 2 workers {slow:,.0f}, ratio {ratios[-1]:.1f}",
            flush=True,
        )
    print(
        f"cache / Pillow: median {statistics.median(ratios):.1f} of {ROUNDS} "
        f"(required: at least {WANTED_CACHE})"
    )


def seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median time of one call."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def augmenting(parts: loop.RunParts, name: str, device: torch.device) -> None:
    """Print the share of float conversion, augmentation and normalisation in a training step."""
    module = parts.classifier.to(device).train()
    augment = instantiate(composed([f"augment={name}"]).augment, "augment").to(device)
    batch = next(iter(parts.data.loader("train", train=True)))
    image, label = batch["image"].to(device), batch["label"].to(device)
    optimizer = torch.optim.Adam(module.net.parameters())

    def prepare() -> Tensor:
        return (augment(as_float(image)) - module.mean) * module.inverse_std

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        module.loss(module.net(prepare()), label).backward()
        optimizer.step()

    for work in (prepare, step):
        seconds(work, device, 5)
    shares = [seconds(prepare, device, 20) / seconds(step, device, 20) for _ in range(ROUNDS)]
    limit = WANTED_SHARE[device.type][name]
    print(
        f"{name} on {device.type}: {statistics.median(shares):.1%} of a training step "
        f"(required: under {limit:.0%})"
    )


def main() -> None:
    """Print all ratios."""
    root = sys.argv[1] if len(sys.argv) > 1 else "../shared/data/ham10000"
    if not Path(root).is_dir():
        sys.exit(f"{root}: no such folder; give the folder of HAM10000")
    parts = loop.build(composed(["data=ham10000", f"data.root={root}", f"data.batch_size={BATCH}"]))
    reading(parts)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("flips", "sun2023"):
        augmenting(parts, name, device)


if __name__ == "__main__":
    main()
