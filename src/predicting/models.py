"""Which model is named: an exported file, a run, a trial with its seeds, or a registered model."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from src.classifier import Classifier
from src.deployment.camera import CameraNet
from src.deployment.description import Description
from src.deployment.runtime import Name, Pictures, Probabilities, Runtime, in_batches
from src.deployment.torch import EagerRuntime
from src.errors import ConfigError, UserError
from src.paths import expanded, is_there
from src.radiomics.once import FittedOnce
from src.tracking import cache, registry
from src.tracking.store import Store
from src.trained import inference, load, runs
from src.trained.runs import Evaluated

SUFFIXES = tuple(each.suffix for each in load.FORMATS.values())


@dataclass(frozen=True)
class Model:
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

    def __call__(self, pictures: Pictures) -> Probabilities:
        """Probabilities of the classes, (N, K), for any number of pictures from one on."""
        found: Probabilities = np.mean([in_batches(net, pictures) for net in self.nets], axis=0, dtype=np.float32)
        return found


class Averaged(Evaluated):
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
            raise UserError(f"model={self.run_id}: its seeds were not tried on the same images; name one of {ids}")
        columns = [str(name) for name in frames[0] if str(name).startswith("p/")]
        mean = np.mean([frame[columns].to_numpy(float) for frame in frames], axis=0)
        return [frames[0].assign(**dict(zip(columns, mean.T, strict=True)))]


class GpuRuntime:
    """A trained net on a GPU.

    Args:
        classifier: Trained.
        description: Of it.
    """

    name: Name = "eager"
    batch: int | None = None

    def __init__(self, classifier: Classifier, description: Description) -> None:
        self.description = description
        self._model = CameraNet.of(classifier.cuda()).cuda()

    def __call__(self, pictures: Pictures) -> Probabilities:
        """Probabilities of the classes, (N, K)."""
        with torch.inference_mode():
            found: Probabilities = self._model(torch.from_numpy(pictures).cuda()).cpu().numpy()
        return found


def find(wanted: str, store: Callable[[], Store], threads: int) -> Model:
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
        raise ConfigError("model", f"{error}; nor does a run's id start so, nor is it an exported file") from error
    if is_run:
        raise ConfigError(
            "model", f"{wanted} is a registered model, and a run's id starts so too; say {wanted}/<version>"
        )
    found = _run(opened, registered.run_id, threads)
    return replace(found, title=f"{registered.name} version {registered.version}, {found.title}")


def _file(path: Path, threads: int) -> Model:
    runtime = load.open_file(path, threads)
    said = runtime.description

    def none() -> list[Classifier]:
        raise ConfigError("gradcam", f"{path.name} is an exported file, without gradients; name its run: {said.run_id}")

    return Model(f"{path.name} ({said.model}, run {said.run_id[:8]})", said, (runtime,), none)


def _run(store: Store, wanted: str, threads: int) -> Model:
    try:
        found = runs.find(store, wanted)
        nets = [runs.find(store, net.run_id) for net in found.nets]
    except UserError as error:
        raise UserError(str(error).replace("run=", "model=", 1)) from error
    whole = found if len(nets) == 1 else Averaged(**vars(found))
    description = load.describe(store, whole)
    loaded = [_net(store, net, description, threads) for net in nets]
    runtimes, classifiers = [runtime for runtime, _ in loaded], [classifier for _, classifier in loaded]

    def given() -> list[Classifier]:
        present = [each for each in classifiers if each is not None]
        if len(present) < len(classifiers):
            raise ConfigError(
                "gradcam", f"{found.title} runs from an exported file, without gradients; name its origin"
            )
        return present

    title = found.title + (", mean of their probabilities" if len(nets) > 1 else "")
    precision = runtimes[0].description.precision
    told = () if None in classifiers else tuple(inference.precision_told(found.config))
    return Model(title, replace(description, precision=precision), tuple(runtimes), given, told)


def _net(store: Store, run: Evaluated, description: Description, threads: int) -> tuple[Runtime, Classifier | None]:
    """A run's model in its runtime, and as a net of torch's if it is one."""
    file = load.deployed(store, run)
    if file is not None:
        return load.open_file(file, threads), None
    classifier = load.classifier(store, run)
    tags = store.client.get_run(run.run_id).data.tags  # a trial's own do not tell the precision
    description = replace(description, precision=tags.get("precision", description.precision))
    if torch.cuda.is_available() and not isinstance(classifier.net, FittedOnce):  # features by NumPy gain nothing
        return GpuRuntime(classifier, description), classifier
    return EagerRuntime(classifier, description, threads), classifier
