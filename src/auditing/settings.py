"""The values of conf/command/audit.yaml, which says what each means."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le


@dataclass
class ClaimsSettings:
    """Which runs an audit looks at, and how it writes."""

    study: str | list[str] | None = None
    seeds: Annotated[int, Ge(1)] = 3
    samples: Annotated[int, Ge(200)] = 2000
    level: Annotated[float, Gt(0.5), Le(0.999)] = 0.95
    seed: Annotated[int, Ge(0)] = 0
    folder: str = "reports"
    publish: bool = True

    @property
    def studies(self) -> list[str]:
        """Names of the studies to look in, each once; none: in all."""
        names = [self.study] if isinstance(self.study, str) else list(self.study or [])
        return list(dict.fromkeys(names))
