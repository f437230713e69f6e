"""What all runtimes share: protocol, file format, batching, and errors in one line."""

import importlib.util
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from src.core.errors import DependencyError, UserError
from src.deployment.description import Description

if TYPE_CHECKING:
    from src.deployment.runtimes.eager import CameraNet

ImageBatch = npt.NDArray[np.uint8]  # RGB, (N, S, S, 3)
Probabilities = npt.NDArray[np.float32]  # (N, K)


class Runtime(Protocol):
    """A loaded model.

    Attributes:
        name: Of the runtime.
        description: Of the model.
        batch: The only number of pictures that a call takes; None: any number.
    """

    name: str
    description: Description
    batch: int | None

    def __call__(self, pictures: ImageBatch) -> Probabilities:
        """Probabilities of the classes, (N, K), for as many pictures as a call takes."""
        ...


@dataclass(frozen=True)
class Format:
    """A file format with its runtime. A module of this package defines one as `FORMAT`.

    Attributes:
        name: Of the runtime, and of the extra in pyproject.toml that installs it.
        label: Name for people.
        suffix: Of the files.
        packages: Modules that writing and loading import.
        library: Module that loading imports.
        write: Writes a net to a path. It may raise UserError and OSError.
        load: Opens a file with a number of threads per call.
    """

    name: str
    label: str
    suffix: str
    packages: tuple[str, ...]
    library: str
    write: "Callable[[CameraNet, Description, Path], None]"
    load: Callable[[Path, int], Runtime]

    def check_installed(self) -> None:
        """Fail early if a package is missing.

        Raises:
            DependencyError: A package is not installed.
        """
        with needs(self.name):
            for package in self.packages:
                if importlib.util.find_spec(package) is None:
                    raise ImportError(name=package)


def in_batches(
    runtime: Runtime, pictures: ImageBatch, size: int = 64, title: str | None = None
) -> Probabilities:
    """Probabilities of any number of pictures, (N, K).

    Args:
        runtime: A loaded model.
        pictures: (N, S, S, 3), N at least 1.
        size: Pictures per call. A runtime with a fixed batch ignores it; its last call is padded
            with copies of the last picture.
        title: Of a progress bar on a terminal; None: no bar.
    """
    from tqdm import tqdm

    step = runtime.batch or size
    probabilities = []
    with tqdm(
        total=len(pictures),
        desc=title,
        unit="image",
        file=sys.stderr,
        leave=False,
        disable=True if title is None else None,
    ) as bar:
        for start in range(0, len(pictures), step):
            batch = pictures[start : start + step]
            missing = step - len(batch) if runtime.batch else 0
            padded = np.pad(batch, [(0, missing), (0, 0), (0, 0), (0, 0)], mode="edge")
            probabilities.append(runtime(padded)[: len(batch)])
            bar.update(len(batch))
    return np.concatenate(probabilities)


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Name the command that installs a missing package if an import in the block fails.

    Args:
        extra: Of pyproject.toml: onnx, executorch, litert or prune.

    Raises:
        DependencyError: A package cannot be imported.
    """
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


@contextmanager
def naming_file(path: Path, label: str) -> Iterator[None]:
    """Turn a runtime's exception about a file into one line.

    Args:
        path: The file that the block loads.
        label: The runtime's name for people.

    Raises:
        UserError: The block failed. The runtimes' exception classes differ between versions.
    """
    try:
        yield
    except Exception as error:
        reason = (str(error) or repr(error)).splitlines()[0]
        raise UserError(f"{path}: {label} cannot load it: {reason}") from error


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
    """Turn an exporter's exception into one line that names what the format does not support.

    Args:
        label: The format's name for people.

    Raises:
        UserError: An operator, or a step that depends on pixel values, is not supported. Other
            exceptions pass unchanged.
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
            raise UserError(
                f"{label} cannot hold a step of this net that depends on what the picture "
                f"shows{step}; do without it"
            ) from error
        matches = (re.findall(pattern, text) for pattern in _MISSING_OPERATOR)
        names = next((names for names in matches if names), None)
        if names is None:
            raise
        operators = ", ".join(sorted({name.removesuffix(".default") for name in names}))
        raise UserError(
            f"{label} has no operator for {operators} of this net; "
            "take another format, or a net without it"
        ) from error
