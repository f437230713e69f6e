"""Seeds, versions, commit, hardware and its energy; the process: allocator, garbage collector."""

import ctypes
import functools
import gc
import hashlib
import importlib.abc
import importlib.metadata
import importlib.util
import json
import logging
import os
import platform
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from src.core.errors import ConfigError, free_mb, masked, printable

if TYPE_CHECKING:
    import torch

# The packages whose versions are recorded.
PACKAGES = (
    "paretoderm torch torchvision pytorch-lightning torchmetrics timm kornia fvcore hydra-core "
    "optuna mlflow numpy pandas scikit-learn pillow"
)
MAX_SEED = 2**32 - 1  # the limit of NumPy
SOURCES = ["*.py", "*.y*ml", "*.toml", "*.j2", "constraints.txt", "src/*.txt", "src/*.json"]
MAX_PATCH, MAX_FILE = 500_000, 2_000_000  # characters in all, bytes of a file
# A setting whose name says that it is secret: with a quoted text, or with any value in YAML.
_SECRET = r"(?i)((?:password|passwd|secret(?:_key)?|token|(?:api|access)_?key)[\"']? *"
_QUOTED, _PLAIN = rf"{_SECRET}[:=] *)(['\"]).+?\2", rf"{_SECRET}: +)(?!\?\?\?|null|\$\{{)\S.*"
GIT_TIMEOUT_S = 20  # a checkout on a sleeping network drive does not delay a run for longer
POWERCAP = Path("/sys/class/powercap")  # counters of Linux
COLLECTOR_THRESHOLD = 20_000  # objects; Python's default is 700 in 3.11


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch (CPU and all GPUs).

    Equal seeds give equal runs on one machine with one set of versions. On another machine, or on a
    GPU without `trainer.deterministic`, sums have another order and results differ slightly.

    Raises:
        ConfigError: The seed is not within 0 ... 2^32 - 1.
    """
    import numpy as np
    import torch

    if not 0 <= seed <= MAX_SEED:
        raise ConfigError("seed", f"must be within 0 and {MAX_SEED}, but got {seed}")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def environment() -> dict[str, Any]:
    """Versions and hardware, ready for JSON.

    `ram_gb` is in 10^9 bytes, `cores` are those that this process may use, and `cuda` is None on a
    CPU build of torch.
    """
    import psutil
    import torch

    return {
        "packages": package_versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": available_cores(),
        "ram_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "torch_threads": torch.get_num_threads(),
    }


@functools.cache
def package_versions() -> dict[str, str | None]:
    """Installed versions of the packages that may affect a result; None if not installed."""
    versions: dict[str, str | None] = dict.fromkeys(PACKAGES.split())
    for name in versions:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def available_cores() -> int:
    """Number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def require_memory() -> None:
    """Refuse to import libraries that abort, or ask for ever, for what `ulimit -v` denies them."""
    needed = 1100 + 80 * min(available_cores(), 64)  # PyTorch and SciPy; a thread of OpenBLAS
    if free_mb() < needed:
        raise MemoryError(f"ulimit -v leaves {free_mb():.0f} MB, the libraries take {needed}")


def cpu_name() -> str:
    """The model of the processor, as the operating system reports it."""
    information = Path("/proc/cpuinfo")
    text = information.read_text() if information.exists() else ""
    name = re.search(r"^model name\s*:(.*)$", text, re.MULTILINE)
    return name[1].strip() if name else platform.processor() or platform.machine()


def device_name(device: "torch.device") -> str:
    """The model of the processor or GPU of a torch device."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


class Rapl:
    """RAPL energy counters of whole processor packages, in Linux's powercap folder.

    Attributes:
        absent: Why energy cannot be measured; empty if it can.
    """

    def __init__(self, folder: Path | None = None) -> None:
        folder = folder or POWERCAP
        self._packages: list[Path] = []
        self._joules = 0.0
        problem = "no RAPL counter on this machine"
        try:
            self._packages = [
                path
                for path in sorted(folder.glob("intel-rapl:[0-9]*"))
                if path.name.count(":") == 1 and (path / "name").read_text().startswith("package")
            ]
            self._ranges = self._read("max_energy_range_uj")
            self._last = self._read("energy_uj")
            problem = "" if self._packages else problem
        except PermissionError:
            counter = (self._packages or [folder])[0] / "energy_uj"
            problem = f"RAPL counter not readable: permission ({counter})"
        except (OSError, ValueError) as error:
            problem = f"RAPL counter not readable: {error}"
        self.absent = problem

    def joules(self) -> float:
        """Energy of all packages since the object was made.

        Raises:
            OSError: The counter has disappeared.
        """
        now = self._read("energy_uj")
        for after, before, overflow in zip(now, self._last, self._ranges, strict=True):
            # a counter restarts at zero when it reaches its range
            self._joules += (after - before + (overflow if after < before else 0)) / 1e6
        self._last = now
        return self._joules

    def _read(self, name: str) -> list[int]:
        return [int((path / name).read_text()) for path in self._packages]


def energy_meter(device: "torch.device") -> Callable[[], float] | None:
    """A function that returns the energy of a device since this call, J; None without a counter.

    The processor's are counted by RAPL. A graphics card reports its mean power of the last second
    (NVML, for which torch needs nvidia-ml-py), which is multiplied by the time between two calls:
    let these be about a second apart. Both contain other work on the device.
    """
    if device.type != "cuda":
        counter = Rapl()
        return None if counter.absent else counter.joules
    import torch

    try:
        torch.cuda.power_draw(device)
    except Exception:  # no nvidia-ml-py, or whatever error of NVML: a run is complete without it
        return None
    joules, last = 0.0, time.perf_counter()

    def integrate() -> float:
        nonlocal joules, last
        watts, now = torch.cuda.power_draw(device) / 1e3, time.perf_counter()
        joules, last = joules + watts * (now - last), now
        return joules

    return integrate


def git_state(root: Path | str) -> tuple[str | None, bool | None]:
    """The commit that is checked out in `root`, and whether source files differ.

    Untracked sources count; data, results and links do not. (None, None) without git, a checkout or
    a commit.
    """
    commit: str | None = None
    with suppress(OSError, subprocess.SubprocessError):
        commit = _git(root, "rev-parse", "--verify", "HEAD").strip()
        return commit, bool(_git(root, "status", "--porcelain", "--", *SOURCES))
    return commit, None


def uncommitted_changes(root: Path | str) -> str:
    """Changes of the sources in `root` since its commit, as a patch for `git apply`.

    Untracked files are in it. Its last line names files over `MAX_FILE` bytes, which are left out.
    A patch over `MAX_PATCH` characters is cut after a line, which its last line says. Values of
    keys such as `password` and `api_key` are masked.
    """
    names = ("-z", "--", *SOURCES)
    untracked = _git(root, "ls-files", "--others", "--exclude-standard", *names).split("\0")[:-1]
    changed = _git(root, "diff", "HEAD", "--name-only", "--relative", *names).split("\0")[:-1]
    paths = [path for name in (*changed, *untracked) if (path := Path(root) / name).is_file()]
    large = [str(path.relative_to(root)) for path in paths if path.stat().st_size > MAX_FILE]
    exclusions = [f":(exclude,literal){name}" for name in large]
    patch = _git(root, "diff", "HEAD", "--", *SOURCES, *exclusions)
    for name in untracked:
        if len(patch) <= MAX_PATCH and name not in large and not (Path(root) / name).is_symlink():
            # git says by status 1 that the files differ
            patch += _git(root, "diff", "--no-index", "--", os.devnull, name, check=False)
    if len(patch) > MAX_PATCH:
        note = f"\n(cut here: more than {MAX_PATCH:,} characters)\n"
        patch = patch[:MAX_PATCH].rpartition("\n")[0] + note
    patch = re.sub(_QUOTED, r"\1\2***\2", patch)
    parts = re.split("(?m)^(?=diff --git )", patch)
    is_yaml = re.compile(r".*\.ya?ml\"?\n")
    patch = "".join(re.sub(_PLAIN, r"\1***", p) if is_yaml.match(p) else p for p in parts)
    note = f"(left out, over {MAX_FILE:,} bytes: {', '.join(large)})\n"
    return patch + note if large else patch


def _git(root: Path | str, *arguments: str, check: bool = True) -> str:
    command = ["git", "-C", str(root), *arguments]
    options: dict[str, Any] = {"capture_output": True, "text": True, "errors": "replace"}
    return subprocess.run(command, check=check, timeout=GIT_TIMEOUT_S, **options).stdout


def config_hash(config: Mapping[str, Any], without: Collection[str] = ()) -> str:
    """Twelve hex digits of SHA-256 over plain values, independent of the order of keys.

    Dotted keys in `without`, such as "trainer.enable_progress_bar", do not change the result.
    """

    def reduced(value: Any, path: str = "") -> Any:
        if isinstance(value, Mapping):
            keys = [key for key in value if f"{path}{key}" not in without]
            return {key: reduced(value[key], f"{path}{key}.") for key in keys}
        if isinstance(value, list | tuple):
            return [reduced(inner, f"{path}{number}.") for number, inner in enumerate(value)]
        return value

    canonical = json.dumps(reduced(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def keep_freed_memory() -> bool:
    """Make glibc's allocator keep freed memory in this process, instead of returning it each step.

    Returns whether it was set; other C libraries have no such setting.
    """
    linux = sys.platform.startswith("linux")
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if linux else None
    if set_option is None:
        return False
    trim_threshold, mmap_threshold = -1, -3  # of glibc's malloc.h
    return bool(set_option(mmap_threshold, 2**30) and set_option(trim_threshold, 2**31 - 1))


def mask_logs() -> None:
    """Let no log line of this process show a password or control characters."""
    make = logging.getLogRecordFactory()

    def make_masked(*args: Any, **options: Any) -> logging.LogRecord:
        record = make(*args, **options)
        with suppress(TypeError, ValueError):  # a library's message does not fit its arguments
            record.msg, record.args = printable(masked(record.getMessage())), None
        return record

    logging.setLogRecordFactory(make_masked)


def collect_less_often() -> None:
    """Raise the garbage collector's threshold to `COLLECTOR_THRESHOLD`, unless higher or disabled.

    Importing PyTorch, Lightning and MLflow creates 600,000 objects, which the collector would
    traverse repeatedly: a fifth of the start-up time and of short trainings. Objects outside
    cycles, large tensors among them, are freed at once regardless.
    """
    young, *older = gc.get_threshold()
    if 0 < young < COLLECTOR_THRESHOLD:
        gc.set_threshold(COLLECTOR_THRESHOLD, *older)


# Packages that torchmetrics imports for metrics of images, texts and audio, and for plots.
_NOT_FOR_TORCHMETRICS = ("matplotlib", "scipy", "torchvision", "transformers")
_libraries: list[Any] = []  # torch.library.Library removes its operators when it is collected


class _Hook(importlib.abc.MetaPathFinder):
    """Calls a function with the import specification of a package, before its first import."""

    def __init__(self, package: str, function: Callable[[ModuleSpec], None]) -> None:
        self._package, self._function = package, function

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._package:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None:
            self._function(spec)
        return spec


def install_import_hooks() -> None:
    """Let torchvision be imported beside a CPU build of torch, and torchmetrics quickly.

    The compiled operators of a torchvision built for CUDA cannot be loaded then, and its import
    fails on the missing declarations. torchmetrics takes more time to import than PyTorch, 95% of
    it for packages that its classification metrics do not need. Its metrics of images, texts and
    audio that need one of them, and its plots, are not available in a process of this project.
    """
    hooks = {"torchvision": _declare_operators, "torchmetrics": _import_without_packages}
    for package, function in hooks.items():
        if package not in sys.modules:
            sys.meta_path.insert(0, _Hook(package, function))


def _declare_operators(spec: ModuleSpec) -> None:
    """Declare torchvision's operators, unless its compiled library registers them itself."""
    import torch

    libraries = Path(spec.origin).parent.glob("_C.*") if spec.origin else ()
    for library in sorted(libraries):
        if library.suffix in (".so", ".pyd"):
            try:
                torch.ops.load_library(library)
            except OSError:
                break
            return
    declared = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        declared.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _libraries.append(declared)


def _import_without_packages(spec: ModuleSpec) -> None:
    """Hide packages while torchmetrics is imported, from the checks of lightning_utilities."""
    imports: Any = importlib.import_module("lightning_utilities.core.imports")
    installed, met = imports.package_available, imports.RequirementCache.__bool__
    loader: Any = spec.loader
    execute = loader.exec_module

    def package_available(name: str) -> bool:
        return name.split(".")[0] not in _NOT_FOR_TORCHMETRICS and installed(name)

    def requirement_met(cache: Any) -> bool:
        name = re.split(r"\W", str(cache.requirement or cache.module))[0]
        return name not in _NOT_FOR_TORCHMETRICS and met(cache)

    def exec_module(module: ModuleType) -> None:
        imports.package_available = package_available
        imports.RequirementCache.__bool__ = requirement_met
        try:
            execute(module)
        finally:
            imports.package_available = installed
            imports.RequirementCache.__bool__ = met

    loader.exec_module = exec_module
