"""The model registry: register a trained net, find versions of registered models."""

import contextlib
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from src.core.errors import ConfigError
from src.tracking.run import text
from src.tracking.store import Store, TrackingError, environment, mlflow_errors, quiet

if TYPE_CHECKING:
    from torch import nn

_NAME = r"[^/:%\"']+"  # names of models that MLflow accepts
_MOST_NAMES = 5  # in the message about an unknown model
_EXAMPLES = 2  # images in the example: with one, torch.export takes the batch for a constant


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
    """Make a trained net a version of a registered model, and return the version's number.

    Args:
        store: Opened if it is not yet.
        run_id: The run that trained it.
        name: Of the registered model; created if missing.
        alias: Points to the new version from now on, such as "champion".
        net: float32 images (N, 3, S, S) in [0, 1] -> probabilities (N, K).
        image_size: S, px.
        classes: K names in label order; the version's tag `classes`.
        tags: More tags of the version.
        description: Markdown.

    Raises:
        TrackingError: The store has no registry, or refuses.
    """
    client = store.client
    import mlflow
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    dtype = np.dtype("float32")
    images = Schema([TensorSpec(dtype, (-1, 3, image_size, image_size))])
    # Without names: pyfunc would ask for a dict.
    signature = ModelSignature(images, Schema([TensorSpec(dtype, (-1, len(classes)))]))
    values = {key: text(value) for key, value in {**tags, "classes": list(classes)}.items()}
    uri, variables = mlflow.get_tracking_uri(), {"MLFLOW_EXPERIMENT_ID": store.experiment_id}
    with (
        mlflow_errors(f"register={name}"),
        # MLflow's module functions use this store, which also changes the environment
        environment(MLFLOW_TRACKING_URI=store.uri, **variables),
        contextlib.ExitStack() as stack,
        warnings.catch_warnings(action="ignore"),
        quiet(),
    ):
        stack.callback(mlflow.set_tracking_uri, uri)
        mlflow.set_tracking_uri(store.uri)
        logged = Model.log(
            None,
            mlflow.pytorch,
            name="model",
            run_id=run_id,
            pytorch_model=net.eval(),
            signature=signature,
            input_example=np.zeros((_EXAMPLES, 3, image_size, image_size), dtype),
            serialization_format="pt2",
            pip_requirements=["torch"],
        )
        if not client.search_registered_models(f"name = '{name}'"):
            about = "Chosen by a Pareto report of Paretoderm."
            client.create_registered_model(name, description=about)
        version = client.create_model_version(
            name, logged.model_uri, run_id, tags=values, description=description
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
