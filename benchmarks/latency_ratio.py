"""Spread of `efficiency/latency_ratio` and of milliseconds between runs on a busy machine.

    python -m benchmarks.latency_ratio [processes] [busy loops] [nets]

Trains small nets in the background (two loops if not said otherwise, each with two threads) and
profiles each of three nets in ten processes, one after the other: the reference net's twin, one
that is narrower by four, and a ResNet50.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.nn import functional

from benchmarks.composing import composed
from src.core.config import instantiate
from src.models.backbone import Backbone
from src.models.custom import CustomCNN

SIZE = 64
WANTED = 1.10
NETS = {
    "custom": lambda: CustomCNN(SIZE, 7),
    "narrow": lambda: CustomCNN(SIZE, 7, width=8, dense=[32, 16]),
    "resnet50": lambda: Backbone("resnet50", SIZE, 7, weights="random"),
}
RATIO, RAW = "efficiency/latency_ratio", "efficiency/latency_ms/b1/p50"


def measure(name: str) -> dict[str, float]:
    """What a run would record, measured as a run measures it; larger batches left out."""
    profiler = instantiate(composed(["efficiency.batch_sizes=[1]"]).efficiency, "efficiency")
    metrics = profiler.profile(NETS[name](), SIZE).metrics
    return {key: metrics[key] for key in (RATIO, RAW)}


def train_beside() -> None:
    """A neighbour that keeps the cores, the caches and the memory busy."""
    torch.set_num_threads(2)
    net = CustomCNN(SIZE, 7).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(net.parameters())
    images = torch.rand(64, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 7, (64,))
    print("ready", flush=True)
    parent = os.getppid()
    while os.getppid() == parent:  # a benchmark that is killed leaves nobody behind
        optimizer.zero_grad()
        functional.cross_entropy(net(images), labels).backward()
        optimizer.step()


@contextmanager
def busy_machine(loops: int) -> Iterator[None]:
    """`loops` training processes in the background."""
    started = [_start("--train", stdout=subprocess.PIPE) for _ in range(loops)]
    try:
        for process in started:
            assert process.stdout is not None
            process.stdout.readline()
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def spread(values: Sequence[float]) -> str:
    """Median, largest over smallest, and the furthest from the median."""
    middle = statistics.median(values)
    furthest = max(abs(value / middle - 1) for value in values)
    return (
        f"median {middle:7.3f}  max/min {max(values) / min(values):5.3f}  "
        f"furthest {100 * furthest:5.1f}%"
    )


def _start(*arguments: str, stdout: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "benchmarks.latency_ratio", *arguments]
    return subprocess.Popen(command, stdout=stdout, text=True)


def _measure_in_a_process(name: str) -> dict[str, float]:
    process = _start("--measure", name, stdout=subprocess.PIPE)
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"measuring {name} failed with status {process.returncode}")
    result: dict[str, float] = json.loads(output.splitlines()[-1])
    return result


def main() -> None:
    processes = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    loops = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    names = sys.argv[3:] or list(NETS)
    print(
        f"{processes} processes per net, {loops} training loops beside them; "
        f"required: max/min of the ratio <= {WANTED}"
    )
    with busy_machine(loops):
        for name in names:
            measured = [_measure_in_a_process(name) for _ in range(processes)]
            print(f"{name:9} latency_ratio  {spread([one[RATIO] for one in measured])}")
            print(f"{'':9} p50, ms        {spread([one[RAW] for one in measured])}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        train_beside()
    elif sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(sys.argv[2])))
    else:
        main()
