"""Trained runs in any runtime, and what their deployed models say about themselves."""

import tempfile
from pathlib import Path

from src.analysis.comparison import MELANOMA
from src.classifier import Classifier
from src.clinical import calibration
from src.clinical.operating import Wish, choose
from src.clinical.settings import Settings as Clinical
from src.deployment import licence
from src.deployment.camera import CameraNet
from src.deployment.description import Decision, Description
from src.deployment.files import FORMATS, format_of, open_file
from src.deployment.runtime import Name, Runtime
from src.deployment.torch import CompiledRuntime, EagerRuntime
from src.errors import UserError
from src.radiomics.once import FittedOnce
from src.tracking import read
from src.tracking.store import Store
from src.trained import inference, runs
from src.trained.restore import DEPLOYED, restore
from src.trained.runs import Evaluated

SLACK = 1e-5  # by which the stored threshold may lie below the score that was chosen: runtimes round differently
TORCH: dict[str, type[EagerRuntime]] = {"eager": EagerRuntime, "compile": CompiledRuntime}


def open_run(
    store: Store, run_id: str, runtime: Name = "eager", threads: int = 1, folder: Path | None = None
) -> Runtime:
    """A trained run in a runtime.

    Args:
        store: That holds the run.
        run_id: Of a single run, not of a trial of several seeds; the start of it is enough.
        runtime: In which it shall run. A compressed run whose model is a file runs in that file's own.
        threads: Of one call.
        folder: Where a file is written that the runtime needs; None: one that does not stay.

    Raises:
        UserError: No such run, no trained net, or one that does not go with the runtime.
    """
    run = single(store, run_id)
    file = deployed(store, run)
    if file is not None:
        found = format_of(file)
        if runtime != found.name:
            raise UserError(f"runtime={runtime}: run {run.run_id} is a {found.suffix} file; take runtime={found.name}")
        return open_file(file, threads)
    if runtime in TORCH:
        return TORCH[runtime](classifier(store, run), describe(store, run), threads)
    if folder is not None:
        return open_file(write(store, run, runtime, folder), threads)
    with tempfile.TemporaryDirectory() as own:
        return open_file(write(store, run, runtime, Path(own)), threads)


def single(store: Store, run_id: str) -> Evaluated:
    """The run of that id.

    Raises:
        UserError: There is none with a trained net, or it is a trial of several seeds, whose runs are then named.
    """
    run = runs.find(store, run_id)
    if run.repeated:
        seeds = ", ".join(f"{net.run_id} (seed {net.seed})" for net in run.nets)
        raise UserError(f"run={run_id}: is a trial of several seeds, each a model of its own; name one: {seeds}")
    return run


def deployed(store: Store, run: Evaluated) -> Path | None:
    """The file that a compressed run's model is; None where it is a checkpoint.

    Raises:
        TrackingError: It is recorded, but not there.
    """
    files = [item.path for item in store.client.list_artifacts(run.run_id, DEPLOYED)]
    suffixes = {each.suffix for each in FORMATS.values()}
    found = next((path for path in files if Path(path).suffix in suffixes), None)
    return None if found is None else read.artifact(store, run.run_id, found)


def classifier(store: Store, run: Evaluated) -> Classifier:
    """The trained net of a run that has a checkpoint.

    Raises:
        UserError: The run is no network, or has no checkpoint.
    """
    return restore(inference.build(run.config, classes(store, run)), store, run.run_id)


def network(store: Store, run: Evaluated) -> Classifier:
    """The trained net of a run that can be written as a file.

    Raises:
        UserError: The run is no network, or has no checkpoint.
    """
    found = classifier(store, run)
    if isinstance(found.net, FittedOnce):
        raise UserError(f"run={run.run_id}: {run.model} is no network, and no format for devices holds it")
    return found


def classes(store: Store, run: Evaluated) -> list[str]:
    """The run's classes in label order.

    Raises:
        UserError: It has no predictions, which tell them.
    """
    for split in ("val", "test"):
        for frame in run.predictions(store, split):
            return [str(name).removeprefix("p/") for name in frame if str(name).startswith("p/")]
    raise UserError(f"run={run.run_id}: has no recorded predictions, which tell its classes; train it again")


def write(store: Store, run: Evaluated, name: str, folder: Path) -> Path:
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
        made.write(CameraNet.of(network(store, run)), describe(store, run), part)
        part.replace(path)
    except OSError as error:
        raise UserError(f"{path}: the model cannot be written there ({error})") from error
    finally:
        part.unlink(missing_ok=True)
    return path


def describe(store: Store, run: Evaluated) -> Description:
    """What a deployed model of a run says about itself: where its model is a file already, what that file says.

    Args:
        store: That holds the run.
        run: A single one.

    Raises:
        UserError: The file's runtime is not installed, or what is recorded cannot be read.
    """
    file = deployed(store, run)
    if file is not None:
        return open_file(file).description
    return Description(
        run_id=run.run_id,
        model=run.model,
        classes=tuple(classes(store, run)),
        image_size=int(run.config.data.image_size),
        geometry=run.config.data.geometry,
        data=run.data,
        split=run.split,
        licence=licence.note(run.config.data),
        precision=store.client.get_run(run.run_id).data.tags.get("precision", Description.precision),
        decision=decision(store, run),
    )


def decision(store: Store, run: Evaluated, sensitivity: float = Clinical.sensitivity) -> Decision | None:
    """Threshold and temperature, chosen on the validation images that the run predicted.

    Args:
        store: That holds the run.
        run: A single one.
        sensitivity: That the threshold has to reach there.

    Returns:
        None where there is no validation split, no class that goes by a name of melanoma, or no threshold of any use.
    """
    for frame in run.predictions(store, "val"):
        names = classes(store, run)
        positive = next((name for name in names if name.lower() in MELANOMA), None)
        if positive is None:
            return None
        score, own = frame[f"p/{positive}"].to_numpy(float), (frame["label"] == positive).to_numpy()
        wish = Wish("sensitivity", sensitivity)
        chosen = choose(score, own, wish)
        if chosen.problem:
            return None
        probability = frame[[f"p/{name}" for name in names]].to_numpy(float)
        target = frame["label"].map({name: label for label, name in enumerate(names)}).to_numpy(int)
        below = score[score < chosen.value].max(initial=chosen.value - 2 * SLACK)
        return Decision(
            positive, float((chosen.value + below) / 2), f"{wish} on val", calibration.fit(probability, target)
        )
    return None
