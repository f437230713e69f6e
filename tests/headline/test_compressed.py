"""The section on compressed nets, on a made-up store: differences from the very nets they were made from."""

import dataclasses
import re

import pytest
from recorded import mean_score, predictions, record

from src.headline import compressed
from src.headline.figures import Bootstrap
from src.headline.settings import Compressed
from src.tracking.store import Store

SECTION = Compressed(
    "compressed",
    "Compressed",
    {"compression": "compress it"},
    ["balanced_accuracy", "accuracy", "recall/melanoma"],
)
HOW = Bootstrap(200, 0.95, 0)


def world(store: Store, right: float, tested: bool = True) -> tuple[list, list]:
    """Three seeds of one net, and the same at a quarter of the size, with half the time."""
    before = [predictions(0.95, seed) for seed in range(3)]
    after = [predictions(right, 10 + seed) if right < 0.95 else before[seed] for seed in range(3)]
    for seed in range(3):
        costs = {"efficiency/size_mb": 2.8}
        run = record(
            store,
            "trained",
            before[seed] if tested else None,
            seed,
            metrics=costs,
            preset="better/custom",
        )
        record(
            store,
            "compression",
            after[seed],
            seed,
            {"compression": {"name": "onnx_int8_static"}, "origin": run},
            {"efficiency/size_mb": 0.7, "efficiency/latency_ratio": 0.5},
            origin=run,
            precision="int8",
            overrides="compression=onnx_int8_static",
        )
    return before, after


@pytest.mark.parametrize(
    ("right", "said"), [(0.95, "outside the interval"), (0.2, "more than a point lost")]
)
def test_each_seed_is_held_against_its_own_origin(made: Store, right: float, said: str) -> None:
    before, after = world(made, right)
    part = compressed.part(made, SECTION, 3, HOW)
    assert part.missing == []
    (grid,) = part.grids
    first, row = grid.rows
    assert grid.columns[0] == "better/custom"
    assert (first[0], first[5]) == (("as trained",), ("3",))
    assert first[2:5] == (("2.800",), ("30.04M",), ("1.00",))
    assert row[1] == ("int8",)
    assert row[2:5] == (("0.700", "x 0.25"), ("30.04M", "x 1.00"), ("0.50", "x 0.50"))
    expected = mean_score(after, "balanced_accuracy") - mean_score(before, "balanced_accuracy")
    assert row[6][0] == (f"{expected:+.3f}" if expected else "0")
    assert said in part.findings[0]
    assert part.origin.runs == 3


def test_nets_of_one_name_are_each_beside_their_own_origin(made: Store) -> None:
    for width, params in ((16, 1000.0), (32, 4000.0)):
        before, after = (
            [predictions(right, width + seed) for seed in range(3)] for right in (0.9, 0.8)
        )
        for seed in range(3):
            costs = {"efficiency/size_mb": params / 1000, "efficiency/params": params}
            run = record(store=made, study="trained", frame=before[seed], seed=seed, metrics=costs)
            settings = {
                "compression": {"name": "bfloat16"},
                "origin": run,
                "model": {"net": {"width": width}},
            }
            half = {"efficiency/size_mb": params / 2000}
            record(
                made,
                "compression",
                after[seed],
                seed,
                settings,
                half,
                origin=run,
                precision="bfloat16",
            )
    grids = compressed.part(made, SECTION, 3, HOW).grids
    assert [grid.rows[0][2] for grid in grids] == [("1.000",), ("4.000",)]
    assert [grid.rows[1][2] for grid in grids] == [("0.500", "x 0.50"), ("2.000", "x 0.50")]
    assert len({grid.columns[0] for grid in grids}) == 2


def test_a_chain_is_told_by_its_first_link(made: Store) -> None:
    frames = [predictions(0.9, seed) for seed in range(3)]
    for seed in range(3):
        tags = {"origin": "gone", "compression": "prune_flops", "precision": "float32"}
        pruned = record(
            made, "pruning", frames[seed], seed, {}, {"efficiency/size_mb": 1.0}, **tags
        )
        tags = {"origin": pruned, "compression": "onnx_int8_static", "precision": "int8"}
        record(made, "compression", frames[seed], seed, {}, {"efficiency/size_mb": 0.25}, **tags)
    (grid,) = compressed.part(made, SECTION, 3, HOW).grids
    assert grid.columns[0].endswith(" after prune_flops")
    assert grid.rows[0][0] == ("as left by prune_flops",)
    assert grid.rows[1][2] == ("0.250", "x 0.25")


def test_how_far_down_it_goes_is_told_by_each_cost(made: Store) -> None:
    before = [predictions(0.9, seed) for seed in range(3)]
    worse = [predictions(0.4, 10 + seed) for seed in range(3)]
    kinds = [
        ("pruned", before, 0.5, 20.0),
        ("int8", before, 0.25, 100.0),
        ("too far", worse, 0.1, 10.0),
    ]
    for seed in range(3):
        costs = {"efficiency/size_mb": 1.0, "efficiency/flops": 100.0}
        run = record(made, "trained", before[seed], seed, metrics=costs, preset="better/custom")
        for kind, frames, size, flops in kinds:
            costs = {"efficiency/size_mb": size, "efficiency/flops": flops}
            settings = {"compression": {"name": kind}, "origin": run}
            record(
                made,
                "compression",
                frames[seed],
                seed,
                settings,
                costs,
                origin=run,
                precision="int8",
            )
    told = compressed.part(made, SECTION, 3, HOW).findings[-1]
    assert told.startswith(
        "better/custom: the smallest that lose a point of balanced accuracy or less on average, "
        "picked by these test figures and so rather lucky: size"
    )
    assert re.search(
        r"size \(MB\) x 0\.25 \([^)]*int8[^)]*\)? and FLOPs x 0\.20 \([^)]*pruned", told
    )


def test_an_origin_that_was_not_tested_is_told(made: Store) -> None:
    world(made, 0.5, tested=False)
    part = compressed.part(made, SECTION, 3, HOW)
    assert part.grids == []
    assert "cannot be held against its origin" in part.missing[0].why


def test_without_runs_the_command_is_told(made: Store) -> None:
    part = compressed.part(made, SECTION, 3, HOW)
    assert [(each.what, each.command) for each in part.missing] == [("compression", "compress it")]


def test_each_study_has_a_command_of_its_own(made: Store) -> None:
    world(made, 0.5)
    section = dataclasses.replace(
        SECTION, studies={"compression": "compress it", "pruning": "prune it"}
    )
    part = compressed.part(made, section, 3, HOW)
    assert [(each.what, each.command) for each in part.missing] == [("pruning", "prune it")]
    fewer = compressed.part(made, section, 4, HOW).missing
    assert [each.command for each in fewer] == ["compress it", "prune it"]
