import pytest
from recorded import predictions, record

from src.headline.cells import RANDOM, Cell, cells
from src.tracking.store import Store


def only(store: Store, study: str = "s", needed: int = 3) -> Cell:
    (found,) = cells(store, [study], needed)
    return found


def test_runs_that_differ_in_their_seed_alone_are_a_cell(made: Store) -> None:
    for seed in (2, 0, 1):
        record(
            made, "s", predictions(0.8, seed), seed, overrides="loss=focal optimizer.lr=0.000123456 data.split=grouped"
        )
        record(made, "s", predictions(0.8, seed), seed, {"loss": {"gamma": 2}}, overrides="experiment=mamun2025/custom")
    first, second = cells(made, ["s", "no_such_study"], 3)
    assert (first.seeds, first.problem) == ([0, 1, 2], "")
    assert first.name == "custom, 64 px, loss=focal, lr=0.000123"
    assert second.name == "custom, 64 px"
    assert first.frames[1]["image_id"].is_unique
    assert first.mean("efficiency/params") == 691911
    assert first.mean("efficiency/throughput") != first.mean("efficiency/throughput")  # NaN: not recorded


def test_a_key_that_is_newer_than_a_run_makes_no_other_cell(made: Store) -> None:
    for seed in range(3):
        record(made, "s", predictions(0.8, seed), seed, {"new": None} if seed else {})
    assert only(made).seeds == [0, 1, 2]


def test_too_few_seeds_are_told_with_what_became_of_the_others(made: Store) -> None:
    record(made, "s", predictions(0.8, 0), 0)
    record(made, "s", None, 1)
    failed = record(made, "s", None, 2)
    made.client.set_terminated(failed, "FAILED")
    assert only(made).problem == "1 of 3 seeds (1 failed, 1 not evaluated on the test split)"
    assert only(made).frames == []


def test_a_seed_that_was_trained_again_counts_once_as_the_newest(made: Store) -> None:
    for seed in (0, 1, 2):
        record(made, "s", predictions(0.1, seed), seed)
    again = record(made, "s", predictions(0.9, 7), 1)
    found = only(made)
    assert found.seeds == [0, 1, 2]
    assert found.runs["run_id"].iloc[1] == again
    assert "trained again" in found.notes[0]


@pytest.mark.parametrize(
    ("tag", "problem"),
    [("split_fingerprint", "different images or splits"), ("weights", "different weights")],
)
def test_seeds_of_different_splits_or_weights_are_not_pooled(made: Store, tag: str, problem: str) -> None:
    for seed in range(3):
        record(made, "s", predictions(0.8, seed), seed, **{tag: f"x{seed // 2}"})
    assert problem in only(made).problem


def test_seeds_that_predicted_other_images_are_not_pooled(made: Store) -> None:
    for seed in range(3):
        record(made, "s", predictions(0.8, seed, images=60 - 2 * (seed == 2)), seed)
    assert "its seeds are not pooled: seed 2 lacks image i058" in only(made).problem
    assert only(made).frames == []


def test_copies_of_the_data_are_pooled_and_said(made: Store) -> None:
    for seed in range(3):
        record(made, "s", predictions(0.8, seed), seed, data_fingerprint=f"d{seed}")
    found = only(made)
    assert not found.problem
    assert "copies of the data" in found.notes[0]


@pytest.mark.parametrize(("backbone", "said"), [({}, "random"), ({"model": {"net": {"weights": "auto"}}}, RANDOM)])
def test_random_weights_of_a_backbone_are_said_loudly(made: Store, backbone: dict, said: str) -> None:
    record(made, "s", predictions(0.8, 0), 0, backbone, split="image (leaking)")
    found = only(made, needed=1)
    assert (found.weights, found.split_mode) == (said, "image")
