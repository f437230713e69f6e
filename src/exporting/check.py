"""One export: the file, written into a draft, run at once, and kept only if it answers as the run does."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from src.classifier import Classifier
from src.deployment.camera import CameraNet
from src.deployment.description import Description
from src.deployment.files import Format, open_file
from src.deployment.parity import Parity, compare
from src.deployment.runtime import Probabilities, in_batches
from src.deployment.torch import EagerRuntime
from src.errors import UserError
from src.exporting.images import Images
from src.tracking.store import Store
from src.trained import load
from src.trained.runs import Evaluated
from src.whole import whole_folder

STEM = "model"


@dataclass(frozen=True)
class Origin:
    """What is exported, and what it answers.

    Attributes:
        description: Of it.
        images: That are asked.
        reference: Their probabilities, (N, K).
        classifier: The trained net; None where the run's model is a file already.
        file: That file.
    """

    description: Description
    images: Images
    reference: Probabilities
    classifier: Classifier | None = None
    file: Path | None = None


@dataclass(frozen=True)
class Exported:
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


def of_net(classifier: Classifier, description: Description, images: Images) -> Origin:
    """A trained net; the reference is what PyTorch says, eagerly, on as many threads as it has.

    Args:
        classifier: Trained.
        description: Of it.
        images: To be asked.
    """
    eager = EagerRuntime(classifier, description, torch.get_num_threads())
    return Origin(description, images, in_batches(eager, images.pictures, title="PyTorch"), classifier)


def of_file(file: Path, run: Evaluated, images: Images, store: Store) -> Origin:
    """A compressed run's file; the reference is what it predicted when it was made.

    Args:
        file: Of the run.
        run: Compressed.
        images: To be asked; those that are not among its predictions are left out.
        store: That holds the run.

    Raises:
        UserError: None of the images is among its predictions.
    """
    description = load.describe(store, run)
    for frame in run.predictions(store, images.split):
        known = frame.set_index("image_id")[[f"p/{name}" for name in description.classes]]
        at = np.isin(images.ids, known.index.to_numpy(dtype=str))
        if at.any():
            kept = Images(images.pictures[at], images.ids[at], images.split, images.own)
            return Origin(description, kept, known.loc[kept.ids].to_numpy(np.float32), file=file)
    raise UserError(
        f"run={run.run_id}: has no predictions of its {images.split} images, by which its file could be checked"
    )


def export(origin: Origin, made: Format, folder: Path, tolerance: float, threads: int) -> Exported:
    """Write a file and check it; other formats that the folder holds stay.

    Args:
        origin: What is exported.
        made: Its format.
        folder: Takes `model.<suffix>`.
        tolerance: Largest difference of a probability.
        threads: Of the runtime.

    Raises:
        UserError: The file cannot be written, or does not answer as the run does; the folder is as it was.
    """
    with whole_folder(folder, "the export") as draft:
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
    return Exported(made.name, folder / path.name, size, parity)


def _asked(origin: Origin, made: Format, path: Path, threads: int) -> Parity:
    runtime = open_file(path, threads)
    found = in_batches(runtime, origin.images.pictures, title=made.name)
    return compare(origin.reference, found, origin.description.classes, origin.description.decision)
