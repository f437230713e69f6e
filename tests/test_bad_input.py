"""Bad input of every command: one clear line on stderr, status 2, and nothing is trained."""

import importlib
import shlex
import shutil
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning
from PIL import Image

from src.core.cli import fail
from src.core.errors import UserError
from src.data import fetch
from src.sweep import dashboard
from src.sweep.executors.local import LocalExecutor
from src.sweep.scheduler import Scheduler
from src.tracking import ui

Entry = Callable[..., tuple[int, str]]
# command | arguments | part of the line. "sweep" is src.train -m. No run that is named exists.
CASES = (Path(__file__).parent / "bad_input.txt").read_text().splitlines()
FILES = {  # slips in a config file
    "bracket": b"seed: [1, 2\n",
    "tab": b"seed:\n\t- 3\n",
    "duplicate": b"seed: 1\nseed: 2\n",
    "python": b"seed: !!python/object/apply:os.getcwd []\n",
    "latin1": "study: é\n".encode("latin-1"),
    "itself": b"# @package _global_\nmodel: &net\n  net: *net\n",
    "list": b"# @package _global_\n- seed: 1\n",
    "header": b"seed: 1\n",
    "misspelt": b"# @package _global_\noptimzer:\n  lr: 1\n",
    "defaults": b"defaults:\n  - /nosuch: thing\n",
}


def forwarding(main: Callable[[list[str]], None]) -> Callable[[], None]:
    """As `python -m` calls a command that serves, which bad input does not reach."""

    def entry() -> None:
        try:
            main(sys.argv[1:])
        except UserError as error:
            fail(str(error))

    return entry


ENTRIES = {"ui": forwarding(ui.main), "dashboard": forwarding(dashboard.main)}
ENTRIES |= {"fetch": lambda: sys.exit(fetch.main(sys.argv[1:]))}


def reached(*arguments: Any, **options: Any) -> None:
    """Stands in for what must not begin."""
    pytest.fail("bad input was accepted")


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory,
    empty_database: Path,
    module_patch: pytest.MonkeyPatch,
) -> Path:
    """A working folder with an empty run store, where training fails."""
    path = tmp_path_factory.mktemp("bad_input")
    shutil.copy(empty_database, path / "mlflow.db")
    for name in ("bad.onnx", "bad.ckpt", "bad.csv", "empty.csv"):
        (path / name).write_text("a,b\n1,2\n" * (name == "bad.csv"))
    Image.new("RGB", (40, 40)).save(path / "pic.png")
    for group in ("experiment", "sweeps", "hydra/sweeper/executor"):
        (path / "mine" / group).mkdir(parents=True)
        for name, content in FILES.items():
            (path / "mine" / group / f"{name}.yaml").write_bytes(content)
    (path / "mine" / "mytrain.yaml").write_bytes(FILES["bracket"])
    module_patch.setattr(pytorch_lightning.Trainer, "fit", reached)
    module_patch.setattr(Scheduler, "run", reached)
    module_patch.setattr(LocalExecutor, "warm_up", lambda executor: None)
    return path


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_clear_line(
    case: str, folder: Path, monkeypatch: pytest.MonkeyPatch, run_entry: Entry
) -> None:
    command, typed, part = (text.strip() for text in case.split("|"))
    for file in folder.glob("optuna.db*"):  # of a study that was opened and then refused
        file.unlink()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    arguments = shlex.split(typed)
    if command in ("train", "sweep"):
        chosen = ("experiment=", "data=", "sweeps=", "--")
        arguments += [] if any(word in typed for word in chosen) else ["experiment=smoke"]
        arguments = ["-m", *arguments] if command == "sweep" else arguments
    elif command not in ENTRIES:
        arguments.append("tracking.experiment=template")
    module = "train" if command == "sweep" else command
    entry = ENTRIES.get(command) or importlib.import_module(f"src.{module}").main
    status, output = run_entry(entry, *arguments)
    assert status == 2, output
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, output
    assert part in errors[0]
    assert len(errors[0]) < 600
    assert "Traceback" not in output
    assert "pass-w0rd" not in output
    assert not any(f"did you mean {word.partition('=')[0]}?" in errors[0] for word in arguments)


def test_the_table_is_large_and_recorded_no_study(folder: Path) -> None:
    assert len(set(CASES)) == len(CASES) >= 350
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        [tags] = database.execute(
            "select count(*) from tags where key = 'kind' and value = 'study'"
        )
    assert tags == (0,)
