"""Training speed of `custom` beside the best bare PyTorch loop, in turn, in one run.

    python -m benchmarks.training_loop [HAM10000 folder] [pairs]

Both train the same net on the same 64 px images with the same batch, augmentation, loss, optimizer
and schedule. The bare loop has all its images in memory, in the faster memory layout (channels
last), and does nothing else: no logging, no validation, no checkpoint.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch.nn import functional

from benchmarks.composing import composed
from src.core.config import instantiate
from src.training import loop
from src.training.classifier import as_float
from src.training.progress import quiet_lightning

EPOCHS = 2  # a turn
WANTED = 0.90


def bare(config: DictConfig, parts: loop.RunParts) -> float:
    """Images a second of a bare loop over the same training images."""
    data, module = parts.data, parts.classifier
    rows = torch.from_numpy(data.rows("train"))
    images = torch.from_numpy(
        data.cache.images[data.rows("train")]
    )  # (N, S, S, 3): one gather gives channels last
    labels = torch.tensor(data.labels)[rows]
    net = module.net.train()
    mean, inverse_std = module.mean, module.inverse_std
    assert data.augment is not None
    steps = len(rows) // data.batch_size
    optimizer = instantiate(config.optimizer, "optimizer")(net.parameters())
    schedule = instantiate(config.scheduler, "scheduler")(optimizer, EPOCHS * steps)
    began = time.perf_counter()
    for _ in range(EPOCHS):
        order = torch.randperm(len(rows))
        for start in range(0, steps * data.batch_size, data.batch_size):
            chosen = order[start : start + data.batch_size]
            batch = as_float(images[chosen].permute(0, 3, 1, 2))
            batch = (data.augment(batch) - mean) * inverse_std
            loss = functional.cross_entropy(net(batch), labels[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    return EPOCHS * steps * data.batch_size / (time.perf_counter() - began)


def ours(config: DictConfig, parts: loop.RunParts) -> float:
    """Images per second of the project's training, with logging, checkpoint and progress."""
    with tempfile.TemporaryDirectory() as folder:
        trainer, progress, _ = loop.prepare_fit(config, parts, None, Path(folder))
        with quiet_lightning():
            trainer.fit(parts.classifier, datamodule=parts.data)
    return statistics.mean(progress.speeds)


def main() -> None:
    """Print both speeds and their ratio, pair by pair."""
    root = sys.argv[1] if len(sys.argv) > 1 else "../shared/data/ham10000"
    pairs = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    overrides = [
        "data=ham10000",
        f"data.root={root}",
        "data.fractions=[0.8,0,0.2]",
        f"trainer.max_epochs={EPOCHS}",
    ]
    config = composed(overrides)
    ratios = []
    for pair in range(pairs):
        speed_bare = bare(config, loop.build(config))
        speed_ours = ours(config, loop.build(config))
        ratios.append(speed_ours / speed_bare)
        print(
            f"pair {pair + 1}: bare {speed_bare:.0f} images/s, ours {speed_ours:.0f}, "
            f"ratio {ratios[-1]:.3f}",
            flush=True,
        )
    print(
        f"ratio: median {statistics.median(ratios):.3f} of {pairs} pairs "
        f"(required: at least {WANTED})"
    )


if __name__ == "__main__":
    main()
