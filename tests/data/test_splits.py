import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data import splits
from src.data.ham10000 import HAM10000
from src.data.siim2020 import SIIM2020
from src.data.source import SPLITS
from src.core.errors import ConfigError
from src.core.errors import DataError

FRACTIONS = (0.6, 0.2, 0.2)


def table(groups: list[tuple[int, int]]) -> pd.DataFrame:
    """A frame of groups, each given by its label and its number of images."""
    rows = [(label, f"g{number}") for number, (label, images) in enumerate(groups) for _ in range(images)]
    frame = pd.DataFrame(rows, columns=["label", "group"])
    return frame.assign(image_id=[f"i{row:04d}" for row in range(len(frame))])


@st.composite
def frames(draw, least: int = 5) -> pd.DataFrame:
    """Two to five classes, each with at least `least` groups of one to six images."""
    sizes = st.lists(st.integers(1, 6), min_size=least, max_size=15)
    classes = draw(st.lists(sizes, min_size=2, max_size=5))
    return table([(label, images) for label, groups in enumerate(classes) for images in groups])


@settings(max_examples=60, deadline=None)
@given(frame=frames(), mode=st.sampled_from(["grouped", "image"]), seed=st.integers(0, 2**31))
def test_every_image_on_one_side_and_every_class_on_every_side(frame, mode, seed):
    sides = splits.split(frame, mode, FRACTIONS, seed)
    assert sides.index.equals(frame.index)
    assert set(sides) == set(SPLITS)
    present = frame.groupby(sides)["label"].nunique()
    assert (present == frame["label"].nunique()).all()
    if mode == "grouped":
        assert (sides.groupby(frame["group"]).nunique() == 1).all()
        assert splits.groups_on_two_sides(frame, sides) == 0
    pd.testing.assert_series_equal(splits.split(frame, mode, FRACTIONS, seed), sides)


@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.integers(3, 60), min_size=2, max_size=5),
    parts=st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 20)),
    seed=st.integers(0, 2**31),
)
def test_an_image_split_needs_only_an_image_of_each_class_a_side(counts, parts, seed):
    frame = table([(label, 1) for label, count in enumerate(counts) for _ in range(count)])
    fractions = tuple(part / sum(parts) for part in parts)
    sides = splits.split(frame, "image", fractions, seed)
    for side, part in zip(SPLITS, fractions, strict=True):
        share = frame["label"][sides == side].value_counts()
        assert len(share) == len(counts)
        for label, count in enumerate(counts):
            # Rounded by at most one image on each side, and never none.
            assert abs(share[label] - part * count) <= 2


def test_another_seed_is_another_split():
    frame = table([(label, 2) for label in (0, 1) for _ in range(20)])
    for mode in ("grouped", "image"):
        assert not splits.split(frame, mode, FRACTIONS, 0).equals(splits.split(frame, mode, FRACTIONS, 1))


def test_an_image_split_leaks_and_a_grouped_one_does_not():
    frame = table([(label, 4) for label in (0, 1) for _ in range(20)])
    assert splits.groups_on_two_sides(frame, splits.split(frame, "image", FRACTIONS, 0)) > 20
    sides = pd.Series(["train", "train", "val", "test"] * 40)
    assert splits.groups_on_two_sides(frame, sides) == 40


@pytest.mark.parametrize(("fractions", "empty"), [((0.8, 0.2, 0), "test"), ((0.8, 0, 0.2), "val")])
@pytest.mark.parametrize("mode", ["grouped", "image"])
def test_a_side_may_be_empty(mode, fractions, empty):
    frame = table([(label, 2) for label in (0, 1) for _ in range(20)])
    sides = splits.split(frame, mode, fractions, 0)
    assert empty not in set(sides)
    assert (sides == "train").mean() == pytest.approx(0.8)


@pytest.mark.parametrize("mode", ["grouped", "image"])
def test_everything_may_train(mode):
    frame = table([(0, 1), (1, 1)])
    assert splits.split(frame, mode, (1, 0, 0), 0).tolist() == ["train", "train"]


def test_official_is_the_owners_column():
    frame = table([(0, 3), (1, 3)]).assign(split=["train", "val", "test"] * 2)
    assert splits.split(frame, "official", FRACTIONS, 0).tolist() == frame["split"].tolist()
    with pytest.raises(ConfigError, match="split: must be grouped or image, .* but got official"):
        splits.split(frame.drop(columns="split"), "official", FRACTIONS, 0)
    without = frame.assign(split=["train", "val", "test", "train", "test", "test"])
    with pytest.raises(DataError, match="class mole has no image in val"):
        splits.split(without, "official", FRACTIONS, 0, ["nevus", "mole"])


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
def test_impossible_fractions(fractions, problem):
    frame = table([(0, 30), (1, 30)])
    with pytest.raises(ConfigError, match=f"^fractions: {problem}"):
        splits.split(frame, "grouped", fractions, 0)


def test_an_image_split_takes_any_fractions():
    frame = table([(0, 100), (1, 100)])
    sides = splits.split(frame, "image", (0.61, 0.2, 0.19), 0)
    assert sides.value_counts().to_dict() == {"train": 122, "val": 40, "test": 38}


def test_a_class_with_fewer_groups_than_sides_is_named():
    frame = table([(0, 1)] * 10 + [(1, 5), (1, 5)])
    with pytest.raises(DataError, match="class mole has 2 groups, fewer than the 3 sides of the split"):
        splits.split(frame, "grouped", FRACTIONS, 0, ["nevus", "mole"])
    frame = table([(0, 1)] * 10 + [(1, 1), (1, 1)])
    with pytest.raises(DataError, match="class mole has 2 images, fewer than the 3 sides"):
        splits.split(frame, "image", FRACTIONS, 0, ["nevus", "mole"])


def test_three_groups_of_a_class_are_enough():
    frame = table([(0, 2)] * 40 + [(1, 2)] * 3)
    for seed in range(10):
        sides = splits.split(frame, "grouped", (0.8, 0.1, 0.1), seed)
        assert frame["label"].groupby(sides).nunique().tolist() == [2, 2, 2]


def test_too_few_images_for_the_folds():
    frame = table([(0, 1)] * 4 + [(1, 1)] * 4)
    with pytest.raises(DataError, match="8 images in 8 groups are too few for the 10 folds"):
        splits.split(frame, "grouped", (0.8, 0.1, 0.1), 0)


def test_a_kept_split_is_the_split(tmp_path):
    frame = table([(label, 2) for label in (0, 1) for _ in range(20)])
    first = splits.load(frame, "grouped", FRACTIONS, 0, tmp_path / "splits")
    pd.testing.assert_series_equal(first, splits.split(frame, "grouped", FRACTIONS, 0))
    (kept,) = (tmp_path / "splits").iterdir()
    pd.testing.assert_series_equal(splits.load(frame, "grouped", FRACTIONS, 0, tmp_path / "splits"), first)
    assert list((tmp_path / "splits").iterdir()) == [kept]
    other = splits.load(frame.assign(label=1 - frame["label"]), "grouped", FRACTIONS, 0, tmp_path / "splits")
    assert len(list((tmp_path / "splits").iterdir())) == 2
    assert set(other) == set(SPLITS)


@pytest.mark.parametrize("fractions", [(0.6, 0.2, 0.2), (0.8, 0.2, 0)])
@pytest.mark.parametrize("mode", ["grouped", "image"])
def test_real_lesions(shared_data, mode, fractions):
    frame = HAM10000(shared_data / "ham10000").manifest().frame
    sides = splits.split(frame, mode, fractions, 0)
    shares = pd.crosstab(frame["label"], sides, normalize="index")
    for side, part in zip(SPLITS, fractions, strict=True):
        if part > 0:
            assert (sides == side).mean() == pytest.approx(part, abs=0.002)
            assert np.abs(shares[side] - part).max() < 0.02
    leaking = splits.groups_on_two_sides(frame, sides)
    assert leaking == 0 if mode == "grouped" else leaking > 500


def test_real_patients(shared_data):
    frame = SIIM2020(shared_data / "siim2020").manifest().frame
    sides = splits.split(frame, "grouped", FRACTIONS, 0)
    assert splits.groups_on_two_sides(frame, sides) == 0
    assert np.abs(frame["label"].groupby(sides).mean() - 426 / 2980).max() < 0.01
