"""Which registered models a run became, and what the registry says of them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from src.tracking.store import Store


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
