from typing import Any

import pytest

from src.core.errors import ConfigError
from src.sweep.space import Parsed, Space, parse


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
    for found in (space(f"a={text}"), space(params={"a": text})):
        assert texts(found) == [f"a={value}" for value in values]
        assert found.n_cells == len(values)


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
    found = parsed(["+c=1", "a=1,2", "~d", "++e=[1,2]", "b='x,y'"])
    assert found.fixed == ["+c=1", "~d", "++e=[1,2]", "b='x,y'"]


def test_an_empty_space_has_one_cell():
    found = space("a=1")
    assert found.is_empty
    assert found.n_cells == 1
    assert [(cell.overrides, cell.params) for cell in found.cells()] == [((), {})]
    assert not space("a=1,2").is_empty


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
    found = space(
        "m=a,b,c", params={"lr": "1,2"}, conditions={"m=a": {"lr": "3,4"}, "m=b": {"lr": "5"}}
    )
    assert texts(found) == ["m=a lr=3", "m=a lr=4", "m=b lr=5", "m=c lr=1", "m=c lr=2"]
    assert {name for cell in found.cells() for name in cell.params} == {
        "m",
        "lr",
        "lr@m=a",
        "lr@m=b",
    }


def test_pairs():
    found = space("c=0,1", zipped=[{"a": [32, 64], "+b": [[64, 1], None]}])
    assert texts(found)[:2] == ["c=0 a=32 +b=[64,1]", "c=0 a=64 +b=null"]
    assert next(found.cells()).params == {"c": 0, "a+b": "32+[64,1]"}
    assert texts(space("a=1,2", "b=3", zipped=[{"a": [32, 64], "b": [64, 32]}])) == ["a=1", "a=2"]


def test_exclusions():
    found = space("a=range(0,1,0.25)", "b=4,5", exclude=["a=0,0.25,0.5 b=4.0", "b=5 and a=0.75"])
    assert texts(found) == ["a=0.0 b=5", "a=0.25 b=5", "a=0.5 b=5", "a=0.75 b=4"]
    assert found.n_cells == 4
    assert (
        found.is_excluded(next(space("a=range(0,1,0.25)", "b=4,5").cells())) == "a=0,0.25,0.5 b=4.0"
    )
    assert found.is_excluded(next(found.cells())) is None
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
