"""Candidates beside references on a made-up store: who is compared, what it is called and what is said of it."""

from dataclasses import replace

import pytest
from recorded import mean_score, predictions, record

from src.headline import better, systems
from src.headline.figures import Bootstrap
from src.headline.settings import Better, Reference, SystemRows, Systems
from src.tracking.store import Store

HOW = Bootstrap(200, 0.95, 0)
METRICS = ["accuracy", "balanced_accuracy", "recall/melanoma"]
SEEDS = (0, 1, 2)


BETTER = Better(
    "better",
    "Better",
    {"search": "search it"},
    [Reference("the big one", ["paper"], "p/big", "train big")],
    ["balanced_accuracy", "accuracy", "recall/melanoma"],
    ["search"],
    ["efficiency/params <= 691911"],
    at_most=1,
)


def candidate(
    store: Store, name: str, right: float, params: float = 1000, val: float | None = None
) -> list:
    frames = [predictions(right, seed) for seed in SEEDS]
    for seed, frame in zip(SEEDS, frames, strict=True):
        measured = {"efficiency/params": params}
        measured |= {"best/val/balanced_accuracy": val} if val is not None else {}
        record(store, "search", frame, seed, {"name": name}, measured, overrides=f"name={name}")
    return frames


def reference(store: Store, right: float) -> list:
    frames = [predictions(right, 100 + seed) for seed in SEEDS]
    for seed, frame in zip(SEEDS, frames, strict=True):
        record(store, "paper", frame, seed, metrics={"efficiency/params": 2e6}, preset="p/big")
    return frames


def test_the_candidate_is_chosen_on_validation_within_the_limits(made: Store) -> None:
    candidate(made, "tested_well", 1.0, val=0.5)
    chosen = candidate(made, "validated_well", 0.95, val=0.9)
    candidate(made, "too_big", 1.0, params=692_000, val=1.0)
    record(made, "search", None, 0, {"name": "tried"})
    other = reference(made, 0.4)
    part = better.part(made, BETTER, 3, HOW)
    figures, duel = part.grids
    gap = mean_score(chosen, "balanced_accuracy") - mean_score(other, "balanced_accuracy")
    (row,) = duel.rows
    assert [line[0][0] for line in figures.rows] == [
        "custom, 64 px, name=validated_well",
        "big, 64 px",
    ]
    assert (row[2][0], row[2][2], row[5]) == (f"{gap:+.3f}", "better", ("x 0.0005",))
    accuracy = mean_score(chosen, "accuracy") - mean_score(other, "accuracy")
    assert (duel.columns[3], row[3][0]) == ("accuracy: difference", f"{accuracy:+.3f}")
    assert part.findings[0].startswith(
        "custom, 64 px, name=validated_well beats all of them in balanced accuracy"
    )
    assert "1 configuration more of the search" in part.notes[0]
    assert part.missing == []


@pytest.mark.parametrize(("right", "verdict"), [(0.1, "worse"), (0.8, "within chance")])
def test_a_candidate_that_is_no_better_is_told_so(made: Store, right: float, verdict: str) -> None:
    candidate(made, "c", right)
    reference(made, 0.8)
    part = better.part(made, BETTER, 3, HOW)
    assert part.grids[1].rows[0][2][2] == verdict
    assert "does not beat all of them" in part.findings[0]


def test_what_cannot_be_compared_is_missing(made: Store) -> None:
    candidate(made, "c", 0.9)
    part = better.part(made, BETTER, 3, HOW)
    assert (len(part.grids), part.findings) == (1, [])
    assert [(each.what, each.command) for each in part.missing] == [
        ("the big one, grouped", "train big")
    ]
    for seed in SEEDS:
        record(made, "paper", predictions(0.8, seed, images=40), seed, preset="p/big")
    part = better.part(made, BETTER, 3, HOW)
    assert "they do not compare" in part.missing[0].why
    assert "different test sets" in part.notes[-1]
    assert part.findings == []


def test_a_reference_of_the_search_is_no_candidate_and_stands_there_once(made: Store) -> None:
    candidate(made, "c", 0.9)
    for seed in SEEDS:
        record(made, "search", predictions(0.95, 50 + seed), seed, {"net": "big"}, preset="p/big")
    own = replace(
        BETTER,
        references=[
            Reference("the big one", ["search"], "p/big", "x"),
            Reference("it again", ["search"], "p/big", "x"),
        ],
        at_most=3,
    )
    part = better.part(made, own, 3, HOW)
    figures, duels = part.grids
    assert [row[0][0] for row in figures.rows] == ["custom, 64 px, name=c", "big, 64 px"]
    assert [(row[0][0], row[1][0]) for row in duels.rows] == [
        ("custom, 64 px, name=c", "the big one: big, 64 px"),
        ("custom, 64 px, name=c", "it again: big, 64 px"),
    ]
    assert [note for note in part.notes if note.startswith("6 comparisons were made")]


def test_candidates_are_set_beside_the_one_that_validation_puts_first(made: Store) -> None:
    tested_well = candidate(made, "tested_well", 1.0, val=0.5)
    validated_well = candidate(made, "validated_well", 0.6, val=0.9)
    reference(made, 0.4)
    part = better.part(made, replace(BETTER, at_most=2), 3, HOW)
    rows = part.grids[1].rows
    gap = mean_score(tested_well, "balanced_accuracy") - mean_score(
        validated_well, "balanced_accuracy"
    )
    assert [(row[0][0], row[1][0]) for row in rows] == [
        ("custom, 64 px, name=validated_well", "the big one: big, 64 px"),
        ("custom, 64 px, name=tested_well", "the big one: big, 64 px"),
        (
            "custom, 64 px, name=tested_well",
            "the best on the validation split: custom, 64 px, name=validated_well",
        ),
    ]
    assert (rows[2][2][0], rows[2][2][2]) == (f"{gap:+.3f}", "better")
    assert [note for note in part.notes if note.startswith("9 comparisons were made")]
    assert len(part.findings) == 2
    assert not any(
        "validation split" in finding for finding in part.findings
    )  # they are about the references


def test_a_control_is_shown_and_has_no_part_in_the_verdict(made: Store) -> None:
    candidate(made, "c", 0.8)
    reference(made, 0.4)
    for seed in SEEDS:
        record(
            made, "paper", predictions(1.0, 200 + seed), seed, {"net": "whole"}, preset="p/whole"
        )
    whole = Reference("the whole one", ["paper"], "p/whole", "x", control=True)
    absent = Reference("a control that is not there", ["paper"], "p/absent", "x", control=True)
    part = better.part(
        made, replace(BETTER, references=[*BETTER.references, whole, absent]), 3, HOW
    )
    rows = part.grids[1].rows
    assert [row[2][2] for row in rows] == ["better", "worse"]
    (finding,) = part.findings
    assert finding.startswith("custom, 64 px, name=c beats all of them in balanced accuracy")
    assert "whole" not in finding
    assert "Besides: accuracy better 1 of 1 times; melanoma recall " in finding
    assert [each.what for each in part.missing] == ["a control that is not there, grouped"]


def test_a_study_of_candidates_that_is_not_there_or_not_whole_is_missing(made: Store) -> None:
    candidate(made, "c", 0.9)
    reference(made, 0.4)
    record(made, "added", predictions(0.9, 7), 0, {"name": "added"})
    own = replace(BETTER, studies={"search": "search it", "added": "add it", "more": "add more"})
    part = better.part(made, own, 3, HOW)
    assert [(each.what, each.why, each.command) for each in part.missing] == [
        ("custom, 64 px, grouped", "1 of 3 seeds", "add it"),
        ("more", "no run of it", "add more"),
    ]


def test_what_stands_in_for_a_reference_is_called_what_it_is(made: Store) -> None:
    candidate(made, "c", 0.95)
    reference(made, 0.4)
    asked = [
        Reference("ResNet50", ["paper"], "p/big", "train it whole", px=224, weights="imagenet")
    ]
    part = better.part(made, replace(BETTER, references=asked), 3, HOW)
    said, unlike = part.findings
    assert "beats all that it was compared with" in said
    assert "better than ResNet50 from random weights, 64 px (" in said
    assert unlike == (
        "What was compared with is ResNet50 from random weights, 64 px, not the pretrained ResNet50 "
        "(224 px, ImageNet weights): of that one this says nothing."
    )
    assert part.grids[1].rows[0][1][0].startswith("ResNet50 from random weights, 64 px: ")
    assert [(each.what, each.why, each.command) for each in part.missing] == [
        ("ResNet50, 224 px, ImageNet weights, grouped", "0 of 3 seeds", "train it whole")
    ]
    for seed in SEEDS:
        whole = {"data": {"image_size": 224}}
        record(
            made, "paper", predictions(0.3, seed), seed, whole, preset="p/big", weights="imagenet"
        )
    part = better.part(made, replace(BETTER, references=asked), 3, HOW)
    assert part.missing == []
    assert [row[1][0] for row in part.grids[1].rows] == ["ResNet50: big, 224 px"]
    assert len(part.findings) == 1
    assert "beats all of them" in part.findings[0]


def test_arms_of_a_leakage_measurement_are_neither_systems_nor_candidates(made: Store) -> None:
    for seed in SEEDS:
        data = {"image_size": 64, "siblings": "in"}
        for study, preset in (("paper", "p/big"), ("search", "")):
            record(
                made,
                study,
                predictions(0.9, seed),
                seed,
                {"data": data},
                preset=preset,
                split="grouped, siblings",
            )
    own = Systems("systems", "A paper", ["paper"], "train all", METRICS, [SystemRows("p/big")])
    assert systems.part(made, own, 3, HOW).grids == []
    part = better.part(made, BETTER, 3, HOW)
    assert part.grids == []
    assert {each.why for each in part.missing} == {"0 of 3 seeds", "no run of it"}
