"""What every runtime offers, whichever library runs the model."""

import sys
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from src.deployment.description import Description

Pictures = npt.NDArray[np.uint8]  # RGB, (N, S, S, 3)
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

    def __call__(self, pictures: Pictures) -> Probabilities:
        """Probabilities of the classes, for as many pictures as a call takes; runs on the threads given at loading."""
        ...


def in_batches(runtime: Runtime, pictures: Pictures, size: int = 64, title: str | None = None) -> Probabilities:
    """Probabilities of any number of pictures.

    Args:
        runtime: A loaded model.
        pictures: (N, S, S, 3), N at least 1.
        size: Pictures a call, where the runtime takes any number; where it takes one number only, the last call is
            filled up with copies of the last picture.
        title: Of a progress bar; None: there is none.
    """
    step = runtime.batch or size
    found = []
    with _bar(len(pictures), title) as bar:
        for start in range(0, len(pictures), step):
            batch = pictures[start : start + step]
            missing = step - len(batch) if runtime.batch else 0
            filled = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)]) if missing else batch
            found.append(runtime(filled)[: len(batch)])
            bar.update(len(batch))
    return np.concatenate(found)


def _bar(pictures: int, title: str | None) -> "tqdm[Any]":
    """On a terminal only: a log of its thousand states helps nobody."""
    disable = True if title is None else None
    return tqdm(total=pictures, desc=title, unit="image", file=sys.stderr, leave=False, disable=disable)
