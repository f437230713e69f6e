"""Which model a card is of: a run, a trial of several seeds, a registered version, an exported file."""

import re
from dataclasses import dataclass
from pathlib import Path

from src.core.errors import UserError
from src.deployment import trained
from src.deployment.description import Description
from src.deployment.trained import RecordedModel
from src.tracking import registry
from src.tracking import registry as registered
from src.tracking.registry import Version
from src.tracking.store import Store, TrackingError

FILES = (".onnx", ".pte", ".tflite")


@dataclass(frozen=True)
class CardSubject:
    """What a card is of.

    Attributes:
        evaluated: The run or trial, with its nets.
        versions: Registered ones that this very run trained; the one that was asked for first.
        file: The exported file that was asked for.
        description: In that file.
    """

    evaluated: RecordedModel
    versions: tuple[Version, ...] = ()
    file: Path | None = None
    description: Description | None = None

    @property
    def folder(self) -> str:
        """Name of the card's folder."""
        return f"card_{self.evaluated.run_id[:8]}"


def find(store: Store, wanted: str) -> CardSubject:
    """What `wanted` names: a file, else a registered model, else a run.

    Args:
        store: Opened if it is not yet.
        wanted: As typed.

    Raises:
        UserError: There is no such model, or nothing can be told of it; the message says why.
    """
    if Path(wanted).suffix in FILES:
        return _of_file(store, Path(wanted))
    if "@" in wanted or "/" in wanted or _is_registered(store, wanted):
        return _of_version(store, wanted)
    if not re.fullmatch(r"[0-9a-f]+", wanted):
        raise UserError(
            f"model={wanted}: no run, no registered model and no file is called so{_known(store)}"
        )
    return of_run(store, wanted)


def of_run(store: Store, run_id: str, wanted: str = "") -> CardSubject:
    """A run or trial.

    Args:
        store: Opened if it is not yet.
        run_id: Or the start of it.
        wanted: What to call it in messages; the id by default.
    """
    try:
        evaluated = trained.find(store, run_id)
    except UserError as error:
        problem = str(error).removeprefix(f"run={run_id}: ")
        raise UserError(f"model={wanted or run_id}: {problem}") from error
    return CardSubject(evaluated, tuple(registered.of_run(store, evaluated.run_id)))


def _of_file(store: Store, path: Path) -> CardSubject:
    if not path.is_file():
        raise UserError(f"model={path}: no such file")
    from src.deployment.runtimes.files import open_file  # the runtimes' libraries: only here

    description = open_file(path).description
    found = of_run(store, description.run_id, f"{path} (of run {description.run_id})")
    return CardSubject(found.evaluated, found.versions, path, description)


def _of_version(store: Store, wanted: str) -> CardSubject:
    try:
        named = registry.resolve(store, wanted)
    except TrackingError as error:
        raise UserError(f"model={error}") from error
    found = of_run(store, named.run_id, wanted)
    first = sorted(
        found.versions, key=lambda each: (each.name, each.number) != (named.name, named.version)
    )
    return CardSubject(found.evaluated, tuple(first))


def _is_registered(store: Store, name: str) -> bool:
    return bool(
        re.fullmatch(registry.NAME, name)
        and store.client.search_registered_models(f"name = '{name}'")
    )


def _known(store: Store) -> str:
    names = sorted(model.name for model in store.client.search_registered_models())
    return f"; registered are {', '.join(names)}" if names else "; no model is registered"
