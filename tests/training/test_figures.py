from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import precision_recall_fscore_support

from src.training.figures import (
    CELL,
    augmentation_sheet,
    confusion_matrix,
    draw_contact_sheet,
    learning_curves,
    per_class_table,
)

MATRIX = np.array([[8, 2, 0], [1, 4, 0], [3, 0, 7]])


def test_per_class_table_agrees_with_scikit_learn() -> None:
    true = np.repeat([0, 0, 0, 1, 1, 1, 2, 2, 2], MATRIX.ravel())
    predicted = np.repeat([0, 1, 2] * 3, MATRIX.ravel())
    precision, recall, f1, images = precision_recall_fscore_support(true, predicted)
    table = per_class_table(MATRIX, ("a", "b", "c"))
    assert table["class"].tolist() == ["a", "b", "c"]
    assert table["images"].tolist() == images.tolist()
    for name, values in (("precision", precision), ("recall", recall), ("f1", f1)):
        assert table[name].tolist() == pytest.approx(values.tolist())
    assert table["specificity"].tolist() == pytest.approx([11 / 15, 18 / 20, 15 / 15])


def test_confusion_picture_shows_every_count_and_names_its_axes() -> None:
    (axes, bar) = confusion_matrix(MATRIX, ("a", "b", "c"), "val").axes
    assert [int(text.get_text()) for text in axes.texts] == MATRIX.ravel().tolist()
    assert axes.get_xlabel() == "predicted class"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a (10)", "b (5)", "c (10)"]
    assert "recall" in bar.get_ylabel()


def test_learning_curves_end_where_training_ended() -> None:
    history = pd.DataFrame({"train/loss": [2.0, 1.0, 0.5], "val/accuracy": [0.2, 0.5, 0.4]})
    loss, quality = learning_curves(history, chosen_epoch=1).axes
    assert loss.lines[0].get_xdata().tolist() == [1, 2, 3]
    assert loss.lines[0].get_ydata().tolist() == [2.0, 1.0, 0.5]
    assert "lower is better" in loss.get_ylabel()
    assert "higher is better" in quality.get_ylabel()
    assert list(quality.lines[-1].get_xdata()) == [2, 2]  # the kept epoch, counted from 1


def images_of(colour: tuple[int, int, int], n: int = 3, size: int = 64) -> np.ndarray:
    return np.full((n, size, size, 3), colour, dtype=np.uint8)


RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)


def pixels_of(sheet: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    """Rows and columns of the sheet that hold this colour exactly."""
    return np.argwhere((np.asarray(sheet) == colour).all(axis=2))


def dark(part: np.ndarray) -> int:
    return int((part < 128).all(axis=2).sum())


def test_classes_are_rows_and_before_is_left_of_after() -> None:
    sheet = draw_contact_sheet(
        {"mel (7)": images_of(RED), "nv (9)": images_of(GREEN)},
        {"mel (7)": images_of(BLUE), "nv (9)": images_of(YELLOW)},
    )
    pixels = {colour: pixels_of(sheet, colour) for colour in (RED, GREEN, BLUE, YELLOW)}
    for positions in pixels.values():
        assert len(positions) == 3 * CELL**2
    assert pixels[RED][:, 0].max() < pixels[GREEN][:, 0].min()
    assert pixels[RED][:, 1].max() < pixels[BLUE][:, 1].min()
    assert (np.unique(pixels[RED][:, 0]) == np.unique(pixels[BLUE][:, 0])).all()
    assert (np.unique(pixels[GREEN][:, 1]) == np.unique(pixels[RED][:, 1])).all()


def test_labels_and_headings_are_not_covered() -> None:
    long, short = (
        draw_contact_sheet({label: images_of(RED)}, {label: images_of(BLUE)})
        for label in ("x" * 30, "")
    )
    top, left = pixels_of(long, RED).min(axis=0)
    assert dark(np.asarray(long)[top:, :left]) > 100  # text left of the images
    assert left > pixels_of(short, RED)[:, 1].min()
    assert dark(np.asarray(short)[: pixels_of(short, RED)[:, 0].min()]) > 100


@pytest.mark.parametrize("size", [8, 64, 224])
def test_any_number_and_size_of_images_fill_their_cells(size: int) -> None:
    before, after = (
        {"a": images_of(first, 4, size), "b": images_of(second, 1), "c": images_of(second, 0)}
        for first, second in ((RED, GREEN), (BLUE, YELLOW))
    )
    sheet = draw_contact_sheet(before, after)
    assert len(pixels_of(sheet, RED)) == 4 * CELL**2
    assert len(pixels_of(sheet, GREEN)) == CELL**2
    with pytest.raises(ValueError, match="same labels"):
        draw_contact_sheet({"a": images_of(RED)}, {"b": images_of(RED)})


def test_twelve_augmentations_are_right_of_their_image_and_change_no_later_random_number() -> None:
    images = np.concatenate([images_of(GREEN, 1), images_of(RED, 1)])

    def augment(images: torch.Tensor) -> torch.Tensor:
        return images.roll(2, dims=1) * torch.rand(len(images)).gt(-1)[:, None, None, None]

    data = SimpleNamespace(cache=SimpleNamespace(images=images), augment=augment)
    data.rows = {"train": np.array([1, 0])}.__getitem__
    state = torch.get_rng_state()
    sheet = augmentation_sheet(data)
    assert torch.equal(torch.get_rng_state(), state)
    stored, augmented = pixels_of(sheet, RED), pixels_of(sheet, BLUE)
    assert (len(stored), len(augmented)) == (CELL**2, 12 * CELL**2)
    assert len(np.unique(augmented[:, 0])) == 3 * CELL
    assert stored[:, 1].max() < augmented[:, 1].min()
    assert not len(pixels_of(sheet, GREEN))
