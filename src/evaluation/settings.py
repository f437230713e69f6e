"""The values of conf/evaluate.yaml, which says what each means."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from src.clinical.settings import Settings as Clinical
from src.errors import ConfigError
from src.trained.runs import named


@dataclass
class Settings:
    """What is evaluated, and how; `clinical` says what is asked of it."""

    run: str | None = None
    test: bool = False
    own_root: str | None = None
    part: Literal["all", "train", "val", "test"] = "all"
    mapping: str = "auto"
    unknown: Literal["refuse", "list"] = "refuse"
    overlap: Literal["exclude", "keep"] = "exclude"
    folder: str = "reports"
    publish: bool = True

    @property
    def wanted(self) -> str:
        """The run's id, or the start of it.

        Raises:
            ConfigError: There is none.
        """
        return named(self.run)

    @property
    def choices(self) -> tuple[str, ...]:
        """What of other data is evaluated in another way than by default, such as "part=val": for names."""
        keys = {"part": "part", "labels": "mapping", "unknown": "unknown", "overlap": "overlap"}
        default = Settings()
        changed = {
            key: getattr(self, each) for key, each in keys.items() if getattr(self, each) != getattr(default, each)
        }
        return tuple(f"{key}={Path(value).stem}" for key, value in changed.items())  # labels may be a path


def clinical(values: dict[str, object]) -> Clinical:
    """The `clinical` part.

    Raises:
        ConfigError: A value out of its range; the message names the key.
    """
    try:
        return Clinical(**values)  # type: ignore[arg-type]  # checked against its signature before
    except ConfigError as error:
        raise error.under("clinical") from error
