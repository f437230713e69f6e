import dataclasses
import importlib
import logging
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from filelock import FileLock
from hydra._internal import config_loader_impl as loader
from hydra._internal.config_loader_impl import ConfigLoaderImpl as Loader
from hydra._internal.core_plugins import file_config_source
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigSource

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # trials choose their own threads
if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):  # a hundred processes would compile all sources
    sys.dont_write_bytecode = False

import src  # noqa: F401  first: it installs the torchvision guard
from src.core import cli
from src.tracking.store import Store

# no deadline on a busy machine
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("PARETODERM_SHARED", ROOT.parent / "shared"))
# WebGL without a graphics card, no network, and a camera
BROWSER_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--enable-unsafe-swiftshader",
    "--use-angle=swiftshader",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
]


MadeOnce = Callable[[str, Callable[[Path], None]], Path]


def files_of(sources: list[ConfigSource]) -> tuple[Any, ...]:
    """Where Hydra reads from, and the state of every file there."""
    folders = {"file": "", "studies": "sweeps"}  # the second is of hydra_plugins/paretoderm.py
    files = [
        (file.path, status.st_mtime_ns, status.st_size)
        for source in sources
        if source.scheme() in folders
        for folder, _, _ in os.walk(Path(source.path, folders[source.scheme()]))
        for file in os.scandir(folder)
        if file.name.endswith(".yaml")
        for status in [file.stat()]
    ]
    return *((source.scheme(), source.path) for source in sources), *sorted(files)


@pytest.fixture(scope="session", autouse=True)
def each_composition_is_made_once() -> Iterator[None]:
    """Hydra needs 0.2 s to find and merge some thirty files, and does so up to three times a run.

    What a test types is parsed and applied each time. New choices or changed files are read.
    """
    Plugins.instance()  # it defines the classes of its plugins anew
    FileConfigSource = file_config_source.FileConfigSource  # noqa: N806
    find, merge = loader.create_defaults_list, Loader._compose_config_from_defaults_list
    load = FileConfigSource.load_config
    loaded, found, merged = dict[Any, bytes](), dict[Any, Any](), dict[Any, bytes]()

    def load_once(self: Any, config_path: str) -> Any:
        file = Path(self.path, self._normalize_file_name(config_path))
        if not file.is_file():
            return load(self, config_path)
        key = file, file.read_bytes()
        if key not in loaded:
            loaded[key] = pickle.dumps(load(self, config_path))
        return pickle.loads(loaded[key])

    def find_once(repo: Any, config_name: Any, overrides_list: list[Any], **options: Any) -> Any:
        typed = [override for override in overrides_list if not override.is_sweep_override()]
        choices = [
            override
            for override in typed
            if repo.group_exists(override.key_or_group) and not isinstance(override.value(), dict)
        ]
        lines = tuple(override.input_line for override in choices)
        key = files_of(repo.get_sources()), config_name, lines, *sorted(options.items())
        if key not in found:
            found[key] = find(repo, config_name, choices, **options)
        others = [override for override in typed if override not in choices]
        return dataclasses.replace(found[key], config_overrides=others)

    def merge_once(self: Any, defaults: list[Any], repo: Any) -> Any:
        key = files_of(repo.get_sources()), repr(defaults)
        if key not in merged:
            merged[key] = pickle.dumps(merge(self, defaults, repo))
        return pickle.loads(merged[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileConfigSource, "load_config", load_once)
        patch.setattr(loader, "create_defaults_list", find_once)
        patch.setattr(Loader, "_compose_config_from_defaults_list", merge_once)
        yield


@pytest.fixture(scope="session", autouse=True)
def runs_are_quick(made_once: MadeOnce) -> Iterator[None]:
    """Runs and trials draw no figures, and share one cache of decoded pictures."""
    importlib.import_module("quick_runs")
    path = os.pathsep.join(filter(None, [str(ROOT / "tests"), os.environ.get("PYTHONPATH")]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        patch.setenv("PARETODERM_CACHE", str(made_once("pictures", lambda folder: None)))
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images beside the checkout."""
    if not (SHARED / "data" / "ham10000").is_dir():
        pytest.skip(f"no real images: {SHARED / 'data'} is not there")
    return SHARED / "data"


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


# The files of an entry run in one process: they share what takes seconds to start, such as a fork
# server, MLflow's server or an exporter. The longest come first, so that no process ends alone.
FIRST = [
    "test_study.py test_run.py test_api.py reporting/test_report.py training/test_loop.py"
    " benchmarks/test_gpu.py",
    "deployment/compression/test_origin.py deployment/compression/test_executorch.py"
    " deployment/compression/test_litert.py deployment/runtimes/test_formats.py",
    "sweep/test_executors.py",
    "reporting/test_published_report.py tracking/test_ui.py tracking/test_views.py"
    " tracking/test_read.py tracking/test_store.py reporting/test_page.py reporting/test_charts.py"
    " reporting/test_plots_html.py",
    "test_extending.py",
    "deployment/test_web.py deployment/test_export.py",
    "sweep/test_storage.py",
    "sweep/test_scheduler.py",
    *("test_conf.py", "benchmarks/test_results.py", "test_bad_input.py"),
    *("training/test_features.py", "core/test_environment.py", "deployment/test_predict.py"),
    *("reporting/clinical/test_evaluate.py", "reporting/test_card.py", "reporting/test_claims.py"),
    *("reporting/test_plots_static.py", "sweep/test_samplers.py"),
]
GROUPS = {f"tests/{file}": number for number, line in enumerate(FIRST) for file in line.split()}


@pytest.hookimpl(optionalhook=True)  # of xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Grouped(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return f"group {GROUPS[file]}" if file in GROUPS else file

    return Grouped(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {file: place for place, file in enumerate(GROUPS)}
    items.sort(key=lambda item: order.get(item.nodeid.partition("::")[0], len(order)))


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """`made_once(name, make)`: a folder that `make` fills, once for all processes of the session.

    Tests read it, or write to a copy.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name: str, make: Callable[[Path], None]) -> Path:
        folder, done = shared / name, shared / f"{name}.done"
        with FileLock(shared / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a process whose `make` failed
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def empty_database(made_once: MadeOnce) -> Path:
    """A run store's database with all tables: creating one takes seconds, copying it does not."""

    def create(folder: Path) -> None:
        Store(experiment="template", folder=folder, uri=f"sqlite:///{folder}/mlflow.db").open()

    return made_once("database", create) / "mlflow.db"


@pytest.fixture
def store(empty_database: Path, tmp_path: Path) -> Store:
    """A run store without runs."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return Store(uri=f"sqlite:///{tmp_path}/mlflow.db", folder=tmp_path)


@pytest.fixture(scope="module")
def module_patch() -> Iterator[pytest.MonkeyPatch]:
    """`monkeypatch` for fixtures of a whole module."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A browser, for pages that run scripts."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="the package playwright is not installed"
    )
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no browser: the program chromium is not on the path")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=path, args=BROWSER_FLAGS)
        yield running
        running.close()


@pytest.fixture
def run_entry(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str]]]:
    """`run_entry(train.main, *arguments)` runs `python -m src.train <arguments>` in this process.

    It returns exit status and output. Logging and the signal handler are restored.
    """
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    handler, root = signal.getsignal(signal.SIGTERM), logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def run(main: Callable[[], None], *arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [main.__module__, *arguments])
        cli.failures.clear()
        status = 0
        try:
            main()
        except SystemExit as end:
            status = int(end.code or 0)
        output = capsys.readouterr()
        return status, output.out + output.err

    yield run
    cli.failures.clear()
    signal.signal(signal.SIGTERM, handler)
    root.handlers, root.level = handlers, level  # Hydra's write to streams that end with the test


@pytest.fixture(scope="module")
def own_fork_server() -> Iterator[None]:
    """A fork server for this module: the first executor in a process decides what it imports."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    yield
    forkserver._forkserver._stop()  # type: ignore[attr-defined]


@pytest.fixture
def free_port() -> int:
    """An unused port."""
    return _port()


@pytest.fixture(scope="session")
def served_database(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database of `server`."""
    return Path(shutil.copy(empty_database, tmp_path_factory.mktemp("served")))


@pytest.fixture(scope="session")
def server(served_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of MLflow's server on a store."""
    port = _port()
    address = f"http://127.0.0.1:{port}"
    log = tmp_path_factory.mktemp("server") / "log.txt"
    command = [sys.executable, "-m", "src.tracking.ui", f"port={port}"]
    command += [f"uri=sqlite:///{served_database}"]
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    try:
        _wait_for(f"{address}/health", process, log)
        assert f"{address}/#/experiments/" in log.read_text()
        yield address
    finally:
        process.terminate()
        process.wait(timeout=30)


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def unused_port() -> Callable[[], int]:
    """`unused_port()`, for fixtures that serve longer than a test."""
    return _port


@pytest.fixture(scope="session")
def wait_for() -> Callable[[str, subprocess.Popen[bytes], Path], None]:
    """`wait_for(address, process, log)`: until a server that was started answers there."""
    return _wait_for


def _wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(480):
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except (urllib.error.URLError, TimeoutError):
            assert process.poll() is None, log.read_text()
            time.sleep(0.25)
    raise AssertionError(f"{address} does not answer:\n{log.read_text()}")
