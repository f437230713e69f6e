"""The answers to which model to take: by hand, and against a plain search over made-up trials."""

import math
import re
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.core.errors import ConfigError
from src.metrics.registry import Limit, Objective
from src.reporting.comparison import compare
from src.reporting.decisions import Answer, budget_choices, decide, quality_objective

QUALITY = Objective("val/balanced_accuracy", "maximize")
FLOPS = Objective("efficiency/flops", "minimize")
RATIO = Limit("efficiency/latency_ratio", "<=", 1)
PARAMS = Limit("efficiency/params", "<=", 692e3)
RECALL = Limit("val/recall/mel", ">=", 0.8)
COLUMNS = {
    "quality": "metrics.best/val/balanced_accuracy",
    "flops": "metrics.efficiency/flops",
    "params": "metrics.efficiency/params",
    "ratio": "metrics.efficiency/latency_ratio",
    "recall": "metrics.best/val/recall/mel",
}
FIVE = [  # number, quality, FLOPs, parameters, x the reference net, recall of melanoma
    (1, 0.640, 4.1e9, 23.5e6, 6.0, 0.70),
    (2, 0.625, 600e6, 2.5e6, 1.5, 0.82),
    (3, 0.622, 300e6, 691_911, math.nan, 0.75),
    (4, 0.580, 30_037_824, 691_911, 1.0, 0.85),
    (5, 0.500, 5e6, 50_000, 0.3, 0.60),
]
BEST_PARAMS, BEST_RATIO = "best with params <= 692k", "best with latency_ratio <= 1"
BEST_RECALL, CHEAPEST_RECALL = "best with recall/mel >= 0.8", "cheapest with recall/mel >= 0.8"
NEAR = "cheapest within 0.02"
ALL_LIMITS = "best with params <= 692k, latency_ratio <= 1 and recall/mel >= 0.8"


def study(rows: list[tuple[Any, ...]], limits: tuple[Limit, ...] = (), **columns: Any) -> Any:
    """A comparison of trials #1, #2 ... with run ids 0000000n..."""
    frame = pd.DataFrame(rows, columns=["number", *COLUMNS]).rename(columns=COLUMNS)
    values = {
        "run_id": [f"{number:08d}abcdef" for number in frame["number"]],
        "status": "FINISHED",
        "tags.model": "custom",
        "tags.kind": "trial",
        "tags.trial": frame["number"].astype(str),
        **columns,
    }
    table = compare(frame.drop(columns="number").assign(**values), [QUALITY, FLOPS], limits)
    return table.assign(label="custom #" + table["trial"])


def answers(
    table: pd.DataFrame, limits: tuple[Limit, ...] = (), **changes: Any
) -> dict[str, Answer]:
    arguments: dict[str, Any] = {
        "objectives": [QUALITY, FLOPS],
        "margin": 0.02,
        "budgets": [PARAMS, RATIO],
        "floors": [RECALL],
    }
    return {item.name: item for item in decide(table, limits=limits, **{**arguments, **changes})}


def number_of(answer: Answer) -> str:
    return answer.run_id[:8].lstrip("0")


@pytest.fixture(scope="module")
def five() -> dict[str, Answer]:
    return answers(study(FIVE))


def test_every_question_by_hand(five: dict[str, Answer]) -> None:
    assert {name: number_of(answer) for name, answer in five.items()} == {
        "best": "1",
        NEAR: "3",
        BEST_PARAMS: "3",
        BEST_RATIO: "4",
        BEST_RECALL: "2",
        CHEAPEST_RECALL: "4",
        ALL_LIMITS: "4",
    }
    assert five[NEAR].question == (
        "Which model is the cheapest (least FLOPs) within 0.02 of the best balanced accuracy?"
    )


@pytest.mark.parametrize("name", ["malignant", "melanoma", "MEL"])
def test_melanoma_has_the_name_of_the_data(name: str) -> None:
    table = study(FIVE).rename(columns={"best/val/recall/mel": f"best/val/recall/{name}"})
    answer = answers(table)[f"best with recall/{name} >= 0.8"]
    assert number_of(answer) == "2"
    assert f"recall of {name} >= 0.8" in answer.question


def test_a_quality_to_minimize_and_a_cost_to_maximize() -> None:
    throughput = "efficiency/throughput"
    names = {"best/val/balanced_accuracy": "best/val/loss", "efficiency/flops": throughput}
    rows = [(1, 0.5, 100, 1, 1, 1), (2, 0.52, 300, 1, 1, 1), (3, 0.6, 900, 1, 1, 1)]
    objectives = [Objective("val/loss", "minimize"), Objective(throughput, "maximize")]
    changes = {"objectives": objectives, "budgets": [], "floors": []}
    items = answers(study(rows).rename(columns=names), **changes)
    assert number_of(items["best"]) == "1"
    near = items[NEAR]
    assert number_of(near) == "2"
    assert near.question == (
        "Which model is the cheapest (most throughput) within 0.02 of the best loss?"
    )
    given_up = "0.02 of loss given up, throughput 300 images/s instead of 100 (3 times as much)"
    assert given_up in near.text


def test_the_quality_objective_and_bad_margins() -> None:
    with pytest.raises(ConfigError, match="margin: must be at least 0, but got -0.1"):
        answers(study(FIVE), margin=-0.1)
    with pytest.raises(ConfigError, match="objectives"):
        quality_objective([FLOPS])
    assert quality_objective([FLOPS, Objective("val/loss", "minimize"), QUALITY]) == QUALITY
    assert quality_objective([Objective("efficiency/throughput", "maximize"), QUALITY]) == QUALITY


VALUE = st.one_of(st.sampled_from([0.0, 0.5, 0.62, 0.64, 1.0, math.nan]), st.floats(0, 1))
COST = st.one_of(st.sampled_from([1e5, 692e3, 691_911, math.nan]), st.floats(1, 1e10))
STATUS = st.sampled_from(["FINISHED", "FINISHED", "FAILED"])
TRIAL = st.tuples(VALUE, COST, COST, st.floats(0.1, 8), VALUE, STATUS)
UNREADABLE = r"\bnan\b|\binf\b|\d[eE][+-]?\d|\b0\.0+\b(?! *x)|\b1 trials\b|  "


@settings(deadline=None, max_examples=25)
@given(st.lists(TRIAL, min_size=1, max_size=12), st.sampled_from([0.0, 0.02, 0.3]))
def test_no_run_that_qualifies_is_better_than_the_answer(trials: list[Any], margin: float) -> None:
    rows = [(number, *trial[:5]) for number, trial in enumerate(trials)]
    limits = (Limit("efficiency/params", "<=", 5e9),)
    table = study(rows, limits, status=[trial[5] for trial in trials])
    items = answers(table, limits, margin=margin)

    finished = [row for row, trial in zip(rows, trials, strict=True) if trial[5] == "FINISHED"]
    pool = [row for row in finished if not math.isnan(row[1]) and row[3] <= 5e9]
    top = max((row[1] for row in pool), default=math.nan)
    conditions = {
        "best": lambda row: True,
        f"cheapest within {margin:g}": lambda row: row[1] >= top - margin - 1e-9,
        BEST_PARAMS: lambda row: row[3] <= 692e3,
        BEST_RATIO: lambda row: row[4] <= 1,
        BEST_RECALL: lambda row: row[5] >= 0.8,
        CHEAPEST_RECALL: lambda row: row[5] >= 0.8,
        ALL_LIMITS: lambda row: row[3] <= 692e3 and row[4] <= 1 and row[5] >= 0.8,
    }
    assert set(items) == set(conditions)
    offered = budget_choices(table, [QUALITY, FLOPS])[0].to_dict("records")
    questions = {"best": (), BEST_PARAMS: (PARAMS,), BEST_RATIO: (RATIO,), BEST_RECALL: (RECALL,)}
    questions[ALL_LIMITS] = (PARAMS, RATIO, RECALL)
    for name, holds in conditions.items():
        cheapest, answer = name.startswith("cheapest"), items[name]
        qualified = [row for row in pool if holds(row) and not (cheapest and math.isnan(row[2]))]
        costs = {row[0]: math.inf if math.isnan(row[2]) else row[2] for row in qualified}
        keys = {
            row[0]: (costs[row[0]], -row[1]) if cheapest else (-row[1], costs[row[0]])
            for row in qualified
        }
        assert (answer.run_id == "") == (not qualified)
        if qualified:
            assert keys[int(answer.run_id[:8])] == min(keys.values())
        limits = questions.get(name)
        if limits is not None:  # the page takes the first choice that keeps the limits
            kept = (
                row for row in offered if all(limit.holds(row[limit.metric]) for limit in limits)
            )
            assert next(kept, {"run_id": ""})["run_id"] == answer.run_id
        assert answer.text.endswith(".")
        assert not re.search(UNREADABLE, answer.text), answer.text


def test_an_answer_has_figures_what_is_given_up_and_the_next_run(five: dict[str, Answer]) -> None:
    following = (
        "Next: custom #2 (run 00000002): balanced accuracy 0.625 on validation, 600M multiply-adds."
    )
    assert five["best"].text == (
        "custom #1 (run 00000001): balanced accuracy 0.640 on validation, 4.1G multiply-adds. "
        f"{following}"
    )
    assert five[NEAR].text == (
        "custom #3 (run 00000003): balanced accuracy 0.622 on validation, 300M multiply-adds. "
        "Qualified: 3 of 5 trials. Compared with the best of all, custom #1 (run 00000001): "
        "1.8 percentage points of balanced accuracy given up, 300M multiply-adds instead of 4.1G "
        f"(14 times less). {following}"
    )
    text = five[BEST_RATIO].text
    assert text.startswith("custom #4 (run 00000004): balanced accuracy 0.580 on validation, 30M")
    assert "latency 1 x the reference net instead of 6 (6 times less)." in text
    assert text.endswith(
        "Not considered for lack of latency relative to the reference net: 1 trial."
    )


def test_the_closest_run_is_named_with_what_it_misses() -> None:
    text = answers(study(FIVE[:3]))[BEST_RECALL].text
    assert text.startswith("custom #2 (run 00000002): balanced accuracy 0.625")
    assert "The closest that does not qualify: custom #3 (run 00000003): " in text
    assert text.endswith("it misses recall of mel >= 0.8 by 5 percentage points (0.750).")
    answer = answers(study(FIVE[:2]))[BEST_PARAMS]
    assert answer.run_id == ""
    assert answer.text.startswith("None of 2 trials qualifies. The ")
    # 2.5M - 692k = 1.808M
    assert "it misses parameters <= 692k by 1.81M parameters (2.5M)." in answer.text


@pytest.mark.parametrize(
    ("rows", "name", "chosen"),
    [
        # equally good: the cheaper one, then the first one
        ([(1, 0.6, 2e6, 1, 1, 1), (2, 0.6, 1e6, 1, 1, 1)], "best", "2"),
        ([(1, 0.6, 1e6, 1, 1, 1), (2, 0.6, 1e6, 1, 1, 1)], "best", "1"),
        ([(1, 0.6, math.nan, 1, 1, 1), (2, 0.6, 1e6, 1, 1, 1)], "best", "2"),
        ([(n, 0.6, n * 1e6, 1, 1, 1) for n in (3, 2, 1)], "best", "1"),
        # equally cheap: the better one
        ([(1, 0.60, 1e6, 1, 1, 0.9), (2, 0.61, 1e6, 1, 1, 0.9)], CHEAPEST_RECALL, "2"),
    ],
)
def test_ties(rows: list[Any], name: str, chosen: str) -> None:
    answer = answers(study(rows))[name]
    assert number_of(answer) == chosen
    assert ("It is also the best of all." in answer.text) == (name != "best")


def test_runs_that_are_not_considered_are_counted() -> None:
    more = [(6, math.nan, 1e6, 1, 1, 0.9), (7, 0.9, 1e6, 1, 1, 0.9), (8, 0.9, 1e6, 1, 1, 0.9)]
    status = ["FINISHED"] * 6 + ["FAILED", "KILLED"]
    limits = (Limit("efficiency/params", "<=", 5e6),)
    best = answers(study([*FIVE, *more], limits, status=status), limits)["best"]
    assert number_of(best) == "2"
    assert best.text.endswith(
        "Not considered: 2 did not finish, 1 finished without balanced accuracy and 1 exceeded a "
        "limit of the study (parameters <= 5M)."
    )
    none = answers(study(FIVE[:2], status="FAILED"))
    assert {(answer.run_id, answer.text) for answer in none.values()} == {
        ("", "No trial has a result. Not considered: 2 did not finish.")
    }


def test_a_cost_or_a_class_that_no_run_has() -> None:
    table = study(FIVE).drop(columns=["efficiency/flops", "best/val/recall/mel"])
    items = answers(table)
    assert items[NEAR].run_id == items[BEST_RECALL].run_id == ""
    assert items[NEAR].text == (
        "No trial has all the figures that this question needs. "
        "Not considered for lack of FLOPs: 5 trials."
    )
    assert number_of(items["best"]) == "1"
    assert "It has no recorded FLOPs." in items["best"].text


def test_the_spread_over_seeds_is_shown() -> None:
    table = study(FIVE).assign(**{"spread/best/val/balanced_accuracy": 0.0123})
    assert "0.640 (standard deviation over the seeds 0.012)" in answers(table)["best"].text
