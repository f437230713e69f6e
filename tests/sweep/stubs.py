"""Trials without a net: the payload names the function of this module that runs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from src.sweep.records import Task

if TYPE_CHECKING:
    from src.sweep.trial import TrialContext


def run(task: Task) -> None:
    globals()[task.payload["action"]](task)


def succeed(task: Task) -> None:
    print("a line")
    print("another line", file=sys.stderr)


def fail(task: Task) -> None:
    raise ValueError("no such luck")


def leave(task: Task) -> None:
    sys.exit(3)


def die(task: Task) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_with_a_child(task: Task) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (Path(task.folder) / "child").write_text(str(child.pid))
    die(task)


def hang(task: Task) -> None:
    """Do not end until the file "go" exists; on SIGTERM if the payload does not say "deaf"."""
    if task.payload.get("deaf"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (Path(task.folder) / "started").write_text(str(os.getpid()))
    while not (Path(task.folder).parent / "go").exists():
        time.sleep(0.05)


def hang_in_a_study(context: "TrialContext") -> None:
    hang(context.task)


def describe(task: Task) -> None:
    import torch

    facts = {
        "device": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "threads": torch.get_num_threads(),
        "leads a session": os.getsid(0) == os.getpid(),
        "variable": os.environ.get("PARETODERM_TEST"),
        "path": os.environ.get("PYTHONPATH"),
        "modules": sorted(sys.modules),
    }
    print(json.dumps(facts))


def train_on_two_nodes(context: "TrialContext") -> dict[str, float]:
    """A light trial on Ray. Trials 0 and 1 meet; then the one beside the head node hangs."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    context.trial.set_user_attr("node", node)
    (resources,) = (each["Resources"] for each in ray.nodes() if each["NodeID"] == node)
    folder, number = context.folder.parent, context.task.number
    (folder / f"started-{number}").touch()
    if number < 2:
        while not (folder / f"started-{1 - number}").exists():
            time.sleep(0.02)
        while "node:__internal_head__" not in resources:
            (folder / "hangs").touch()
            time.sleep(0.1)
    (cell,) = context.payload["cell"]
    return {"best/val/balanced_accuracy": int(cell.partition("=")[2]) / 1000}
