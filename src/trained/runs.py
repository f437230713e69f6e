"""Which trained nets an evaluation is about: those of a run, or of a trial's seeds."""

from dataclasses import dataclass

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from src.config import check_targets
from src.errors import ConfigError, UserError
from src.tracking import cache, history, read
from src.tracking.store import Store

SHOWN = 5  # runs that are named where several are meant
EVALUATION = "evaluation"  # the tag `kind` of a run that evaluates another one


@dataclass(frozen=True)
class Net:
    """A trained net: its run and its seed."""

    run_id: str
    seed: str


@dataclass(frozen=True)
class Evaluated:
    """What is evaluated: a run, or a trial with the runs of its seeds.

    Attributes:
        run_id: Of the run or trial.
        repeated: Whether it is a trial of several seeds.
        model: Name of the architecture.
        data: Name of the data set that it was trained on.
        split: How those were split, such as "grouped" or "image (leaking)".
        split_fingerprint: Of its images, labels and split.
        nets: By seed.
        config: Of the first net.
    """

    run_id: str
    repeated: bool
    model: str
    data: str
    split: str
    split_fingerprint: str
    nets: tuple[Net, ...]
    config: DictConfig

    @property
    def title(self) -> str:
        """For people: the model and the start of the id."""
        seeds = f", {len(self.nets)} seeds" if len(self.nets) > 1 else ""
        return f"{self.model} ({self.run_id[:8]}{seeds})"

    def predictions(self, store: Store, split: str) -> list[pd.DataFrame]:
        """What each net predicted of a split; empty where not all of them have been evaluated on it.

        Raises:
            TrackingError: What is recorded cannot be read.
        """
        if self.predicted(store, split) < len(self.nets):
            return []
        return [history.predictions(store, net.run_id, split) for net in self.nets]

    def predicted(self, store: Store, split: str) -> int:
        """How many of the nets have been evaluated on a split."""
        return sum(history.has_predictions(store, net.run_id, split) for net in self.nets)


def named(run: str | None) -> str:
    """The run that a config names, by its id or the start of it.

    Raises:
        ConfigError: None is named.
    """
    if run is None or not run.strip():
        raise ConfigError("run", "name one, as in run=3f2a9c; the tables of src.train and src.report show the ids")
    return run.strip()


def find(store: Store, wanted: str) -> Evaluated:
    """The run of that id.

    Args:
        store: Opened if it is not yet.
        wanted: The id, or the start of it if no other run's starts so.

    Raises:
        UserError: No such run, or one that has no trained net; the message says why.
    """
    runs = cache.cached_runs(store)
    row = _only(runs, wanted)
    run_id = str(row["run_id"])
    kind = _text(row, "tags.kind") or "run"
    if kind not in ("run", "trial"):
        what = f"is an evaluation of run {_text(row, 'tags.evaluated_run')}" if kind == EVALUATION else f"is a {kind}"
        raise UserError(f"run={wanted}: {what}, not a trained run; name one of its runs")
    below = runs[runs["parent_id"] == run_id] if kind == "trial" else runs[runs["run_id"] == run_id]
    trained = [each for _, each in below.iterrows() if not _why_not(each)]
    if not trained:
        reasons = sorted({_why_not(each) for _, each in below.iterrows()}) or ["it has no seeds"]
        raise UserError(f"run={wanted}: has no trained net to evaluate ({'; '.join(reasons)}); name a finished run")
    trained.sort(key=lambda each: int(_text(each, "tags.seed") or 0))
    nets = tuple(Net(str(each["run_id"]), _text(each, "tags.seed")) for each in trained)
    for net in nets:
        if not store.client.list_artifacts(net.run_id, "deployed"):  # a compressed net may be a file
            read.artifact(store, net.run_id, "checkpoint")
    config = OmegaConf.load(read.artifact(store, nets[0].run_id, "config.yaml"))
    assert isinstance(config, DictConfig)
    check_targets(config)
    first = trained[0]
    model, data, split, fingerprint = (
        _text(first, f"tags.{tag}") for tag in ("model", "data", "split", "split_fingerprint")
    )
    return Evaluated(run_id, kind == "trial", model, data, split, fingerprint, nets, config)


def _only(runs: pd.DataFrame, wanted: str) -> pd.Series:
    found = runs[runs["run_id"].str.startswith(wanted)]
    if found.empty:
        raise UserError(f"run={wanted}: no such run; `make ui` and the tables of src.train and src.report show the ids")
    if len(found) > 1:
        some = ", ".join(found["run_id"].head(SHOWN))
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise UserError(f"run={wanted}: several runs start so: {some}{more}; name more of the id")
    return found.iloc[0]


def _why_not(row: pd.Series) -> str:
    """Why a run has no trained net; empty where it has."""
    if row["status"] != "FINISHED":
        reason = _text(row, "tags.failure")
        return f"it is {row['status']}{': ' + reason if reason else ''}"
    state = _text(row, "tags.trial_state") or "complete"
    return "" if state == "complete" else f"it was ended early: {_text(row, 'tags.ended_early') or state}"


def _text(row: pd.Series, column: str) -> str:
    value = row.get(column)
    return value if isinstance(value, str) else ""
