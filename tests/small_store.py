"""A store with runs as `src.train` records them, without a training; small classifiers."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from torch import nn

from src.core.cli import ROOT
from src.deployment.runtimes.eager import CameraNet
from src.losses.cross_entropy import CrossEntropy
from src.models.weights import save_weights
from src.tracking.run import Run
from src.tracking.store import Store
from src.training import loop, schedules
from src.training.classifier import Classifier

CLASSES = tuple("abcdefg")
CONFIG = (
    *("model=custom", "model.image_size=16", "model.net.width=4", "model.net.depth=1"),
    *("model.net.dense=[8]", "data=synthetic", "data.source.lesions=200"),
    *("data.source.native_size=32", "trainer=cpu", "threads=1"),
)


@dataclass(frozen=True)
class SmallStore:
    """A store with one run.

    Attributes:
        folder: Contains the store `mlruns` and the picture cache `cache`.
        store: The store.
        run_id: Of the run.
        onnx: The run's net as ONNX file; written once, because the exporter takes seconds.
    """

    folder: Path
    store: Store
    run_id: str
    onnx: Path


def write_run(
    store: Store, folder: Path, seed: int, deployed: Path | None = None, parent: str | None = None
) -> str:
    """Record a run with random weights and its validation predictions; returns its id."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", [*CONFIG, f"seed={seed}", f"data.cache_dir={folder / 'cache'}"])
    parts = loop.build(config)
    tags = {
        "kind": "run",
        "study": "",
        "model": "custom",
        "data": "synthetic",
        "split": "grouped",
        "seed": seed,
        "split_fingerprint": parts.data.split_fingerprint,
        "weights": "random",
    }
    # Larger weights: otherwise all images have nearly the same probabilities.
    nn.init.normal_(parts.classifier.net.head[-1].weight)  # type: ignore[index]
    with Run.start(store, "custom", tags, {}, parent) as run:
        run.text(OmegaConf.to_yaml(config, resolve=True), "config.yaml")
        rows = parts.data.rows("val")
        pictures = torch.from_numpy(parts.data.cache.images[rows])
        with torch.inference_mode():
            probabilities = CameraNet.of(parts.classifier)(pictures).numpy()
        run.table(parts.data.predictions(rows, probabilities), "predictions/val.csv")
        if deployed is None:
            save_weights(parts.classifier, folder / "best.ckpt")
            run.artifact(folder / "best.ckpt", "checkpoint")
        else:
            run.tag(precision="int8")
            run.artifact(deployed, "deployed")
    return run.id


def classifier(
    net: nn.Module, size: int, mean: Sequence[float], std: Sequence[float]
) -> Classifier:
    """A classifier of seven classes around any net with inputs of `size` px."""
    return Classifier(
        name="net",
        net=net,
        loss=CrossEntropy(class_counts=[10] * len(CLASSES)),
        classes=CLASSES,
        optimizer=functools.partial(torch.optim.SGD, lr=0.1),
        scheduler=schedules.constant,
        image_size=size,
        mean=list(mean),
        std=list(std),
    ).eval()
