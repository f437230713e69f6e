"""Every command: --help, how its arguments are read, bad input in one line, exit status."""

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from src.core.cli import ROOT, Command, quoted

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
BAD_INPUT = [  # (command, arguments, part of the one line)
    ("train", ["model=cutsom"], "model=cutsom: no such choice, did you mean custom?"),
    ("train", ["model.net.widht=3"], "widht: unknown key; did you mean model.net.width?"),
    ("train", ["+model.net.foo=3"], "model.net.foo: unknown key"),
    ("train", ["model.net.dropout=1.3"], "model.net.dropout: "),
    ("train", ["model.net.width=0"], "model.net.width: "),
    ("train", ["model.net.width=abc"], "model.net.width: "),
    ("train", ["trainer.max_epochs=ten"], "trainer.max_epochs: "),
    ("train", ["seed=abc"], "seed: "),
    ("train", ["test=perhaps"], "test: "),
    ("train", ["test=yes"], "test: "),
    ("train", ["objective.objectives=[{metric:test/accuracy}]"], "objective.objectives[0]"),
    ("train", ["model.net.width=["], "model.net.width=["),
    ("train", ["nonsense"], "nonsense"),
    ("train", ["repeats=2"], "repeats: belongs to a study: add -m"),
    ("train", ["dry_run=true"], "dry_run: belongs to a study: add -m"),
    ("train", ["-m", "--cfg", "job"], "--cfg: shows the config of one run"),
    ("train", ["--help", "nosuch"], "--help nosuch: there is no such group"),
    ("card", [], "model: name one"),
    ("card", ["model=nosuch"], "model=nosuch: no run, no registered model and no file"),
    ("card", ["model=abcdef"], "model=abcdef: no such run"),
    ("card", ["model=derm@champion"], "model=derm@champion"),
    ("card", ["model=gone.onnx"], "model=gone.onnx: no such file"),
    ("card", ["model=abc", "clinical.goal=2"], "clinical.goal: must be between 0 and 1"),
    ("card", ["model=abc", "claims=1"], "claims"),
    ("benchmark", [], "run: name runs or a study"),
    ("benchmark", ["file=none.onnx"], "file=none.onnx: no such file"),
    ("benchmark", ["file=model.h5"], "file=model.h5: "),
    ("benchmark", ["file=a.onnx", "join=b.json"], "join: "),
    ("benchmark", ["file=a.onnx", "threads=0"], "threads: "),
    ("benchmark", ["file=a.onnx", "runtime=tensorrt"], "runtime: "),
    ("benchmark", ["file=a.onnx", "image=none.jpg"], "image=none.jpg: "),
    ("benchmark", ["join=none.json"], "none.json"),
    ("benchmark", ["file=a.onnx", "out=result.csv"], "out: result.csv "),
    ("benchmark", ["file=a.onnx", "out=."], "out: . "),
    ("benchmark", ["file=a.onnx", "out=/dev/null"], "out: /dev/null "),
    ("benchmark", ["file=a.onnx", "cores=9999"], "cores: must be at most"),
    ("audit", [], "You must specify 'paper'"),
    ("audit", ["paper=nosuch"], "paper=nosuch: no such choice; paper has mamun2025, sun2023"),
    ("audit", ["paper=sun2023", "samples=3"], "samples: input should be greater than or equal"),
    ("audit", ["paper=sun2023", "sample=3"], "sample: unknown key"),
    ("audit", ["paper=mamun2025", "tracking.uri=http://127.0.0.1:9"], "run store cannot be used"),
    ("report", [], "study: "),
    ("report", ["study=nosuch"], "nosuch"),
    ("report", ["study=a", "margin=2"], "margin: "),
    ("evaluate", ["run=3f2a9c", "overlap=perhaps"], "overlap: "),
    ("predict", ["model=gone.onnx", "input=nowhere.jpg"], "nowhere.jpg is not there"),
    ("export", ["run=3f2a9c", "format=h5"], "format: "),
]
BAD_VALUES = [  # found when the parts are built, or later
    ("train", ["experiment=smoke", "data.fractions=[0.5,0.2,0.2]"], "data.fractions: "),
    ("train", ["experiment=smoke", "model.image_size=16"], "model.net.image_size: "),
    ("train", ["experiment=smoke", "optimizer.lr=-1"], "optimizer: "),
    ("train", ["experiment=smoke", "trainer.max_epochs=0"], "trainer.max_epochs: "),
    ("train", ["experiment=smoke", "~callbacks.best"], "callbacks.best: "),
    ("train", ["experiment=smoke", "optimizer.lr=1e9", "loss=focal"], "train/loss is "),
    ("train", ["data=ham10000", "data.root=nowhere"], "nowhere"),
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
    monkeypatch.setenv("PARETODERM_CACHE", str(folder / "cache"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")

    def run(name: str, *arguments: str) -> tuple[int, str]:
        store = [] if name == "train" or "--help" in arguments else ["tracking.experiment=template"]
        return run_entry(importlib.import_module(f"src.{name}").main, *arguments, *store)

    return run


@pytest.mark.parametrize("name", HELP)
def test_help_shows_examples_and_keys_within_100_columns(typed: Entry, name: str) -> None:
    status, output = typed(name, "--help")
    assert status == 0
    assert output.count(f"python -m src.{name}") >= 3
    assert all(part in output for part in HELP[name])
    assert "_base" not in output
    assert max(map(len, command(name).examples.splitlines())) <= 100


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


@pytest.mark.parametrize(("name", "argument", "expected"), ARGUMENTS)
def test_arguments_are_read_as_they_are_meant(name: str, argument: str, expected: str) -> None:
    assert command(name).hydra_argument(argument) == expected


@pytest.mark.parametrize("text", ["a\\b", "it's", "a\\'b", "end\\", "a, b (c)=[d]"])
def test_hydra_reads_a_quoted_text_unchanged(text: str) -> None:
    assert OverridesParser.create().parse_override(f"file={quoted(text)}").value() == text


@pytest.mark.parametrize(("name", "arguments", "message"), [*BAD_INPUT, *BAD_VALUES])
def test_bad_input_ends_with_one_line_and_status_2(
    typed: Entry, name: str, arguments: list[str], message: str
) -> None:
    status, output = typed(name, *arguments)
    assert status == 2, output
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, output
    assert message in errors[0]
    assert "Traceback" not in output
    if name == "train" and (name, arguments, message) in BAD_INPUT:
        assert output.count("\n") == 1, output


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
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
