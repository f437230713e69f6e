import numpy as np
import pandas as pd
import pytest

from src.core.errors import ConfigError
from src.metrics.bootstrap import intervals
from src.metrics.paired import mcnemar, paired_difference
from src.reporting.uncertainty import PAIRS, compare_neighbours, drops, tied_groups

MEMBERS = [("r1", "tiny"), ("r2", "small"), ("r3", "middle"), ("r4", "large")]


def answers(wrong: int, images: int = 400, prefix: str = "i") -> list[pd.DataFrame]:
    """One seed, two classes in turn; the first `wrong` images are answered wrong."""
    target = np.arange(images) % 2
    said = np.where(np.arange(images) < wrong, 1 - target, target)
    table = pd.DataFrame(
        {"image_id": [f"{prefix}{number}" for number in range(images)], "group": np.arange(images)}
    )
    names = np.array(["nv", "mel"])
    return [table.assign(label=names[target], **{"p/nv": 1.0 - said, "p/mel": said * 1.0})]


@pytest.fixture
def predictions() -> dict[str, list[pd.DataFrame]]:
    # tiny is far worse; small, middle and large get all but a few images the same
    return {"r1": answers(200), "r2": answers(103), "r3": answers(102), "r4": answers(100)}


def test_pairs_hold_the_tests_and_their_correction(
    predictions: dict[str, list[pd.DataFrame]],
) -> None:
    pairs = compare_neighbours(predictions, MEMBERS, "accuracy", "test", seed=3)
    assert list(pairs) == PAIRS
    assert pairs["run_a"].tolist() == ["r2", "r3", "r4"]
    assert pairs["label_b"].tolist() == ["tiny", "small", "middle"]
    assert pairs["difference"].tolist() == pytest.approx([97 / 400, 1 / 400, 2 / 400])
    for row in pairs.itertuples():
        alone = paired_difference(
            predictions[row.run_a], predictions[row.run_b], "accuracy", seed=3
        )
        assert (row.difference, row.low, row.high, row.p_bootstrap) == alone
        assert row.p_mcnemar == mcnemar(predictions[row.run_a], predictions[row.run_b]).p
    # Holm by hand: the smallest is multiplied by three, the next by two and so on, and none falls
    first, third, second = pairs["p_bootstrap"]  # two images that differ are surer than one
    expected = [3 * first, max(2 * second, third), 2 * second]
    assert pairs["p_adjusted"].tolist() == pytest.approx([min(p, 1) for p in expected])
    assert pairs["tied"].tolist() == [False, True, True]
    assert pairs["tied"].dtype == bool


def test_the_correction_can_tie_what_one_test_would_tell_apart() -> None:
    # neighbours differ by 5 images, each drawn 0 times with probability 1/e: p is about 2 / e^5 =
    # 0.013, and eight tests make it 0.11
    wrong = [100 + 5 * number for number in range(9)]
    members = [(f"r{number}", f"m{number}") for number in range(9)]
    told = {f"r{number}": answers(number_wrong) for number, number_wrong in enumerate(wrong)}
    many = compare_neighbours(told, members, "accuracy", "val", samples=4000)
    one = compare_neighbours(told, members[:2], "accuracy", "val", samples=4000)
    assert many["p_bootstrap"].tolist() == pytest.approx([2 * np.exp(-5)] * 8, rel=0.5)
    assert not one["tied"].any()
    assert one["p_adjusted"][0] == one["p_bootstrap"][0]
    loose = compare_neighbours(told, members, "accuracy", "val", samples=4000, level=0.5)
    assert not loose["tied"].any()
    assert (loose["p_adjusted"] == many["p_adjusted"]).all()
    assert many["tied"].all()


@pytest.mark.parametrize(
    ("asked", "level", "drawn"),
    [(10, 0.95, 480), (10, 0.99, 2400), (10, 0.9, 240), (10, 0.5, 48), (1500, 0.95, 1500)],
)
def test_few_samples_tie_nothing_by_themselves(
    predictions: dict[str, list[pd.DataFrame]], asked: int, level: float, drawn: int
) -> None:
    # 8 * 3 pairs / (1 - level); tiny is worse in 97 of 400 images, so no sample says otherwise: p
    # is the smallest one
    pairs = compare_neighbours(predictions, MEMBERS, "accuracy", "test", asked, level=level)
    assert pairs["p_bootstrap"][0] == pytest.approx(2 / (drawn + 1))
    assert pairs["p_adjusted"][0] == pytest.approx(6 / (drawn + 1))
    assert not pairs["tied"][0]
    same = paired_difference(predictions["r2"], predictions["r1"], "accuracy", drawn, level=level)
    assert (pairs["low"][0], pairs["high"][0]) == (same.low, same.high)


def test_pairs_that_cannot_be_compared_stay_as_rows(
    predictions: dict[str, list[pd.DataFrame]],
) -> None:
    del predictions["r1"]
    predictions["r4"] = answers(100, prefix="other")
    pairs = compare_neighbours(predictions, MEMBERS, "accuracy", "test")
    assert pairs["difference"].notna().tolist() == [False, True, False]
    assert pairs["p_adjusted"][1] == pairs["p_bootstrap"][1]  # one test, nothing to correct
    assert pairs["tied"].tolist() == [False, True, False]


def test_fronts_of_one_or_none() -> None:
    for members in ([], MEMBERS[:1]):
        pairs = compare_neighbours({}, members, "accuracy", "test")
        assert list(pairs) == PAIRS
        assert pairs.empty
        assert tied_groups(pairs) == []


def test_bad_input_is_named(predictions: dict[str, list[pd.DataFrame]]) -> None:
    with pytest.raises(ConfigError, match="'acuracy'"):
        compare_neighbours(predictions, MEMBERS, "acuracy", "test")
    with pytest.raises(ConfigError, match="level"):
        compare_neighbours(predictions, MEMBERS, "accuracy", "test", level=2)
    with pytest.raises(ConfigError, match="level"):
        compare_neighbours(predictions, MEMBERS, "accuracy", "test", level=1.0)
    with pytest.raises(ConfigError, match="samples.*got -1"):
        compare_neighbours(predictions, MEMBERS, "accuracy", "test", samples=-1)
    with pytest.raises(ConfigError, match="samples"):
        drops(predictions, predictions, MEMBERS, "accuracy", samples=0)


@pytest.mark.parametrize(
    ("tied", "groups"),
    [
        ([True, True, False, True], [["a", "b", "c"], ["d", "e"]]),
        ([False] * 4, []),
        ([True] * 4, [["a", "b", "c", "d", "e"]]),
        ([False, True, False, False], [["b", "c"]]),
    ],
)
def test_ties_link_neighbours(tied: list[bool], groups: list[list[str]]) -> None:
    pairs = pd.DataFrame({"run_a": list("bcde"), "run_b": list("abcd"), "tied": tied})
    assert tied_groups(pairs) == groups
    shuffled = tied_groups(pairs.sample(frac=1, random_state=1))
    assert sorted(map(sorted, shuffled)) == groups


def test_drops_are_differences_of_independent_splits() -> None:
    val, test = {"r1": answers(40, 400, "v")}, {"r1": answers(75, 300, "t")}
    found = drops(val, test, [("r1", "tiny")], "accuracy", samples=20_000)
    assert list(found) == ["run_id", "label", "metric", "val", "test", "drop", "low", "high"]
    row = found.iloc[0]
    assert [row["val"], row["test"], row["drop"]] == pytest.approx([0.9, 0.75, 0.15])
    # two independent rates: their variances add up
    half = 1.96 * np.sqrt(0.9 * 0.1 / 400 + 0.75 * 0.25 / 300)
    assert [row["low"], row["high"]] == pytest.approx([0.15 - half, 0.15 + half], abs=0.006)


def test_a_drop_takes_the_same_seeds_on_both_splits() -> None:
    # seeds differ by much, and each loses the same: the spread of the seeds is not in the drop
    wrong = [0, 300, 600]
    val = {"r1": [answers(lost, 1000, "v")[0] for lost in wrong]}
    test = {"r1": [answers(lost + 50, 1000, "t")[0] for lost in wrong]}
    row = drops(val, test, [("r1", "tiny")], "accuracy").iloc[0]
    assert row["drop"] == pytest.approx(0.05)
    of_seeds = intervals(val["r1"], ["accuracy"]).iloc[0]
    assert row["high"] - row["low"] < (of_seeds["high"] - of_seeds["low"]) / 3
    # other numbers of seeds can't be matched
    apart = drops(val, {"r1": test["r1"][:2]}, [("r1", "tiny")], "accuracy").iloc[0]
    assert apart["high"] - apart["low"] > 3 * (row["high"] - row["low"])


def test_a_member_without_a_split_keeps_its_row() -> None:
    found = drops({"r1": answers(40)}, {}, [("r1", "tiny"), ("r2", "small")], "accuracy")
    assert found["val"].tolist() == pytest.approx([0.9, np.nan], nan_ok=True)
    assert found[["test", "drop", "low", "high"]].isna().all(axis=None)


def test_all_is_decided_by_the_seed(predictions: dict[str, list[pd.DataFrame]]) -> None:
    def once(seed: int) -> list[pd.DataFrame]:
        return [
            compare_neighbours(predictions, MEMBERS, "balanced_accuracy", "test", 200, seed),
            drops(predictions, predictions, MEMBERS, "balanced_accuracy", 200, seed),
        ]

    for first, second, other in zip(once(1), once(1), once(2), strict=True):
        pd.testing.assert_frame_equal(first, second)
        assert not first.equals(other)
