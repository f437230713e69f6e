"""What all runtimes share: protocol, file format, batching, and errors in one line."""

import importlib.util
import logging
import os
import re
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from src.core.errors import DependencyError, UserError, require
from src.deployment.description import Description

if TYPE_CHECKING:
    from torch import Tensor

    from src.deployment.runtimes.eager import CameraNet

ImageBatch = npt.NDArray[np.uint8]  # RGB, (N, S, S, 3)
Probabilities = npt.NDArray[np.float32]  # (N, K)


class Runtime(Protocol):
    """A loaded model.

    Attributes:
        name: Of the runtime.
        batch: The only number of pictures that a call takes; None: any number.
    """

    name: str
    description: Description
    batch: int | None

    def __call__(self, pictures: ImageBatch) -> Probabilities:
        """Probabilities of the classes, (N, K), for as many pictures as a call takes."""
        ...


class FileRuntime(ABC):
    """A model file in its runtime, on the CPU. A module of this package defines one for a format.

    Attributes:
        name: Of the runtime, and of the extra in pyproject.toml that installs it.
        label: Of the format, for people.
        suffix: Of the files.
        packages: Modules that exporting and loading import.
        library: Module that loading imports.

    Args:
        path: The file.
        threads: Per call.

    Raises:
        UserError: The extra is not installed, or the file is damaged or not from this project.
    """

    name: str
    label: str
    suffix: str
    packages: tuple[str, ...]
    library: str
    batch: int | None = 1

    def __init__(self, path: Path, threads: int = 1) -> None:
        with quiet(), needs(self.name):
            importlib.import_module(self.library)
        try:
            with quiet():
                text = self._open(path, threads)
                self.description = about = Description.from_json(text, str(path))
                size, count = about.image_size, len(about.classes)
                blank = np.zeros((self.batch or 1, size, size, 3), np.uint8)
                shape = np.shape(self(blank))
        except UserError:
            raise
        except Exception as error:  # its class differs between runtimes and versions
            reason = (str(error) or repr(error)).splitlines()[0]
            problem = f"the runtime of {self.label} cannot load it: {reason}"
            raise UserError(f"{path}: {problem}") from error
        if shape != (len(blank), count):
            problem = f"describes {count} classes, but its net has an output of shape {shape}"
            raise UserError(f"{path}: {problem}; export it again")

    @abstractmethod
    def _open(self, path: Path, threads: int) -> str:
        """Open a file; returns the description that it holds, as text, or an empty one."""

    @abstractmethod
    def __call__(self, pictures: ImageBatch) -> Probabilities:
        """Probabilities of the classes, (N, K), for as many pictures as a call takes."""

    @staticmethod
    @abstractmethod
    def export(camera: "CameraNet", example: "Tensor", description: Description) -> bytes:
        """The content of a file, from a net and example pictures (2, S, S, 3)."""

    @classmethod
    def check_installed(cls) -> None:
        """Raise DependencyError if a package is not installed."""
        require(cls.name, *cls.packages)

    @classmethod
    def write(cls, camera: "CameraNet", description: Description, path: Path) -> None:
        """Write a net that is on the CPU as a model file.

        Raises:
            UserError: The extra is not installed, or the format does not support an operator.
            OSError: The file cannot be written.
        """
        import torch

        size = description.image_size
        example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
        with needs(cls.name), naming_operators(cls.label), quiet():
            content = cls.export(camera.portable(), example, description)
        path.write_bytes(content)


def in_batches(
    runtime: Runtime | Callable[[ImageBatch], Probabilities],
    pictures: ImageBatch,
    size: int = 64,
    title: str | None = None,
    rows: npt.NDArray[np.int64] | None = None,
) -> Probabilities:
    """Probabilities of any number of pictures, (N, K).

    Args:
        runtime: A loaded model, or a function that takes any number of pictures.
        pictures: (M, S, S, 3).
        size: Pictures per call. A runtime with a fixed batch ignores it; its last call is padded
            with copies of the last picture.
        title: Of a progress bar on a terminal; None: no bar.
        rows: Positions of the N pictures, at least one; None: all.
    """
    fixed = getattr(runtime, "batch", None)
    step, probabilities = fixed or size, []
    rows = np.arange(len(pictures)) if rows is None else rows
    starts = range(0, len(rows), step)
    for start in tqdm(starts, title, leave=False, unit="batch", disable=title is None or None):
        batch = pictures[rows[start : start + step]]
        missing = step - len(batch) if fixed else 0
        padded = np.pad(batch, [(0, missing), (0, 0), (0, 0), (0, 0)], mode="edge")
        probabilities.append(runtime(padded)[: len(batch)])
    return np.concatenate(probabilities)


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Turn an ImportError of the block into a DependencyError that names the extra."""
    try:
        yield
    except ImportError as error:
        raise DependencyError(
            f"{error.name or error}: not installed, and needed here; "
            f"install it with: pip install -e '.[{extra}]'"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Hide log lines, warnings and prints of the block, those of C++ libraries too."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    copies = [(number, os.dup(number)) for number in (1, 2)]
    disabled = logging.root.manager.disable
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        for number, _ in copies:
            os.dup2(null, number)
        logging.disable(logging.CRITICAL)
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        for number, copy in copies:
            os.dup2(copy, number)
            os.close(copy)
        os.close(null)


# As torch's ONNX exporter, ExecuTorch and litert-torch word it, the most certain first.
_MISSING_OPERATOR = (
    r"No ONNX function found for <OpOverload\(op='([\w.]+)'",
    r"Operator torch\._ops\.([\w.]+) is not in",
    r"Lowering not found: ([\w.]+)",
    r"target=torch\.ops\.([\w.]+)\]",
)
_SOURCE_LINE = re.compile(r"File \"[^\"]+\", line \d+, in \w+\n\s+(.+)")


@contextmanager
def naming_operators(label: str) -> Iterator[None]:
    """Turn an exporter's exception into a UserError that names what the format does not support.

    That is an operator, or a step that depends on pixel values. Other exceptions pass unchanged.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        text = str(error)
        if "data-dependent" in text:  # torch.export's term
            line = _SOURCE_LINE.search(text)
            step = f" ({line[1].strip()})" if line else ""
            problem = f"a step of this net that depends on what the picture shows{step}"
            raise UserError(f"{label} cannot hold {problem}; do without it") from error
        matches = (re.findall(pattern, text) for pattern in _MISSING_OPERATOR)
        names = next((names for names in matches if names), None)
        if names is None:
            raise
        operators = ", ".join(sorted({name.removesuffix(".default") for name in names}))
        problem = f"has no operator for {operators} of this net"
        raise UserError(f"{label} {problem}; take another format, or a net without it") from error
