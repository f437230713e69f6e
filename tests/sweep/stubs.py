"""Trials without a net: what a test asks for in the payload happens."""

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
    for action, value in task.payload.items():
        ACTIONS[action](task, value)


def hang(task: Task) -> None:
    """A trial that does not end by itself, whatever its payload."""
    _note(task, "started")
    time.sleep(600)


def _hang(task: Task, seconds: float) -> None:
    deaf = signal.SIG_IGN if task.payload.get("deaf") else signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, deaf)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.05)


def _fail(task: Task, message: str) -> None:
    raise ValueError(message)


def _note(task: Task, name: str) -> None:
    """One line a run: a trial that ran twice shows."""
    with (Path(task.folder) / name).open("a") as file:
        file.write(f"{os.getpid()} {time.time()}\n")


def _wait_for(task: Task, name: str) -> None:
    while not (Path(task.folder).parent / name).exists():
        time.sleep(0.02)


def _show(task: Task, expression: str) -> None:
    import torch

    known = {
        "device": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "threads": torch.get_num_threads(),
        "session": os.getsid(0) == os.getpid(),
        "variable": os.environ.get("PARETODERM_TEST"),
        "path": os.environ.get("PYTHONPATH"),
        "modules": sorted(sys.modules),
        "main": getattr(sys.modules.get("__mp_main__"), "__file__", None),
    }
    print(known[expression])


def _child(task: Task, name: str) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (Path(task.folder) / name).write_text(str(child.pid))


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
            (folder / "hangs").write_text(node)
            time.sleep(0.1)
    a, b = (int(override.partition("=")[2]) for override in context.payload["cell"])
    return {"best/val/balanced_accuracy": (10 * a + b) / 1000}


ACTIONS = {
    "print": lambda task, text: print(text),
    "print_error": lambda task, text: print(text, file=sys.stderr),
    "exit": lambda task, code: sys.exit(code),
    "kill": lambda task, number: os.kill(os.getpid(), number),
    "deaf": lambda task, value: None,
    "hang": _hang,
    "fail": _fail,
    "note": _note,
    "wait_for": _wait_for,
    "show": _show,
    "child": _child,
}
