"""Trainings and front of `repeats=auto`, replayed beside the same seeds for every configuration.

    python -m benchmarks.racing_replay [curves=benchmarks/curves/ham10000_64.csv]
    [deviation=0.025] [ratio=1]

Configurations and their multiply-adds are those of the recorded curves. A table with a column
`seed` has the value of each seed, as many as all configurations have. Without it, five seeds are
drawn around the recorded value with the standard deviation 0.025: on test, over three seeds of the
networks in docs/ham10000/. With `ratio=8` the deviations of the configurations differ by up to that
factor, around it.
Four simulated workers take the configurations in a random order and train up to five seeds of each,
one after the other; nothing is trained. Objectives: best validation balanced accuracy, the mean
over the seeds, up; FLOPs, down.

- all seeds: five for every configuration.
- auto: `repeats=auto`, the product's own decision (`is_dropped` of src/sweep/repeats.py).
- auto, p: the same at another level (`hydra.sweeper.drop_p`).
- one seed: one for every configuration.

What is reported, over the orders: the trainings as a fraction of those of "all seeds"; the share of
orders with the same members of the front as "all seeds" has with the same values; the members that
are missing and those that are too many; and the hypervolume of the true means of the reported front
(known only where the seeds are drawn), as a fraction of that of "all seeds".

Must hold: the same members with at most half of the trainings.
Hardware: any; one core, seconds.
"""

import heapq
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import moocore
import numpy as np
import pandas as pd

from benchmarks.pruning_replay import CHANCE, CURVES, METRIC
from src.metrics.pareto import ranks
from src.metrics.registry import Objective
from src.sweep.repeats import Repeated, is_dropped

QUALITY, COST = "best/val/balanced_accuracy", "efficiency/flops"
OBJECTIVES = [Objective(METRIC, "maximize"), Objective(COST, "minimize")]
SEEDS, WORKERS, ORDERS = 5, 4, 40


@dataclass(frozen=True)
class Configuration:
    """Values of its seeds, the value that they scatter about, and its multiply-adds."""

    values: tuple[float, ...]
    truth: float
    flops: float


def read(path: Path, deviation: float, ratio: float, order: int) -> list[Configuration]:
    """The configurations in a random order; without recorded seeds, each order draws others."""
    table = pd.read_csv(path)
    chance = np.random.default_rng(order)
    by = ["run", "seed"] if "seed" in table else ["run"]
    finals = table.groupby(by).agg(value=(METRIC, "max"), flops=("flops", "first")).reset_index()
    rows = []
    for _, runs in finals.groupby("run"):
        spread = deviation * ratio ** chance.uniform(-0.5, 0.5)
        truth = float(runs["value"].mean())
        recorded = tuple(runs["value"])[: n_seeds(table)] if "seed" in table else ()
        drawn = tuple(map(float, truth + spread * chance.standard_normal(SEEDS)))
        rows.append(Configuration(recorded or drawn, truth, float(runs["flops"].iloc[0])))
    return random.Random(order).sample(rows, len(rows))


def n_seeds(table: pd.DataFrame) -> int:
    """Seeds that every configuration of a table has."""
    return int(table.groupby("run")["seed"].nunique().min()) if "seed" in table else SEEDS


def replay(configurations: Sequence[Configuration], p: float, seeds: int) -> dict[int, int]:
    """Number of trained seeds by configuration; with p = 0 all seeds are trained."""
    finished: dict[int, Repeated] = {}
    trained: dict[int, int] = {}
    waiting = iter(range(len(configurations)))
    events = [(0, number) for _, number in zip(range(WORKERS), waiting, strict=False)]
    while events:
        now, number = heapq.heappop(events)
        row = configurations[number]
        trained[number] = trained.get(number, 0) + 1
        values = {seed: {QUALITY: row.values[seed]} for seed in range(trained[number])}
        finished[number] = Repeated(values, {COST: row.flops})
        rivals = [item for other, item in finished.items() if other != number]
        ended = trained[number] == seeds
        if not ended and p and is_dropped(finished[number], rivals, OBJECTIVES, p):
            ended = True
        following = next(waiting, None) if ended else number
        if following is not None:
            heapq.heappush(events, (now + 1, following))
    return trained


def front(configurations: Sequence[Configuration], trained: dict[int, int]) -> set[int]:
    """Numbers of the configurations on the front by the means over their trained seeds."""
    numbers = sorted(trained)
    means = [statistics.fmean(configurations[n].values[: trained[n]]) for n in numbers]
    points = np.array([(m, configurations[n].flops) for n, m in zip(numbers, means, strict=True)])
    return {n for n, rank in zip(numbers, ranks(points, OBJECTIVES), strict=True) if rank == 0}


def hypervolume(configurations: Sequence[Configuration], members: set[int]) -> float:
    """Of the true means of some configurations, by an independent library."""
    most = max(row.flops for row in configurations)
    losses = [(-configurations[n].truth, np.log10(configurations[n].flops)) for n in members]
    return float(moocore.hypervolume(np.array(losses), ref=[-CHANCE, np.log10(most)]))


def main() -> None:
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    path = Path(options.get("curves", CURVES))
    deviation, ratio = (
        float(options.get(*item)) for item in (("deviation", "0.025"), ("ratio", "1"))
    )
    print("command: python -m benchmarks.racing_replay " + " ".join(sys.argv[1:]))
    seeds = n_seeds(pd.read_csv(path))
    ways = {
        "all seeds": {"p": 0.0, "seeds": seeds},
        "auto": {"p": 0.01, "seeds": seeds},
        "auto, p 0.1": {"p": 0.1, "seeds": seeds},
        "auto, p 0.05": {"p": 0.05, "seeds": seeds},
        "one seed": {"p": 0.0, "seeds": 1},
    }
    rows: dict[str, list[tuple[float, ...]]] = {name: [] for name in ways}
    for order in range(ORDERS):
        configurations = read(path, deviation, ratio, order)
        reference: set[int] = set()
        for name, way in ways.items():
            trained = replay(configurations, **way)  # type: ignore[arg-type]
            members = front(configurations, trained)
            reference = reference or members
            share = sum(trained.values()) / (seeds * len(configurations))
            volumes = [hypervolume(configurations, them) for them in (members, reference)]
            missing, surplus = len(reference - members), len(members - reference)
            rows[name].append(
                (share, members == reference, missing, surplus, volumes[0] / volumes[1])
            )
    columns = ["trainings", "same front", "missing", "too many", "hypervolume"]
    table = pd.DataFrame({name: np.mean(row, axis=0) for name, row in rows.items()}, index=columns)
    print(
        f"{len(configurations)} configurations, {seeds} seeds, {ORDERS} orders, front of "
        f"{len(reference)}; means"
    )
    print(table.T.to_string(float_format="{:.3f}".format))


if __name__ == "__main__":
    main()
