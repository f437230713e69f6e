"""The search space: parsing of command line and file, cells, counting, Optuna's suggestions."""

import itertools
import warnings
from typing import Any

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from src.core.errors import ConfigError
from src.sweep.space import Space, parse

optuna.logging.set_verbosity(optuna.logging.ERROR)
PARSER = OverridesParser.create()


def space(
    *arguments: str,
    params: Any = None,
    conditions: Any = None,
    zipped: Any = (),
    exclude: Any = (),
) -> Space:
    return parse(arguments, params or {}, conditions or {}, zipped, exclude)[0]


def texts(of: Space) -> list[str]:
    return [" ".join(cell.overrides) for cell in of.cells()]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("choice(8,16,32)", "8 16 32"),
        ("8,16", "8 16"),
        ("null,1", "null 1"),
        ("range(1,4)", "1 2 3"),
        ("range(3)", "0 1 2"),
        ("range(0,1,0.25)", "0.0 0.25 0.5 0.75"),
        ("range(0,0.5,0.1)", "0.0 0.1 0.2 0.3 0.4"),
        ("range(0,7,0.7)", "0.0 0.7 1.4 2.1 2.8 3.5 4.2 4.9 5.6 6.3"),
        ("range(10,1,-3)", "10 7 4"),
        ("range(1,0,-0.5)", "1.0 0.5"),
        ("sort(3,1,2)", "1 2 3"),
        ("sort(range(1,4),reverse=true)", "3 2 1"),
        ("int(interval(3,5))", "3 4 5"),
        ("choice([1,2],'a,b',{x:1})", "[1,2] 'a,b' {x:1}"),
        ("float(choice(1,2))", "1.0 2.0"),
        ("choice(true,1,'1')", "true 1 '1'"),
    ],
)
def test_values_of_a_text(text, values):
    for grid in (space(f"a={text}"), space(params={"a": text})):
        assert texts(grid) == [f"a={value}" for value in values.split()]
        assert grid.n_cells == len(values.split())


def test_shuffled_values_are_complete_and_reproducible():
    for text in ("range(50)", "range(0,5,0.1)", ",".join(map(str, range(50)))):
        cells, plain = texts(space(f"a=shuffle({text})")), texts(space(f"a={text}"))
        assert cells == texts(space(f"a=shuffle({text})"))
        assert sorted(cells) == sorted(plain)
        assert cells != plain


def test_prefixes_and_fixed_overrides_stay():
    assert texts(space("+a=1,2", "++b=3,4")) == [
        "+a=1 ++b=3",
        "+a=1 ++b=4",
        "+a=2 ++b=3",
        "+a=2 ++b=4",
    ]
    fixed = ["+c=1", "~d", "++e=[1,2]", "b='x,y'"]
    assert parse([fixed[0], "a=1,2", *fixed[1:]], {}, {}, [], [])[1] == fixed
    (cell,) = space(*fixed).cells()
    assert (cell.overrides, cell.params) == ((), {})


FILE = {
    "params": {"a": "1,2", "b": "3,4"},
    "conditions": {"a=1": {"c": "5,6"}, "a=2": {"d": "7,8"}},
}
PAIR = {"a": [1, 2], "b": [1, 2]}
INTERVAL = {
    "params": {"a": "1,2"},
    "conditions": {"a=1": {"b": "x,y"}, "b=x": {"c": "interval(0.0,1)"}},
}


@pytest.mark.parametrize(
    ("arguments", "rest", "cells"),
    [
        # The command line has priority over the file.
        (["b=9"], FILE, "a=1 c=5|a=1 c=6|a=2 d=7|a=2 d=8"),
        (["b=9", "a=1"], FILE, "c=5|c=6"),
        (["b=9", "a=3"], FILE, ""),
        (["b=9", "~a"], FILE, ""),
        (["b=9", "a=2,3"], FILE, "a=2 d=7|a=2 d=8|a=3"),
        (["b=9", "c=0"], FILE, "a=1|a=2 d=7|a=2 d=8"),
        (["b=9", "c=0,1", "a=1,3"], FILE, "a=1 c=0|a=1 c=1|a=3"),
        (["e=0,1", "b=9", "a=1", "c=0"], FILE, "e=0|e=1"),
        # A condition on what only a dropped parameter had is dropped as well.
        (["a=2,3"], INTERVAL, "a=2|a=3"),
        (["a=2"], INTERVAL, ""),
        # Parameters come after those that decide on them.
        (
            ["a=1,2"],
            {"conditions": {"b=x": {"c": "5,6"}, "a=1": {"b": "x,y"}}},
            "a=1 b=x c=5|a=1 b=x c=6|a=1 b=y|a=2",
        ),
        # One key under several conditions
        (
            ["m=a,b,c"],
            {"params": {"lr": "1,2"}, "conditions": {"m=a": {"lr": "3,4"}, "m=b": {"lr": "5"}}},
            "m=a lr=3|m=a lr=4|m=b lr=5|m=c lr=1|m=c lr=2",
        ),
        # Pairs
        (
            ["c=0,1"],
            {"zipped": [{"a": [32, 64], "+b": [[64, 1], None]}]},
            "c=0 a=32 +b=[64,1]|c=0 a=64 +b=null|c=1 a=32 +b=[64,1]|c=1 a=64 +b=null",
        ),
        (["c=1"], {"zipped": [{"a": "range(2)", "b": "x,y"}]}, "a=0 b=x|a=1 b=y"),
        (["a=1,2", "b=3"], {"zipped": [{"a": [32, 64], "b": [64, 32]}]}, "a=1|a=2"),
        # Exclusions
        (
            ["a=range(0,1,0.25)", "b=4,5"],
            {"exclude": ["a=0,0.25,0.5 b=4.0", "b=5 and a=0.75"]},
            "a=0.0 b=5|a=0.25 b=5|a=0.5 b=5|a=0.75 b=4",
        ),
        (
            ["b=4", "a=1,2"],
            {"params": {"b": "4,5"}, "exclude": ["a=1 b=4", "a=2 b=5"]},
            "a=2",
        ),
    ],
)  # fmt: skip
def test_cells_in_order(arguments, rest, cells):
    grid = space(*arguments, **rest)
    assert texts(grid) == cells.split("|")
    assert grid.n_cells == len(cells.split("|"))


def test_names_of_parameters_for_optuna():
    conditions = {"m=a": {"lr": "3,4"}, "m=b": {"lr": "5"}}
    grid = space("m=a,b,c", params={"lr": "1,2"}, conditions=conditions)
    assert {name for cell in grid.cells() for name in cell.params} == {
        "m",
        "lr",
        "lr@m=a",
        "lr@m=b",
    }
    paired = space("c=0,1", zipped=[{"a": [32, 64], "+b": [[64, 1], None]}])
    assert next(paired.cells()).params == {"c": 0, "a+b": "32+[64,1]"}


def test_an_excluded_cell_names_its_exclusion():
    grid = space("a=range(0,1,0.25)", "b=4,5", exclude=["a=0,0.25,0.5 b=4.0"])
    all_cells = space("a=range(0,1,0.25)", "b=4,5").cells()
    assert [grid.is_excluded(cell) for cell in all_cells][:2] == ["a=0,0.25,0.5 b=4.0", None]


@pytest.mark.parametrize(
    ("arguments", "rest", "problem"),
    [
        (["a=1,2", "a=3"], {}, "a: is swept and given once more, by a=3"),
        (["a=1", "+a=3,4"], {}, "a: is swept and given once more"),
        (["a=choice(1,1)"], {}, "a: must list each value once, but got 1 again"),
        (["a=1,1.0"], {}, "must list each value once"),
        (["a=range(5,5)"], {}, r"range\(5,5,1\) is empty; its stop is exclusive"),
        (["a=range(1,5,0)"], {}, "a step other than 0"),
        (["a=range(0,9,0.3333333333333333)"], {}, "more digits than a float holds"),
        (["a=interval(0.5,0.5)"], {}, r"the lower one first, but got interval\(0.5,0.5\)"),
        (["a=int(interval(9,1))"], {}, r"but got int\(interval\(9,1\)\)"),
        (["a=interval(0.0,inf)"], {}, "finite"),
        (["a=int(interval(0,1e19))"], {}, "64-bit bounds"),
        (["a=tag(log,interval(0,1.0))"], {}, "above 0 on a log scale"),
        ([], {"params": {"a": "choice(1,[range(3)])"}}, "hydra.sweeper.params.a: a sweep inside"),
        ([], {"params": {"a": 5}}, "sweeper.params.a: must be a text such as .* but got 5 alone"),
        ([], {"params": {"a": "5"}}, "but got '5' alone"),
        ([], {"params": {"a": {"b": 1}}}, "must be a text such as"),
        ([], {"params": {"a": []}}, "at least one value"),
        ([], {"params": {"a": ["choice(1,2)", 3]}}, "quoted text here"),
        ([], {"params": {"a": [float("nan"), {"x y": 1}]}}, "cannot sweep {'x y': 1}"),
        ([], {"params": {"~a": "1,2"}}, "params.~a: a deletion cannot be swept"),
        ([], {"params": {"hydra.job.name": [1, 2]}}, "hydra belongs to the study"),
        ([], {"params": {"a": "1,2", "+a": "3,4"}}, r"params.\+a: a is swept twice"),
        ([], {"params": {"a": "1,2"}, "zipped": [PAIR]}, "a is swept twice"),
        ([], {"zipped": [PAIR, {"c": [1, 2], "b": [1, 2]}]}, "zip.1.: b is swept twice"),
        ([], {"zipped": [{"a": [1, 2], "b": [1]}]}, r"equal length, but a has 2, b has 1"),
        ([], {"zipped": [{"a": [1, 1], "b": [2, 2]}]}, "each value once"),
        ([], {"zipped": [{"a": [1, 2]}]}, "pair lists"),
        ([], {"zipped": [{"a": [1, 2], "b": 3}]}, "b must be a list"),
        (["a=1"], {"zipped": [{"a": [1, 2], "b": [1, 3]}]}, "a: goes together with b in .*zip.0."),
        ([], {"conditions": {"m=a": {"x": "1,2"}}}, "m in 'm=a' is no parameter of the space"),
        (["m=a,b"], {"conditions": {"m=c": {"x": "1,2"}}}, r"'m=c' is none of choice\(a,b\)"),
        (["m=a,b"], {"conditions": {"m": {"x": "1,2"}}}, "must be like"),
        (["m=a,b"], {"conditions": {"m=a": {"x": "1,2"}, "m=a,b": {"x": "3"}}}, "twice where both"),
        ([], {"conditions": {"x=1": {"y": "1,2"}, "y=1": {"x": "1,2"}}}, "in a circle"),
        (["m=a,b"], {"exclude": ["m=c"]}, r"exclude\[0\]: m=c in 'm=c' is none of"),
        (["m=a,b"], {"exclude": ["n=1"]}, "n in 'n=1' is no parameter"),
        (["m=a,b"], {"exclude": ["m=a,b"]}, "hydra.sweeper.exclude: leaves no cell"),
    ],
)  # fmt: skip
def test_refusals_are_one_line(arguments, rest, problem):
    with pytest.raises(ConfigError, match=problem) as caught:
        space(*arguments, **rest)
    assert "\n" not in str(caught.value)


def test_a_continuous_parameter_has_no_grid():
    grid = space("a=1,2", "b=interval(0.0,1)")
    assert grid.n_cells is None
    with pytest.raises(ConfigError, match=r"^b: a grid cannot list interval\(0.0,1.0\)"):
        grid.cells()
    conditions = {"a=1": {"b": "x,y"}, "b=x": {"c": "interval(0.0,1)"}}
    with pytest.raises(ConfigError, match="^c: a grid cannot list"):
        space("a=1,2", conditions=conditions).cells()


def rich(**changes: Any) -> Space:
    """A space with everything; some of it may be replaced."""
    everything: dict[str, Any] = {
        "arguments": ["data.split=0,1"],
        "params": {
            "model": "custom,resnet50",
            "loss": [None, "cross, entropy", True, 1, 1.5, [64, 64], []],
            "+dropout": "range(0,0.4,0.1)",
        },
        "conditions": {
            "model=custom": {
                "width": "choice(8,16)",
                "depth": "tag(log,int(interval(2,4)))",
                "lr": "1e-3,1e-2",
            },
            "model=resnet50": {"lr": 1e-4, "frozen": [True, False]},
            "model=custom and depth=3,4": {"skip": "range(9,1,-3)"},
        },
        "zipped": [{"size": [32, 64], "batch": [64, 32]}],
        "exclude": ["width=8 depth=4", "frozen=true size=64.0"],
        **changes,
    }
    return space(*everything.pop("arguments"), **everything)


SMALL = {"arguments": [], "params": {"model": "custom,resnet50", "+dropout": "range(0,0.2,0.1)"}}


def ask(study: optuna.Study, of: Space):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # Optuna's when a range's end is moved
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        trial = study.ask()
        return trial, of.suggest(trial)


def test_the_rich_space_by_hand():
    grid = rich(arguments=[])
    # loss x dropout x (custom: width, depth, lr, skip for depth 3 and 4, pairs; resnet50: lr,
    # frozen, pairs)
    custom = 2 * (2 * (1 + 3 + 3) - 3) * 2
    resnet50 = 2 * 2 - 1
    assert grid.n_cells == 7 * 4 * (custom + resnet50)
    cells = list(grid.cells())
    assert len(cells) == len(set(cells)) == grid.n_cells
    assert not any(grid.is_excluded(cell) for cell in cells)


def test_every_cell_comes_back_from_its_params_and_from_its_overrides():
    grid = rich(arguments=[])
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for cell in itertools.islice(grid.cells(), 0, None, 11):
        assert grid.params_of(cell.overrides[::-1]) == cell.params
        study.enqueue_trial(cell.params)
        trial, suggested = ask(study, grid)
        assert suggested == cell
        assert suggested.params == cell.params == trial.params
        study.tell(trial, 0.0)
    unfit = [(), ("model=vgg16",), (*cell.overrides, "more=1"), cell.overrides[:-1], ("chioce(",)]
    assert not any(grid.params_of(overrides) for overrides in unfit)
    every = rich(arguments=[], exclude=[]).cells()
    excluded = next(cell for cell in every if grid.is_excluded(cell))
    assert grid.params_of(excluded.overrides) is None


def test_brute_force_draws_exactly_the_cells():
    grid = rich(**SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(sampler=optuna.samplers.BruteForceSampler(seed=1))
    cells = []
    study.optimize(lambda trial: cells.append(grid.suggest(trial)) or 0.0)
    allowed = [cell for cell in cells if not grid.is_excluded(cell)]
    assert len(cells) == len(set(cells))
    assert set(allowed) == set(grid.cells())
    assert len(allowed) == grid.n_cells


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        (optuna.samplers.RandomSampler, {}),
        (optuna.samplers.TPESampler, {"n_startup_trials": 5}),
        (optuna.samplers.QMCSampler, {}),
        (optuna.samplers.NSGAIISampler, {"population_size": 8}),
    ],
)
def test_every_sampler_suggests_cells_of_the_grid(sampler, options):
    grid = rich(**SMALL)
    cells = set(grid.cells())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(sampler=sampler(seed=0, **options))
    for number in range(20):
        trial, cell = ask(study, grid)
        assert (cell in cells) != bool(grid.is_excluded(cell))
        assert cell.params == trial.params
        study.tell(trial, float(number % 7))


NUMBERS = st.decimals(-1000, 1000, places=3).map(float)
STEPS = st.decimals("0.001", 10, places=3).map(float)


@settings(max_examples=40)
@given(NUMBERS, STEPS, st.integers(1, 60), st.integers(0, 2**31))
def test_suggested_floats_are_those_of_the_grid(start, step, count, seed):
    grid = space(f"a=range({start!r},{start + (count - 0.5) * step!r},{step!r})")
    cells = {cell.overrides: cell.params for cell in grid.cells()}
    assert len(cells) == count
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    for _ in range(3):
        _, cell = ask(study, grid)
        assert cells[cell.overrides] == cell.params
    study.enqueue_trial(list(cells.values())[-1])
    assert ask(study, grid)[1].params == list(cells.values())[-1]


@settings(max_examples=25)
@given(
    st.integers(0, 2**31), st.sampled_from(["tag(log,interval(1e-7,1e3))", "interval(-1.5,0.7)"])
)
def test_continuous_values_come_back_from_their_text(seed, text):
    grid = space(f"a={text}")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trial, cell = ask(study, grid)
    assert PARSER.parse_overrides(list(cell.overrides))[0].value() == trial.params["a"]
    assert grid.params_of(cell.overrides) == cell.params


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
)


@settings(max_examples=50)
@given(st.lists(SCALARS, min_size=1))
def test_listed_values_reach_hydra_as_they_are(values):
    try:
        grid = space(params={"a": values})
    except ConfigError as error:
        assert "once" in error.problem or "cannot sweep" in error.problem  # noqa: PT017
        return
    read = [PARSER.parse_overrides(list(cell.overrides))[0].value() for cell in grid.cells()]
    assert [(type(value), value) for value in read] == [(type(value), value) for value in values]


def test_large_spaces_are_counted_without_listing_them():
    grid = space(*(f"p{number}=range(0,30)" for number in range(20)), exclude=["p3=4 p7=5"])
    assert grid.n_cells == 30**18 * (30**2 - 1)
