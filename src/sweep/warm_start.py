"""A new study starts from the trials of an old one, where its space and objectives allow it."""

import difflib
import math
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from src.analysis.comparison import recorded_name
from src.errors import UserError
from src.objectives import Limit, Objective
from src.sweep.constraints import violations
from src.sweep.study import needed


def warm_start(
    study: optuna.Study,
    storage: BaseStorage,
    old_name: str,
    objectives: Sequence[Objective],
    limits: Sequence[Limit],
    params_of: Callable[[list[str]], dict[str, Any] | None],
    suggest: Callable[[Any], Any],
) -> int:
    """Copy the complete trials of another study that lie in this one's space and have its objectives and limits.

    A second call copies what has come to the old study since.

    Args:
        study: Where to.
        storage: That holds both.
        old_name: Name of the other study.
        objectives: Of `study`; values are read again from what the old trials recorded.
        limits: Of `study`; held against what the old trials recorded.
        params_of: From a trial's overrides to parameters of the new space; None where they lie outside.
        suggest: Draws the new space's parameters from a trial (an `optuna.trial.FixedTrial` here).

    Returns:
        How many were copied.

    Raises:
        UserError: There is no study of that name, it is this one, or its trials shared other settings.
    """
    names = optuna.get_all_study_names(storage)
    if old_name not in names or old_name == study.study_name:
        close = difflib.get_close_matches(old_name, [name for name in names if name != study.study_name], n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are: {', '.join(sorted(names)) or 'none'}"
        problem = "is this study itself" if old_name == study.study_name else "is no study of this database"
        raise UserError(f"hydra.sweeper.warm_start: {old_name} {problem}; {hint}")
    old = optuna.Study(old_name, storage, optuna.samplers.RandomSampler(), optuna.pruners.NopPruner())
    ours, theirs = (each.user_attrs.get("definition", {}).get("fixed", []) for each in (study, old))
    if differing := sorted(set(ours) ^ set(theirs)):
        raise UserError(
            f"hydra.sweeper.warm_start: {old_name} was trained with other settings ({', '.join(differing[:6])}): its "
            "results do not compare with this study's"
        )
    there = {trial.user_attrs.get("warm_from") for trial in study.get_trials(deepcopy=False)}
    copied = 0
    for trial in old.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
        source = f"{old_name}#{trial.number}"
        if source in there or {"same_as", "excluded"} & trial.user_attrs.keys():
            continue
        copy_ = _copy(trial, source, objectives, limits, params_of, suggest)
        if copy_ is not None:
            study.add_trial(copy_)
            copied += 1
    return copied


def _copy(
    trial: FrozenTrial,
    source: str,
    objectives: Sequence[Objective],
    limits: Sequence[Limit],
    params_of: Callable[[list[str]], dict[str, Any] | None],
    suggest: Callable[[Any], Any],
) -> FrozenTrial | None:
    recorded = trial.user_attrs.get("outcome")
    if not recorded or recorded["state"] != "complete":
        return None
    metrics = recorded["metrics"]
    if not all(math.isfinite(metrics.get(name, math.nan)) for name in needed(objectives, limits)):
        return None
    cell = list(trial.user_attrs.get("cell", []))
    params = params_of(cell)
    if params is None:
        return None
    drawn = optuna.trial.FixedTrial(params)
    suggest(drawn)
    return optuna.trial.create_trial(
        values=[metrics[recorded_name(objective.metric)] for objective in objectives],
        params=drawn.params,
        distributions=drawn.distributions,
        user_attrs={"outcome": recorded, "cell": cell, "warm_from": source},
        constraints=violations(limits, metrics),
    )
