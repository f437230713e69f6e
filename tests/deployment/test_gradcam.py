"""Grad-CAM against its formula by hand, and on nets whose evidence lies in a defined corner."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from src.core.errors import UserError
from src.deployment.gradcam import GradCam, draw, relative
from src.deployment.runtimes.eager import CameraNet
from src.models.custom import CustomCNN

SIZE = 16
# Red in the upper left corner, blue in the lower right one, black elsewhere.
CORNERS = np.zeros((SIZE, SIZE, 3), np.uint8)
CORNERS[:4, :4, 0] = CORNERS[12:, 12:, 2] = 255


class RedOrBlue(nn.Module):
    """Class 0 is red, class 1 is blue; with one logit, that of class 1 over class 0.

    `gated`: the channels are scaled by a second convolution of single values.
    """

    def __init__(self, outputs: int = 2, gated: bool = False) -> None:
        super().__init__()
        self.outputs, self.gated = outputs, gated
        self.look = nn.Conv2d(3, 2, 1, bias=False)
        self.act = nn.ReLU(inplace=True)
        self.gate = nn.Conv2d(2, 2, 1)
        with torch.no_grad():  # channel 0 sees red, channel 1 blue
            self.look.weight.copy_(torch.eye(3)[[0, 2], :, None, None])

    def forward(self, images: Tensor) -> Tensor:
        maps = self.act(self.look(images))
        if self.gated:
            maps = maps * torch.sigmoid(self.gate(maps.mean((2, 3), keepdim=True)))
        scores = maps.mean((2, 3))
        return scores if self.outputs == 2 else scores[:, 1:] - scores[:, :1]


def gradcam(net: nn.Module) -> GradCam:
    return GradCam(CameraNet(net, [0.0] * 3, [1.0] * 3), SIZE)


def test_it_is_the_papers_formula() -> None:
    torch.manual_seed(0)
    net = CustomCNN(image_size=SIZE, outputs=3, width=4, depth=1, dense=[8])
    pixels = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
    method = gradcam(net)
    maps = method.maps(pixels, [2, 0])
    convolution, rest = net.features[0][0], net.features[0][1:]  # type: ignore[index]
    activation = convolution(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)
    scores = net.head(rest(activation).flatten(1))
    slopes = torch.autograd.grad(scores[0, 2] + scores[1, 0], activation)[0]
    weights = slopes.mean((2, 3), keepdim=True)
    expected = torch.relu((weights * activation).sum(1)).detach().numpy()
    assert maps.shape == (2, *method.shape) == (2, 14, 14)
    np.testing.assert_allclose(maps, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("outputs", [1, 2])
def test_the_corner_that_speaks_for_a_class_lights_up(outputs: int, frozen: bool) -> None:
    method = gradcam(RedOrBlue(outputs).requires_grad_(not frozen))
    for label, corner in ((0, slice(0, 4)), (1, slice(12, 16))):
        [evidence] = method.maps(CORNERS[None], [label])
        assert (evidence[corner, corner] > 0).all()
        evidence[corner, corner] = 0
        assert not evidence.any()


def test_the_net_is_not_changed() -> None:
    net = RedOrBlue()
    gradcam(net).maps(CORNERS[None], [0])
    assert net.act.inplace
    assert net.look.weight.grad is None


def test_the_last_map_is_taken_and_not_the_gate_behind_it() -> None:
    assert gradcam(RedOrBlue(gated=True)).maps(CORNERS[None], [0]).shape == (1, SIZE, SIZE)


def test_a_net_without_a_convolution_is_refused() -> None:
    with pytest.raises(UserError, match="gradcam: this net has no convolution"):
        gradcam(nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 2)))


def test_relative_maps_are_shares_of_their_maximum_in_each_cell() -> None:
    maps = np.array([[[0, 2], [1, 4]], [[0, 0], [0, 0]]], np.float32)
    assert relative(maps, 2).tolist() == [[[0, 0.5], [0.25, 1]], [[0, 0], [0, 0]]]
    resized = relative(np.array([[[0, 0], [0, 1]]], np.float32), 8)
    assert resized.shape == (1, 8, 8)
    assert (resized[0, 6:, 6:] == 1).all()
    assert (resized[0, :2] == 0).all()


def test_a_drawing_explains_its_colours() -> None:
    shares = np.eye(SIZE, dtype=np.float32)
    figure = draw(CORNERS, shares, (3, 4), "lesion.jpg: mel, p = 0.812", "evidence for mel")
    left, right, bar = figure.axes
    assert figure.get_suptitle() == "lesion.jpg: mel, p = 0.812"
    assert bar.get_ylabel() == "evidence for mel"
    assert right.get_images()[1].get_clim() == (0, 1)
    np.testing.assert_array_equal(left.get_images()[0].get_array(), CORNERS)
    none = draw(CORNERS, 0 * shares, (3, 4), "t", "l")
    assert none.axes[1].get_title() == "Grad-CAM of 3 x 4 cells: no evidence for this class"
