"""Estimate a study without training: compose, build and count its cells, and time one batch."""

import copy
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import optuna
import pandas as pd
import torch
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, flag_override

from src.core.cli import COMPOSE_ERRORS, one_line
from src.core.config import check, resolve
from src.core.errors import ConfigError, UserError
from src.core.tables import Table
from src.deployment.compression import origin
from src.efficiency.flops import count_trainable
from src.efficiency.profile import static_cost
from src.metrics.formatting import count, engineering
from src.metrics.registry import Limit, short_label
from src.models.fit_once import is_fit_once
from src.run import refuse_devices, trial_name
from src.sweep.display import clock
from src.sweep.space import Space
from src.training import loop

Composer = Callable[[Sequence[str]], DictConfig]  # overrides -> config of a trial
CHECKED = 40  # values that are checked before a study starts, at most
SAMPLED = 24  # cells that are estimated, or checked before a study starts, of a larger space
TIMED = 3  # batches at most, after one that counts only where no other is timed
TIMED_S = 0.5  # after so many seconds no other batch is timed
OPTIMIZER_COPIES = 4  # weights, gradients and the two moments of Adam
COSTS = ("efficiency/flops", "efficiency/params")
NUMBERS = (*COSTS, "seconds", "memory_mb", "disk_mb")
COLUMNS = ["cell", *NUMBERS, "over", "problem", "cache", "cache_mb"]


def sample_cells(space: Space, count: int) -> Iterator[tuple[str, ...]]:
    """Overrides of some cells: all in order if there are at most `count`, otherwise random ones."""
    if space.n_cells is not None and space.n_cells <= count:
        yield from (cell.overrides for cell in space.cells())
        return
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn: set[tuple[str, ...]] = set()
    for _ in range(100 * count):
        cell = space.suggest(study.ask())
        if cell.overrides not in drawn and not space.is_excluded(cell):
            drawn.add(cell.overrides)
            yield cell.overrides
        if len(drawn) == count:
            return


def composer(loader: ConfigLoader, config: DictConfig, shared: Sequence[str]) -> Composer:
    """A function that composes and checks the config of a trial from its overrides and `shared`.

    Config groups, which take 0.2 s, are composed once for all trials with the same choices. The
    function raises UserError for an impossible value; Hydra's errors pass through.
    """
    parser, composed = OverridesParser.create(), dict[tuple[str, ...], DictConfig]()
    group_exists = cast("ConfigLoaderImpl", loader).repository.group_exists

    def compose(overrides: Sequence[str]) -> DictConfig:
        parsed = parser.parse_overrides([*shared, *overrides])
        choices = tuple(str(one.input_line) for one in parsed if group_exists(one.key_or_group))
        if choices not in composed:
            loaded = loader.load_sweep_config(config, list(choices))
            composed[choices] = OmegaConf.masked_copy(loaded, [*{*map(str, loaded)} - {"hydra"}])
        cell = copy.deepcopy(composed[choices])
        values = [one for one in parsed if not group_exists(one.key_or_group)]
        with flag_override(cell, "struct", True):  # as Hydra, which names close keys then
            ConfigLoaderImpl._apply_overrides_to_config(values, cell)
        check(resolve(cell))
        refuse_devices(cell, is_trial=True)
        origin.is_compression(cell)
        return cell

    return compose


def probe(
    space: Space, loader: ConfigLoader, config: DictConfig, shared: list[str], wide: bool = True
) -> tuple[DictConfig, list[str]] | None:
    """Compose and check some cells, so that a mistake is reported before anything is trained.

    If it is `wide`, each value of a parameter is checked, in `SAMPLED` cells if it fails in the
    others; of ranges and intervals only the ends, and `CHECKED` values in all. The trainer is not
    tried if trials run elsewhere: a login node need not have their GPUs.

    Returns:
        Config and overrides of the first valid cell; None if the cells have different problems.

    Raises:
        UserError: The problem that all checked cells have, or all with one of the values.
    """
    is_group = cast("ConfigLoaderImpl", loader).repository.group_exists
    compose = composer(loader, config, shared)
    is_local = config.hydra.sweeper.executor._target_.endswith(".LocalExecutor")
    parts: list[tuple[list[str], Space]] = [([], space)]  # and those with one of the values
    values = [(one, value) for one in space.parameters for value in one.domain.samples]
    for parameter, value in values[: CHECKED if wide else 0]:
        for key, item in parameter.pairs(value):
            if not isinstance(item, str) and is_group(key.lstrip("+")):
                raise ConfigError(key, f"a choice is the name of a file, but got {item!r}")
        parts.append((parameter.overrides(value), space.with_value(parameter, value)))
    valid: tuple[DictConfig, list[str]] | None = None
    runnable = set[str]()
    for typed, part in parts:
        problems: dict[str, Exception] = {}
        if valid is not None and runnable.issuperset(typed):
            continue
        for cell in filter(set(typed).issubset, sample_cells(part, SAMPLED)):
            try:
                composed = compose(cell)
                keys = (override.lstrip("+").partition("=")[0] for override in cell)
                swept = {key.partition(".")[0] for key in keys if "." in key}
                loop.try_parts(composed, swept if is_local else swept - {"trainer"})
            except COMPOSE_ERRORS as error:
                problems[str(one_line(error, arguments=typed))] = error
                continue
            valid = valid or (composed, [*shared, *cell])
            runnable.update(cell)
            break
        else:
            if len(problems) == 1:
                [(line, problem)] = problems.items()
                way = f"; no trial with {' '.join(typed)} can run: leave it out"
                raise UserError(line + way * (typed[0] not in line)) if typed else problem
    return valid


def estimate(
    cell: Sequence[str], compose: Composer, limits: list[Limit], measured: dict[str, Any]
) -> dict[str, Any]:
    """Compose, build and count one cell, and time it unless it exceeds a limit.

    `compose` is that of `composer`. `measured` has what earlier calls measured, of cells with the
    same network, batch and loss.

    Returns:
        `cell` (text), `COSTS`, `seconds`: training time of all epochs, without validation,
        measuring and logging, of a net that is fitted without epochs one pass over the training
        images; `memory_mb`: weights, gradients, optimizer state and the activations of one batch;
        `disk_mb`: of the checkpoint; `over`: the limits that it exceeds before training, which then
        does not take place; `problem`: why it cannot run; `cache` and `cache_mb`: name and size of
        the decoded pictures. Texts are empty and numbers None where they do not apply.
    """
    row: dict[str, Any] = {"cell": " ".join(cell), **dict.fromkeys(NUMBERS), "over": ""}
    try:
        composed = compose(cell)
        parts = loop.build(composed, pictures=False)
        net, data = parts.classifier.net, parts.data
        layers = re.sub(r"\bp=[\d.e-]+", "", str(net))  # dropout changes the result, not the cost
        sizes = data.image_size, data.batch_size, count_trainable(net)
        key = repr((layers, sizes, composed.loss, composed.augment, composed.threads))
        if key not in measured:
            measured[key] = _measure(composed, parts, limits)
        cost, over, seconds, activations = measured[key]
        images = data.cache.images
        row |= {n: cost.get(n) for n in COSTS} | {"cell": trial_name(composed, cell, 0)[3:]}
        row |= {"over": over, "disk_mb": cost.get("efficiency/size_mb")}
        row |= {"cache": str((*images.shape, composed.data.name)), "cache_mb": images.nbytes / 1e6}
        if seconds is not None:
            batches = len(data.loader("train", train=True)) * composed.trainer.max_epochs
            row["seconds"] = seconds * (1 if is_fit_once(net) else batches)
            row["memory_mb"] = activations + OPTIMIZER_COPIES * cost.get("efficiency/size_mb", 0)
    except Exception as error:  # to find such cells is what a dry run is for
        line = one_line(error)
        if line is None and not isinstance(error, (RuntimeError, MemoryError)):
            raise
        return row | dict.fromkeys(NUMBERS) | {"problem": line or str(error).splitlines()[0]}
    return row | {"problem": ""}


def _measure(
    config: DictConfig, parts: loop.RunParts, limits: list[Limit]
) -> tuple[dict[str, float], str, float | None, float]:
    """Costs before training, limits that they exceed, seconds per batch or fit, activations, MB."""
    net = parts.classifier.net
    cost = static_cost(net, parts.classifier.image_size)
    bounded = [limit for limit in limits if limit.metric in cost]
    over = "; ".join(str(limit) for limit in bounded if not limit.holds(cost[limit.metric]))
    if over:
        return cost, over, None, 0.0
    if config.threads:
        torch.set_num_threads(config.threads)
    if is_fit_once(net):  # one pass over all training images, from one batch
        batch = next(iter(parts.data.loader("train")))["image"]
        began = time.perf_counter()
        with torch.inference_mode():
            parts.classifier.eval()(batch)
        seconds = (time.perf_counter() - began) / len(batch) * len(parts.data.rows("train"))
        return cost, over, seconds, 0.0
    return cost, over, *time_one_batch(config, parts)


def time_one_batch(config: DictConfig, parts: loop.RunParts) -> tuple[float, float]:
    """Seconds of a training step without the optimizer, and MB kept for its backward pass."""
    device = loop.training_device(config)
    classifier = parts.classifier.to(device).train()
    batch = next(iter(parts.data.loader("train", train=True)))
    images, labels = batch["image"].to(device), batch["label"].to(device)
    augment = parts.data.augment
    sizes: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
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
        if sum(seconds) > TIMED_S:
            break
    weights = {parameter.untyped_storage().data_ptr() for parameter in classifier.parameters()}
    activations = sum(size for pointer, size in sizes.items() if pointer not in weights)
    return min(seconds[1:] or seconds), activations / 1e6


def table(title: str, cells: pd.DataFrame) -> Table:
    """One row per estimated cell: overrides, cost, training time, memory, checkpoint, problem."""
    over = cells["over"].where(cells["over"] == "", "not trained: " + cells["over"])
    return Table(
        cells[["cell", *NUMBERS]].assign(note=over + cells["problem"]),
        title,
        labels={"seconds": "train (s)", "memory_mb": "memory (MB)", "disk_mb": "disk (MB)"}
        | {name: short_label(name) for name in COSTS},
        formats=dict.fromkeys(COSTS, engineering)
        | {"seconds": ",.0f", "memory_mb": ",.0f", "disk_mb": ",.1f"},
    )


def totals(cells: pd.DataFrame, total: int, repeats: int, n_jobs: int) -> list[str]:
    """Training time, memory and disk of a study of `total` trials, in sentences."""
    lines = []
    for column, meaning in (("problem", "cannot run"), ("over", "exceed a limit")):
        if number := int((cells[column] != "").sum()):
            lines.append(f"{number} of {len(cells)} cells {meaning}: see above")
    if cells["seconds"].isna().all():
        return [*lines, "no cell would be trained"]
    runs = total * repeats
    mean = cells["seconds"].sum() / len(cells)
    checkpoints = cells.loc[cells["seconds"].notna(), "disk_mb"].sum() / len(cells) * runs
    caches = cells.drop_duplicates("cache")["cache_mb"].dropna()
    return [
        *lines,
        f"time: about {clock(mean * runs / n_jobs)} of training for {count(total, 'trial')} "
        f"x {count(repeats, 'seed')}, {n_jobs} at once ({mean:.0f} s per run on average, timed "
        "alone on this machine, without validation, measuring and pruning)",
        f"memory: at most {cells['memory_mb'].max():,.0f} MB per trial beside the program itself "
        "(weights, gradients, Adam's moments, activations of one batch)",
        f"disk: about {checkpoints:,.0f} MB of checkpoints, {caches.sum():,.0f} MB of decoded "
        f"pictures ({count(len(caches), 'size')})",
    ]
