"""A run as `src.train` leaves it, without the minutes of a training."""

from dataclasses import dataclass
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from src.core.cli import ROOT
from src.deployment.runtimes.eager import CameraNet
from src.tracking.run import Run
from src.tracking.store import Store
from src.training import loop
from src.training.checkpoint import save_weights

TINY = ("model.image_size=16", "model.net.width=4", "model.net.depth=1", "model.net.dense=[8]")
DRAWN = (
    "data=synthetic",
    "data.source.lesions=200",
    "data.source.native_size=32",
    "trainer=cpu",
    "threads=1",
)


@dataclass(frozen=True)
class Place:
    """A store with a run, and its file as ONNX.

    Attributes:
        folder: Holds the store `mlruns` and the pictures `cache`.
        store: Of the run.
        run_id: Of it.
        onnx: What `src.deployment` writes of it; made once, for it takes seconds.
    """

    folder: Path
    store: Store
    run_id: str
    onnx: Path


def write_run(store: Store, folder: Path, seed: int, deployed: Path | None = None) -> str:
    """A run as `src.train` leaves it, but for what training adds."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose(
            "train",
            ["model=custom", *TINY, *DRAWN, f"seed={seed}", f"data.cache_dir={folder / 'cache'}"],
        )
    parts = loop.build(config)
    tags = {
        "kind": "run",
        "study": "",
        "model": "custom",
        "data": "synthetic",
        "split": "grouped",
        "seed": seed,
    }
    tags |= {"split_fingerprint": parts.data.split_fingerprint}
    torch.nn.init.normal_(parts.classifier.net.head[-1].weight)  # type: ignore[index]  # or all images are alike
    with Run.start(store, "custom", tags) as run:
        run.text(OmegaConf.to_yaml(config, resolve=True), "config.yaml")
        rows = parts.data.rows("val")
        with torch.inference_mode():
            said = CameraNet.of(parts.classifier)(
                torch.from_numpy(parts.data.cache.images[rows])
            ).numpy()
        run.table(parts.data.predictions(rows, said), "predictions/val.csv")
        if deployed is None:
            save_weights(parts.classifier, folder / "best.ckpt")
            run.artifact(folder / "best.ckpt", "checkpoint")
        else:
            run.tag(precision="int8")
            run.artifact(deployed, "deployed")
    return run.id
