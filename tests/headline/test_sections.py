"""Each kind of section on a made-up store, against arithmetic and scikit-learn."""

from dataclasses import replace

import pytest
from recorded import mean_score, predictions, record, scores, study_run

from src.headline import figures, leakage, systems
from src.headline.figures import Bootstrap
from src.headline.settings import Against, Leakage, SystemRows, Systems
from src.metrics.paired import PairedDifference
from src.tracking.store import Store

HOW = Bootstrap(200, 0.95, 0)
METRICS = ["accuracy", "balanced_accuracy", "recall/melanoma"]
SEEDS = (0, 1, 2)


def arm(
    store: Store, siblings: str, right: float, trained: int = 100, seeds: tuple[int, ...] = SEEDS
) -> list:
    frames = [predictions(right, 10 * seed + (siblings == "in"), siblings=True) for seed in seeds]
    for seed, frame in zip(seeds, frames, strict=True):
        data = {"image_size": 64, "siblings": siblings}
        said = {
            "split": f"grouped, {siblings}",
            "split_fingerprint": siblings,
            "overrides": f"data.siblings={siblings}",
        }
        record(
            store, "leakage", frame, seed, {"data": data}, {"data/images/train": trained}, **said
        )
    return frames


LEAKAGE = Leakage("leakage", "Leakage", {"leakage": "train it"}, METRICS)


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
        a, b = (
            mean_score([choose(frame) for frame in frames], "balanced_accuracy")
            for frames in (out, into)
        )
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
    assert [(each.what, each.why) for each in part.missing] == [
        ("custom, 64 px, arm in", "0 of 3 seeds")
    ]
    arm(made, "in", 0.5, trained=99)
    part = leakage.part(made, LEAKAGE, 3, HOW)
    assert part.grids == []
    assert "trained on 100 and 99 images" in part.missing[0].why


def test_without_runs_the_command_is_told(made: Store) -> None:
    part = leakage.part(made, LEAKAGE, 3, HOW)
    assert [(each.what, each.why, each.command) for each in part.missing] == [
        ("leakage", "no run of it", "train it")
    ]


PAPER = Systems(
    "systems",
    "A paper",
    ["paper"],
    "train all",
    METRICS,
    [
        SystemRows("p/small", {"accuracy": 0.8705, "efficiency/params": 692e3}, px=64),
        SystemRows("p/big", {}, px=224, command="train big"),
    ],
    ["image", "grouped"],
)


def test_systems_are_held_against_each_other_under_each_split(made: Store) -> None:
    right = {"p/small": 0.95, "p/big": 0.4}
    frames: dict[tuple[str, str], list] = {}
    for split, images in (("image (leaking)", 60), ("grouped", 54)):
        for preset, share in right.items():
            own = [predictions(share, seed, images) for seed in SEEDS]
            for seed, frame in zip(SEEDS, own, strict=True):
                record(
                    made, "paper", frame, seed, {"p": split + preset}, preset=preset, split=split
                )
            frames[split, preset] = own
    wanted = replace(
        PAPER, differences=[Against("p/big", "p/small"), Against("p/small", "p/absent")]
    )
    part = systems.part(made, wanted, 3, HOW)
    grid = part.grids[1]
    assert [row[2] for row in grid.rows] == [("image (leaking)",), ("grouped",)]
    for (split,), row in zip((row[2] for row in grid.rows), grid.rows, strict=True):
        gap = mean_score(frames[split, "p/big"], "accuracy") - mean_score(
            frames[split, "p/small"], "accuracy"
        )
        told = dict(zip(grid.columns, row, strict=True))
        assert told["system"][0] == "big, 64 px"
        assert told["less"][0] == "small, 64 px"
        assert (told["accuracy: difference"][0], told["accuracy: difference"][2]) == (
            f"{gap:+.3f}",
            "worse",
        )
        assert told["seeds"] == ("3 and 3",)
    assert any(note.startswith("6 comparisons were made") for note in part.notes)
    assert len(systems.part(made, PAPER, 3, HOW).grids) == 1  # none is asked for


def test_systems_that_were_tested_on_other_images_do_not_compare(made: Store) -> None:
    for preset, images in (("p/small", 60), ("p/big", 40)):
        for seed in SEEDS:
            record(
                made,
                "paper",
                predictions(0.8, seed, images),
                seed,
                {"p": preset},
                preset=preset,
                split="grouped",
            )
    part = systems.part(made, replace(PAPER, differences=[Against("p/big", "p/small")]), 3, HOW)
    assert len(part.grids) == 1
    (said,) = [note for note in part.notes if "do not compare: " in note]
    assert said.startswith("big, 64 px less small, 64 px (grouped): they do not compare: ")


def test_systems_stand_beside_what_the_paper_prints_under_its_split(made: Store) -> None:
    frames = {}
    for split, images in (("image (leaking)", 60), ("grouped", 54)):
        for seed in SEEDS:
            frames[split, seed] = predictions(0.8, seed, images)
            record(
                made,
                "paper",
                frames[split, seed],
                seed,
                {"p": split},
                preset="p/small",
                split=split,
            )
    for seed in SEEDS[:2]:
        record(
            made,
            "paper",
            predictions(0.8, seed),
            seed,
            {"p": "big"},
            preset="p/big",
            split="grouped",
        )
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
    assert part.notes[1:] == [
        "Tested on (image (leaking)): 60 images, of which 20 (33.3%) melanomas.",
        "Tested on (grouped): 54 images, of which 18 (33.3%) melanomas.",
    ]
    assert {(each.what, each.why, each.command) for each in part.missing} == {
        ("big, 64 px, grouped", "2 of 3 seeds", "train big"),
        ("big, 224 px, image", "0 of 3 seeds", "train big"),
        ("big, 224 px, grouped", "0 of 3 seeds", "train big"),
    }


@pytest.mark.parametrize(
    ("size", "weights", "why"),
    [
        (224, "imagenet", ""),
        (64, "imagenet", "64 px"),
        (224, "random", "random weights"),
        (64, "random", "random weights, 64 px"),
    ],
)
def test_printed_values_stand_beside_the_printed_system_alone(
    made: Store, size: int, weights: str, why: str
) -> None:
    for seed in SEEDS:
        data = {"data": {"image_size": size}}
        record(
            made,
            "paper",
            predictions(0.8, seed),
            seed,
            data,
            preset="p/big",
            weights=weights,
            split="image (leaking)",
        )
    printed = {"accuracy": 0.8908, "efficiency/params": 23.9e6}
    asked = SystemRows("p/big", printed, px=224, weights="imagenet", corrected={"accuracy": 0.8})
    part = systems.part(made, replace(PAPER, systems=[asked], splits=["image"]), 3, HOW)
    lines = [line for cell in part.grids[0].rows[0] for line in cell]
    beside = ["printed 23,900,000", "printed 0.8908", "corrected 0.8"]
    assert [line for line in lines if line.startswith(("printed", "corrected"))] == (
        [] if why else beside
    )
    notes = [note for note in part.notes if not note.startswith("Tested on")]
    assert [note.partition("(image")[0] for note in notes] == (
        [] if not why else [f"big, {size} px "]
    )
    assert all(f"not the printed system ({why})" in note for note in notes)
    assert [each.what for each in part.missing] == (
        ["big, 224 px, ImageNet weights, image"] if why else []
    )


def test_a_preset_with_other_settings_is_shown_and_still_missing(made: Store) -> None:
    for seed in SEEDS:
        optimizer = {"optimizer": {"lr": 0.5}, "data": {"image_size": 64}}
        record(
            made,
            "paper",
            predictions(0.8, seed),
            seed,
            optimizer,
            preset="mamun2025/custom",
            split="image (leaking)",
        )
    asked = SystemRows("mamun2025/custom", {"accuracy": 0.8705}, px=64)
    part = systems.part(made, replace(PAPER, systems=[asked], splits=["image"]), 3, HOW)
    (row,) = part.grids[0].rows
    assert row[0][1] == "other settings"
    assert "optimizer.lr=0.5" in part.notes[0]
    assert not any("printed" in line for cell in row for line in cell)
    assert [each.what for each in part.missing] == ["custom, 64 px, image"]


def test_missing_seeds_are_recorded_by_the_command_of_their_own_study(made: Store) -> None:
    record(made, "paper", predictions(0.8, 0), 0, preset="p/big", split="grouped")
    commands = [
        SystemRows("p/big", px=224, command="train sweeps=whole"),
        SystemRows("p/small", command="train sweeps=paper x=1"),
    ]
    part = systems.part(made, replace(PAPER, systems=commands, splits=[]), 3, HOW)
    assert [(each.what, each.command) for each in part.missing] == [
        ("big, 64 px, grouped", "train sweeps=paper x=1")
    ]


def test_the_origin_names_commits_hardware_and_command_but_no_folder(made: Store) -> None:
    study_run(
        made,
        "paper",
        "paper",
        "sweeps=paper data.root=/home/somebody/ham tracking.uri=sqlite:////x threads=1",
    )
    for seed in SEEDS:
        commit = (
            {"git_commit": "b" * 40, "git_dirty": True, "chosen_by": "train: cross-validation"}
            if seed == 2
            else {}
        )
        record(made, "paper", predictions(0.8, seed), seed, preset="p/small", **commit)
    told = systems.part(made, PAPER, 3, HOW).origin
    assert told.commands == ("python -m src.train -m sweeps=paper data.root=... threads=1",)
    assert told.hardware == ("Abacus 9, 2 cores; 8.0 GB; no GPU; Python 3.11; torch 2.13",)
    assert set(told.commits) == {"aaaaaaa (2 runs)", "bbbbbbb with uncommitted changes (1 run)"}
    assert told.chosen_by == ("not recorded (2 runs)", "train: cross-validation (1 run)")
    assert told.runs == 3


@pytest.mark.parametrize(
    ("found", "said", "verdict"),
    [
        ((0.0004, 0.0001, 0.0006), ("+0.0004", "[+0.0001, +0.0006]"), "better"),
        ((0.12345, 0.00001, 0.2), ("+0.12345", "[+0.00001, +0.20000]"), "better"),
        ((0.0, 0.0, 0.0), ("0", "[0, 0]"), "within chance"),
        ((1e-17, 1e-17, 1e-17), ("0", "[0, 0]"), "within chance"),
        ((-0.1, -0.2, -0.05), ("-0.100", "[-0.200, -0.050]"), "worse"),
    ],
)
def test_a_difference_that_is_called_better_does_not_read_as_zero(
    found, said, verdict: str
) -> None:
    difference = PairedDifference(*found, 0.5)
    assert (figures.change(difference), figures.verdict(difference)) == (said, verdict)


def test_accuracy_by_hand_is_that_of_the_record() -> None:
    frame = predictions(0.5, 3)
    right = sum(frame[["p/mel", "p/nv", "p/bkl"]].idxmax(axis=1).str[2:] == frame["label"])
    assert scores(frame)["accuracy"] == pytest.approx(right / 60)
