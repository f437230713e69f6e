import json
from contextlib import suppress
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from src import multirun

CONFIG = OmegaConf.create(
    {
        "study": None,
        "test": "auto",
        "hydra": {"sweep": {"dir": ""}},
        "objective": {"objectives": []},
        "tracking": {"experiment": "x"},
    }
)


def announce(folder: Path) -> None:
    config = OmegaConf.merge(CONFIG, {"hydra": {"sweep": {"dir": str(folder)}}})
    multirun.Announcement().on_multirun_start(config)


def test_study_is_named_by_the_config_or_by_the_folder(tmp_path: Path) -> None:
    assert multirun.study_name(CONFIG, tmp_path / "2026") == "2026"
    assert multirun.study_name(OmegaConf.merge(CONFIG, {"study": "widths"}), tmp_path) == "widths"


@pytest.mark.parametrize("raised", [None, KeyboardInterrupt(), SystemExit(1), ValueError("x")])
def test_the_parent_is_finished_however_the_multirun_ends(tmp_path: Path, raised: BaseException | None) -> None:
    seen = []
    with suppress(type(raised) if raised else ()), multirun.compared(lambda *call: seen.append(call)):
        announce(tmp_path)
        (tmp_path / multirun.RECORD).write_text(json.dumps({"run_id": "r"}))
        if raised is not None:
            raise raised
    assert seen == [({"run_id": "r"}, raised)]


def test_nothing_is_finished_where_nothing_began(tmp_path: Path) -> None:
    finished: list[object] = []
    with multirun.compared(lambda *call: finished.append(call)):  # no run needed a parent
        announce(tmp_path)
    with multirun.compared(lambda *call: finished.append(call)):  # this was no multirun
        pass
    assert finished == []
