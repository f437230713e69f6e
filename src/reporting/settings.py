"""The values of conf/report.yaml, which says what each means."""

from dataclasses import dataclass, field
from typing import Annotated, Any

import pandas as pd
from annotated_types import Ge, Gt, Le, Lt

from src.errors import ConfigError
from src.tracking.registry import check_name


@dataclass
class Settings:
    """What is reported on, and how."""

    study: str | list[str] | None = None
    filter: str | None = None
    before: str | None = None
    objectives: list[Any] | None = None
    limits: list[str] | None = None
    margin: Annotated[float, Gt(0), Lt(1)] = 0.02
    budgets: list[str] = field(default_factory=list)
    floors: list[str] = field(default_factory=list)
    test: bool = True
    samples: Annotated[int, Ge(200)] = 2000
    level: Annotated[float, Gt(0.5), Le(0.999)] = 0.95
    seed: Annotated[int, Ge(0)] = 0
    folder: str = "reports"
    publish: bool = True
    register: str | None = None
    alias: str = "champion"
    refresh: bool = False

    @property
    def studies(self) -> list[str]:
        """Names of the studies that are asked for, in order, each once."""
        names = [self.study] if isinstance(self.study, str) else list(self.study or [])
        return list(dict.fromkeys(str(name) for name in names))

    def moment(self) -> pd.Timestamp | None:
        """`before` as a time, UTC unless it says otherwise.

        Raises:
            ConfigError: It is no date.
        """
        if self.before is None:
            return None
        try:
            found = pd.Timestamp(self.before)
        except ValueError as error:
            raise ConfigError("before", f"must be a time such as 2026-11-21T12:00, but got {self.before}") from error
        return found.tz_localize("UTC") if found.tzinfo is None else found.tz_convert("UTC")

    def check(self) -> None:
        """Refuse what does not go together, before anything is read.

        Raises:
            ConfigError: The message names the key.
        """
        if self.filter and self.study:
            raise ConfigError("filter", "stands for itself: leave study out, or add tags.study = '...' to the filter")
        if self.before and len(self.studies) != 1:
            raise ConfigError("before", "compares a study with itself at an earlier time: name one study")
        self.moment()
        if self.register is not None:
            check_name(self.register, "register")
            check_name(self.alias, "alias")
