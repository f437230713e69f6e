"""Logged and registered models: log a trained net, register it, find versions."""

import re
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.core.errors import ConfigError
from src.tracking.run import text
from src.tracking.store import Store, TrackingError, mlflow_errors, quiet

MODEL = "model"  # the name of a run's logged model
_NAME = r"[^/:%\"']+"  # names of models that MLflow accepts
_MOST_NAMES = 5  # in the message about an unknown model


@dataclass(frozen=True)
class Version:
    """A version of a registered model, numbered from 1, and the run that trained the net."""

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


def check_name(name: str, key: str) -> None:
    """Check a model's name before anything is computed.

    Raises:
        ConfigError: MLflow would refuse the name.
    """
    if not re.fullmatch(_NAME, name) or not name.strip():
        raise ConfigError(key, f"must be a model's name without / : % and quotes, but got {name!r}")


def logged_model(store: Store, run_id: str) -> str | None:
    """The URI of the model that was logged for a run; None if there is none."""
    query = f"name = '{MODEL}' AND source_run_id = '{run_id}'"
    with mlflow_errors(f"run {run_id}"):
        models = store.client.search_logged_models([store.experiment_id], query)
    # a process that was killed leaves a pending one
    return next((str(model.model_uri) for model in models if model.status == "READY"), None)


def log_model(
    store: Store,
    run_id: str,
    loader: str,
    data: Path,
    image_size: int,
    n_classes: int,
    metadata: Mapping[str, Any],
) -> str:
    """Log a trained net as the model `runs:/<run id>/model`, and return its URI.

    Its input are RGB pictures, uint8 (N, S, S, 3), its output probabilities, float32 (N, K).

    Args:
        store: Opened if it is not yet.
        run_id: The run that trained it.
        loader: The module whose `_load_pyfunc` MLflow calls with a copy of `data`.
        data: A folder.
        image_size: S, px.
        n_classes: K.
        metadata: What the model says about itself, ready for JSON.

    Raises:
        TrackingError: The store refuses.
    """
    client = store.client
    import mlflow
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    sides = (image_size, image_size, 3)
    # Without names: pyfunc would ask for a dict.
    pictures = Schema([TensorSpec(np.dtype("uint8"), (-1, *sides))])
    probabilities = Schema([TensorSpec(np.dtype("float32"), (-1, n_classes))])
    with (
        mlflow_errors(f"run {run_id}"),
        tempfile.TemporaryDirectory() as folder,
        warnings.catch_warnings(action="ignore"),
        quiet(),
    ):
        model = client.create_logged_model(store.experiment_id, MODEL, run_id)
        mlflow.pyfunc.save_model(
            f"{folder}/{MODEL}",
            loader_module=loader,
            data_path=str(data),
            signature=ModelSignature(pictures, probabilities),
            input_example=np.zeros((1, *sides), np.uint8),
            pip_requirements=[],  # the loader is this package, which no index has
            metadata=dict(metadata),
            mlflow_model=Model(model.artifact_location, run_id, model_id=model.model_id),
        )
        client.log_model_artifacts(model.model_id, f"{folder}/{MODEL}")
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        client.finalize_logged_model(model.model_id, "READY")
    return str(model.model_uri)


def register(
    store: Store, model: str, name: str, alias: str, tags: Mapping[str, Any], description: str
) -> int:
    """Make a logged model a version of a registered model, and return the version's number.

    Args:
        store: Opened if it is not yet.
        model: Its URI, from `log_model`.
        name: Of the registered model; created if missing.
        alias: Points to the new version from now on, such as "champion".
        tags: Of the version.
        description: Markdown.

    Raises:
        TrackingError: The store has no registry, or refuses.
    """
    client = store.client
    values = {key: text(value) for key, value in tags.items()}
    with mlflow_errors(f"register={name}"), quiet():
        if not client.search_registered_models(f"name = '{name}'"):
            about = "Chosen by a Pareto report of Paretoderm."
            client.create_registered_model(name, description=about)
        logged = client.get_logged_model(model.removeprefix("models:/"))
        # MLflow would look for a source models:/... in the store of the environment
        source, run_id = logged.artifact_location, logged.source_run_id
        version = client.create_model_version(
            name, source, run_id, values, None, description, model_id=logged.model_id
        )
        client.set_registered_model_alias(name, alias, version.version)
    return int(version.version)


def resolve(store: Store, typed: str) -> Version:
    """The version that a text names: a model (its newest version), name@alias or name/number.

    Raises:
        TrackingError: No such model, alias or version, or a version without a run.
    """
    client = store.client
    name, separator, which = (*re.split("([@/])", typed, maxsplit=1), "", "")[:3]
    if not re.fullmatch(_NAME, name):
        message = "not the name of a registered model; give name, name@alias or name/3"
        raise TrackingError(f"{typed}: {message}")
    with mlflow_errors(typed):
        if separator == "@":
            version = client.get_model_version_by_alias(name, which)
        elif separator:
            version = client.get_model_version(name, which)
        elif versions := client.search_model_versions(f"name = '{name}'"):
            version = max(versions, key=lambda version: int(version.version))
        else:
            models = client.search_registered_models(max_results=_MOST_NAMES)
            listed = ", ".join(model.name for model in models) or "none"
            raise TrackingError(f"{typed}: no such registered model; there are {listed}")
    if not version.run_id:
        raise TrackingError(f"{typed}: version {version.version} names no run that trained it")
    return Version(name, int(version.version), version.run_id)


def of_run(store: Store, run_id: str) -> list[Version]:
    """The versions that a run trained, by name, the newest first."""
    client, versions = store.client, list[Version]()
    for version in client.search_model_versions(f"run_id = '{run_id}'"):
        # a version that a search returns does not list its aliases
        aliases = client.get_model_version(version.name, version.version).aliases
        names = tuple(sorted(aliases))
        number, description = int(version.version), version.description or ""
        versions.append(Version(version.name, number, run_id, names, description))
    return sorted(versions, key=lambda version: (version.name, -version.number))


def describe(store: Store, version: Version, description: str) -> None:
    """Set the description of a version."""
    store.client.update_model_version(version.name, str(version.number), description)
