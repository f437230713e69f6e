"""Grad-CAM overlays."""

import copy
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from captum.attr import LayerGradCam
from matplotlib.figure import Figure
from torch import Tensor, nn

from src.core.errors import ConfigError, UserError
from src.data.cache import square
from src.data.source import Manifest
from src.deployment.description import Description
from src.deployment.inputs import Batch, ImageInput
from src.training.classifier import Classifier

OPACITY = 0.5  # of the colours on the picture
COLOURS = "inferno"
_PLACES = (
    (0.01, 0.02, 0.43, 0.86),
    (0.45, 0.02, 0.43, 0.86),
    (0.892, 0.1, 0.017, 0.7),
)  # left, bottom, width, height


class GradCam:
    """Grad-CAM of a trained classifier, on the device that it is on.

    Attributes:
        places: Height and width of the map: how fine it is.

    Args:
        classifier: In evaluation mode; it is copied.

    Raises:
        UserError: The net has no convolution that keeps a map.
    """

    def __init__(self, classifier: Classifier) -> None:
        self._scores = _Scores(copy.deepcopy(classifier)).eval()
        for part in self._scores.modules():
            if hasattr(part, "inplace"):
                part.inplace = False  # type: ignore[assignment]  # it would overwrite the map that is looked at
        self._device = classifier.mean.device
        layer, self.places = _last_convolution(self._scores, classifier.image_size, self._device)
        self._method = LayerGradCam(self._scores, layer)

    def maps(
        self, pictures: npt.NDArray[np.uint8], labels: Sequence[int]
    ) -> npt.NDArray[np.float32]:
        """How much each place speaks for a class.

        Args:
            pictures: (N, S, S, 3).
            labels: A class for each.

        Returns:
            float32 (N, h, w), the size of the layer's map; at least 0, and 0 where nothing speaks
            for the class.
        """
        images = (
            torch.from_numpy(np.ascontiguousarray(pictures))
            .to(self._device)
            .permute(0, 3, 1, 2)
            .float()
            .div(255)
        )
        images.requires_grad_()  # so that frozen layers have gradients too
        targets = torch.tensor(list(labels), device=self._device)
        found = self._method.attribute(images, targets, relu_attributions=True)
        assert isinstance(found, Tensor)
        return found.detach()[:, 0].float().cpu().numpy()


class _Scores(nn.Module):
    """A score a class, before the softmax; of one logit, which speaks for class 1, its reverse for class 0."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(images)
        return torch.cat([-logits, logits], dim=1) if logits.shape[1] == 1 else logits


def _last_convolution(
    net: nn.Module, size: int, device: torch.device
) -> tuple[nn.Module, tuple[int, int]]:
    """The one that is run last of those whose output is a map; gates of squeeze-and-excitation give single values."""
    seen: list[tuple[nn.Module, tuple[int, int]]] = []

    def note(module: nn.Module, given: object, output: Tensor) -> None:
        if output.ndim == 4 and output.shape[2] * output.shape[3] > 1:
            seen.append((module, (output.shape[2], output.shape[3])))

    hooks = [
        part.register_forward_hook(note) for part in net.modules() if isinstance(part, nn.Conv2d)
    ]
    try:
        with torch.no_grad():
            net(torch.zeros(1, 3, size, size, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        raise UserError(
            "gradcam: this net has no convolution that keeps a map of the picture; leave gradcam out"
        )
    return seen[-1]


def relative(maps: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Maps (N, h, w) as shares of each one's largest value, in [0, 1]; one without any stays 0."""
    largest = maps.max(axis=(1, 2), keepdims=True)
    return np.divide(maps, largest, out=np.zeros_like(maps), where=largest > 0)


def upsampled(maps: npt.NDArray[np.float32], side: int) -> npt.NDArray[np.float32]:
    """Maps (N, h, w) as (N, side, side), bilinearly."""
    return nn.functional.interpolate(
        torch.from_numpy(maps)[:, None], (side, side), mode="bilinear"
    )[:, 0].numpy()


def draw(
    picture: npt.NDArray[np.uint8],
    found: npt.NDArray[np.float32],
    places: tuple[int, int],
    title: str,
    label: str,
) -> Figure:
    """A picture as the net is given it, and the same under the colours of its map.

    Args:
        picture: (side, side, 3), in the net's frame, which may be sharper than what the net sees.
        found: In [0, 1], (side, side).
        places: Height and width of the map that it comes from.
        title: Which picture, which class, how probable.
        label: Of the colour bar.
    """
    figure = Figure(figsize=(8.8, 4.4), dpi=110)
    # places by hand: to have them arranged takes longer than all the rest
    left, right, scale = (figure.add_axes(place) for place in _PLACES)
    left.imshow(picture)
    left.set_title("framed as the net sees it", fontsize=9)
    right.imshow(picture)
    colours = right.imshow(found, cmap=COLOURS, vmin=0, vmax=1, alpha=OPACITY)
    nothing = "" if found.any() else ": nothing speaks for this class"
    right.set_title(f"Grad-CAM of {places[0]} x {places[1]} places{nothing}", fontsize=9)
    for axes in (left, right):
        axes.axis("off")
    figure.suptitle(title, fontsize=10)
    figure.colorbar(colours, cax=scale, label=label)
    return figure


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

    def __init__(
        self, classifiers: Sequence[Classifier], description: Description, wanted: str | None
    ) -> None:
        if wanted is not None and wanted not in description.classes:
            known = ", ".join(description.classes)
            raise ConfigError("gradcam", f"must be true, false or one of {known}, but got {wanted}")
        self._nets = [GradCam(each) for each in classifiers]
        self._said = description
        self._wanted = wanted

    def write(
        self, folder: Path, given: ImageInput, manifest: Manifest, batch: Batch, frame: pd.DataFrame
    ) -> None:
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
                draw(sharp, share, self._nets[0].places, title, self._label(name)).savefig(
                    folder / file
                )

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
        maps = [upsampled(relative(net.maps(squares, labels)), side) for net in self._nets]
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
