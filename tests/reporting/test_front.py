"""Rank, state, hypervolume over time and new points of small studies; expected values by hand."""

import numpy as np
import pandas as pd
import pytest

from src.metrics.pareto import Scale
from src.metrics.registry import Limit, Objective
from src.reporting import collect
from src.reporting.collect import StudyRuns

QUALITY, COST = Objective("val/accuracy", "maximize"), Objective("efficiency/params", "minimize")
OBJECTIVES = [QUALITY, COST]


def trial(
    number: int, accuracy: float, params: float, status: str = "FINISHED", state: str = "complete"
) -> dict:
    return {
        "run_id": f"run{number}",
        "parent_id": "parent",
        "status": status,
        "end_time": pd.Timestamp("2026-11-21", tz="UTC") + pd.Timedelta(minutes=number),
        "tags.model": "custom",
        "tags.trial": str(number),
        "tags.trial_state": state,
        "metrics.best/val/accuracy": accuracy,
        "metrics.efficiency/params": params,
    }


def study(*trials: dict, name: str = "s") -> StudyRuns:
    return StudyRuns(name, "parent", pd.DataFrame(list(trials)), pd.DataFrame())


TRIALS = [
    trial(0, 0.5, 4),
    trial(1, 0.9, 8),  # front
    trial(2, 0.9, 9),  # dominated by 1 alone
    trial(3, 0.6, 4),  # front
    trial(4, np.nan, 1, state="pruned"),
    trial(5, np.nan, 1, status="FAILED", state="fail"),
    trial(6, np.nan, 2),  # finished, but without the metric
]


def ranked(given: StudyRuns, limits: list[Limit] | None = None) -> pd.DataFrame:
    table = collect.compared(given, OBJECTIVES, limits or [])
    return collect.rank(
        table, OBJECTIVES, Scale.fit(collect.values_of(table, OBJECTIVES), OBJECTIVES)
    )[0]


def test_every_trial_has_its_state_and_those_with_a_result_their_rank() -> None:
    table = ranked(study(*TRIALS)).set_index("run_id")
    assert table["state"].to_dict() == {
        "run0": "dominated",
        "run1": "front",
        "run2": "dominated",
        "run3": "front",
        "run4": "pruned",
        "run5": "failed",
        "run6": "no value",
    }
    assert table["rank"].dropna().to_dict() == {"run1": 0, "run2": 1, "run3": 0, "run0": 1}
    assert table.loc["run3", "label"] == "custom #3"


def test_a_trial_over_a_limit_is_ranked_nowhere() -> None:
    table = ranked(study(*TRIALS), [Limit("efficiency/params", "<=", 8.0)]).set_index("run_id")
    assert table.loc["run2", "state"] == "over limit"
    assert np.isnan(table.loc["run2", "rank"])


def test_labels_are_unique_though_two_trials_share_model_and_number() -> None:
    table = collect.compared(
        study(trial(0, 0.5, 4), trial(0, 0.6, 4) | {"run_id": "other"}), OBJECTIVES, []
    )
    assert table["label"].is_unique


def test_the_hypervolume_over_time_never_falls_and_ends_at_the_fronts() -> None:
    given = study(*TRIALS)
    table = collect.compared(given, OBJECTIVES, [])
    scale = Scale.fit(collect.values_of(table, OBJECTIVES), OBJECTIVES)
    progress = collect.progress(table, OBJECTIVES, scale)
    assert list(progress["trials"]) == [1, 2, 3, 4, 5, 6, 7]
    assert (progress["hypervolume"].diff().dropna() >= 0).all()
    # accuracy 0.5 to 0.9 and 4 to 9 parameters (no factor of ten: linear) become 0 to 1; reference
    # 1.1 in both. run3 is (0.75, 0), run1 (0, 0.8): 0.35 x 1.1 + 0.75 x 0.3 = 0.61, of 1.1 x 1.1
    assert progress["hypervolume"].iloc[-1] == pytest.approx(0.61 / 1.21)


def test_new_points_are_those_that_no_other_front_covers() -> None:
    one = study(trial(0, 0.5, 4), trial(1, 0.9, 8))
    two = study(trial(0, 0.5, 4), trial(1, 0.8, 8), trial(2, 0.4, 1), name="t")
    tables = [ranked(one), ranked(two)]
    scale = Scale.fit(
        np.vstack([collect.values_of(each, OBJECTIVES) for each in tables]), OBJECTIVES
    )
    found, fresh = collect.comparison(tables, OBJECTIVES, scale)
    assert list(found["new_points"]) == [1, 1]  # 0.9 with 8; 0.4 with 1. (0.5, 4) is on both
    assert fresh == ["custom #1"]
    assert list(found["front"]) == [2, 3]
    assert list(found["best best/val/accuracy"]) == [0.9, 0.8]
    assert list(found["best efficiency/params"]) == [4, 1]


def test_a_study_in_which_nothing_has_a_value_has_no_front() -> None:
    table = ranked(study(trial(0, np.nan, 4), trial(1, np.nan, 5)))
    assert not table["front"].any()
    assert not table["knee"].any()


def test_costs_are_those_that_any_trial_has() -> None:
    table = ranked(study(*TRIALS))
    assert collect.costs_of(table, OBJECTIVES) == ["efficiency/params"]
    assert collect.quality_of(OBJECTIVES) == "best/val/accuracy"
    throughput = Objective("efficiency/throughput", "maximize")
    assert collect.quality_of([throughput, Objective("val/loss", "minimize")]) == "best/val/loss"
