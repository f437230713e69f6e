import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from src.data.cache import PAD_COLOUR
from src.data.cache import square


def noise(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def resized_by_torch(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    image = torch.nn.functional.interpolate(image, (height, width), mode="bilinear", antialias=True)
    return image[0].permute(1, 2, 0).numpy()


@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    size=st.integers(1, 40),
    geometry=st.sampled_from(["squash", "center_crop", "pad"]),
)
def test_always_a_square_of_bytes(width, height, size, geometry):
    result = square(Image.fromarray(noise(width, height)), size, geometry)
    assert result.shape == (size, size, 3)
    assert result.dtype == np.uint8


@pytest.mark.parametrize("geometry", ["squash", "center_crop", "pad"])
def test_a_square_of_the_size_is_left_alone(geometry):
    pixels = noise(32, 32)
    assert np.array_equal(square(Image.fromarray(pixels), 32, geometry), pixels)


def test_squash_keeps_the_whole_frame():
    pixels = noise(200, 150)
    expected = resized_by_torch(pixels, 64, 64)
    assert np.abs(square(Image.fromarray(pixels), 64, "squash") - expected).max() <= 1.5


def test_center_crop_keeps_the_middle():
    pixels = noise(200, 150)
    expected = resized_by_torch(pixels[:, 25:175], 64, 64)
    assert np.abs(square(Image.fromarray(pixels), 64, "center_crop") - expected).max() <= 1.5


def test_pad_keeps_the_frame_and_its_shape():
    pixels = noise(200, 150)
    result = square(Image.fromarray(pixels), 64, "pad")
    assert (result[:8] == PAD_COLOUR).all()
    assert (result[56:] == PAD_COLOUR).all()
    assert np.abs(result[8:56] - resized_by_torch(pixels, 48, 64)).max() <= 1.5


def test_an_upright_frame_is_padded_at_the_sides():
    result = square(Image.fromarray(np.full((100, 50, 3), 200, np.uint8)), 20, "pad")
    assert (result[:, 5:15] == 200).all()
    assert (result[:, :5] == PAD_COLOUR).all()
    assert (result[:, 15:] == PAD_COLOUR).all()
