"""Grad-CAM overlays: where in a picture a trained net sees a class."""

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from captum.attr import LayerAttribution, LayerGradCam
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from src.core.errors import ConfigError, UserError
from src.core.files import slug
from src.data.cache import square
from src.data.source import Manifest
from src.deployment.description import Description
from src.deployment.inputs import ImageInput
from src.deployment.runtimes.base import ImageBatch
from src.deployment.runtimes.eager import CameraNet

Maps = npt.NDArray[np.float32]
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
        self._device, net = camera.mean.device, copy.deepcopy(camera)
        maps: list[tuple[nn.Module, tuple[int, int]]] = []

        def scores(images: Tensor) -> Tensor:
            """A logit per class; a single one speaks for class 1, its negative for class 0."""
            logits = net.logits(images)
            return torch.cat([-logits, logits], dim=1) if logits.shape[1] == 1 else logits

        def note(module: nn.Module, inputs: object, output: Tensor) -> None:
            # gates of squeeze-and-excitation give single values
            if output.ndim == 4 and output.shape[2] * output.shape[3] > 1:
                maps.append((module, (output.shape[2], output.shape[3])))

        hooks = []
        for part in net.modules():
            if hasattr(part, "inplace"):
                part.inplace = False  # type: ignore[assignment]  # it would overwrite the map
            if isinstance(part, nn.Conv2d):
                hooks.append(part.register_forward_hook(note))
        with torch.no_grad():
            scores(torch.zeros(1, 3, size, size, device=self._device))
        for hook in hooks:
            hook.remove()
        if not maps:
            problem = "this net has no convolution that keeps a map of the picture"
            raise UserError(f"gradcam: {problem}; leave gradcam out")
        layer, self.shape = maps[-1]
        self._method = LayerGradCam(scores, layer)

    def maps(self, pictures: ImageBatch, labels: Sequence[int]) -> Maps:
        """Evidence for a class per picture (N, S, S, 3) at each position of the map.

        Returns:
            float32 (N, h, w), at least 0; all 0 if nothing speaks for the class.
        """
        images = torch.from_numpy(np.ascontiguousarray(pictures)).to(self._device)
        images = images.permute(0, 3, 1, 2).float().requires_grad_()
        targets = torch.tensor(list(labels), device=self._device)
        evidence = self._method.attribute(images, targets, relu_attributions=True)
        assert isinstance(evidence, Tensor)
        return evidence.detach()[:, 0].float().cpu().numpy()


def relative(maps: Maps, side: int) -> Maps:
    """Maps (N, h, w) divided by their maxima and resized to (N, side, side), bilinearly."""
    largest = maps.max(axis=(1, 2), keepdims=True)
    shares = np.divide(maps, largest, out=np.zeros_like(maps), where=largest > 0)
    images, size = torch.from_numpy(shares)[:, None], (side, side)
    resized = LayerAttribution.interpolate(images, size, interpolate_mode="bilinear")
    return np.asarray(resized[:, 0])


def draw(
    picture: npt.NDArray[np.uint8], shares: Maps, shape: tuple[int, int], title: str, label: str
) -> Figure:
    """A picture as the net sees it, and the same picture under the colours of its map.

    `picture` (side, side, 3) may be sharper than the net's input; `shares` (side, side) is in
    [0, 1]; `shape` is that of the map before it was resized; `label` is that of the colour bar.
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

    The maps of all nets are averaged. `name` is a class; None: the most probable one of each
    picture.

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
        self, folder: Path, source: ImageInput, manifest: Manifest, rows: pd.DataFrame
    ) -> None:
        """Write a file for each predicted picture: `<row number, from 1>_<name>_<class>.png`.

        `rows` are the predictions of the pictures in `manifest`, one row each.
        """
        about, nets = self._description, ""
        if len(self._nets) > 1:
            nets = f", mean of {len(self._nets)} nets"
        side = max(SIDE, about.image_size)
        predicted = rows[rows["problem"] == ""]
        starts = range(0, len(predicted), BATCH)
        for start in tqdm(starts, "Grad-CAM", unit="batch", leave=False, disable=None):
            part = predicted.iloc[start : start + BATCH]
            names = [self._name or str(top) for top in part["top"]]
            labels = [about.classes.index(name) for name in names]
            squares, larger = [], []
            for row in part.index:
                picture = source.picture(manifest, int(row))
                squares.append(square(picture, about.image_size, about.geometry))
                larger.append(square(picture, side, about.geometry))
            maps = [relative(net.maps(np.stack(squares), labels), side) for net in self._nets]
            shares = np.asarray(np.mean(maps, axis=0, dtype=np.float32))
            for n, (row, record) in enumerate(part.iterrows()):
                image, name = str(record["image"]), names[n]
                short = image if len(image) <= MAX_NAME else f"...{image[3 - MAX_NAME :]}"
                title = f"{short}: {name}, p = {record[f'p/{name}']:.3f}"
                if f"calibrated/{name}" in record:
                    title += f" (calibrated {record[f'calibrated/{name}']:.3f})"
                label = f"evidence for {name}: share of the largest\nin this picture{nets}"
                figure = draw(larger[n], shares[n], self._nets[0].shape, title, label)
                stem, ending = slug(image.rpartition(".")[0] or image), slug(name)
                stem, ending = stem[-MAX_NAME:], ending[-MAX_NAME:]
                figure.savefig(folder / f"{int(str(row)) + 1:06d}_{stem}_{ending}.png")
