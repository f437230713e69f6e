"""A run store with made-up runs: as a training leaves them, but nothing was trained."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from src.tracking.run import Run
from src.tracking.store import Store

CLASSES = ("mel", "nv", "bkl")
IMAGES = 60
ENVIRONMENT = {
    "cpu": "Abacus 9",
    "cores": 2,
    "ram_gb": 8.0,
    "gpus": [],
    "python": "3.11",
    "packages": {"torch": "2.13"},
}


def predictions(
    right: float, seed: int, images: int = IMAGES, siblings: bool = False
) -> pd.DataFrame:
    """Of the same images every time, two a lesion; about `right` of them get their own class."""
    number = np.arange(images)
    label = (number // 2) % len(CLASSES)
    random = np.random.default_rng(seed)
    said = np.where(random.random(images) < right, label, random.integers(0, len(CLASSES), images))
    probability = (
        np.eye(len(CLASSES))[said] * 0.7 + 0.1 + random.random((images, len(CLASSES))) / 100
    )
    table = pd.DataFrame(
        {
            "image_id": [f"i{each:03d}" for each in number],
            "group": [f"g{each // 2}" for each in number],
            "label": [CLASSES[each] for each in label],
        }
    )
    if siblings:
        table["has_sibling"] = number % 4 < 2
    return table.assign(**{f"p/{name}": probability[:, at] for at, name in enumerate(CLASSES)})


def scores(frame: pd.DataFrame) -> dict[str, float]:
    """By scikit-learn, as the run record names them."""
    said = frame[[f"p/{name}" for name in CLASSES]].to_numpy().argmax(axis=1)
    label = frame["label"].map({name: at for at, name in enumerate(CLASSES)})
    return {
        "accuracy": float(accuracy_score(label, said)),
        "balanced_accuracy": float(balanced_accuracy_score(label, said)),
    }


def mean_score(frames: Sequence[pd.DataFrame], name: str) -> float:
    return float(np.mean([scores(frame)[name] for frame in frames]))


def record(
    store: Store,
    study: str,
    frame: pd.DataFrame | None,
    seed: int,
    params: dict[str, Any] | None = None,
    metrics: dict[str, float] | None = None,
    **tags: Any,
) -> str:
    """One trained run; without predictions it was not tested."""
    said = {
        "kind": "run",
        "study": study,
        "seed": seed,
        "model": "custom",
        "split": "grouped",
        "weights": "random",
        "split_fingerprint": "s0",
        "data_fingerprint": "d0",
        "git_commit": "a" * 40,
        "git_dirty": False,
        "device": "Abacus 9",
        "overrides": "",
        **tags,
    }
    given = {
        "seed": seed,
        "data": {"image_size": 64, "root": f"/home/somebody/{seed}"},
        **(params or {}),
    }
    with Run.start(store, "custom", said, given) as run:
        values = {
            "efficiency/params": 691911.0,
            "efficiency/flops": 30037824.0,
            "efficiency/latency_ratio": 1.0,
        }
        if frame is not None:
            run.table(frame, "predictions/test.csv")
            values |= {f"test/{name}": value for name, value in scores(frame).items()}
            values |= {f"best/val/{name}": value for name, value in scores(frame).items()}
        run.log(values | (metrics or {}))
        run.text(json.dumps(ENVIRONMENT), "environment.json")
    return run.id


def study_run(store: Store, study: str, sweeps: str, fixed: str) -> None:
    """A study's own run."""
    with Run.start(
        store, study, {"kind": "study", "study": study, "sweeps": sweeps, "fixed_overrides": fixed}
    ):
        pass
