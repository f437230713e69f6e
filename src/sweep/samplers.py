"""Config -> Optuna sampler; how the parts that a study's config names are checked and built."""

import importlib.util
import inspect
import io
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import hydra.utils
import optuna
import optuna.samplers._cmaes
from omegaconf import DictConfig, OmegaConf
from optuna.samplers import BaseSampler, GridSampler, QMCSampler, RandomSampler

from src.core.config import check, check_arguments, instantiate, resolve
from src.core.errors import ConfigError, DependencyError, UserError

KEY = "hydra.sweeper.sampler"
GRID = "grid"  # no sampler of Optuna: the scheduler enqueues the cells in order
# Facts that a config file states of its part; they are not passed to the constructor.
FACTS = ("name", "learns_from_pruned", "max_objectives", "package")


# What the state of CMA-ES consists of. Optuna keeps it in the database as a pickle, which could
# name any function, and whoever gave the database could have written it.
_STATE_CLASSES = {
    *(("cmaes._cma", "CMA"), ("cmaes._sepcma", "SepCMA"), ("cmaes._cmawm", "CMAwM")),
    *(("numpy", "dtype"), ("numpy", "ndarray"), ("numpy._core.numeric", "_frombuffer")),
    *(("numpy._core.multiarray", "scalar"), ("numpy._core.multiarray", "_reconstruct")),
    *(("numpy.core.multiarray", "scalar"), ("numpy.core.multiarray", "_reconstruct")),
}


class _StateUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Called by pickle for every class and function that the state names."""
        if (module, name) not in _STATE_CLASSES:
            problem = f"the state of CMA-ES in the database names {module}.{name}"
            raise UserError(f"{KEY}: {problem}, which is no part of it: start another study")
        return super().find_class(module, name)


optuna.samplers._cmaes.pickle = SimpleNamespace(  # type: ignore[assignment]
    dumps=pickle.dumps, loads=lambda state: _StateUnpickler(io.BytesIO(state)).load()
)


@dataclass(frozen=True)
class SamplerChoice:
    """A sampler and what the scheduler has to know about it."""

    sampler: BaseSampler  # for a grid, whose cells are enqueued in order, only a placeholder
    name: str  # as in the config
    # From pruned trials with constraints; if not, trials over a limit are told as complete with the
    # worst values.
    learns_from_pruned: bool


def make_sampler(
    config: DictConfig | Mapping[str, Any], seed: int, n_objectives: int, n_drawn: int
) -> SamplerChoice:
    """Build the sampler that a config names.

    Args:
        config: `_target_` with its arguments, and `FACTS`; a grid needs only `name`.
        seed: Of the study. With one slot it makes the study reproducible.
        n_objectives: Of the study.
        n_drawn: Trials that the study has: a resumed study must not draw the same points again.

    Raises:
        ConfigError: A value that the sampler does not accept, or a study that it cannot serve.
        DependencyError: A package that the sampler needs is not installed.
    """
    node = as_node(config)
    name = str(node.get("name") or node.get("_target_", "")).rpartition(".")[2]
    # Optuna repeats these at each ask.
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    # Trials over a limit have the worst values: CMA-ES learns from those.
    warnings.filterwarnings("ignore", message="Constraints have been set, but CmaEsSampler")
    random = RandomSampler(seed + n_drawn)
    if name == GRID:
        return SamplerChoice(random, name, True)
    if node.get("seed") is not None:
        raise ConfigError(f"{KEY}.seed", "must be left out: the study's seed is taken")
    target = target_of(node, KEY)
    if target is GridSampler:
        problem = "Optuna's own grid knows nothing of this space: take hydra/sweeper/sampler=grid"
        raise ConfigError(KEY, problem)
    if n_objectives > node.get("max_objectives", n_objectives):
        problem = f"{name} works for one objective, this study has {n_objectives}"
        raise ConfigError(KEY, f"{problem}: take hydra/sweeper/sampler=tpe or nsgaii")
    package = node.get("package")
    if package and importlib.util.find_spec(package) is None:
        way = f"run `pip install {package}`, or take another sampler"
        raise DependencyError(f"{KEY}: {name} needs {package}: {way}")
    arguments: dict[str, Any] = {}
    if target is QMCSampler:
        # One sequence for the study, which is stored in it and continued; random draws must differ.
        arguments = {"seed": seed, "independent_sampler": random}
    elif "seed" in inspect.signature(target).parameters:
        arguments = {"seed": seed + n_drawn}
    sampler = build(node, KEY, **arguments)
    if not isinstance(sampler, BaseSampler):
        problem = f"must be a sampler of Optuna, but got {node._target_}"
        raise ConfigError(f"{KEY}._target_", problem)
    return SamplerChoice(sampler, name, bool(node.get("learns_from_pruned", True)))


def as_node(config: DictConfig | Mapping[str, Any]) -> DictConfig:
    """The config as an OmegaConf node."""
    return config if isinstance(config, DictConfig) else OmegaConf.create(dict(config))


def target_of(node: DictConfig, path: str) -> Any:
    """The object that `_target_` names; ConfigError if there is none that can be imported."""
    if "_target_" not in node:
        raise ConfigError(f"{path}._target_", "must name what is to be built, but is missing")
    try:
        target = hydra.utils.get_object(node._target_)
    except Exception as error:
        raise ConfigError(f"{path}._target_", f"cannot import {node._target_}: {error}") from error
    check_arguments(target, {}, path)  # an error if it has no signature
    return target


def build(node: DictConfig, path: str, **arguments: Any) -> Any:
    """Check a node's arguments and build what its `_target_` names.

    `FACTS` are not passed on; `arguments` replace the node's. ConfigError names the argument below
    `path`.
    """
    skipped = {*FACTS, *arguments}
    plain = {key: value for key, value in resolve(node).items() if key not in skipped}
    check(plain, path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return instantiate(OmegaConf.create(plain), path, **arguments)
    except hydra.errors.InstantiationException as error:
        if isinstance(error.__cause__, TypeError):
            raise ConfigError(path, str(error.__cause__).splitlines()[0]) from error
        raise
