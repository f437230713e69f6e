"""A run store with made-up runs, as a training, a compression, an export and an evaluation leave them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from PIL import Image

from src.core.cli import ROOT
from src.tracking.run import Run
from src.tracking.store import Store

CLASSES = ("bkl", "mel", "nv")
OF_A_CLASS = 24  # images in each of val and test, two a lesion
FOUND = 8  # melanomas among them that the nets call so: a recall of a third
PARAMS = 691_911.0
EFFICIENCY = {
    "device": "Abacus 9",
    "torch": "2.13",
    "threads": 1,
    "flop_convention": "one fused multiply-add counts as one (fvcore)",
    "reference": "CustomCNN",
    "reference_params": 691_911,
}
ENVIRONMENT = {
    "cpu": "Abacus 9",
    "cores": 2,
    "ram_gb": 8.0,
    "gpus": [],
    "python": "3.11",
    "packages": {"torch": "2.13"},
}
MEASURED = {
    "best/epoch": 7.0,
    "data/images/train": 500.0,
    "data/images/val": 168.0,
    "data/images/test": 168.0,
    "data/unreadable": 0.0,
    "data/groups_on_two_sides": 0.0,
    "efficiency/flops": 30_037_824.0,
    "efficiency/params": PARAMS,
    "efficiency/size_mb": 2.77,
    "efficiency/latency_ms/b1/p50": 0.8,
    "efficiency/latency_ms/b1/p90": 0.9,
    "efficiency/latency_ms/b1/p99": 1.2,
    "efficiency/latency_ratio": 1.5,
    "time/fit_s": 60.0,
}


@dataclass(frozen=True)
class Runs:
    """Ids of what is recorded: a trial of two seeds, and single runs."""

    store: Store
    trial: str
    seeds: tuple[str, str]
    leaking: str
    compressed: str
    bare: str


def config(root: Path, *overrides: str) -> str:
    """The config of a run of `custom` on HAM10000, as YAML."""
    GlobalHydra.instance().clear()
    typed = [
        "model=custom",
        "data=ham10000",
        f"data.root={root}",
        "loss=weighted_focal",
        "augment=flips",
        *overrides,
    ]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        found = compose("train", typed)
    return OmegaConf.to_yaml(found, resolve=True)


def predictions(split: str, seed: int = 0, classes: tuple[str, ...] = CLASSES) -> pd.DataFrame:
    """Two thirds of the melanomas (whole lesions) are taken for the next class, all else is right."""
    label = np.repeat(np.arange(len(classes)), OF_A_CLASS)
    number = np.tile(np.arange(OF_A_CLASS), len(classes))
    looked_for = classes.index("mel") if "mel" in classes else 0
    said = np.where((label == looked_for) & (number >= FOUND), (label + 1) % len(classes), label)
    noise = np.random.default_rng(seed).random((len(label), len(classes))) / 100
    weights = np.eye(len(classes))[said] + 0.1 + noise
    probability = weights / weights.sum(axis=1, keepdims=True)
    return pd.DataFrame(
        {
            "image_id": [f"{split}_{at:03d}" for at in range(len(label))],
            "group": [f"{split}_lesion_{at // 2:03d}" for at in range(len(label))],
            "label": [classes[at] for at in label],
            **{f"p/{name}": probability[:, at] for at, name in enumerate(classes)},
        }
    )


def write_metadata(root: Path) -> None:
    """HAM10000's table of the images of val and test, without pictures: half of them of men, all of the back."""
    for part in ("HAM10000_images_part_1", "HAM10000_images_part_2"):
        (root / part).mkdir(parents=True)
        Image.new("RGB", (8, 6)).save(root / part / f"{part}.jpg")
    frames = [predictions(split) for split in ("val", "test")]
    table = pd.concat(frames, ignore_index=True)[["image_id", "group", "label"]]
    table.columns = pd.Index(["image_id", "lesion_id", "dx"])
    others = [
        {"image_id": name, "lesion_id": name, "dx": name} for name in ("akiec", "bcc", "df", "vasc")
    ]
    table = pd.concat(
        [table, pd.DataFrame(others)], ignore_index=True
    )  # the set must have all of its classes
    sex = np.where(np.arange(len(table)) // 2 % 2, "male", "female")
    table.assign(age=50.0, sex=sex, localization="back").to_csv(
        root / "HAM10000_metadata.csv", index=False
    )


def record(
    store: Store,
    yaml: str,
    seed: int = 0,
    parent: str | None = None,
    metrics: dict[str, float] | None = None,
    classes: tuple[str, ...] = CLASSES,
    **tags: Any,
) -> str:
    """A run that has ended well."""
    said = {
        "kind": "run",
        "study": "",
        "preset": "",
        "trial": 0,
        "seed": seed,
        "model": "custom",
        "data": "ham10000",
        "split": "grouped",
        "grouped_by": "lesion",
        "weights": "random",
        "split_fingerprint": "s0",
        "data_fingerprint": "d0",
        "git_commit": "a" * 40,
        "git_dirty": False,
        "chosen_by": "val/balanced_accuracy",
        "overrides": "model=custom data=ham10000",
        **tags,
    }
    with Run.start(store, "custom", said, {}, parent) as run:
        run.log(MEASURED if metrics is None else metrics)
        run.text(yaml, "config.yaml")
        run.text("weights", "checkpoint/best.ckpt")
        for split in ("val", "test"):
            run.table(predictions(split, seed, classes), f"predictions/{split}.csv")
        if metrics is None:
            run.text(json.dumps(EFFICIENCY), "efficiency.json")
            run.text(json.dumps(ENVIRONMENT), "environment.json")
    return run.id


def record_all(store: Store, root: Path) -> Runs:
    """Everything that the tests look at."""
    write_metadata(root)
    yaml = config(root)
    with Run.start(
        store, "custom", {"kind": "trial", "model": "custom", "data": "ham10000", "seed": 0}
    ) as trial:
        pass
    seeds = (record(store, yaml, 0, trial.id), record(store, yaml, 1, trial.id))
    leaking = record(
        store, config(root, "data.split=image"), split="image (leaking)", git_dirty=True
    )
    lost = {"balanced_accuracy": (0.012, -0.004, 0.031), "recall/mel": (0.05, 0.01, 0.09)}
    figures = {f"compression/lost/{name}": value for name, (value, _, _) in lost.items()}
    figures |= {f"compression/lost/{name}/low": low for name, (_, low, _) in lost.items()}
    figures |= {f"compression/lost/{name}/high": high for name, (_, _, high) in lost.items()}
    kept = {"efficiency/size_mb": 0.7, "efficiency/params": PARAMS, "efficiency/latency_ratio": 0.5}
    compressed = record(
        store,
        config(
            root,
            "+compression.name=onnx_int8_static",
            "+compression._target_=src.x.Static",
            "+compression.percentile=99",
        ),
        parent=seeds[0],
        metrics=figures | kept,
        origin=seeds[0],
        compression="onnx_int8_static",
        precision="int8",
        lost_on="test",
    )
    bare = record(store, config(root / "gone"), metrics={}, git_commit="unknown")
    return Runs(store, trial.id, seeds, leaking, compressed, bare)


def record_evaluation(store: Store, evaluated_run: str, folder: Path) -> str:
    """An evaluation on other data, as src.evaluate leaves it."""
    (folder / "clinical" / "isic2019").mkdir(parents=True)
    row = {
        "estimate": 0.25,
        "low": 0.21,
        "high": 0.3,
        "interval": "bootstrap",
        "images": 90,
        "groups": 80,
        "seeds": 1,
    }
    place = folder / "clinical" / "isic2019"
    pd.DataFrame([{"metric": "balanced_accuracy", **row}]).to_csv(
        place / "overall.csv", index=False
    )
    recall = {
        "class": "mel",
        "measure": "recall",
        **row,
        "estimate": 0.26,
        "low": 0.15,
        "high": 0.39,
    }
    pd.DataFrame([recall]).to_csv(place / "per_class.csv", index=False)
    point = {
        "rule": "sensitivity >= 0.8",
        "measure": "sensitivity",
        **row,
        "estimate": 0.62,
        "low": 0.5,
        "high": 0.7,
    }
    pd.DataFrame([point]).to_csv(place / "operating.csv", index=False)
    tags = {
        "kind": "evaluation",
        "evaluated_run": evaluated_run,
        "data": "isic2019",
        "part": "all",
        "overlap": "exclude",
    }
    with Run.start(store, "custom on isic2019", tags) as run:
        run.log(
            {"isic2019/balanced_accuracy": 0.25, "isic2019/images": 1518.0, "isic2019/overlap": 3.0}
        )
        run.artifact(folder)
    return run.id


def register(store: Store, name: str, run_id: str, description: str = "") -> None:
    """A version of a registered model, without a model's files."""
    if not store.client.search_registered_models(f"name = '{name}'"):
        store.client.create_registered_model(name)
    store.client.create_model_version(
        name, f"runs:/{run_id}/model", run_id, description=description
    )
