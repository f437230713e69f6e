"""A recorded run as a net again: find, load, restore, infer, test once."""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from tqdm import tqdm

from src.core.config import check_targets, instantiate
from src.core.errors import ConfigError, UserError
from src.deployment import description
from src.deployment.description import Decision, Description
from src.deployment.runtimes.base import Name, Runtime
from src.deployment.runtimes.eager import CameraNet, CompiledRuntime, EagerRuntime, as_classifier
from src.deployment.runtimes.files import FORMATS, format_of, open_file
from src.metrics import calibration
from src.metrics.classification import probabilities
from src.metrics.registry import MELANOMA
from src.metrics.settings import AuditSettings as Clinical
from src.metrics.thresholds import TargetRate, choose
from src.models.fit_once import FitOnceModel
from src.models.precision import cast_as_recorded
from src.tracking import read
from src.tracking import read as cache
from src.tracking import read as history
from src.tracking.store import Store
from src.training.checkpoint import load_weights
from src.training.classifier import Classifier

SHOWN = 5  # runs that are named where several are meant
EVALUATION = "evaluation"  # the tag `kind` of a run that evaluates another one


@dataclass(frozen=True)
class RecordedNet:
    """A trained net: its run and its seed."""

    run_id: str
    seed: str


@dataclass(frozen=True)
class RecordedModel:
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
    nets: tuple[RecordedNet, ...]
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
        if self.count_predicted(store, split) < len(self.nets):
            return []
        return [history.predictions(store, net.run_id, split) for net in self.nets]

    def count_predicted(self, store: Store, split: str) -> int:
        """How many of the nets have been evaluated on a split."""
        return sum(history.has_predictions(store, net.run_id, split) for net in self.nets)


def require_run_id(run: str | None) -> str:
    """The run that a config names, by its id or the start of it.

    Raises:
        ConfigError: None is named.
    """
    if run is None or not run.strip():
        raise ConfigError(
            "run", "name one, as in run=3f2a9c; the tables of src.train and src.report show the ids"
        )
    return run.strip()


def find(store: Store, wanted: str) -> RecordedModel:
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
        what = (
            f"is an evaluation of run {_text(row, 'tags.evaluated_run')}"
            if kind == EVALUATION
            else f"is a {kind}"
        )
        raise UserError(f"run={wanted}: {what}, not a trained run; name one of its runs")
    below = runs[runs["parent_id"] == run_id] if kind == "trial" else runs[runs["run_id"] == run_id]
    trained = [each for _, each in below.iterrows() if not _why_not(each)]
    if not trained:
        reasons = sorted({_why_not(each) for _, each in below.iterrows()}) or ["it has no seeds"]
        raise UserError(
            f"run={wanted}: has no trained net to evaluate ({'; '.join(reasons)}); name a finished run"
        )
    trained.sort(key=lambda each: int(_text(each, "tags.seed") or 0))
    nets = tuple(RecordedNet(str(each["run_id"]), _text(each, "tags.seed")) for each in trained)
    for net in nets:
        if not store.client.list_artifacts(
            net.run_id, "deployed"
        ):  # a compressed net may be a file
            read.artifact(store, net.run_id, "checkpoint")
    config = OmegaConf.load(read.artifact(store, nets[0].run_id, "config.yaml"))
    assert isinstance(config, DictConfig)
    check_targets(config)
    first = trained[0]
    model, data, split, fingerprint = (
        _text(first, f"tags.{tag}") for tag in ("model", "data", "split", "split_fingerprint")
    )
    return RecordedModel(run_id, kind == "trial", model, data, split, fingerprint, nets, config)


def _only(runs: pd.DataFrame, wanted: str) -> pd.Series:
    found = runs[runs["run_id"].str.startswith(wanted)]
    if found.empty:
        raise UserError(
            f"run={wanted}: no such run; `make ui` and the tables of src.train and src.report show the ids"
        )
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
    return (
        ""
        if state == "complete"
        else f"it was ended early: {_text(row, 'tags.ended_early') or state}"
    )


def _text(row: pd.Series, column: str) -> str:
    value = row.get(column)
    return value if isinstance(value, str) else ""


DEPLOYED = "deployed"  # of the artifacts of a run whose model is a file of its own
CHECKPOINT = "checkpoint/best.ckpt"


def restore(classifier: Classifier, store: Store, run_id: str) -> Classifier:
    """The classifier with the run's trained net.

    Args:
        classifier: Freshly built from the run's config; torch's weights are put into it.
        store: That holds the run.
        run_id: The run.

    Returns:
        `classifier`, or another one around the run's deployed file.

    Raises:
        UserError: No checkpoint, one of another network, or a runtime that is not installed.
    """
    files = [item.path for item in store.client.list_artifacts(run_id, DEPLOYED)]
    if files:
        return as_classifier(open_file(read.artifact(store, run_id, files[0])), classifier)
    load_weights(classifier, read.artifact(store, run_id, CHECKPOINT))
    return classifier


SINGLE = ("32", "32-true")  # Lightning's names of float32


def build_classifier(config: DictConfig, classes: Sequence[str]) -> Classifier:
    """A run's net as it is before its weights are put in, without the data that it was trained on.

    Args:
        config: Of the run, its targets checked.
        classes: Of the run, in label order.

    Raises:
        UserError: The run is no net.
    """
    if config.model.get("_target_") != "src.training.classifier.Classifier":
        raise UserError(
            f"{config.model.get('name')}: is no network; it cannot be evaluated on other data"
        )
    config = config.copy()
    if "weights" in config.model.net:
        config.model.net.weights = "random"  # the checkpoint's follow
    net: nn.Module = instantiate(
        config.model.net, "model.net", outputs=1 if len(classes) == 2 else len(classes)
    )
    cast_as_recorded(net, config)
    classifier: Classifier = instantiate(
        config.model,
        "model",
        ("net", "image_size"),
        net=net,
        image_size=config.data.image_size,
        loss=nn.Identity(),
        classes=tuple(classes),
        optimizer=None,
        scheduler=None,
    )
    return classifier.eval()


def load_checkpoint(config: DictConfig, classes: Sequence[str], checkpoint: Path) -> Classifier:
    """A run's trained net, without the data that it was trained on.

    Args:
        config: Of the run, its targets checked.
        classes: Of the run, in label order.
        checkpoint: Its `best.ckpt`.

    Raises:
        UserError: The run is no net, or the checkpoint is not its own.
    """
    classifier = build_classifier(config, classes)
    load_weights(classifier, checkpoint)
    return classifier


def _bar(images: int, title: str) -> "tqdm[Any]":
    """On a terminal only: a log of its thousand states helps nobody."""
    return tqdm(total=images, desc=title, unit="image", file=sys.stderr, leave=False, disable=None)


def precision_warnings(config: DictConfig) -> list[str]:
    """What to know where a run's own predictions were made in another precision than `predict` has.

    Args:
        config: Of the run.
    """
    precision = str(config.trainer.get("precision", SINGLE[0]))
    if precision in SINGLE:
        return []
    return [
        f"The run's own figures and thresholds come from a trainer in {precision} precision, these predictions are in "
        "single precision (float32): scores next to a threshold may fall to its other side."
    ]


def predict(
    classifier: Classifier,
    images: npt.NDArray[np.uint8],
    rows: npt.NDArray[np.int64],
    batch_size: int,
    title: str,
) -> npt.NDArray[np.float32]:
    """Class probabilities of images, with a progress bar.

    Args:
        classifier: Trained, in evaluation mode; moved to a GPU where there is one.
        images: uint8 (N, S, S, 3).
        rows: Which of them, int (M,).
        batch_size: Images a batch.
        title: Of the bar.

    Returns:
        float32 (M, K), each row summing to 1.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classifier = classifier.to(device)
    found = []
    with torch.inference_mode(), _bar(len(rows), title) as bar:
        for start in range(0, len(rows), batch_size):
            batch = (
                torch.from_numpy(images[rows[start : start + batch_size]])
                .permute(0, 3, 1, 2)
                .to(device)
            )
            found.append(probabilities(classifier(batch).float()).cpu())
            bar.update(len(batch))
    return torch.cat(found).numpy()


# by which the stored threshold may lie below the score that was chosen: runtimes round differently
SLACK = 1e-5
TORCH: dict[str, type[EagerRuntime]] = {"eager": EagerRuntime, "compile": CompiledRuntime}


def open_run(
    store: Store, run_id: str, runtime: Name = "eager", threads: int = 1, folder: Path | None = None
) -> Runtime:
    """A trained run in a runtime.

    Args:
        store: That holds the run.
        run_id: Of a single run, not of a trial of several seeds; the start of it is enough.
        runtime: In which it shall run. A compressed run whose model is a file runs in that file's
            own.
        threads: Of one call.
        folder: Where a file is written that the runtime needs; None: one that does not stay.

    Raises:
        UserError: No such run, no trained net, or one that does not go with the runtime.
    """
    run = single(store, run_id)
    file = deployed_file(store, run)
    if file is not None:
        found = format_of(file)
        if runtime != found.name:
            raise UserError(
                f"runtime={runtime}: run {run.run_id} is a {found.suffix} file; take runtime={found.name}"
            )
        return open_file(file, threads)
    if runtime in TORCH:
        return TORCH[runtime](load_classifier(store, run), describe(store, run), threads)
    if folder is not None:
        return open_file(write_file(store, run, runtime, folder), threads)
    with tempfile.TemporaryDirectory() as own:
        return open_file(write_file(store, run, runtime, Path(own)), threads)


def single(store: Store, run_id: str) -> RecordedModel:
    """The run of that id.

    Raises:
        UserError: There is none with a trained net, or it is a trial of several seeds, whose runs
            are then named.
    """
    run = find(store, run_id)
    if run.repeated:
        seeds = ", ".join(f"{net.run_id} (seed {net.seed})" for net in run.nets)
        raise UserError(
            f"run={run_id}: is a trial of several seeds, each a model of its own; name one: {seeds}"
        )
    return run


def deployed_file(store: Store, run: RecordedModel) -> Path | None:
    """The file that a compressed run's model is; None where it is a checkpoint.

    Raises:
        TrackingError: It is recorded, but not there.
    """
    files = [item.path for item in store.client.list_artifacts(run.run_id, DEPLOYED)]
    suffixes = {each.suffix for each in FORMATS.values()}
    found = next((path for path in files if Path(path).suffix in suffixes), None)
    return None if found is None else read.artifact(store, run.run_id, found)


def load_classifier(store: Store, run: RecordedModel) -> Classifier:
    """The trained net of a run that has a checkpoint.

    Raises:
        UserError: The run is no network, or has no checkpoint.
    """
    return restore(build_classifier(run.config, class_names(store, run)), store, run.run_id)


def load_network(store: Store, run: RecordedModel) -> Classifier:
    """The trained net of a run that can be written as a file.

    Raises:
        UserError: The run is no network, or has no checkpoint.
    """
    found = load_classifier(store, run)
    if isinstance(found.net, FitOnceModel):
        raise UserError(
            f"run={run.run_id}: {run.model} is no network, and no format for devices holds it"
        )
    return found


def class_names(store: Store, run: RecordedModel) -> list[str]:
    """The run's classes in label order.

    Raises:
        UserError: It has no predictions, which tell them.
    """
    for split in ("val", "test"):
        for frame in run.predictions(store, split):
            return [str(name).removeprefix("p/") for name in frame if str(name).startswith("p/")]
    raise UserError(
        f"run={run.run_id}: has no recorded predictions, which tell its classes; train it again"
    )


def write_file(store: Store, run: RecordedModel, name: str, folder: Path) -> Path:
    """Write a run's net as a file.

    Args:
        store: That holds the run.
        run: A single one with a checkpoint.
        name: Of the format: onnx, executorch or litert.
        folder: Made if it is not there.

    Returns:
        The file: the run's id and the format's suffix.

    Raises:
        UserError: It cannot be done with this net, or here.
    """
    made = FORMATS[name]
    path = folder / f"{run.run_id}{made.suffix}"
    part = path.with_name(f"{path.stem}.part{made.suffix}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        made.write(CameraNet.of(load_network(store, run)), describe(store, run), part)
        part.replace(path)
    except OSError as error:
        raise UserError(f"{path}: the model cannot be written there ({error})") from error
    finally:
        part.unlink(missing_ok=True)
    return path


def describe(store: Store, run: RecordedModel) -> Description:
    """What a deployed model of a run says about itself: where its model is a file already, what that file says.

    Args:
        store: That holds the run.
        run: A single one.

    Raises:
        UserError: The file's runtime is not installed, or what is recorded cannot be read.
    """
    file = deployed_file(store, run)
    if file is not None:
        return open_file(file).description
    return Description(
        run_id=run.run_id,
        model=run.model,
        classes=tuple(class_names(store, run)),
        image_size=int(run.config.data.image_size),
        geometry=run.config.data.geometry,
        data=run.data,
        split=run.split,
        licence=description.note(run.config.data),
        precision=store.client.get_run(run.run_id).data.tags.get(
            "precision", Description.precision
        ),
        decision=choose_decision(store, run),
    )


def choose_decision(
    store: Store, run: RecordedModel, sensitivity: float = Clinical.sensitivity
) -> Decision | None:
    """Threshold and temperature, chosen on the validation images that the run predicted.

    Args:
        store: That holds the run.
        run: A single one.
        sensitivity: That the threshold has to reach there.

    Returns:
        None where there is no validation split, no class that goes by a name of melanoma, or no
        threshold of any use.
    """
    for frame in run.predictions(store, "val"):
        names = class_names(store, run)
        positive = next((name for name in names if name.lower() in MELANOMA), None)
        if positive is None:
            return None
        score, own = frame[f"p/{positive}"].to_numpy(float), (frame["label"] == positive).to_numpy()
        wish = TargetRate("sensitivity", sensitivity)
        chosen = choose(score, own, wish)
        if chosen.problem:
            return None
        probability = frame[[f"p/{name}" for name in names]].to_numpy(float)
        target = frame["label"].map({name: label for label, name in enumerate(names)}).to_numpy(int)
        below = score[score < chosen.value].max(initial=chosen.value - 2 * SLACK)
        return Decision(
            positive,
            float((chosen.value + below) / 2),
            f"{wish} on val",
            calibration.fit(probability, target),
        )
    return None
