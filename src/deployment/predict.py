"""Predictions for pictures: find the model, decode, predict, write, show."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import pandas as pd
from annotated_types import Ge, Le
from omegaconf import DictConfig
from tqdm import tqdm

from src.core import cli, files
from src.core.cli import console, say
from src.core.config import load_settings
from src.core.environment import available_cores
from src.core.errors import ConfigError, DataError
from src.core.tables import Table
from src.data.source import IMAGE_SUFFIXES, Manifest
from src.deployment.description import RESEARCH, Description, sentences
from src.deployment.inputs import ImageInput
from src.deployment.runtimes.base import Probabilities, Runtime, in_batches
from src.deployment.runtimes.formats import FORMATS, open_file
from src.tracking.store import Store, existing

if TYPE_CHECKING:  # torch: an exported file is used without it
    from src.deployment.runtimes.eager import CameraNet

NO_NUMBER = "the model gives no number for it"
SHOWN = 20  # pictures listed on the terminal; more are counted
DIGITS = "%.9g"  # enough to read single precision back without loss


@dataclass
class PredictSettings:
    """The values of conf/command/predict.yaml, which explains them."""

    named: str | None = None
    input: str | None = None
    out: str | None = "reports/predictions.csv"
    unsure_below: Annotated[float, Ge(0), Le(1)] | None = None
    gradcam: bool | str = False
    threads: Annotated[int, Ge(1)] | None = None
    batch_size: Annotated[int, Ge(1)] = 64

    @property
    def model(self) -> str:
        """What names the model; ConfigError if nothing does."""
        example = "name a run, a registered model or an exported file, as in model=3f2a9c"
        return _required("model", self.named, example)

    @property
    def pictures(self) -> Path:
        """An existing picture, folder or CSV; ConfigError if there is none."""
        example = "name a picture, a folder or a CSV, as in input=pictures/"
        name = _required("input", self.input, example)
        path = files.expanded(name)
        if not files.is_there(path):
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
        name = _required("out", self.out, "name a CSV to write, or null for none")
        if Path(name).suffix.lower() in IMAGE_SUFFIXES:
            raise ConfigError("out", f"{name} is a picture's name; name a CSV")
        inputs = [("the input", self.pictures), ("the model", files.expanded(self.model))]
        return files.output_file("out", name, inputs)

    @property
    def workers(self) -> int:
        """Threads that decode, and threads of the model's runtime."""
        return self.threads or available_cores()


def _required(key: str, value: str | None, problem: str) -> str:
    if value is None or not value.strip():
        raise ConfigError(key, problem)
    return value.strip()


@dataclass(frozen=True)
class Predictor:
    """A model, or several (one per seed) whose probabilities are averaged."""

    title: str  # shown to people
    description: Description  # the decision of several is chosen for their mean
    runtimes: Sequence[Runtime]
    cameras: "Sequence[CameraNet]" = ()  # the torch nets, for Grad-CAM; empty for a file
    notes: Sequence[str] = ()  # sentences for people


def find(name: str, store: Callable[[], Store], threads: int) -> Predictor:
    """Find and load a model: a file, a registered model, or the start of a run or trial id.

    `store` opens the run store; it is not called for a file. `threads` are those of a call.

    Raises:
        UserError: No such model, or one without a trained net.
    """
    path = files.expanded(name)
    suffixes = {form.suffix for form in FORMATS.values()}
    if path.suffix in suffixes or (files.is_there(path) and path.is_file()):
        runtime = open_file(path, threads)
        about = runtime.description
        return Predictor(f"{path.name} ({about.model}, run {about.run_id[:8]})", about, [runtime])
    return _of_run(store(), name, threads)


def _of_run(store: Store, name: str, threads: int) -> Predictor:
    """A registered model, a run, or the mean of the seeds of a trial."""
    from src.deployment import trained

    model, version = trained.named(store, name)
    about = trained.describe(store, model)
    import torch

    from src.deployment.runtimes.eager import EagerRuntime
    from src.tracking import read

    runtimes: list[Runtime] = []
    cameras = []
    for net in model.nets:
        file = trained.deployed_file(store, net.run_id) if net.deployed else None
        if file is not None:
            runtimes.append(open_file(file, threads))
            continue
        checkpoint = read.artifact(store, net.run_id, trained.CHECKPOINT)
        camera = trained.load_checkpoint(model.config, about.classes, checkpoint)
        # a model that is fitted at once computes its features with NumPy, on the CPU
        on_gpu = torch.cuda.is_available() and not hasattr(camera.net, "fit_once")
        cameras.append(camera)
        runtimes.append(EagerRuntime(camera, about, threads, "cuda" if on_gpu else "cpu"))
    title = f"{version.name} version {version.number}, " if version else ""
    title += model.title + (", mean of their probabilities" if len(model.nets) > 1 else "")
    return Predictor(
        title,
        about,
        runtimes,
        cameras if len(cameras) == len(runtimes) else (),
        trained.precision_warnings(model.config) if len(cameras) == len(runtimes) else (),
    )


def predictions_frame(
    probability: Probabilities, about: Description, unsure_below: float | None = None
) -> pd.DataFrame:
    """Predictions of pictures as a table, from probabilities (N, K) as the model gives them.

    Without a decision nothing is decided or calibrated. Pictures with less confidence than
    `unsure_below`, in [0, 1], are marked.

    Returns:
        One row per picture: p/<class>; calibrated/<class> = softmax(log p / T), if there is a
        temperature T; top: the class with the largest log p plus offset, the first one of equals;
        confidence: its probability, calibrated if possible; decision: the positive class if its
        p/<class> (not the calibrated one) reaches the threshold, else "not <class>", missing
        without a threshold; unsure: bool, missing unless requested; problem: why there is no
        prediction, else empty. All other columns are missing then.
    """
    from src.metrics.decision_rules import decide

    raw, classes, decision = probability.astype(float), about.classes, about.decision
    rows = pd.DataFrame(raw, columns=[f"p/{name}" for name in classes])
    trusted = raw
    if decision is not None and decision.temperature is not None:
        from src.metrics import calibration

        trusted = calibration.scale(raw, decision.temperature)
        rows[[f"calibrated/{name}" for name in classes]] = trusted
    top = decide(raw, about.offsets)
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


def make(config: DictConfig) -> None:
    """Make the predictions that conf/command/predict.yaml asks for, write and show them.

    `src.core.cli.failures` names unreadable pictures.

    Raises:
        UserError: Bad input.
    """
    settings = load_settings(config, PredictSettings, without=("tracking",))
    name, source, csv = settings.model, ImageInput(settings.pictures), settings.csv
    manifest = source.manifest()
    if csv is not None:
        files.refuse_unwritable(csv.with_name(f".{csv.name}"), "the predictions", "out")
    beside = (csv or Path("reports/predictions.csv")).absolute()
    overlays = beside.with_name(f"{beside.stem}_gradcam") if settings.gradcam else None
    if overlays is not None:
        files.refuse_unwritable(overlays, "Grad-CAM", "out")
    model = find(name, lambda: existing(config), settings.workers)
    for line in sentences("model", notice=RESEARCH, model=model, about=model.description):
        say(line)
    painter = None
    if settings.gradcam:
        if not model.cameras:
            problem = "is an exported file, without gradients; name the run that it was made from"
            raise ConfigError("gradcam", f"{model.title} {problem}")
        from src.deployment.gradcam import Overlays

        chosen = None if settings.gradcam is True else str(settings.gradcam)
        painter = Overlays(model.cameras, model.description, chosen)
    began = time.perf_counter()
    rows = _predict(model, source, manifest, settings)
    if overlays is not None and painter is not None:
        with files.atomic_folder(overlays, "Grad-CAM", "out") as folder:
            painter.write(folder, source, manifest, rows)
    if csv is not None:
        with files.atomic_file(csv, "the predictions") as draft:
            files.spreadsheet(rows).to_csv(draft, index=False, float_format=DIGITS)
    _show_rows(rows, model.description, settings.unsure_below, time.perf_counter() - began)
    for path in filter(None, (csv, overlays)):
        say(f"look: {path}", wrap=False)
    unreadable = int((rows["problem"] != "").sum())
    if unreadable:
        cli.failures.append(f"{unreadable} of {len(rows)} pictures could not be read")


def _predict(
    model: Predictor, source: ImageInput, manifest: Manifest, settings: PredictSettings
) -> pd.DataFrame:
    """One row per picture: image, and the columns of `predictions_frame`."""
    about, number = model.description, len(manifest.frame)
    probability = np.full((number, len(about.classes)), np.nan, np.float32)
    unreadable = np.full(number, "", dtype=object)
    batches = source.batches(
        manifest, settings.batch_size, about.image_size, about.geometry, settings.workers
    )
    hidden = True if source.single else None
    with tqdm(total=number, desc="predicting", unit="image", leave=False, disable=hidden) as bar:
        for rows, squares, problems in batches:
            if source.single and problems:
                raise DataError(f"{problems[0]}; name a picture, a folder or a CSV", source.path)
            unreadable[list(problems)] = list(problems.values())
            if rows:
                outputs = [in_batches(runtime, squares) for runtime in model.runtimes]
                probability[rows] = np.mean(outputs, axis=0, dtype=np.float32)
            bar.update(len(rows) + len(problems))
    frame = predictions_frame(probability, about, settings.unsure_below)
    frame.insert(0, "image", manifest.frame["image_id"])
    frame["problem"] = np.where(unreadable == "", frame["problem"], unreadable)
    return frame


def _show_rows(
    rows: pd.DataFrame, about: Description, unsure_below: float | None, seconds: float
) -> None:
    """The pictures one by one, or counts of many; and unreadable ones."""
    decision, chosen = about.decision, f"class ({about.rule})" if about.offsets else "most probable"
    predicted, failed = rows[rows["problem"] == ""], rows[rows["problem"] != ""]
    positive = decision.positive if decision else ""
    if len(rows) > SHOWN:
        tops = predicted["top"].value_counts()
        counts = {f"{chosen}: {name}": number for name, number in tops.items()}
        for name in (positive, f"not {positive}") if decision else ():
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
        frame = predicted[["image", "top", "confidence"]].copy()
        if decision is not None:
            frame["positive"] = predicted[f"p/{positive}"]
            frame["decision"] = predicted["decision"]
        if unsure_below is not None:
            frame["unsure"] = np.where(predicted["unsure"].eq(True), "unsure", "")
        labels = {
            "top": chosen,
            "confidence": "calibrated" if decision and decision.temperature else "its p",
            "positive": f"p({positive})",
            "unsure": f"unsure (< {unsure_below or 0:g})",
        }
        formats = {"confidence": ".3f", "positive": ".4f"}
        console.print(Table(frame, labels=labels, formats=formats).to_rich())
    if len(failed):
        labels = {"image": "could not be read", "problem": "reason"}
        console.print(Table(failed[["image", "problem"]].head(SHOWN), labels=labels).to_rich())
    if len(failed) > SHOWN:
        say(f"and {len(failed) - SHOWN:,} more: the column problem of out= lists all of them.")
