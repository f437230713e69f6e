"""What it brings to have trained on other photographs of the tested lesions: two trainings that differ in nothing else.

Scores on an image split are usually set beside those on a grouped one, and the difference is called leakage. It shows
nothing: the two splits have other test images, and which images are tested moves a score by as much as leakage may. So
here the test images are fixed, and only what is trained on changes.

A grouped split is taken. Of each test lesion that has several photographs one, drawn at random, stays in test; the
others, its siblings, leave it. Then there are two arms:

- "out": the siblings are used nowhere. No test lesion is known from training.
- "in": the siblings train, and as many training images of the same class, drawn at random, are used nowhere.

Validation and test images, the number of training images of each class, and so class weights, oversampling and steps an
epoch are the same in both. Test images whose lesion has no other photograph are the control: they gain nothing from the
siblings of others but what other lesions bring.

The arms have equally many training images, not lesions: displaced images are drawn one by one, and their lesions may
keep other photographs, while each tested lesion with siblings adds one. Of HAM10000, arm "in" trains on 4,607 lesions,
"out" on 4,481.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd

from src.errors import ConfigError, DataError

Siblings = Literal["out", "in"]

UNUSED = "unused"  # the side of images that neither train nor choose nor test
HAS_SIBLING = "has_sibling"  # column of the recorded test predictions
LABELS = {"out": "grouped, siblings of test left out", "in": "grouped, siblings of test in training"}


def check(mode: str, grouped_by: str) -> None:
    """Refuse a split that cannot be an arm.

    Args:
        mode: Of the split.
        grouped_by: What a group is, see `src.data.source.Manifest`.

    Raises:
        ConfigError: The split is not grouped, or the data do not say which images show one lesion.
    """
    if mode != "grouped":
        raise ConfigError("siblings", f"needs data.split=grouped, which it changes, but got data.split={mode}")
    if grouped_by == "image":
        raise ConfigError("siblings", "must be null: these data do not say which images show one lesion")


def has_sibling(frame: pd.DataFrame, sides: pd.Series) -> pd.Series:
    """Whether an image is a test image whose group has another one; bool with the index of `frame`.

    Args:
        frame: A manifest's frame.
        sides: Of a grouped split: "train", "val" or "test".
    """
    return (sides == "test") & frame.groupby("group")["group"].transform("size").gt(1)


def arrange(frame: pd.DataFrame, sides: pd.Series, siblings: Siblings, seed: int, classes: Sequence[str]) -> pd.Series:
    """The sides of one arm.

    Args:
        frame: A manifest's frame.
        sides: Of a grouped split: "train", "val" or "test".
        siblings: The arm.
        seed: Of the drawing; the same gives the same test images in both arms.
        classes: Class names, for messages.

    Returns:
        "train", "val", "test" or `UNUSED` with the index of `frame`.

    Raises:
        DataError: No test lesion has several images, a class has fewer training images than siblings, or one has no
            test image without them; the arms would not compare.
    """
    random = np.random.default_rng(seed)
    tested = random.permutation(np.flatnonzero((sides == "test").to_numpy()))
    moved = np.sort(tested[frame["group"].iloc[tested].duplicated().to_numpy()])
    if not len(moved):
        raise DataError("no lesion of the test split has several images: there is nothing that could leak")
    arranged = sides.to_numpy(dtype=object).copy()
    arranged[moved] = UNUSED
    labels = frame["label"].to_numpy()
    displaced = [_displaced(labels, arranged, moved, label, classes[label], random) for label in np.unique(labels)]
    if siblings == "in":
        arranged[moved] = "train"
        arranged[np.concatenate(displaced)] = UNUSED
    return pd.Series(arranged, index=frame.index, name="split")


def _displaced(
    labels: np.ndarray, sides: np.ndarray, moved: np.ndarray, label: int, name: str, random: np.random.Generator
) -> np.ndarray:
    """Rows of the training images of a class that make room for its siblings."""
    needed = int((labels[moved] == label).sum())
    own = labels == label
    trained = np.flatnonzero(own & (sides == "train"))
    if needed > len(trained):
        raise DataError(
            f"class {name} has {needed} other photographs of test lesions, but only {len(trained)} training images "
            "that could make room for them; take more for train in data.fractions"
        )
    if needed and not (own & (sides == "test")).any():
        raise DataError(f"class {name} has no test image left but siblings; set another data.split_seed")
    return random.choice(trained, needed, replace=False)
