"""The benchmark of a GPU runs to its end on a CPU."""

import subprocess
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import gpu
from src import train


def test_every_part_runs_in_the_tiny_mode(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    run_entry: Callable[..., tuple[int, str]],
) -> None:
    compiled: list[torch.nn.Module] = []
    # compiling takes a minute, and is PyTorch's own
    monkeypatch.setattr(torch.nn.Module, "compile", lambda net: compiled.append(net))
    outputs: list[str] = []

    def in_this_process(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert command[1:3] == ["-m", "src.train"]
        status, output = run_entry(train.main, *command[3:])
        outputs.append(output)  # with what was printed before
        return subprocess.CompletedProcess(command, status, output, "")

    monkeypatch.setattr(gpu, "subprocess", SimpleNamespace(run=in_this_process))
    gpu.main(["tiny=true", "jobs=2", "trials=2", "epochs=1"])
    lines = "".join([*outputs, capsys.readouterr().out]).splitlines()
    assert len(compiled) == 2
    ways = [line.split("|")[2].strip() for line in lines if line.startswith("| custom")][:6]
    assert [way.partition(",")[0] for way in ways] == ["bare"] * 4 + ["paretoderm"] * 2
    for text in ("augment=sun2023 has", "cached features:", "2 trials at a time:"):
        [line] = [line for line in lines if line.startswith(text)]
        [number] = [word for word in line.replace(",", "").split() if word[0].isdigit()][-1:]
        assert float(number) > 0
