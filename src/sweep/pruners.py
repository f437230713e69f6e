"""From a file of `conf/hydra/sweeper/pruner/` to what stops trials that are behind, in the owner and in each trial."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import optuna
from omegaconf import DictConfig
from optuna.pruners import BasePruner

from src.config import check, resolve
from src.errors import ConfigError
from src.sweep.samplers import as_node, build, target_of

if TYPE_CHECKING:
    from src.sweep.rungs import Rungs

KEY = "hydra.sweeper.pruner"
RUNGS = "src.sweep.rungs.Rungs"
_AUTO = "auto"  # where Optuna would wait for a complete trial to know how many epochs there are


def make_pruner(config: DictConfig | Mapping[str, Any], n_objectives: int, max_epochs: int) -> "BasePruner | Rungs":
    """Build the pruner that a config names, checked against the study.

    Args:
        config: `_target_` with its arguments, and `name`.
        n_objectives: Of the study.
        max_epochs: Epochs of a trial that is never stopped; the step of a report is its epoch, from 1.

    Raises:
        ConfigError: A value that the pruner does not take, or a study that it cannot serve.
    """
    pruner = pruner_from_spec(pruner_spec(config, max_epochs))
    if n_objectives > 1 and isinstance(pruner, BasePruner) and not isinstance(pruner, optuna.pruners.NopPruner):
        name = as_node(config).get("name") or type(pruner).__name__
        raise ConfigError(
            KEY, f"{name} works for one objective, this study has {n_objectives}: take hydra/sweeper/pruner=rungs"
        )
    return pruner


def pruner_spec(config: DictConfig | Mapping[str, Any], max_epochs: int | None = None) -> dict[str, Any]:
    """The pruner as plain JSON values, from which every trial's process builds its own.

    Args:
        config: `_target_` with its arguments, and `name`.
        max_epochs: Epochs of a trial that is never stopped; rungs need it.

    Raises:
        ConfigError: There is no such pruner, or a threshold without a bound.
    """
    node = as_node(config)
    target = target_of(node, KEY)
    spec = {key: value for key, value in resolve(node).items() if key != "name"}
    if max_epochs is not None:
        if node._target_ == RUNGS:
            spec["max_epochs"] = max_epochs
        _fill_in(spec, max_epochs)
    _refuse(target, spec)
    return spec


def pruner_from_spec(spec: Mapping[str, Any]) -> "BasePruner | Rungs":
    """The pruner again.

    Args:
        spec: From `pruner_spec`.

    Raises:
        ConfigError: A value that the pruner does not take.
    """
    from src.sweep.rungs import Rungs

    if spec.get("_target_") == RUNGS:
        check(spec, KEY)
        return Rungs(**{key: value for key, value in spec.items() if key != "_target_"})
    pruner = build(as_node(spec), KEY)
    if not isinstance(pruner, BasePruner):
        raise ConfigError(f"{KEY}._target_", f"must be a pruner of Optuna or {RUNGS}, but got {spec['_target_']}")
    return pruner


def _refuse(target: Any, spec: Mapping[str, Any]) -> None:
    """What Optuna would only stumble over in the middle of a study."""
    if target is optuna.pruners.ThresholdPruner and spec.get("lower") is None and spec.get("upper") is None:
        raise ConfigError(f"{KEY}.lower", f"must be a number, or {KEY}.upper must, but both are null")
    if target is optuna.pruners.HyperbandPruner:
        first, last = spec.get("min_resource", 1), spec.get("max_resource", _AUTO)
        if isinstance(first, int) and first < 1:
            raise ConfigError(f"{KEY}.min_resource", f"must be at least 1, but got {first}")
        if isinstance(first, int) and isinstance(last, int) and last < first:
            raise ConfigError(f"{KEY}.max_resource", f"must be at least min_resource ({first}), but got {last}")
        factor = spec.get("reduction_factor", 3)
        if isinstance(factor, int) and factor < 2:
            raise ConfigError(f"{KEY}.reduction_factor", f"must be at least 2, but got {factor}")


def _fill_in(spec: dict[str, Any], max_epochs: int) -> None:
    if spec.get("max_resource") == _AUTO:
        spec["max_resource"] = max_epochs
    for part in spec.values():
        if isinstance(part, dict):
            _fill_in(part, max_epochs)
