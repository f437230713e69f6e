"""Model registry."""

import contextlib
import logging
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from src.core.errors import ConfigError
from src.tracking.run import text
from src.tracking.store import Store, TrackingError

if TYPE_CHECKING:
    from torch import nn


NAME = r"[^/:%\"']+"  # what MLflow takes as a model's name
_SHOWN = 5  # registered models that are named where another one was meant
EXAMPLES = 2  # images in the example: with one, torch.export would take the batch for a constant


def check_name(name: str, key: str) -> None:
    """Refuse a name that MLflow would refuse, before anything is computed.

    Raises:
        ConfigError: The name has a character that it must not have.
    """
    if not re.fullmatch(NAME, name) or not name.strip():
        raise ConfigError(key, f"must be a model's name without / : % and quotes, but got {name!r}")


def register(
    store: Store,
    run_id: str,
    name: str,
    alias: str,
    net: "nn.Module",
    image_size: int,
    classes: Sequence[str],
    tags: Mapping[str, Any],
    description: str,
) -> int:
    """Make a trained net a version of a registered model.

    Args:
        store: Opened if it is not yet.
        run_id: The run that trained it.
        name: Of the registered model; made if it is not there.
        alias: That points to the new version from now on, such as "champion".
        net: float32 images (N, 3, S, S) in [0, 1] -> probabilities (N, K).
        image_size: S, px.
        classes: K names in label order; kept as the version's tag `classes`.
        tags: More tags of the version.
        description: For people, Markdown.

    Returns:
        The version's number.

    Raises:
        TrackingError: The store has no registry, or refuses.
    """
    client = store.client
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    images = TensorSpec(np.dtype("float32"), (-1, 3, image_size, image_size))
    answer = TensorSpec(
        np.dtype("float32"), (-1, len(classes))
    )  # no names: pyfunc would ask for a dict
    example = np.zeros((EXAMPLES, 3, image_size, image_size), dtype=np.float32)
    try:
        with _pointed_to(store), _quiet():
            logged = Model.log(
                None,
                mlflow.pytorch,
                name="model",
                run_id=run_id,
                pytorch_model=net.eval(),
                signature=ModelSignature(Schema([images]), Schema([answer])),
                input_example=example,
                serialization_format="pt2",
                pip_requirements=["torch"],
            )
            if not client.search_registered_models(f"name = '{name}'"):
                client.create_registered_model(
                    name, description="Chosen by a Pareto report of Paretoderm."
                )
            recorded = {
                key: text(value) for key, value in {**tags, "classes": list(classes)}.items()
            }
            version = client.create_model_version(
                name, logged.model_uri, run_id, tags=recorded, description=description
            )
            client.set_registered_model_alias(name, alias, version.version)
    except MlflowException as error:
        raise TrackingError(f"register={name}: {' '.join(str(error).split())}") from error
    return int(version.version)


@dataclass(frozen=True)
class ModelVersion:
    """A version of a registered model, and the run that trained its net."""

    name: str
    version: int
    run_id: str


def resolve(store: Store, wanted: str) -> ModelVersion:
    """The version that is meant.

    Args:
        store: Opened if it is not yet.
        wanted: A model's name, then its newest version is meant; name@alias; or name/number.

    Raises:
        TrackingError: No such model, alias or version, or one that no run is known of.
    """
    client = store.client
    from mlflow.exceptions import MlflowException

    name, at, alias = wanted.partition("@")
    name, slash, number = (name, "", "") if at else wanted.partition("/")
    if not re.fullmatch(NAME, name):
        raise TrackingError(
            f"{wanted}: no registered model can be called so; say name, name@alias or name/3"
        )
    try:
        if at:
            found = client.get_model_version_by_alias(name, alias)
        elif slash:
            found = client.get_model_version(name, number)
        else:
            versions = client.search_model_versions(f"name = '{name}'")
            if not versions:
                names = [each.name for each in client.search_registered_models(max_results=_SHOWN)]
                raise TrackingError(
                    f"{wanted}: no such registered model; there are {', '.join(names) or 'none'}"
                )
            found = max(versions, key=lambda each: int(each.version))
    except MlflowException as error:
        raise TrackingError(f"{wanted}: {' '.join(str(error).split())}") from error
    if not found.run_id:
        raise TrackingError(
            f"{wanted}: version {found.version} says nothing of the run that trained it"
        )
    return ModelVersion(name, int(found.version), found.run_id)


@contextlib.contextmanager
def _pointed_to(store: Store) -> Any:
    """MLflow's own functions at this store, and afterwards where they were: they tell the environment, too."""
    import mlflow

    names = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID")
    before = {name: os.environ.get(name) for name in names}
    tracking = mlflow.get_tracking_uri()
    try:
        mlflow.set_tracking_uri(store.uri)
        os.environ["MLFLOW_EXPERIMENT_ID"] = store.experiment_id
        yield
    finally:
        mlflow.set_tracking_uri(tracking)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _quiet() -> Any:
    """Without MLflow's and torch.export's notes on their own progress."""
    loggers = [logging.getLogger(name) for name in ("mlflow", "torch.export", "torch.onnx")]
    before = [each.level for each in loggers]
    try:
        for each in loggers:
            each.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, before, strict=True):
            each.setLevel(level)


@dataclass(frozen=True)
class Version:
    """A version of a registered model.

    Attributes:
        name: Of the registered model.
        number: Of the version, from 1.
        run_id: The run that trained it.
        aliases: That point to it.
        description: As it stands in the registry.
    """

    name: str
    number: int
    run_id: str
    aliases: tuple[str, ...] = ()
    description: str = ""

    @property
    def title(self) -> str:
        """For people, such as "derm, version 3 (champion)"."""
        aliases = f" ({', '.join(self.aliases)})" if self.aliases else ""
        return f"{self.name}, version {self.number}{aliases}"


def of_run(store: Store, run_id: str) -> list[Version]:
    """The versions that a run trained, the newest of each name first."""
    return _versions(store, store.client.search_model_versions(f"run_id = '{run_id}'"))


def describe(store: Store, of: Version, description: str) -> None:
    """Write what the registry shows as a version's description."""
    store.client.update_model_version(of.name, str(of.number), description)


def _versions(store: Store, found: Iterable[Any]) -> list[Version]:
    listed = list(found)
    aliases: dict[tuple[str, int], list[str]] = {}
    for name in {each.name for each in listed}:  # a search of versions does not tell their aliases
        for model in store.client.search_registered_models(f"name = '{name}'"):
            for alias, number in model.aliases.items():
                aliases.setdefault((name, int(number)), []).append(alias)
    versions = [
        Version(
            each.name,
            int(each.version),
            each.run_id or "",
            tuple(sorted(aliases.get((each.name, int(each.version)), []))),
            each.description or "",
        )
        for each in listed
    ]
    return sorted(versions, key=lambda each: (each.name, -each.number))
