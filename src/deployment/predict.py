"""Find model, decode, predict, write, show."""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from annotated_types import Ge, Le
from omegaconf import DictConfig
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from src.core import cli
from src.core.config import check
from src.core.errors import ConfigError, DataError, UserError
from src.core.files import atomic_folder, expanded, is_there, spreadsheet
from src.data.source import IMAGE_SUFFIXES, Manifest
from src.deployment import trained
from src.deployment.description import RESEARCH, Decision, Description
from src.deployment.inputs import Batch, ImageInput
from src.deployment.runtimes.base import ImageBatch, Probabilities, Runtime, in_batches
from src.deployment.runtimes.eager import CameraNet, EagerRuntime
from src.deployment.runtimes.files import FORMATS, open_file
from src.deployment.trained import RecordedModel
from src.metrics import calibration
from src.models.fit_once import FitOnceModel
from src.tracking import read as cache
from src.tracking import registry
from src.tracking.store import Store, existing
from src.training.classifier import Classifier

SUFFIXES = tuple(each.suffix for each in FORMATS.values())


@dataclass(frozen=True)
class Predictor:
    """What answers: a net, or several whose probabilities are averaged.

    Attributes:
        title: For people.
        description: Of it; of several nets the decision is chosen for their mean.
        nets: By seed.
        classifiers: Gives torch's nets, for Grad-CAM; raises ConfigError where there are none.
        told: What else to know of it, a sentence each.
    """

    title: str
    description: Description
    nets: tuple[Runtime, ...]
    classifiers: Callable[[], list[Classifier]]
    told: tuple[str, ...] = ()

    def __call__(self, pictures: ImageBatch) -> Probabilities:
        """Probabilities of the classes, (N, K), for any number of pictures from one on."""
        found: Probabilities = np.mean(
            [in_batches(net, pictures) for net in self.nets], axis=0, dtype=np.float32
        )
        return found


class AveragedModel(RecordedModel):
    """A trial whose nets are taken as one: what they predict is averaged, and decided by a threshold for the mean."""

    def predictions(self, store: Store, split: str) -> list[pd.DataFrame]:
        """What the nets predicted of a split, as one frame; none where not all of them have been evaluated on it.

        Raises:
            UserError: They have predicted different images.
        """
        frames = super().predictions(store, split)
        if not frames:
            return []
        if any(frame["image_id"].tolist() != frames[0]["image_id"].tolist() for frame in frames):
            ids = ", ".join(net.run_id for net in self.nets)
            raise UserError(
                f"model={self.run_id}: its seeds were not tried on the same images; name one of {ids}"
            )
        columns = [str(name) for name in frames[0] if str(name).startswith("p/")]
        mean = np.mean([frame[columns].to_numpy(float) for frame in frames], axis=0)
        return [frames[0].assign(**dict(zip(columns, mean.T, strict=True)))]


class GpuRuntime:
    """A trained net on a GPU.

    Args:
        classifier: Trained.
        description: Of it.
    """

    name = "eager"
    batch: int | None = None

    def __init__(self, classifier: Classifier, description: Description) -> None:
        self.description = description
        self._model = CameraNet.of(classifier.cuda()).cuda()

    def __call__(self, pictures: ImageBatch) -> Probabilities:
        """Probabilities of the classes, (N, K)."""
        with torch.inference_mode():
            found: Probabilities = self._model(torch.from_numpy(pictures).cuda()).cpu().numpy()
        return found


def find(wanted: str, store: Callable[[], Store], threads: int) -> Predictor:
    """The model of that name.

    Args:
        wanted: A file, the id of a run or trial (the start is enough), or a registered model.
        store: Opens the run store; not called for a file.
        threads: Of one call.

    Raises:
        UserError: There is none, or it has no trained net; the message says why.
    """
    path = expanded(wanted)
    if path.suffix in SUFFIXES or (is_there(path) and path.is_file()):
        return _file(path, threads)
    opened = store()
    is_run = bool(cache.cached_runs(opened)["run_id"].str.startswith(wanted).any())
    try:
        registered = registry.resolve(opened, wanted)
    except UserError as error:
        if is_run:
            return _run(opened, wanted, threads)
        raise ConfigError(
            "model", f"{error}; nor does a run's id start so, nor is it an exported file"
        ) from error
    if is_run:
        raise ConfigError(
            "model",
            f"{wanted} is a registered model, and a run's id starts so too; say {wanted}/<version>",
        )
    found = _run(opened, registered.run_id, threads)
    return replace(found, title=f"{registered.name} version {registered.version}, {found.title}")


def _file(path: Path, threads: int) -> Predictor:
    runtime = open_file(path, threads)
    said = runtime.description

    def none() -> list[Classifier]:
        raise ConfigError(
            "gradcam",
            f"{path.name} is an exported file, without gradients; name its run: {said.run_id}",
        )

    return Predictor(f"{path.name} ({said.model}, run {said.run_id[:8]})", said, (runtime,), none)


def _run(store: Store, wanted: str, threads: int) -> Predictor:
    try:
        found = trained.find(store, wanted)
        nets = [trained.find(store, net.run_id) for net in found.nets]
    except UserError as error:
        raise UserError(str(error).replace("run=", "model=", 1)) from error
    whole = found if len(nets) == 1 else AveragedModel(**vars(found))
    description = trained.describe(store, whole)
    loaded = [_net(store, net, description, threads) for net in nets]
    runtimes, classifiers = (
        [runtime for runtime, _ in loaded],
        [classifier for _, classifier in loaded],
    )

    def given() -> list[Classifier]:
        present = [each for each in classifiers if each is not None]
        if len(present) < len(classifiers):
            raise ConfigError(
                "gradcam",
                f"{found.title} runs from an exported file, without gradients; name its origin",
            )
        return present

    title = found.title + (", mean of their probabilities" if len(nets) > 1 else "")
    precision = runtimes[0].description.precision
    told = () if None in classifiers else tuple(trained.precision_warnings(found.config))
    return Predictor(title, replace(description, precision=precision), tuple(runtimes), given, told)


def _net(
    store: Store, run: RecordedModel, description: Description, threads: int
) -> tuple[Runtime, Classifier | None]:
    """A run's model in its runtime, and as a net of torch's if it is one."""
    file = trained.deployed_file(store, run.run_id)
    if file is not None:
        return open_file(file, threads), None
    classifier = trained.load_classifier(store, run)
    tags = store.client.get_run(run.run_id).data.tags  # a trial's own do not tell the precision
    description = replace(description, precision=tags.get("precision", description.precision))
    if torch.cuda.is_available() and not isinstance(
        classifier.net, FitOnceModel
    ):  # features by NumPy gain nothing
        return GpuRuntime(classifier, description), classifier
    return EagerRuntime(classifier, description, threads), classifier


NO_NUMBER = "the model gives no number for it"


def columns(classes: Sequence[str], decision: Decision | None) -> list[str]:
    """Of the table that is written: the same whatever the pictures are."""
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
    """What is said of pictures.

    Args:
        probability: As the model gives it, (N, K).
        classes: K names.
        decision: The stored threshold and temperature; None: no decision, and nothing calibrated.
        unsure_below: Confidence from which a picture is not called unsure, in [0, 1]; None: none
            is.

    Returns:
        A row a picture: p/<class>, in [0, 1]; calibrated/<class>, where there is a temperature T:
        softmax(log p / T);
        top: the most probable class, the first of equals; confidence: its probability, calibrated
            where it can be;
        decision: the class that is looked for, from the threshold on of its p/<class> (not of the
            calibrated one), or
        "not <class>", missing without a threshold; unsure: bool, missing where it is not asked for;
        problem: where the model gave no number, and empty elsewhere. All else is missing then.
    """
    own = probability.astype(float)
    found = pd.DataFrame(own, columns=[f"p/{name}" for name in classes])
    trusted = own
    if decision is not None and decision.temperature is not None:
        trusted = calibration.scale(own, decision.temperature)
        found[[f"calibrated/{name}" for name in classes]] = trusted
    top = own.argmax(axis=1)
    found["top"] = np.array(classes, dtype=object)[top]
    found["confidence"] = trusted[np.arange(len(own)), top]
    found["decision"] = None if decision is None else _decided(own, classes, decision)
    found["unsure"] = None if unsure_below is None else found["confidence"] < unsure_below
    known = np.isfinite(own).all(axis=1)
    found = found.astype({"decision": object, "unsure": object})
    found.loc[~known] = None
    found["problem"] = np.where(known, "", NO_NUMBER)
    return found


def _decided(own: np.ndarray, classes: Sequence[str], decision: Decision) -> np.ndarray:
    positive = own[:, list(classes).index(decision.positive)] >= decision.threshold
    return np.where(positive, decision.positive, f"not {decision.positive}").astype(object)


SHOWN = 20  # pictures that are listed; more are counted
WIDEST = 34  # characters of a picture's name


@dataclass
class PredictionCounts:
    """What is kept of the pictures while they come and go.

    Attributes:
        total: Pictures so far.
        first: Answers of the first of them, one more than are listed at most.
        problems: Name and reason of the first that could not be read.
        unreadable: How many there are of those.
        top: Pictures by most probable class.
        decisions: Pictures by decision.
        unsure: Pictures that are called so.
    """

    total: int = 0
    first: list[pd.Series] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    unreadable: int = 0
    top: Counter[str] = field(default_factory=Counter)
    decisions: Counter[str] = field(default_factory=Counter)
    unsure: int = 0

    def add(self, frame: pd.DataFrame) -> None:
        """Count a batch's rows."""
        self.total += len(frame)
        self.first += [row for _, row in frame.head(SHOWN + 1 - len(self.first)).iterrows()]
        amiss = frame[frame["problem"] != ""]
        self.unreadable += len(amiss)
        room = amiss.head(SHOWN - len(self.problems))
        self.problems += list(zip(room["image"], room["problem"], strict=True))
        self.top.update(frame["top"].dropna())
        self.decisions.update(frame["decision"].dropna())
        self.unsure += int(frame["unsure"].eq(True).sum())


def opening_lines(title: str, description: Description, told: Sequence[str] = ()) -> RenderableType:
    """The notice, the model, how it decides, and what else is told of it."""
    size = f"{description.image_size} x {description.image_size} px, {description.geometry}"
    lines = [
        RESEARCH,
        f"Model: {title}; trained on {description.data}, split {description.split}; {description.precision}, {size}.",
        f"Licence: {description.licence}",
        rule(description.decision),
        *told,
    ]
    return Group(*(Text(line) for line in lines))


def rule(decision: Decision | None) -> str:
    """How probabilities become a decision, in a sentence or two."""
    if decision is None:
        return "Decision: none, for no threshold is stored with this model; nothing is calibrated."
    scaled = (
        "no temperature is stored, so nothing is calibrated"
        if decision.temperature is None
        else f"calibrated probabilities are at temperature {decision.temperature:.3g}"
    )
    return (
        f"Decision: {decision.positive} from p({decision.positive}) = {decision.threshold:.6g} on, as the model gives "
        f"it, uncalibrated (chosen for {decision.aim}); {scaled}."
    )


def result_lines(
    tally: PredictionCounts, decision: Decision | None, unsure_below: float | None, seconds: float
) -> RenderableType:
    """The pictures one by one, or counted where there are many; and those that could not be read."""
    parts: list[RenderableType] = []
    if tally.total <= SHOWN:
        if tally.unreadable < tally.total:
            parts.append(_listed(tally, decision, unsure_below))
    else:
        parts.append(_counted(tally, decision, unsure_below, seconds))
    if tally.unreadable:
        parts.append(_problems(tally))
    return Group(*parts)


def _listed(
    tally: PredictionCounts, decision: Decision | None, unsure_below: float | None
) -> Table:
    calibrated = decision is not None and decision.temperature is not None
    table = _table("image", "most probable", "calibrated" if calibrated else "its p")
    if decision is not None:
        table.add_column(Text(f"p({decision.positive})"), justify="right")
        table.add_column("decision")
    if unsure_below is not None:
        table.add_column(f"unsure (< {unsure_below:g})")
    for row in tally.first:
        if row["problem"]:
            continue
        cells = [_short(row["image"]), row["top"], f"{row['confidence']:.3f}"]
        if decision is not None:
            cells += [f"{row[f'p/{decision.positive}']:.4f}", row["decision"]]
        if unsure_below is not None:
            cells.append("unsure" if row["unsure"] else "")
        table.add_row(*map(Text, cells))
    table.columns[2].justify = "right"
    return table


def _counted(
    tally: PredictionCounts, decision: Decision | None, unsure_below: float | None, seconds: float
) -> RenderableType:
    table = _table("", "pictures", "share")
    readable = max(tally.total - tally.unreadable, 1)

    def count(what: str, number: int) -> None:
        table.add_row(Text(what), f"{number:,}", f"{number / readable:.1%}")

    for name, number in tally.top.most_common():
        count(f"most probable: {name}", number)
    if decision is not None:
        table.add_section()
        for name in (decision.positive, f"not {decision.positive}"):
            count(f"decision: {name}", tally.decisions[name])
    if unsure_below is not None:
        table.add_section()
        count(f"unsure: confidence below {unsure_below:g}", tally.unsure)
    for column in table.columns[1:]:
        column.justify = "right"
    read = f"{tally.total:,} pictures, {tally.unreadable:,} unreadable"
    speed = f"{seconds:.1f} s, {tally.total / max(seconds, 1e-9):,.1f} images/s with decoding"
    return Group(table, Text(f"{read}; {speed}."))


def _problems(tally: PredictionCounts) -> RenderableType:
    table = _table("could not be read", "reason")
    for name, reason in tally.problems:
        table.add_row(Text(_short(name)), Text(reason))
    more = tally.unreadable - len(tally.problems)
    return (
        Group(table, Text(f"and {more:,} more: the column problem of out= has them all."))
        if more
        else table
    )


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(Text(name))
    return table


def _short(name: str) -> str:
    return name if len(name) <= WIDEST else f"...{name[3 - WIDEST :]}"


@dataclass
class PredictSettings:
    """Which model looks at which pictures, and what is written."""

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
        return _given(
            self.named,
            "model",
            "name a run, a registered model or an exported file, as in model=3f2a9c",
        )

    @property
    def pictures(self) -> Path:
        """Picture, folder or CSV, `~` expanded.

        Raises:
            ConfigError: None is named, or it is not there.
        """
        given = _given(
            self.input, "input", "name a picture, a folder or a CSV, as in input=pictures/"
        )
        path = expanded(given)
        if not is_there(path):
            raise ConfigError("input", f"{given} is not there; name a picture, a folder or a CSV")
        return path

    @property
    def table(self) -> Path | None:
        """Where the CSV goes, `~` expanded; None: nowhere.

        Raises:
            ConfigError: It is a folder or a device, a picture, the very input, or the model.
        """
        if self.out is None:
            return None
        path = expanded(_given(self.out, "out", "name a CSV to write, or null for none"))
        if path.suffix.lower() in IMAGE_SUFFIXES:
            raise ConfigError("out", f"{self.out} is a picture's name; name a CSV")
        if not is_there(path):
            return path
        if not path.is_file():
            what = (
                "a folder; name a CSV in it"
                if path.is_dir()
                else "no file that can be written anew; name a CSV"
            )
            raise ConfigError("out", f"{self.out} is {what}")
        for key, read in (("input", self.pictures), ("model", expanded(self.model))):
            if is_there(read) and path.samefile(read):
                raise ConfigError(
                    "out", f"{self.out} is the {key}, which would be lost; name another file"
                )
        return path

    @property
    def processors(self) -> int:
        """Threads that decode, and that the model's runtime takes."""
        return self.threads or (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )


def _given(value: str | None, key: str, wanted: str) -> str:
    if value is None or not value.strip():
        raise ConfigError(key, wanted)
    return value.strip()


DIGITS = "%.9g"  # single precision comes back from it as it was


class CsvRows:
    """Takes rows for a file that nobody sees before it is whole.

    Args:
        path: Of the file, for messages.
        draft: What is written to.
        columns: Of every row.
    """

    def __init__(self, path: Path, draft: Path, columns: Sequence[str]) -> None:
        self._path = path
        self._draft = draft
        self._columns = list(columns)
        self.add(pd.DataFrame(columns=self._columns), header=True)

    def add(self, frame: pd.DataFrame, header: bool = False) -> None:
        """Write rows.

        Args:
            frame: Has the columns, in any order; what is missing becomes an empty cell, and what a
                spreadsheet would run as a formula stands behind an apostrophe.
            header: Begin the file with the columns' names.

        Raises:
            UserError: The file cannot be written.
        """
        with writing(self._path):
            spreadsheet(frame.reindex(columns=self._columns)).to_csv(
                self._draft,
                mode="w" if header else "a",
                header=header,
                index=False,
                float_format=DIGITS,
            )


@contextmanager
def whole_csv(path: Path, columns: Sequence[str]) -> Iterator[CsvRows]:
    """A file that takes its place if the block ends well; after any exception what was there is as it was.

    Args:
        path: The file; its folder is made.
        columns: Of every row.

    Raises:
        UserError: The file cannot be written.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        yield CsvRows(path, draft, columns)
        with writing(path):
            draft.replace(path)
    finally:
        with suppress(OSError):  # of a folder that is none there is nothing to clear
            draft.unlink()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in one line what the system says against it."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"out={path}: cannot be written there ({error.strerror or error})"
        ) from error


console = Console(width=100)


def make(config: DictConfig) -> PredictionCounts:
    """Make the prediction that a config asks for.

    Args:
        config: A composed `conf/command/predict.yaml`.

    Returns:
        What was counted, after all is written and told. Pictures that could not be read are noted
        in `src.core.cli.failures` too.

    Raises:
        UserError: Bad input; the message names the culprit.
    """
    plain = {str(key): config[key] for key in config if key != "tracking"}
    check({"_target_": "src.deployment.predict.PredictSettings", **plain})
    settings = PredictSettings(**plain)
    wanted, given, out = settings.model, ImageInput(settings.pictures), settings.table

    def store() -> Store:
        return existing(config)

    manifest = given.manifest()
    model = find(wanted, store, settings.processors)
    console.print(opening_lines(model.title, model.description, model.told), highlight=False)
    began = time.perf_counter()
    tally = _all(model, given, manifest, settings, out)
    seconds = time.perf_counter() - began
    console.print(
        result_lines(tally, model.description.decision, settings.unsure_below, seconds),
        highlight=False,
    )
    for path in _written(settings, out):
        console.print(f"look: {path}", markup=False, highlight=False, soft_wrap=True)
    if tally.unreadable:
        cli.failures.append(f"{tally.unreadable} of {tally.total} pictures could not be read")
    return tally


def _all(
    model: Predictor,
    given: ImageInput,
    manifest: Manifest,
    settings: PredictSettings,
    out: Path | None,
) -> PredictionCounts:
    """Answer for every picture, a batch at a time."""
    said, tally = model.description, PredictionCounts()
    explained = _explained(model, settings)
    with (
        nullcontext()
        if out is None
        else whole_csv(out, columns(said.classes, said.decision)) as rows,
        nullcontext()
        if explained is None
        else atomic_folder(_folder(out), "Grad-CAM", "out") as folder,
        _bar(len(manifest.frame), given) as bar,
    ):
        batches = given.batches(
            manifest, settings.batch_size, said.image_size, said.geometry, settings.processors
        )
        for batch in batches:
            frame = _answered(batch, manifest, model, settings)
            if given.single and batch.problems[0]:
                raise DataError(
                    f"{batch.problems[0]}; name a picture, a folder or a CSV", given.given
                )
            if rows is not None:
                rows.add(frame)
            if explained is not None and folder is not None:
                explained.write(folder, given, manifest, batch, frame)
            tally.add(frame)
            bar.update(len(frame))
    return tally


def _answered(
    batch: Batch, manifest: Manifest, model: Predictor, settings: PredictSettings
) -> pd.DataFrame:
    """A row a picture, those that could not be read with their reason alone."""
    said = model.description
    names = manifest.frame["image_id"].iloc[batch.rows.start : batch.rows.stop].to_numpy()
    frame = pd.DataFrame({"image": names, "problem": batch.problems})
    frame = frame.reindex(columns=columns(said.classes, said.decision))
    frame = frame.astype(dict.fromkeys(("top", "decision", "unsure"), object))
    if len(batch.squares):
        found = predictions_frame(
            model(batch.squares), said.classes, said.decision, settings.unsure_below
        )
        found.index = pd.Index(batch.readable)
        frame.loc[batch.readable, found.columns] = found
    return frame


def _explained(model: Predictor, settings: PredictSettings) -> Any:
    """What draws Grad-CAM; None where it is not asked for."""
    if settings.gradcam is False:
        return None
    from src.deployment.gradcam import Overlays  # captum and matplotlib take a second

    return Overlays(
        model.classifiers(),
        model.description,
        None if settings.gradcam is True else settings.gradcam,
    )


def _folder(out: Path | None) -> Path:
    """Beside the CSV."""
    beside = out or Path("predictions.csv")
    return beside.absolute().with_name(f"{beside.stem}_gradcam")


def _written(settings: PredictSettings, out: Path | None) -> list[Path]:
    return ([out] if out is not None else []) + (
        [] if settings.gradcam is False else [_folder(out)]
    )


def _bar(total: int, given: ImageInput) -> "tqdm[Any]":
    """On a terminal only, and not for a single picture."""
    hidden = True if given.single else None
    return tqdm(
        total=total, desc="predicting", unit="image", file=sys.stderr, leave=False, disable=hidden
    )
