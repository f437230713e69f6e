"""Syne Tune's MOASHA over stdin and stdout; started by `benchmarks.pruning_replay`.

A line in: {"new": {arguments of MOASHA, "priority": ...}}, {"add": trial} or {"report": trial,
"epoch": ..., "values": [losses]}; a line out: {"goes_on": bool}. `priority: shipped` is MOASHA's
default. In syne-tune 0.16.0 that returns the sorted rows where its caller expects each row's place;
`priority: places` puts the place in.
"""

import json
import sys
from datetime import datetime
from typing import Any

import numpy as np
from syne_tune.backend.trial_status import Trial
from syne_tune.config_space import choice
from syne_tune.optimizer.scheduler import SchedulerDecision
from syne_tune.optimizer.schedulers.multiobjective.moasha import MOASHA
from syne_tune.optimizer.schedulers.multiobjective.multiobjective_priority import (
    MOPriority,
    NonDominatedPriority,
)
from syne_tune.optimizer.schedulers.multiobjective.non_dominated_priority import pareto_efficient

METRICS = ["loss_0", "loss_1"]


class Places(MOPriority):
    """Order of the rows by front, then by distance to the rows that are chosen already."""

    def priority_unsafe(self, objectives: np.ndarray) -> np.ndarray:  # noqa: D102
        places = np.empty(len(objectives))
        rest, rank = np.arange(len(objectives)), 0
        while len(rest):
            on_front = pareto_efficient(objectives[rest])
            for row in _spread_out(objectives, rest[on_front]):
                places[row], rank = rank, rank + 1
            rest = rest[~on_front]
        return places


def _spread_out(objectives: np.ndarray, rows: np.ndarray) -> list[int]:
    """Rows of a front: the best by the first objective, then always the row furthest from them."""
    chosen = [int(rows[objectives[rows, 0].argmin()])]
    remaining = [int(row) for row in rows if row != chosen[0]]
    while remaining:
        gaps = np.linalg.norm(objectives[remaining][:, None] - objectives[chosen], axis=-1).min(
            axis=1
        )
        chosen.append(remaining.pop(int(gaps.argmax())))
    return chosen


def answer(scheduler: Any, trials: dict[int, Any], message: dict[str, Any]) -> tuple[Any, bool]:
    if "new" in message:
        options = dict(message["new"])
        priority = {"shipped": NonDominatedPriority, "places": Places}[options.pop("priority")]()
        trials.clear()
        scheduler = MOASHA(
            {"run": choice([0, 1])},
            metrics=METRICS,
            time_attr="epoch",
            multiobjective_priority=priority,
            **options,
        )
        return scheduler, True
    if "add" in message:
        trials[message["add"]] = Trial(message["add"], {"run": 0}, datetime(2000, 1, 1))
        scheduler.on_trial_add(trials[message["add"]])
        return scheduler, True
    result = {"epoch": message["epoch"], **dict(zip(METRICS, message["values"], strict=True))}
    decision = scheduler.on_trial_result(trials[message["report"]], result)
    return scheduler, decision == SchedulerDecision.CONTINUE


def main() -> None:
    scheduler, trials = None, dict[int, Any]()
    for line in sys.stdin:
        scheduler, goes_on = answer(scheduler, trials, json.loads(line))
        print(json.dumps({"goes_on": goes_on}), flush=True)


if __name__ == "__main__":
    main()
