"""The values of conf/export.yaml, which says what each means."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt

from src.errors import ConfigError
from src.trained.runs import named

Kind = Literal["onnx", "executorch", "litert"]
LEAST = 256  # images, of which a difference is looked for


@dataclass
class Settings:
    """What is exported, and how it is checked."""

    run: str | None = None
    format: Kind | list[Kind] = "onnx"
    folder: str = "exports"
    root: str | None = None
    cache_dir: str = "data/cache"
    images: Annotated[int, Ge(LEAST)] | None = LEAST
    tolerance: Annotated[float, Gt(0)] = 1e-4
    compressed_tolerance: Annotated[float, Gt(0)] = 0.02
    threads: Annotated[int, Ge(1)] = 1
    publish: bool = True

    @property
    def wanted(self) -> str:
        """The run's id, or the start of it.

        Raises:
            ConfigError: There is none.
        """
        return named(self.run)

    @property
    def formats(self) -> list[Kind]:
        """What is written, each once.

        Raises:
            ConfigError: Nothing is.
        """
        listed = self.format if isinstance(self.format, list) else [self.format]
        if not listed:
            raise ConfigError("format", "name at least one of onnx, executorch, litert")
        return list(dict.fromkeys(listed))
