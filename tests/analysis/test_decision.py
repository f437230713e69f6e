import math
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.core.errors import ConfigError
from src.metrics.registry import Limit, Objective
from src.reporting.comparison import compare
from src.reporting.decisions import Answer, decide, quality_objective

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


def study(
    rows: list[tuple[Any, ...]], limits: tuple[Limit, ...] = (), objectives: Any = None, **tags: Any
) -> Any:
    """A comparison of trials #1, #2 ... whose run ids begin with 0000000n; `tags` are columns of the runs."""
    frame = pd.DataFrame(rows, columns=["number", *COLUMNS]).rename(columns=COLUMNS)
    runs = frame.drop(columns="number").assign(
        **{
            "run_id": [f"{number:08d}abcdef" for number in frame["number"]],
            "status": "FINISHED",
            "tags.model": "custom",
            "tags.kind": "trial",
            "tags.trial": frame["number"].astype(str),
            **tags,
        }
    )
    table = compare(runs, objectives or [QUALITY, FLOPS], limits)
    return table.assign(label="custom #" + table["trial"])


def answers(
    table: pd.DataFrame, limits: tuple[Limit, ...] = (), **changes: Any
) -> dict[str, Answer]:
    asked: dict[str, Any] = {
        "objectives": [QUALITY, FLOPS],
        "margin": 0.02,
        "budgets": [PARAMS, RATIO],
        "floors": [RECALL],
        "cost": "efficiency/flops",
        **changes,
    }
    return {answer.name: answer for answer in decide(table, limits=limits, **asked)}


def test_every_question_by_hand() -> None:
    found = answers(study(FIVE))
    assert {name: answer.run_id[:8].lstrip("0") for name, answer in found.items()} == {
        "best": "1",
        "cheapest within 0.02": "3",
        "best with params <= 692k": "3",
        "best with latency_ratio <= 1": "4",
        "best with recall/mel >= 0.8": "2",
        "cheapest with recall/mel >= 0.8": "4",
        "best with params <= 692k, latency_ratio <= 1 and recall/mel >= 0.8": "4",
    }
    assert found["cheapest within 0.02"].question == (
        "Which model is the cheapest (least FLOPs) within 0.02 of the best balanced accuracy?"
    )


def test_paragraphs_give_the_figures_what_is_given_up_and_who_is_next() -> None:
    found = answers(study(FIVE))
    assert found["best"].text == (
        "The best of 5 trials by balanced accuracy is custom #1 (run 00000001), with balanced accuracy 0.640 on the "
        "validation split, at 4.1G multiply-adds. Next is custom #2 (run 00000002), 1.5 percentage points behind, at "
        "600M multiply-adds."
    )
    assert found["cheapest within 0.02"].text == (
        "3 of 5 trials lie within 2 percentage points of the best balanced accuracy, 0.640; the cheapest of them is "
        "custom #3 (run 00000003), with balanced accuracy 0.622 on the validation split, at 300M multiply-adds. "
        "Against the best of all, custom #1 (run 00000001), it gives up 1.8 percentage points of balanced accuracy, "
        "for 300M multiply-adds instead of 4.1G (14 times less). Next is custom #2 (run 00000002), with 600M "
        "multiply-adds instead of 300M (2 times as much) and balanced accuracy 0.625."
    )
    assert found["best with latency_ratio <= 1"].text == (
        "2 of 4 trials have latency <= 1 x the reference net; the best of them is custom #4 (run 00000004), with "
        "balanced accuracy 0.580 on the validation split, at 30M multiply-adds and latency 1 x the reference net. "
        "Against the best of all, custom #1 (run 00000001), it gives up 6 percentage points of balanced accuracy, for "
        "30M multiply-adds instead of 4.1G (136 times less) and latency 1 x the reference net instead of 6 (6 times "
        "less). Next is custom #5 (run 00000005), 8 percentage points behind, at 5M multiply-adds. 1 trial has no "
        "latency relative to the reference net and could not be considered."
    )


def test_where_one_qualifies_the_nearest_other_is_named() -> None:
    text = answers(study(FIVE[:3]))["best with recall/mel >= 0.8"].text
    assert text.startswith(
        "1 of 3 trials has recall of mel >= 0.8: custom #2 (run 00000002), with balanced accuracy "
    )
    assert text.endswith(
        "The nearest that does not qualify is custom #3 (run 00000003): it misses recall of mel >= 0.8 by 5 percentage "
        "points (0.750)."
    )


def test_where_none_qualifies_the_closest_is_named_with_what_it_misses() -> None:
    found = answers(study(FIVE[:2]))
    assert found["best with params <= 692k"].run_id == ""
    # 2.5M - 692k = 1.808M; 2.5M / 692k = 3.61
    assert found["best with params <= 692k"].text == (
        "None of 2 trials has parameters <= 692k. custom #2 (run 00000002) comes closest: it misses parameters <= 692k "
        "by 1.81M parameters (2.5M, 3.6 times as much). It has balanced accuracy 0.625 on the validation split, at "
        "600M multiply-adds."
    )
    together = found["best with params <= 692k, latency_ratio <= 1 and recall/mel >= 0.8"].text
    assert "(1.5, 50% more), but has recall of mel >= 0.8." in together
    assert together.endswith(
        "Taken alone, parameters <= 692k is kept by none, latency <= 1 x the reference net is kept by none and recall "
        "of mel >= 0.8 is kept by 1 trial."
    )


@pytest.mark.parametrize(
    ("rows", "chosen", "told"),
    [
        # equally good: the cheaper one
        (
            [(1, 0.6, 2e6, 1, 1, 1), (2, 0.6, 1e6, 1, 1, 1)],
            "2",
            "exactly as good, but not as cheap: 2M multiply-adds",
        ),
        (
            [(1, 0.6, 1e6, 1, 1, 1), (2, 0.6, 1e6, 1, 1, 1)],
            "1",
            "exactly as good and as cheap; the one that stands",
        ),
        # two are alike in both, a third only in quality
        (
            [(n, 0.6, flops, 1, 1, 1) for n, flops in ((1, 1e6), (2, 2e6), (3, 1e6))],
            "1",
            "#3 (run 00000003) is exactly",
        ),
        (
            [(1, 0.6, math.nan, 1, 1, 1), (2, 0.6, 1e6, 1, 1, 1)],
            "2",
            "exactly as good, but of unknown FLOPs",
        ),
        (
            [(n, 0.6, n * 1e6, 1, 1, 1) for n in (3, 2, 1)],
            "1",
            "2 others, custom #2 (run 00000002) first, are exactly",
        ),
    ],
)
def test_ties_go_to_the_cheaper_then_to_the_first(rows: list[Any], chosen: str, told: str) -> None:
    answer = answers(study(rows))["best"]
    assert answer.run_id[:8].lstrip("0") == chosen
    assert told in answer.text


def test_of_equally_cheap_ones_the_better() -> None:
    answer = answers(study([(1, 0.60, 1e6, 1, 1, 0.9), (2, 0.61, 1e6, 1, 1, 0.9)]))[
        "cheapest with recall/mel >= 0.8"
    ]
    assert answer.run_id.startswith("00000002")
    assert (
        "custom #1 (run 00000001) is exactly as cheap, but 1 percentage point behind in"
        in answer.text
    )


def test_who_does_not_count_is_said() -> None:
    rows = [
        *FIVE,
        (6, math.nan, 1e6, 1, 1, 0.9),
        (7, 0.9, 1e6, 1, 1, 0.9),
        (8, 0.9, 1e6, 1, 1, 0.9),
    ]
    states = ["FINISHED"] * 6 + ["FAILED", "KILLED"]
    limit = Limit("efficiency/params", "<=", 5e6)
    found = answers(study(rows, (limit,), status=states), (limit,))
    assert found["best"].run_id.startswith("00000002")
    assert found["best"].text.endswith(
        "2 trials did not finish (1 failed and 1 killed). 1 finished trial has no balanced accuracy. 1 trial breaks a "
        "limit of the study (parameters <= 5M) and does not count."
    )
    nobody = answers(study(FIVE[:2], status="FAILED"))
    assert {answer.run_id for answer in nobody.values()} == {""}
    assert {answer.text for answer in nobody.values()} == {
        "No trial has a result to choose by. 2 trials did not finish (failed)."
    }


def test_a_cost_or_a_class_that_no_run_has() -> None:
    table = study(FIVE).drop(columns=["efficiency/flops", "best/val/recall/mel"])
    found = answers(table)
    assert found["cheapest within 0.02"].run_id == ""
    assert found["cheapest within 0.02"].text == (
        "No trial has all the figures that this needs. 5 trials have no FLOPs and could not be considered."
    )
    assert found["best"].run_id.startswith("00000001")
    assert "on the validation split. It has no known FLOPs." in found["best"].text
    assert found["best with recall/mel >= 0.8"].run_id == ""


@pytest.mark.parametrize("name", ["malignant", "melanoma", "MEL"])
def test_melanoma_goes_by_the_name_that_it_has_in_the_data(name: str) -> None:
    table = study(FIVE).rename(columns={"best/val/recall/mel": f"best/val/recall/{name}"})
    answer = answers(table)[f"best with recall/{name} >= 0.8"]
    assert answer.run_id.startswith("00000002")
    assert f"recall of {name} >= 0.8" in answer.text


def test_spread_over_seeds_is_told() -> None:
    table = study(FIVE).assign(**{"spread/best/val/balanced_accuracy": 0.0123})
    assert "0.640 (mean over the seeds, standard deviation 0.012)" in answers(table)["best"].text


def test_quality_that_is_to_fall_and_cost_that_is_to_rise() -> None:
    objectives = [Objective("val/loss", "minimize"), Objective("efficiency/throughput", "maximize")]
    names = {
        "best/val/balanced_accuracy": "best/val/loss",
        "efficiency/flops": "efficiency/throughput",
    }
    table = study([(1, 0.5, 100, 1, 1, 1), (2, 0.52, 300, 1, 1, 1), (3, 0.6, 900, 1, 1, 1)]).rename(
        columns=names
    )
    found = answers(
        table, objectives=objectives, cost="efficiency/throughput", budgets=[], floors=[]
    )
    assert found["best"].run_id.startswith("00000001")
    near = found["cheapest within 0.02"]
    assert near.run_id.startswith("00000002")
    assert (
        near.question
        == "Which model is the cheapest (most throughput) within 0.02 of the best loss?"
    )
    assert (
        "gives up 0.02 of loss, for throughput 300 images/s instead of 100 (3 times as much)"
        in near.text
    )


def test_what_cannot_be_asked() -> None:
    with pytest.raises(ConfigError, match="margin: must be at least 0, but got -0.1"):
        answers(study(FIVE), margin=-0.1)
    with pytest.raises(ConfigError, match="objectives"):
        quality_objective([FLOPS])
    assert quality_objective([FLOPS, Objective("val/loss", "minimize"), QUALITY]) == QUALITY
    assert quality_objective([Objective("efficiency/throughput", "maximize"), QUALITY]) == QUALITY


VALUE = st.one_of(st.sampled_from([0.0, 0.5, 0.62, 0.64, 1.0, math.nan]), st.floats(0, 1))
COST = st.one_of(st.sampled_from([1e5, 692e3, 691_911, math.nan]), st.floats(1, 1e10))
TRIALS = st.lists(
    st.tuples(
        VALUE,
        COST,
        COST,
        st.floats(0.1, 8),
        VALUE,
        st.sampled_from(["FINISHED", "FINISHED", "FAILED"]),
    ),
    min_size=1,
    max_size=12,
)


@settings(deadline=None, max_examples=60)
@given(TRIALS, st.sampled_from([0.0, 0.02, 0.3]))
def test_the_chosen_qualifies_and_nobody_that_does_is_better(
    trials: list[Any], margin: float
) -> None:
    rows = [(number, *trial[:5]) for number, trial in enumerate(trials)]
    study_limit = Limit("efficiency/params", "<=", 5e9)
    table = study(rows, (study_limit,), status=[trial[5] for trial in trials])
    found = answers(table, (study_limit,), margin=margin)

    finished = [row for row, trial in zip(rows, trials, strict=True) if trial[5] == "FINISHED"]
    pool = [row for row in finished if not math.isnan(row[1]) and row[3] <= 5e9]
    top = max((row[1] for row in pool), default=math.nan)
    conditions = {
        "best": lambda row: True,
        f"cheapest within {margin:g}": lambda row: row[1] >= top - margin - 1e-9,
        "best with params <= 692k": lambda row: row[3] <= 692e3,
        "best with latency_ratio <= 1": lambda row: row[4] <= 1,
        "best with recall/mel >= 0.8": lambda row: row[5] >= 0.8,
        "cheapest with recall/mel >= 0.8": lambda row: row[5] >= 0.8,
        "best with params <= 692k, latency_ratio <= 1 and recall/mel >= 0.8": lambda row: (
            row[3] <= 692e3 and row[4] <= 1 and row[5] >= 0.8
        ),
    }
    assert set(found) == set(conditions)
    for name, holds in conditions.items():
        cheapest = name.startswith("cheapest")
        qualified = [row for row in pool if holds(row) and not (cheapest and math.isnan(row[2]))]
        costs = {row[0]: math.inf if math.isnan(row[2]) else row[2] for row in qualified}
        keys = {
            row[0]: (costs[row[0]], -row[1]) if cheapest else (-row[1], costs[row[0]])
            for row in qualified
        }
        run_id = found[name].run_id
        assert (run_id == "") == (not qualified)
        if qualified:
            assert keys[int(run_id[:8])] == min(keys.values())
        text = found[name].text
        assert text.endswith(".")
        assert not re.search(
            r"\bnan\b|\binf\b|\d[eE][+-]?\d|\b0\.0+\b(?! *x)|\b1 trials\b|  ", text
        ), text


def test_ten_thousand_trials_are_a_table_like_any_other() -> None:
    generator = np.random.default_rng(0)
    rows = [
        (n, *generator.random(1), 10 ** generator.uniform(6, 10), 1e6, 2.0, 0.9)
        for n in range(10_000)
    ]
    assert "The best of 10,000 trials" in answers(study(rows))["best"].text
