"""Versions of registered models, found by what a user types and by their run."""

import pytest

from src.core.errors import ConfigError
from src.tracking.model_registry import Version, check_name, describe, of_run, resolve
from src.tracking.run import Run
from src.tracking.store import TrackingError


@pytest.fixture
def run_ids(store) -> list[str]:
    """Two runs, the first of which trained versions 1 and 3 of "skin", the other version 2."""
    ids = [Run.start(store, name).id for name in ("first", "second")]
    store.client.create_registered_model("skin")
    for run_id in (ids[0], ids[1], ids[0]):
        store.client.create_model_version("skin", f"runs:/{run_id}/model", run_id)
    for alias, number in (("champion", "1"), ("best", "1"), ("newest", "3")):
        store.client.set_registered_model_alias("skin", alias, number)
    return ids


def test_versions_by_what_is_typed(store, run_ids):
    for typed, number, run in (("skin", 3, 0), ("skin/1", 1, 0), ("skin@champion", 1, 0)):
        assert resolve(store, typed) == Version("skin", number, run_ids[run])
    assert resolve(store, "skin/2") == Version("skin", 2, run_ids[1])
    for typed, message in (
        ("skins", "skins: no such registered model; there are skin"),
        ("skin/9", "skin/9: "),
        ("skin@nobody", "skin@nobody: "),
        ("skin/one", "skin/one: "),
        ("a:b", "a:b: not the name of a registered model"),
        ("", ": not the name of a registered model"),
    ):
        with pytest.raises(TrackingError) as raised:
            resolve(store, typed)
        assert str(raised.value).startswith(message)


def test_the_versions_of_a_run_have_their_aliases(store, run_ids):
    newest, oldest = of_run(store, run_ids[0])
    assert newest.title == "skin, version 3 (newest)"
    assert oldest.title == "skin, version 1 (best, champion)"
    describe(store, oldest, "chosen")
    assert of_run(store, run_ids[0])[1].description == "chosen"
    assert [version.title for version in of_run(store, run_ids[1])] == ["skin, version 2"]


def test_a_name_that_mlflow_refuses_is_refused_early():
    check_name("skin model", "register")
    for name in ("a/b", "a:b", "it's", " "):
        with pytest.raises(ConfigError, match=r"^register: must be a model's name without"):
            check_name(name, "register")
