"""Splits into train, val and test: grouped, by image, official; siblings of tested lesions."""

import hashlib
import json
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from src.core.errors import ConfigError, DataError
from src.core.files import atomic_file
from src.data.source import SPLITS

SplitMode = Literal["grouped", "image", "official"]
Siblings = Literal["out", "in"]
MAX_FOLDS = 20
UNUSED = "unused"  # the side of images that are not used for training, selection or testing
HAS_SIBLING = "has_sibling"  # column of the recorded test predictions
SIBLING_LABELS = {
    "out": "grouped, siblings of test left out",
    "in": "grouped, siblings of test in training",
}
_SIDES = (*SPLITS, UNUSED)
_SUM_TOLERANCE = 1e-6
_FOLD_TOLERANCE = 1e-3  # 0.334, 0.333, 0.333 are thirds
_DRAWS = 200  # assignments of folds to sides that are tried
_SHUFFLES = 10  # foldings that are tried


def split(
    frame: pd.DataFrame,
    mode: SplitMode,
    fractions: Sequence[float],
    seed: int,
    classes: Sequence[str],
    needs_train: bool = True,
) -> pd.Series:
    """Assign every image to a side, with every class on every side that is not empty.

    Args:
        frame: The frame of a manifest.
        mode: "grouped" keeps the images of a group on one side, stratified (the folds of
            scikit-learn's StratifiedGroupKFold are dealt out by `fractions`); "image" stratifies
            by image, so that images of one lesion are in train and test (the protocol of many
            papers: it leaks); "official" is the column `split` of the frame.
        fractions: Parts of train, val and test; their sum is 1. Val and test may be 0. Ignored by
            "official".
        seed: The same seed gives the same split.
        classes: Class names, for messages.
        needs_train: Whether the part of train must not be 0.

    Returns:
        "train", "val" or "test" with the index of `frame`. Images that are `only_train` are in
        "train", or `UNUSED` where val or test has an image of their group.

    Raises:
        ConfigError: Invalid fractions, or "official" without an official split.
        DataError: A class is too rare to be on every side.
    """
    if "only_train" in frame:
        extra = frame["only_train"].to_numpy(dtype=bool)
        split_rows = frame[~extra].drop(columns="only_train")
        free = split(split_rows, mode, fractions, seed, classes, needs_train=not extra.any())
        dealt = free.reindex(frame.index, fill_value="train")
        held_out = frame["group"].isin(frame["group"][dealt != "train"])
        return dealt.mask(extra & held_out, UNUSED)
    parts = check_fractions(fractions, needs_train)
    labels = frame["label"].to_numpy()
    if mode == "official":
        if "split" not in frame:
            problem = "must be grouped or image, because this data set has no official split"
            raise ConfigError("split", f"{problem}, but got official")
        sides = frame["split"].to_numpy()
    else:
        folds = fold_counts(parts) if mode == "grouped" else {}
        unit, column = ("group", "group") if folds else ("image", "image_id")
        counts = frame.groupby("label")[column].nunique()
        needed = sum(part > 0 for part in parts.values())
        for label, count in counts[counts < needed].items():
            raise DataError(
                f"class {classes[int(str(label))]} has {count} {unit}s, fewer than the {needed} "
                "sides of the split; add images of it, leave the class out, or set a part of "
                "data.fractions to 0"
            )
        sides = _by_group(frame, folds, seed) if folds else _by_image(labels, parts, seed)
    absent = _absent(labels, sides)
    if absent is not None:
        raise DataError(
            f"class {classes[absent[0]]} has no image in {absent[1]}; add images of it, leave the "
            "class out, or set another data.split_seed, data.fractions or data.split"
        )
    return pd.Series(sides, index=frame.index, name="split")


def load(
    frame: pd.DataFrame,
    mode: SplitMode,
    fractions: Sequence[float],
    seed: int,
    classes: Sequence[str],
    folder: Path,
) -> pd.Series:
    """`split` with its result kept in `folder`, because computing it takes a second or more."""
    names = ("image_id", "label", "group", "split", "only_train")
    values = [frame[name].tolist() for name in names if name in frame]
    key = json.dumps([version("scikit-learn"), mode, fractions, seed, values])
    path = folder / f"split-{hashlib.sha256(key.encode()).hexdigest()[:32]}.bin"
    content, rows = path.read_bytes() if path.is_file() else b"", len(frame)
    if hashlib.sha256(content[:rows]).digest() == content[rows:]:  # else it is absent or damaged
        stored = np.asarray(_SIDES)[np.frombuffer(content, np.uint8, rows)]
        return pd.Series(stored, index=frame.index, name="split")
    sides = split(frame, mode, fractions, seed, classes)
    codes = sides.map(_SIDES.index).to_numpy(dtype=np.uint8).tobytes()
    with atomic_file(path, "the split", make_folder=True) as draft:
        draft.write_bytes(codes + hashlib.sha256(codes).digest())
    return sides


def join_groups(groups: pd.Series, first: npt.NDArray[np.int64]) -> pd.Series:
    """The groups, where the group of each row and that of the row `first[row]` are one."""
    rows = np.flatnonzero(first != np.arange(len(first)))
    if not len(rows):
        return groups
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    codes, names = pd.factorize(groups)
    edges = coo_array((np.ones(len(rows)), (codes[rows], codes[first[rows]])), [len(names)] * 2)
    joined = connected_components(edges, directed=False)[1]
    leaders = names[np.unique(joined, return_index=True)[1]]
    return pd.Series(leaders[joined[codes]], groups.index, name=groups.name)


def leaking(groups: pd.Series, sides: pd.Series) -> int:
    """Number of val and test images whose group is in train, or in the other of the two."""
    used = sides.isin(SPLITS)
    several = sides[used].groupby(groups[used]).transform("nunique") > 1
    return int((several & (sides[used] != "train")).sum())


def groups_on_two_sides(frame: pd.DataFrame, sides: pd.Series) -> int:
    """Number of groups with images on more than one side: above 0, the split leaks.

    Unused images do not count. If groups are unknown (`grouped_by` is "image"), 0 means nothing.
    """
    used = sides.isin(SPLITS)
    return int((sides[used].groupby(frame["group"][used]).nunique() > 1).sum())


def check_fractions(fractions: Sequence[float], needs_train: bool = True) -> dict[str, float]:
    """Part of each side; that of train may be 0 where other images are trained on.

    Raises:
        ConfigError: Not three parts from 0 to 1 whose sum is 1, or nothing to train on.
    """
    values, total = list(fractions), sum(fractions)
    if len(values) != len(SPLITS) or not all(0 <= part <= 1 for part in values):
        problem = f"must be three parts (train, val, test) from 0 to 1, but got {values}"
    elif abs(total - 1) > _SUM_TOLERANCE:
        problem = f"must add up to 1, but {values} add up to {total:.6g}"
    elif values[0] == 0 and needs_train:
        problem = f"must leave something to train on, but got {values}"
    else:
        return dict(zip(SPLITS, values, strict=True))
    raise ConfigError("fractions", problem)


def fold_counts(parts: dict[str, float]) -> dict[str, int]:
    """Number of folds for each side, with as few folds as the parts allow.

    Raises:
        ConfigError: More than `MAX_FOLDS` folds would be needed.
    """
    for n_folds in range(1, MAX_FOLDS + 1):
        counts = {side: round(part * n_folds) for side, part in parts.items()}
        errors = [abs(counts[side] / n_folds - part) for side, part in parts.items()]
        empty = any(counts[side] == 0 for side, part in parts.items() if part > 0)
        if max(errors) <= _FOLD_TOLERANCE and not empty:
            return counts
    raise ConfigError(
        "fractions",
        f"must be multiples of 1/n with n up to {MAX_FOLDS} for a grouped split, such as "
        f"[0.6, 0.2, 0.2] or [0.7, 0.15, 0.15], but got {list(parts.values())}",
    )


def has_sibling(frame: pd.DataFrame, sides: pd.Series) -> pd.Series:
    """Whether an image is a test image whose group has other images; sides of a grouped split."""
    return (sides == "test") & frame.groupby("group")["group"].transform("size").gt(1)


def arrange_siblings(
    frame: pd.DataFrame, sides: pd.Series, siblings: Siblings, seed: int, classes: Sequence[str]
) -> pd.Series:
    """The sides of one arm of the leakage experiment.

    Of each test lesion one image is tested. Its other images, the siblings, are unused in the arm
    "out". In the arm "in" they train, in place of as many training images of the same class. So
    both arms have the same test images and equal class counts in training, and their differences
    are paired by image. The same seed gives the same test images in both arms.

    Returns:
        "train", "val", "test" or `UNUSED` for each of the sides of a grouped split.

    Raises:
        DataError: No test lesion has several images, a class has fewer training images than
            siblings, or it has no test image besides them: the arms would not be comparable.
    """
    random = np.random.default_rng(seed)
    tested = random.permutation(np.flatnonzero((sides == "test").to_numpy()))
    moved = np.sort(tested[frame["group"].iloc[tested].duplicated().to_numpy()])
    if not len(moved):
        problem = "no lesion of the test split has several images"
        raise DataError(f"{problem}: there is nothing that could leak")
    arranged = sides.to_numpy(dtype=object).copy()
    arranged[moved] = UNUSED
    labels = frame["label"].to_numpy()
    replaced = []
    for label in np.unique(labels):
        members, name = labels == label, classes[label]
        needed = int((labels[moved] == label).sum())
        trained = np.flatnonzero(members & (arranged == "train"))
        if needed > len(trained):
            raise DataError(
                f"class {name} has {needed} other photographs of test lesions, but only "
                f"{len(trained)} training images that could make room for them; increase train in "
                "data.fractions"
            )
        if needed and not (members & (arranged == "test")).any():
            way = "set another data.split_seed"
            raise DataError(f"class {name} has no test image left but siblings; {way}")
        replaced.append(random.choice(trained, needed, replace=False))
    if siblings == "in":
        arranged[moved] = "train"
        arranged[np.concatenate(replaced)] = UNUSED
    return pd.Series(arranged, index=frame.index, name="split")


def _by_image(labels: np.ndarray, parts: dict[str, float], seed: int) -> npt.NDArray[np.str_]:
    """Deal out each class separately: StratifiedShuffleSplit may leave a rare class off a side."""
    random = np.random.default_rng(seed)
    sides = np.full(len(labels), "train", dtype="<U5")
    held_out = [side for side in ("val", "test") if parts[side] > 0]
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        total = len(members)
        for number, side in enumerate(held_out):
            # At least one image, and one left for each later side and for train.
            most = len(members) - (len(held_out) - number)
            size = min(max(1, round(parts[side] * total)), most)
            sides[members[:size]] = side
            members = members[size:]
    return sides


def _by_group(frame: pd.DataFrame, folds: dict[str, int], seed: int) -> npt.NDArray[np.str_]:
    """Deal out stratified folds of groups until every class is on every side, or give up."""
    from sklearn.model_selection import StratifiedGroupKFold  # the import takes most of a second

    n_folds = sum(folds.values())
    if n_folds == 1:
        return np.full(len(frame), "train", dtype="<U5")
    n_groups = frame["group"].nunique()
    if min(n_groups, frame["label"].value_counts().max()) < n_folds:
        raise DataError(
            f"{len(frame)} images in {n_groups} groups are too few for the {n_folds} folds that "
            "these fractions need; add images, or set data.fractions to coarser parts"
        )
    random = np.random.default_rng(seed)
    dealt = np.repeat(SPLITS, [folds[side] for side in SPLITS])
    labels = frame["label"].to_numpy()
    fold = np.empty(len(frame), dtype=np.int64)
    for _ in range(_SHUFFLES):
        shuffle_seed = int(random.integers(2**31))
        folding = StratifiedGroupKFold(n_folds, shuffle=True, random_state=shuffle_seed)
        with warnings.catch_warnings():
            # A class with fewer images than folds: `_absent` checks which sides lack it.
            warnings.filterwarnings("ignore", "The least populated class", UserWarning)
            for number, (_, rows) in enumerate(folding.split(frame, labels, frame["group"])):
                fold[rows] = number
        for _ in range(_DRAWS):
            sides = random.permutation(dealt)[fold]
            if _absent(labels, sides) is None:
                return sides
    for _ in range(_DRAWS):
        sides = _move_rare(labels, frame["group"], random.permutation(dealt)[fold], random)
        if _absent(labels, sides) is None:
            break
    return sides


def _move_rare(
    labels: np.ndarray, groups: pd.Series, sides: npt.NDArray[np.str_], random: np.random.Generator
) -> npt.NDArray[np.str_]:
    """Move a small group of each class, the rarest first, to every side that lacks the class.

    Only groups move whose classes all keep another group on the side that is left.
    """
    codes = pd.factorize(groups)[0]
    sizes = np.bincount(codes)
    has = np.zeros((len(sizes), labels.max() + 1), dtype=bool)
    has[codes, labels] = True
    side_of = np.empty(len(sizes), sides.dtype)
    side_of[codes] = sides
    for label in np.argsort(has.sum(axis=0), kind="stable"):
        for side in np.unique(sides):
            members = np.flatnonzero(has[:, label])
            if (side_of[members] == side).any():
                continue
            groups_by_side = {
                other: has[side_of == other].sum(axis=0) for other in np.unique(sides)
            }
            movable = [
                item for item in members if (groups_by_side[side_of[item]][has[item]] > 1).all()
            ]
            if movable:
                side_of[min(movable, key=lambda item: (sizes[item], random.random()))] = side
    return side_of[codes]


def _absent(labels: np.ndarray, sides: npt.NDArray[np.str_]) -> tuple[int, str] | None:
    """The first class that is not on a side, with this side."""
    every = np.unique(labels)
    for side in np.unique(sides):
        missing = np.setdiff1d(every, labels[sides == side])
        if len(missing):
            return int(missing[0]), str(side)
    return None
