"""Trials that sleep instead of training; they record, report and commit like real ones.

What a stub does is said by its overrides, fixed or swept: `seconds=0.5 epochs=2 way=nan`; all else
is a parameter that only decides its values.
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from src.metrics.registry import parse_objectives
from src.sweep.records import EndedEarly
from src.sweep.trial import TrialContext
from src.tracking.run import Run
from src.tracking.store import Store

ACCURACY, FLOPS = "best/val/balanced_accuracy", "efficiency/flops"
MANNERS = ("seconds", "epochs", "way", "flops")


def run(context: TrialContext) -> Any:
    """One run into the stores, in the order in which `src.run` does it.

    Args:
        context: Of the trial.

    Returns:
        The final metrics, or what `way` has it return instead.
    """
    values = overridden(context.payload["overrides"])
    seconds, epochs = float(values.get("seconds", 0)), int(values.get("epochs", 1))
    metrics = expected(context.payload["overrides"])
    task, cell = context.task, " ".join(context.payload["cell"])
    tags = {
        "kind": "run",
        "study": task.study,
        "trial": task.number,
        "repeat": 0,
        "seed": 0,
        "overrides": cell,
    }
    store = Store(**context.payload["tracking"])
    store.retry.seconds = float(context.payload.get("storage_wait_s", 0))
    with Run.start(store, "stub", tags, values, context.payload["study_run"]) as run:
        context.started(run.id)
        print(f"trial {task.number}: {cell}", flush=True)
        try:
            context.known_cost({FLOPS: metrics[FLOPS]})
            for epoch in range(1, epochs + 1):
                time.sleep(seconds / epochs)
                context.epoch(
                    epoch, epochs, {"val/balanced_accuracy": metrics[ACCURACY] * epoch / epochs}
                )
        except EndedEarly as early:
            run.ends_early(early.state, str(early))
            run.flush()
            context.give_up(early.state, "", str(early))
            return {}
        way = str(values.get("way", "well"))
        if way in WAYS:
            return WAYS[way](context)
        run.log(metrics)
        run.flush()
        context.commit(metrics)
    return metrics


def overridden(overrides: Sequence[str]) -> dict[str, Any]:
    """The values of overrides such as "a=1"."""
    pairs = (override.split("=", 1) for override in overrides)
    return {key: yaml.safe_load(value) for key, value in pairs}


def expected(overrides: Sequence[str]) -> dict[str, float]:
    """The values that a stub with these overrides records, by arithmetic.

    The parameters' numbers are read as digits, the first the most significant: a=1 b=2 c=3 gives
    123.

    Returns:
        Balanced accuracy 0.123 and FLOPs that seem to have nothing to do with it, unless `flops` is
        overridden.
    """
    values = overridden(overrides)
    number = 0.0
    for name, value in values.items():
        if name not in MANNERS and isinstance(value, int | float):
            number = 10 * number + value
    return {
        ACCURACY: number / 1000,
        FLOPS: float(values.get("flops", (37 * number % 101 + 1) * 1e6)),
    }


def objectives(count: int) -> list[dict[str, str]]:
    """The first so many objectives of a stub, as a config lists them."""
    entries = [{"metric": "val/balanced_accuracy"}, {"metric": "efficiency/flops"}][:count]
    return [
        {"metric": objective.metric, "direction": objective.direction}
        for objective in parse_objectives({"objectives": entries})
    ]


def _raise(context: TrialContext) -> Mapping[str, float]:
    raise ValueError(f"trial {context.task.number} was told to fail")


def _exit(context: TrialContext) -> Mapping[str, float]:
    sys.exit(3)


def _kill(context: TrialContext) -> Mapping[str, float]:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def _crash(context: TrialContext) -> Mapping[str, float]:
    ctypes.string_at(0)
    raise AssertionError


def _hang(context: TrialContext) -> Mapping[str, float]:
    time.sleep(600)
    raise AssertionError


def _memory(context: TrialContext) -> Mapping[str, float]:
    raise MemoryError("there is none left")


WAYS = {
    "error": _raise,
    "exit": _exit,
    "kill": _kill,
    "crash": _crash,
    "hang": _hang,
    "memory": _memory,
    "nan": lambda context: {ACCURACY: float("nan"), FLOPS: 1.0},
    "missing": lambda context: {FLOPS: 1.0},
    "text": lambda context: "done",
}
