import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.utils.validation import _validate_metric_name, _validate_param_name

from src.tracking.run import batches, cut, flatten, recordable, text


@given(st.text(max_size=300))
def test_mlflow_accepts_every_recordable_name(name):
    clean = recordable(name)
    _validate_metric_name(clean)
    _validate_param_name(clean)
    assert 0 < len(clean) <= 250
    assert recordable(clean) == clean


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("efficiency/latency_ms/b1/p50", "efficiency/latency_ms/b1/p50"),
        ("test/recall/naevus (common)", "test/recall/naevus _common_"),
        ("recall@k", "recall_k"),
        ("a//b/", "a/b"),
        ("Lentigo é", "Lentigo é"),
    ],
)
def test_only_what_mlflow_refuses_is_changed(name, expected):
    assert recordable(name) == expected


def test_long_names_that_differ_stay_different():
    assert recordable("x" * 300) != recordable("x" * 301)


def test_flatten_writes_dotted_keys_and_values_as_a_user_types_them():
    config = {
        "model": {"net": {"width": [32, 64], "dropout": 1e-3, "norm": None}, "frozen": True},
        "seed": 0,
        "e": {},
    }
    assert flatten(config) == {
        "model.net.width": "[32, 64]",
        "model.net.dropout": "0.001",
        "model.net.norm": "null",
        "model.frozen": "true",
        "seed": "0",
        "e": "{}",
    }


@given(st.text(max_size=500), st.integers(100, 400))
def test_cut_keeps_to_the_limit_and_tells_values_apart(value, limit):
    short = cut(value, limit)
    assert len(short) <= limit
    assert (short == value) == (len(value) <= limit)
    if len(value) > limit:
        assert short != cut(value + "x", limit)


def test_text_leaves_strings_alone_and_takes_any_object(tmp_path):
    assert text("a: 1") == "a: 1"
    assert str(tmp_path) in text(tmp_path)


@given(st.lists(st.integers()), st.integers(1, 7))
def test_batches_keep_order_and_size(items, size):
    parts = list(batches(items, size))
    assert [item for part in parts for item in part] == items
    assert all(0 < len(part) <= size for part in parts)
