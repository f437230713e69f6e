import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.linear_model import LinearRegression

from src.core.errors import ConfigError
from src.metrics.registry import Objective
from src.reporting.ablation import COLUMNS, ablation_table, contrasts, effects, knee_of
from src.sweep.overrides import parameters

ACCURACY = Objective("val/balanced_accuracy", "maximize")
FLOPS = Objective("efficiency/flops", "minimize")
BOTH = [ACCURACY, FLOPS]


def study(rows: list[tuple[str, float, float]], **columns: object) -> pd.DataFrame:
    """A table as `compare` gives it, of overrides, accuracy and FLOPs."""
    overrides, accuracy, flops = zip(*rows, strict=True)
    table = pd.DataFrame(
        {
            "run_id": [f"run{number}" for number in range(len(rows))],
            "status": "FINISHED",
            "overrides": overrides,
            "best/val/balanced_accuracy": accuracy,
            "efficiency/flops": flops,
        }
    )
    return table.assign(**columns)


def of(table: pd.DataFrame, objectives: list[Objective] = BOTH) -> pd.DataFrame:
    return effects(table, parameters(table), objectives)


def at(
    found: pd.DataFrame, parameter: str, value: str, objective: Objective = ACCURACY
) -> pd.Series:
    keys = (
        (found["parameter"] == parameter)
        & (found["value"] == value)
        & (found["objective"] == objective.metric)
    )
    assert keys.sum() == 1
    return found[keys].iloc[0]


GRID = study(
    [
        ("loss=focal dropout=0.0", 0.60, 100),
        ("loss=focal dropout=0.5", 0.62, 110),
        ("loss=plain dropout=0.0", 0.40, 120),
        ("loss=plain dropout=0.5", 0.44, 90),
    ]
)


def test_means_intervals_and_best_of_a_grid() -> None:
    found = of(GRID)
    assert list(found) == COLUMNS
    assert found["parameter"].drop_duplicates().tolist() == ["loss", "dropout"]
    focal = at(found, "loss", "focal")
    assert focal["mean"] == pytest.approx(0.61)
    assert (focal["best"], focal["best_run"], focal["n"]) == (0.62, "run1", 2)
    # Student's t of one degree of freedom is a Cauchy distribution: its 97.5% quantile is tan(0.475
    # pi)
    half = math.tan(0.475 * math.pi) * 0.01
    assert (focal["low"], focal["high"]) == pytest.approx((0.61 - half, 0.61 + half))
    cheapest = at(found, "loss", "plain", FLOPS)
    assert (cheapest["best"], cheapest["best_run"]) == (90, "run3")
    assert found[found["parameter"] == "dropout"]["position"].tolist() == [0.0, 0.5, 0.0, 0.5]
    assert found.groupby("parameter")["ordered"].first().to_dict() == {
        "loss": False,
        "dropout": True,
    }


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=6, max_size=6))
def test_in_a_balanced_grid_adjusted_and_raw_means_agree(accuracies: list[float]) -> None:
    cells = itertools.product(["focal", "plain"], [0.0, 0.25, 0.5])
    table = study(
        [(f"loss={a} dropout={b}", y, 1.0) for (a, b), y in zip(cells, accuracies, strict=True)]
    )
    found = of(table, [ACCURACY])
    assert found["adjusted"].tolist() == pytest.approx(found["mean"].tolist(), abs=1e-9)


def unbalanced(n: int, noise: float) -> pd.DataFrame:
    """Like TPE: the good loss (+0.2) is drawn with the wide net (+0.3 a level) far more often."""
    generator = np.random.default_rng(0)
    rows = []
    for _ in range(n):
        good = generator.random() < 0.5
        width = generator.choice([4, 8, 16], p=[0.1, 0.2, 0.7] if good else [0.7, 0.2, 0.1])
        accuracy = (
            0.1 + 0.2 * good + {4: 0.0, 8: 0.3, 16: 0.6}[int(width)] + noise * generator.normal()
        )
        rows.append((f"loss={'good' if good else 'bad'} width={width}", accuracy, 1.0))
    return study(rows)


def test_adjusted_means_recover_effects_that_raw_means_mix_up() -> None:
    found = of(unbalanced(200, noise=0.01), [ACCURACY])
    raw = at(found, "loss", "good")["mean"] - at(found, "loss", "bad")["mean"]
    adjusted = at(found, "loss", "good")["adjusted"] - at(found, "loss", "bad")["adjusted"]
    assert raw > 0.4
    assert adjusted == pytest.approx(0.2, abs=0.01)
    steps = [at(found, "width", value)["adjusted"] for value in ("4", "8", "16")]
    assert np.diff(steps) == pytest.approx([0.3, 0.3], abs=0.01)
    assert found["adjusted_low"].lt(found["adjusted"]).all()


def test_adjusted_means_are_predictions_of_a_linear_regression() -> None:
    table = unbalanced(60, noise=0.1)
    swept = parameters(table).astype(str)
    model = LinearRegression().fit(
        pd.get_dummies(swept, drop_first=True), table["best/val/balanced_accuracy"]
    )
    for value in ("4", "8", "16"):
        forced = pd.get_dummies(pd.concat([swept.assign(width=value), swept]), drop_first=True)[
            : len(table)
        ]
        expected = model.predict(forced).mean()
        assert at(of(table), "width", value)["adjusted"] == pytest.approx(expected)


def test_adjusted_intervals_hold_the_truth_as_often_as_they_say() -> None:
    generator = np.random.default_rng(1)
    cells = [f"loss={a} width={b}" for a in ("x", "y") for b in (1, 2, 3) for _ in range(2)]
    truth = np.array([0.5 * ("x" in cell) for cell in cells])
    inside = 0
    for _ in range(60):
        values = truth + generator.normal(0, 0.1, len(cells))
        row = at(
            of(study([(c, v, 1.0) for c, v in zip(cells, values, strict=True)]), [ACCURACY]),
            "loss",
            "x",
        )
        inside += row["adjusted_low"] <= 0.5 <= row["adjusted_high"]
    assert stats.binomtest(inside, 60, 0.95).pvalue > 0.001


def test_what_the_trials_cannot_tell_apart_has_no_adjusted_mean() -> None:
    together = study(
        4 * [("a=1 b=x", 0.1, 1), ("a=2 b=y", 0.2, 1), ("a=1 b=x", 0.1, 1), ("a=2 b=y", 0.3, 1)]
    )
    assert of(together)["adjusted"].isna().all()
    assert at(of(together), "a", "2")["mean"] == pytest.approx(0.25)


def test_a_conditional_parameter_is_averaged_over_the_trials_that_have_it() -> None:
    rows = [("head=gap width=4", 0.3, 1), ("head=gap width=8", 0.4, 1)]
    rows += [
        (f"head=flat units={u} width={w}", 0.5 + u / 100 + w / 40 - 0.1, 1)
        for u in (1, 2)
        for w in (4, 8)
    ]
    found = of(study(3 * rows), [ACCURACY])
    assert at(found, "units", "2")["n"] == 6
    assert at(found, "units", "2")["adjusted"] == pytest.approx(0.5 + 0.02 + 0.15 - 0.1)
    assert at(found, "width", "8")["adjusted"] - at(found, "width", "4")[
        "adjusted"
    ] == pytest.approx(0.1)
    assert math.isnan(
        at(found, "head", "gap")["adjusted"]
    )  # a flat head without units was never tried


def test_only_finished_trials_with_a_value_count() -> None:
    table = GRID.assign(status=["FINISHED", "PRUNED", "FINISHED", "FAILED"])
    assert of(table).query("parameter == 'loss'")["n"].tolist() == [1, 1, 1, 1]
    assert at(of(table), "loss", "focal")["mean"] == 0.60
    table.loc[0, "best/val/balanced_accuracy"] = math.nan
    assert of(table, [ACCURACY])["value"].tolist() == ["plain", "0"]
    assert of(table.assign(status="FAILED")).empty
    assert of(GRID, [Objective("val/auroc", "maximize")]).empty
    assert list(of(GRID.assign(overrides="loss=focal"))) == COLUMNS


def test_a_single_trial_has_the_interval_of_its_seeds() -> None:
    spread = {"spread/best/val/balanced_accuracy": [0.03, 0.06]}
    table = study([("dense=[64]", 0.5, 1), ("dense=[128]", 0.6, 1)], **spread)
    assert of(table, [ACCURACY])[["low", "high"]].isna().all(axis=None)
    found = of(table.assign(repeats=3), [ACCURACY])
    low, high = stats.t.interval(0.95, 2, loc=0.6, scale=0.06 / math.sqrt(3))
    assert (
        at(found, "dense", "[128]")["low"],
        at(found, "dense", "[128]")["high"],
    ) == pytest.approx((low, high))
    assert at(found, "dense", "[64]")["spread"] == pytest.approx(0.03)


def test_seeds_are_pooled_where_each_value_has_one_trial() -> None:
    spread = {"spread/best/val/balanced_accuracy": [0.03, 0.05], "repeats": 3}
    found = of(study([("dense=[64]", 0.5, 1), ("dense=[128]", 0.7, 1)], **spread), [ACCURACY])
    # two variances of three seeds each: 4 degrees of freedom
    low, high = stats.t.interval(0.95, 4, loc=0.7, scale=math.sqrt((0.03**2 + 0.05**2) / 2 / 3))
    best = at(found, "dense", "[128]")
    assert (best["adjusted_low"], best["adjusted_high"]) == pytest.approx((low, high))
    row = contrasts(found, [ACCURACY]).iloc[0]
    assert row[["verdict", "low_value", "high_value"]].tolist() == ["clear", "[64]", "[128]"]
    assert row["difference"] == pytest.approx(0.2)
    assert row["basis"] == "one parameter"


def test_what_is_never_a_number_does_not_count() -> None:
    table = GRID.assign(**{"best/val/balanced_accuracy": [0.6, math.inf, 0.4, -math.inf]})
    assert of(table, [ACCURACY])["n"].tolist() == [1, 1, 2]
    rows = contrasts(of(table), [ACCURACY]).set_index("parameter")
    assert "dropout" not in rows.index  # only one of its values is left


def test_a_continuous_parameter_is_shown_by_its_quantiles() -> None:
    table = study([(f"lr={number / 1000}", number / 100, 1.0) for number in range(1, 51)])
    found = of(table, [ACCURACY])
    assert found["value"].tolist()[0] == "0.001 to 0.01"
    assert found["n"].tolist() == [10] * 5
    assert found["position"].tolist() == pytest.approx([0.0055, 0.0155, 0.0255, 0.0355, 0.0455])
    assert found["mean"].tolist() == pytest.approx([0.055, 0.155, 0.255, 0.355, 0.455])
    assert found["best_run"].tolist() == ["run9", "run19", "run29", "run39", "run49"]


DENSE = study(
    [
        ("dense=[256]", 0.645, 5),
        ("dense=[128]", 0.605, 4),
        ("dense=[64]", 0.560, 3),
        ("dense=[32]", 0.519, 2),
        ("dense=[16]", 0.447, 1),
    ],
    **{"spread/best/val/balanced_accuracy": 0.05, "repeats": 3},
)


def noisy() -> pd.DataFrame:
    """Loss matters much, width somewhat, dropout not at all."""
    generator = np.random.default_rng(3)
    rows = []
    for loss, width, dropout in itertools.product(["focal", "plain"], [8, 16], [0.0, 0.25, 0.5]):
        accuracy = 0.4 + 0.2 * (loss == "focal") + 0.05 * (width == 16) + 0.01 * generator.normal()
        rows.append((f"loss={loss} width={width} dropout={dropout}", accuracy, float(width)))
    return study(rows)


def test_costs_grow_by_factors() -> None:
    cells = itertools.product([4, 8, 16], [32, 64])
    rows = [(f"width={w} size={s}", 0.5 + 0.01 * (w == 8), 1000.0 * w**2 * s**2) for w, s in cells]
    found = of(study(3 * rows[:5]))  # not a balanced grid: the dearest cell is missing
    assert found[found["objective"] == FLOPS.metric]["log"].all()
    assert not found[found["objective"] == ACCURACY.metric]["log"].any()
    adjusted = [at(found, "width", value, FLOPS)["adjusted"] for value in ("4", "8", "16")]
    # three settings of 32 px, two of 64 px
    assert adjusted == pytest.approx([1000 * w**2 * (32**3 * 64**2) ** (2 / 5) for w in (4, 8, 16)])
    rows = contrasts(found, [FLOPS])
    assert rows["parameter"].tolist() == ["width", "size"]
    assert rows["factor"].tolist() == pytest.approx([16, 4])


def test_intervals_of_costs_stay_above_zero() -> None:
    found = of(study([("a=1", 0.1, 1e6), ("a=1", 0.9, 9e6), ("a=2", 0.5, 4e6)]))
    row = at(found, "a", "1", FLOPS)
    # the logarithms lie ln 3 to either side of ln 3M, their standard error is ln 3; t as in the
    # grid above
    reach = 3 ** math.tan(0.475 * math.pi)
    assert row[["mean", "low", "high"]].tolist() == pytest.approx([3e6, 3e6 / reach, 3e6 * reach])
    assert at(found, "a", "1")["mean"] == pytest.approx(0.5)  # quality is averaged as it is
    assert at(found, "a", "1")["low"] < 0
    zero = of(study([("a=1", 0.1, 0.0), ("a=1", 0.9, 2.0), ("a=2", 0.5, 4.0)]))
    assert at(zero, "a", "1", FLOPS)["mean"] == 1.0
    assert not zero["log"].any()


def test_a_cost_of_a_single_trial_over_its_seeds() -> None:
    spread = {"spread/efficiency/flops": [10.0, 10.0], "repeats": 2}
    row = at(of(study([("a=1", 0.1, 100.0), ("a=2", 0.2, 300.0)], **spread)), "a", "1", FLOPS)
    reach = math.exp(math.tan(0.475 * math.pi) * 0.1 / math.sqrt(2))
    assert row[["low", "mean", "high"]].tolist() == pytest.approx([100 / reach, 100, 100 * reach])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(1, 1e10), min_size=6, max_size=6))
def test_positive_costs_have_positive_intervals(flops: list[float]) -> None:
    cells = itertools.product(["focal", "plain"], [0.0, 0.25, 0.5])
    found = of(
        study([(f"loss={a} dropout={b}", 0.5, y) for (a, b), y in zip(cells, flops, strict=True)]),
        [FLOPS],
    )
    for low, mean, high in (["low", "mean", "high"], ["adjusted_low", "adjusted", "adjusted_high"]):
        assert found[low].gt(0).all()
        assert found[low].le(found[mean] * (1 + 1e-9)).all()
        assert found[mean].le(found[high] * (1 + 1e-9)).all()
    assert found["adjusted"].tolist() == pytest.approx(found["mean"].tolist())


@pytest.mark.parametrize(
    ("first", "second", "trials", "known"),
    [
        (2, 3, 14, True),  # 4 fitted parameters, 10 degrees of freedom
        (2, 3, 13, False),
        (2, 3, 12, True),  # each of 6 combinations twice
        (2, 3, 6, True),
        (2, 3, 5, False),  # a combination is missing
        (6, 7, 24, True),  # 12 fitted parameters, 12 degrees of freedom
        (6, 7, 23, False),
        (9, 10, 19, False),  # 18 fitted parameters, 1 degree of freedom
        (1, 3, 4, True),  # one parameter
    ],
)
def test_adjusted_means_need_degrees_of_freedom(
    first: int, second: int, trials: int, known: bool
) -> None:
    generator = np.random.default_rng(0)
    rows = [(f"a=x{n % first} b=x{n % second}", generator.normal(), 1.0) for n in range(trials)]
    found = of(study(rows), [ACCURACY])
    assert found["adjusted"].notna().eq(known).all()
    assert found["adjusted_low"].notna().eq(known).all()
    assert contrasts(found, [ACCURACY])["basis"].eq("others held equal").any() <= known


def test_fractions_never_multiply() -> None:
    assert not of(study([("a=1", 0.01, 1.0), ("a=2", 0.9, 1.0)]), [ACCURACY])["log"].any()


def test_the_table_for_people() -> None:
    rows = [("loss=focal", 0.6, 2e6), ("loss=focal", 0.6, 2e6), ("loss=plain", 0.5, 1e6)]
    table = ablation_table(
        of(study([*rows, ("loss=plain dropout=0.5", math.nan, 1e6)])), BOTH, ["loss"]
    )
    assert list(table) == [
        "parameter",
        "value",
        "balanced accuracy (validation), higher is better",
        "FLOPs (multiply-adds), lower is better",
    ]
    assert table.to_numpy().tolist() == [
        ["loss", "focal", "0.600 [0.600, 0.600] (n=2)", "2M [2M, 2M] (n=2)"],
        ["loss", "plain", "0.500 (n=1)", "1M [1M, 1M] (n=2)"],
    ]
    assert ablation_table(of(GRID), [ACCURACY])["value"].tolist() == ["focal", "plain", "0", "0.5"]


@pytest.mark.filterwarnings("error")
def test_a_parameter_that_only_failed_trials_had_is_left_out() -> None:
    table = study(
        [("a=1", 0.1, 1.0), ("a=2", 0.2, 1.0), ("a=1 b=1", 0.3, 1.0), ("a=1 b=2", 0.4, 1.0)]
    )
    found = of(table.assign(status=["FINISHED", "FINISHED", "FAILED", "FAILED"]))
    assert found["parameter"].unique().tolist() == ["a"]
    assert found["mean"].tolist() == [0.1, 0.2, 1.0, 1.0]


def test_a_cost_just_below_a_million_reads_as_one() -> None:
    found = of(study([("a=1", 0.1, 999_999.9), ("a=2", 0.2, 2e6)]), [FLOPS])
    assert ablation_table(found, [FLOPS]).iloc[:, 2].tolist() == ["1M (n=1)", "2M (n=1)"]


@pytest.mark.parametrize(
    ("objective", "tolerance", "smallest"),
    [
        (ACCURACY, None, "[128]"),
        (ACCURACY, 0.0, "[256]"),
        (ACCURACY, 0.04, "[128]"),
        (ACCURACY, 0.039, "[256]"),
        (ACCURACY, 0.09, "[64]"),
        (ACCURACY, 1.0, "[16]"),
        (FLOPS, 0.0, "[16]"),
    ],
)
def test_the_knee_is_the_smallest_value_within_the_tolerance(
    objective: Objective, tolerance: float | None, smallest: str
) -> None:
    table = of(DENSE)
    values = ["[16]", "[32]", "[64]", "[128]", "[256]"]
    assert table[table["objective"] == objective.metric]["value"].tolist() == values
    assert knee_of(table, "dense", objective, tolerance)["smallest"] == smallest


def test_the_knee_has_its_losses_and_its_tolerance() -> None:
    knee = knee_of(of(DENSE), "dense", ACCURACY)
    assert (knee["best_value"], knee["next_smaller"]) == ("[256]", "[64]")
    losses = [knee[name] for name in ("best_mean", "smallest_loss", "next_loss", "tolerance")]
    assert losses == pytest.approx([0.645, 0.040, 0.085, 0.050])
    assert knee["source"] == "deviation over seeds"
    assert knee_of(of(DENSE), "dense", ACCURACY, 1.0)["next_smaller"] is None
    dipped = DENSE.assign(**{"best/val/balanced_accuracy": [0.6, 0.6, 0.3, 0.6, 0.3]})
    knee = knee_of(of(dipped), "dense", ACCURACY, 0.01)
    assert (knee["smallest"], knee["exceptions"]) == ("[32]", "[64]")


@pytest.mark.parametrize(("second", "smallest"), [(0.507, "8"), (0.504, "16")])
def test_without_repeats_the_interval_of_the_best_value_is_the_tolerance(
    second: float, smallest: str
) -> None:
    # variances pooled over three values: t(0.975, 6) * 0.01 / sqrt(3) = 2.447 * 0.00577 = 0.0141
    rows = [
        (f"width={w}", y + e, 1.0)
        for w, y in ((4, 0.2), (8, second), (16, 0.52))
        for e in (-0.01, 0.0, 0.01)
    ]
    knee = knee_of(of(study(rows)), "width", ACCURACY)
    assert knee["smallest"] == smallest
    assert knee["tolerance"] == pytest.approx(0.0141, abs=1e-4)


def test_a_knee_needs_an_order_and_figures() -> None:
    with pytest.raises(ConfigError, match="order"):
        knee_of(of(GRID), "loss", ACCURACY)
    with pytest.raises(ConfigError, match="out of loss, dropout"):
        knee_of(of(GRID), "width", ACCURACY)


def test_contrasts_are_sorted_and_have_a_verdict() -> None:
    rows = contrasts(of(noisy()), BOTH)
    assert rows[["parameter", "verdict"]].head(4).to_numpy().tolist() == [
        *[["loss", "clear"], ["width", "clear"], ["dropout", "unclear"], ["width", "clear"]],
    ]
    assert rows["verdict"].tail(2).tolist() == ["none", "none"]
    first = rows.iloc[0]
    assert first[["low_value", "high_value"]].tolist() == ["plain", "focal"]
    assert first[["low", "high", "difference"]].tolist() == pytest.approx(
        [0.425, 0.623, 0.198], abs=6e-4
    )
    assert first["basis"] == "others averaged out"
    assert rows.iloc[3]["factor"] == pytest.approx(2)


def test_raw_means_of_uneven_trials_say_that_others_differ() -> None:
    # four fitted parameters leave 8 degrees of freedom
    table = of(unbalanced(12, noise=0.01), [ACCURACY])
    assert table["adjusted"].isna().all()
    rows = contrasts(table, [ACCURACY])
    assert rows["parameter"].iloc[0] == "width"
    assert set(rows["basis"]) == {"others differ, too"}
    assert knee_of(table, "width", ACCURACY)["basis"] == "others differ, too"


def test_the_raw_difference_shows_where_raw_means_mislead() -> None:
    rows = contrasts(of(unbalanced(200, noise=0.01), [ACCURACY]), [ACCURACY])
    loss = rows.set_index("parameter").loc["loss"]
    assert loss["difference"] == pytest.approx(0.2, abs=0.01)
    assert loss["raw_difference"] > 0.4
    assert loss["basis"] == "others held equal"


def test_a_clear_pair_is_found_beside_a_value_that_is_hardly_known() -> None:
    """The best mean, of c, has the widest interval; b against a is clear all the same."""
    rows = [(f"x={x}", y + e, 1.0) for x, y in (("a", 0.1), ("b", 0.5)) for e in (-0.01, 0, 0.01)]
    table = of(study([*rows, ("x=c", 0.6, 1.0)]), [ACCURACY])
    table[["adjusted", "adjusted_low", "adjusted_high"]] = math.nan
    table.loc[2, ["low", "high"]] = [0.0, 1.2]
    row = contrasts(table, [ACCURACY]).iloc[0]
    assert row[["verdict", "low_value", "high_value"]].tolist() == ["clear", "a", "b"]
    assert row["difference"] == pytest.approx(0.4)


def test_single_trials_are_too_few() -> None:
    rows = contrasts(of(study([("a=1", 0.1, 1), ("a=2", 0.9, 2)])), BOTH)
    assert rows["verdict"].tolist() == ["too few", "too few"]


def test_ten_thousand_trials_are_no_work() -> None:
    generator = np.random.default_rng(0)
    size = 10_000
    cells = {f"p{number}": generator.random(size) for number in range(4)}
    cells |= {f"c{number}": generator.choice(list("abcd"), size) for number in range(4)}
    swept = pd.DataFrame(cells, index=pd.Index([f"run{n}" for n in range(size)], name="run_id"))
    table = pd.DataFrame({"run_id": swept.index, "status": "FINISHED"})
    table["best/val/balanced_accuracy"] = swept["p0"].to_numpy()
    rows = effects(table, swept, [ACCURACY])
    assert len(rows) == 4 * 5 + 4 * 4
    first = rows[rows["parameter"] == "p0"]["adjusted"].to_numpy()
    assert first == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9], abs=0.02)
