"""Seeds, versions, commit, hardware, allocator, garbage collector, torchvision guard."""

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
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import psutil
import torch

from src.core.errors import ConfigError

PACKAGES = (
    "paretoderm",
    "torch",
    "torchvision",
    "pytorch-lightning",
    "torchmetrics",
    "timm",
    "kornia",
    "fvcore",
    "hydra-core",
    "optuna",
    "mlflow",
    "numpy",
    "pandas",
    "scikit-learn",
    "pillow",
)
_MAX_SEED = 2**32 - 1  # what numpy takes
_GIT_SECONDS = 20  # a checkout on a sleeping network drive does not hold up a run for longer


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch (CPU and every GPU).

    Equal seeds give equal runs on one machine with one set of versions. On another machine, or on a
    GPU without `trainer.deterministic`, sums are made in another order and figures differ slightly.

    Raises:
        ConfigError: The seed is not within 0 ... 2^32 - 1.
    """
    if not 0 <= seed <= _MAX_SEED:
        raise ConfigError("seed", f"must be within 0 and {_MAX_SEED}, but got {seed}")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # GPUs as well


def environment() -> dict[str, Any]:
    """Versions and hardware, ready for JSON.

    Returns:
        `packages` (name -> version, None where it is not installed), `python`, `platform`, `cpu`,
        `cores` (those this process may use), `ram_gb` (10^9 bytes), `gpus` (names), `cuda` (None on
        a CPU build), `torch_threads`.
    """
    return {
        "packages": package_versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": _cores(),
        "ram_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "torch_threads": torch.get_num_threads(),
    }


@functools.cache
def package_versions() -> dict[str, str | None]:
    """Versions of the packages that a result may depend on, as installed; None for one that is not."""
    return {name: _version(name) for name in PACKAGES}


def cpu_name() -> str:
    """The processor's model, as the system gives it."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def device_name(device: torch.device) -> str:
    """The model of the processor or GPU behind a torch device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def git_state(root: Path | str) -> tuple[str | None, bool | None]:
    """The commit that `root` is at, and whether files differ from it (untracked ones count).

    Returns:
        (commit, dirty); (None, None) where there is no git, no checkout or no commit yet.
    """
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return None, None
    changes = _git(root, "status", "--porcelain")
    return commit, None if changes is None else bool(changes)


def config_hash(config: Mapping[str, Any], without: Collection[str] = ()) -> str:
    """Twelve hex digits that are the same for configs with the same content, in whatever order their keys stand.

    Args:
        config: Plain values: mappings, sequences, texts, numbers, None.
        without: Dotted keys that don't change the result, such as "tracking" or
            "trainer.enable_progress_bar".
    """
    canonical = json.dumps(
        _without(config, frozenset(without)), sort_keys=True, separators=(",", ":")
    )
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def _without(value: Any, keys: frozenset[str], path: str = "") -> Any:
    if isinstance(value, Mapping):
        named = {f"{path}{key}": (key, inner) for key, inner in value.items()}
        return {
            key: _without(inner, keys, f"{name}.")
            for name, (key, inner) in named.items()
            if name not in keys
        }
    if isinstance(value, list | tuple):
        return [_without(inner, keys, f"{path}{number}.") for number, inner in enumerate(value)]
    return value


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _git(root: Path | str, *arguments: str) -> str | None:
    """What git prints, or None where it cannot answer."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST_BLOCK = 2**30  # bytes; larger ones are still mapped one by one
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc's allocator to keep what is freed, for this process.

    Returns:
        Whether it was told; other C libraries have no such setting and are left alone.
    """
    if not sys.platform.startswith("linux"):
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        return False
    return bool(
        set_option(_M_MMAP_THRESHOLD, _LARGEST_BLOCK) and set_option(_M_TRIM_THRESHOLD, _NEVER)
    )


YOUNG = 20_000  # objects; Python's own 700 (3.11) is for small programs


def collect_less_often() -> None:
    """Let the collector wait for `YOUNG` new objects; one that was switched off or waits for more is left alone.

    Importing PyTorch, Lightning and MLflow leaves 600,000 objects, which the collector would walk
    again and again: a fifth of the time until a command starts to work, and a fifth of short
    trainings. What is no part of a cycle is freed at once as ever, large tensors among it.
    """
    young, *older = gc.get_threshold()
    if 0 < young < YOUNG:
        gc.set_threshold(YOUNG, *older)


_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_libraries: list[Any] = []  # a torch.library.Library un-declares its operators when it is collected


class _BeforeTorchvision(importlib.abc.MetaPathFinder):
    """Finder that finds nothing: it only notices that torchvision is about to be imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            _declare_missing_operators()
        return None


def install() -> None:
    """Declare the missing operators just before the first `import torchvision` of this process."""
    if "torchvision" not in sys.modules:
        sys.meta_path.insert(0, _BeforeTorchvision())


def _declare_missing_operators() -> None:
    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or _compiled_operators_load(Path(spec.origin).parent):
        return
    library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS.values():
        library.define(schema)
    _libraries.append(library)


def _compiled_operators_load(package: Path) -> bool:
    """Whether torchvision's own shared library loads into this torch, and so registers its operators itself."""
    import torch

    for library in sorted(package.glob("_C.*")):
        if library.suffix in (".so", ".pyd"):
            try:
                torch.ops.load_library(library)
            except OSError:
                return False
            return True
    return False
