"""Sentences of a report follow from its figures."""

from dataclasses import replace

import pandas as pd
import pytest
from made_up import COSTS, OBJECTIVES

from src.metrics.registry import Limit, Objective
from src.reporting import text
from src.reporting.decisions import Answer

FLOOR = Limit("val/recall/mel", ">=", 0.8)


def with_test_figures(report, recall: tuple[float, float, float]):
    """One chosen run with figures on test."""
    rows = [("a", "test", "balanced_accuracy", 0.6, 0.55, 0.65, 31)]
    rows.append(("a", "test", "recall/mel", *recall, 31))
    columns = ["run_id", "split", "metric", "estimate", "low", "high", "images"]
    answers = [
        Answer("best", "?", "a", ""),
        Answer("cheap", "?", "a", ""),
        Answer("x", "?", "", ""),
    ]
    table = pd.DataFrame({"run_id": ["a"], "label": ["custom #1"]})
    intervals = pd.DataFrame(rows, columns=columns).assign(label="custom #1")
    return replace(report, table=table, answers=answers, intervals=intervals)


@pytest.mark.parametrize(
    ("recall", "verdict"),
    [
        ((0.9, 0.81, 0.97), "kept"),
        ((0.9, 0.75, 0.97), "kept, undecided"),
        ((0.7, 0.55, 0.85), "not kept, undecided"),
        ((0.6, 0.5, 0.79), "not kept"),
    ],
)
def test_floors_on_test_are_judged_with_their_interval(bare, recall, verdict) -> None:
    quality, floor = text.on_test(with_test_figures(bare, recall), [FLOOR]).to_dict("records")
    assert (quality["metric"], quality["estimate"], quality["low"]) == (
        "balanced accuracy",
        0.6,
        0.55,
    )
    assert pd.isna(quality["verdict"])
    assert (floor["metric"], floor["floor"], floor["images"]) == ("recall of mel", ">= 0.8", 31)
    assert (floor["label"], floor["verdict"]) == ("custom #1", verdict)
    assert text.on_test(replace(bare, intervals=pd.DataFrame()), [FLOOR]).empty


def test_counts_are_in_order_and_without_zeros() -> None:
    table = pd.DataFrame({"state": ["pruned", "front", "failed", "pruned", "dominated", "new"]})
    expected = {"front": 1, "dominated": 1, "pruned": 2, "failed": 1, "new": 1}
    assert text.counts(table) == expected
    assert list(text.counts(table)) == list(expected)


def test_a_net_and_its_compression_are_not_the_same_net() -> None:
    rows = {"label": ["a", "b"], "front": True, COSTS[0]: 1e6, COSTS[1]: 1e5, COSTS[3]: [1.0, 0.5]}
    [sentence] = text.same_sizes(pd.DataFrame(rows), OBJECTIVES)
    assert sentence.startswith("a and b have the same FLOPs and parameters")
    assert not text.same_sizes(pd.DataFrame(rows | {"compression": ["", "int8"]}), OBJECTIVES)
    assert not text.same_sizes(pd.DataFrame(rows), [Objective(COSTS[0], "minimize")])


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
    doubts, remarks = text.warnings(replace(report, table=table), ["a note"], trials)
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
    assert text.pruned_above(report.table, curves, report.quality) == []
    curves.loc[pruned, "value"] = 0.99
    [sentence] = text.pruned_above(report.table, curves, report.quality)
    assert sentence.startswith("1 pruned trial had more than the best finished trial's 0.")
    assert f"{curves.loc[pruned, 'label']} (0.990)" in sentence
