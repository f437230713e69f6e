"""Deployed models by file: the formats, and which runtime opens which."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from src.core.errors import UserError
from src.deployment.description import Description
from src.deployment.runtimes import executorch, litert, onnx
from src.deployment.runtimes.base import Name, Runtime, needs
from src.deployment.runtimes.eager import CameraNet


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        name: Of its runtime.
        suffix: Of its files.
        packages: That writing and loading ask for, all of them of the extra called like the
            runtime.
        write: Writes a net.
        load: Loads a file, for so many threads.
    """

    name: Name
    suffix: str
    packages: tuple[str, ...]
    write: Callable[[CameraNet, Description, Path], None]
    load: Callable[[Path, int], Runtime]

    def check_installed(self) -> None:
        """Refuse at once what would fail later.

        Raises:
            DependencyError: A package is not there.
        """
        with needs(self.name):
            for package in self.packages:
                if importlib.util.find_spec(package) is None:
                    raise ImportError(name=package)


FORMATS: dict[str, Format] = {
    "onnx": Format(
        "onnx", ".onnx", ("onnx", "onnxscript", "onnxruntime"), onnx.write, onnx.OnnxRuntime
    ),
    "executorch": Format(
        "executorch",
        ".pte",
        ("executorch", "torchao"),
        executorch.write,
        executorch.ExecutorchRuntime,
    ),
    "litert": Format(
        "litert", ".tflite", ("litert_torch", "ai_edge_litert"), litert.write, litert.LitertRuntime
    ),
}


def format_of(path: Path) -> Format:
    """The format of a file, by its suffix.

    Raises:
        UserError: It is none that is known.
    """
    for each in FORMATS.values():
        if each.suffix == path.suffix:
            return each
    known = ", ".join(each.suffix for each in FORMATS.values())
    raise UserError(f"{path}: no kind of model that is known by its suffix; known are {known}")


def open_file(path: Path, threads: int = 1) -> Runtime:
    """A deployed model in the runtime that its suffix names.

    Args:
        path: Ends in .onnx, .pte or .tflite.
        threads: Of one call.

    Raises:
        UserError: The file is absent, damaged, none of ours, or its runtime is not installed.
    """
    found = format_of(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return found.load(path, threads)
