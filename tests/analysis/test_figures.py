import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import precision_recall_fscore_support

from src.training.figures import confusion_matrix, learning_curves, per_class_table

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
