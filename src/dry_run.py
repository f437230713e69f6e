"""Estimate a study without training: compose, build and count its cells, and time one batch."""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import optuna
import pandas as pd
import torch
from hydra.core.config_loader import ConfigLoader
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.core.cli import console, one_line, say
from src.core.config import check, resolve
from src.core.errors import UserError
from src.core.tables import Table
from src.deployment.compression import origin
from src.efficiency.profile import static_cost
from src.metrics.formatting import engineering
from src.metrics.registry import Limit, short_label
from src.models.fit_once import is_fit_once
from src.sweep.space import Space
from src.training import loop

log = logging.getLogger(__name__)
PROBED = 3  # cells that are composed and checked before a study starts
SAMPLED = 24  # cells that are estimated, of a larger space
TIMED = 3  # batches, after one that is not timed
OPTIMIZER_COPIES = 4  # weights, gradients and the two moments of Adam
COSTS = ("efficiency/flops", "efficiency/params")


@dataclass(frozen=True)
class Estimate:
    """The estimate of one cell of a study.

    Attributes:
        cell: Its overrides.
        cost: By names of the run record.
        seconds: Training time of all epochs, without validation, measuring and logging. For a net
            that is fitted without epochs: of one pass over the training images.
        memory_mb: Weights, gradients, optimizer state and the activations of one batch.
        over: The limits that it exceeds before training: it would not be trained.
        problem: Why it cannot run; empty if it can.
    """

    cell: tuple[str, ...]
    cost: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    memory_mb: float = 0.0
    over: tuple[str, ...] = ()
    problem: str = ""


def sample_cells(space: Space, count: int, seed: int) -> Iterator[tuple[str, ...]]:
    """Overrides of some cells: all in order if there are at most `count`, otherwise random ones."""
    if space.n_cells is not None and space.n_cells <= count:
        yield from (cell.overrides for cell in space.cells())
        return
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
    seen: set[tuple[str, ...]] = set()
    for _ in range(100 * count):
        cell = space.suggest(study.ask())
        if cell.overrides not in seen and not space.is_excluded(cell):
            seen.add(cell.overrides)
            yield cell.overrides
        if len(seen) == count:
            return


def compose_cell(loader: ConfigLoader, config: DictConfig, overrides: list[str]) -> DictConfig:
    """Compose the config of one trial and check its values.

    Raises:
        UserError: An impossible value. Hydra's errors pass through.
    """
    composed = loader.load_sweep_config(config, overrides)
    composed = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    check(resolve(composed))
    origin.is_compression(composed)
    return composed


def probe(
    space: Space, loader: ConfigLoader, config: DictConfig, shared: list[str]
) -> tuple[DictConfig, list[str]] | None:
    """Compose and check some cells, so that a mistake in all of them is reported at once.

    Args:
        space: The search space.
        loader: Composes a cell's config.
        config: The config that all trials share.
        shared: Overrides of all trials.

    Returns:
        Config and overrides of the first valid cell; None if the cells have different problems.

    Raises:
        UserError: The problem that all of them have.
    """
    problems: dict[str, Exception] = {}
    for cell in sample_cells(space, PROBED, seed=0):
        overrides = [*shared, *cell]
        try:
            return compose_cell(loader, config, overrides), overrides
        except (UserError, HydraException, OmegaConfBaseException) as error:
            problems[str(one_line(error))] = error
    if len(problems) == 1:
        raise next(iter(problems.values()))
    return None


def show(
    name: str,
    space: Space,
    loader: ConfigLoader,
    config: DictConfig,
    shared: list[str],
    limits: list[Limit],
    n_trials: int | None,
    n_jobs: int,
) -> list[Estimate]:
    """Estimate a study and print time and memory of its cells and in total.

    Args:
        name: Name of the study.
        space: The search space.
        loader: Composes a cell's config.
        config: The config that all trials share.
        shared: Overrides of all trials.
        limits: A cell that exceeds one before training is not timed.
        n_trials: Number of trials; None: all cells.
        n_jobs: Number of parallel trials.

    Returns:
        The estimates of the sampled cells.
    """
    estimates = []
    for number, cell in enumerate(sample_cells(space, SAMPLED, seed=0)):
        log.warning("dry run: cell %d, %s", number, " ".join(cell))
        estimates.append(estimate(cell, loader, config, shared, limits))
    total = space.n_cells if n_trials is None else min(n_trials, space.n_cells or n_trials)
    title = f"{name}: {len(estimates)} of {total or '?'} trials, not trained"
    console.print(table(title, estimates).to_rich())
    for line in totals(estimates, total or len(estimates), int(config.repeats), n_jobs):
        say(line)
    return estimates


def estimate(
    cell: tuple[str, ...],
    loader: ConfigLoader,
    config: DictConfig,
    shared: list[str],
    limits: list[Limit],
) -> Estimate:
    """Compose, build and count one cell, and time it unless it exceeds a limit; see `show`."""
    try:
        composed = compose_cell(loader, config, [*shared, *cell])
        parts = loop.build(composed)
        cost = static_cost(parts.classifier.net, parts.classifier.image_size)
        known = [limit for limit in limits if limit.metric in cost]
        over = tuple(str(limit) for limit in known if not limit.holds(cost[limit.metric]))
        if over:
            return Estimate(cell, cost, over=over)
        if composed.threads:
            torch.set_num_threads(composed.threads)
        if is_fit_once(parts.classifier.net):
            return Estimate(cell, cost, time_one_pass(parts))
        per_batch, activations = time_one_batch(composed, parts)
        batches = len(parts.data.loader("train", train=True)) * composed.trainer.max_epochs
        weights = OPTIMIZER_COPIES * cost["efficiency/size_mb"]
        return Estimate(cell, cost, per_batch * batches, activations + weights)
    except Exception as error:  # to find such cells is what a dry run is for
        line = one_line(error)
        if line is None and not isinstance(error, (RuntimeError, MemoryError)):
            raise
        return Estimate(cell, problem=line or str(error).splitlines()[0])


def time_one_pass(parts: loop.RunParts) -> float:
    """Seconds of one pass over all training images, from one batch."""
    loader = parts.data.loader("train")
    batch = next(iter(loader))["image"]
    began = time.perf_counter()
    with torch.inference_mode():
        parts.classifier.eval()(batch)
    return (time.perf_counter() - began) * len(parts.data.rows("train")) / len(batch)


def time_one_batch(config: DictConfig, parts: loop.RunParts) -> tuple[float, float]:
    """Seconds of a training step without the optimizer, and MB kept for its backward pass."""
    device = loop.training_device(config)
    classifier = parts.classifier.to(device).train()
    batch = next(iter(parts.data.loader("train", train=True)))
    images, labels = batch["image"].to(device), batch["label"].to(device)
    augment = parts.data.augment
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    seconds = []
    for number in range(TIMED + 1):
        began = time.perf_counter()
        inputs = images if augment is None else augment(images.float().div_(255))
        pack = keep if number == 0 else lambda tensor: tensor
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = classifier.loss(classifier(inputs), labels)
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    weights = {parameter.untyped_storage().data_ptr() for parameter in classifier.parameters()}
    activations = sum(size for pointer, size in kept.items() if pointer not in weights)
    return min(seconds[1:]), activations / 1e6


def table(title: str, estimates: list[Estimate]) -> Table:
    """One row per estimated cell: overrides, cost, training time, memory, problem."""
    rows = []
    for one in estimates:
        trained = not one.over and not one.problem
        rows.append(
            {
                "cell": " ".join(one.cell),
                **{name: one.cost.get(name) for name in COSTS},
                "seconds": one.seconds if trained else None,
                "memory_mb": one.memory_mb if trained else None,
                "note": f"not trained: {'; '.join(one.over)}" if one.over else one.problem,
            }
        )
    return Table(
        pd.DataFrame(rows),
        title,
        labels={"seconds": "train", "memory_mb": "memory"}
        | {name: short_label(name) for name in COSTS},
        units={"seconds": "s", "memory_mb": "MB"},
        formats=dict.fromkeys(COSTS, engineering) | {"seconds": ",.0f", "memory_mb": ",.0f"},
    )


def totals(estimates: list[Estimate], total: int, repeats: int, n_jobs: int) -> list[str]:
    """Training time and memory of the whole study, in sentences."""
    trained = [one for one in estimates if not one.problem and not one.over]
    invalid = sum(bool(one.problem) for one in estimates)
    lines = [f"{invalid} of {len(estimates)} cells cannot run: see above"] if invalid else []
    if not trained:
        return [*lines, "no cell would be trained"]
    mean = sum(one.seconds for one in trained) / len(estimates)
    hours = mean * total * repeats / n_jobs / 3600
    memory = max(one.memory_mb for one in trained)
    return [
        *lines,
        f"training: about {hours:.2g} h for {total} trials x {repeats} seeds, {n_jobs} at once "
        f"({mean:.0f} s per run on average, timed alone on this machine, without validation, "
        "measuring and pruning)",
        f"memory: at most {memory:,.0f} MB per trial beside the program itself (weights, "
        "gradients, Adam's moments, activations of one batch)",
    ]
