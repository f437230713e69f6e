"""Grad-CAM overlays: where in a picture a trained net sees a class."""

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from captum.attr import LayerAttribution, LayerGradCam
from matplotlib.figure import Figure
from torch import Tensor, nn

from src.core.errors import ConfigError, UserError
from src.data.cache import square
from src.data.source import Manifest
from src.deployment.description import Description
from src.deployment.inputs import Batch, ImageInput
from src.deployment.runtimes.eager import CameraNet

OPACITY = 0.5  # of the colours over the picture
COLOURS = "inferno"
SIDE = 384  # px of a drawn picture, or the net's input size if that is larger
BATCH = 8  # pictures at a time: gradients need memory
MAX_NAME = 60  # characters of a file name
# Left, bottom, width, height of the axes; an automatic layout takes longer than everything else.
AXES = ((0.01, 0.02, 0.43, 0.86), (0.45, 0.02, 0.43, 0.86), (0.892, 0.1, 0.017, 0.7))


class GradCam:
    """Grad-CAM of a trained net (Selvaraju et al., ICCV 2017), on the net's device.

    Attributes:
        shape: Height and width of the map.

    Args:
        camera: The net with its normalisation; it is copied.
        size: Side of the input, px.

    Raises:
        UserError: The net has no convolution whose output is a map.
    """

    def __init__(self, camera: CameraNet, size: int) -> None:
        self._device = camera.mean.device
        scores = _Scores(copy.deepcopy(camera)).eval()
        maps: list[tuple[nn.Module, tuple[int, int]]] = []

        def note(module: nn.Module, inputs: object, output: Tensor) -> None:
            # gates of squeeze-and-excitation give single values
            if output.ndim == 4 and output.shape[2] * output.shape[3] > 1:
                maps.append((module, (output.shape[2], output.shape[3])))

        hooks = []
        for part in scores.modules():
            if hasattr(part, "inplace"):
                part.inplace = False  # type: ignore[assignment]  # it would overwrite the map
            if isinstance(part, nn.Conv2d):
                hooks.append(part.register_forward_hook(note))
        try:
            with torch.no_grad():
                scores(torch.zeros(1, 3, size, size, device=self._device))
        finally:
            for hook in hooks:
                hook.remove()
        if not maps:
            raise UserError(
                "gradcam: this net has no convolution that keeps a map of the picture; "
                "leave gradcam out"
            )
        layer, self.shape = maps[-1]
        self._method = LayerGradCam(scores, layer)

    def maps(
        self, pictures: npt.NDArray[np.uint8], labels: Sequence[int]
    ) -> npt.NDArray[np.float32]:
        """Evidence for a class at each position of the map.

        Args:
            pictures: (N, S, S, 3).
            labels: One class per picture.

        Returns:
            float32 (N, h, w), at least 0; all 0 if nothing speaks for the class.
        """
        images = torch.from_numpy(np.ascontiguousarray(pictures)).to(self._device)
        images = images.permute(0, 3, 1, 2).float().requires_grad_()
        targets = torch.tensor(list(labels), device=self._device)
        evidence = self._method.attribute(images, targets, relu_attributions=True)
        assert isinstance(evidence, Tensor)
        return evidence.detach()[:, 0].float().cpu().numpy()


class _Scores(nn.Module):
    """One logit per class; a single logit speaks for class 1, its negative for class 0."""

    def __init__(self, camera: CameraNet) -> None:
        super().__init__()
        self.camera = camera

    def forward(self, images: Tensor) -> Tensor:
        logits = self.camera.logits(images)
        return torch.cat([-logits, logits], dim=1) if logits.shape[1] == 1 else logits


def relative(maps: npt.NDArray[np.float32], side: int) -> npt.NDArray[np.float32]:
    """Maps (N, h, w) divided by their maxima and resized to (N, side, side), bilinearly."""
    largest = maps.max(axis=(1, 2), keepdims=True)
    shares = np.divide(maps, largest, out=np.zeros_like(maps), where=largest > 0)
    resized = LayerAttribution.interpolate(
        torch.from_numpy(shares)[:, None], (side, side), interpolate_mode="bilinear"
    )
    return np.asarray(resized[:, 0])


def draw(
    picture: npt.NDArray[np.uint8],
    shares: npt.NDArray[np.float32],
    shape: tuple[int, int],
    title: str,
    label: str,
) -> Figure:
    """A picture as the net sees it, and the same picture under the colours of its map.

    Args:
        picture: (side, side, 3), in the net's frame, possibly sharper than the net's input.
        shares: In [0, 1], (side, side).
        shape: Height and width of the map before it was resized.
        title: Picture, class, probability.
        label: Label of the colour bar.
    """
    figure = Figure(figsize=(8.8, 4.4), dpi=110)
    left, right, scale = (figure.add_axes(position) for position in AXES)
    nothing = "" if shares.any() else ": no evidence for this class"
    left.set_title("framed as the net sees it", fontsize=9)
    right.set_title(f"Grad-CAM of {shape[0]} x {shape[1]} cells{nothing}", fontsize=9)
    for axes in (left, right):
        axes.imshow(picture)
        axes.axis("off")
    colours = right.imshow(shares, cmap=COLOURS, vmin=0, vmax=1, alpha=OPACITY)
    figure.suptitle(title, fontsize=10)
    figure.colorbar(colours, cax=scale, label=label)
    return figure


class Overlays:
    """Writes Grad-CAM overlays of pictures.

    Args:
        cameras: Trained nets with the same classes; their maps are averaged.
        description: Of the model.
        name: A class; None: the most probable class of each picture.

    Raises:
        ConfigError: An unknown class.
        UserError: A net without a convolution.
    """

    def __init__(
        self, cameras: Sequence[CameraNet], description: Description, name: str | None
    ) -> None:
        if name is not None and name not in description.classes:
            classes = ", ".join(description.classes)
            raise ConfigError("gradcam", f"must be true, false or one of {classes}, but got {name}")
        self._nets = [GradCam(camera, description.image_size) for camera in cameras]
        self._description = description
        self._name = name

    def write(
        self, folder: Path, source: ImageInput, manifest: Manifest, batch: Batch, rows: pd.DataFrame
    ) -> None:
        """Write a file for each readable picture: `<row number, from 1>_<name>_<class>.png`.

        Args:
            folder: Exists.
            source: The pictures.
            manifest: Of the pictures.
            batch: Its squares are explained.
            rows: Its predictions, one row per picture of the batch.
        """
        records = rows.to_dict("records")
        predicted = [(n, records[at]) for n, at in enumerate(batch.readable)]
        predicted = [(n, record) for n, record in predicted if not record["problem"]]
        nets = f", mean of {len(self._nets)} nets" if len(self._nets) > 1 else ""
        side = max(SIDE, self._description.image_size)
        for start in range(0, len(predicted), BATCH):
            part = predicted[start : start + BATCH]
            names = [self._name or str(record["top"]) for _, record in part]
            labels = [self._description.classes.index(name) for name in names]
            squares = batch.squares[[n for n, _ in part]]
            maps = [relative(net.maps(squares, labels), side) for net in self._nets]
            shares = np.asarray(np.mean(maps, axis=0, dtype=np.float32))
            for (n, record), name, share in zip(part, names, shares, strict=True):
                row, image = batch.rows[batch.readable[n]], str(record["image"])
                picture = square(source.picture(manifest, row), side, self._description.geometry)
                short = image if len(image) <= MAX_NAME else f"...{image[3 - MAX_NAME :]}"
                label = f"evidence for {name}: share of the largest\nin this picture{nets}"
                title = f"{short}: {name}, {_probability(record, name)}"
                figure = draw(picture, share, self._nets[0].shape, title, label)
                stem = _slug(image.rpartition(".")[0] or image)
                figure.savefig(folder / f"{row + 1:06d}_{stem}_{_slug(name)}.png")


def _probability(record: dict[Any, Any], name: str) -> str:
    calibrated = record.get(f"calibrated/{name}")
    note = "" if calibrated is None else f" (calibrated {calibrated:.3f})"
    return f"p = {record[f'p/{name}']:.3f}{note}"


def _slug(text: str) -> str:
    """The text as a part of a file name."""
    return re.sub(r"[^\w.+-]+", "_", text).strip("_.")[-MAX_NAME:]
