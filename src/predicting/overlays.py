"""Grad-CAM of the pictures that a prediction is about, as files."""

import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from src.classifier import Classifier
from src.data.geometry import square
from src.data.source import Manifest
from src.deployment.description import Description
from src.errors import ConfigError
from src.predicting import gradcam
from src.predicting.inputs import Batch, Pictures

SIDE = 384  # px of a drawn picture, or what the net is given where that is larger
AT_ONCE = 8  # pictures: their gradients need memory
LONGEST = 60  # characters of a file's name


class Overlays:
    """Draws where nets see a class.

    Args:
        classifiers: Trained, of the same classes; several are a mean.
        description: Of the model.
        wanted: A class, or None: of each picture the most probable one.

    Raises:
        ConfigError: No such class.
        UserError: A net without a convolution.
    """

    def __init__(self, classifiers: Sequence[Classifier], description: Description, wanted: str | None) -> None:
        if wanted is not None and wanted not in description.classes:
            known = ", ".join(description.classes)
            raise ConfigError("gradcam", f"must be true, false or one of {known}, but got {wanted}")
        self._nets = [gradcam.GradCam(each) for each in classifiers]
        self._said = description
        self._wanted = wanted

    def write(self, folder: Path, given: Pictures, manifest: Manifest, batch: Batch, frame: pd.DataFrame) -> None:
        """Draw those of a batch that could be read, a file each: `<number of the row, from 1>_<name>_<class>.png`.

        Args:
            folder: Is there.
            given: The pictures.
            manifest: Of these.
            batch: Its squares are explained.
            frame: Its answers, a row a picture.
        """
        rows = frame.to_dict("records")
        answered = [each for each, place in enumerate(batch.readable) if not rows[place]["problem"]]
        for start in range(0, len(answered), AT_ONCE):
            some = answered[start : start + AT_ONCE]
            places = [batch.readable[each] for each in some]
            names = [self._wanted or str(rows[place]["top"]) for place in places]
            found = self.shares(batch.squares[some], names)
            for place, name, share in zip(places, names, found, strict=True):
                number, image = batch.rows[place], str(rows[place]["image"])
                sharp = square(given.picture(manifest, number), len(share), self._said.geometry)
                title = f"{_short(image)}: {name}, {_probability(rows[place], name)}"
                file = f"{number + 1:06d}_{_plain(image.rpartition('.')[0] or image)}_{_plain(name)}.png"
                gradcam.draw(sharp, share, self._nets[0].places, title, self._label(name)).savefig(folder / file)

    def shares(self, squares: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """How much each place speaks for a class, as a share of the most in the picture; mean over the nets.

        Args:
            squares: uint8 (N, S, S, 3).
            names: A class for each.

        Returns:
            float32 (N, side, side), in [0, 1]; side is S or more.
        """
        labels = [self._said.classes.index(name) for name in names]
        side = max(SIDE, self._said.image_size)
        maps = [gradcam.upsampled(gradcam.relative(net.maps(squares, labels)), side) for net in self._nets]
        return np.asarray(np.mean(maps, axis=0, dtype=np.float32))

    def _label(self, name: str) -> str:
        nets = f", mean of {len(self._nets)} nets" if len(self._nets) > 1 else ""
        return f"evidence for {name}: share of the largest\nin this picture{nets}"


def _probability(row: Mapping[Hashable, Any], name: str) -> str:
    own = f"p = {row[f'p/{name}']:.3f}"
    calibrated = row.get(f"calibrated/{name}")
    return own if calibrated is None else f"{own} (calibrated {calibrated:.3f})"


def _plain(text: str) -> str:
    """For a file's name."""
    return re.sub(r"[^\w.+-]+", "_", text).strip("_.")[-LONGEST:]


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"...{text[3 - LONGEST :]}"
