"""Predictions for pictures: find the model, decode, predict, write, show."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pandas as pd
from annotated_types import Ge, Le
from omegaconf import DictConfig
from tqdm import tqdm

from src.core import cli
from src.core.cli import console, say
from src.core.config import load_settings
from src.core.errors import ConfigError, DataError, UserError
from src.core.files import (
    atomic_file,
    atomic_folder,
    expanded,
    is_there,
    refuse_unwritable,
    spreadsheet,
)
from src.core.tables import Table
from src.data.source import IMAGE_SUFFIXES, Manifest
from src.deployment.description import RESEARCH, Decision, Description
from src.deployment.inputs import Batch, ImageInput
from src.deployment.runtimes.base import ImageBatch, Probabilities, Runtime, in_batches
from src.deployment.runtimes.formats import FORMATS, open_file

if TYPE_CHECKING:
    from src.deployment.runtimes.eager import CameraNet
    from src.tracking.store import Store

NO_NUMBER = "the model gives no number for it"
SHOWN = 20  # pictures listed on the terminal; more are counted
DIGITS = "%.9g"  # enough to read single precision back without loss


@dataclass
class PredictSettings:
    """The values of conf/command/predict.yaml, which explains them."""

    named: str | None = None
    input: str | None = None
    out: str | None = "predictions.csv"
    unsure_below: Annotated[float, Ge(0), Le(1)] | None = None
    gradcam: bool | str = False
    threads: Annotated[int, Ge(1)] | None = None
    batch_size: Annotated[int, Ge(1)] = 64

    @property
    def model(self) -> str:
        """What names the model.

        Raises:
            ConfigError: Nothing does.
        """
        return _required(
            self.named,
            "model",
            "name a run, a registered model or an exported file, as in model=3f2a9c",
        )

    @property
    def pictures(self) -> Path:
        """An existing picture, folder or CSV.

        Raises:
            ConfigError: None is named, or it does not exist.
        """
        name = _required(
            self.input, "input", "name a picture, a folder or a CSV, as in input=pictures/"
        )
        path = expanded(name)
        if not is_there(path):
            raise ConfigError("input", f"{name} is not there; name a picture, a folder or a CSV")
        return path

    @property
    def csv(self) -> Path | None:
        """The CSV to write; None: none.

        Raises:
            ConfigError: It is a folder, a device, a picture, the input or the model.
        """
        if self.out is None:
            return None
        path = expanded(_required(self.out, "out", "name a CSV to write, or null for none"))
        if path.suffix.lower() in IMAGE_SUFFIXES:
            raise ConfigError("out", f"{self.out} is a picture's name; name a CSV")
        if not is_there(path):
            return path
        if path.is_dir():
            raise ConfigError("out", f"{self.out} is a folder; name a CSV in it")
        if not path.is_file():
            raise ConfigError("out", f"{self.out} is not a file that can be replaced; name a CSV")
        for key, other in (("input", self.pictures), ("model", expanded(self.model))):
            if is_there(other) and path.samefile(other):
                raise ConfigError(
                    "out", f"{self.out} is the {key}, which would be lost; name another file"
                )
        return path

    @property
    def workers(self) -> int:
        """Threads that decode, and threads of the model's runtime."""
        affinity = hasattr(os, "sched_getaffinity")
        return self.threads or (len(os.sched_getaffinity(0)) if affinity else os.cpu_count() or 1)


def _required(value: str | None, key: str, problem: str) -> str:
    if value is None or not value.strip():
        raise ConfigError(key, problem)
    return value.strip()


@dataclass(frozen=True)
class Predictor:
    """A model, or several whose probabilities are averaged.

    Attributes:
        title: Shown to people.
        description: Of the model; the decision of several is chosen for their mean.
        runtimes: One per seed.
        cameras: The torch nets, for Grad-CAM; empty for an exported file.
        notes: Sentences for people.
    """

    title: str
    description: Description
    runtimes: "tuple[Runtime, ...]"
    cameras: "tuple[CameraNet, ...]" = ()
    notes: tuple[str, ...] = ()

    def __call__(self, pictures: ImageBatch) -> Probabilities:
        """Probabilities of the classes, (N, K), N at least 1."""
        values = [in_batches(runtime, pictures) for runtime in self.runtimes]
        mean: Probabilities = np.mean(values, axis=0, dtype=np.float32)
        return mean


def find(name: str, store: "Callable[[], Store]", threads: int) -> Predictor:
    """Find and load a model.

    Args:
        name: A file, the start of a run or trial id, or a registered model.
        store: Opens the run store; not called for a file.
        threads: Threads of a call.

    Raises:
        UserError: No such model, or one without a trained net.
    """
    path = expanded(name)
    suffixes = {form.suffix for form in FORMATS.values()}
    if path.suffix in suffixes or (is_there(path) and path.is_file()):
        runtime = open_file(path, threads)
        about = runtime.description
        return Predictor(f"{path.name} ({about.model}, run {about.run_id[:8]})", about, (runtime,))
    from src.tracking import model_registry, read

    opened = store()
    is_run = bool(read.cached_runs(opened)["run_id"].str.startswith(name).any())
    try:
        registered = model_registry.resolve(opened, name)
    except UserError as error:
        if is_run:
            return _of_run(opened, name, threads)
        raise ConfigError(
            "model", f"{error}; nor does a run's id start so, nor is it an exported file"
        ) from error
    if is_run:
        raise ConfigError(
            "model",
            f"{name} is a registered model, and a run's id starts so too; say {name}/<version>",
        )
    model = _of_run(opened, registered.run_id, threads)
    return replace(model, title=f"{registered.name} version {registered.number}, {model.title}")


def _of_run(store: "Store", run_id: str, threads: int) -> Predictor:
    """A run, or the mean of the seeds of a trial."""
    import torch

    from src.deployment import trained
    from src.deployment.runtimes.eager import EagerRuntime

    try:
        model = trained.find(store, run_id)
        description = trained.describe(store, model)
    except UserError as error:
        raise UserError(str(error).replace("run=", "model=", 1)) from error
    runtimes: list[Runtime] = []
    cameras = []
    for net in model.nets:
        file = trained.deployed_file(store, net.run_id)
        if file is not None:
            runtimes.append(open_file(file, threads))
            continue
        camera = trained.load(store, net.run_id, model.config, description.classes)
        cameras.append(camera)
        # the precision is a tag of the net's run, not of the trial
        tags = store.client.get_run(net.run_id).data.tags
        about = replace(description, precision=tags.get("precision", description.precision))
        # a model that is fitted at once computes its features with NumPy, on the CPU
        on_gpu = torch.cuda.is_available() and not hasattr(camera.net, "fit_once")
        runtimes.append(EagerRuntime(camera, about, threads, "cuda" if on_gpu else "cpu"))
    several = ", mean of their probabilities" if len(model.nets) > 1 else ""
    torch_only = len(cameras) == len(model.nets)
    return Predictor(
        model.title + several,
        replace(description, precision=runtimes[0].description.precision),
        tuple(runtimes),
        tuple(cameras) if torch_only else (),
        tuple(trained.precision_warnings(model.config)) if torch_only else (),
    )


def columns(classes: Sequence[str], decision: Decision | None) -> list[str]:
    """Columns of the CSV; they do not depend on the pictures."""
    calibrated = decision is not None and decision.temperature is not None
    return [
        "image",
        *(f"p/{name}" for name in classes),
        *(f"calibrated/{name}" for name in classes if calibrated),
        *("top", "confidence", "decision", "unsure", "problem"),
    ]


def predictions_frame(
    probability: Probabilities,
    classes: Sequence[str],
    decision: Decision | None,
    unsure_below: float | None,
) -> pd.DataFrame:
    """Predictions of pictures as a table.

    Args:
        probability: As the model gives them, (N, K).
        classes: K names.
        decision: The stored threshold and temperature; None: no decision, nothing is calibrated.
        unsure_below: Pictures with less confidence are marked, in [0, 1]; None: none is marked.

    Returns:
        One row per picture: p/<class>; calibrated/<class> = softmax(log p / T), if there is a
        temperature T; top: the most probable class, the first one of equals; confidence: its
        probability, calibrated if possible; decision: the positive class if its p/<class> (not the
        calibrated one) reaches the threshold, else "not <class>", missing without a threshold;
        unsure: bool, missing unless requested; problem: why there is no prediction, else empty.
        All other columns are missing then.
    """
    raw = probability.astype(float)
    rows = pd.DataFrame(raw, columns=[f"p/{name}" for name in classes])
    trusted = raw
    if decision is not None and decision.temperature is not None:
        from src.metrics import calibration

        trusted = calibration.scale(raw, decision.temperature)
        rows[[f"calibrated/{name}" for name in classes]] = trusted
    top = raw.argmax(axis=1)
    rows["top"] = np.array(classes, dtype=object)[top]
    rows["confidence"] = trusted[np.arange(len(raw)), top]
    rows["decision"] = rows["unsure"] = None
    if decision is not None:
        positive = rows[f"p/{decision.positive}"] >= decision.threshold
        rows["decision"] = np.where(positive, decision.positive, f"not {decision.positive}")
    if unsure_below is not None:
        rows["unsure"] = rows["confidence"] < unsure_below
    valid = np.isfinite(raw).all(axis=1)
    rows = rows.astype({"decision": object, "unsure": object})
    rows.loc[~valid] = None
    rows["problem"] = np.where(valid, "", NO_NUMBER)
    return rows


def make(config: DictConfig) -> pd.DataFrame:
    """Make the predictions that a config asks for.

    Args:
        config: A composed `conf/command/predict.yaml`.

    Returns:
        The predictions, after they were written and shown. `src.core.cli.failures` names unreadable
        pictures.

    Raises:
        UserError: Bad input.
    """
    settings = load_settings(config, PredictSettings, without=("tracking",))
    name, source, csv = settings.model, ImageInput(settings.pictures), settings.csv

    def store() -> "Store":
        from src.tracking.store import existing

        return existing(config)

    manifest = source.manifest()
    if csv is not None:
        refuse_unwritable(csv.with_name(f".{csv.name}"), "the predictions", "out")
    model = find(name, store, settings.workers)
    _show_model(model)
    began = time.perf_counter()
    beside = (csv or Path("predictions.csv")).absolute()
    overlays = beside.with_name(f"{beside.stem}_gradcam") if settings.gradcam else None
    rows = _predict(model, source, manifest, settings, overlays)
    if csv is not None:
        with atomic_file(csv, "the predictions") as draft:
            spreadsheet(rows).to_csv(draft, index=False, float_format=DIGITS)
    seconds = time.perf_counter() - began
    _show_rows(rows, model.description.decision, settings.unsure_below, seconds)
    for path in filter(None, (csv, overlays)):
        say(f"look: {path}", wrap=False)
    unreadable = int((rows["problem"] != "").sum())
    if unreadable:
        cli.failures.append(f"{unreadable} of {len(rows)} pictures could not be read")
    return rows


def _predict(
    model: Predictor,
    source: ImageInput,
    manifest: Manifest,
    settings: PredictSettings,
    overlays: Path | None,
) -> pd.DataFrame:
    """Predict batch by batch; draw Grad-CAM into the folder `overlays`."""
    about = model.description
    painter: Any = None
    if overlays is not None:
        if not model.cameras:
            raise ConfigError(
                "gradcam",
                f"{model.title} is an exported file, without gradients; name the run that it was "
                "made from",
            )
        from src.deployment.gradcam import Overlays

        one_class = None if settings.gradcam is True else str(settings.gradcam)
        painter = Overlays(model.cameras, about, one_class)
    frames = []
    with (
        atomic_folder(overlays, "Grad-CAM", "out") if overlays else nullcontext() as folder,
        tqdm(
            total=len(manifest.frame),
            desc="predicting",
            unit="image",
            file=sys.stderr,
            leave=False,
            disable=True if source.single else None,
        ) as bar,
    ):
        for batch in source.batches(
            manifest, settings.batch_size, about.image_size, about.geometry, settings.workers
        ):
            if source.single and batch.problems[0]:
                raise DataError(
                    f"{batch.problems[0]}; name a picture, a folder or a CSV", source.path
                )
            rows = _rows(batch, manifest, model, settings.unsure_below)
            if painter is not None:
                painter.write(folder, source, manifest, batch, rows)
            frames.append(rows)
            bar.update(len(rows))
    return pd.concat(frames, ignore_index=True)


def _rows(
    batch: Batch, manifest: Manifest, model: Predictor, unsure_below: float | None
) -> pd.DataFrame:
    """One row per picture; unreadable ones have only their name and the reason."""
    about = model.description
    names = manifest.frame["image_id"].iloc[batch.rows.start : batch.rows.stop].to_numpy()
    rows = pd.DataFrame({"image": names, "problem": batch.problems})
    rows = rows.reindex(columns=columns(about.classes, about.decision))
    rows = rows.astype(dict.fromkeys(("top", "decision", "unsure"), object))
    if len(batch.squares):
        predicted = predictions_frame(
            model(batch.squares), about.classes, about.decision, unsure_below
        )
        predicted.index = pd.Index(batch.readable)
        rows.loc[batch.readable, predicted.columns] = predicted
    return rows


def _show_model(model: Predictor) -> None:
    """The notice, the model, how it decides, and notes."""
    about, decision = model.description, model.description.decision
    rule = "none, because the model has no stored threshold; probabilities are not calibrated."
    if decision is not None:
        rule = (
            f"{decision.positive} from p({decision.positive}) = {decision.threshold:.6g} on, as "
            f"the model gives it, uncalibrated (chosen for {decision.aim}); "
        )
        rule += (
            "no temperature is stored, so nothing is calibrated."
            if decision.temperature is None
            else f"calibrated probabilities use temperature {decision.temperature:.3g}."
        )
    size = f"{about.image_size} x {about.image_size} px, {about.geometry}"
    say(RESEARCH)
    say(
        f"Model: {model.title}; trained on {about.data}, split {about.split}; "
        f"{about.precision}, {size}."
    )
    for line in (f"Licence: {about.licence}", f"Decision: {rule}", *model.notes):
        say(line)


def _show_rows(
    rows: pd.DataFrame, decision: Decision | None, unsure_below: float | None, seconds: float
) -> None:
    """The pictures one by one, or counts of many; and unreadable ones."""
    predicted, failed = rows[rows["problem"] == ""], rows[rows["problem"] != ""]
    if len(rows) > SHOWN:
        counts = {
            f"most probable: {name}": n for name, n in predicted["top"].value_counts().items()
        }
        if decision is not None:
            for name in (decision.positive, f"not {decision.positive}"):
                counts[f"decision: {name}"] = int((predicted["decision"] == name).sum())
        if unsure_below is not None:
            unsure = int(predicted["unsure"].eq(True).sum())
            counts[f"unsure: confidence below {unsure_below:g}"] = unsure
        frame = pd.DataFrame({"": list(counts), "pictures": list(counts.values())})
        frame["share"] = frame["pictures"] / max(len(predicted), 1)
        console.print(Table(frame, formats={"pictures": ",", "share": ".1%"}).to_rich())
        speed = f"{len(rows) / max(seconds, 1e-9):,.1f} images/s with decoding"
        say(f"{len(rows):,} pictures, {len(failed):,} unreadable; {seconds:.1f} s, {speed}.")
    elif len(predicted):
        calibrated = decision is not None and decision.temperature is not None
        frame = predicted[["image", "top", "confidence"]].copy()
        if decision is not None:
            frame["positive"] = predicted[f"p/{decision.positive}"]
            frame["decision"] = predicted["decision"]
        if unsure_below is not None:
            frame["unsure"] = np.where(predicted["unsure"].eq(True), "unsure", "")
        labels = {
            "top": "most probable",
            "confidence": "calibrated" if calibrated else "its p",
            "positive": f"p({decision.positive})" if decision else "",
            "unsure": f"unsure (< {unsure_below or 0:g})",
        }
        formats = {"confidence": ".3f", "positive": ".4f"}
        console.print(Table(frame, labels=labels, formats=formats).to_rich())
    if len(failed):
        labels = {"image": "could not be read", "problem": "reason"}
        console.print(Table(failed[["image", "problem"]].head(SHOWN), labels=labels).to_rich())
    if len(failed) > SHOWN:
        say(f"and {len(failed) - SHOWN:,} more: the column problem of out= lists all of them.")
