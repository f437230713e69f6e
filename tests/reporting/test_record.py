"""Learning curves, budgets and headline metrics of a report."""

import math

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.core.errors import ConfigError
from src.metrics.registry import Limit
from src.reporting.record import ReportSettings
from src.reporting.report import bounds_of, headline, learning_curves

CURVES = ["run_id", "label", "state", "epoch", "value"]
TABLE = pd.DataFrame(
    {
        "run_id": ["good", "bad", "dead"],
        "label": ["custom #1", "custom #0", "custom #2"],
        "state": ["front", "pruned", "failed"],
    }
)


def history(**values: list[float]) -> pd.DataFrame:
    """An epoch every 50 optimizer steps."""
    rows = [
        (run, 50 * (number + 1), value)
        for run, some in values.items()
        for number, value in enumerate(some)
    ]
    return pd.DataFrame(rows, columns=["run_id", "step", "value"])


def points(curves: pd.DataFrame) -> dict[str, list[tuple[int, float]]]:
    return {
        run: list(zip(some["epoch"], some["value"], strict=True))
        for run, some in curves.groupby("run_id")
    }


def test_steps_become_epochs_and_a_pruned_trial_ends_where_it_ended() -> None:
    curves = learning_curves(history(bad=[0.1, 0.2], good=[0.3, 0.4, 0.5], stranger=[0.9]), TABLE)
    assert list(curves) == CURVES
    assert curves.to_numpy().tolist() == [
        ["good", "custom #1", "front", 1, 0.3],
        ["good", "custom #1", "front", 2, 0.4],
        ["good", "custom #1", "front", 3, 0.5],
        ["bad", "custom #0", "pruned", 1, 0.1],
        ["bad", "custom #0", "pruned", 2, 0.2],
    ]


def test_seeds_are_averaged_as_far_as_all_of_them_go() -> None:
    seeds = {"seed0": "good", "seed1": "good", "seed2": "good"}
    runs = history(seed0=[0.1, 0.2, 0.3], seed1=[0.3, 0.4], seed2=[0.2, 0.6, 0.9], bad=[0.5])
    curves = points(learning_curves(runs, TABLE, seeds))
    assert curves["good"] == [(1, pytest.approx(0.2)), (2, pytest.approx(0.4))]
    assert curves["bad"] == [(1, 0.5)]


def test_of_a_step_that_a_resumed_run_wrote_twice_the_last_counts() -> None:
    runs = pd.DataFrame(
        {"run_id": "good", "step": [50, 100, 100, 150], "value": [0.1, 0.2, 0.25, 0.3]}
    )
    assert points(learning_curves(runs, TABLE))["good"] == [(1, 0.1), (2, 0.25), (3, 0.3)]


def test_missing_values_keep_their_epoch() -> None:
    curves = points(learning_curves(history(good=[0.1, math.nan, 0.3], dead=[math.nan]), TABLE))
    assert curves == {"good": [(1, 0.1), (3, 0.3)]}


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(6)))
def test_the_order_of_the_rows_does_not_matter(order: list[int]) -> None:
    runs = history(good=[0.1, 0.2, 0.3], bad=[0.4, 0.5, 0.6])
    pd.testing.assert_frame_equal(
        learning_curves(runs.iloc[order], TABLE), learning_curves(runs, TABLE)
    )


def test_no_history_is_no_curve() -> None:
    curves = learning_curves(history(), TABLE)
    assert curves.empty
    assert list(curves) == CURVES


def test_bounds_need_no_prefix_and_name_their_key() -> None:
    settings = ReportSettings(budgets=["params<=692e3"], floors=[" recall/mel >= 0.8"])
    assert bounds_of(settings) == {
        "budgets": [Limit("efficiency/params", "<=", 692e3)],
        "floors": [Limit("val/recall/mel", ">=", 0.8)],
    }
    with pytest.raises(ConfigError, match=r"floors\[1\]: must be like"):
        bounds_of(ReportSettings(floors=["recall/mel >= 0.8", "params"]))


def test_headline_metrics_are_of_the_knee_and_the_answers(report) -> None:
    metrics = headline(report, report.table)
    rows = report.table.set_index("run_id")
    assert metrics["report/front"] == report.table["front"].sum()
    assert metrics["report/hypervolume"] == report.hypervolume["dense_size"]
    knee = report.table[report.table["knee"]].iloc[0]
    assert metrics["report/knee/efficiency/flops"] == knee["efficiency/flops"]
    best = rows.loc[report.answers[1].run_id, report.quality]
    assert metrics["report/best_with_params_at_most_692k/val/balanced_accuracy"] == best
    assert not [name for name in metrics if "melanoma" in name]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"filter": "x", "study": "s"}, "filter: excludes study"),
        ({"before": "2026-11-21", "study": ["a", "b"]}, "before: compares a study with itself"),
        ({"before": "yesterdayish", "study": "a"}, "before: must be a time such as"),
        ({"register": "a/b"}, "register: must be a model"),
    ],
)
def test_settings_that_exclude_another(settings, message) -> None:
    with pytest.raises(ConfigError, match=message):
        ReportSettings(**settings)
