import platform
import subprocess
import sys

import pytest

from src.core.cli import ROOT

CODE = """
import resource, sys
import torch
from src.core.environment import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def step():
    return torch.ones(40_000_000 // 4).sum()  # over glibc's limit of 32 MB for what it may keep by itself
for _ in range(25):  # the heap grows for up to five places, seen as late as the twelfth step, and then no more
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_repeated_large_blocks_are_faulted_in_once() -> None:
    def page_faults(how: str) -> int:
        line = [sys.executable, "-c", CODE, how]
        return int(
            subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        )

    block = 40_000_000 / 4096  # pages
    assert page_faults("default") > 19 * block
    assert page_faults("kept") < 2 * block
