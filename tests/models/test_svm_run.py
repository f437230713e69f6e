"""A run of the radiomics baseline in a real store: the same record as a network's, and nothing that it has not."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

from src import run as jobs
from src import train
from src.metrics.registry import parse_limits, parse_objectives
from src.reporting.comparison import test_run as evaluate_on_test
from src.tracking import read
from src.tracking.store import Store

SMOKE = [
    "experiment=smoke",
    "model=svm",
    "model.net.kernels=[linear,rbf]",
    "model.net.bins=4",
    "augment=none",
]


@pytest.fixture
def store(empty_database: Path, tmp_path: Path) -> Store:
    (tmp_path / "mlflow.db").write_bytes(empty_database.read_bytes())
    return Store(experiment="paretoderm", folder=tmp_path, uri=f"sqlite:///{tmp_path}/mlflow.db")


def test_run_has_the_record_of_a_network_but_flops_and_epochs(
    store: Store,
    tmp_path: Path,
    run_entry: Callable[..., tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    status, said = run_entry(
        train.main, *SMOKE, f"tracking.uri={store.uri}", f"data.cache_dir={tmp_path}/cache"
    )
    assert status == 0, said
    (run,) = (row for _, row in read.runs(store).iterrows())
    assert run["status"] == "FINISHED"
    wanted = [
        f"{split}/{name}"
        for split in ("best/val", "test")
        for name in ("loss", "balanced_accuracy", "auroc")
    ]
    wanted += [
        "efficiency/params",
        "efficiency/size_mb",
        "efficiency/latency_ratio",
        "efficiency/peak_memory_mb",
    ]
    wanted += ["efficiency/latency_ms/b1/p50", "efficiency/throughput", "time/fit_s"]
    assert [name for name in wanted if pd.isna(run.get(f"metrics.{name}"))] == []
    assert not [name for name in run.index if "flops" in name and name.startswith("metrics.")]
    assert "metrics.best/epoch" not in run
    assert run["metrics.efficiency/trainable_params"] == 0
    assert run["metrics.data/images/fitted"] == run["metrics.data/images/train"]
    assert run["tags.weights"] == "none"
    assert (
        run["tags.chosen_by"] == "train: 3-fold cross-validation, grouped, mean balanced_accuracy"
    )
    folder = read.artifact(store, run["run_id"], "")
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names >= {
        *(
            "config.yaml",
            "overrides.txt",
            "environment.json",
            "efficiency.json",
            "checkpoint/best.ckpt",
        ),
        *(
            "predictions/val.csv",
            "predictions/test.csv",
            "per_class/test.csv",
            "search/grid.csv",
            "search/sample.csv",
        ),
        *("figures/contact_sheet.png", "figures/confusion_test.png"),
    }
    assert "figures/learning_curves.png" not in names
    sample, grid = (pd.read_csv(folder / "search" / name) for name in ("sample.csv", "grid.csv"))
    tested = set(pd.read_csv(folder / "predictions" / "test.csv")["image_id"])
    assert len(sample) == run["metrics.data/images/train"]
    assert not tested & set(sample["image_id"])
    assert f"{grid.loc[grid['chosen'], 'kernel'].item()}, C=" in run["tags.svm"]
    state = torch.load(folder / "checkpoint" / "best.ckpt", weights_only=True)["state_dict"]
    numbers = (
        sum(tensor.numel() for tensor in state.values()) - 1
    )  # the kernel's number is none that a fit found
    assert run["metrics.efficiency/params"] == numbers
    before = {name: run[f"metrics.{name}"] for name in wanted if name.startswith("test/")}
    again = evaluate_on_test(
        store, run["run_id"]
    )  # from the checkpoint, whose shapes depend on the fit
    assert {name: again[name] for name in before} == pytest.approx(before, abs=1e-6)


@pytest.mark.parametrize(
    ("objective", "outcome"),
    [
        (
            "efficiency/flops",
            (
                "pruned",
                "this model has no efficiency/flops; its row is in the comparison, off the front",
            ),
        ),
        ("efficiency/latency_ratio", ("complete", "")),
    ],
)
def test_a_study_over_flops_searches_without_it(objective: str, outcome: tuple[str, str]) -> None:
    told: list[Any] = []
    plain = {"objectives": [{"metric": "val/balanced_accuracy"}, {"metric": objective}]}
    context: Any = SimpleNamespace(
        objectives=parse_objectives(plain),
        limits=parse_limits(plain),
        give_up=lambda state, kind, reason: told.append((state, reason)),
        commit=lambda metrics: told.append(("complete", "")),
    )
    jobs._commit(context, {"best/val/balanced_accuracy": 0.5, "efficiency/latency_ratio": 2.0})
    assert told == [outcome]
    told.clear()
    jobs._commit(
        context,
        {
            "best/val/balanced_accuracy": 0.5,
            "efficiency/latency_ratio": 2.0,
            "efficiency/flops": 3.0,
        },
    )
    assert told == [("complete", "")]
