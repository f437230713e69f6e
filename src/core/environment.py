"""Seeds, versions, commit and hardware; settings of this process: allocator, garbage collector."""

import ctypes
import functools
import gc
import hashlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import json
import os
import platform
import random
import re
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from src.core.errors import ConfigError

if TYPE_CHECKING:
    import torch

# The packages whose versions are recorded.
PACKAGES = (
    "paretoderm torch torchvision pytorch-lightning torchmetrics timm kornia fvcore hydra-core "
    "optuna mlflow numpy pandas scikit-learn pillow"
)
MAX_SEED = 2**32 - 1  # the limit of NumPy
GIT_TIMEOUT_S = 20  # a checkout on a sleeping network drive does not delay a run for longer
COLLECTOR_THRESHOLD = 20_000  # objects; Python's default is 700 in 3.11

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_BLOCK = 2**30  # bytes
_NEVER = 2**31 - 1


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

    Returns:
        `packages` (name -> version, None if not installed), `python`, `platform`, `cpu`, `cores`
        (those this process may use), `ram_gb` (10^9 bytes), `gpus` (names), `cuda` (None on a CPU
        build), `torch_threads`.
    """
    import psutil
    import torch

    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "packages": package_versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": len(affinity(0)) if affinity else os.cpu_count() or 1,
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
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def cpu_name() -> str:
    """The model of the processor, as the operating system reports it."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def device_name(device: "torch.device") -> str:
    """The model of the processor or GPU of a torch device."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def git_state(root: Path | str) -> tuple[str | None, bool | None]:
    """The commit that is checked out in `root`, and whether files differ (untracked ones count).

    Returns:
        (commit, dirty); (None, None) without git, a checkout or a commit.
    """

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(root), *arguments]
        options: dict[str, Any] = {"capture_output": True, "text": True, "check": True}
        try:
            return subprocess.run(command, timeout=GIT_TIMEOUT_S, **options).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return None

    commit = git("rev-parse", "--verify", "HEAD")
    if commit is None:
        return None, None
    changes = git("status", "--porcelain")
    return commit, None if changes is None else bool(changes)


def config_hash(config: Mapping[str, Any], without: Collection[str] = ()) -> str:
    """Twelve hex digits of SHA-256 over a config, independent of the order of its keys.

    Args:
        config: Plain values: mappings, sequences, texts, numbers, None.
        without: Dotted keys that do not change the result, such as "tracking" or
            "trainer.enable_progress_bar".
    """

    def reduced(value: Any, path: str = "") -> Any:
        if isinstance(value, Mapping):
            names = {key: f"{path}{key}" for key in value}
            return {
                key: reduced(value[key], f"{name}.")
                for key, name in names.items()
                if name not in without
            }
        if isinstance(value, list | tuple):
            return [reduced(inner, f"{path}{number}.") for number, inner in enumerate(value)]
        return value

    canonical = json.dumps(reduced(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def keep_freed_memory() -> bool:
    """Make glibc's allocator keep freed memory in this process, instead of returning it each step.

    Returns:
        Whether it was set; other C libraries have no such setting.
    """
    if not sys.platform.startswith("linux"):
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        return False
    return bool(
        set_option(_M_MMAP_THRESHOLD, _LARGEST_BLOCK) and set_option(_M_TRIM_THRESHOLD, _NEVER)
    )


def collect_less_often() -> None:
    """Raise the garbage collector's threshold to `COLLECTOR_THRESHOLD`, unless higher or disabled.

    Importing PyTorch, Lightning and MLflow creates 600,000 objects, which the collector would
    traverse repeatedly: a fifth of the start-up time and of short trainings. Objects outside
    cycles, large tensors among them, are freed at once regardless.
    """
    young, *older = gc.get_threshold()
    if 0 < young < COLLECTOR_THRESHOLD:
        gc.set_threshold(COLLECTOR_THRESHOLD, *older)


_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_libraries: list[Any] = []  # torch.library.Library removes its operators when it is collected


class _TorchvisionGuard(importlib.abc.MetaPathFinder):
    """An import hook that runs `_declare_operators` before torchvision is imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            _declare_operators()
        return None


def install_torchvision_guard() -> None:
    """Let a torchvision built for CUDA be imported beside a CPU build of torch.

    Its compiled operators cannot be loaded then, and its import fails on the missing declarations.
    """
    if "torchvision" not in sys.modules:
        sys.meta_path.insert(0, _TorchvisionGuard())


def _declare_operators() -> None:
    """Declare torchvision's operators, unless its compiled library registers them itself."""
    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    for library in sorted(Path(spec.origin).parent.glob("_C.*")):
        if library.suffix in (".so", ".pyd"):
            try:
                torch.ops.load_library(library)
            except OSError:
                break
            return
    declared = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        declared.define(schema)
    _libraries.append(declared)


# Packages that torchmetrics imports for metrics of images, texts and audio, and for plots.
_NOT_FOR_TORCHMETRICS = ("matplotlib", "scipy", "torchvision", "transformers")


class _TorchmetricsGuard(importlib.abc.MetaPathFinder):
    """An import hook that hides `_NOT_FOR_TORCHMETRICS` while torchmetrics is imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "torchmetrics":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                with _hidden_from_torchmetrics():
                    execute(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def install_torchmetrics_guard() -> None:
    """Let torchmetrics be imported without packages that its classification metrics do not need.

    They take 95% of its import time, more than PyTorch's. Its metrics of images, texts and audio
    that need one of them, and its plots, are not available in a process of this project.
    """
    if "torchmetrics" not in sys.modules:
        sys.meta_path.insert(0, _TorchmetricsGuard())


@contextmanager
def _hidden_from_torchmetrics() -> Iterator[None]:
    """Let the checks of lightning_utilities, which torchmetrics uses, not find the packages."""
    imports: Any = importlib.import_module("lightning_utilities.core.imports")
    installed, met = imports.package_available, imports.RequirementCache.__bool__

    def package_available(name: str) -> bool:
        return name.split(".")[0] not in _NOT_FOR_TORCHMETRICS and installed(name)

    def requirement_met(cache: Any) -> bool:
        name = re.split(r"\W", str(cache.requirement or cache.module))[0]
        return name not in _NOT_FOR_TORCHMETRICS and met(cache)

    imports.package_available = package_available
    imports.RequirementCache.__bool__ = requirement_met
    try:
        yield
    finally:
        imports.package_available = installed
        imports.RequirementCache.__bool__ = met
