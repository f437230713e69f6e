"""Parsing and writing of overrides, and recorded overrides as columns."""

import math

import pandas as pd
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from src.core.errors import ConfigError
from src.sweep.overrides import (
    STUDY_KEYS,
    assignment,
    clauses,
    has_order,
    identity,
    in_order,
    is_log,
    is_numeric,
    levels,
    parameters,
    scan,
    text_of,
)

PARSER = OverridesParser.create()
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8"))
)
KEYS = st.from_regex(r"\A[a-z_][a-z0-9_]{0,5}\Z")
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3)
)


def parsed_by_hydra(text: str):
    return PARSER.parse_overrides([f"key={text}"])[0].value()


@settings(max_examples=60)
@given(VALUES)
def test_hydra_reads_back_what_was_written(value):
    read = parsed_by_hydra(text_of(value))
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    "value",
    [
        *(-math.inf, 1e-5, 1e22, 5e-324, -0.0, 10**30),
        # texts that look like something else
        *("null", "True", "nan", "inf", "1_000", "8", "1e3", "a,b", "it's", "a\\", "", " a "),
        "${x}",
    ],
)
def test_special_values_come_back_exactly(value):
    assert repr(parsed_by_hydra(text_of(value))) == repr(value)


def test_notation_of_texts():
    for value in ("custom", "model/resnet50", "mobilenetv3_small", "a.b-c"):
        assert text_of(value) == value  # without quotes
    with pytest.raises(TypeError, match="no value of a config"):
        text_of(object())
    with pytest.raises(TypeError, match="key 'a b'"):
        text_of({"a b": 1})


def test_identity_is_that_of_a_config():
    assert identity(4) == identity(4.0)
    assert identity([1, 2]) == identity([1.0, 2])
    assert len({identity(value) for value in (1, True, "1", "true", None, "null", [1], "[1]")}) == 8


@pytest.mark.parametrize(
    ("text", "prefix", "key", "is_sweep"),
    [
        ("a.b=1,2", "", "a.b", True),
        ("+a=choice(1,2)", "+", "a", True),
        ("++a=5", "++", "a", False),
        ("~a", "~", "a", False),
        ("db@backup=x,y", "", "db@backup", True),
        ("a=[1,2]", "", "a", False),
        # no misreadings
        ("objective=clinical", "", "objective", False),
        ("a='x (y)'", "", "a", False),
        ("a=int(3.7)", "", "a", False),
        ("a=null", "", "a", False),
        ("a=", "", "a", False),
        ("tester=1,2", "", "tester", True),
        ("tester=interval(0.0,1e20)", "", "tester", True),
    ],
)
def test_an_override_is_taken_apart(text, prefix, key, is_sweep):
    read = assignment(text)
    assert (read.prefix, read.key, read.is_sweep) == (prefix, key, is_sweep)


NESTED = (
    r"a sweep inside of a list, a mapping or another sweep has no effect in Hydra: list the whole"
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a.b=[choice(64,128),64]", rf"a\.b: {NESTED}"),
        ("a.b={x:choice(1,2)}", NESTED),
        ("a.b=choice(choice(1,2),3)", NESTED),
        ("a.b=choice([range(3)],3)", NESTED),
        ("a.b=1,choice(2,3)", NESTED),
        ("a.b=interval(1,2),interval(3,4)", "would be a choice of intervals: give one"),
        ("a.b=choice(null,1)", r"not take null, as in choice\(null,1\): .* null,1, or as a list"),
        ("a.b=interval(1,10)", r"is of floats: write int\(interval\(1,10\)\) or .*\(1\.0,10\.0\)"),
        ("a.b=tag(log,interval(1,10))", "is of floats"),
        ("a.b=chioce(1,2)", r"Unknown function 'chioce' \(Available: .*choice"),
        ("a.b=x(1", "cannot read 'a.b=x"),
        ("a.b='choice(1,2)'", "is a quoted text here, not a sweep"),
        ("a.b=3,'int(interval(1,2))'", "is a quoted text here"),
        ("a.b=glob(*)", r"glob\(\*\) cannot be resolved in a sweep: .*, a\.b=one,other"),
        ("a.b=tag(lgo,interval(0.1,1))", "the only tag is log, but got lgo"),
        ("a.b=tag(log,range(1,10))", "only an interval can be tagged log"),
        ("~a.b=1,2", "a deletion cannot be swept"),
        ("hydra.job.name=a,b", "hydra belongs to the study as a whole"),
        ("+test=true,false", "test belongs"),
        *((f"{key}=a,b", f"{key} belongs") for key in STUDY_KEYS),
    ],
)
def test_what_would_be_misread_is_refused_in_one_line(text, problem):
    with pytest.raises(ConfigError, match=problem) as caught:
        assignment(text)
    assert "\n" not in str(caught.value)
    assert caught.value.key == text.partition("=")[0].lstrip("+~")


def test_clauses_of_conditions_and_exclusions():
    assert clauses("model=custom", "c") == {"model": ("custom",)}
    several = {"model": ("a", "b"), "model.net.depth": (3,)}
    assert clauses("model=a,b and model.net.depth=3", "c") == several
    assert clauses("a=4  b='x y=z' c=[1,2]", "c") == {"a": (4,), "b": ("x y=z",), "c": ([1, 2],)}


@pytest.mark.parametrize(
    "text", ["", "model", "+a=1", "a=range(3)", "a=interval(0.1,2)", "a=1 a=2", "~a"]
)
def test_what_is_no_condition_is_refused(text):
    with pytest.raises(ConfigError, match="^c: "):
        clauses(text, "c")


# Recorded overrides as columns

TYPED = (
    "model.net.width=4 model.net.dense=[128, 64] model.net.dropout=0.38 "
    "loss=weighted_focal optimizer.lr=0.001"
)

DOTTED_KEYS = st.from_regex(r"[a-z_][a-z0-9_]{0,6}(\.[a-z_][a-z0-9_]{0,6}){0,2}", fullmatch=True)
PLAIN_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.sampled_from("ab1 =,.'\"[](){}~+\\:\t"), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2)
    ),
)


def trials(*overrides: str | None) -> pd.DataFrame:
    return pd.DataFrame(
        {"run_id": [f"run{number}" for number in range(len(overrides))], "overrides": overrides}
    )


@pytest.mark.parametrize(
    ("overrides", "values"),
    [
        (
            TYPED,
            {
                "model.net.width": "4",
                "model.net.dense": "[128, 64]",
                "model.net.dropout": "0.38",
                "loss": "weighted_focal",
                "optimizer.lr": "0.001",
            },
        ),
        (
            "a='x y=2' +b={c: [1, 2]} ++d=\"it's ]\" e='don\\'t f=1'",
            {"a": "'x y=2'", "b": "{c: [1, 2]}", "d": '"it\'s ]"', "e": "'don\\'t f=1'"},
        ),
        ("", {}),
        ("  ", {}),
        # A blank without a key behind it belongs to the value.
        ("note=two words a=1", {"note": "two words", "a": "1"}),
        (
            "model@net=custom data/source=ham ~callbacks.x ~optimizer=adam",
            {
                "model@net": "custom",
                "data/source": "ham",
                "callbacks.x": "removed",
                "optimizer": "removed",
            },
        ),
        ("=", {}),
        ("no key", {}),
        ("a=", {"a": ""}),
        # Nothing is closed here: read without an error.
        ("a=[1 b=2", {"a": "[1 b=2"}),
        ("a=1] b=2", {"a": "1]", "b": "2"}),
        ("a='x b=2", {"a": "'x", "b": "2"}),
    ],
)
def test_overrides_are_split_where_no_bracket_and_no_quote_is_open(
    overrides: str, values: dict[str, str]
) -> None:
    assert scan(overrides) == values


@settings(max_examples=40)
@given(st.dictionaries(DOTTED_KEYS, PLAIN_VALUES, max_size=5), st.sampled_from(["", "+", "++"]))
def test_every_value_that_the_sweeper_writes_is_scanned(cell: dict, prefix: str) -> None:
    typed = {key: text_of(value) for key, value in cell.items()}
    assert scan(" ".join(f"{prefix}{key}={text}" for key, text in typed.items())) == typed


@settings(max_examples=40)
@given(st.lists(st.integers(-(2**40), 2**40) | st.floats(-1e9, 1e9), min_size=2, max_size=6))
def test_numbers_are_read_as_hydra_reads_them(numbers: list[float]) -> None:
    texts = [f"lr={number!r}" for number in numbers]
    read = [override.value() for override in PARSER.parse_overrides(texts)]
    result = parameters(trials(*texts))
    if len(set(read)) == 1:
        assert result.empty
    else:
        assert result["lr"].tolist() == read
        assert is_numeric(result["lr"])


def test_what_differs_is_a_parameter() -> None:
    table = trials(
        "model=custom width=4 loss=focal",
        "model=custom width=8 loss=cross_entropy",
        "model=custom width=8",
        None,
    )
    result = parameters(table.iloc[:3])
    assert result.index.tolist() == ["run0", "run1", "run2"]
    assert list(result) == ["width", "loss"]
    assert result["width"].tolist() == [4, 8, 8]
    assert result["width"].dtype.kind == "i"
    assert result["loss"].tolist() == ["focal", "cross_entropy", None]
    assert parameters(table)["width"].dropna().tolist() == [4, 8, 8]  # one trial has none
    assert parameters(trials("decay=null", "decay=0.1"))["decay"].tolist() == ["null", "0.1"]
    assert parameters(trials("note=", "note=1"))["note"].tolist() == ["", "1"]
    assert parameters(trials()).shape == (0, 0)


def test_two_spellings_are_one_value() -> None:
    twice = ["dense=[128,64] lr=1e-3 loss='focal'", "dense=[ 128, 64 ] lr=0.001 loss=focal"]
    assert list(parameters(trials(*twice))) == []
    result = parameters(trials(*twice, "dense=[] lr=1 loss=ce"))
    assert result["dense"].tolist() == ["[128, 64]", "[128, 64]", "[]"]
    assert result["lr"].tolist() == [0.001, 0.001, 1]
    assert result["loss"].tolist() == ["focal", "focal", "ce"]
    assert parameters(trials("x='1, 2'", 'x="1"', "x=1"))["x"].tolist() == ["1, 2", '"1"', "1"]


def test_a_factor_of_ten_asks_for_a_logarithmic_axis() -> None:
    assert is_log(pd.Series([1e-3, 1e-2, math.nan]))
    assert is_log(pd.Series([4, 64]))
    assert not is_log(pd.Series([1.0, 9.9]))
    assert not is_log(pd.Series([0.0, 10.0]))
    assert not is_log(pd.Series(["1", "100"], dtype=object))
    assert not is_log(pd.Series([math.nan, math.nan]))


def test_lists_stand_on_an_axis_by_length_then_by_size() -> None:
    lists = ["[128, 64]", "[32]", "[]", "[64, 32]", "[128]"]
    assert in_order(lists) == ["[]", "[32]", "[128]", "[64, 32]", "[128, 64]"]
    assert in_order(["b", "null", "a", None, math.nan]) == ["a", "b", "null"]
    assert in_order([10, 9.5, 9]) == [9, 9.5, 10]
    assert has_order(lists)
    assert has_order([1, 2.5])
    assert has_order(["1", "2"])
    assert not has_order(["focal", "cross_entropy"])
    assert not has_order(["[32]", "null"])
    assert not has_order([])


def test_few_values_are_not_grouped() -> None:
    result = levels(pd.Series([4.0, 64, math.nan, 4], index=list("abcd")))
    assert result["value"].to_dict() == {"a": "4", "b": "64", "d": "4"}
    assert result["position"].tolist() == [4, 64, 4]
    assert levels(pd.Series([math.nan, math.nan])).empty
    result = levels(pd.Series([0.015625, 0.12312341234, 0.1231299999]))
    assert result["value"].tolist() == ["0.015625", "0.123123", "0.12313"]
    result = levels(pd.Series(["[64]", None, "[]", "[128]"], dtype=object))
    assert result["value"].tolist() == ["[64]", "[]", "[128]"]
    assert result["position"].tolist() == [1, 0, 2]


def test_a_continuous_parameter_is_cut_at_its_quantiles() -> None:
    result = levels(pd.Series(range(100)).sample(frac=1, random_state=0) / 100)
    expected = {
        "0 to 0.19": 0.095,
        "0.2 to 0.39": 0.295,
        "0.4 to 0.59": 0.495,
        "0.6 to 0.79": 0.695,
        "0.8 to 0.99": 0.895,
    }
    assert result["value"].value_counts().to_dict() == dict.fromkeys(expected, 20)
    assert result.groupby("value")["position"].first().to_dict() == pytest.approx(expected)
    digits = levels(pd.Series([1 + number * 1e-5 for number in range(50)]))
    assert digits["value"].nunique() == 5  # names have the digits that distinguish them


@settings(max_examples=40)
@given(
    st.lists(st.floats(0, 1).map(lambda x: round(x, 2)), min_size=1, max_size=80), st.integers(2, 6)
)
def test_groups_part_no_equals_and_keep_the_order(numbers: list[float], bins: int) -> None:
    column = pd.Series(numbers)
    result = levels(column, bins)
    assert len(result) == len(column)
    assert result["value"].nunique() <= 2 * bins
    assert result["value"].nunique() == result["position"].nunique()
    ranked = pd.DataFrame({"number": column, "position": result["position"]}).sort_values("number")
    assert ranked["position"].is_monotonic_increasing
    assert ranked.groupby("number")["position"].nunique().eq(1).all()
