"""The search space: parsing of command line and file, cells, counting, Optuna's suggestions."""

import itertools
import json
import warnings
from typing import Any

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from src.core.errors import ConfigError
from src.sweep.space import Parsed, Space, parse

optuna.logging.set_verbosity(optuna.logging.ERROR)
PARSER = OverridesParser.create()


def parsed(
    arguments: Any = (),
    params: Any = None,
    conditions: Any = None,
    zipped: Any = (),
    exclude: Any = (),
) -> Parsed:
    return parse(arguments, params or {}, conditions or {}, zipped, exclude)


def space(*arguments: str, **rest: Any) -> Space:
    return parsed(arguments, **rest).space


def texts(of: Space) -> list[str]:
    return [" ".join(cell.overrides) for cell in of.cells()]


def test_grid_in_the_order_of_hydras_own_multirun():
    assert texts(space("a=1,2", "b=x,y")) == ["a=1 b=x", "a=1 b=y", "a=2 b=x", "a=2 b=y"]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("choice(8,16,32)", ["8", "16", "32"]),
        ("8,16", ["8", "16"]),
        ("null,1", ["null", "1"]),
        ("range(1,4)", ["1", "2", "3"]),
        ("range(3)", ["0", "1", "2"]),
        ("range(0,1,0.25)", ["0.0", "0.25", "0.5", "0.75"]),
        ("range(0,0.5,0.1)", ["0.0", "0.1", "0.2", "0.3", "0.4"]),
        ("range(0,7,0.7)", ["0.0", "0.7", "1.4", "2.1", "2.8", "3.5", "4.2", "4.9", "5.6", "6.3"]),
        ("range(10,1,-3)", ["10", "7", "4"]),
        ("range(1,0,-0.5)", ["1.0", "0.5"]),
        ("sort(3,1,2)", ["1", "2", "3"]),
        ("sort(range(1,4),reverse=true)", ["3", "2", "1"]),
        ("int(interval(3,5))", ["3", "4", "5"]),
        ("choice([1,2],'a,b',{x:1})", ["[1,2]", "'a,b'", "{x:1}"]),
        ("float(choice(1,2))", ["1.0", "2.0"]),
        ("choice(true,1,'1')", ["true", "1", "'1'"]),
    ],
)
def test_values_of_a_text(text, values):
    for grid in (space(f"a={text}"), space(params={"a": text})):
        assert texts(grid) == [f"a={value}" for value in values]
        assert grid.n_cells == len(values)


def test_shuffled_values_are_all_there_and_stay_in_place():
    for text in (
        "shuffle(range(50))",
        "shuffle(range(0,5,0.1))",
        f"shuffle({','.join(map(str, range(50)))})",
    ):
        cells = texts(space(f"a={text}"))
        assert cells == texts(space(f"a={text}"))
        assert sorted(cells) == sorted(
            texts(space(f"a={text.removeprefix('shuffle(').removesuffix(')')}"))
        )
        assert cells != texts(space(f"a={text.removeprefix('shuffle(').removesuffix(')')}"))


def test_prefixes_stay():
    assert texts(space("+a=1,2", "++b=3,4"))[0] == "+a=1 ++b=3"
    grid = parsed(["+c=1", "a=1,2", "~d", "++e=[1,2]", "b='x,y'"])
    assert grid.fixed == ["+c=1", "~d", "++e=[1,2]", "b='x,y'"]


def test_an_empty_space_has_one_cell():
    grid = space("a=1")
    assert grid.n_cells == 1
    assert [(cell.overrides, cell.params) for cell in grid.cells()] == [((), {})]


def test_the_command_line_wins():
    file = {
        "params": {"a": "1,2", "b": "3,4"},
        "conditions": {"a=1": {"c": "5,6"}, "a=2": {"d": "7,8"}},
    }
    assert texts(space("b=9", **file)) == ["a=1 c=5", "a=1 c=6", "a=2 d=7", "a=2 d=8"]
    assert texts(space("b=9", "a=1", **file)) == ["c=5", "c=6"]
    assert texts(space("b=9", "a=3", **file)) == [""]
    assert texts(space("b=9", "~a", **file)) == [""]
    assert texts(space("b=9", "a=2,3", **file)) == ["a=2 d=7", "a=2 d=8", "a=3"]
    assert texts(space("b=9", "c=0", **file)) == ["a=1", "a=2 d=7", "a=2 d=8"]
    assert texts(space("b=9", "c=0,1", "a=1,3", **file)) == ["a=1 c=0", "a=1 c=1", "a=3"]
    assert texts(space("e=0,1", "b=9", "a=1", "c=0", **file)) == ["e=0", "e=1"]


def test_a_condition_on_what_only_a_dropped_parameter_had_falls_away():
    file = {
        "params": {"a": "1,2"},
        "conditions": {"a=1": {"b": "x,y"}, "b=x": {"c": "interval(0.0,1)"}},
    }
    assert space(**file).n_cells is None
    assert texts(space("a=2,3", **file)) == ["a=2", "a=3"]
    assert space("a=2", **file).n_cells == 1


def test_parameters_come_after_those_that_decide_on_them():
    conditions = {"b=x": {"c": "5,6"}, "a=1": {"b": "x,y"}}
    assert texts(space("a=1,2", conditions=conditions)) == [
        "a=1 b=x c=5",
        "a=1 b=x c=6",
        "a=1 b=y",
        "a=2",
    ]


def test_one_key_under_several_conditions():
    grid = space(
        "m=a,b,c", params={"lr": "1,2"}, conditions={"m=a": {"lr": "3,4"}, "m=b": {"lr": "5"}}
    )
    assert texts(grid) == ["m=a lr=3", "m=a lr=4", "m=b lr=5", "m=c lr=1", "m=c lr=2"]
    assert {name for cell in grid.cells() for name in cell.params} == {
        "m",
        "lr",
        "lr@m=a",
        "lr@m=b",
    }


def test_pairs():
    grid = space("c=0,1", zipped=[{"a": [32, 64], "+b": [[64, 1], None]}])
    assert texts(grid)[:2] == ["c=0 a=32 +b=[64,1]", "c=0 a=64 +b=null"]
    assert next(grid.cells()).params == {"c": 0, "a+b": "32+[64,1]"}
    assert texts(space("a=1,2", "b=3", zipped=[{"a": [32, 64], "b": [64, 32]}])) == ["a=1", "a=2"]


def test_exclusions():
    grid = space("a=range(0,1,0.25)", "b=4,5", exclude=["a=0,0.25,0.5 b=4.0", "b=5 and a=0.75"])
    assert texts(grid) == ["a=0.0 b=5", "a=0.25 b=5", "a=0.5 b=5", "a=0.75 b=4"]
    assert grid.n_cells == 4
    assert (
        grid.is_excluded(next(space("a=range(0,1,0.25)", "b=4,5").cells())) == "a=0,0.25,0.5 b=4.0"
    )
    assert grid.is_excluded(next(grid.cells())) is None
    assert texts(space("b=4", "a=1,2", params={"b": "4,5"}, exclude=["a=1 b=4", "a=2 b=5"])) == [
        "a=2"
    ]


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
        (["a=tag(log,interval(0,1.0))"], {}, "above 0 on a log scale"),
        ([], {"params": {"a": "choice(1,[range(3)])"}}, "hydra.sweeper.params.a: a sweep inside"),
        (
            [],
            {"params": {"a": 5}},
            "hydra.sweeper.params.a: must be a text such as .* but got 5 alone",
        ),
        ([], {"params": {"a": "5"}}, "but got '5' alone"),
        ([], {"params": {"a": {"b": 1}}}, "must be a text such as"),
        ([], {"params": {"a": []}}, "at least one value"),
        ([], {"params": {"a": ["choice(1,2)", 3]}}, "quoted text here"),
        ([], {"params": {"a": [float("nan"), {"x y": 1}]}}, "cannot sweep {'x y': 1}"),
        ([], {"params": {"hydra.job.name": [1, 2]}}, "hydra belongs to the study"),
        ([], {"params": {"a": "1,2", "+a": "3,4"}}, r"params.\+a: a is swept twice"),
        (
            [],
            {"params": {"a": "1,2"}, "zipped": [{"a": [1, 2], "b": [1, 2]}]},
            r"zip\[0\]: a is swept twice",
        ),
        ([], {"zipped": [{"a": [1, 2], "b": [1]}]}, r"equal length, but a has 2, b has 1"),
        ([], {"zipped": [{"a": [1, 1], "b": [2, 2]}]}, "each value once"),
        ([], {"zipped": [{"a": [1, 2]}]}, "pair lists"),
        ([], {"zipped": [{"a": [1, 2], "b": 3}]}, "b must be a list"),
        (
            ["a=1"],
            {"zipped": [{"a": [1, 2], "b": [1, 3]}]},
            r"a: goes together with b in hydra.sweeper.zip\[0\]",
        ),
        (
            [],
            {"conditions": {"m=a": {"x": "1,2"}}},
            "conditions: m in 'm=a' is no parameter of the space",
        ),
        (
            ["m=a,b"],
            {"conditions": {"m=c": {"x": "1,2"}}},
            r"m=c in 'm=c' is none of choice\(a,b\)",
        ),
        (["m=a,b"], {"conditions": {"m": {"x": "1,2"}}}, "must be like"),
        (
            ["m=a,b"],
            {"conditions": {"m=a": {"x": "1,2"}, "m=a,b": {"x": "3"}}},
            "swept twice where both",
        ),
        ([], {"conditions": {"x=1": {"y": "1,2"}, "y=1": {"x": "1,2"}}}, "in a circle"),
        (["m=a,b"], {"exclude": ["m=c"]}, r"exclude\[0\]: m=c in 'm=c' is none of"),
        (["m=a,b"], {"exclude": ["n=1"]}, "n in 'n=1' is no parameter"),
        (["m=a,b"], {"exclude": ["m=a,b"]}, "hydra.sweeper.exclude: leaves no cell"),
    ],
)
def test_refusals_are_one_line(arguments, rest, problem):
    with pytest.raises(ConfigError, match=problem) as caught:
        parsed(arguments, **rest)
    assert "\n" not in str(caught.value)


FINITE: dict[str, Any] = {
    "arguments": ["data.split=0,1"],
    "params": {
        "model": "custom,resnet50",
        "loss": [None, "cross, entropy", True, 1, 1.5, [64, 64], []],
        "+dropout": "range(0,0.7,0.1)",
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
}


def ask(study: optuna.Study, of: Space):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # Optuna's when a range's end is moved
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        trial = study.ask()
        return trial, of.suggest(trial)


def test_a_continuous_parameter_has_no_grid():
    grid = space("a=1,2", "b=interval(0.0,1)")
    assert grid.n_cells is None
    with pytest.raises(ConfigError, match=r"^b: a grid cannot list interval\(0.0,1.0\)"):
        grid.cells()


def test_the_rich_space_by_hand():
    grid = space(*FINITE["arguments"], **{key: FINITE[key] for key in FINITE if key != "arguments"})
    # loss x dropout x split x (custom: width, depth, lr, skip for depth 3 and 4, pairs; resnet50:
    # lr, frozen, pairs)
    custom = 2 * (2 * (1 + 3 + 3) - 3) * 2
    resnet50 = 2 * 2 - 1
    assert grid.n_cells == 7 * 7 * 2 * (custom + resnet50)
    cells = list(grid.cells())
    assert len(cells) == len(set(cells)) == grid.n_cells
    assert not any(grid.is_excluded(cell) for cell in cells)


def rich(**without: Any) -> Space:
    small = {**FINITE, "params": {**FINITE["params"], "+dropout": "range(0,0.4,0.1)"}, **without}
    return space(*small.pop("arguments"), **small)


def test_every_cell_comes_back_when_enqueued():
    grid = rich(arguments=[])
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for cell in itertools.islice(grid.cells(), 0, None, 3):
        study.enqueue_trial(cell.params)
        trial, suggested = ask(study, grid)
        assert suggested == cell
        assert suggested.params == cell.params == trial.params
        study.tell(trial, 0.0)


def test_every_cell_is_found_by_its_overrides():
    grid = rich(arguments=[])
    for cell in itertools.islice(grid.cells(), 0, None, 7):
        assert grid.params_of(cell.overrides[::-1]) == cell.params
    unfit = [
        (),
        ("model=vgg16",),
        (*cell.overrides, "more=1"),
        cell.overrides[:-1],
        ("model=",),
        ("chioce(",),
    ]
    assert not any(grid.params_of(overrides) for overrides in unfit)
    forbidden = next(
        each for each in rich(arguments=[], exclude=[]).cells() if grid.is_excluded(each)
    )
    assert grid.params_of(forbidden.overrides) is None


def test_brute_force_finds_exactly_the_cells():
    grid = rich(arguments=[], params={"model": "custom,resnet50", "+dropout": "range(0,0.4,0.1)"})
    study = optuna.create_study(sampler=optuna.samplers.BruteForceSampler(seed=1))
    seen = []
    study.optimize(lambda trial: seen.append(grid.suggest(trial)) or 0.0)
    allowed = [cell for cell in seen if not grid.is_excluded(cell)]
    assert len(seen) == len(set(seen))
    assert set(allowed) == set(grid.cells())
    assert len(allowed) == grid.n_cells


@pytest.mark.parametrize(
    "sampler",
    [
        optuna.samplers.RandomSampler(seed=0),
        optuna.samplers.TPESampler(seed=0, n_startup_trials=5),
        optuna.samplers.QMCSampler(seed=0),
        optuna.samplers.NSGAIISampler(seed=0, population_size=8),
    ],
    ids=lambda sampler: type(sampler).__name__,
)
def test_every_sampler_suggests_cells_of_the_grid(sampler):
    grid = rich()
    cells = set(grid.cells())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(sampler=sampler)
    for number in range(40):
        trial, cell = ask(study, grid)
        assert (cell in cells) != bool(grid.is_excluded(cell))
        assert cell.params == trial.params
        study.tell(trial, float(number % 7))


NUMBERS = st.decimals(-1000, 1000, places=3).map(float)
STEPS = st.decimals("0.001", 10, places=3).map(float)


@settings(max_examples=100, deadline=None)
@given(NUMBERS, STEPS, st.integers(1, 60), st.integers(0, 2**31))
def test_suggested_floats_are_those_of_the_grid(start, step, count, seed):
    grid = space(f"a=range({start!r},{start + (count - 0.5) * step!r},{step!r})")
    cells = {cell.overrides: cell.params for cell in grid.cells()}
    assert len(cells) == count
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    for _ in range(5):
        _, cell = ask(study, grid)
        assert cells[cell.overrides] == cell.params
    study.enqueue_trial(list(cells.values())[-1])
    assert ask(study, grid)[1].params == list(cells.values())[-1]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.booleans())
def test_continuous_values_come_back_from_their_text(seed, log):
    grid = space("a=" + ("tag(log,interval(1e-7,1e3))" if log else "interval(-1.5,0.7)"))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trial, cell = ask(study, grid)
    assert PARSER.parse_overrides(list(cell.overrides))[0].value() == trial.params["a"]
    assert grid.params_of(cell.overrides) == cell.params


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.text(max_size=5),
        min_size=1,
    )
)
def test_listed_values_reach_hydra_as_they_are(values):
    try:
        grid = space(params={"a": values})
    except ConfigError as error:
        assert "once" in error.problem or "cannot sweep" in error.problem  # noqa: PT017
        return
    read = [PARSER.parse_overrides(list(cell.overrides))[0].value() for cell in grid.cells()]
    assert [(type(value), value) for value in read] == [(type(value), value) for value in values]


def test_descriptions_differ_where_the_spaces_do():
    def described(*arguments: str, **rest: Any) -> dict[str, Any]:
        return json.loads(json.dumps(space(*arguments, **rest).describe()))

    old = described("w=choice(8,16)", "b=1,2")
    assert Space.differences(old, space("w=8,16", "b=1,2").describe()) == []
    assert Space.differences(old, described("w=8,16,32", "c=1,2", "b=1,2")) == [
        "c: was not swept, is choice(1,2)",
        "w: was choice(8,16), is choice(8,16,32)",
    ]
    assert Space.differences(old, described("w=8,16")) == ["b: was choice(1,2), is no longer swept"]
    assert Space.differences(old, described("b=1,2", "w=8,16")) == ["order: was w, b, is b, w"]
    assert Space.differences(old, described("w=8,16", "b=1,2", exclude=["w=8 b=1"])) == [
        "newly excluded: w=8 b=1"
    ]
    assert Space.differences(old, described("w=8,16", "+b=1,2")) == [
        "b: was choice(1,2), is choice(1,2) as +b"
    ]
    assert Space.differences(old, described("w=8,16", conditions={"w=8": {"b": "1,2"}})) == [
        "b: was choice(1,2), is choice(1,2) when w=8"
    ]


def test_large_spaces_are_counted_without_listing_them():
    grid = space(*(f"p{number}=range(0,100)" for number in range(20)), exclude=["p3=4 p7=5"])
    assert grid.n_cells == 100**18 * (100**2 - 1)
