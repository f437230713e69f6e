import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from src.data import splits as leakage
from src.data import splits
from src.data.ham10000 import HAM10000
from src.data.splits import UNUSED
from src.core.errors import ConfigError
from src.core.errors import DataError

FRACTIONS = (0.6, 0.2, 0.2)
CLASSES = tuple("abcd")


@st.composite
def split_frames(draw) -> tuple[pd.DataFrame, pd.Series]:
    """A frame of two to four classes, lesions of one to four images, and its grouped split."""
    sizes = st.lists(st.integers(1, 4), min_size=6, max_size=15)
    rows = [
        (label, f"{label}-{number}")
        for label, lesions in enumerate(draw(st.lists(sizes, min_size=2, max_size=4)))
        for number, images in enumerate(lesions)
        for _ in range(images)
    ]
    frame = pd.DataFrame(rows, columns=["label", "group"])
    frame = frame.assign(image_id=[f"i{row}" for row in range(len(frame))])
    frame = frame.sample(frac=1, random_state=draw(st.integers(0, 99)), ignore_index=True)
    return frame, splits.split(frame, "grouped", FRACTIONS, draw(st.integers(0, 99)))


def both_arms(frame: pd.DataFrame, sides: pd.Series, seed: int) -> tuple[pd.Series, pd.Series]:
    try:
        arms = [leakage.arrange(frame, sides, arm, seed, CLASSES) for arm in ("out", "in")]
    except DataError:
        assume(False)  # too small for two arms; what is said then is tested below
    return arms[0], arms[1]


@settings(max_examples=60, deadline=None)
@given(given_split=split_frames(), seed=st.integers(0, 2**31))
def test_the_arms_differ_in_the_siblings_and_in_as_many_others_of_their_class(given_split, seed):
    frame, sides = given_split
    out, into = both_arms(frame, sides, seed)
    siblings = (sides == "test") & (out != "test")

    for arm in (out, into):  # what neither arm may touch
        assert ((arm == "val") == (sides == "val")).all()
        assert ((arm == "test") == (out == "test")).all()
        assert arm[sides == "train"].isin(["train", UNUSED]).all()
    # one image of each test lesion is tested, whatever its number of images
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
    marked = leakage.has_sibling(frame, sides)
    assert marked[out == "test"].sum() == leaking
    assert set(frame["group"][marked]) == set(frame["group"][siblings])


@settings(max_examples=20, deadline=None)
@given(given_split=split_frames(), seed=st.integers(0, 2**31))
def test_the_same_seed_draws_the_same(given_split, seed):
    first, second = (both_arms(*given_split, seed) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        pd.testing.assert_series_equal(one, other)


def test_another_seed_tests_other_photographs():
    frame = pd.DataFrame({"label": 0, "group": np.repeat(np.arange(40), 3)})
    sides = pd.Series(np.where(frame["group"] < 20, "train", "test"))
    first, second = (leakage.arrange(frame, sides, "out", seed, CLASSES) for seed in (0, 1))
    assert (first == "test").sum() == (second == "test").sum() == 20
    assert ((first == "test") != (second == "test")).any()


@pytest.mark.parametrize(
    ("labels", "groups", "sides", "problem"),
    [
        ([0, 0], ["x", "y"], ["train", "test"], "nothing that could leak"),
        ([0, 0, 0, 0], list("xyyy"), ["train"] + ["test"] * 3, "class a has 2 other photographs"),
        ([0, 1, 0, 1, 1, 1], list("wxyyyy"), ["train", "train"] + ["test"] * 4, "class [ab] has"),
    ],
)
@pytest.mark.parametrize("arm", ["out", "in"])
def test_arms_that_would_not_compare_are_refused_alike(arm, labels, groups, sides, problem):
    frame = pd.DataFrame({"label": labels, "group": groups})
    with pytest.raises(DataError, match=problem):
        leakage.arrange(frame, pd.Series(sides), arm, 0, CLASSES)


@pytest.mark.parametrize(("mode", "grouped_by"), [("image", "lesion"), ("official", "lesion"), ("grouped", "image")])
def test_only_a_split_by_known_lesions_has_siblings(mode, grouped_by):
    with pytest.raises(ConfigError, match="siblings") as refused:
        leakage.check(mode, grouped_by)
    assert refused.value.key == "siblings"


def test_real_lesions_have_as_many_training_images_in_both_arms(shared_data):
    manifest = HAM10000(shared_data / "ham10000").manifest()
    sides = splits.split(manifest.frame, "grouped", FRACTIONS, 0, manifest.classes)
    out, into = (leakage.arrange(manifest.frame, sides, arm, 0, manifest.classes) for arm in ("out", "in"))
    several = manifest.frame["group"][sides == "test"].value_counts()
    siblings = int((several - 1).sum())
    assert (out == UNUSED).sum() == (into == UNUSED).sum() == siblings > 300
    assert (out == "train").sum() == (into == "train").sum() == (sides == "train").sum()
    assert splits.groups_on_two_sides(manifest.frame, into) == (several > 1).sum()
