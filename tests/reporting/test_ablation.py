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
VALUE, SPREAD = "best/val/balanced_accuracy", "spread/best/val/balanced_accuracy"
# The 97.5% quantile of Student's t with one degree of freedom, a Cauchy distribution.
CAUCHY = math.tan(0.475 * math.pi)


def study(*rows: tuple[str, float, float], **columns: object) -> pd.DataFrame:
    """A table as `compare` returns it, of overrides, accuracy and FLOPs."""
    table = pd.DataFrame(rows, columns=["overrides", VALUE, FLOPS.metric])
    ids = [f"run{number}" for number in range(len(rows))]
    return table.assign(run_id=ids, status="FINISHED", **columns)


def of(table: pd.DataFrame, objectives: list[Objective] = BOTH) -> pd.DataFrame:
    return effects(table, parameters(table), objectives)


def at(
    table: pd.DataFrame, parameter: str, value: str, objective: Objective = ACCURACY
) -> pd.Series:
    keys = ["parameter", "value", "objective"]
    row = table.set_index(keys, drop=False).loc[(parameter, value, objective.metric)]
    assert isinstance(row, pd.Series)
    return row


GRID = study(
    ("loss=focal dropout=0.0", 0.60, 100),
    ("loss=focal dropout=0.5", 0.62, 110),
    ("loss=plain dropout=0.0", 0.40, 120),
    ("loss=plain dropout=0.5", 0.44, 90),
)
CELLS = [f"loss={a} dropout={b}" for a in ("focal", "plain") for b in (0.0, 0.25, 0.5)]


def test_means_intervals_and_best_of_a_grid() -> None:
    table = of(GRID)
    assert list(table) == COLUMNS
    assert table["parameter"].drop_duplicates().tolist() == ["loss", "dropout"]
    focal = at(table, "loss", "focal")
    assert focal["mean"] == pytest.approx(0.61)
    assert (focal["best"], focal["best_run"], focal["n"]) == (0.62, "run1", 2)
    half = CAUCHY * 0.01
    assert (focal["low"], focal["high"]) == pytest.approx((0.61 - half, 0.61 + half))
    cheapest = at(table, "loss", "plain", FLOPS)
    assert (cheapest["best"], cheapest["best_run"]) == (90, "run3")
    assert table[table["parameter"] == "dropout"]["position"].tolist() == [0.0, 0.5, 0.0, 0.5]
    ordered = table.groupby("parameter")["ordered"].first().to_dict()
    assert ordered == {"loss": False, "dropout": True}


@settings(max_examples=5, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(1, 1e10)), min_size=6, max_size=6))
def test_adjusted_means_of_a_balanced_grid_are_the_raw_ones_and_costs_stay_positive(
    values: list[tuple[float, float]],
) -> None:
    table = of(study(*((cell, *pair) for cell, pair in zip(CELLS, values, strict=True))))
    means = table["mean"].tolist()
    assert table["adjusted"].tolist() == pytest.approx(means, rel=1e-6, abs=1e-9)
    costs = table[table["objective"] == FLOPS.metric]
    for low, mean, high in (["low", "mean", "high"], ["adjusted_low", "adjusted", "adjusted_high"]):
        assert costs[low].gt(0).all()
        assert costs[low].le(costs[mean] * (1 + 1e-9)).all()
        assert costs[mean].le(costs[high] * (1 + 1e-9)).all()


def unbalanced(n: int, noise: float) -> pd.DataFrame:
    """Like TPE: the good loss (+0.2) is drawn with the wide net (+0.3 a level) far more often."""
    generator = np.random.default_rng(0)
    rows = []
    for _ in range(n):
        good = generator.random() < 0.5
        level = int(generator.choice(3, p=[0.1, 0.2, 0.7] if good else [0.7, 0.2, 0.1]))
        accuracy = 0.1 + 0.2 * good + 0.3 * level + noise * generator.normal()
        rows.append((f"loss={'good' if good else 'bad'} width={4 * 2**level}", accuracy, 1.0))
    return study(*rows)


def test_adjusted_means_recover_effects_that_raw_means_mix_up() -> None:
    table = of(unbalanced(200, noise=0.01), [ACCURACY])
    difference = (
        at(table, "loss", "good")[["mean", "adjusted"]]
        - at(table, "loss", "bad")[["mean", "adjusted"]]
    )
    assert difference["mean"] > 0.4
    assert difference["adjusted"] == pytest.approx(0.2, abs=0.01)
    steps = [at(table, "width", value)["adjusted"] for value in ("4", "8", "16")]
    assert np.diff(steps) == pytest.approx([0.3, 0.3], abs=0.01)
    assert table["adjusted_low"].lt(table["adjusted"]).all()
    contrast = contrasts(table, [ACCURACY]).set_index("parameter").loc["loss"]
    assert contrast["difference"] == pytest.approx(0.2, abs=0.01)
    assert contrast["raw_difference"] > 0.4
    assert contrast["basis"] == "others held equal"


def test_adjusted_means_are_predictions_of_a_linear_regression() -> None:
    table = unbalanced(60, noise=0.1)
    adjusted, swept = of(table), parameters(table).astype(str)
    model = LinearRegression().fit(pd.get_dummies(swept, drop_first=True), table[VALUE])
    for value in ("4", "8", "16"):
        both = pd.get_dummies(pd.concat([swept.assign(width=value), swept]), drop_first=True)
        expected = model.predict(both[: len(table)]).mean()
        assert at(adjusted, "width", value)["adjusted"] == pytest.approx(expected)


def test_adjusted_intervals_cover_the_truth_as_often_as_they_state() -> None:
    generator = np.random.default_rng(1)
    cells = [f"loss={a} width={b}" for a in ("x", "y") for b in (1, 2, 3) for _ in range(2)]
    swept = parameters(study(*((cell, 0, 1) for cell in cells)))
    truth = np.array([0.5 * ("x" in cell) for cell in cells])
    inside = 0
    for _ in range(30):
        values = truth + generator.normal(0, 0.1, len(cells))
        table = effects(study(*zip(cells, values, values, strict=True)), swept, [ACCURACY])
        row = at(table, "loss", "x")
        inside += row["adjusted_low"] <= 0.5 <= row["adjusted_high"]
    assert stats.binomtest(inside, 30, 0.95).pvalue > 0.001


def test_parameters_that_vary_together_have_no_adjusted_mean() -> None:
    rows = [("a=1 b=x", 0.1, 1), ("a=2 b=y", 0.2, 1), ("a=1 b=x", 0.1, 1), ("a=2 b=y", 0.3, 1)]
    table = of(study(*rows * 4))
    assert table["adjusted"].isna().all()
    assert at(table, "a", "2")["mean"] == pytest.approx(0.25)


def test_a_conditional_parameter_is_averaged_over_the_trials_that_have_it() -> None:
    rows = [("head=gap width=4", 0.3, 1), ("head=gap width=8", 0.4, 1)]
    for u, w in itertools.product((1, 2), (4, 8)):
        rows.append((f"head=flat units={u} width={w}", 0.5 + u / 100 + w / 40 - 0.1, 1))
    table = of(study(*rows * 3))
    units, narrow, wide = (
        at(table, *key) for key in (("units", "2"), ("width", "4"), ("width", "8"))
    )
    assert units["n"] == 6
    assert units["adjusted"] == pytest.approx(0.5 + 0.02 + 0.15 - 0.1)
    assert wide["adjusted"] - narrow["adjusted"] == pytest.approx(0.1)
    assert math.isnan(at(table, "head", "gap")["adjusted"])  # there is no flat head without units


def test_only_finished_trials_with_a_finite_value_count() -> None:
    table = GRID.assign(status=["FINISHED", "PRUNED", "FINISHED", "FAILED"])
    assert of(table).query("parameter == 'loss'")["n"].tolist() == [1, 1, 1, 1]
    assert at(of(table), "loss", "focal")["mean"] == 0.60
    table.loc[0, VALUE] = math.nan
    assert of(table, [ACCURACY])["value"].tolist() == ["plain", "0"]
    assert of(table.assign(status="FAILED")).empty
    assert of(GRID, [Objective("val/auroc", "maximize")]).empty
    assert list(of(GRID.assign(overrides="loss=focal"))) == COLUMNS
    infinite = of(GRID.assign(**{VALUE: [0.6, math.inf, 0.4, -math.inf]}), [ACCURACY])
    assert infinite["n"].tolist() == [1, 1, 2]
    # only one value of the dropout remains
    assert "dropout" not in contrasts(infinite, [ACCURACY])["parameter"].tolist()


def test_a_single_trial_has_the_interval_of_its_seeds() -> None:
    rows = [("dense=[64]", 0.5, 1), ("dense=[128]", 0.7, 1)]
    table = study(*rows, **{SPREAD: [0.03, 0.05]})
    assert of(table, [ACCURACY])[["low", "high"]].isna().all(axis=None)
    table = of(table.assign(repeats=3), [ACCURACY])
    row = at(table, "dense", "[128]")
    ends = stats.t.interval(0.95, 2, loc=0.7, scale=0.05 / math.sqrt(3))
    assert (row["low"], row["high"]) == pytest.approx(ends)
    # adjusted: two variances of three seeds each, 4 degrees of freedom
    ends = stats.t.interval(0.95, 4, loc=0.7, scale=math.sqrt((0.03**2 + 0.05**2) / 2 / 3))
    assert (row["adjusted_low"], row["adjusted_high"]) == pytest.approx(ends)
    assert at(table, "dense", "[64]")["spread"] == pytest.approx(0.03)
    contrast = contrasts(table, [ACCURACY]).iloc[0]
    expected = ["clear", "[64]", "[128]", "one parameter"]
    assert contrast[["verdict", "low_value", "high_value", "basis"]].tolist() == expected
    assert contrast["difference"] == pytest.approx(0.2)


def test_a_continuous_parameter_is_shown_by_its_quantiles() -> None:
    rows = [(f"lr={number / 1000}", number / 100, 1.0) for number in range(1, 51)]
    table = of(study(*rows), [ACCURACY])
    assert table["value"].iloc[0] == "0.001 to 0.01"
    assert table["n"].tolist() == [10] * 5
    assert table["position"].tolist() == pytest.approx([0.0055, 0.0155, 0.0255, 0.0355, 0.0455])
    assert table["mean"].tolist() == pytest.approx([0.055, 0.155, 0.255, 0.355, 0.455])
    assert table["best_run"].tolist() == ["run9", "run19", "run29", "run39", "run49"]


def test_costs_grow_by_factors() -> None:
    cells = list(itertools.product([4, 8, 16], [32, 64]))[:5]  # without the most expensive cell
    rows = [(f"width={w} size={s}", 0.5 + 0.01 * (w == 8), 1000.0 * w**2 * s**2) for w, s in cells]
    table = of(study(*rows * 3))
    assert (table["log"] == (table["objective"] == FLOPS.metric)).all()
    adjusted = [at(table, "width", value, FLOPS)["adjusted"] for value in ("4", "8", "16")]
    # three settings of 32 px, two of 64 px
    assert adjusted == pytest.approx([1000 * w**2 * (32**3 * 64**2) ** (2 / 5) for w in (4, 8, 16)])
    contrast = contrasts(table, [FLOPS])
    assert contrast["parameter"].tolist() == ["width", "size"]
    assert contrast["factor"].tolist() == pytest.approx([16, 4])


def test_costs_are_averaged_on_the_logarithmic_scale_if_they_are_positive() -> None:
    table = of(study(("a=1", 0.1, 1e6), ("a=1", 0.9, 9e6), ("a=2", 0.5, 4e6)))
    # the logarithms are ln 3M +- ln 3, their standard error is ln 3
    ends = [3e6, 3e6 / 3**CAUCHY, 3e6 * 3**CAUCHY]
    assert at(table, "a", "1", FLOPS)[["mean", "low", "high"]].tolist() == pytest.approx(ends)
    assert at(table, "a", "1")["mean"] == pytest.approx(0.5)  # a quality is not
    assert at(table, "a", "1")["low"] < 0
    zero = of(study(("a=1", 0.1, 0.0), ("a=1", 0.9, 2.0), ("a=2", 0.5, 4.0)))
    assert at(zero, "a", "1", FLOPS)["mean"] == 1.0
    assert not zero["log"].any()
    seeds = {"spread/efficiency/flops": 10.0, "repeats": 2}
    row = at(of(study(("a=1", 0.1, 100.0), ("a=2", 0.2, 300.0), **seeds)), "a", "1", FLOPS)
    reach = math.exp(CAUCHY * 0.1 / math.sqrt(2))
    assert row[["low", "mean", "high"]].tolist() == pytest.approx([100 / reach, 100, 100 * reach])


@pytest.mark.parametrize(
    ("first", "second", "trials", "is_known"),
    [
        (2, 3, 14, True),  # 4 fitted parameters, 10 degrees of freedom
        (2, 3, 13, False),
        (2, 3, 12, True),  # each of 6 combinations twice
        (2, 3, 5, False),  # a combination is missing
        (6, 7, 24, True),  # 12 fitted parameters, 12 degrees of freedom
        (6, 7, 23, False),
        (9, 10, 19, False),  # 18 fitted parameters, 1 degree of freedom
        (1, 3, 4, True),  # one parameter
    ],
)
def test_adjusted_means_need_degrees_of_freedom(
    first: int, second: int, trials: int, is_known: bool
) -> None:
    values = np.random.default_rng(0).normal(size=trials)
    rows = [(f"a=x{n % first} b=x{n % second}", value, 1.0) for n, value in enumerate(values)]
    table = of(study(*rows), [ACCURACY])
    assert table[["adjusted", "adjusted_low"]].notna().eq(is_known).all(axis=None)
    basis = contrasts(table, [ACCURACY])["basis"]
    assert basis.eq("others held equal").any() <= is_known
    assert basis.eq("others differ, too").any() != is_known


@pytest.mark.filterwarnings("error")
def test_a_parameter_that_only_failed_trials_had_is_left_out() -> None:
    table = study(
        ("a=1", 0.1, 1.0), ("a=2", 0.2, 1.0), ("a=1 b=1", 0.3, 1.0), ("a=1 b=2", 0.4, 1.0)
    )
    table = of(table.assign(status=["FINISHED", "FINISHED", "FAILED", "FAILED"]))
    assert table["parameter"].unique().tolist() == ["a"]
    assert table["mean"].tolist() == [0.1, 0.2, 1.0, 1.0]


def test_the_table_of_means() -> None:
    rows = [("loss=focal", 0.6, 2e6), ("loss=focal", 0.6, 2e6), ("loss=plain", 0.5, 1e6)]
    rows += [("loss=plain dropout=0.5", math.nan, 1e6)]
    table = ablation_table(of(study(*rows)), BOTH, "loss")
    assert table.columns.tolist() == [
        *["value", "balanced accuracy (validation), higher is better"],
        "FLOPs (multiply-adds), lower is better",
    ]
    assert table.to_numpy().tolist() == [
        ["focal", "0.600 (n=2)", "2M [2M, 2M] (n=2)"],  # two ties do not say how much it varies
        ["plain", "0.500 (n=1)", "1M [1M, 1M] (n=2)"],
    ]
    nearly = of(study(("a=1", math.nan, 999_999.9), ("a=2", 0.2, 2e6)))
    cells = ablation_table(nearly, BOTH, "a").to_numpy().tolist()
    assert cells == [["2", "0.200 (n=1)", "2M (n=1)"], ["1", "-", "1M (n=1)"]]
    unknown = [FLOPS, Objective("val/auroc", "maximize")]  # which no trial has
    assert ablation_table(nearly, unknown, "a").iloc[:, 2].tolist() == ["-", "-"]


def dense(spread: float, accuracies: tuple[float, ...] = (0.645, 0.605, 0.560, 0.519, 0.447)):
    """The effects of the dense size, with a deviation over three seeds."""
    sizes = (256, 128, 64, 32, 16)
    rows = [(f"dense=[{n}]", y, float(n)) for n, y in zip(sizes, accuracies, strict=True)]
    return of(study(*rows, **{SPREAD: spread, "repeats": 3}))


def test_the_knee_is_the_smallest_value_within_the_tolerance() -> None:
    table = dense(0.05)
    values = ["[16]", "[32]", "[64]", "[128]", "[256]"]
    assert table[table["objective"] == ACCURACY.metric]["value"].tolist() == values
    expected = {0.0: "[256]", 0.04: "[128]", 0.039: "[256]", 0.09: "[64]", 1.0: "[16]"}
    knees = {spread: knee_of(dense(spread), "dense", ACCURACY) for spread in expected}
    assert {spread: knee["smallest"] for spread, knee in knees.items()} == expected
    assert knees[1.0]["next_smaller"] is None
    knee = knee_of(table, "dense", ACCURACY)
    texts = [knee[name] for name in ("best_value", "smallest", "next_smaller", "source")]
    assert texts == ["[256]", "[128]", "[64]", "deviation over seeds"]
    losses = [knee[name] for name in ("best_mean", "smallest_loss", "next_loss", "tolerance")]
    assert losses == pytest.approx([0.645, 0.040, 0.085, 0.050])
    knee = knee_of(dense(0.01, (0.6, 0.6, 0.3, 0.6, 0.3)), "dense", ACCURACY)
    assert (knee["smallest"], knee["exceptions"]) == ("[32]", "[64]")
    knee = knee_of(table, "dense", FLOPS)
    assert (knee["smallest"], knee["source"]) == ("[16]", "none known")


@pytest.mark.parametrize(("second", "smallest"), [(0.507, "8"), (0.504, "16")])
def test_without_repeats_the_interval_of_the_best_value_is_the_tolerance(
    second: float, smallest: str
) -> None:
    # variances pooled over three values: t(0.975, 6) * 0.01 / sqrt(3) = 2.447 * 0.00577 = 0.0141
    widths = ((4, 0.2), (8, second), (16, 0.52))
    rows = [(f"width={w}", y + e, 1.0) for w, y in widths for e in (-0.01, 0.0, 0.01)]
    knee = knee_of(of(study(*rows)), "width", ACCURACY)
    assert knee["smallest"] == smallest
    assert knee["tolerance"] == pytest.approx(0.0141, abs=1e-4)


def test_a_knee_needs_an_order_and_figures() -> None:
    with pytest.raises(ConfigError, match="order"):
        knee_of(of(GRID), "loss", ACCURACY)
    with pytest.raises(ConfigError, match="out of loss, dropout"):
        knee_of(of(GRID), "width", ACCURACY)


def test_contrasts_are_sorted_and_have_a_verdict() -> None:
    generator, rows = np.random.default_rng(3), []
    for loss, width, dropout in itertools.product(["focal", "plain"], [8, 16], [0.0, 0.25, 0.5]):
        accuracy = 0.4 + 0.2 * (loss == "focal") + 0.05 * (width == 16) + 0.01 * generator.normal()
        rows.append((f"loss={loss} width={width} dropout={dropout}", accuracy, float(width)))
    table = contrasts(of(study(*rows)), BOTH)
    verdicts = table[["parameter", "verdict"]].agg(" ".join, axis="columns").tolist()
    assert verdicts[:4] == ["loss clear", "width clear", "dropout unclear", "width clear"]
    assert table["verdict"].tail(2).tolist() == ["none", "none"]
    first = table.iloc[0]
    expected = ["plain", "focal", "others averaged out"]
    assert first[["low_value", "high_value", "basis"]].tolist() == expected
    means = first[["low", "high", "difference"]].tolist()
    assert means == pytest.approx([0.425, 0.623, 0.198], abs=6e-4)
    assert table.iloc[3]["factor"] == pytest.approx(2)
    single = contrasts(of(study(("a=1", 0.1, 1), ("a=2", 0.9, 2))), BOTH)
    assert single["verdict"].tolist() == ["too few", "too few"]


def test_raw_means_of_uneven_trials_state_that_others_differ() -> None:
    # four fitted parameters leave 8 degrees of freedom
    table = of(unbalanced(12, noise=0.01), [ACCURACY])
    assert table["adjusted"].isna().all()
    contrast = contrasts(table, [ACCURACY])
    assert contrast["parameter"].iloc[0] == "width"
    assert set(contrast["basis"]) == {"others differ, too"}
    assert knee_of(table, "width", ACCURACY)["basis"] == "others differ, too"


def test_a_clear_pair_counts_beside_a_value_with_a_wide_interval() -> None:
    """The best mean, of c, has the widest interval; b against a is clear nevertheless."""
    rows = [(f"x={x}", y + e, 1.0) for x, y in (("a", 0.1), ("b", 0.5)) for e in (-0.01, 0, 0.01)]
    table = of(study(*rows, ("x=c", 0.6, 1.0)), [ACCURACY])
    table[["adjusted", "adjusted_low", "adjusted_high"]] = math.nan
    table.loc[2, ["low", "high"]] = [0.0, 1.2]
    row = contrasts(table, [ACCURACY]).iloc[0]
    assert row[["verdict", "low_value", "high_value"]].tolist() == ["clear", "a", "b"]
    assert row["difference"] == pytest.approx(0.4)


def test_ten_thousand_trials() -> None:
    generator = np.random.default_rng(0)
    size = 10_000
    cells = {f"p{number}": generator.random(size) for number in range(2)}
    cells |= {f"c{number}": generator.choice(list("abcd"), size) for number in range(2)}
    swept = pd.DataFrame(cells, index=pd.Index([f"run{n}" for n in range(size)], name="run_id"))
    table = pd.DataFrame({"run_id": swept.index, "status": "FINISHED", VALUE: cells["p0"]})
    rows = effects(table, swept, [ACCURACY])
    assert len(rows) == 2 * 5 + 2 * 4
    first = rows[rows["parameter"] == "p0"]["adjusted"].to_numpy()
    assert first == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9], abs=0.02)
