import numpy as np
import pytest

from src.training.figures import CELL, draw


def plain(colour, n=3, size=64):
    return np.full((n, size, size, 3), colour, dtype=np.uint8)


RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)


def places(sheet, colour):
    """Rows and columns of the sheet that hold this colour exactly."""
    return np.argwhere((np.asarray(sheet) == colour).all(axis=2))


def test_classes_are_rows_and_before_is_left_of_after():
    sheet = draw(
        {"mel (7)": plain(RED), "nv (9)": plain(GREEN)},
        {"mel (7)": plain(BLUE), "nv (9)": plain(YELLOW)},
    )
    found = {colour: places(sheet, colour) for colour in (RED, GREEN, BLUE, YELLOW)}
    for pixels in found.values():
        assert len(pixels) == 3 * CELL**2
    assert found[RED][:, 0].max() < found[GREEN][:, 0].min()
    assert found[RED][:, 1].max() < found[BLUE][:, 1].min()
    assert (np.unique(found[RED][:, 0]) == np.unique(found[BLUE][:, 0])).all()
    assert (np.unique(found[GREEN][:, 1]) == np.unique(found[RED][:, 1])).all()


def test_labels_and_headings_are_written_and_not_covered():
    long, short = (
        draw({"x" * 30: plain(RED)}, {"x" * 30: plain(BLUE)}),
        draw({"": plain(RED)}, {"": plain(BLUE)}),
    )
    first_image = places(long, RED)[:, 1].min()
    row = np.asarray(long)[places(long, RED)[:, 0].min() :, :first_image]
    assert (row < 128).all(axis=2).sum() > 100  # dark text left of the images
    assert first_image > places(short, RED)[:, 1].min()
    heading = np.asarray(short)[: places(short, RED)[:, 0].min()]
    assert (heading < 128).all(axis=2).sum() > 100


@pytest.mark.parametrize("size", [8, 64, 224])
def test_any_image_size_fills_its_cell(size):
    sheet = draw({"a": plain(RED, size=size)}, {"a": plain(BLUE, size=size)})
    assert len(places(sheet, RED)) == 3 * CELL**2


def test_classes_with_fewer_images_or_none():
    sheet = draw(
        {"a": plain(RED, 4), "b": plain(GREEN, 1), "c": plain(GREEN, 0)},
        {"a": plain(BLUE, 4), "b": plain(YELLOW, 1), "c": plain(YELLOW, 0)},
    )
    assert len(places(sheet, RED)) == 4 * CELL**2
    assert len(places(sheet, GREEN)) == CELL**2


def test_different_labels_are_refused():
    with pytest.raises(ValueError, match="same labels"):
        draw({"a": plain(RED)}, {"b": plain(RED)})
