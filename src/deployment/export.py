"""Export, parity check in its own runtime, publish."""

import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from src.core.config import check, instantiate, resolve
from src.core.errors import ConfigError, UserError
from src.core.files import atomic_folder
from src.data.module import DataModule
from src.deployment import trained
from src.deployment.description import Decision, Description
from src.deployment.runtimes.base import ImageBatch, Probabilities, in_batches
from src.deployment.runtimes.eager import CameraNet, EagerRuntime
from src.deployment.runtimes.files import FORMATS, Format, format_of, open_file
from src.deployment.trained import RecordedModel, require_run_id
from src.tracking.run import Run
from src.tracking.store import Store, existing
from src.training.classifier import Classifier


@dataclass(frozen=True)
class ValidationImages:
    """Real images of a run.

    Attributes:
        pictures: uint8 (N, S, S, 3).
        ids: Of the images, (N,).
        split: Whose they are: val, or train where there is no validation split.
        own: Whether images, labels and split are those of the run's record.
    """

    pictures: ImageBatch
    ids: np.ndarray
    split: str
    own: bool


def load_validation_images(
    run: RecordedModel, number: int | None, root: str | None, cache_dir: str
) -> ValidationImages:
    """Images of a run's validation split, evenly over it.

    Args:
        run: A single one.
        number: How many; None, or more than there are: all.
        root: Where its data lie; None: where they were.
        cache_dir: Where decoded pictures are kept.

    Raises:
        UserError: The data are not here, or not as they should be.
    """
    config = run.config.data.copy()
    config.cache_dir = cache_dir
    if root is not None:
        if "root" not in config.source:
            raise ConfigError(
                "data.root", f"the run's data ({run.data}) lie in no folder; leave it out"
            )
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
    return ValidationImages(
        data.cache.images[rows], ids, split, data.split_fingerprint == run.split_fingerprint
    )


Kind = Literal["onnx", "executorch", "litert"]
LEAST = 256  # images, of which a difference is looked for


@dataclass
class ExportSettings:
    """What is exported, and how it is checked."""

    run: str | None = None
    format: Kind | list[Kind] = "onnx"
    folder: str = "exports"
    root: str | None = None
    cache_dir: str = "data/cache"
    images: Annotated[int, Ge(LEAST)] | None = LEAST
    tolerance: Annotated[float, Gt(0)] = 1e-4
    compressed_tolerance: Annotated[float, Gt(0)] = 0.02
    threads: Annotated[int, Ge(1)] = 1
    publish: bool = True

    @property
    def wanted(self) -> str:
        """The run's id, or the start of it.

        Raises:
            ConfigError: There is none.
        """
        return require_run_id(self.run)

    @property
    def formats(self) -> list[Kind]:
        """What is written, each once.

        Raises:
            ConfigError: Nothing is.
        """
        listed = self.format if isinstance(self.format, list) else [self.format]
        if not listed:
            raise ConfigError("format", "name at least one of onnx, executorch, litert")
        return list(dict.fromkeys(listed))


@dataclass(frozen=True)
class Parity:
    """How alike the answers to the same pictures are.

    Attributes:
        images: Number of pictures.
        difference: Largest absolute difference of a probability; NaN where one is no number.
        same_class: Share of pictures with the same most probable class, in [0, 1].
        same_side: Share on the same side of the stored threshold; NaN where there is none.
        agreement: Share with the same decision, by class and by threshold.
    """

    images: int
    difference: float
    same_class: float
    same_side: float
    agreement: float


def compare(
    reference: Probabilities,
    found: Probabilities,
    classes: Sequence[str],
    decision: Decision | None,
) -> Parity:
    """Hold a runtime's answers against those of the reference.

    Args:
        reference: Probabilities, (N, K).
        found: Of the same pictures, (N, K).
        classes: In the order of the probabilities.
        decision: With the threshold; None: only the most probable class is compared.
    """
    same_class = reference.argmax(axis=1) == found.argmax(axis=1)
    same_side = np.full(len(found), np.nan)
    agreement = same_class
    if decision is not None:
        column = list(classes).index(decision.positive)
        sides = [each[:, column].astype(float) >= decision.threshold for each in (reference, found)]
        agreement, same_side = (
            same_class & (sides[0] == sides[1]),
            (sides[0] == sides[1]).astype(float),
        )
    difference = np.abs(reference.astype(float) - found.astype(float)).max()
    return Parity(
        len(found),
        float(difference),
        float(same_class.mean()),
        float(same_side.mean()),
        float(agreement.mean()),
    )


STEM = "model"


@dataclass(frozen=True)
class ExportOrigin:
    """What is exported, and what it answers.

    Attributes:
        description: Of it.
        images: That are asked.
        reference: Their probabilities, (N, K).
        classifier: The trained net; None where the run's model is a file already.
        file: That file.
    """

    description: Description
    images: ValidationImages
    reference: Probabilities
    classifier: Classifier | None = None
    file: Path | None = None


@dataclass(frozen=True)
class ExportedFile:
    """An export that was kept.

    Attributes:
        kind: Its format.
        path: The file.
        size_mb: In 10^6 bytes.
        parity: With the run's own answers.
    """

    kind: str
    path: Path
    size_mb: float
    parity: Parity


def of_net(
    classifier: Classifier, description: Description, images: ValidationImages
) -> ExportOrigin:
    """A trained net; the reference is what PyTorch says, eagerly, on as many threads as it has.

    Args:
        classifier: Trained.
        description: Of it.
        images: To be asked.
    """
    eager = EagerRuntime(classifier, description, torch.get_num_threads())
    return ExportOrigin(
        description, images, in_batches(eager, images.pictures, title="PyTorch"), classifier
    )


def of_file(file: Path, run: RecordedModel, images: ValidationImages, store: Store) -> ExportOrigin:
    """A compressed run's file; the reference is what it predicted when it was made.

    Args:
        file: Of the run.
        run: Compressed.
        images: To be asked; those that are not among its predictions are left out.
        store: That holds the run.

    Raises:
        UserError: None of the images is among its predictions.
    """
    description = trained.describe(store, run)
    for frame in run.predictions(store, images.split):
        known = frame.set_index("image_id")[[f"p/{name}" for name in description.classes]]
        at = np.isin(images.ids, known.index.to_numpy(dtype=str))
        if at.any():
            kept = ValidationImages(images.pictures[at], images.ids[at], images.split, images.own)
            return ExportOrigin(
                description, kept, known.loc[kept.ids].to_numpy(np.float32), file=file
            )
    raise UserError(
        f"run={run.run_id}: has no predictions of its {images.split} images, by which its file could be checked"
    )


def export(
    origin: ExportOrigin, made: Format, folder: Path, tolerance: float, threads: int
) -> ExportedFile:
    """Write a file and check it; other formats that the folder holds stay.

    Args:
        origin: What is exported.
        made: Its format.
        folder: Takes `model.<suffix>`.
        tolerance: Largest difference of a probability.
        threads: Of the runtime.

    Raises:
        UserError: The file cannot be written, or does not answer as the run does; the folder is as
            it was.
    """
    with atomic_folder(folder, "the export") as draft:
        path = draft / f"{STEM}{made.suffix}"
        if folder.exists():
            shutil.copytree(folder, draft, dirs_exist_ok=True)
            path.unlink(missing_ok=True)
        if origin.classifier is None:
            assert origin.file is not None
            shutil.copyfile(origin.file, path)
        else:
            made.write(CameraNet.of(origin.classifier), origin.description, path)
        parity = _asked(origin, made, path, threads)
        if not parity.difference <= tolerance:  # NaN is over it, too
            raise UserError(
                f"format={made.name}: differs by {parity.difference:.2g} from the run's own probabilities on "
                f"{parity.images} images, more than the tolerance of {tolerance:g}: no file was left"
            )
        size = path.stat().st_size / 1e6
    return ExportedFile(made.name, folder / path.name, size, parity)


def _asked(origin: ExportOrigin, made: Format, path: Path, threads: int) -> Parity:
    runtime = open_file(path, threads)
    found = in_batches(runtime, origin.images.pictures, title=made.name)
    return compare(origin.reference, found, origin.description.classes, origin.description.decision)


console = Console(width=100)


def make(config: DictConfig) -> list[ExportedFile]:
    """Make the exports that a config asks for.

    Args:
        config: A composed `conf/command/export.yaml`.

    Returns:
        Those that were kept, after they were recorded.

    Raises:
        UserError: Bad input, or a file that does not answer as the run does; the others of the list
            are made.
    """
    settings, store = _settings(config)
    run = trained.single(store, settings.wanted)
    _refuse_other_formats(run, trained.deployed_file(store, run), settings.formats)
    origin = _origin(run, store, settings)
    folder = Path(settings.folder) / f"{run.model}_{run.run_id[:8]}"
    tolerance = (
        settings.tolerance
        if origin.description.precision == "float32"
        else settings.compressed_tolerance
    )
    kept, refused = [], []
    for kind in settings.formats:
        print(f"{kind}: writing and checking ...", file=sys.stderr, flush=True)
        try:
            kept.append(export(origin, FORMATS[kind], folder, tolerance, settings.threads))
        except UserError as error:
            refused.append(error)
    if kept:
        _tell(kept, origin, run)
        if settings.publish:
            _publish(kept, store, run)
    if refused:
        raise UserError("; ".join(map(str, refused))) from refused[0]
    return kept


def _settings(config: DictConfig) -> tuple[ExportSettings, Store]:
    plain = {key: value for key, value in resolve(config).items() if key != "tracking"}
    check({"_target_": "src.deployment.export.ExportSettings", **plain})
    settings = ExportSettings(**plain)
    settings.wanted, settings.formats  # noqa: B018  they are refused here, before the store is opened
    return settings, existing(config)


def _refuse_other_formats(run: RecordedModel, file: Path | None, formats: list[Kind]) -> None:
    if file is None:
        return
    own = format_of(file).name
    if formats != [own]:
        raise ConfigError(
            "format",
            f"run {run.run_id} was compressed into a {file.suffix} file; take format={own}",
        )


def _origin(run: RecordedModel, store: Store, settings: ExportSettings) -> ExportOrigin:
    file = trained.deployed_file(store, run)
    if file is None:
        classifier = trained.load_network(store, run)
        for kind in settings.formats:
            FORMATS[kind].check_installed()
    found = load_validation_images(run, settings.images, settings.root, settings.cache_dir)
    if file is not None:
        return of_file(file, run, found, store)
    return of_net(classifier, trained.describe(store, run), found)


def _tell(kept: list[ExportedFile], origin: ExportOrigin, run: RecordedModel) -> None:
    held = "its recorded predictions" if origin.file else "PyTorch"
    table = Table(
        title=f"{run.title}, held against {held} on {len(origin.images.ids):,} {origin.images.split} images"
    )
    table.add_column("format")
    for column in (
        "MB",
        "largest difference\nof a probability",
        "same most\nprobable class",
        "same side of\nthe threshold",
    ):
        table.add_column(column, justify="right")
    for each in kept:
        parity = each.parity
        side = "no threshold" if math.isnan(parity.same_side) else f"{parity.same_side:.2%}"
        table.add_row(
            each.kind,
            f"{each.size_mb:.2f}",
            f"{parity.difference:.1e}",
            f"{parity.same_class:.2%}",
            side,
        )
    console.print(table)
    if not origin.images.own:
        console.print(
            "These are not the images, labels and split of the run's record; the check holds all the same."
        )
    console.print(_described(origin.description))
    for each in kept:
        console.print(str(each.path), markup=False, highlight=False, soft_wrap=True)


def _described(description: Description) -> str:
    decision = description.decision
    answer = "none, for there is no threshold"
    if decision is not None:
        answer = f"{decision.positive} from {decision.threshold:.4g} ({decision.aim})"
    return f"Decision: {answer}. Licence: {description.licence}."


def _publish(kept: list[ExportedFile], store: Store, run: RecordedModel) -> None:
    record = Run.attach(store, run.run_id)
    try:
        for each in kept:
            prefix, parity = f"export/{each.kind}", each.parity
            record.artifact(each.path, prefix)
            record.log(
                {
                    f"{prefix}/max_difference": parity.difference,
                    f"{prefix}/agreement": parity.agreement,
                    f"{prefix}/size_mb": each.size_mb,
                    f"{prefix}/images": parity.images,
                }
            )
        record.flush()
    except OSError as error:
        raise UserError(
            f"run={run.run_id}: the export is written, but cannot be recorded ({error})"
        ) from error
