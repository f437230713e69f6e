"""What the run store holds of a card's subject, read by name."""

import json
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from src.carding import find
from src.carding.find import CardSubject
from src.carding.record import ABSENT
from src.core.errors import UserError
from src.metrics.formatting import joined
from src.tracking import read
from src.tracking import read as cache
from src.tracking.store import Store, TrackingError


class RunRecord:
    """The runs of a card's subject: its own, and those of its nets, a net a seed.

    Args:
        store: Opened if it is not yet.
        subject: Of the card.
    """

    def __init__(self, store: Store, subject: CardSubject) -> None:
        self.store = store
        self.subject = subject
        self.config: Any = OmegaConf.to_container(subject.evaluated.config, resolve=True)

    @cached_property
    def all(self) -> pd.DataFrame:
        """All runs of the store, indexed by their ids."""
        return cache.cached_runs(self.store).set_index("run_id", drop=False)

    @cached_property
    def nets(self) -> pd.DataFrame:
        """The nets' own runs, by seed."""
        return self.all.loc[[net.run_id for net in self.subject.evaluated.nets]]

    @cached_property
    def own(self) -> dict[str, Any]:
        """What the subject's own run has: a trial's, not its nets'."""
        return dict(self.all.loc[[self.subject.evaluated.run_id]].iloc[0].dropna())

    @cached_property
    def trained(self) -> "RunRecord | None":
        """What was trained: of a compressed net its origin's record, of any other its own; None where that is gone."""
        origin = self.own_tag("origin")
        if origin == ABSENT:
            return self
        try:
            return RunRecord(self.store, find.of_run(self.store, origin)).trained
        except UserError:
            return None

    def tag(self, name: str) -> str:
        """A tag of the nets' runs, else of the trial's; where they differ, all values; `ABSENT` without any."""
        column = f"tags.{name}"
        values: Iterable[object] = (
            self.nets[column].dropna().unique() if column in self.nets else ()
        )
        return joined([str(value) for value in values if str(value)]) or self.own_tag(name)

    def tags(self, prefix: str) -> list[str]:
        """Names of the nets' tags that start so, by the rest of their names."""
        start = f"tags.{prefix}"
        names = [str(column) for column in self.nets.dropna(axis="columns", how="all")]
        return sorted(name.removeprefix(start) for name in names if name.startswith(start))

    def own_tag(self, name: str) -> str:
        """A tag of the subject's own run; `ABSENT` without it."""
        return str(self.own.get(f"tags.{name}") or ABSENT)

    def own_metrics(self, prefix: str) -> dict[str, float]:
        """Metrics of the subject's own run whose names start so, by the rest of their names."""
        start = f"metrics.{prefix}"
        return {
            name.removeprefix(start): float(value)
            for name, value in self.own.items()
            if name.startswith(start)
        }

    def values(self, name: str) -> list[float]:
        """A metric of each net that has it, in the nets' order, else the trial's own; empty without any."""
        column = f"metrics.{name}"
        found = (
            [float(value) for value in self.nets[column].dropna()] if column in self.nets else []
        )
        return found or [float(self.own[each]) for each in (column,) if each in self.own]

    def metrics(self, prefix: str) -> dict[str, list[float]]:
        """Metrics whose names start so, by the rest of their names, as `values` gives them."""
        names = [
            str(column).removeprefix("metrics.")
            for column in self.all
            if str(column).startswith("metrics.")
        ]
        found = {
            name.removeprefix(prefix): self.values(name)
            for name in names
            if name.startswith(prefix)
        }
        return {name: values for name, values in found.items() if values}

    def json(self, name: str) -> dict[str, Any]:
        """A JSON artifact of the first net's run; empty where it is not recorded."""
        try:
            path = read.artifact(self.store, self.subject.evaluated.nets[0].run_id, name)
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (TrackingError, ValueError):
            return {}
        return found
