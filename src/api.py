"""Use from Python: compose, run, study, load_model and predictions, for notebooks and scripts.

Example:
    from src import api

    config = api.compose(["model=custom", "trainer.max_epochs=1"])
    result = api.run(config)
    result.metrics["best/val/balanced_accuracy"]
    model = api.load_model(result.run_id)

    study = api.study(["model=custom", "model.net.width=choice(8,16)"])
    study.front
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import hydra
import pandas as pd
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig
from torch import nn

from src import run as runs
from src import study as studies
from src.core.cli import CONF
from src.core.config import flatten, instantiate
from src.core.errors import ConfigError, UserError
from src.deployment import trained
from src.metrics.registry import Objective, describe, parse_limits
from src.reporting import comparison
from src.tracking import read
from src.tracking.store import Store, existing


@dataclass(frozen=True)
class RunResult:
    """A finished run: its id in MLflow and its final metrics by their recorded names."""

    run_id: str
    metrics: dict[str, float]
    store: Store


@dataclass(frozen=True)
class StudyResult:
    """A study that has ended; `is_complete` if every trial ended well.

    `trials` has one row per trial, best first by the first objective: `run_id`, `status`,
    `overrides`, `front` (bool), `feasible` (whether the limits hold), `failure`, and the metrics by
    their recorded names, such as "best/val/balanced_accuracy".
    """

    name: str
    is_complete: bool
    trials: pd.DataFrame
    objectives: list[Objective]
    store: Store

    @property
    def front(self) -> pd.DataFrame:
        """The rows of `trials` on the Pareto front."""
        return self.trials[self.trials["front"]]

    def best(self, metric: str | None = None, limits: Sequence[str] = ()) -> pd.Series:
        """The row of `trials` with the best value of a metric, among those that keep all limits.

        Args:
            metric: Name from the run record, with the registry's direction; None: the first
                objective.
            limits: Further limits, such as "efficiency/params <= 692e3".

        Raises:
            UserError: No trial has the metric and keeps the limits, or there is no such metric.
        """
        objective = Objective(metric, describe(metric).direction) if metric else self.objectives[0]
        rows = self.trials[self.trials["feasible"]]
        for limit in parse_limits({"limits": list(limits)}):
            values = rows.reindex(columns=[limit.metric]).iloc[:, 0]
            rows = rows[values.map(limit.holds).astype(bool)]
        values = rows.reindex(columns=[objective.metric]).iloc[:, 0].astype(float)
        if values.isna().all():
            raise UserError(f"{self.name}: no trial has {objective.metric} and keeps the limits")
        return rows.iloc[values.argmax() if objective.direction == "maximize" else values.argmin()]


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """Compose `conf/train.yaml`, with overrides as on the command line, such as "model=custom"."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("train", list(overrides))


def run(config: DictConfig) -> RunResult:
    """Train one run, or compress one, and log it to MLflow.

    The config is from `compose`; its values may have been changed since.

    Raises:
        UserError: A value is impossible, or the run failed for a reason that the user can correct.
    """
    default = flatten(compose())
    changes = {key: value for key, value in flatten(config).items() if default.get(key) != value}
    overrides = [f"{key}={value}" for key, value in changes.items()]
    with tempfile.TemporaryDirectory() as folder:
        run_id = runs.single_run(config, Path(folder), overrides)
    if run_id is None:
        raise UserError("only the first process of a distributed run has a result")
    store = instantiate(config.tracking, "tracking")
    return RunResult(run_id, dict(store.client.get_run(run_id).data.metrics), store)


def study(overrides: Sequence[str], name: str | None = None) -> StudyResult:
    """Run a study, or resume it, as `python -m src.train -m <overrides>` does.

    Args:
        overrides: As on the command line, sweeps included: ["model=custom,resnet50"],
            ["sweeps=smoke"], ["model.net.width=choice(8,16)", "hydra.sweeper.n_trials=2"].
        name: Name of the study; None: that of its file in sweeps/, or one made from the overrides.

    Raises:
        UserError: Bad input, or trials that all fail in the same way.
    """
    arguments = [*overrides, *([f"hydra.sweeper.study_name={name}"] if name else [])]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration("train", arguments, RunMode.MULTIRUN)
        if config.dry_run:
            raise ConfigError("dry_run", "prints an estimate: use it on the command line")
        settings, swept = config.hydra.sweeper, list(config.hydra.overrides.task)
        plan = studies.make_plan(config, settings, swept)
        is_complete = studies.sweep(config, loader, settings, swept)
    store = instantiate(config.tracking, "tracking")
    parents = read.runs(store, "tags.kind = 'study'")
    parent = parents.loc[parents["tags.study"] == plan.name, "run_id"].iloc[0]
    trials = comparison.compare(read.children(store, parent), plan.objectives, plan.limits)
    return StudyResult(plan.name, is_complete, trials, plan.objectives, store)


def load_model(run_id: str, store: Store | None = None) -> nn.Module:
    """Load the trained model of a run, whose id may be shortened, in evaluation mode.

    Returns:
        RGB pictures, uint8 (N, S, S, 3) -> probabilities (N, K) of the classes in label order.

    Raises:
        UserError: No such run, or it has no trained model.
    """
    store = store or existing(compose())
    model = trained.single(store, run_id)
    return trained.load(store, model.run_id, model.config, trained.class_names(store, model))


def predictions(run_id: str, split: str = "val", store: Store | None = None) -> pd.DataFrame:
    """The recorded predictions of a run on a split, "val" or "test".

    Returns:
        One row per image: `image_id`, `group`, `label`, and `p/<class>` for each class.

    Raises:
        UserError: The run has no predictions of the split.
    """
    return read.predictions(store or existing(compose()), run_id, split)
