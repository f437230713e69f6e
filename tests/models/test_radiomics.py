"""Descriptors against hand arithmetic, scikit-image, and what must not alter them."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from src.models import radiomics

GREY = arrays(np.uint8, (12, 12))
STRIPES = np.tile(np.array([0, 1], dtype=np.uint8), (8, 4))  # columns 0 1 0 1 ...


@pytest.fixture(autouse=True, scope="module")
def one_blas_thread() -> Iterator[None]:
    with radiomics.limit_blas(1):
        yield


def coloured(seed: int, size: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def named_haralick(image: np.ndarray) -> dict[str, float]:
    return dict(zip(radiomics.HARALICK, radiomics.haralick(image), strict=True))


def test_hu_moments_by_hand() -> None:
    image = np.zeros((5, 5), dtype=np.uint8)
    assert radiomics.hu_moments(image).tolist() == [0.0] * 7  # a black image has none
    # one px either side of the middle: mu_02 = 2, mass 2, so eta_02 = 2 / 2^2
    image[2, 1] = image[2, 3] = 1
    np.testing.assert_allclose(radiomics.hu_moments(image), [0.5, 0.25, 0, 0, 0, 0, 0], atol=1e-15)


@pytest.mark.parametrize("seed", range(3))
def test_hu_moments_are_those_of_scikit_image(seed: int) -> None:
    measure = pytest.importorskip("skimage.measure", reason="scikit-image is not installed")
    image = coloured(seed, 21)[:, :17, 0]
    central = measure.moments_central(image.astype(float), order=3)
    expected = measure.moments_hu(measure.moments_normalized(central, order=3))
    np.testing.assert_allclose(radiomics.hu_moments(image), expected, rtol=1e-6, atol=1e-18)


@settings(max_examples=40, deadline=None)
@given(image=GREY, turns=st.integers(0, 3), down=st.integers(0, 6), right=st.integers(0, 6))
def test_hu_moments_ignore_shifts_and_turns_and_mirrors_turn_the_last(
    image: np.ndarray, turns: int, down: int, right: int
) -> None:
    expected = radiomics.hu_moments(image)
    moved = np.zeros((20, 20), dtype=np.uint8)
    moved[down : down + 12, right : right + 12] = np.rot90(image, turns)
    close = {"rtol": 1e-7, "atol": 1e-9 * max(1.0, np.abs(expected).max())}
    np.testing.assert_allclose(radiomics.hu_moments(moved), expected, **close)
    mirrored = radiomics.hu_moments(image[:, ::-1])
    np.testing.assert_allclose(mirrored, expected * [1, 1, 1, 1, 1, 1, -1], **close)


def test_hu_moments_hardly_depend_on_the_size() -> None:
    image = coloured(0)[:, :, 0]
    larger = radiomics.hu_moments(image.repeat(6, axis=0).repeat(6, axis=1))
    np.testing.assert_allclose(larger[0], radiomics.hu_moments(image)[0], rtol=0.01)


def test_haralick_features_of_stripes_by_hand() -> None:
    # along the stripes neighbours are equal, half 0-0 and half 1-1; in the other three directions
    # they always differ
    features = named_haralick(STRIPES)
    expected = {
        "angular_second_moment": 0.5,
        "contrast": (0 + 1 + 1 + 1) / 4,
        "inverse_difference_moment": (1 + 0.5 + 0.5 + 0.5) / 4,
        "correlation": (1 - 1 - 1 - 1) / 4,
        "entropy": 1.0,  # bits
        "variance": 0.25,
    }
    assert {name: features[name] for name in expected} == pytest.approx(expected)


def test_haralick_features_are_those_of_scikit_image() -> None:
    texture = pytest.importorskip("skimage.feature", reason="scikit-image is not installed")
    image = coloured(1, 24)[:, :, 0]
    angles = [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4]
    pairs = texture.graycomatrix(image, [1], angles, symmetric=True, normed=True)
    theirs = {
        "contrast": "contrast",
        "angular_second_moment": "ASM",
        "inverse_difference_moment": "homogeneity",
        "correlation": "correlation",
        "variance": "variance",
        "entropy": "entropy",
    }
    expected = {name: texture.graycoprops(pairs, other).mean() for name, other in theirs.items()}
    expected["entropy"] /= np.log(2)  # bits, not nats
    features = named_haralick(image)
    assert {name: features[name] for name in expected} == pytest.approx(expected)


@settings(max_examples=8, deadline=None)
@given(image=GREY, turns=st.integers(0, 3), mirrored=st.booleans())
def test_haralick_features_ignore_quarter_turns_and_mirrors(
    image: np.ndarray, turns: int, mirrored: bool
) -> None:
    other = np.ascontiguousarray(np.rot90(image[:, ::-1] if mirrored else image, turns))
    expected = radiomics.haralick(image)
    np.testing.assert_allclose(radiomics.haralick(other), expected, rtol=1e-8, atol=1e-10)


def test_histogram_of_named_colours() -> None:
    image = np.zeros((2, 2, 3), dtype=np.uint8)
    image[0] = (255, 0, 0)  # hue 0, saturation and value in the last interval: cell 0 7 7
    image[1, 0] = (255, 255, 255)  # cell 0 0 7
    shares = radiomics.histogram(image, 8)
    names = radiomics.names(["histogram"], 8)
    expected = {"histogram/0.0.0": 0.25, "histogram/0.0.7": 0.25, "histogram/0.7.7": 0.5}
    assert {names[cell]: shares[cell] for cell in np.flatnonzero(shares)} == expected


@settings(max_examples=20, deadline=None)
@given(image=arrays(np.uint8, (6, 6, 3)), bins=st.integers(2, 16), seed=st.integers(0, 99))
def test_histogram_is_a_share_of_pixels_wherever_they_are(
    image: np.ndarray, bins: int, seed: int
) -> None:
    shares = radiomics.histogram(image, bins)
    assert shares.shape == (bins**3,)
    assert shares.sum() == pytest.approx(1.0)
    shuffled = np.random.default_rng(seed).permutation(image.reshape(36, 3)).reshape(6, 6, 3)
    np.testing.assert_array_equal(radiomics.histogram(shuffled, bins), shares)


def test_extract_puts_descriptors_side_by_side_whatever_the_threads() -> None:
    images = np.stack([coloured(seed) for seed in range(5)])
    rows = np.array([3, 0])
    table = radiomics.extract(images, ["histogram", "hu"], 2, rows, threads=2)
    assert table.shape == (2, 8 + 7) == (2, len(radiomics.names(["histogram", "hu"], 2)))
    for line, row in zip(table, rows, strict=True):
        np.testing.assert_array_equal(line[:8], radiomics.histogram(images[row], 2))
        np.testing.assert_array_equal(line[8:], radiomics.hu_moments(radiomics.grey(images[row])))
    np.testing.assert_array_equal(table, radiomics.extract(images, ["histogram", "hu"], 2, rows))
    assert radiomics.extract(images[:0], ["hu"], 2).shape == (0, 7)
