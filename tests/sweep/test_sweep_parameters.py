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
from src.sweep.space import Space, parse

optuna.logging.set_verbosity(optuna.logging.ERROR)

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


def space(*arguments: str, **rest: Any) -> Space:
    given = {"params": {}, "conditions": {}, "zipped": [], "exclude": [], **rest}
    return parse(arguments, **given).space


def ask(study: optuna.Study, of: Space):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # Optuna's when a range's end is moved
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        trial = study.ask()
        return trial, of.suggest(trial)


def test_a_continuous_parameter_has_no_grid():
    found = space("a=1,2", "b=interval(0.0,1)")
    assert found.n_cells is None
    with pytest.raises(ConfigError, match=r"^b: a grid cannot list interval\(0.0,1.0\)"):
        found.cells()


def test_the_rich_space_by_hand():
    found = space(
        *FINITE["arguments"], **{key: FINITE[key] for key in FINITE if key != "arguments"}
    )
    # loss x dropout x split x (custom: width, depth, lr, skip for depth 3 and 4, pairs; resnet50:
    # lr, frozen, pairs)
    custom = 2 * (2 * (1 + 3 + 3) - 3) * 2
    resnet50 = 2 * 2 - 1
    assert found.n_cells == 7 * 7 * 2 * (custom + resnet50)
    cells = list(found.cells())
    assert len(cells) == len(set(cells)) == found.n_cells
    assert not any(found.is_excluded(cell) for cell in cells)


def rich(**without: Any) -> Space:
    small = {**FINITE, "params": {**FINITE["params"], "+dropout": "range(0,0.4,0.1)"}, **without}
    return space(*small.pop("arguments"), **small)


def test_every_cell_comes_back_when_enqueued():
    found = rich(arguments=[])
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for cell in itertools.islice(found.cells(), 0, None, 3):
        study.enqueue_trial(cell.params)
        trial, suggested = ask(study, found)
        assert suggested == cell
        assert suggested.params == cell.params == trial.params
        study.tell(trial, 0.0)


def test_every_cell_is_found_by_its_overrides():
    found = rich(arguments=[])
    for cell in itertools.islice(found.cells(), 0, None, 7):
        assert found.params_of(cell.overrides[::-1]) == cell.params
    unfit = [
        (),
        ("model=vgg16",),
        (*cell.overrides, "more=1"),
        cell.overrides[:-1],
        ("model=",),
        ("chioce(",),
    ]
    assert not any(found.contains(overrides) for overrides in unfit)
    forbidden = next(
        each for each in rich(arguments=[], exclude=[]).cells() if found.is_excluded(each)
    )
    assert not found.contains(forbidden.overrides)


def test_brute_force_finds_exactly_the_cells():
    found = rich(arguments=[], params={"model": "custom,resnet50", "+dropout": "range(0,0.4,0.1)"})
    study = optuna.create_study(sampler=optuna.samplers.BruteForceSampler(seed=1))
    seen = []
    study.optimize(lambda trial: seen.append(found.suggest(trial)) or 0.0)
    allowed = [cell for cell in seen if not found.is_excluded(cell)]
    assert len(seen) == len(set(seen))
    assert set(allowed) == set(found.cells())
    assert len(allowed) == found.n_cells


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
    found = rich()
    cells = set(found.cells())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(sampler=sampler)
    for number in range(40):
        trial, cell = ask(study, found)
        assert (cell in cells) != bool(found.is_excluded(cell))
        assert cell.params == trial.params
        study.tell(trial, float(number % 7))


NUMBERS = st.decimals(-1000, 1000, places=3).map(float)
STEPS = st.decimals("0.001", 10, places=3).map(float)


@settings(max_examples=100, deadline=None)
@given(NUMBERS, STEPS, st.integers(1, 60), st.integers(0, 2**31))
def test_suggested_floats_are_those_of_the_grid(start, step, count, seed):
    found = space(f"a=range({start!r},{start + (count - 0.5) * step!r},{step!r})")
    cells = {cell.overrides: cell.params for cell in found.cells()}
    assert len(cells) == count
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    for _ in range(5):
        _, cell = ask(study, found)
        assert cells[cell.overrides] == cell.params
    study.enqueue_trial(list(cells.values())[-1])
    assert ask(study, found)[1].params == list(cells.values())[-1]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.booleans())
def test_continuous_values_come_back_from_their_text(seed, log):
    found = space("a=" + ("tag(log,interval(1e-7,1e3))" if log else "interval(-1.5,0.7)"))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trial, cell = ask(study, found)
    assert (
        OverridesParser.create().parse_overrides(list(cell.overrides))[0].value()
        == trial.params["a"]
    )
    assert found.params_of(cell.overrides) == cell.params


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
        found = space(params={"a": values})
    except ConfigError as error:
        assert "once" in error.problem or "cannot sweep" in error.problem  # noqa: PT017
        return
    read = [
        OverridesParser.create().parse_overrides(list(cell.overrides))[0].value()
        for cell in found.cells()
    ]
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
    found = space(*(f"p{number}=range(0,100)" for number in range(20)), exclude=["p3=4 p7=5"])
    assert found.n_cells == 100**18 * (100**2 - 1)
