"""Every command: --help, how its arguments are read, bad input in one line, exit status."""

import errno
import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from src.core import cli
from src.core.cli import PROGRAM, ROOT, Command, quoted
from src.sweep import dashboard
from src.tracking import ui
from src.tracking.read import artifacts
from src.tracking.store import Store

Entry = Callable[..., tuple[int, str]]
HELP = {  # command -> what --help shows: examples and keys
    "train": ["model: ", "data: ", "experiment: ", "efficientnet_lite0", "sweeps: "],
    "report": ["from_experiment:", "filter:", "budgets:", "register:"],
    "evaluate": ["run:", "test:", "mapping:", "unknown:", "overlap:", "clinical:", "folder:"],
    "predict": ["named:", "input:", "out:", "gradcam:", "batch_size:", "no medical device"],
    "export": ["run:", "format:", "root:", "images:", "tolerance:", "publish:"],
    "benchmark": ["join:", "runtime:", "threads:", "reference:", "memory_mb:", "publish:"],
    "card": ["subject:", "own_root:", "clinical:", "folder:"],
    "audit": ["paper=sun2023", "study:", "samples:", "publish: true"],
}
ARGUMENTS = [  # (command, typed, in Hydra's grammar)
    ("train", "model=custom", "model=custom"),
    ("report", "experiment=a", "from_experiment=a"),
    ("report", "filter=tags.data = 'a b'", r"filter='tags.data = \'a b\''"),
    ("report", "filter=\"tags.data = 'a b'\"", "filter=\"tags.data = 'a b'\""),
    ("report", "filter=null", "filter=null"),
    ("report", "study=[a,b]", "study=[a,b]"),
    ("evaluate", "run=3f2a9c", "run='3f2a9c'"),
    ("evaluate", "run=12e4", "run='12e4'"),  # a number to Hydra
    ("evaluate", "run=0012", "run='0012'"),
    ("evaluate", "run=null", "run=null"),
    ("evaluate", "run='3f'", "run='3f'"),
    ("evaluate", "run=", "run="),
    ("evaluate", "labels=mine.yaml", "mapping=mine.yaml"),
    ("evaluate", "data=isic2019", "data=isic2019"),
    ("predict", "model=skin@champion", "named='skin@champion'"),
    ("predict", "model='a b.onnx'", "named='a b.onnx'"),
    ("predict", "input=pictures (1), it's.jpg", r"input='pictures (1), it\'s.jpg'"),
    ("predict", "input=[a].jpg", "input='[a].jpg'"),
    ("predict", "out=null", "out=null"),
    ("predict", "unsure_below=0.5", "unsure_below=0.5"),
    ("export", "format=onnx", "format=onnx"),
    ("export", "format=onnx,litert", "format=[onnx,litert]"),  # a sweep to Hydra
    ("export", "format=[onnx,litert]", "format=[onnx,litert]"),
    ("export", "data.root=/a b", "root='/a b'"),
    ("benchmark", "run=[3f2a, 0012]", "run=['3f2a','0012']"),
    ("benchmark", "run=12e4,0012", "run=['12e4','0012']"),
    ("benchmark", "file=a b.onnx", "file='a b.onnx'"),
    ("benchmark", "file=['a.onnx',b.onnx]", "file=['a.onnx','b.onnx']"),
    ("benchmark", "runtime=eager,onnx", "runtime=[eager,onnx]"),
    ("benchmark", "threads=2", "threads=2"),
    ("card", "model=derm@champion", "subject='derm@champion'"),
    ("card", "model=it's", r"subject='it\'s'"),
    ("card", "model=a\\b.onnx", "subject='a\\b.onnx'"),
    ("card", "model=null", "subject=null"),
    ("card", "--cfg", "--cfg"),
]


def command(name: str) -> Command:
    """The command's description."""
    return importlib.import_module(f"src.{name}").COMMAND


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """A working folder with an empty run store."""
    path = tmp_path_factory.mktemp("commands")
    shutil.copy(empty_database, path / "mlflow.db")
    return path


@pytest.fixture
def typed(folder: Path, monkeypatch: pytest.MonkeyPatch, run_entry: Entry) -> Entry:
    """`typed("train", *arguments)`: status and output of a command, run in this process."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")

    def run(name: str, *arguments: str) -> tuple[int, str]:
        store = [] if name == "train" or "--help" in arguments else ["tracking.experiment=template"]
        return run_entry(importlib.import_module(f"src.{name}").main, *arguments, *store)

    return run


@pytest.mark.parametrize("name", HELP)
@pytest.mark.parametrize("columns", [80, 100])
def test_help_shows_examples_and_keys_within_the_terminal(
    typed: Entry, name: str, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "console", cli.PlainConsole(width=columns))
    status, output = typed(name, "--help")
    assert status == 0
    assert max(map(len, output.splitlines())) <= columns
    assert output.count(f"python -m src.{name}") >= 3
    text = " ".join(output.split())
    assert all(part in text for part in HELP[name])
    assert "_base" not in output


@pytest.mark.parametrize(
    ("name", "group", "line"),
    [
        ("evaluate", "labels", "isic2019_to_ham10000  ISIC 2019's eight classes as HAM10000's"),
        ("audit", "paper", "mamun2025"),
        ("train", "sweeps", "dense_size"),
        ("train", "hydra/sweeper/sampler", "nsgaii"),
    ],
)
def test_help_of_a_group_lists_its_choices(typed: Entry, name: str, group: str, line: str) -> None:
    status, output = typed(name, "--help", group)
    assert status == 0
    assert line in output


def test_a_help_text_is_wrapped_below_its_descriptions() -> None:
    text = "  run --long            one two three\nkey: 1   # four five\n\nsix seven"
    assert cli.fitted(text, 80) == text
    assert cli.fitted(text, 18).splitlines() == [
        *("  run --long", "      one two", "      three"),  # begins right of the middle
        *("key: 1   # four", "         five"),
        *("", "six seven"),
    ]


def test_hydras_help_lists_the_groups_and_does_not_walk_the_checkout(
    typed: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed, listdir = set[str](), os.listdir

    def list_folder(path: str) -> list[str]:
        listed.add(os.path.relpath(path, ROOT))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", list_folder)
    status, output = typed("train", "--hydra-help")
    assert status == 0
    assert "hydra/sweeper/sampler: brute_force, cmaes" in output
    assert {"conf/model", "sweeps"} <= listed
    assert not {"src", "tests", ".venv", ".git"} & listed


@pytest.fixture
def program(run_entry: Entry, monkeypatch: pytest.MonkeyPatch) -> Entry:
    """`program("train", "--help")`: status and output of the console script."""
    monkeypatch.setenv("COLUMNS", "80")
    return lambda *arguments: run_entry(cli.main, *arguments)


@pytest.mark.parametrize("name", PROGRAM)
def test_the_console_script_forwards_to_the_command(program: Entry, name: str) -> None:
    status, output = program(name, "--help")
    assert status == 0
    assert f"python -m {PROGRAM[name]}" in output
    status, output = program(name, "--nosuch")
    assert status == 2, output
    assert "--nosuch" in output


def test_the_console_script_lists_its_commands_and_refuses_others(program: Entry) -> None:
    status, output = program("--help")
    assert status == 0
    assert max(map(len, output.splitlines())) <= 80
    assert re.findall(r"^  paretoderm (\w+)", output, re.M) == list(PROGRAM)
    assert output.startswith(f"paretoderm {importlib.metadata.version('paretoderm')}: ")
    assert program() == program("--version") == program("help") == (status, output)
    error = "error: reprot: no such command, did you mean report?; see paretoderm --help\n"
    assert program("reprot") == (2, error)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("paretoderm ", list(PROGRAM)),
        ("paretoderm re", ["report"]),
        (
            "paretoderm train model=cust",
            ["model=custom", "model=custom_flatten", "model=custom_gap"],
        ),
        ("paretoderm train model=custom -m sweeps=dense", ["sweeps=dense_size"]),
        ("paretoderm train -m hydra/sweeper/sampler=nsgaiii", ["hydra/sweeper/sampler=nsgaiii"]),
        ("paretoderm train model.net.wid", ["model.net.width="]),
        ("paretoderm report samp", ["samples="]),
        ("paretoderm audit paper=sun", ["paper=sun2023"]),
        ("paretoderm ui po", []),
        ("paretoderm nosuch po", []),
    ],
)
def test_the_shell_completes_commands_groups_and_keys(
    program: Entry, monkeypatch: pytest.MonkeyPatch, line: str, words: list[str]
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    status, output = program("-sc", "query=bash")
    assert status == 0
    assert output.split() == words


@pytest.mark.parametrize(("server", "port"), [(ui, 5000), (dashboard, 8080)])
def test_help_of_the_servers(server: Any, port: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        server.main(["--help"])
    assert not ended.value.code
    assert f"python -m {server.__name__} [port={port}]" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "argument", "expected"), ARGUMENTS)
def test_arguments_are_read_as_they_are_meant(name: str, argument: str, expected: str) -> None:
    assert command(name).hydra_argument(argument) == expected


@pytest.mark.parametrize("text", ["a\\b", "it's", "a\\'b", "end\\", "a, b (c)=[d]"])
def test_hydra_reads_a_quoted_text_unchanged(text: str) -> None:
    assert OverridesParser.create().parse_override(f"file={quoted(text)}").value() == text


@pytest.mark.parametrize(
    "settings",
    [
        ("optimizer.lr=1e9", "loss=focal"),
        # One step: the training loss is finite, the weights afterwards are not.
        ("optimizer.lr=1e30", "data.batch_size=512", "trainer.max_epochs=1"),
    ],
)
def test_a_training_that_diverges_ends_with_one_line(
    typed: Entry, folder: Path, settings: tuple[str, ...]
) -> None:
    status, output = typed("train", "experiment=smoke", *settings, "tracking.experiment=diverged")
    assert status == 2, output
    newest = next(Store(uri=f"sqlite:///{folder}/mlflow.db", experiment="diverged").search())
    assert newest.info.status == "FAILED"
    assert re.match("DivergedError: .*the training diverged", newest.data.tags["failure"])
    assert not [name for name in newest.data.metrics if name.startswith("test/")]
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, output
    assert "the training diverged" in errors[0]
    assert "Traceback" not in output


def test_a_full_disk_ends_with_one_line_and_the_next_run_is_whole(
    typed: Entry, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("train", "experiment=smoke", "tracking.experiment=full", "trainer.max_epochs=1")

    copy = shutil.copyfileobj

    def full(source: Any, target: Any, **options: Any) -> None:
        if source.name.endswith("best.ckpt"):
            target.write(source.read(10))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        copy(source, target, **options)

    with monkeypatch.context() as patch:
        patch.setattr("mlflow.store.artifact.local_artifact_repo.shutil.copyfileobj", full)
        status, output = typed(*arguments)
    assert status == 2, output
    name = r"best\.ckpt: cannot be written below .*artifacts, the disk is full: make space"
    assert re.match(f"error: {name}", output.splitlines()[-1])
    assert "Traceback" not in output
    assert typed(*arguments)[0] == 0
    store = Store(uri=f"sqlite:///{folder}/mlflow.db", experiment="full")
    whole, failed = store.search()
    assert (failed.info.status, whole.info.status) == ("FAILED", "FINISHED")
    assert re.search(name, failed.data.tags["failure"])
    assert artifacts(store, failed.info.run_id, "checkpoint") == []
    assert artifacts(store, whole.info.run_id, "checkpoint") == ["checkpoint/best.ckpt"]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space", "a.png"), "error: a.png cannot be written, the disk is"),
        (OSError(errno.EDQUOT, "Quota"), "error: the disk is full: make space"),
        (MemoryError(), "error: out of memory: use a smaller data.batch_size"),
        (RuntimeError("no answer"), None),
    ],
)
def test_a_full_disk_is_one_line_wherever_it_is_noticed(
    typed: Entry, monkeypatch: pytest.MonkeyPatch, error: Exception, line: str | None
) -> None:
    def fail(config: object) -> None:
        raise ValueError("a consequence") from error

    monkeypatch.setattr("src.run.single_run", fail)
    status, output = typed("train", "experiment=smoke")
    assert status == (2 if line else 1)
    assert ("Traceback" in output) is (line is None)
    assert "Error executing job" not in output or line is None
    assert line is None or output.startswith(line)


def test_a_mistake_in_a_process_is_one_line_on_stderr(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "src.train", "model.net.width=0"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: model.net.width: ")
    assert result.stderr.count("\n") == 1, result.stderr


def test_importing_the_entries_is_light() -> None:
    heavy = ("torch", "mlflow", "optuna", "timm", "pandas", "sklearn", "matplotlib", "plotly")
    modules = ", ".join(f"src.{name}" for name in HELP)
    code = f"import sys, {modules}; print([name for name in {heavy} if name in sys.modules])"
    # a study that is only estimated draws nothing, records nothing and reads kept splits
    later = ("mlflow", "timm", "sklearn", "matplotlib", "plotly")
    code += f"; import src.study; print([name for name in {later} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["[]", "[]"]


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]])
def test_a_reader_of_a_help_may_end_before_it(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        monkeypatch.setattr(sys, "argv", ["paretoderm", *arguments])
        cli.main()
