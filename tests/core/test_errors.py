import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from src.core.errors import causes, full_disk, out_of_memory
from src.core.files import ROOT
from src.tracking.retry import is_outage


@pytest.mark.timeout(10, func_only=True)
def test_a_circle_of_causes_ends() -> None:
    # OmegaConf raises its errors anew from ones that have them as their context
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__context__ = second, first
    assert list(causes(first)) == [first, second]
    assert full_disk(first) is None
    # what an error was raised while is a cause beside what it was raised from: urllib3 hides
    # a lost connection behind an error that was never raised
    lost, never_raised = ConnectionResetError("lost"), OSError("aborted")
    error = RuntimeError("too many tries")
    error.__cause__, error.__context__ = never_raised, lost
    assert list(causes(error)) == [error, never_raised, lost]
    assert is_outage(error)


def test_a_full_disk_is_found_among_the_causes() -> None:
    error = RuntimeError("not saved")
    error.__context__ = OSError(errno.ENOSPC, "No space left on device", "best.ckpt")
    assert full_disk(error) == (
        "best.ckpt cannot be written, the disk is full: make space, then start it again"
    )


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        ImportError("libtorch.so: failed to map segment from shared object"),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("can't start new thread"),
    ],
)
def test_a_lack_of_memory_is_found_among_the_causes(error: Exception) -> None:
    consequence = RuntimeError("not trained")
    consequence.__cause__ = error
    line = out_of_memory(consequence)
    assert line is not None
    assert line.startswith("out of memory")
    advice = ": use a smaller data.batch_size, or fewer trials at once, or raise ulimit -v"
    assert line.endswith(advice)


def test_the_error_of_torch_is_a_lack_of_memory_and_a_full_disk_is_none() -> None:
    assert out_of_memory(OSError(errno.ENOSPC, "No space left on device")) is None
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert out_of_memory(caught.value) is not None


def test_a_limit_of_memory_is_one_line_and_no_endless_import() -> None:
    """OpenBLAS asks for ever for memory that `ulimit -v` denies; nothing ends such a process."""
    command = "ulimit -v 500000; exec timeout -s KILL 60 python -m src.train"
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    options: dict[str, Any] = {"capture_output": True, "text": True, "env": environment}
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, check=False, **options)
    assert done.returncode == 2
    assert done.stderr.startswith("error: out of memory (ulimit -v leaves ")
    assert done.stderr.count("\n") == 1
