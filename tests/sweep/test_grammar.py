import math

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from src.core.errors import ConfigError
from src.sweep.overrides import assignment, clauses, identity, text_of

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


def hydra_reads(text: str):
    return OverridesParser.create().parse_overrides([f"key={text}"])[0].value()


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_hydra_reads_back_what_was_written(value):
    read = hydra_reads(text_of(value))
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize("value", [-math.inf, 1e-5, 1e22, 5e-324, -0.0, 10**30])
def test_numbers_come_back_exactly(value):
    assert repr(hydra_reads(text_of(value))) == repr(value)


@pytest.mark.parametrize(
    "value",
    ["null", "True", "nan", "inf", "1_000", "8", "1e3", "a,b", "it's", "a\\", "", " a ", "${x}"],
)
def test_texts_that_look_like_something_else_stay_texts(value):
    assert hydra_reads(text_of(value)) == value


@pytest.mark.parametrize("value", ["custom", "model/resnet50", "mobilenetv3_small", "a.b-c"])
def test_plain_texts_are_not_quoted(value):
    assert text_of(value) == value


def test_a_value_without_a_text_is_refused():
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
    ],
)
def test_an_override_is_taken_apart(text, prefix, key, is_sweep):
    read = assignment(text)
    assert (read.prefix, read.key, read.is_sweep, read.text) == (prefix, key, is_sweep, text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "a.b=[choice(64,128),64]",
            r"a\.b: the sweep inside \[choice\(64,128\),64\] is none to Hydra: list the whole",
        ),
        ("a.b={x:choice(1,2)}", "the sweep inside"),
        ("a.b=choice(choice(1,2),3)", "inside of a list, a mapping or another sweep is none"),
        ("a.b=choice([range(3)],3)", "inside of a list"),
        ("a.b=1,choice(2,3)", "inside of a list"),
        ("a.b=interval(1,2),interval(3,4)", "would be a choice of intervals: give one"),
        (
            "a.b=choice(null,1)",
            r"does not take null, as in choice\(null,1\): .* null,1, or as a list",
        ),
        (
            "a.b=interval(1,10)",
            r"is of floats: write int\(interval\(1,10\)\) or interval\(1\.0,10\.0\)",
        ),
        ("a.b=tag(log,interval(1,10))", "is of floats"),
        ("a.b=chioce(1,2)", r"Unknown function 'chioce' \(Available: .*choice"),
        ("a.b=x(1", "cannot read 'a.b=x"),
        ("a.b='choice(1,2)'", "is a quoted text here, not a sweep"),
        ("a.b=3,'int(interval(1,2))'", "is a quoted text here"),
        (
            "a.b=glob(*)",
            r"glob\(\*\) cannot be resolved in a sweep: list the options, a\.b=one,other",
        ),
        ("a.b=tag(lgo,interval(0.1,1))", "the only tag is log, but got lgo"),
        ("a.b=tag(log,range(1,10))", "only an interval can be tagged log"),
        ("~a.b=1,2", "a deletion cannot be swept"),
        ("hydra.job.name=a,b", "belongs to the study as a whole"),
        ("tracking.uri=a,b", "tracking belongs to the study"),
        ("objective=a,b", "objective belongs to the study"),
        ("study=a,b", "study belongs"),
        ("+test=true,false", "test belongs"),
        ("repeats=1,2", "repeats belongs"),
        ("dry_run=true,false", "dry_run belongs"),
    ],
)
def test_what_would_be_misread_is_refused_in_one_line(text, problem):
    with pytest.raises(ConfigError, match=problem) as caught:
        assignment(text)
    assert "\n" not in str(caught.value)
    assert caught.value.key == text.partition("=")[0].lstrip("+~")


@pytest.mark.parametrize(
    "text", ["objective=clinical", "a='x (y)'", "a=int(3.7)", "a=null", "a=", "tester=1,2"]
)
def test_what_is_no_misreading_passes(text):
    assert assignment(text).text == text


def test_clauses_of_conditions_and_exclusions():
    assert clauses("model=custom", "c") == {"model": ("custom",)}
    assert clauses("model=a,b and model.net.depth=3", "c") == {
        "model": ("a", "b"),
        "model.net.depth": (3,),
    }
    assert clauses("a=4  b='x y=z' c=[1,2]", "c") == {"a": (4,), "b": ("x y=z",), "c": ([1, 2],)}


@pytest.mark.parametrize(
    "text", ["", "model", "+a=1", "a=range(3)", "a=interval(0.1,2)", "a=1 a=2", "~a"]
)
def test_what_is_no_condition_is_refused(text):
    with pytest.raises(ConfigError, match="^c: "):
        clauses(text, "c")
