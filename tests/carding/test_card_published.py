"""Which model is meant, and where its card goes."""

from collections.abc import Callable
from pathlib import Path

import pytest
from card_records import Runs, register
from omegaconf import OmegaConf

from src import card
from src.carding import find, page
from src.carding.make import attach
from src.carding.publish import publish
from src.carding.record import Card
from src.core.errors import UserError
from src.tracking import read, registry

Entry = Callable[..., tuple[int, str]]


def test_a_run_a_version_an_alias_and_the_start_of_an_id_are_found(place: Runs) -> None:
    store = place.store
    register(store, "derm", place.leaking)
    register(store, "derm", place.seeds[0])
    store.client.set_registered_model_alias("derm", "champion", "1")
    wanted = {"derm": place.seeds[0], "derm/1": place.leaking, "derm@champion": place.leaking}
    wanted |= {place.trial[:12]: place.trial, place.seeds[1]: place.seeds[1]}
    for name, run_id in wanted.items():
        assert find.find(store, name).evaluated.run_id == run_id, name
    [version] = find.find(store, "derm@champion").versions
    assert version.title == "derm, version 1 (champion)"
    for name, said in (
        ("derm@nobody", "model=derm@nobody"),
        ("derm/7", "model=derm/7"),
        ("nobody", "registered are derm"),
    ):
        with pytest.raises(UserError, match=said):
            find.find(store, name)


def test_the_card_goes_to_the_run_and_behind_what_its_registered_version_said(
    place: Runs, card_of: Callable[[str], Card]
) -> None:
    store, run_id = place.store, place.seeds[0]
    register(store, "derm", run_id, "Which is the best? This one.")
    for _ in range(2):  # the second one replaces the first
        places = publish(card_of(run_id), find.find(store, "derm"), store)
    assert places == [f"card/card.md of run {run_id}", "the description of derm, version 1"]
    assert read.artifact(store, run_id, "card/card.md").read_text() == page.render(card_of(run_id))
    [version] = registry.of_run(store, run_id)
    assert version.description.startswith(
        "Which is the best? This one.\n\n# Model card: custom on ham10000\n\n"
    )
    assert version.description.count("# Model card") == 1
    assert "FAIL: recall of mel" in version.description


def test_the_entry_writes_the_card_and_publishes_only_where_that_is_wanted(
    place: Runs, run_entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    register(place.store, "derm", place.bare)
    typed = [
        "model=derm",
        "clinical.samples=100",
        "publish=false",
        f"tracking.uri={place.store.uri}",
    ]
    status, said = run_entry(card.main, *typed)
    assert status == 0, said
    assert "Limits:" in said
    text = (tmp_path / "reports" / f"card_{place.bare[:8]}" / "card.md").read_text()
    assert "- **Registered as**: derm, version 1" in text
    assert "python -m src.predict model=derm/1 " in text
    with pytest.raises(UserError, match="has no artifact"):
        read.artifact(place.store, place.bare, "card/card.md")


def test_a_file_without_a_description_is_refused_in_one_line(place: Runs, tmp_path: Path) -> None:
    path = tmp_path / "stray.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(UserError, match="stray.onnx") as caught:
        find.find(place.store, str(path))
    assert "\n" not in str(caught.value)


def test_a_report_that_registers_a_model_gives_it_a_card(
    place: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    register(place.store, "derm", place.bare, "Which is the best? This one.")
    place.store.client.set_registered_model_alias("derm", "champion", "1")
    tracking = {
        "_target_": "src.tracking.store.Store",
        "uri": place.store.uri,
        "experiment": "paretoderm",
    }
    config = {
        "register": "derm",
        "alias": "champion",
        "from_experiment": None,
        "tracking": tracking,
    }
    attach(OmegaConf.create(config))
    [version] = registry.of_run(place.store, place.bare)
    assert version.description.startswith(
        "Which is the best? This one.\n\n# Model card: custom on ham10000"
    )
    assert read.artifact(place.store, place.bare, "card/card.md").exists()
    attach(OmegaConf.create(config | {"alias": "nobody"}))
    assert "derm@nobody has no model card" in caplog.text
