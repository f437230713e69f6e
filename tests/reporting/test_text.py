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
    intervals = pd.DataFrame(rows, columns=columns)
    return replace(report, table=table, answers=answers, intervals=intervals)


@pytest.mark.parametrize(
    ("recall", "verdict"),
    [
        ((0.9, 0.81, 0.97), ">= 0.8 is kept (31 images)"),
        ((0.9, 0.75, 0.97), ">= 0.8 is kept, but the interval allows both (31 images)"),
        ((0.7, 0.55, 0.85), ">= 0.8 is not kept, but the interval allows both (31 images)"),
        ((0.6, 0.5, 0.79), ">= 0.8 is not kept (31 images)"),
    ],
)
def test_floors_on_test_are_judged_with_their_interval(bare, recall, verdict) -> None:
    [sentence] = text.on_test(with_test_figures(bare, recall), [FLOOR])
    assert sentence == (
        f"custom #1 on test: balanced accuracy 0.600 [0.550, 0.650]; recall of mel {recall[0]:.3f} "
        f"[{recall[1]:.3f}, {recall[2]:.3f}], {verdict}."
    )
    assert text.on_test(replace(bare, intervals=pd.DataFrame()), [FLOOR]) == []


def test_findings_count_trials_and_name_knee_and_ties(report) -> None:
    sentences = text.findings(report, "How the knee was found.", [FLOOR])
    knee = report.table[report.table["knee"]].iloc[0]
    assert sentences[0].startswith("80 trials: ")
    for state, number in report.counts.items():
        assert f"{number} {text.STATES[state]}" in sentences[0]
    assert sentences[1].startswith(f"The knee is {knee['label']} (run {knee['run_id'][:8]}): ")
    assert sentences[2] == "How the knee was found."
    tied = report.pairs[report.pairs["tied"]]
    ties = [one for one in sentences if one.startswith("Not distinguishable in balanced")]
    assert ties
    assert all(any(label in one for one in ties) for label in tied["label_a"])
    assert text.ties(report.pairs.assign(tied=False)) == text.ties(pd.DataFrame()) == []


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
    sentences = "\n".join(text.warnings(replace(report, table=table), ["a note"], trials))
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
