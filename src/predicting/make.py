"""A prediction from end to end: find model and pictures, decode, predict, write, and tell the terminal."""

import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig
from rich.console import Console
from tqdm import tqdm

from src import entry
from src.config import check
from src.data.source import Manifest
from src.errors import DataError
from src.predicting import answers, models, told
from src.predicting.inputs import Batch, Pictures
from src.predicting.models import Model
from src.predicting.rows import whole_csv
from src.predicting.settings import Settings
from src.predicting.told import Tally
from src.tracking.existing import existing
from src.tracking.store import Store
from src.whole import whole_folder

console = Console(width=100)


def make(config: DictConfig) -> Tally:
    """Make the prediction that a config asks for.

    Args:
        config: A composed `conf/predict.yaml`.

    Returns:
        What was counted, after all is written and told. Pictures that could not be read are noted in
        `src.entry.failures` too.

    Raises:
        UserError: Bad input; the message names the culprit.
    """
    plain = {str(key): config[key] for key in config if key != "tracking"}
    check({"_target_": "src.predicting.settings.Settings", **plain})
    settings = Settings(**plain)
    wanted, given, out = settings.model, Pictures(settings.pictures), settings.table

    def store() -> Store:
        return existing(config)

    manifest = given.manifest()
    model = models.find(wanted, store, settings.processors)
    console.print(told.opening(model.title, model.description, model.told), highlight=False)
    began = time.perf_counter()
    tally = _all(model, given, manifest, settings, out)
    seconds = time.perf_counter() - began
    console.print(told.answered(tally, model.description.decision, settings.unsure_below, seconds), highlight=False)
    for path in _written(settings, out):
        console.print(f"look: {path}", markup=False, highlight=False, soft_wrap=True)
    if tally.unreadable:
        entry.failures.append(f"{tally.unreadable} of {tally.total} pictures could not be read")
    return tally


def _all(model: Model, given: Pictures, manifest: Manifest, settings: Settings, out: Path | None) -> Tally:
    """Answer for every picture, a batch at a time."""
    said, tally = model.description, Tally()
    explained = _explained(model, settings)
    with (
        nullcontext() if out is None else whole_csv(out, answers.columns(said.classes, said.decision)) as rows,
        nullcontext() if explained is None else whole_folder(_folder(out), "Grad-CAM", "out") as folder,
        _bar(len(manifest.frame), given) as bar,
    ):
        batches = given.batches(manifest, settings.batch_size, said.image_size, said.geometry, settings.processors)
        for batch in batches:
            frame = _answered(batch, manifest, model, settings)
            if given.single and batch.problems[0]:
                raise DataError(f"{batch.problems[0]}; name a picture, a folder or a CSV", given.given)
            if rows is not None:
                rows.add(frame)
            if explained is not None and folder is not None:
                explained.write(folder, given, manifest, batch, frame)
            tally.add(frame)
            bar.update(len(frame))
    return tally


def _answered(batch: Batch, manifest: Manifest, model: Model, settings: Settings) -> pd.DataFrame:
    """A row a picture, those that could not be read with their reason alone."""
    said = model.description
    names = manifest.frame["image_id"].iloc[batch.rows.start : batch.rows.stop].to_numpy()
    frame = pd.DataFrame({"image": names, "problem": batch.problems})
    frame = frame.reindex(columns=answers.columns(said.classes, said.decision))
    frame = frame.astype(dict.fromkeys(("top", "decision", "unsure"), object))
    if len(batch.squares):
        found = answers.answers(model(batch.squares), said.classes, said.decision, settings.unsure_below)
        found.index = pd.Index(batch.readable)
        frame.loc[batch.readable, found.columns] = found
    return frame


def _explained(model: Model, settings: Settings) -> Any:
    """What draws Grad-CAM; None where it is not asked for."""
    if settings.gradcam is False:
        return None
    from src.predicting.overlays import Overlays  # captum and matplotlib take a second

    return Overlays(model.classifiers(), model.description, None if settings.gradcam is True else settings.gradcam)


def _folder(out: Path | None) -> Path:
    """Beside the CSV."""
    beside = out or Path("predictions.csv")
    return beside.absolute().with_name(f"{beside.stem}_gradcam")


def _written(settings: Settings, out: Path | None) -> list[Path]:
    return ([out] if out is not None else []) + ([] if settings.gradcam is False else [_folder(out)])


def _bar(total: int, given: Pictures) -> "tqdm[Any]":
    """On a terminal only, and not for a single picture."""
    hidden = True if given.single else None
    return tqdm(total=total, desc="predicting", unit="image", file=sys.stderr, leave=False, disable=hidden)
