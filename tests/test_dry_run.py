"""The estimate of a study: which cells are sampled, what is measured of them, and the totals."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.plugins import Plugins
from hydra.types import RunMode
from omegaconf import DictConfig

from src import dry_run
from src.core.cli import CONF
from src.core.errors import ConfigError, UserError
from src.data import cache
from src.metrics.registry import parse_limits
from src.sweep import space as spaces
from src.training import loop

Plugins.instance()
TINY = ["data.source.lesions=100", "data.batch_size=16", "model.image_size=32"]
SHARED = [*TINY, "trainer.max_epochs=3"]


def space_of(*sweep: str, exclude: tuple[str, ...] = ()) -> spaces.Space:
    return spaces.parse(list(sweep), {}, {}, [], list(exclude))[0]


def test_a_small_space_is_sampled_completely_and_in_order() -> None:
    space = space_of("a=1,2,3", "b=4,5", exclude=("a=2",))
    cells = [(f"a={a}", f"b={b}") for a in (1, 3) for b in (4, 5)]
    assert list(dry_run.sample_cells(space, 4)) == cells


@pytest.mark.parametrize(
    "sweep", [("a=range(25)",), ("a=range(5)", "b=range(6)"), ("a=1,2", "b=interval(0.0,1.0)")]
)
def test_different_cells_are_drawn_from_a_larger_space(sweep: tuple[str, ...]) -> None:
    space = space_of(*sweep)
    cells = list(dry_run.sample_cells(space, 24))
    assert len(cells) == len(set(cells)) == 24
    assert all(space.params_of(cell) is not None for cell in cells)
    assert cells == list(dry_run.sample_cells(space, 24))


def test_no_excluded_cell_is_drawn() -> None:
    space = space_of("a=range(10)", "b=range(10)", exclude=tuple(f"a={a}" for a in range(7)))
    assert {int(cell[0][2:]) for cell in dry_run.sample_cells(space, 12)} <= {7, 8, 9}


@pytest.fixture(scope="module")
def loader() -> ConfigLoaderImpl:
    return ConfigLoaderImpl(create_config_search_path(str(CONF)))


@pytest.fixture(scope="module")
def estimate(
    tmp_path_factory: pytest.TempPathFactory,
    module_patch: pytest.MonkeyPatch,
    loader: ConfigLoaderImpl,
) -> Callable[..., dict[str, Any]]:
    """The estimate of one cell."""
    module_patch.setenv("PARETODERM_CACHE", str(tmp_path_factory.mktemp("cache")))
    config: DictConfig = loader.load_configuration("train", SHARED, RunMode.MULTIRUN)
    compose = dry_run.composer(loader, config, SHARED)

    def estimate_cell(
        *cell: str, limits: tuple[str, ...] = (), measured: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        parsed, memo = parse_limits({"limits": list(limits)}), {} if measured is None else measured
        return dry_run.estimate(cell, compose, parsed, memo)

    return estimate_cell


def test_time_is_batches_times_epochs(
    estimate: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, tuple[float, float]]] = []

    def one_batch(config: DictConfig, parts: loop.RunParts) -> tuple[float, float]:
        measured = time_one_batch(config, parts)
        calls.append((len(parts.data.loader("train", train=True)), measured))
        return 0.5, 7.0

    time_one_batch = dry_run.time_one_batch
    monkeypatch.setattr(dry_run, "time_one_batch", one_batch)
    cell = estimate("model.net.width=4")
    ((n_batches, (seconds, activations)),) = calls
    assert seconds > 0
    assert activations > 0
    assert cell["seconds"] == 0.5 * n_batches * 3  # max_epochs
    assert cell["efficiency/params"] == 18607
    # float32 weights, their gradients and Adam's two moments, and what the batch keeps
    assert cell["memory_mb"] == pytest.approx(7.0 + 4 * 18607 * 4 / 1e6, rel=0.02)
    assert (cell["over"], cell["problem"]) == ("", "")
    assert cell["disk_mb"] == pytest.approx(18607 * 4 / 1e6, rel=0.02)


def test_cells_of_the_same_cost_are_measured_together_and_one_picture_is_decoded(
    estimate: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []

    def decode(source: Any, manifest: Any, row: int, size: int, geometry: Any) -> np.ndarray:
        decoded.append(size)
        return np.full((size, size, 3), 100, np.uint8)

    monkeypatch.setattr(cache, "decode", decode)
    monkeypatch.setattr(cache, "load", lambda *_: pytest.fail("all pictures are decoded"))
    measured: dict[str, Any] = {}
    cells = [
        estimate("model.net.width=4", f"model.net.dropout={dropout}", measured=measured)
        for dropout in (0.1, 0.4)
    ]
    assert len(measured) == 1
    assert cells[0]["seconds"] == cells[1]["seconds"]
    other = estimate("model.image_size=24", measured=measured)
    assert len(measured) == 2
    assert decoded == [32, 32, 24]
    assert cells[0]["cache"] == cells[1]["cache"] != other["cache"]
    assert cells[0]["cache_mb"] / other["cache_mb"] == pytest.approx((32 / 24) ** 2)


def test_a_cell_over_a_limit_is_counted_but_not_timed(
    estimate: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dry_run, "time_one_batch", lambda *_: pytest.fail("timed"))
    limits = ("efficiency/params <= 1e3", "efficiency/params <= 1e6")
    cell = estimate("model.net.width=4", limits=limits)
    assert cell["over"] == "efficiency/params <= 1000"
    assert (cell["seconds"], cell["memory_mb"], cell["problem"]) == (None, None, "")
    assert cell["efficiency/params"] == 18607


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("model.net.width=0", "model.net.width"),
        ("model=nosuch", "model=nosuch"),
        ("model.net.widht=4", "widht"),
    ],
)
def test_a_cell_that_cannot_run_gives_the_reason(
    estimate: Callable[..., dict[str, Any]], cell: str, message: str
) -> None:
    invalid = estimate(cell)
    assert message in invalid["problem"]
    assert "\n" not in invalid["problem"]
    assert {invalid[name] for name in dry_run.NUMBERS} == {None}


def test_probing_reports_a_problem_of_all_cells_and_accepts_a_valid_one(
    loader: ConfigLoaderImpl,
) -> None:
    config = loader.load_configuration("train", SHARED, RunMode.MULTIRUN)
    # a value with which no cell can run: a dry run shows it
    valid = dry_run.probe(space_of("model.net.width=0,8"), loader, config, SHARED, False)
    assert valid is not None
    assert valid[1][-1] == "model.net.width=8"
    with pytest.raises(ConfigError, match=r"model\.net\.dropout"):
        dry_run.probe(space_of("seed=1,2"), loader, config, [*SHARED, "model.net.dropout=7"])
    # different problems: each trial reports its own
    assert dry_run.probe(space_of("model.net.width=0,-1"), loader, config, SHARED, False) is None


def test_a_login_node_need_not_have_the_gpus_of_the_trials(loader: ConfigLoaderImpl) -> None:
    # stands for a GPU, which the machine that runs this test may have
    space = space_of("trainer.accelerator=cpu,tpu")
    local = loader.load_configuration("train", SHARED, RunMode.MULTIRUN)
    with pytest.raises(UserError, match=r"no trial with trainer\.accelerator=tpu can run"):
        dry_run.probe(space, loader, local, SHARED)
    for name in ("slurm", "ray"):
        changed = [*SHARED, f"hydra/sweeper/executor={name}"]
        config = loader.load_configuration("train", changed, RunMode.MULTIRUN)
        assert dry_run.probe(space, loader, config, SHARED) is not None


@pytest.mark.parametrize(
    ("sweep", "value", "problem"),
    [
        ("model.net.width=8,abc", "model.net.width=abc", "should be a valid integer"),
        ("model.net.width=range(0,9)", "model.net.width=0", "greater than or equal to 1"),
        (
            "model.net.width=8,16 model.net.dense=[],[0]",
            "model.net.dense=[0]",
            "greater than or equal to 1",
        ),
        ("model.net.depth=2,99", "model.net.depth=99", "model.net.image_size: is too small"),
        ("model=custom,resnet50 model.net.width=8,16", "model=resnet50", "width: unknown key"),
        ("loss=focal,distillation seed=range(50)", "loss=distillation", "loss.teacher: has no"),
        ("optimizer.lr=0.1,-1", "optimizer.lr=-1", "lr: input should be greater than 0"),
        (
            "optimizer.lr=interval(-0.1,0.1)",
            "optimizer.lr=-0.0999998",
            "input should be greater than 0",
        ),
        ("data.fractions=[0.6,0.2,0.2],[1,1,1]", "data.fractions=[1,1,1]", "data.fractions: "),
    ],
)
def test_a_value_with_which_no_cell_can_run_is_refused(
    loader: ConfigLoaderImpl, sweep: str, value: str, problem: str
) -> None:
    config = loader.load_configuration("train", SHARED, RunMode.MULTIRUN)
    with pytest.raises(UserError) as refused:
        dry_run.probe(space_of(*sweep.split()), loader, config, SHARED)
    assert problem in str(refused.value)
    assert str(refused.value).endswith(f"; no trial with {value} can run: leave it out")


def test_a_value_that_some_cell_can_have_is_not_refused(loader: ConfigLoaderImpl) -> None:
    config = loader.load_configuration("train", SHARED, RunMode.MULTIRUN)
    sweep = ("model.net.depth=1,3", "model.image_size=8,32", "optimizer.lr=interval(0.0,1.0)")
    assert dry_run.probe(space_of(*sweep), loader, config, SHARED) is not None


def cells_of(*rows: dict[str, Any]) -> pd.DataFrame:
    cost = {"efficiency/flops": 2e6, "efficiency/params": 3e3, "memory_mb": 1.0, "disk_mb": 2.0}
    empty = {"cell": "a=1", **cost, "over": "", "problem": "", "cache": "64", "cache_mb": 30.0}
    return pd.DataFrame([{**empty, **row} for row in rows])


NOT_TRAINED = {"seconds": math.nan, "memory_mb": math.nan}


def test_total_time_is_the_mean_times_trials_and_seeds_over_jobs() -> None:
    cells = cells_of({"seconds": 100.0, "memory_mb": 5.0}, {"seconds": 260.0, "memory_mb": 9.0})
    lines = dry_run.totals(cells, total=40, repeats=3, n_jobs=2)
    # 180 * 40 * 3 / 2 / 3600
    start = "time: about 3:00:00 of training for 40 trials x 3 seeds, 2 at once (180 s per run"
    assert lines[0].startswith(start)
    assert lines[1].startswith("memory: at most 9 MB")
    # 2 * 40 * 3 and one cache for both cells
    disk = "disk: about 240 MB of checkpoints, 30 MB of decoded pictures (1 size)"
    assert lines[2] == disk


def test_cells_that_would_not_be_trained_take_no_time() -> None:
    over, invalid = NOT_TRAINED | {"over": "x <= 1"}, NOT_TRAINED | {"problem": "no"}
    cells = cells_of({"seconds": 360.0}, over, invalid, {"seconds": 360.0})
    lines = dry_run.totals(cells, total=20, repeats=1, n_jobs=1)
    assert lines[0] == "1 of 4 cells cannot run: see above"
    assert lines[1] == "1 of 4 cells exceed a limit: see above"
    # half of them, 360 s each, with a checkpoint of 2 MB
    assert lines[2].startswith("time: about 1:00:00 of training for 20 trials")
    assert lines[4].startswith("disk: about 20 MB of checkpoints")
    assert dry_run.totals(cells[1:3], 2, 1, 1)[-1] == "no cell would be trained"


def test_the_table_shows_what_is_wrong_with_a_cell() -> None:
    problem = {"problem": "data.root: [x] is missing", **dict.fromkeys(dry_run.NUMBERS)}
    cells = cells_of(
        {"seconds": 12.0}, NOT_TRAINED | {"over": "efficiency/params <= 1000"}, problem
    )
    rows = list(dry_run.table("title", cells).texts().itertuples(index=False, name=None))
    assert rows[0] == ("a=1", "2M", "3k", "12", "1", "2.0", "")
    over = "not trained: efficiency/params <= 1000"
    assert rows[1] == ("a=1", "2M", "3k", "-", "-", "2.0", over)
    assert rows[2] == ("a=1", "-", "-", "-", "-", "-", "data.root: [x] is missing")
