"""Intervals of drops and tests of neighbours: by hand, and by the tests of single pairs."""

import numpy as np
import pandas as pd
import pytest
from clinical_cases import made_up
from sklearn.metrics import roc_auc_score, roc_curve

from src.core.errors import ConfigError
from src.metrics.bootstrap import intervals
from src.metrics.paired import mcnemar, paired_difference
from src.reporting.uncertainty import (
    DROPS,
    PAIRS,
    ROC,
    _intervals,
    compare_neighbours,
    drops,
    roc_curves,
    tied_groups,
)

MEMBERS = [("r1", "tiny"), ("r2", "small"), ("r3", "middle"), ("r4", "large")]
ONE = MEMBERS[:1]


def answers(wrong: int, images: int = 400, prefix: str = "i") -> list[pd.DataFrame]:
    """One seed, two classes in turn; the first `wrong` images are answered wrong."""
    target, number = np.arange(images) % 2, np.arange(images)
    predicted = np.where(number < wrong, 1 - target, target)
    ids = [f"{prefix}{at}" for at in number]
    table = pd.DataFrame({"image_id": ids, "group": number})
    scores = {"p/nv": 1.0 - predicted, "p/mel": predicted * 1.0}
    return [table.assign(label=np.array(["nv", "mel"])[target], **scores)]


# tiny is far worse; small, middle and large get all but a few images the same
PREDICTIONS = {"r1": answers(200), "r2": answers(103), "r3": answers(102), "r4": answers(100)}


def test_pairs_hold_the_tests_and_their_correction() -> None:
    pairs = compare_neighbours(PREDICTIONS, MEMBERS, "accuracy", "test", seed=3)
    assert list(pairs) == PAIRS
    assert pairs["run_a"].tolist() == ["r2", "r3", "r4"]
    assert pairs["label_b"].tolist() == ["tiny", "small", "middle"]
    assert pairs["difference"].tolist() == pytest.approx([97 / 400, 1 / 400, 2 / 400])
    for row in pairs.itertuples():
        both = PREDICTIONS[row.run_a], PREDICTIONS[row.run_b]
        alone = paired_difference(*both, "accuracy", seed=3)
        assert (row.difference, row.low, row.high, row.p_bootstrap) == alone
        assert row.p_mcnemar == mcnemar(both[0][0], both[1][0]).p
    # Holm by hand: the smallest is multiplied by three, the next by two and so on, and none falls
    first, third, second = pairs["p_bootstrap"]  # two images that differ are surer than one
    expected = [3 * first, max(2 * second, third), 2 * second]
    assert pairs["p_adjusted"].tolist() == pytest.approx([min(p, 1) for p in expected])
    assert pairs["tied"].tolist() == [False, True, True]
    assert pairs["tied"].dtype == bool


def test_the_correction_ties_what_one_test_would_separate() -> None:
    # neighbours differ by 7 images, of which 1 / e^7 of the samples draw none: p is the sign
    # test's, 2 / 2^7 = 0.016, and eight tests make it 0.125
    members = [(f"r{number}", f"m{number}") for number in range(9)]
    runs = {f"r{number}": answers(100 + 7 * number) for number in range(9)}
    many = compare_neighbours(runs, members, "accuracy", "val", samples=3000)
    one = compare_neighbours(runs, members[:2], "accuracy", "val", samples=3000)
    assert many["p_bootstrap"].tolist() == pytest.approx([2 / 2**7] * 8)
    assert not one["tied"].any()
    assert one["p_adjusted"][0] == one["p_bootstrap"][0]
    assert many["tied"].all()
    loose = compare_neighbours(runs, members, "accuracy", "val", samples=3000, level=0.5)
    assert not loose["tied"].any()
    assert (loose["p_adjusted"] == many["p_adjusted"]).all()


@pytest.mark.parametrize(
    ("samples", "level", "drawn"),
    [(10, 0.95, 480), (10, 0.99, 2400), (10, 0.9, 240), (10, 0.5, 48), (1500, 0.95, 1500)],
)
def test_few_samples_alone_tie_nothing(samples: int, level: float, drawn: int) -> None:
    # 8 * 3 pairs / (1 - level); tiny is worse in 97 of 400 images, so that no sample contradicts: p
    # is the smallest one
    how = ("accuracy", "test", samples)
    row = compare_neighbours(PREDICTIONS, MEMBERS, *how, level=level).iloc[0]
    assert row["p_bootstrap"] == pytest.approx(2 / (drawn + 1))
    assert row["p_adjusted"] == pytest.approx(6 / (drawn + 1))
    assert not row["tied"]
    both = PREDICTIONS["r2"], PREDICTIONS["r1"]
    same = paired_difference(*both, "accuracy", drawn, level=level)
    assert (row["low"], row["high"]) == (same.low, same.high)


def test_pairs_that_cannot_be_compared_stay_as_rows() -> None:
    runs = {**PREDICTIONS, "r1": answers(200, prefix="first"), "r4": answers(100, prefix="other")}
    pairs = compare_neighbours(runs, MEMBERS, "accuracy", "test", 500)
    assert pairs["difference"].notna().tolist() == [False, True, False]
    assert pairs["p_adjusted"][1] == pairs["p_bootstrap"][1]  # one test, nothing to correct
    assert pairs["tied"].tolist() == [False, True, False]
    for members in ([], ONE):
        none = compare_neighbours({}, members, "accuracy", "test")
        assert list(none) == PAIRS
        assert none.empty
        assert tied_groups(none) == []


@pytest.mark.parametrize(
    ("metric", "values", "message"),
    [
        ("acuracy", {}, "'acuracy'"),
        ("accuracy", {"level": 2}, "level"),
        ("accuracy", {"level": 1.0}, "level"),
        ("accuracy", {"samples": -1}, "samples.*got -1"),
    ],
)
def test_bad_input_is_named(metric: str, values: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compare_neighbours(PREDICTIONS, MEMBERS, metric, "test", **values)
    with pytest.raises(ConfigError, match=message):
        drops(PREDICTIONS, PREDICTIONS, MEMBERS, metric, **values)


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
    table = drops(val, test, ONE, "accuracy", samples=20_000)
    assert list(table) == DROPS
    row = table.iloc[0]
    assert row[["val", "test", "drop"]].tolist() == pytest.approx([0.9, 0.75, 0.15])
    # two independent rates: their variances add up
    half = 1.96 * np.sqrt(0.9 * 0.1 / 400 + 0.75 * 0.25 / 300)
    ends = [0.15 - half, 0.15 + half]
    assert row[["low", "high"]].tolist() == pytest.approx(ends, abs=0.006)


def test_a_drop_takes_the_same_seeds_on_both_splits() -> None:
    # seeds differ by much, and all lose the same: the spread of the seeds is not in the drop
    val = {"r1": [answers(wrong, 1000, "v")[0] for wrong in (0, 300, 600)]}
    test = {"r1": [answers(wrong, 1000, "t")[0] for wrong in (50, 350, 650)]}
    row = drops(val, test, ONE, "accuracy").iloc[0]
    assert row["drop"] == pytest.approx(0.05)
    of_seeds = intervals(val["r1"], ["accuracy"]).iloc[0]
    assert row["high"] - row["low"] < (of_seeds["high"] - of_seeds["low"]) / 3
    # no error on either split: no draw has a drop, which is no proof of none
    perfect = drops({"r1": answers(0, 4, "v")}, {"r1": answers(0, 4, "t")}, ONE, "accuracy").iloc[0]
    assert perfect["drop"] == 0
    assert perfect[["low", "high"]].isna().all()
    # one lesion of a class does not say how much its recall varies
    [frame] = answers(30, 400, "v")
    single = {"r1": [frame.assign(group=frame["group"].where(frame["label"] != "mel", "L"))]}
    for metric, has_none in (("balanced_accuracy", True), ("accuracy", False)):
        row_of = drops(single, {"r1": answers(30, 400, "t")}, ONE, metric).iloc[0]
        assert row_of[["low", "high"]].isna().all() == has_none
    # other numbers of seeds can't be matched
    apart = drops(val, {"r1": test["r1"][:2]}, ONE, "accuracy").iloc[0]
    assert apart["high"] - apart["low"] > 3 * (row["high"] - row["low"])


def test_recalls_of_few_lesions_have_exact_intervals() -> None:
    # 2 of 2 and 0 of 2 lesions by Clopper and Pearson: 1 - 0.025^(1 / 2) is 0.842
    rows = pd.DataFrame({"run_id": ["r1"], "label": ["m"], "chosen": ["best"], "knee": [False]})
    for wrong, ends in ((0, [1, 0.158, 1]), (4, [0, 0, 0.842])):
        frames = {"test": {"r1": answers(wrong, images=4)}}
        table, problems = _intervals(rows, frames, 200, 0, 0.95)
        rates = table.set_index("metric").loc[["recall/mel", "specificity/mel"]]
        for values in rates[["estimate", "low", "high"]].to_numpy(dtype=float):
            assert values == pytest.approx(ends, abs=5e-4)
        assert not problems


def test_the_seed_decides_everything() -> None:
    def tables(seed: int) -> list[pd.DataFrame]:
        how = ("balanced_accuracy", 200, seed)
        pairs = compare_neighbours(PREDICTIONS, MEMBERS, how[0], "test", *how[1:])
        return [pairs, drops(PREDICTIONS, PREDICTIONS, MEMBERS, *how)]

    for first, second, other in zip(tables(1), tables(1), tables(2), strict=True):
        pd.testing.assert_frame_equal(first, second)
        assert not first.equals(other)


def test_roc_curves_are_means_over_the_nets_and_agree_with_scikit_learn() -> None:
    nets, other = made_up(3), made_up(4, names=("a", "b", "c"))
    runs = {"r1": nets, "r2": nets[:1], "r3": other, "r4": [], "r5": [nets[0], made_up(5)[0]]}
    members = [(run, run.upper()) for run in runs]
    frame = roc_curves(runs, members)
    assert list(frame) == ROC
    assert frame.groupby("label")["class"].unique().map(list).to_dict() == {
        "R1": ["mel"],
        "R2": ["mel"],
    }
    assert roc_curves({"r3": other}, members[2:3]).empty
    target = nets[0]["label"] == "mel"
    rates = np.linspace(0, 1, 101)
    areas = [roc_auc_score(target, net["p/mel"]) for net in nets]
    points = [roc_curve(target, net["p/mel"]) for net in nets]
    lines = [np.interp(rates, alarms, hits) for alarms, hits, _ in points]
    for run, count in (("r1", 2), ("r2", 1)):
        curve = frame[frame["run_id"] == run]
        assert curve["auroc"].unique() == pytest.approx([np.mean(areas[:count])])
        assert curve["false_positive_rate"].tolist() == [0, *rates]
        assert curve["sensitivity"].tolist() == pytest.approx([0, *np.mean(lines[:count], axis=0)])


def test_the_roc_curve_of_two_classes_is_that_of_the_positive_one() -> None:
    # two positives and two negatives; one negative is above one positive: 3 of 4 pairs are right
    scores = pd.DataFrame({"p/no": [0.9, 0.4, 0.6, 0.1], "p/yes": [0.1, 0.6, 0.4, 0.9]})
    frame = scores.assign(image_id=list("abcd"), group=list("abcd"))
    frame["label"] = ["no", "no", "yes", "yes"]
    curve = roc_curves({"r": [frame]}, [("r", "model")])
    assert set(curve["class"]) == {"yes"}
    assert curve["auroc"].iloc[0] == 0.75
    below, above = curve["false_positive_rate"] < 0.5, curve["false_positive_rate"] >= 0.5
    assert curve.loc[below, "sensitivity"].tolist() == [0, *[0.5] * 50]
    assert curve.loc[above, "sensitivity"].tolist() == [1] * 51
