import pytest
from recorded import predictions, record

from src.core.config import compose_trial, resolve
from src.headline.cells import RANDOM, ResultCell, cells
from src.headline.presets import deviations
from src.tracking.run import flatten
from src.tracking.store import Store


def only(store: Store, study: str = "s", needed: int = 3) -> ResultCell:
    (found,) = cells(store, [study], needed)
    return found


def test_runs_that_differ_in_their_seed_alone_are_a_cell(made: Store) -> None:
    for seed in (2, 0, 1):
        record(
            made,
            "s",
            predictions(0.8, seed),
            seed,
            overrides="loss=focal optimizer.lr=0.000123456 data.split=grouped",
        )
        record(
            made,
            "s",
            predictions(0.8, seed),
            seed,
            {"loss": {"gamma": 2}},
            overrides="experiment=mamun2025/custom",
        )
    first, second = cells(made, ["s", "no_such_study"], 3)
    assert (first.seeds, first.problem) == ([0, 1, 2], "")
    assert first.name == "custom, 64 px, loss=focal, lr=0.000123"
    assert second.name == "custom, 64 px"
    assert first.frames[1]["image_id"].is_unique
    assert first.mean("efficiency/params") == 691911
    assert first.mean("efficiency/throughput") != first.mean(
        "efficiency/throughput"
    )  # NaN: not recorded


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


def test_further_seeds_without_a_test_figure_are_told(made: Store) -> None:
    for seed in range(3):
        record(made, "s", predictions(0.8, seed), seed)
    record(made, "s", None, 3)
    made.client.set_terminated(record(made, "s", None, 4), "FAILED")
    made.client.set_terminated(
        record(made, "s", None, 0), "FAILED"
    )  # a seed that has a figure lacks none
    found = only(made)
    assert (found.seeds, found.problem) == ([0, 1, 2], "")
    assert found.notes == (
        "2 further seeds have no test figure (1 failed, 1 not evaluated on the test split)",
    )


def test_settings_that_no_override_tells_tell_cells_apart(made: Store) -> None:
    for width in (8, 16):
        record(made, "s", predictions(0.8, width), 0, {"model": {"net": {"width": width}}})
    assert [cell.name for cell in cells(made, ["s"], 1)] == [
        "custom, 64 px, net.width=8",
        "custom, 64 px, net.width=16",
    ]


def test_a_preset_with_other_settings_is_another_system(made: Store) -> None:
    preset = "mamun2025/custom"
    as_composed = resolve(compose_trial({"overrides": [f"experiment={preset}"]}))
    for rate, epochs in (
        (as_composed["optimizer"]["lr"], 3),
        (0.5, as_composed["trainer"]["max_epochs"]),
    ):
        optimizer = {**as_composed["optimizer"], "lr": rate}
        trainer = {**as_composed["trainer"], "max_epochs": epochs, "precision": "bf16-mixed"}
        config = {
            **as_composed,
            "optimizer": optimizer,
            "trainer": trainer,
            "data": {**as_composed["data"], "root": "/x"},
        }
        record(made, "s", predictions(0.8, 0), 0, config, preset=preset)
    same, other = cells(made, ["s"], 1)
    assert (same.name, same.changed) == (
        "custom, 64 px, trainer.max_epochs=3, trainer.precision=bf16-mixed",
        (),
    )
    assert (other.name, other.changed) == (
        "custom, 64 px, optimizer.lr=0.5, trainer.precision=bf16-mixed",
        ("optimizer.lr=0.5",),
    )


def test_a_part_that_is_absent_deviates_and_a_newer_key_does_not() -> None:
    recorded = flatten(resolve(compose_trial({"overrides": ["experiment=mamun2025/custom"]})))
    assert deviations("mamun2025/custom", recorded) == {}
    newer = {
        key: value
        for key, value in recorded.items()
        if key != "loss._target_" and key != "optimizer.lr"
    }
    assert deviations("mamun2025/custom", newer) == {"loss._target_": "none"}
    assert (
        deviations("mamun2025/custom", recorded | {"augment.blur._target_": ""}) == {}
    )  # another run of the study has it
    assert deviations("../train", recorded) == deviations("no/such", recorded) == {}


def test_a_value_that_a_preset_leaves_open_is_no_deviation() -> None:
    preset = "better/lite0_blocks10_distilled"
    recorded = flatten(
        resolve(compose_trial({"overrides": [f"experiment={preset}", "loss.teacher=0123abcd"]}))
    )
    assert recorded["loss.teacher"] == "0123abcd"
    assert deviations(preset, recorded) == {}
    assert deviations(preset, recorded | {"loss.share": "0.9"}) == {"loss.share": "0.9"}


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
def test_seeds_of_different_splits_or_weights_are_not_pooled(
    made: Store, tag: str, problem: str
) -> None:
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


@pytest.mark.parametrize(
    ("backbone", "said"), [({}, "random"), ({"model": {"net": {"weights": "auto"}}}, RANDOM)]
)
def test_random_weights_of_a_backbone_are_said_loudly(
    made: Store, backbone: dict, said: str
) -> None:
    record(made, "s", predictions(0.8, 0), 0, backbone, split="image (leaking)")
    found = only(made, needed=1)
    assert (found.weights, found.split_mode) == (said, "image")
