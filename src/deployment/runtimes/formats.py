"""Model files: the formats of this package, and the runtime that opens a file."""

import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from src.core.errors import UserError
from src.deployment.runtimes.base import FileRuntime

for _module in pkgutil.iter_modules([str(Path(__file__).parent)]):
    if _module.name not in ("eager", "formats"):
        importlib.import_module(f"{__package__}.{_module.name}")
# By name. A subclass in a module of this package is found here; it imports its libraries late.
FORMATS: dict[str, type[FileRuntime]] = {
    form.name: form for form in sorted(FileRuntime.__subclasses__(), key=lambda form: form.suffix)
}
if TYPE_CHECKING:
    FormatName: TypeAlias = str
    RuntimeName: TypeAlias = str
else:  # the values that a setting can have; src.core.config checks them
    FormatName = Literal[tuple(FORMATS)]
    RuntimeName = Literal[("eager", "compile", *FORMATS)]


def format_of(path: Path) -> type[FileRuntime]:
    """The format of a file, by its suffix.

    Raises:
        UserError: The suffix is unknown.
    """
    for form in FORMATS.values():
        if form.suffix == path.suffix:
            return form
    suffixes = ", ".join(form.suffix for form in FORMATS.values())
    raise UserError(f"{path}: unknown suffix of a model file; known are {suffixes}")


def open_file(path: Path, threads: int = 1) -> FileRuntime:
    """Open a model file (.onnx, .pte, .tflite) in its runtime, with `threads` per call.

    Raises:
        UserError: The file is absent, damaged or not from this project, or its runtime is not
            installed.
    """
    form = format_of(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return form(path, threads)
