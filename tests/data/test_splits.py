import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from src.core.errors import ConfigError, DataError
from src.data import splits
from src.data.ham10000 import HAM10000
from src.data.siim2020 import SIIM2020
from src.data.source import SPLITS
from src.data.splits import UNUSED, arrange_siblings

FRACTIONS = (0.6, 0.2, 0.2)
CLASSES = ("nevus", "mole", "wart", "scar", "cyst", "melanoma", "other")


def split(frame: pd.DataFrame, mode: str, fractions=FRACTIONS, seed: int = 0) -> pd.Series:
    return splits.split(frame, mode, fractions, seed, CLASSES)


def table(groups: list[tuple[int, int]]) -> pd.DataFrame:
    """A frame of groups, each with a label and a number of images."""
    rows = [
        (label, f"g{number}")
        for number, (label, images) in enumerate(groups)
        for _ in range(images)
    ]
    frame = pd.DataFrame(rows, columns=["label", "group"])
    return frame.assign(image_id=[f"i{row:04d}" for row in range(len(frame))])


def two_classes(images: int, groups: int = 20) -> pd.DataFrame:
    """Two classes, each with this many groups of this many images."""
    return table([(label, images) for label in (0, 1) for _ in range(groups)])


@st.composite
def frames(draw, least: int = 5, most_classes: int = 5) -> pd.DataFrame:
    """Two or more classes, each with at least `least` groups of one to six images."""
    sizes = st.lists(st.integers(1, 6), min_size=least, max_size=15)
    classes = draw(st.lists(sizes, min_size=2, max_size=most_classes))
    return table([(label, images) for label, groups in enumerate(classes) for images in groups])


@settings(max_examples=25, deadline=None)
@given(frame=frames(), mode=st.sampled_from(["grouped", "image"]), seed=st.integers(0, 2**31))
def test_every_image_on_one_side_and_every_class_on_every_side(frame, mode, seed):
    sides = split(frame, mode, seed=seed)
    assert sides.index.equals(frame.index)
    assert set(sides) == set(SPLITS)
    present = frame.groupby(sides)["label"].nunique()
    assert (present == frame["label"].nunique()).all()
    if mode == "grouped":
        assert (sides.groupby(frame["group"]).nunique() == 1).all()
        assert splits.groups_on_two_sides(frame, sides) == 0
    pd.testing.assert_series_equal(split(frame, mode, seed=seed), sides)


part = st.integers(1, 20)


@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.integers(3, 60), min_size=2, max_size=5),
    parts=st.tuples(part, part, part),
    seed=st.integers(0, 2**31),
)
def test_image_split_needs_one_image_of_each_class_per_side(counts, parts, seed):
    frame = table([(label, 1) for label, count in enumerate(counts) for _ in range(count)])
    fractions = tuple(part / sum(parts) for part in parts)
    sides = split(frame, "image", fractions, seed)
    for side, part in zip(SPLITS, fractions, strict=True):
        share = frame["label"][sides == side].value_counts()
        assert len(share) == len(counts)
        for label, count in enumerate(counts):
            # Rounded by at most one image on each side, and never none.
            assert abs(share[label] - part * count) <= 2


def test_image_split_leaks_and_takes_any_fractions():
    frame = two_classes(4)
    assert splits.groups_on_two_sides(frame, split(frame, "image")) > 20
    sides = pd.Series(["train", "train", "val", "test"] * 40)
    assert splits.groups_on_two_sides(frame, sides) == 40
    sides = split(table([(0, 100), (1, 100)]), "image", (0.61, 0.2, 0.19))
    assert sides.value_counts().to_dict() == {"train": 122, "val": 40, "test": 38}


@pytest.mark.parametrize("mode", ["grouped", "image"])
def test_seeds_differ_and_a_side_may_be_empty(mode):
    frame = two_classes(2)
    assert not split(frame, mode).equals(split(frame, mode, seed=1))
    for fractions, empty in (((0.8, 0.2, 0), "test"), ((0.8, 0, 0.2), "val")):
        sides = split(frame, mode, fractions)
        assert empty not in set(sides)
        assert (sides == "train").mean() == pytest.approx(0.8)
    everything = split(table([(0, 1), (1, 1)]), mode, (1, 0, 0))
    assert everything.tolist() == ["train", "train"]


def test_official_split_is_the_column():
    frame = table([(0, 3), (1, 3)]).assign(split=["train", "val", "test"] * 2)
    assert split(frame, "official").tolist() == frame["split"].tolist()
    with pytest.raises(ConfigError, match="split: must be grouped or image, .* but got official"):
        split(frame.drop(columns="split"), "official")
    without = frame.assign(split=["train", "val", "test", "train", "test", "test"])
    with pytest.raises(DataError, match="class mole has no image in val"):
        split(without, "official")


@pytest.mark.parametrize(
    ("fractions", "folds"),
    [
        ((0.6, 0.2, 0.2), (3, 1, 1)),
        ((0.8, 0.1, 0.1), (8, 1, 1)),
        ((0.7, 0.15, 0.15), (14, 3, 3)),
        ((0.75, 0.125, 0.125), (6, 1, 1)),
        ((0.334, 0.333, 0.333), (1, 1, 1)),
        ((0.5, 0.5, 0), (1, 1, 0)),
        ((1, 0, 0), (1, 0, 0)),
    ],
)
def test_fewest_folds(fractions, folds):
    assert tuple(splits.fold_counts(splits.check_fractions(fractions)).values()) == folds


@pytest.mark.parametrize(
    ("fractions", "problem"),
    [
        ((0.6, 0.2, 0.1), "must add up to 1, but .* add up to 0.9"),
        ((1.2, -0.1, -0.1), "must be three parts"),
        ((0.5, 0.5), "must be three parts"),
        ((float("nan"), 0.5, 0.5), "must be three parts"),
        ((0, 0.5, 0.5), "must leave something to train on"),
        ((0.61, 0.2, 0.19), "must be multiples of 1/n with n up to 20"),
        ((0.9995, 0.0005, 0), "must be multiples of 1/n"),
    ],
)
def test_invalid_fractions(fractions, problem):
    with pytest.raises(ConfigError, match=f"^fractions: {problem}"):
        split(table([(0, 30), (1, 30)]), "grouped", fractions)


FEW, TOO_FEW = [(0, 1)] * 10, "fewer than the 3"


@pytest.mark.parametrize(
    ("groups", "mode", "fractions", "problem"),
    [
        (FEW + [(1, 5)] * 2, "grouped", FRACTIONS, f"class mole has 2 groups, {TOO_FEW}"),
        (FEW + [(1, 1)] * 2, "image", FRACTIONS, f"class mole has 2 images, {TOO_FEW}"),
        ([(0, 1), (1, 1)] * 4, "grouped", (0.8, 0.1, 0.1), "8 groups are too few for the 10 folds"),
    ],
)
def test_too_few_images(groups, mode, fractions, problem):
    with pytest.raises(DataError, match=problem):
        split(table(groups), mode, fractions)


def rare_within_patients() -> pd.DataFrame:
    """Patients of a frequent class, of whom nine have rare ones too."""
    frames = [table([(0, 3)] * 60)]
    for label, patients in enumerate(("g1 g2 g3", "g3 g4 g5", "g5 g6 g7", "g7 g8 g9"), 1):
        rows = pd.DataFrame({"label": label, "group": patients.split()})
        frames.append(rows.assign(image_id=[f"r{label}{n}" for n in range(3)]))
    return pd.concat(frames, ignore_index=True)


LARGE = [(label, 2) for label in range(3) for _ in range(60)]
RARE = [(label, images) for label in range(3, 7) for images in (1, 2, 4)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("frame", "fractions", "tolerance"),
    [
        (table([(0, 2)] * 40 + [(1, 2)] * 3), (0.8, 0.1, 0.1), 0.05),  # three groups are enough
        (table(LARGE + RARE), FRACTIONS, 0.05),
        (rare_within_patients(), FRACTIONS, 0.1),
    ],
    ids=["three groups", "several classes", "within patients"],
)
def test_rare_classes_are_on_every_side(frame, fractions, tolerance, seed):
    sides = split(frame, "grouped", fractions, seed)
    assert frame["label"].groupby(sides).nunique().tolist() == [frame["label"].nunique()] * 3
    assert splits.groups_on_two_sides(frame, sides) == 0
    assert (sides == "train").mean() == pytest.approx(fractions[0], abs=tolerance)


def test_stored_split_is_the_split_and_a_damaged_one_is_computed_again(tmp_path, monkeypatch):
    frame, folder = two_classes(60), tmp_path / "splits"
    arguments = "grouped", FRACTIONS, 0, CLASSES, folder
    first = splits.load(frame, *arguments)
    pd.testing.assert_series_equal(first, split(frame, "grouped"))
    (file,) = folder.iterdir()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "sklearn", None)  # its import takes most of a second
        pd.testing.assert_series_equal(splits.load(frame, *arguments), first)
    assert list(folder.iterdir()) == [file]
    content = file.read_bytes()
    damaged = [content[part] for part in (slice(0), slice(5), slice(-1), slice(1, None))]
    damaged += [bytes([content[0] ^ 1]) + content[1:], content + b"x", b"x" * 99]
    for bad in damaged:
        file.write_bytes(bad)
        pd.testing.assert_series_equal(splits.load(frame, *arguments), first)
        assert file.read_bytes() == content
    swapped = frame.assign(label=1 - frame["label"])
    assert set(splits.load(swapped, *arguments)) == set(SPLITS)
    assert len(list(folder.iterdir())) == 2


def test_real_lesions_and_patients(shared_data):
    frame = HAM10000(shared_data / "ham10000").manifest().frame
    for mode, fractions in (("grouped", FRACTIONS), ("image", FRACTIONS), ("image", (0.8, 0.2, 0))):
        sides = split(frame, mode, fractions)
        shares = pd.crosstab(frame["label"], sides, normalize="index")
        for side in set(sides):
            part = fractions[SPLITS.index(side)]
            assert (sides == side).mean() == pytest.approx(part, abs=0.002)
            assert np.abs(shares[side] - part).max() < 0.02
        leaking = splits.groups_on_two_sides(frame, sides)
        assert leaking == 0 if mode == "grouped" else leaking > 500
        if mode == "grouped":
            out, into = both_arms(frame, sides, 0)
            assert (out == UNUSED).sum() == (into == UNUSED).sum() > 300
            assert (out == "train").sum() == (into == "train").sum() == (sides == "train").sum()
    patients = SIIM2020(shared_data / "siim2020").manifest().frame
    sides = split(patients, "grouped")
    assert splits.groups_on_two_sides(patients, sides) == 0
    assert np.abs(patients["label"].groupby(sides).mean() - 426 / 2980).max() < 0.01


@st.composite
def grouped_splits(draw) -> tuple[pd.DataFrame, pd.Series]:
    """A shuffled frame of two to four classes and its grouped split."""
    frame = draw(frames(least=6, most_classes=4))
    frame = frame.sample(frac=1, random_state=draw(st.integers(0, 99)), ignore_index=True)
    return frame, split(frame, "grouped", seed=draw(st.integers(0, 99)))


def both_arms(frame: pd.DataFrame, sides: pd.Series, seed: int) -> list[pd.Series]:
    return [arrange_siblings(frame, sides, arm, seed, CLASSES) for arm in ("out", "in")]


@settings(max_examples=25, deadline=None)
@given(case=grouped_splits(), seed=st.integers(0, 2**31))
def test_arms_differ_in_the_siblings_and_as_many_images_of_their_class(case, seed):
    frame, sides = case
    try:
        out, into = both_arms(frame, sides, seed)
    except DataError:
        assume(False)  # too small for two arms: tested below
    siblings = (sides == "test") & (out != "test")

    for arm in (out, into):
        assert ((arm == "val") == (sides == "val")).all()
        assert ((arm == "test") == (out == "test")).all()
        assert arm[sides == "train"].isin(["train", UNUSED]).all()
    # One image of each test lesion is tested, whatever its number of images.
    assert set(frame["group"][out == "test"]) == set(frame["group"][sides == "test"])
    assert frame["group"][out == "test"].is_unique

    assert (out[siblings] == UNUSED).all()
    assert (out[~siblings] == sides[~siblings]).all()
    assert (into[siblings] == "train").all()
    assert not set(frame["group"][out == "train"]) & set(frame["group"][out == "test"])
    counts = [frame["label"][arm == "train"].value_counts().sort_index() for arm in (out, into)]
    pd.testing.assert_series_equal(*counts)
    assert (into == UNUSED).sum() == siblings.sum()

    leaking = frame["group"][siblings].nunique()
    assert splits.groups_on_two_sides(frame, out) == 0
    assert splits.groups_on_two_sides(frame, into) == leaking
    marked = splits.has_sibling(frame, sides)
    assert marked[out == "test"].sum() == leaking
    assert set(frame["group"][marked]) == set(frame["group"][siblings])

    for arm, again in zip((out, into), both_arms(frame, sides, seed), strict=True):
        pd.testing.assert_series_equal(arm, again)


def test_another_seed_tests_other_images():
    frame = pd.DataFrame({"label": 0, "group": np.repeat(np.arange(40), 3)})
    sides = pd.Series(np.where(frame["group"] < 20, "train", "test"))
    first, second = (arrange_siblings(frame, sides, "out", seed, CLASSES) for seed in (0, 1))
    assert (first == "test").sum() == (second == "test").sum() == 20
    assert ((first == "test") != (second == "test")).any()


@pytest.mark.parametrize(
    ("labels", "groups", "sides", "problem"),
    [
        ([0] * 2, "xy", ["train", "test"], "nothing that could leak"),
        ([0] * 4, "xyyy", ["train"] + ["test"] * 3, "class nevus has 2 other photographs"),
        ([0, 1, 0, 1, 1, 1], "wxyyyy", ["train"] * 2 + ["test"] * 4, "class (nevus|mole) has"),
    ],
)
@pytest.mark.parametrize("arm", ["out", "in"])
def test_arms_that_are_not_comparable_are_refused(arm, labels, groups, sides, problem):
    frame = pd.DataFrame({"label": labels, "group": list(groups)})
    with pytest.raises(DataError, match=problem):
        arrange_siblings(frame, pd.Series(sides), arm, 0, CLASSES)
