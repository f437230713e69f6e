"""What a GPU gives: `python -m benchmarks.gpu [data.root=<HAM10000 folder>] [jobs=1,4,16,32]`.

Prints tables within about 8 minutes on one GPU; synthetic lesions where the folder is absent.

    training   images/s of `custom` and EfficientNet-Lite0 by the project, in float32 and bfloat16,
               beside bare loops with all images on the device, and as a share of the best of these;
               peak GPU memory
    augment    images/s with augment=sun2023 relative to augment=none
    features   images/s of the head of a frozen MobileNetV3-Small, from cached features and images
    latency    ms per batch and images/s for batches of 1 to 256
    trials     trials per hour of a study of `custom` with several trials at a time, trained for
               `epochs` epochs, start and measurements included; the goal is 1,000 with 20 epochs

`tiny=true` runs everything with few images, for a test on a CPU.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.nn import functional

from benchmarks import features
from benchmarks.composing import composed
from src.core.config import instantiate
from src.training import loop
from src.training.classifier import as_float
from src.training.progress import quiet_lightning

MODELS = ("custom", "efficientnet_lite0")
RANDOM = ["model.net.weights=random"]  # speed does not depend on the weights
NO_VIEWS = "data.feature_views=0"
TINY = ["data.source.lesions=100", "data.source.native_size=32", "data.batch_size=8"]
DEFAULTS = {"tiny": "false", "data.root": "", "jobs": "1,4,16,32", "epochs": "20", "trials": "32"}


def synchronized() -> float:
    """The time in s, after all work of the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_mb() -> float:
    """Largest memory of tensors on the GPU since the last call, MB; NaN without one."""
    if not torch.cuda.is_available():
        return float("nan")
    peak = torch.cuda.max_memory_allocated() / 1e6
    torch.cuda.reset_peak_memory_stats()
    return peak


def bare(config: DictConfig, precise: bool, compiled: bool) -> float:
    """Images/s of a bare loop, the images on the device; the first epoch does not count."""
    parts, device = loop.build(config), loop.training_device(config)
    data, module = parts.data, parts.classifier.to(device).train()
    rows = data.rows("train")
    images = torch.from_numpy(data.cache.images[rows]).to(device)
    labels = torch.tensor(data.labels, device=device)[torch.from_numpy(rows).to(device)]
    optimizer = instantiate(config.optimizer, "optimizer")(module.net.parameters())
    augment: Any = data.augment

    def step(batch: Tensor, target: Tensor) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=not precise):
            loss = functional.cross_entropy(module(batch).float(), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    if compiled:
        module.net.compile()
    steps, began = len(rows) // data.batch_size, 0.0
    for epoch in range(config.trainer.max_epochs):
        began = synchronized() if epoch == 1 else began
        order = torch.randperm(len(rows), device=device)[: steps * data.batch_size]
        for chosen in order.split(data.batch_size):
            batch = augment(as_float(images[chosen].permute(0, 3, 1, 2)))
            step(batch, labels[chosen])
    counted = (config.trainer.max_epochs - 1) * steps * data.batch_size
    return counted / (synchronized() - began)


def ours(config: DictConfig) -> float:
    """Images/s of the project's training, the median of its epochs."""
    parts = loop.build(config)
    with tempfile.TemporaryDirectory() as folder:
        trainer, progress, _ = loop.prepare_fit(config, parts, None, Path(folder))
        with quiet_lightning():
            trainer.fit(parts.classifier, datamodule=parts.data)
    return progress.images_per_s


def training(model: str, base: list[str]) -> pd.DataFrame:
    """Images/s and memory of each way to train a model."""
    weights = [] if model == "custom" else RANDOM
    precise = composed([*base, f"model={model}", *weights])
    half = composed([*base, f"model={model}", *weights, "trainer.precision=bf16-mixed"])
    ways: dict[str, Callable[[], float]] = {
        "bare, float32": lambda: bare(precise, True, False),
        "bare, float32, compiled": lambda: bare(precise, True, True),
        "bare, bfloat16": lambda: bare(precise, False, False),
        "bare, bfloat16, compiled": lambda: bare(precise, False, True),
        "paretoderm, float32": lambda: ours(precise),
        "paretoderm, bfloat16": lambda: ours(half),
    }
    rows = []
    for way, measure in ways.items():
        peak_mb()
        rows.append({"model": model, "training": way, "images/s": measure(), "MB": peak_mb()})
    table = pd.DataFrame(rows)
    best = table["images/s"][table["training"].str.startswith("bare")].max()
    return table.assign(**{"of the best bare loop": table["images/s"] / best})


def latency(model: str, base: list[str], sizes: list[int]) -> pd.DataFrame:
    """Time of evaluated batches, the median of 20 after 5."""
    config = composed([*base, f"model={model}", *([] if model == "custom" else RANDOM)])
    device = loop.training_device(config)
    classifier = loop.build(config).classifier.to(device).eval()
    rows = []
    for size in sizes:
        images = torch.rand(size, 3, classifier.image_size, classifier.image_size, device=device)
        times = []
        with torch.inference_mode():
            for _ in range(25):
                began = synchronized()
                classifier(images)
                times.append(synchronized() - began)
        median = float(pd.Series(times[5:]).median())
        rows.append({"model": model, "batch": size, "ms": median * 1e3, "images/s": size / median})
    return pd.DataFrame(rows)


def trials(base: list[str], jobs: int, number: int) -> float:
    """Trials per hour of a study in a process of its own, `jobs` at a time."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "src.train", "-m", *base, "efficiency=fast", "test=false"]
        command += [f"tracking.folder={folder}", f"hydra.sweep.dir={folder}/logs"]
        command += [f"hydra.sweeper.n_jobs={jobs}", f"hydra.sweeper.n_trials={number}"]
        command += ["hydra/sweeper/sampler=random", "hydra/sweeper/pruner=none"]
        command += ["model.net.dropout=interval(0,0.5)"]
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(
                f"the study with n_jobs={jobs} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
            )
        return number * 3600 / (time.perf_counter() - began)


def main(arguments: list[str]) -> None:
    """Measure and print each table."""
    typed = DEFAULTS | dict(argument.split("=", 1) for argument in arguments)
    tiny, root = typed["tiny"] == "true", typed["data.root"]
    data = ["data=ham10000", f"data.root={root}"] if root else ["data=synthetic"]
    base = [*data, *(TINY if tiny else []), "efficiency=fast"]
    base += [f"model.image_size={32 if tiny else 64}"]
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: the CPU"
    print(f"device: {name}; torch {torch.__version__}", flush=True)
    several = [*base, f"trainer.max_epochs={2 if tiny else 3}"]
    for model in MODELS[:1] if tiny else MODELS:
        print(training(model, several).to_markdown(index=False, floatfmt=",.2f"), flush=True)
    sizes = [1, 2] if tiny else [1, 8, 64, 256]
    tables = [latency(model, base, sizes) for model in (MODELS[:1] if tiny else MODELS)]
    print(pd.concat(tables).to_markdown(index=False, floatfmt=",.2f"), flush=True)
    speeds = [ours(composed([*several, f"augment={choice}"])) for choice in ("none", "sun2023")]
    print(f"augment=sun2023 has {speeds[1] / speeds[0]:.2f} of the images/s of none", flush=True)
    head = [*several, "model=mobilenetv3_small", "model.net.frozen=true", *RANDOM, "study=gpu"]
    views = [features.images_per_s(composed([*head, *more])) for more in ([], [NO_VIEWS])]
    print(f"cached features: {views[0] / views[1]:.1f} times the images/s", flush=True)
    for jobs in map(int, typed["jobs"].split(",")):
        study = [*base, f"trainer.max_epochs={typed['epochs']}"]
        speed = trials(study, jobs, int(typed["trials"]))
        print(f"{jobs} trials at a time: {speed:,.0f} trials per hour", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
