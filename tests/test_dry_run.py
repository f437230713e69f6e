"""What a study will take: which cells are looked at, what is measured of them, and the sum."""

import itertools
from collections.abc import Callable

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.plugins import Plugins
from hydra.types import RunMode
from omegaconf import DictConfig

from src import dry_run
from src.core.cli import ROOT
from src.dry_run import Estimate
from src.metrics.registry import Limit, parse_limits
from src.sweep import space as spaces

Plugins.instance()
TINY = (
    "data.source.lesions=100",
    "data.batch_size=16",
    "model.image_size=32",
    "trainer.max_epochs=3",
)


def space_of(*sweep: str, exclude: tuple[str, ...] = ()) -> spaces.Space:
    return spaces.parse(list(sweep), {}, {}, [], list(exclude)).space


def test_a_small_space_is_looked_at_whole_and_in_order() -> None:
    space = space_of("a=1,2,3", "b=4,5", exclude=("a=2",))
    assert list(dry_run.sample(space, 4, seed=0)) == [
        (f"a={a}", f"b={b}") for a in (1, 3) for b in (4, 5)
    ]


@pytest.mark.parametrize(
    "sweep", [("a=range(25)",), ("a=range(5)", "b=range(6)"), ("a=1,2", "b=interval(0.0,1.0)")]
)
def test_of_a_larger_space_so_many_different_cells_are_drawn(sweep: tuple[str, ...]) -> None:
    space = space_of(*sweep)
    drawn = list(dry_run.sample(space, 24, seed=0))
    assert len(drawn) == 24
    assert all(space.contains(cell) for cell in drawn)
    assert drawn == list(dry_run.sample(space, 24, seed=0))
    assert len(set(drawn)) == 24


def test_no_excluded_cell_is_drawn() -> None:
    space = space_of("a=range(10)", "b=range(10)", exclude=tuple(f"a={a}" for a in range(7)))
    assert {int(cell[0][2:]) for cell in dry_run.sample(space, 12, seed=0)} <= {7, 8, 9}


@pytest.fixture
def estimate(tmp_path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Estimate]:
    """The estimate of one cell."""
    monkeypatch.setenv("PARETODERM_CACHE", str(tmp_path))
    loader = ConfigLoaderImpl(create_config_search_path(str(ROOT / "conf")))
    config: DictConfig = loader.load_configuration("train", list(TINY), RunMode.MULTIRUN)

    def of(*cell: str, limits: tuple[str, ...] = ()) -> Estimate:
        read: list[Limit] = parse_limits({"limits": list(limits)})
        return dry_run._estimate(cell, loader, config, list(TINY), read)

    return of


def test_a_cell_takes_its_batches_times_its_epochs(
    estimate: Callable[..., Estimate], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = []

    def one_batch(config: DictConfig, parts: dry_run.training.Parts) -> tuple[float, float]:
        batches.append(len(parts.data.loader("train", train=True)))
        return 0.5, 7.0

    monkeypatch.setattr(dry_run, "_one_batch", one_batch)
    found = estimate("model.net.width=4")
    assert found.seconds == 0.5 * batches[0] * 3  # max_epochs
    # float32 weights, their gradients and Adam's two moments, and what the batch keeps
    assert found.memory_mb == pytest.approx(7.0 + 4 * found.cost["efficiency/size_mb"])
    assert found.cost["efficiency/params"] == 18607
    assert (found.over, found.problem) == ((), "")


def test_a_batch_is_really_run(estimate: Callable[..., Estimate]) -> None:
    found = estimate("model.net.width=4")
    assert found.seconds > 0
    assert found.memory_mb > 4 * found.cost["efficiency/size_mb"]


def test_a_cell_over_a_limit_is_counted_but_not_timed(
    estimate: Callable[..., Estimate], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object) -> None:
        raise AssertionError("timed")

    monkeypatch.setattr(dry_run, "_one_batch", never)
    found = estimate(
        "model.net.width=4", limits=("efficiency/params <= 1e3", "efficiency/params <= 1e6")
    )
    assert found.over == ("efficiency/params <= 1000",)
    assert (found.seconds, found.memory_mb, found.problem) == (0.0, 0.0, "")
    assert found.cost["efficiency/params"] == 18607


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("model.net.width=0", "model.net.width"),
        ("model=nosuch", "model=nosuch"),
        ("model.net.widht=4", "widht"),
    ],
)
def test_a_cell_that_cannot_run_says_why(
    estimate: Callable[..., Estimate], cell: str, said: str
) -> None:
    found = estimate(cell)
    assert said in found.problem
    assert "\n" not in found.problem
    assert (found.cost, found.seconds) == ({}, 0.0)


def made(seconds: float, memory: float = 1.0, **rest: object) -> Estimate:
    return Estimate(
        ("a=1",), {"efficiency/flops": 2e6, "efficiency/params": 3e3}, seconds, memory, **rest
    )  # type: ignore[arg-type]


def test_the_sum_is_the_mean_times_trials_and_seeds_over_slots() -> None:
    lines = dry_run._totals([made(100.0, 5.0), made(260.0, 9.0)], total=40, repeats=3, n_jobs=2)
    assert lines[0].startswith(
        "training: about 3 h for 40 trials x 3 seeds, 2 at once (180 s a run"
    )  # 180*40*3/2/3600
    assert lines[1].startswith("memory: at most 9 MB")


def test_cells_that_would_not_be_trained_take_no_time() -> None:
    cells = [made(360.0), made(0.0, over=("x <= 1",)), made(0.0, problem="no"), made(360.0)]
    lines = dry_run._totals(cells, total=20, repeats=1, n_jobs=1)
    assert lines[0] == "1 of 4 cells cannot run: see above"
    assert lines[1].startswith("training: about 1 h for 20 trials")  # half of them, 360 s each
    assert dry_run._totals(cells[1:3], 2, 1, 1)[-1] == "no cell would be trained"


def test_the_table_says_what_is_wrong_with_a_cell() -> None:
    cells = [
        made(12.0),
        made(0.0, over=("efficiency/params <= 1000",)),
        made(0.0, problem="data.root: [x] is not there"),
    ]
    drawn = dry_run._table("title", cells)
    rows = list(zip(*(column.cells for column in drawn.columns), strict=True))
    assert rows[0] == ("a=1", "2.0", "3.0", "12", "1")
    assert rows[1] == ("a=1  \\[not trained: efficiency/params <= 1000]", "2.0", "3.0", "-", "-")
    assert rows[2][1:] == ("-",) * 4
    assert "data.root" in rows[2][0]
    assert len(list(itertools.chain(rows))) == 3
