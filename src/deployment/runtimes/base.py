"""Runtime protocol, optional extras, quiet exporters, unsupported operators."""

import contextlib
import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from src.core.errors import DependencyError, UserError
from src.deployment.description import Description

ImageBatch = npt.NDArray[np.uint8]  # RGB, (N, S, S, 3)
Probabilities = npt.NDArray[np.float32]  # (N, K)
Name = Literal["eager", "compile", "onnx", "executorch", "litert"]


class Runtime(Protocol):
    """A loaded model.

    Attributes:
        name: Of the runtime.
        description: Of the model.
        batch: The only number of pictures that a call takes; None: any.
    """

    name: Name
    description: Description
    batch: int | None

    def __call__(self, pictures: ImageBatch) -> Probabilities:
        """Probabilities of the classes, for as many pictures as a call takes; runs on the threads given at loading."""
        ...


def in_batches(
    runtime: Runtime, pictures: ImageBatch, size: int = 64, title: str | None = None
) -> Probabilities:
    """Probabilities of any number of pictures.

    Args:
        runtime: A loaded model.
        pictures: (N, S, S, 3), N at least 1.
        size: Pictures a call, where the runtime takes any number; where it takes one number only,
            the last call is filled up with copies of the last picture.
        title: Of a progress bar; None: there is none.
    """
    step = runtime.batch or size
    found = []
    with _bar(len(pictures), title) as bar:
        for start in range(0, len(pictures), step):
            batch = pictures[start : start + step]
            missing = step - len(batch) if runtime.batch else 0
            filled = (
                np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])
                if missing
                else batch
            )
            found.append(runtime(filled)[: len(batch)])
            bar.update(len(batch))
    return np.concatenate(found)


def _bar(pictures: int, title: str | None) -> "tqdm[Any]":
    """On a terminal only: a log of its thousand states helps nobody."""
    disable = True if title is None else None
    return tqdm(
        total=pictures, desc=title, unit="image", file=sys.stderr, leave=False, disable=disable
    )


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Let imports within the block fail with the command that installs them.

    Args:
        extra: Of pyproject.toml: onnx, executorch, litert or prune.

    Raises:
        DependencyError: A package cannot be imported.
    """
    try:
        yield
    except ImportError as error:
        raise DependencyError(
            f"{error.name or error}: not installed, and needed here; install it with: pip install -e '.[{extra}]'"
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep log lines, warnings and prints of the block off the terminal, also those of libraries in C++."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    kept = [(number, os.dup(number)) for number in (1, 2)]
    disabled = logging.root.manager.disable
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for number, _ in kept:
            os.dup2(nowhere, number)
        logging.disable(logging.CRITICAL)
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        for number, copy in kept:
            os.dup2(copy, number)
            os.close(copy)
        os.close(nowhere)


# as torch's ONNX exporter, ExecuTorch and litert-torch write them, the surest first
_NAMED = (
    r"No ONNX function found for <OpOverload\(op='([\w.]+)'",
    r"Operator torch\._ops\.([\w.]+) is not in",
    r"Lowering not found: ([\w.]+)",
    r"target=torch\.ops\.([\w.]+)\]",
)
_DEPENDS = "data-dependent"  # torch.export's word for a step that the pixels decide
_LINE = re.compile(r"File \"[^\"]+\", line \d+, in \w+\n\s+(.+)")
_OVERLOAD = ".default"


@contextmanager
def naming_operators(name: str) -> Iterator[None]:
    """Turn an exporter's refusal within the block into one line that names what it cannot hold.

    Args:
        name: Of the format, for people.

    Raises:
        UserError: An operator, or a step that depends on the picture, that the format cannot hold.
            What has no such reason comes through as it is.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        said = str(error)
        found = next((names for pattern in _NAMED if (names := re.findall(pattern, said))), [])
        if _DEPENDS in said:
            line = _LINE.search(said)
            step = f" ({line[1].strip()})" if line else ""
            raise UserError(
                f"{name} cannot hold a step of this net that depends on what the picture shows{step}; do without it"
            ) from error
        if not found:
            raise
        operators = ", ".join(sorted({each.removesuffix(_OVERLOAD) for each in found}))
        raise UserError(
            f"{name} has no operator for {operators} of this net; take another format, or a net without it"
        ) from error
