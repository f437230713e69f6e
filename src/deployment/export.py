"""Export of a trained run: write the files, compare them with the run's own output, record them."""

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from annotated_types import Ge, Gt
from omegaconf import DictConfig

from src.core.cli import console, say
from src.core.config import instantiate, load_settings
from src.core.errors import ConfigError, UserError
from src.core.files import atomic_folder
from src.core.tables import Table
from src.data.module import DataModule
from src.deployment import trained
from src.deployment.description import Decision, Description
from src.deployment.runtimes.base import Format, ImageBatch, Probabilities, in_batches
from src.deployment.runtimes.eager import EagerRuntime
from src.deployment.runtimes.formats import FORMATS, FormatName, format_of, open_file
from src.deployment.trained import RecordedModel
from src.tracking.run import Run
from src.tracking.store import Store, existing

FEWEST = 256  # images for a comparison
RECORDED = ("max_difference", "agreement", "size_mb", "images")  # metrics export/<format>/...


@dataclass
class ExportSettings:
    """The keys of conf/command/export.yaml."""

    run: str | None = None
    format: FormatName | list[FormatName] = "onnx"
    folder: str = "exports"
    root: str | None = None
    cache_dir: str = "data/cache"
    images: Annotated[int, Ge(FEWEST)] | None = FEWEST
    tolerance: Annotated[float, Gt(0)] = 1e-4
    compressed_tolerance: Annotated[float, Gt(0)] = 0.02
    threads: Annotated[int, Ge(1)] = 1
    publish: bool = True

    def __post_init__(self) -> None:
        trained.require_run_id(self.run)
        if not self.formats:
            raise ConfigError("format", f"name at least one of {', '.join(FORMATS)}")

    @property
    def formats(self) -> list[str]:
        """The formats without repeats."""
        names = self.format if isinstance(self.format, list) else [self.format]
        return list(dict.fromkeys(names))


@dataclass(frozen=True)
class ValidationImages:
    """Real images of a run.

    Attributes:
        pictures: uint8 (N, S, S, 3).
        ids: Image ids, (N,).
        split: "val", or "train" without a validation split.
        as_recorded: Whether images, labels and split are those of the run.
    """

    pictures: ImageBatch
    ids: np.ndarray
    split: str
    as_recorded: bool


def load_validation_images(
    run: RecordedModel, number: int | None, root: str | None, cache_dir: str
) -> ValidationImages:
    """Images of a run's validation split, evenly spaced.

    Args:
        run: A single run.
        number: N; None for all images.
        root: The folder of the data, if it moved.
        cache_dir: The folder of decoded pictures.

    Raises:
        UserError: The data are absent or damaged.
    """
    config = run.config.data.copy()
    config.cache_dir = cache_dir
    if root is not None:
        if "root" not in config.source:
            problem = f"the run's data ({run.data}) have no folder; omit it"
            raise ConfigError("data.root", problem)
        config.root = config.source.root = root
    try:
        data: DataModule = instantiate(config, "data", ("root",))
        data.prepare()
    except UserError as error:
        raise UserError(f"the export is checked on the run's own images: {error}") from error
    split = "val" if data.has("val") else "train"
    rows = data.rows(split)
    if number is not None and number < len(rows):
        rows = rows[np.linspace(0, len(rows) - 1, number).round().astype(int)]
    ids = data.frame["image_id"].to_numpy(dtype=str)[rows]
    as_recorded = data.split_fingerprint == run.split_fingerprint
    return ValidationImages(data.cache.images[rows], ids, split, as_recorded)


def compare(
    reference: Probabilities,
    output: Probabilities,
    classes: Sequence[str],
    decision: Decision | None,
) -> dict[str, float]:
    """Compare the probabilities of the same images.

    Args:
        reference: (N, K).
        output: (N, K).
        classes: In the order of the columns.
        decision: With the threshold; None compares the most probable class only.

    Returns:
        `images`: N; `max_difference`: largest absolute difference, NaN if an output is NaN;
        `same_class`: share of images with the same most probable class, in [0, 1]; `same_side`:
        share on the same side of the threshold, NaN without one; `agreement`: share with both.
    """
    before, after = reference.astype(float), output.astype(float)
    same_class = before.argmax(axis=1) == after.argmax(axis=1)
    same_side, side_share = np.full(len(after), True), float("nan")
    if decision is not None:
        column, threshold = list(classes).index(decision.positive), decision.threshold
        same_side = (before[:, column] >= threshold) == (after[:, column] >= threshold)
        side_share = float(same_side.mean())
    return {
        "images": len(after),
        "max_difference": float(np.abs(before - after).max()),
        "same_class": float(same_class.mean()),
        "same_side": side_share,
        "agreement": float((same_class & same_side).mean()),
    }


@dataclass(frozen=True)
class Reference:
    """The expected output of an export.

    Attributes:
        description: Of the model.
        images: The model's input.
        probabilities: The expected output, (N, K).
        source: Where it comes from, for people.
        write: Writes the model in a format to a path.
    """

    description: Description
    images: ValidationImages
    probabilities: Probabilities
    source: str
    write: Callable[[Format, Path], object]


def load_reference(store: Store, run: RecordedModel, settings: ExportSettings) -> Reference:
    """The model of a run and its expected output.

    For a net this is the output of PyTorch. For the file of a compressed run it is what was
    predicted when the file was made; images without such a prediction are left out.

    Raises:
        UserError: The run cannot be exported in these formats, an extra is not installed, or the
            images are absent.
    """
    file = trained.deployed_file(store, run.run_id)
    if file is not None and settings.formats != [format_of(file).name]:
        problem = f"was compressed into a {file.suffix} file; take format={format_of(file).name}"
        raise ConfigError("format", f"run {run.run_id} {problem}")
    camera = None if file else trained.load_network(store, run)
    for name in settings.formats if camera else []:
        FORMATS[name].check_installed()
    images = load_validation_images(run, settings.images, settings.root, settings.cache_dir)
    about = trained.describe(store, run)
    if camera is not None:
        eager = EagerRuntime(camera, about, torch.get_num_threads())
        output = in_batches(eager, images.pictures, title="PyTorch")
        return Reference(
            about, images, output, "PyTorch", lambda form, path: form.write(camera, about, path)
        )
    for frame in run.predictions(store, images.split):
        predictions = frame.set_index("image_id")[[f"p/{name}" for name in about.classes]]
        at = np.isin(images.ids, predictions.index.to_numpy(dtype=str))
        if at.any():
            images = replace(images, pictures=images.pictures[at], ids=images.ids[at])
            output = predictions.loc[images.ids].to_numpy(np.float32)
            source = "its recorded predictions"
            return Reference(
                about, images, output, source, lambda form, path: shutil.copyfile(str(file), path)
            )
    raise UserError(
        f"run={run.run_id}: has no predictions of its {images.split} images, "
        "by which its file could be checked"
    )


def export(
    reference: Reference, form: Format, folder: Path, tolerance: float, threads: int
) -> dict[str, Any]:
    """Write `model.<suffix>` into a folder and compare it; other files of the folder stay.

    Args:
        reference: What is exported.
        form: The format.
        folder: Where the file is written.
        tolerance: Largest difference of a probability.
        threads: Of the runtime, per call.

    Returns:
        `format`, `path`, `size_mb` (10^6 bytes) and the values of `compare`.

    Raises:
        UserError: The file cannot be written, or its output differs too much; the folder is
            unchanged then.
    """
    with atomic_folder(folder, "the export") as draft:
        path = draft / f"model{form.suffix}"
        if folder.exists():
            shutil.copytree(folder, draft, dirs_exist_ok=True)
            path.unlink(missing_ok=True)
        reference.write(form, path)
        output = in_batches(open_file(path, threads), reference.images.pictures, title=form.name)
        about = reference.description
        parity = compare(reference.probabilities, output, about.classes, about.decision)
        if not parity["max_difference"] <= tolerance:  # NaN is too large as well
            raise UserError(
                f"format={form.name}: differs by {parity['max_difference']:.2g} from the run's own "
                f"probabilities on {parity['images']} images, more than the tolerance of "
                f"{tolerance:g}: the file was deleted"
            )
        size_mb = path.stat().st_size / 1e6
    return {"format": form.name, "path": folder / path.name, "size_mb": size_mb, **parity}


def export_run(config: DictConfig) -> None:
    """Export a run in all formats of a config, show and record the files.

    Args:
        config: A composed `conf/command/export.yaml`.

    Raises:
        UserError: Bad input, or a file that failed its comparison; the other formats are exported
            nevertheless.
    """
    settings = load_settings(config, ExportSettings, without=("tracking",))
    store = existing(config)
    run = trained.single(store, trained.require_run_id(settings.run))
    reference = load_reference(store, run, settings)
    folder = Path(settings.folder) / f"{run.model}_{run.run_id[:8]}"
    tolerance = settings.tolerance
    if reference.description.precision != "float32":
        tolerance = settings.compressed_tolerance
    rows, errors = [], []
    for name in settings.formats:
        print(f"{name}: writing and checking ...", file=sys.stderr, flush=True)
        try:
            rows.append(export(reference, FORMATS[name], folder, tolerance, settings.threads))
        except UserError as error:
            errors.append(error)
    if rows:
        _show(rows, reference, run)
        if settings.publish:
            _record(rows, store, run)
    if errors:
        raise UserError("; ".join(map(str, errors))) from errors[0]


def _show(rows: Sequence[Mapping[str, Any]], reference: Reference, run: RecordedModel) -> None:
    """Print the comparison, the decision, the licence and the paths."""
    images, decision = reference.images, reference.description.decision
    shares = ("same_class", "same_side")
    table = Table(
        pd.DataFrame(rows)[["format", "size_mb", "max_difference", *shares]],
        title=f"{run.title}, compared with {reference.source} on {len(images.ids):,} "
        f"{images.split} images",
        labels={
            "size_mb": "size",
            "max_difference": "largest difference\nof a probability",
            "same_class": "same most\nprobable class",
            "same_side": "same side of\nthe threshold",
        },
        units={"size_mb": "MB"},
        formats={"size_mb": ".2f", "max_difference": ".1e"} | dict.fromkeys(shares, ".2%"),
    )
    console.print(table.to_rich())
    if not images.as_recorded:
        say("Images, labels or split differ from the run's record; the comparison is still valid.")
    answer = "none, for there is no threshold"
    if decision is not None:
        answer = f"{decision.positive} from {decision.threshold:.4g} ({decision.aim})"
    say(f"Decision: {answer}. Licence: {reference.description.licence}.")
    for row in rows:
        say(str(row["path"]), wrap=False)


def _record(rows: Sequence[Mapping[str, Any]], store: Store, run: RecordedModel) -> None:
    record = Run.attach(store, run.run_id)
    try:
        for row in rows:
            prefix = f"export/{row['format']}"
            record.artifact(row["path"], prefix)
            record.log({f"{prefix}/{name}": row[name] for name in RECORDED})
        record.flush()
    except OSError as error:
        raise UserError(
            f"run={run.run_id}: the export is written, but cannot be recorded ({error})"
        ) from error
