"""Learning curves, budgets and headline metrics of a report."""

import math

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from src.core.errors import ConfigError
from src.core.files import CONF
from src.metrics.registry import Limit
from src.metrics.settings import AuditSettings
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


@pytest.mark.parametrize("command", ["report", "evaluate", "card"])
def test_every_command_draws_the_same_samples_so_that_a_figure_has_one_interval(
    command: str,
) -> None:
    config = OmegaConf.load(CONF / "command" / f"{command}.yaml")
    config = config.get("clinical", config)
    for settings_of in (ReportSettings(), AuditSettings()):
        assert (config.samples, config.level) == (settings_of.samples, settings_of.level)


def history(**values: list[float]) -> pd.DataFrame:
    """An epoch every 50 optimizer steps."""
    rows = [
        (run, 50 * (number + 1), value)
        for run, some in values.items()
        for number, value in enumerate(some)
    ]
    return pd.DataFrame(rows, columns=["run_id", "step", "value"])


def test_steps_become_epochs_and_a_pruned_trial_ends_where_it_ended() -> None:
    curves = learning_curves(history(bad=[0.1, 0.2], good=[0.3, 0.4, 0.5], stranger=[0.9]), TABLE)
    assert list(curves) == CURVES
    good, bad = ("good", "custom #1", "front"), ("bad", "custom #0", "pruned")
    rows = [(*good, 1, 0.3), (*good, 2, 0.4), (*good, 3, 0.5), (*bad, 1, 0.1), (*bad, 2, 0.2)]
    assert list(curves.itertuples(index=False, name=None)) == rows


TWICE = pd.DataFrame({"run_id": "good", "step": [50, 100, 100, 150], "value": [0.1, 0.2, 0.4, 0.3]})


@pytest.mark.parametrize(
    ("runs", "seeds", "curves"),
    [
        pytest.param(
            history(s0=[0.1, 0.2, 0.3], s1=[0.3, 0.4], s2=[0.2, 0.6, 0.9], bad=[0.5]),
            dict.fromkeys(["s0", "s1", "s2"], "good"),
            {"good": {1: 0.2, 2: 0.4}, "bad": {1: 0.5}},
            id="the mean as far as all seeds go",
        ),
        pytest.param(TWICE, {}, {"good": {1: 0.1, 2: 0.4, 3: 0.3}}, id="a resumed run counts last"),
        pytest.param(
            history(good=[0.1, math.nan, 0.3], dead=[math.nan]),
            {},
            {"good": {1: 0.1, 3: 0.3}},
            id="missing values keep their epoch",
        ),
        pytest.param(history(), {}, {}, id="no history"),
    ],
)
def test_curves_by_trial(
    runs: pd.DataFrame, seeds: dict[str, str], curves: dict[str, dict[int, float]]
) -> None:
    drawn = learning_curves(runs, TABLE, seeds)
    assert list(drawn) == CURVES
    assert set(drawn["run_id"]) == set(curves)
    for run, rows in drawn.groupby("run_id"):
        assert rows.set_index("epoch")["value"].to_dict() == pytest.approx(curves[run])


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(6)))
def test_the_order_of_the_rows_does_not_matter(order: list[int]) -> None:
    runs = history(good=[0.1, 0.2, 0.3], bad=[0.4, 0.5, 0.6])
    pd.testing.assert_frame_equal(
        learning_curves(runs.iloc[order], TABLE), learning_curves(runs, TABLE)
    )


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
    assert metrics["report/best_with_params_at_most_692k/best/val/balanced_accuracy"] == best
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
