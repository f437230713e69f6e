"""Grouped, image, official splits; siblings of test lesions (leakage arms)."""
from collections.abc import Sequence
from pathlib import Path
from src.core.errors import ConfigError
from src.core.errors import DataError
from src.data.source import SPLITS
from typing import Literal
import hashlib
import json
import numpy as np
import numpy.typing as npt
import os
import pandas as pd
import warnings


Mode = Literal["grouped", "image", "official"]
Fractions = tuple[float, float, float]
MAX_FOLDS = 20
_SUM_TOLERANCE = 1e-6
_FOLD_TOLERANCE = 1e-3  # lets 0.334, 0.333, 0.333 mean thirds
_DRAWS = 200  # choices of folds that are tried
_SHUFFLES = 10  # foldings that are tried


def split(
    frame: pd.DataFrame, mode: Mode, fractions: Fractions, seed: int, classes: Sequence[str] | None = None
) -> pd.Series:
    """Put every image on one side, with every class on every side that is not empty.

    Args:
        frame: A manifest's frame.
        mode: "grouped" keeps the images of a group on one side, stratified (scikit-learn's
            StratifiedGroupKFold, whose folds are dealt out as `fractions` say); "image" is
            stratified by image, so that images of one lesion come to train and test (the protocol
            of many papers: it leaks); "official" is the frame's own column.
        fractions: Parts of train, val and test; they add up to 1. Val and test may be 0. Not used
            by "official".
        seed: The same seed gives the same split.
        classes: Class names, for messages.

    Returns:
        "train", "val" or "test" with the index of `frame`.

    Raises:
        ConfigError: Impossible fractions, or "official" where there is no official split.
        DataError: A class is too rare to be on every side.
    """
    parts = check_fractions(fractions)
    if mode == "official":
        if "split" not in frame:
            raise ConfigError(
                "split", "must be grouped or image, because this data set has no official split, but got official"
            )
        sides = frame["split"].to_numpy()
        _check_every_side(frame, sides, classes)
    elif mode == "image":
        _check_rare(frame.assign(group=np.arange(len(frame))), parts, "images", classes)
        sides = _by_image(frame["label"].to_numpy(), parts, seed)
    else:
        folds = fold_counts(parts)
        _check_rare(frame, parts, "groups", classes)
        sides = _by_group(frame, folds, seed, classes)
    return pd.Series(sides, index=frame.index, name="split")


def load(
    frame: pd.DataFrame,
    mode: Mode,
    fractions: Fractions,
    seed: int,
    folder: Path,
    classes: Sequence[str] | None = None,
) -> pd.Series:
    """As `split`, kept in a file, so that the trials of a study do not each spend a second or more on the same split.

    Args:
        frame: See `split`.
        mode: See `split`.
        fractions: See `split`.
        seed: See `split`.
        folder: Where splits are kept.
        classes: See `split`.
    """
    import sklearn

    columns = [frame[name].tolist() for name in ("image_id", "label", "group", "split") if name in frame]
    key = json.dumps([sklearn.__version__, mode, fractions, seed, columns])
    path = folder / f"split-{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"
    if path.exists():
        return pd.Series(np.asarray(SPLITS)[np.load(path)], index=frame.index, name="split")
    sides = split(frame, mode, fractions, seed, classes)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}-{os.getpid()}.npy")
    np.save(temporary, sides.map({name: code for code, name in enumerate(SPLITS)}).to_numpy(dtype=np.uint8))
    temporary.replace(path)
    return sides


def groups_on_two_sides(frame: pd.DataFrame, sides: pd.Series) -> int:
    """How many groups have images on more than one side: over 0, the split leaks.

    Images that are used nowhere (on none of `SPLITS`) do not count. Where the groups are not known
    (`grouped_by` is "image"), 0 means nothing.
    """
    used = sides.isin(SPLITS)
    return int((sides[used].groupby(frame["group"][used]).nunique() > 1).sum())


def check_fractions(fractions: Fractions) -> dict[str, float]:
    """Parts by side.

    Raises:
        ConfigError: Not three parts from 0 to 1 that add up to 1, or nothing to train on.
    """
    if len(fractions) != len(SPLITS) or not all(0 <= part <= 1 for part in fractions):
        raise ConfigError("fractions", f"must be three parts (train, val, test) from 0 to 1, but got {list(fractions)}")
    if abs(sum(fractions) - 1) > _SUM_TOLERANCE:
        raise ConfigError("fractions", f"must add up to 1, but {list(fractions)} add up to {sum(fractions):.6g}")
    if fractions[0] == 0:
        raise ConfigError("fractions", f"must leave something to train on, but got {list(fractions)}")
    return dict(zip(SPLITS, fractions, strict=True))


def fold_counts(parts: dict[str, float]) -> dict[str, int]:
    """How many of the folds each side gets, with as few folds as the parts allow.

    Raises:
        ConfigError: More than `MAX_FOLDS` would be needed.
    """
    for n_folds in range(1, MAX_FOLDS + 1):
        counts = {side: round(part * n_folds) for side, part in parts.items()}
        exact = all(abs(counts[side] / n_folds - part) <= _FOLD_TOLERANCE for side, part in parts.items())
        if exact and all(counts[side] > 0 for side, part in parts.items() if part > 0):
            return counts
    raise ConfigError(
        "fractions",
        f"must be multiples of 1/n with n up to {MAX_FOLDS} for a grouped split, such as [0.6, 0.2, 0.2] or "
        f"[0.7, 0.15, 0.15], but got {list(parts.values())}",
    )


def _by_image(labels: npt.NDArray[np.int64], parts: dict[str, float], seed: int) -> npt.NDArray[np.str_]:
    """Deal out each class by itself: unlike scikit-learn's shuffle split, which may leave a rare class off a side."""
    random = np.random.default_rng(seed)
    sides = np.full(len(labels), "train", dtype="<U5")
    held_out = [side for side in ("val", "test") if parts[side] > 0]
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        for waiting, side in zip(range(len(held_out), 0, -1), held_out, strict=True):
            # At least one, and one left for each side still to come, train included.
            size = min(max(1, round(parts[side] * int((labels == label).sum()))), len(members) - waiting)
            sides[members[:size]] = side
            members = members[size:]
    return sides


def _by_group(
    frame: pd.DataFrame, folds: dict[str, int], seed: int, classes: Sequence[str] | None
) -> npt.NDArray[np.str_]:
    """Deal out stratified folds of whole groups so that every class is on every side, if a way is found."""
    n_folds = sum(folds.values())
    if n_folds == 1:
        return np.full(len(frame), "train", dtype="<U5")
    n_groups = frame["group"].nunique()
    largest = int(np.bincount(frame["label"]).max())
    if min(n_groups, largest) < n_folds:
        raise DataError(
            f"{len(frame)} images in {n_groups} groups are too few for the {n_folds} folds that these fractions need; "
            "add images, or set data.fractions to coarser parts"
        )
    random = np.random.default_rng(seed)
    dealt = np.repeat(SPLITS, [folds[side] for side in SPLITS])
    for _ in range(_SHUFFLES):
        fold = _fold_numbers(frame, n_folds, int(random.integers(2**31)))
        for _ in range(_DRAWS):
            sides = random.permutation(dealt)[fold]
            if not _absent(frame["label"].to_numpy(), sides):
                return sides
    _check_every_side(frame, sides, classes)
    return sides


def _fold_numbers(frame: pd.DataFrame, n_folds: int, seed: int) -> npt.NDArray[np.int64]:
    from sklearn.model_selection import StratifiedGroupKFold  # takes most of a second

    folding = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    fold = np.empty(len(frame), dtype=np.int64)
    with warnings.catch_warnings():
        # Fewer images of a class than folds: which sides lack the class is checked afterwards.
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        for number, (_, members) in enumerate(folding.split(frame, frame["label"], frame["group"])):
            fold[members] = number
    return fold


def _absent(labels: npt.NDArray[np.int64], sides: npt.NDArray[np.str_]) -> list[tuple[int, str]]:
    """Classes that are not on a side, with the side."""
    present = {side: set(labels[sides == side]) for side in np.unique(sides)}
    return [(int(label), side) for side, found in present.items() for label in np.unique(labels) if label not in found]


def _check_every_side(frame: pd.DataFrame, sides: npt.NDArray[np.str_], classes: Sequence[str] | None) -> None:
    absent = _absent(frame["label"].to_numpy(), sides)
    if absent:
        label, side = absent[0]
        raise DataError(
            f"class {_name(label, classes)} has no image in {side}; add images of it, leave the class out, "
            "or set another data.split_seed, data.fractions or data.split"
        )


def _check_rare(frame: pd.DataFrame, parts: dict[str, float], unit: str, classes: Sequence[str] | None) -> None:
    needed = sum(part > 0 for part in parts.values())
    counts = frame.groupby("label")["group"].nunique()
    for label, count in counts[counts < needed].items():
        raise DataError(
            f"class {_name(int(str(label)), classes)} has {count} {unit}, fewer than the {needed} sides of the split; "
            "add images of it, leave the class out, or set a part of data.fractions to 0"
        )


def _name(label: int, classes: Sequence[str] | None) -> str:
    return classes[label] if classes else str(label)


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
        DataError: No test lesion has several images, a class has fewer training images than
            siblings, or one has no test image without them; the arms would not compare.
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
