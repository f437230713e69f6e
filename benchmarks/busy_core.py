"""Training speed while another program keeps a core busy: `python -m benchmarks.busy_core`.

The threads of OpenMP spin at a barrier by default: on a core that another program uses, they wait
for a thread that does not run. Each variant trains ResNet50 on random 64 px images in a process of
its own, on a quiet machine and beside a process that keeps one core busy, in turns. All import
`src` before torch; `paretoderm` is the variant with nothing else set, `default` the one without
its setting.

    python -m benchmarks.busy_core [rounds=3] [steps=12] [spins=1000,10000,100000]

Printed are images/s (medians) and, in brackets, the share of the best variant in the same
situation; the goal for `paretoderm` is at least 0.85 in both.
"""

import os
import statistics
import subprocess
import sys
from collections import defaultdict

import pandas as pd

BATCH = 32
WARM_UP = 3
VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
LOOP = """
import sys, time
{first}
import timm, torch
torch.manual_seed(0)
net = timm.create_model("resnet50", num_classes=7).to(memory_format=torch.channels_last)
optimizer = torch.optim.Adam(net.parameters())
images = torch.rand({batch}, 3, 64, 64).to(memory_format=torch.channels_last)
labels = torch.arange({batch}) % 7
for step in range({warm_up} + {steps}):
    if step == {warm_up}:
        began = time.perf_counter()
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(net(images), labels).backward()
    optimizer.step()
print({steps} * {batch} / (time.perf_counter() - began))
"""


def images_per_s(variant: dict[str, str], first: str, steps: int) -> float:
    """Of a training loop in a new process with these environment variables."""
    environment = {name: text for name, text in os.environ.items() if name not in VARIABLES}
    code = LOOP.format(first=first, batch=BATCH, warm_up=WARM_UP, steps=steps)
    command = [sys.executable, "-c", code]
    options = {"env": environment | variant, "capture_output": True, "text": True, "check": True}
    return float(subprocess.run(command, **options).stdout)  # type: ignore[call-overload]


def main(arguments: list[str]) -> None:
    """Measure and print a table."""
    typed = dict(argument.split("=", 1) for argument in arguments)
    rounds, steps = int(typed.get("rounds", 3)), int(typed.get("steps", 12))
    variants: dict[str, tuple[dict[str, str], str]] = {
        "default": ({}, "import os, src; os.environ.pop('OMP_WAIT_POLICY')"),
        "active": ({"OMP_WAIT_POLICY": "ACTIVE"}, "import src"),
        "one thread": ({"OMP_NUM_THREADS": "1"}, "import src"),
        "paretoderm": ({}, "import src"),
    }
    for count in filter(None, typed.get("spins", "").split(",")):
        variants[f"{count} spins"] = ({"GOMP_SPINCOUNT": count}, "import src")
    speeds = defaultdict[tuple[str, str], list[float]](list)
    for _ in range(rounds):
        for situation in ("quiet", "one core busy"):
            busy = None
            if situation != "quiet":
                busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            try:
                for name, (variant, first) in variants.items():
                    speeds[situation, name].append(images_per_s(variant, first, steps))
            finally:
                if busy is not None:
                    busy.kill()
                    busy.wait()
    medians = pd.Series({key: statistics.median(values) for key, values in speeds.items()})
    table = medians.unstack(0, sort=False)
    share = table / table.max()
    print((table.map("{:.1f}".format) + share.map(" ({:.2f})".format)).to_markdown())


if __name__ == "__main__":
    main(sys.argv[1:])
