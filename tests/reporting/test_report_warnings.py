"""Sentences of a report follow from its figures."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from made_up import COSTS, OBJECTIVES

from src.metrics.pareto import Scale
from src.metrics.registry import Limit, Objective
from src.reporting import uncertainty
from src.reporting.decisions import Answer, sentences

FLOOR = Limit("val/recall/mel", ">=", 0.8)


def with_test_figures(report, recall: tuple[float, float, float]):
    """One chosen run with figures on test."""
    rows = [("a", "test", "balanced_accuracy", 0.6, 0.55, 0.65, 31, 20)]
    rows.append(("a", "test", "recall/mel", *recall, 31, 20))
    columns = ["run_id", "split", "metric", "estimate", "low", "high", "images", "groups"]
    answers = [
        Answer("best", "?", "a", ""),
        Answer("cheap", "?", "a", ""),
        Answer("x", "?", "", ""),
    ]
    table = pd.DataFrame({"run_id": ["a"], "label": ["custom #1"]})
    intervals = pd.DataFrame(rows, columns=columns).assign(label="custom #1")
    return replace(report, table=table, answers=answers, intervals=intervals)


@pytest.mark.parametrize(
    ("recall", "verdict", "more"),
    [
        ((0.9, 0.81, 0.97), "kept", None),
        # (1.96 / 0.1)^2 * 0.8 * 0.2 is 61.46: 62 lesions, of which 20 are there
        ((0.9, 0.75, 0.97), "kept, undecided", 42),
        ((0.7, 0.55, 0.85), "not kept, undecided", 42),
        ((0.6, 0.5, 0.79), "not kept", None),
    ],
)
def test_floors_on_test_are_judged_with_their_interval(bare, recall, verdict, more) -> None:
    quality, floor = uncertainty.on_test(with_test_figures(bare, recall), [FLOOR]).to_dict(
        "records"
    )
    assert (quality["metric"], quality["estimate"], quality["low"]) == (
        "balanced accuracy",
        0.6,
        0.55,
    )
    assert pd.isna(quality["verdict"])
    assert (floor["metric"], floor["floor"], floor["images"]) == ("recall of mel", ">= 0.8", 31)
    assert (floor["label"], floor["verdict"]) == ("custom #1", verdict)
    assert floor["more_lesions"] == more or (more is None and pd.isna(floor["more_lesions"]))
    assert uncertainty.on_test(replace(bare, intervals=pd.DataFrame()), [FLOOR]).empty


def test_a_screening_study_judges_the_recall_at_the_chosen_threshold(bare) -> None:
    """17 of 20 lesions: 0.85 [0.621, 0.968] by Clopper and Pearson's table."""
    report = replace(
        with_test_figures(bare, (0.6, 0.5, 0.7)), quality="best/val/chosen/specificity/mel"
    )
    table = report.table.assign(**{"test/chosen/sensitivity/mel": 0.85})
    several = replace(report, table=table, intervals=report.intervals.assign(seeds=3))
    [row] = uncertainty.on_test(several, []).to_dict("records")
    # the interval of a single net would be too narrow
    assert row["verdict"] == "kept, undecided"
    assert pd.isna([row["low"], row["high"], row["more_lesions"]]).all()
    report = replace(report, intervals=report.intervals.assign(seeds=1))
    [row] = uncertainty.on_test(replace(report, table=table), []).to_dict("records")
    assert row["metric"] == "sensitivity of mel at the threshold chosen on validation"
    assert (row["estimate"], row["floor"], row["verdict"]) == (0.85, ">= 0.8", "kept, undecided")
    assert (row["low"], row["high"]) == pytest.approx((0.621, 0.968), abs=5e-4)
    assert row["more_lesions"] == 246 - 20  # (1.96 / 0.05)^2 * 0.16 is 245.9
    [surer] = uncertainty.on_test(replace(report, table=table), [], 0.5).to_dict("records")
    assert row["low"] < surer["low"] < surer["high"] < row["high"]
    assert uncertainty.on_test(report, []).empty  # not tested


def test_counts_are_in_order_and_without_zeros() -> None:
    table = pd.DataFrame({"state": ["pruned", "front", "failed", "pruned", "dominated", "new"]})
    expected = {"front": 1, "dominated": 1, "pruned": 2, "failed": 1, "new": 1}
    assert uncertainty.counts(table) == expected
    assert list(uncertainty.counts(table)) == list(expected)


def test_a_net_and_its_compression_are_not_the_same_net() -> None:
    rows = {"label": ["a", "b"], "front": True, COSTS[0]: 1e6, COSTS[1]: 1e5, COSTS[3]: [1.0, 0.5]}
    [sentence] = uncertainty.same_sizes(pd.DataFrame(rows), OBJECTIVES)
    assert sentence.startswith("a and b have the same FLOPs and parameters")
    assert not uncertainty.same_sizes(
        pd.DataFrame(rows | {"compression": ["", "int8"]}), OBJECTIVES
    )
    assert not uncertainty.same_sizes(pd.DataFrame(rows), [Objective(COSTS[0], "minimize")])


def test_warnings_say_what_may_mislead(report) -> None:
    columns = {"split": "image (leaking)", "grouped_by": "lesion", "split_fingerprint": "f"}
    table = report.table.assign(**columns, flops_missing="")
    front = table.index[table["front"]]
    table.loc[table.index[table["state"] == "dominated"][0], "tested"] = "as a member of the front"
    table["tested"] = table["tested"].fillna("")
    trials = pd.DataFrame(
        {
            "run_id": table["run_id"],
            "tags.device": ["cpu", "gpu"] * 40,
            "tags.git_commit": "c",
            "tags.git_dirty": "true",
            "tags.data": "synthetic",
            "tags.test_failure": None,
        }
    )
    trials.loc[front, "tags.test_failure"] = "the images are gone"
    trials.loc[trials.index[-1], "tags.data"] = None  # was killed before it had any
    doubts, remarks = uncertainty.warnings(replace(report, table=table), ["a note"], trials)
    expected = [
        "LEAKAGE",
        "The images are drawn, not photographed",
        "Latency was measured on different devices (cpu, gpu)",
        f"No test figures for {len(front)} members of the front",
    ]
    heads = [one.partition(":")[0] for one in doubts]
    assert [head for head in heads if head in expected] == expected
    sentences = "\n".join([*doubts, *remarks])
    pruned, finished = (table["state"] == "pruned").sum(), (table["status"] == "FINISHED").sum()
    for part in (
        "a note",
        "LEAKAGE: ",
        f"are of {finished} finished trials, without {pruned} pruned.",
        "Tested for an earlier front or another report: dense_size #",
        "different devices (cpu, gpu)",
        "uncommitted changes",
        f"No test figures for {len(front)} members of the front: ",
        "(the images are gone).",
        "The images are drawn, not photographed",
        "Everything was chosen on validation images.",
        "a multiply-add counts as one",
        "Research software, no medical device",
    ):
        assert part in sentences
    assert "commits" not in sentences


def test_pruned_trials_above_the_best_finished_one_are_named(report) -> None:
    curves = report.curves.copy()
    pruned = curves.index[curves["state"] == "pruned"][0]
    assert uncertainty.pruned_above(report.table, curves, report.quality) == []
    curves.loc[pruned, "value"] = 0.99
    [sentence] = uncertainty.pruned_above(report.table, curves, report.quality)
    assert sentence.startswith("1 pruned trial had more than the best finished trial's 0.")
    assert f"{curves.loc[pruned, 'label']} (0.990)" in sentence


def test_a_scale_is_described_with_range_unit_and_direction() -> None:
    values = np.array([[0.612, 30_037_824], [0.402, 4.1e9]])
    assert sentences("scale", scale=Scale.fit(values, OBJECTIVES[:2])) == [
        "balanced accuracy (validation), more is better: "
        "0 is 0.612 (best), 1 is 0.402 (worst); linear.",
        "FLOPs (multiply-adds), less is better: 0 is 30M multiply-adds (best), "
        "1 is 4.1G multiply-adds (worst); log10.",
    ]
    [constant] = sentences("scale", scale=Scale.fit(np.array([[0.83]]), OBJECTIVES[2:]))
    assert constant.endswith("0.83 x the reference net in all runs, which counts as 0.")
    [missing] = sentences("scale", scale=Scale.fit(np.array([[np.nan]]), OBJECTIVES[2:]))
    assert missing.endswith("no run has a value.")
