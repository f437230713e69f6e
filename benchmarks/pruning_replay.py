"""Hypervolume and epochs of multi-objective pruning, replayed on recorded learning curves.

    python -m benchmarks.pruning_replay [curves=benchmarks/curves/ham10000_64.csv]
    [rival=/path/to/python] [late=4]

The table (`benchmarks.record_curves`) holds HAM10000 runs drawn at random from one space, at 64 px
or at several image sizes; each seed of a configuration counts as a run.
Four simulated workers take them in a random order, one after the other, at the recorded seconds an
epoch; nothing is trained.
Objectives: best validation balanced accuracy so far, up; FLOPs, down. What is reported, as a
    fraction of the study that
trains all to the end: the hypervolume of the runs trained to the end (beside it: pruned runs too,
with what they had reached); and the epochs. The reference point is chance (1/7) and the most FLOPs
of the runs, FLOPs by their logarithm.

- paretoderm: `goes_on` of src/sweep/pruners.py; a rung that does not predict stops no run.
- fixed rungs: the same with `min_correlation=-1`: every rung stops runs.
- random: no pruning, the same order, cut off at the epochs that paretoderm took with the same seed.
- MOASHA: Syne Tune's, with the same rungs, through `benchmarks.moasha_bridge`, if `rival` names a
Python that has it
  (syne-tune 0.16.0); it gets log10 FLOPs, since its distances are not normalised. As shipped its
  priority gives the sorted rows where each row's place is expected; "in order" is MOASHA with that
  put right.

`late=4` keeps the better half of the runs at chance for so many epochs and compresses the rest of
their curves: what happens where large images learn later than small ones.

`choose=1` prints the grid over the even runs below 60, from which the defaults were taken. The rule
itself (how many of n go on) was settled with all 68 runs in view that were recorded by then: the
even ones below 60 and the odd ones below 77. So the first table gives the later runs alone, which
chose nothing; the second gives all.

Must hold, all runs, median over the seeds: at least 95% of the hypervolume with at most 1/3 of the
epochs.
Hardware: any; one core, seconds.
"""

import heapq
import json
import math
import random
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import moocore
import numpy as np
import pandas as pd

from src.metrics.registry import Objective
from src.sweep.pruners import Rungs, goes_on

CURVES = Path(__file__).parent / "curves" / "ham10000_64.csv"
METRIC, COST = "val/balanced_accuracy", "flops"
OBJECTIVES = [Objective(METRIC, "maximize"), Objective("efficiency/flops", "minimize")]
CHANCE = 1 / 7
WORKERS = 4
SEEDS = range(10)
CHOOSING_SEEDS = 30
RIVALS = {"shipped": "MOASHA as shipped", "places": "MOASHA, in order"}
WANTED_HYPERVOLUME, WANTED_EPOCHS = 0.95, 1 / 3


@dataclass(frozen=True)
class Curve:
    """A recorded run.

    Attributes:
        best: Best balanced accuracy up to each epoch.
        flops: Multiply-adds.
        seconds: Seconds per epoch.
        image_size: In pixels.
    """

    best: tuple[float, ...]
    flops: float
    seconds: float
    image_size: int = 64


class Stopper(Protocol):
    """A way to stop runs early."""

    def goes_on(self, number: int, epoch: int, curve: Curve) -> bool:
        """Whether a run continues; called after each of its epochs in order of simulated time."""


class Never:
    """All are trained to the end."""

    def goes_on(self, number: int, epoch: int, curve: Curve) -> bool:  # noqa: D102
        return True


class Ours:
    """The product's own decision; the rungs of a study kept in memory rather than in Optuna."""

    def __init__(self, rungs: Rungs) -> None:
        self.rungs = rungs
        self.records: dict[int, dict[int, tuple[float, float]]] = {
            epoch: {} for epoch in rungs.epochs
        }
        self.final: dict[int, float] = {}

    def goes_on(self, number: int, epoch: int, curve: Curve) -> bool:  # noqa: D102
        if epoch == len(curve.best) - 1:  # goes on, and is not asked about again
            self.final[number] = curve.best[-1]
        if epoch not in self.records:
            return True
        record = self.records[epoch]
        record[number] = (curve.best[epoch - 1], curve.flops)
        rows = sorted(record)
        points = np.array([record[row] for row in rows])
        early = {row: value for row, (value, _) in record.items()}
        final = {row: value for row, value in self.final.items() if row in early}
        factor = self.rungs.reduction_factor
        continues, _ = goes_on(points, rows.index(number), OBJECTIVES, factor)
        return continues or not self.rungs.predicts(early, final)


class Moasha:
    """Syne Tune's scheduler in another interpreter."""

    def __init__(
        self, bridge: "subprocess.Popen[str]", rungs: Rungs, priority: str, seed: int
    ) -> None:
        self.bridge = bridge
        self.known: set[int] = set()
        options = {"max_t": rungs.max_epochs, "grace_period": rungs.min_epochs, "random_seed": seed}
        self._ask(
            {"new": {**options, "reduction_factor": rungs.reduction_factor, "priority": priority}}
        )

    def goes_on(self, number: int, epoch: int, curve: Curve) -> bool:  # noqa: D102
        if number not in self.known:
            self.known.add(number)
            self._ask({"add": number})
        values = [-curve.best[epoch - 1], math.log10(curve.flops)]
        return self._ask({"report": number, "epoch": epoch, "values": values})

    def _ask(self, message: Mapping[str, Any]) -> bool:
        assert self.bridge.stdin is not None
        assert self.bridge.stdout is not None
        print(json.dumps(message), file=self.bridge.stdin, flush=True)
        return bool(json.loads(self.bridge.stdout.readline())["goes_on"])


@dataclass(frozen=True)
class Share:
    """What a contender reached with one seed, as fractions of the full study."""

    completed: float  # hypervolume of the runs trained to the end
    partial: float  # hypervolume with the pruned runs' best values
    epochs: float
    runs: int  # trained to the end


def read(path: Path) -> dict[int, Curve]:
    """Number of the run, and 1,000 for each further seed -> its curve; by seeds, then by runs."""
    table = pd.read_csv(path)
    table = table.assign(seed=table.get("seed", 0), size=table.get("size", 64))
    return {
        1000 * int(rows["seed"].iloc[0]) + int(rows["run"].iloc[0]): Curve(
            best=tuple(rows.sort_values("epoch")[METRIC].cummax()),
            flops=float(rows[COST].iloc[0]),
            seconds=float(rows["seconds_per_epoch"].iloc[0]),
            image_size=int(rows["size"].iloc[0]),
        )
        for _, rows in table.groupby(["seed", "run"])
    }


def delayed(curves: Mapping[int, Curve], epochs: int) -> dict[int, Curve]:
    """The curves, the better half of which stays at chance for the first epochs."""
    median = statistics.median(curve.best[-1] for curve in curves.values())
    late = dict(curves)
    for number, curve in curves.items():
        if curve.best[-1] > median:
            total = len(curve.best)
            rows = np.linspace(0, total - 1, total - epochs).round().astype(int)
            best = [CHANCE] * epochs + [curve.best[row] for row in rows]
            late[number] = replace(curve, best=tuple(best))
    return late


def shuffled(curves: Mapping[int, Curve], seed: int) -> list[Curve]:
    return random.Random(seed).sample(list(curves.values()), len(curves))


def replay(order: Sequence[Curve], stopper: Stopper, budget: float = math.inf) -> list[int]:
    """Epochs of each run, four runs at a time; the study ends after `budget` epochs."""
    trained = [0] * len(order)
    waiting = iter(range(len(order)))
    events: list[tuple[float, int]] = []  # end of the next epoch, run
    for number in (next(waiting, None) for _ in range(WORKERS)):
        if number is not None:
            heapq.heappush(events, (order[number].seconds, number))
    while events and sum(trained) < budget:
        now, number = heapq.heappop(events)
        curve = order[number]
        trained[number] += 1
        ended = trained[number] == len(curve.best)
        following = (
            number
            if not ended and stopper.goes_on(number, trained[number], curve)
            else next(waiting, None)
        )
        if following is not None:
            heapq.heappush(events, (now + order[following].seconds, following))
    return trained


def hypervolume(points: Sequence[tuple[float, float]], most_flops: float) -> float:
    """Of (balanced accuracy, FLOPs), by an independent library."""
    losses = [(-accuracy, math.log10(flops)) for accuracy, flops in points]
    return (
        float(moocore.hypervolume(np.array(losses), ref=[-CHANCE, math.log10(most_flops)]))
        if losses
        else 0.0
    )


def share(order: Sequence[Curve], trained: Sequence[int]) -> Share:
    most_flops = max(curve.flops for curve in order)
    full = hypervolume([(curve.best[-1], curve.flops) for curve in order], most_flops)
    pairs = list(zip(order, trained, strict=True))
    completed = [
        (curve.best[-1], curve.flops) for curve, epochs in pairs if epochs == len(curve.best)
    ]
    partial = [(curve.best[epochs - 1], curve.flops) for curve, epochs in pairs if epochs]
    return Share(
        completed=hypervolume(completed, most_flops) / full,
        partial=hypervolume(partial, most_flops) / full,
        epochs=sum(trained) / sum(len(curve.best) for curve in order),
        runs=len(completed),
    )


def contend(
    curves: Mapping[int, Curve], rungs: Rungs, bridge: "subprocess.Popen[str] | None"
) -> dict[str, list[Share]]:
    """Contender -> one share a seed."""
    results: dict[str, list[Share]] = {}
    for seed in SEEDS:
        order = shuffled(curves, seed)
        ours = replay(order, Ours(rungs))
        reached = {
            "full": replay(order, Never()),
            "paretoderm": ours,
            "fixed rungs": replay(order, Ours(replace(rungs, min_correlation=-1))),
            "random, same epochs": replay(order, Never(), budget=sum(ours)),
        }
        if bridge:
            for priority, name in RIVALS.items():
                reached[name] = replay(order, Moasha(bridge, rungs, priority, seed))
        for name, trained in reached.items():
            results.setdefault(name, []).append(share(order, trained))
    return results


def summary(values: Sequence[float]) -> str:
    middle, low, high = (
        100 * value for value in (statistics.median(values), min(values), max(values))
    )
    return f"{middle:5.1f}% ({low:4.1f}..{high:5.1f})"


def show(title: str, results: Mapping[str, Sequence[Share]]) -> None:
    print(f"\n{title}; median (least..most) of {len(SEEDS)} seeds")
    print(f"{'':21}{'hypervolume':>22}{'with pruned runs':>22}{'epochs':>22}{'ended':>8}")
    for name, shares in results.items():
        columns = [
            [getattr(share, column) for share in shares]
            for column in ("completed", "partial", "epochs")
        ]
        runs = statistics.median(share.runs for share in shares)
        print(
            f"{name:21}" + "".join(f"{summary(column):>22}" for column in columns) + f"{runs:8.0f}"
        )


def show_sizes(curves: Mapping[int, Curve], rungs: Rungs) -> None:
    """Share of the runs of each image size that are trained to the end, over the seeds."""
    orders = [shuffled(curves, seed) for seed in SEEDS]
    for name, stopper in (
        ("paretoderm", rungs),
        ("fixed rungs", replace(rungs, min_correlation=-1)),
    ):
        ended = [
            (curve.image_size, epochs == len(curve.best))
            for order in orders
            for curve, epochs in zip(order, replay(order, Ours(stopper)), strict=True)
        ]
        means = pd.DataFrame(ended, columns=["size", "ended"]).groupby("size")["ended"].mean()
        shares = ", ".join(f"{size} px {value:.0%}" for size, value in means.items())
        print(f"trained to the end, {name}: {shares}")


def choose(curves: Mapping[int, Curve]) -> None:
    """The grid over the first even runs."""
    half = {
        number: curve for number, curve in curves.items() if number % 2 == 0 and _was_seen(number)
    }
    orders = [shuffled(half, seed) for seed in range(CHOOSING_SEEDS)]
    longest = len(orders[0][0].best)
    print(f"\n{len(half)} even runs, to choose by; median (least..most) of {CHOOSING_SEEDS} seeds")
    print(f"{'min_epochs':>10}{'factor':>8}  {'rungs':12}{'hypervolume':>22}{'epochs':>22}")
    for min_epochs in (1, 2, 3, 4):
        for factor in (2, 2.5, 3, 4):
            rungs = Rungs(longest, min_epochs, factor)
            shares = [share(order, replay(order, Ours(rungs))) for order in orders]
            columns = [
                [getattr(one, column) for one in shares] for column in ("completed", "epochs")
            ]
            names = ",".join(map(str, rungs.epochs))
            print(
                f"{min_epochs:10}{factor:8}  {names:12}"
                + "".join(f"{summary(column):>22}" for column in columns)
            )


def _was_seen(number: int) -> bool:
    """Whether a run was recorded before the rule and its defaults were settled."""
    return number < (77 if number % 2 else 60)


@contextmanager
def rival_process(python: str | None) -> "Iterator[subprocess.Popen[str] | None]":
    if python is None:
        print("no rival: `rival=` names no Python with syne-tune, so MOASHA is left out")
        yield None
        return
    command = [python, str(Path(__file__).with_name("moasha_bridge.py"))]
    bridge = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        yield bridge
    finally:
        bridge.kill()
        bridge.wait()


def main() -> None:
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    table = Path(options.get("curves", CURVES))
    if not table.exists():
        sys.exit(f"{table}: no such table; record one with `python -m benchmarks.record_curves`")
    curves = delayed(read(table), int(options.get("late", "0")))
    print("command: python -m benchmarks.pruning_replay " + " ".join(sys.argv[1:]))
    longest = len(next(iter(curves.values())).best)
    sizes = ", ".join(map(str, sorted({curve.image_size for curve in curves.values()})))
    print(
        f"{len(curves)} runs of {longest} epochs, HAM10000 at {sizes} px; {WORKERS} workers; "
        "replayed, nothing trained"
    )
    if options.get("choose"):
        choose(curves)
        return
    rungs = Rungs(longest)
    print(f"rungs at epochs {rungs.epochs}, one in {rungs.reduction_factor:g} goes on")
    is_default = table == CURVES  # the rule was settled on its runs
    later = {n: curve for n, curve in curves.items() if is_default and not _was_seen(n)}
    with rival_process(options.get("rival")) as bridge:
        if later:
            show(f"{len(later)} later runs, which chose nothing", contend(later, rungs, bridge))
        results = contend(curves, rungs, bridge)
        show(f"all {len(curves)} runs", results)
    if "," in sizes:
        show_sizes(curves, rungs)
    reached = [
        statistics.median(getattr(run, name) for run in results["paretoderm"])
        for name in ("completed", "epochs")
    ]
    held = reached[0] >= WANTED_HYPERVOLUME and reached[1] <= WANTED_EPOCHS
    print(
        "\nrequired: hypervolume at least 95.0%, epochs at most 33.3%: "
        f"{'held' if held else 'NOT HELD'}"
    )


if __name__ == "__main__":
    main()
