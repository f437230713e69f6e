"""The main job: one recorded run, and what a multirun's runs amount to."""

import logging
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from src import multirun, training
from src.analysis.comparison import compare, notes, recorded_name, render, row_name
from src.config import check, instantiate, resolve
from src.data.module import DataModule
from src.entry import ROOT, format_bug, one_line
from src.errors import UserError
from src.objectives import Limit, Objective, parse_limits, parse_objectives
from src.reproducibility import config_hash, git_state
from src.tracking import read
from src.tracking.orphans import reap
from src.tracking.run import Run
from src.tracking.store import Store

log = logging.getLogger(__name__)
WITHOUT_EFFECT = ("tracking", "study", "objective", "test", "data.cache_dir")  # on what is trained and measured
console = Console(width=100)


def one_run(config: DictConfig) -> bool:
    """Hydra's task. In a multirun a run that fails is a row with its reason, and the others go on.

    Returns:
        Whether the run ended well.

    Raises:
        UserError: In a single run: bad input, already recorded as the run's failure.
    """
    hydra = HydraConfig.get()
    if hydra.mode is not RunMode.MULTIRUN:
        record_run(config, Path(hydra.runtime.output_dir), list(hydra.overrides.task), None, 0)
        return True
    try:
        folder = Path(hydra.sweep.dir).absolute()
        record_run(config, Path(hydra.runtime.output_dir), list(hydra.overrides.task), folder, int(hydra.job.num))
    except Exception as error:
        log.error("run %s failed: %s", hydra.job.num, one_line(error) or format_bug(error))
        return False
    return True


def record_run(config: DictConfig, folder: Path, overrides: list[str], study_folder: Path | None, trial: int) -> None:
    """Train, measure and record one config.

    Args:
        config: A composed `conf/train.yaml`.
        folder: The run's own folder.
        overrides: What the user typed.
        study_folder: The multirun's folder, if the run is one of a multirun.
        trial: Number of the run within its multirun.
    """
    problem: UserError | None = None
    plain: dict[str, Any] = {}
    try:
        plain = resolve(config)
        check(plain)
        parse_objectives(plain["objective"])
        parse_limits(plain["objective"])
    except UserError as error:
        if study_folder is None:
            raise
        problem = error
    if not training.writes_record():
        training.train(config, training.build(config), None, folder)
        return
    store: Store = instantiate(config.tracking, "tracking")
    store.open()
    for run_id in reap(store):
        log.warning("run %s had been left by a process that is gone: marked FAILED", run_id)
    parent = multirun.parent_run(config, study_folder, store) if study_folder else None
    name = str(config.model.get("name", "run"))
    tags = _tags(config, plain, study_folder, trial) | {"overrides": " ".join(overrides)}
    with Run.start(store, name, tags, plain, parent) as run:
        if problem is not None:
            raise problem
        parts = training.build(config)
        training.describe_inputs(config, overrides, parts, run, folder)
        run.tag(split=_split_label(parts.data))
        checkpoint = training.train(config, parts, run, folder)
        run.artifact(checkpoint, "checkpoint")
        training.measure(config, parts.classifier, run)
        for split in _evaluated_splits(config, parts.data, study_folder is not None):
            training.evaluate(config, parts, split, run, folder)
        run.log({"time/tracking_s": run.seconds})
    if study_folder is None:
        _show_single(store, run.id, parse_objectives(config.objective), parse_limits(config.objective))


def finish_multirun(record: dict[str, Any], error: BaseException | None) -> list[str]:
    """Compare the runs of a multirun, test the front's members once, and close the parent.

    Args:
        record: What `src.multirun.parent_run` wrote.
        error: What ended the multirun, if it did not end by itself.

    Returns:
        Ids of the runs that failed.
    """
    store: Store = instantiate(OmegaConf.create(record["tracking"]), "tracking")
    reap(store)
    with Run.attach(store, record["run_id"]) as parent:
        objectives, limits = parse_objectives(record["objective"]), parse_limits(record["objective"])
        table = compare(read.children(store, parent.id), objectives, limits)
        if error is None and record["test"] == "auto":
            _test_front(store, table)
            table = compare(read.children(store, parent.id), objectives, limits)
        for run_id, on_front in zip(table["run_id"], table["front"], strict=True):
            Run.attach(store, run_id).tag(front=str(bool(on_front)).lower())
        parent.table(table, "comparison.csv")
        parent.log({"runs/finished": float((table["status"] == "FINISHED").sum()), "runs/all": float(len(table))})
        _show(table, [*objectives, *limits], record["study"], store, parent.id)
        if error is not None:
            raise error
    return list(table.loc[table["status"] != "FINISHED", "run_id"])


def test_run(store: Store, run_id: str) -> None:
    """Evaluate a finished run's checkpoint on its test split and add the figures to its record."""
    config = OmegaConf.load(read.artifact(store, run_id, "config.yaml"))
    assert isinstance(config, DictConfig)
    parts = training.build(config, pretrained=False)
    training.load_weights(parts.classifier, read.artifact(store, run_id, "checkpoint/best.ckpt"))
    if not parts.data.has("test"):
        return
    run = Run.attach(store, run_id)
    with tempfile.TemporaryDirectory() as folder:
        training.evaluate(config, parts, "test", run, Path(folder))
    run.flush()


def _test_front(store: Store, table: pd.DataFrame) -> None:
    members = table[table["front"]]
    if "test/accuracy" in members:
        members = members[members["test/accuracy"].isna()]
    for run_id in members["run_id"]:
        log.info("front member %s: evaluated on the test split, once", run_id)
        try:
            test_run(store, run_id)
        except Exception as error:  # the comparison of the others is not lost for it
            reason = one_line(error) or format_bug(error)
            Run.attach(store, run_id).tag(test_failure=reason)
            log.error("front member %s could not be evaluated on the test split: %s", run_id, reason)


def _evaluated_splits(config: DictConfig, data: DataModule, in_multirun: bool) -> list[str]:
    """Validation always; test if the config says so, or where no choice between runs can come after it."""
    chosen_later = in_multirun and data.has("val")
    tested = config.test is True or (config.test == "auto" and not chosen_later)
    return [name for name, wanted in (("val", True), ("test", tested)) if wanted and data.has(name)]


def _tags(config: DictConfig, plain: dict[str, Any], study_folder: Path | None, trial: int) -> dict[str, Any]:
    commit, dirty = git_state(ROOT)
    return {
        "kind": "run",
        "study": multirun.study_name(config, study_folder) if study_folder else config.study or "",
        "trial": trial,
        "repeat": 0,
        "seed": config.seed,
        "model": config.model.get("name", ""),
        "data": config.data.get("name", ""),
        "split": config.data.get("split", ""),
        "git_commit": commit or "unknown",
        "git_dirty": dirty,
        "config_hash": config_hash(plain, WITHOUT_EFFECT),
    }


def _split_label(data: DataModule) -> str:
    leaks = data.record()["data/groups_on_two_sides"] > 0
    return f"{data.split_mode} (leaking)" if leaks else data.split_mode


def _show_single(store: Store, run_id: str, objectives: list[Objective], limits: list[Limit]) -> None:
    runs = read.runs(store, f"attributes.run_id = '{run_id}'")
    _show(compare(runs, objectives, limits), [*objectives, *limits], str(runs.at[0, "name"]), store, run_id)


def _show(table: pd.DataFrame, drawn_over: list[Objective | Limit], title: str, store: Store, run_id: str) -> None:
    """Print the comparison, what is wrong with it, and where to look next."""
    if recorded_name("val/accuracy") in table:
        console.print(render(table, f"{title}: validation, at the kept epoch", "val"))
    tested = table[table["test/accuracy"].notna()] if "test/accuracy" in table else table.iloc[:0]
    if len(tested):
        console.print(render(tested, f"{title}: test, never used for choosing", "test"))
    _say(f"front: {', '.join(map(str, drawn_over))}")
    for note in notes(table):
        _say(note)
    for _, row in table[table["status"] != "FINISHED"].iterrows():
        _say(f"{row['status']}: {row['model']}, run {row['run_id']}: {row['failure']}")
    for _, row in table.iterrows():
        _say(f"run {row['run_id']}  {row_name(table, row)}")
    page = f"#/experiments/{store.experiment_id}/runs/{run_id}"
    console.print(f"look: {_ui(store)}/{page}", highlight=False, markup=False, soft_wrap=True)


def _ui(store: Store) -> str:
    """Where the store can be looked at: its server's address, or the command that serves it."""
    if store.is_server:
        return store.uri.rstrip("/")
    command = "make ui" if store.uri == Store().uri else f"python -m src.tracking.ui uri={store.uri}"
    return f"{command}, then http://127.0.0.1:5000"


def _say(line: str) -> None:
    console.print(line, highlight=False, markup=False)
