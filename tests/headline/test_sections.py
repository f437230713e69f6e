"""Each kind of section on a made-up store, against arithmetic and scikit-learn."""

import pytest
from recorded import mean_score, predictions, record, scores, study_run

from src.headline import better, leakage, systems
from src.headline.figures import Bootstrap
from src.headline.settings import Better, Leakage, Reference, System, Systems
from src.tracking.store import Store

HOW = Bootstrap(200, 0.95, 0)
METRICS = ["accuracy", "balanced_accuracy", "recall/melanoma"]
SEEDS = (0, 1, 2)


def arm(store: Store, siblings: str, right: float, trained: int = 100, seeds: tuple[int, ...] = SEEDS) -> list:
    frames = [predictions(right, 10 * seed + (siblings == "in"), siblings=True) for seed in seeds]
    for seed, frame in zip(seeds, frames, strict=True):
        data = {"image_size": 64, "siblings": siblings}
        said = {
            "split": f"grouped, {siblings}",
            "split_fingerprint": siblings,
            "overrides": f"data.siblings={siblings}",
        }
        record(store, "leakage", frame, seed, {"data": data}, {"data/images/train": trained}, **said)
    return frames


LEAKAGE = Leakage("leakage", "Leakage", ["leakage"], "train it", METRICS)


def test_leakage_is_the_difference_of_the_arms_on_the_same_images(made: Store) -> None:
    out, into = arm(made, "out", 0.5), arm(made, "in", 0.95)
    part = leakage.part(made, LEAKAGE, 3, HOW)
    assert part.missing == []
    (grid,) = part.grids
    rows = {(row[0][0], row[3][0]): row for row in grid.rows}
    assert grid.columns[0] == "custom, 64 px"
    assert len(rows) == 9
    subsets = {
        "all test images": [lambda frame: frame, 60],
        "those with siblings": [lambda frame: frame[frame["has_sibling"]], 30],
        "those without": [lambda frame: frame[~frame["has_sibling"]], 30],
    }
    for name, (choose, images) in subsets.items():
        row = rows[name, "balanced accuracy"]
        a, b = (mean_score([choose(frame) for frame in frames], "balanced_accuracy") for frames in (out, into))
        assert row[1] == (f"{images} ({images // 2})",)
        assert (row[4][0], row[5][0], row[6][0]) == (f"{a:.3f}", f"{b:.3f}", f"{b - a:+.3f}")
    assert rows["all test images", "accuracy"][7] == ("better",)
    assert "a gain" in part.findings[0]
    assert part.origin.runs == 6


def test_equal_arms_are_within_chance(made: Store) -> None:
    arm(made, "out", 0.7)
    arm(made, "in", 0.7)
    (grid,) = leakage.part(made, LEAKAGE, 3, HOW).grids
    assert grid.rows[0][7] == ("within chance",)


def test_arms_that_do_not_compare_are_missing(made: Store) -> None:
    arm(made, "out", 0.5)
    part = leakage.part(made, LEAKAGE, 3, HOW)
    assert [(each.what, each.why) for each in part.missing] == [("custom, 64 px, arm in", "0 of 3 seeds")]
    arm(made, "in", 0.5, trained=99)
    part = leakage.part(made, LEAKAGE, 3, HOW)
    assert part.grids == []
    assert "trained on 100 and 99 images" in part.missing[0].why


def test_without_runs_the_command_is_told(made: Store) -> None:
    part = leakage.part(made, LEAKAGE, 3, HOW)
    assert [(each.what, each.why, each.command) for each in part.missing] == [("leakage", "no run of it", "train it")]


PAPER = Systems(
    "systems",
    "A paper",
    ["paper"],
    "train all",
    METRICS,
    [
        System("p/small", {"accuracy": 0.8705, "efficiency/params": 692e3}, px=64),
        System("p/big", {}, px=224, command="train big"),
    ],
    ["image", "grouped"],
)


def test_systems_stand_beside_what_the_paper_prints_under_its_split(made: Store) -> None:
    frames = {}
    for split, images in (("image (leaking)", 60), ("grouped", 54)):
        for seed in SEEDS:
            frames[split, seed] = predictions(0.8, seed, images)
            record(made, "paper", frames[split, seed], seed, {"p": split}, preset="p/small", split=split)
    for seed in SEEDS[:2]:
        record(made, "paper", predictions(0.8, seed), seed, {"p": "big"}, preset="p/big", split="grouped")
    part = systems.part(made, PAPER, 3, HOW)
    (grid,) = part.grids
    image, grouped = grid.rows
    expected = mean_score([frames["image (leaking)", seed] for seed in SEEDS], "accuracy")
    named = dict(zip(grid.columns, image, strict=True))
    assert named["system"] == ("small, 64 px",)
    assert named["split"] == ("image (leaking)",)
    assert named["parameters"] == ("691,911", "printed 692,000")
    assert named["FLOPs"] == ("30.04M",)
    assert named["seeds"] == ("3",)
    assert (named["accuracy"][0], named["accuracy"][2]) == (f"{expected:.3f}", "printed 0.8705")
    assert not any("printed" in line for lines in grouped for line in lines)
    assert "2 different test sets" in part.notes[0]
    assert {(each.what, each.why, each.command) for each in part.missing} == {
        ("big, 64 px, grouped", "2 of 3 seeds", "train big"),
        ("big, 224 px, image", "0 of 3 seeds", "train big"),
        ("big, 224 px, grouped", "0 of 3 seeds", "train big"),
    }


def test_the_origin_names_commits_hardware_and_command_but_no_folder(made: Store) -> None:
    study_run(made, "paper", "paper", "sweeps=paper data.root=/home/somebody/ham tracking.uri=sqlite:////x threads=1")
    for seed in SEEDS:
        commit = {"git_commit": "b" * 40, "git_dirty": True} if seed == 2 else {}
        record(made, "paper", predictions(0.8, seed), seed, preset="p/small", **commit)
    told = systems.part(made, PAPER, 3, HOW).origin
    assert told.commands == ("python -m src.train -m sweeps=paper data.root=... threads=1",)
    assert told.hardware == ("Abacus 9, 2 cores; 8.0 GB; no GPU; Python 3.11; torch 2.13",)
    assert set(told.commits) == {"aaaaaaa (2 runs)", "bbbbbbb with uncommitted changes (1 run)"}
    assert told.runs == 3


BETTER = Better(
    "better",
    "Better",
    ["search"],
    "search it",
    "balanced_accuracy",
    [Reference("the big one", ["paper"], "p/big", "train big")],
    METRICS,
    ["efficiency/params <= 691911"],
    at_most=1,
)


def candidate(store: Store, name: str, right: float, params: float = 1000, val: float | None = None) -> list:
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
    assert [line[0][0] for line in figures.rows] == ["custom, 64 px, name=validated_well", "big, 64 px"]
    assert (row[2][0], row[3], row[4]) == (f"{gap:+.3f}", ("better",), ("x 0.0005",))
    assert part.findings[0].startswith("custom, 64 px, name=validated_well beats all of them in balanced accuracy")
    assert "1 configuration more of the search" in part.notes[0]
    assert part.missing == []


@pytest.mark.parametrize(("right", "verdict"), [(0.1, "worse"), (0.8, "within chance")])
def test_a_candidate_that_is_no_better_is_told_so(made: Store, right: float, verdict: str) -> None:
    candidate(made, "c", right)
    reference(made, 0.8)
    part = better.part(made, BETTER, 3, HOW)
    assert part.grids[1].rows[0][3] == (verdict,)
    assert "does not beat all of them" in part.findings[0]


def test_what_cannot_be_compared_is_missing(made: Store) -> None:
    candidate(made, "c", 0.9)
    part = better.part(made, BETTER, 3, HOW)
    assert (len(part.grids), part.findings) == (1, [])
    assert [(each.what, each.command) for each in part.missing] == [("the big one, grouped", "train big")]
    for seed in SEEDS:
        record(made, "paper", predictions(0.8, seed, images=40), seed, preset="p/big")
    part = better.part(made, BETTER, 3, HOW)
    assert "they do not compare" in part.missing[0].why
    assert "different test sets" in part.notes[-1]
    assert part.findings == []


def test_accuracy_by_hand_is_that_of_the_record() -> None:
    frame = predictions(0.5, 3)
    right = sum(frame[["p/mel", "p/nv", "p/bkl"]].idxmax(axis=1).str[2:] == frame["label"])
    assert scores(frame)["accuracy"] == pytest.approx(right / 60)
