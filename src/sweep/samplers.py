"""From a file of `conf/hydra/sweeper/sampler/` to what proposes the trials of a study."""

import importlib.util
import inspect
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import hydra.utils
import optuna
from omegaconf import DictConfig, OmegaConf
from optuna.samplers import BaseSampler

from src.core.config import check, instantiate, resolve
from src.core.errors import ConfigError, DependencyError

KEY = "hydra.sweeper.sampler"
GRID = "grid"  # is ours: the cells are enqueued in order
# These learn from complete trials only; to every other a trial over a limit is told as pruned, with
# constraints.
_COMPLETE_ONLY = (
    optuna.samplers.NSGAIISampler,
    optuna.samplers.NSGAIIISampler,
    optuna.samplers.GPSampler,
    optuna.samplers.CmaEsSampler,
)
_ONE_OBJECTIVE = (optuna.samplers.CmaEsSampler,)
_PACKAGES = {
    optuna.samplers.CmaEsSampler: "cmaes"
}  # imported by Optuna only in the middle of a study
_TYPES: dict[str, Any] = {
    "int": int,
    "float": (int, float),
    "bool": bool,
    "str": str,
    "None": type(None),
}


@dataclass(frozen=True)
class SamplerChoice:
    """A sampler and what the owner of a study has to know of it.

    Attributes:
        sampler: Proposes; for a grid it is only there because Optuna wants one.
        name: For people.
        learns_from_pruned: Whether trials over a limit are to be told as pruned.
        is_grid: Whether the space's cells are enqueued in order instead.
    """

    sampler: BaseSampler
    name: str
    learns_from_pruned: bool
    is_grid: bool


def make_sampler(
    config: DictConfig | Mapping[str, Any], seed: int, n_objectives: int, n_finished: int
) -> SamplerChoice:
    """Build the sampler that a config names.

    Args:
        config: `_target_` with its arguments, and `name`; a grid needs the name alone.
        seed: Of the study. With one worker it makes the study reproducible.
        n_objectives: Of the study.
        n_finished: Trials that the study has: a resumed study must not draw the same points again.

    Raises:
        ConfigError: A value that the sampler does not take, or a study that it cannot serve.
        DependencyError: A package that the sampler needs is not installed.
    """
    node = as_node(config)
    name = str(node.get("name") or node.get("_target_", "")).rpartition(".")[2]
    _silence()
    if name == GRID:
        return SamplerChoice(optuna.samplers.RandomSampler(seed + n_finished), name, True, True)
    if node.get("seed") is not None:
        raise ConfigError(f"{KEY}.seed", "must be left out: the study's seed is taken")
    target = target_of(node, KEY)
    given: dict[str, Any] = {}
    if target is optuna.samplers.QMCSampler:
        # one sequence for the whole study, which is kept in it and goes on; but what it leaves to
        # chance must not recur
        given = {
            "seed": seed,
            "independent_sampler": optuna.samplers.RandomSampler(seed + n_finished),
        }
    elif "seed" in inspect.signature(target).parameters:
        given = {"seed": seed + n_finished}
    _refuse(target, name, n_objectives)
    sampler = build(node, KEY, **given)
    if not isinstance(sampler, BaseSampler):
        raise ConfigError(
            f"{KEY}._target_", f"must be a sampler of Optuna, but got {node._target_}"
        )
    return SamplerChoice(sampler, name, not isinstance(sampler, _COMPLETE_ONLY), False)


def _silence() -> None:
    """Switch off, for the process, what Optuna would repeat at each ask and says nothing to a user."""
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    # trials over a limit have the worst values: CMA-ES learns from those
    warnings.filterwarnings("ignore", message="Constraints have been set, but CmaEsSampler")


def as_node(config: DictConfig | Mapping[str, Any]) -> DictConfig:
    """A config as a node, whether it comes from Hydra or is plain."""
    return config if isinstance(config, DictConfig) else OmegaConf.create(dict(config))


def target_of(node: DictConfig, path: str) -> Any:
    """What `_target_` names.

    Raises:
        ConfigError: Nothing, or something that is not there.
    """
    if "_target_" not in node:
        raise ConfigError(f"{path}._target_", "must name what is to be built, but is missing")
    try:
        return hydra.utils.get_object(node._target_)
    except Exception as error:
        raise ConfigError(f"{path}._target_", f"cannot import {node._target_}: {error}") from error


def build(node: DictConfig, path: str, **given: Any) -> Any:
    """Check a node's arguments and build it; its `name` is for people.

    Raises:
        ConfigError: The message names the argument.
    """
    plain = {
        key: value for key, value in resolve(node).items() if key != "name" and key not in given
    }
    check(plain, path)
    _check_annotations(plain, path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return instantiate(OmegaConf.create(plain), path, **given)
    except hydra.errors.InstantiationException as error:
        if isinstance(error.__cause__, TypeError):
            raise ConfigError(path, str(error.__cause__).splitlines()[0]) from error
        raise


def _check_annotations(config: Mapping[str, Any], path: str) -> None:
    """Hold values against annotations such as `int | None`, which Optuna's modules keep as texts."""
    parameters = inspect.signature(hydra.utils.get_object(config["_target_"])).parameters
    for key, value in config.items():
        if isinstance(value, Mapping) and "_target_" in value:
            _check_annotations(value, f"{path}.{key}")
        elif key in parameters:
            names = re.findall(r"\w+", str(parameters[key].annotation))
            takes_texts = "str" not in names or isinstance(parameters[key].default, str)
            known = [name for name in names if name in _TYPES]
            right = any(isinstance(value, _TYPES[name]) for name in known)
            if isinstance(value, bool):
                right = "bool" in known
            if names and len(known) == len(names) and takes_texts and not right:
                raise ConfigError(
                    f"{path}.{key}", f"must be {' or '.join(known)}, but got {value!r}"
                )


def _refuse(target: Any, name: str, n_objectives: int) -> None:
    if target is optuna.samplers.GridSampler:
        raise ConfigError(
            KEY, "Optuna's own grid knows nothing of this space: take hydra/sweeper/sampler=grid"
        )
    if target in _ONE_OBJECTIVE and n_objectives > 1:
        raise ConfigError(
            KEY,
            f"{name} works for one objective, this study has {n_objectives}: take hydra/sweeper/sampler=tpe or nsgaii",
        )
    package = _PACKAGES.get(target)
    if package and importlib.util.find_spec(package) is None:
        raise DependencyError(
            f"{KEY}: {name} needs {package}: run `pip install {package}`, or take another sampler"
        )
