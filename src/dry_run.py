"""What a study will take, before it takes it: every cell composed, built, counted and run for one batch."""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass

import optuna
import torch
from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, OmegaConf
from rich import box
from rich.console import Console
from rich.table import Table

from src.core.cli import one_line
from src.core.config import check, resolve
from src.deployment.compression import origin
from src.efficiency.profile import static_cost
from src.metrics.registry import Limit
from src.models.fit_once import is_fit_once
from src.sweep.space import Space
from src.training import loop

log = logging.getLogger(__name__)
SAMPLED = 24  # cells that are looked at, of a space with more
TIMED = 3  # batches, after one that is not timed
OPTIMIZER_COPIES = 4  # weights, gradients and the two moments of Adam


@dataclass(frozen=True)
class Estimate:
    """What one cell takes.

    Attributes:
        cell: Its overrides.
        cost: By names in the run record.
        seconds: Of training, all epochs; validation, measuring and recording come on top. Of a net
            that is fitted once: of one pass over the training images, the fit itself on top too.
        memory_mb: Weights, gradients, optimizer and the activations that one batch keeps for its
            backward pass.
        over: The limits that it breaks before it is trained: it would not be.
        problem: Why it cannot run; empty if it can.
    """

    cell: tuple[str, ...]
    cost: dict[str, float]
    seconds: float
    memory_mb: float
    over: tuple[str, ...] = ()
    problem: str = ""


def sample(space: Space, count: int, seed: int) -> Iterator[tuple[str, ...]]:
    """Overrides of some cells: all of them in order if there are no more than `count`, else drawn at random."""
    if space.n_cells is not None and space.n_cells <= count:
        yield from (cell.overrides for cell in space.cells())
        return
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
    drawn = (space.suggest(study.ask()) for _ in range(100 * count))
    seen: set[tuple[str, ...]] = set()
    for cell in drawn:
        if cell.overrides not in seen and not space.is_excluded(cell):
            seen.add(cell.overrides)
            yield cell.overrides
        if len(seen) == count:
            return


def compose_cell(loader: ConfigLoader, config: DictConfig, overrides: list[str]) -> DictConfig:
    """The config of one trial, its values checked.

    Raises:
        UserError: A value that cannot be; Hydra's own errors where it does not compose.
    """
    found = loader.load_sweep_config(config, overrides)
    found = OmegaConf.masked_copy(found, [str(key) for key in found if key != "hydra"])
    check(resolve(found))
    origin.is_compression(found)
    return found


def show(
    name: str,
    space: Space,
    loader: ConfigLoader,
    config: DictConfig,
    overrides: list[str],
    limits: list[Limit],
    n_trials: int | None,
    n_jobs: int,
) -> list[Estimate]:
    """Estimate a study and print what it will take.

    Args:
        name: Of the study.
        space: What is swept.
        loader: Composes a cell's config.
        config: The config that all trials share.
        overrides: What all trials are given.
        limits: A cell that breaks one before training is not timed.
        n_trials: Of the study; None: all cells.
        n_jobs: Trials at once.

    Returns:
        One estimate a cell that was looked at.
    """
    found = []
    for number, cell in enumerate(sample(space, SAMPLED, seed=0)):
        log.warning("dry run: cell %d, %s", number, " ".join(cell))
        found.append(_estimate(cell, loader, config, overrides, limits))
    console = Console(width=100)
    total = space.n_cells if n_trials is None else min(n_trials, space.n_cells or n_trials)
    console.print(_table(f"{name}: {len(found)} of {total or '?'} trials, not trained", found))
    for line in _totals(found, total or len(found), int(config.repeats), n_jobs):
        console.print(line, highlight=False, markup=False)
    return found


def _estimate(
    cell: tuple[str, ...],
    loader: ConfigLoader,
    config: DictConfig,
    overrides: list[str],
    limits: list[Limit],
) -> Estimate:
    try:
        own = compose_cell(loader, config, [*overrides, *cell])
        parts = loop.build(own)
        cost = static_cost(parts.classifier.net, parts.classifier.image_size)
        over = tuple(
            str(limit)
            for limit in limits
            if limit.metric in cost and not limit.holds(cost[limit.metric])
        )
        if over:
            return Estimate(cell, cost, 0.0, 0.0, over)
        if own.threads:
            torch.set_num_threads(own.threads)
        if is_fit_once(parts.classifier.net):
            return Estimate(cell, cost, _one_pass(parts), 0.0)
        per_batch, activations = _one_batch(own, parts)
        batches = len(parts.data.loader("train", train=True)) * own.trainer.max_epochs
        weights = OPTIMIZER_COPIES * cost["efficiency/size_mb"]
        return Estimate(cell, cost, per_batch * batches, activations + weights)
    except Exception as error:  # a cell that cannot be built is what a dry run is there to find
        line = one_line(error)
        if line is None and not isinstance(error, (RuntimeError, MemoryError)):
            raise
        return Estimate(cell, {}, 0.0, 0.0, problem=line or str(error).splitlines()[0])


def _one_pass(parts: loop.RunParts) -> float:
    """Seconds in which a net looks at every training image once."""
    loader = parts.data.loader("train")
    batch = next(iter(loader))["image"]
    began = time.perf_counter()
    with torch.inference_mode():
        parts.classifier.eval()(batch)
    return (time.perf_counter() - began) * len(parts.data.rows("train")) / len(batch)


def _one_batch(config: DictConfig, parts: loop.RunParts) -> tuple[float, float]:
    """Seconds of a training step without the optimizer's, and MB that it keeps for its backward pass."""
    device = torch.device(
        "cuda" if torch.cuda.is_available() and config.trainer.accelerator != "cpu" else "cpu"
    )
    classifier = parts.classifier.to(device).train()
    batch = next(iter(parts.data.loader("train", train=True)))
    images, labels = batch["image"].to(device), batch["label"].to(device)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    seconds = []
    for number in range(TIMED + 1):
        began = time.perf_counter()
        fed = (
            parts.data.augment(images.float().div_(255))
            if parts.data.augment is not None
            else images
        )
        with torch.autograd.graph.saved_tensors_hooks(keep if number == 0 else _same, _same):
            loss = classifier.loss(classifier(fed), labels)
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    own = {parameter.untyped_storage().data_ptr() for parameter in classifier.parameters()}
    return min(seconds[1:]), sum(size for key, size in kept.items() if key not in own) / 1e6


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _table(title: str, estimates: list[Estimate]) -> Table:
    drawn = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE, padding=(0, 1, 0, 0)
    )
    drawn.add_column("cell", overflow="fold")
    for label in ("FLOPs (M)", "params (k)", "train (s)", "memory (MB)"):
        drawn.add_column(label, justify="right", no_wrap=True)
    for each in estimates:
        note = f"  [{'not trained: ' + '; '.join(each.over) if each.over else each.problem}]"
        cell = " ".join(each.cell) + (note if each.over or each.problem else "")
        if each.problem:
            drawn.add_row(cell.replace("[", "\\["), "-", "-", "-", "-")
            continue
        cost = [
            _scaled(each.cost, "efficiency/flops", 1e6),
            _scaled(each.cost, "efficiency/params", 1e3),
        ]
        taken = ["-", "-"] if each.over else [f"{each.seconds:,.0f}", f"{each.memory_mb:,.0f}"]
        drawn.add_row(cell.replace("[", "\\["), *cost, *taken)
    return drawn


def _scaled(cost: dict[str, float], name: str, unit: float) -> str:
    return f"{cost[name] / unit:,.1f}" if name in cost else "-"


def _totals(estimates: list[Estimate], total: int, repeats: int, n_jobs: int) -> list[str]:
    able = [each for each in estimates if not each.problem and not each.over]
    lines = []
    broken = sum(bool(each.problem) for each in estimates)
    if broken:
        lines.append(f"{broken} of {len(estimates)} cells cannot run: see above")
    if not able:
        return [*lines, "no cell would be trained"]
    mean = sum(each.seconds for each in able) / len(estimates)
    hours = mean * total * repeats / n_jobs / 3600
    lines += [
        f"training: about {hours:.2g} h for {total} trials x {repeats} seeds, {n_jobs} at once ({mean:.0f} s a run on "
        "average, timed alone on this machine; validation, measuring and pruning are not in it)",
        f"memory: at most {max(each.memory_mb for each in able):,.0f} MB a trial beside the program itself "
        "(weights, gradients, Adam's moments, activations of one batch)",
    ]
    return lines
