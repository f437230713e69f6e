"""An Optuna study: its definition, which trials count, outcomes told to Optuna, warm start."""

import copy
import difflib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from src.core.errors import UserError
from src.metrics.registry import Limit, Objective, recorded_name
from src.sweep.records import TrialOutcome, violations
from src.sweep.space import Space

_DEFINITION = "definition"
_EXHAUSTED = "exhausted"
# Worse than any usable trial, yet not so far off that a surrogate model sees nothing else: chance
# level of seven classes is a loss of 1.9; metrics that are maximized are fractions or speeds.
_WORST = {"maximize": 0.0, "minimize": 10.0}


@dataclass(frozen=True)
class Definition:
    """What two sessions must have in common for their trials to belong to one study.

    Attributes:
        name: Of the study.
        objectives: In the order of the trials' values.
        limits: Constraints.
        space: From `Space.describe`.
        fixed: Overrides that all trials share, in any order.
    """

    name: str
    objectives: list[Objective]
    limits: list[Limit]
    space: dict[str, Any]
    fixed: list[str]

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        # str(limit) would round its value.
        limits = [f"{each.metric} {each.operator} {each.value!r}" for each in self.limits]
        content = {
            "objectives": [str(objective) for objective in self.objectives],
            "limits": sorted(limits),
            "space": self.space,
            "fixed": sorted(self.fixed),
        }
        return dict(json.loads(json.dumps(content)))


class OwnedStudy(optuna.Study):
    """A study that is asked and told outside of `optimize`."""

    def stop(self) -> None:
        """Called by a sampler that has drawn all cells (brute force)."""
        if not self.exhausted:
            self.set_user_attr(_EXHAUSTED, True)

    @property
    def exhausted(self) -> bool:
        """Whether the sampler has drawn all cells, in this session or an earlier one."""
        return bool(self._storage.get_study_user_attrs(self._study_id).get(_EXHAUSTED))


def open_study(
    storage: BaseStorage,
    definition: Definition,
    sampler: optuna.samplers.BaseSampler,
    pruner: optuna.pruners.BasePruner | None,
) -> OwnedStudy:
    """Create the study, or load it and check it against its definition.

    Args:
        storage: From `src.sweep.storage.open_storage`.
        definition: The study that is asked for.
        sampler: Proposes.
        pruner: Of Optuna, for one objective; None: another pruner, or none.

    Raises:
        UserError: The study has another definition, or was not created by this program; the message
            says how to continue.
    """
    name, plain = definition.name, definition.plain()
    directions = [objective.direction for objective in definition.objectives]
    pruner = pruner or optuna.pruners.NopPruner()  # for Optuna None is the median pruner
    try:
        study = OwnedStudy(name, storage, sampler, pruner)
    except KeyError:
        optuna.create_study(storage=storage, study_name=name, directions=directions)
        study = OwnedStudy(name, storage, sampler, pruner)
    recorded = study.user_attrs.get(_DEFINITION)
    if recorded is None:
        # A scheduler that was killed at once leaves an empty study without a definition.
        same = [direction.name.lower() for direction in study.directions] == directions
        if not same or study.user_attrs or study.get_trials(deepcopy=False):
            way = "take another hydra.sweeper.study_name or hydra.sweeper.storage"
            raise UserError(f"study {name} was not made by this program: {way}")
        study.set_user_attr(_DEFINITION, plain)
    elif differences := _differences(recorded, plain):
        way = "take another hydra.sweeper.study_name"
        if recorded["fixed"] == plain["fixed"]:  # results under other settings do not compare
            way += f", and hydra.sweeper.warm_start={name} to start from its trials"
        problem = f"was started with other settings ({'; '.join(differences)})"
        raise UserError(f"study {name} {problem}: {way}")
    return study


def _differences(recorded: dict[str, Any], new: dict[str, Any]) -> list[str]:
    differences = []
    for key in ("objectives", "limits", "fixed"):
        was = [text for text in recorded[key] if text not in new[key]]
        now = [text for text in new[key] if text not in recorded[key]]
        if recorded[key] != new[key]:
            if not was and not now:  # only the order changed
                was, now = recorded[key], new[key]
            texts = (", ".join(was) or "none", ", ".join(now) or "none")
            differences.append("{}: it has {}, not {}".format(key, *texts))
    if recorded["space"] != new["space"]:
        lines = Space.differences(recorded["space"], new["space"])
        differences += [f"space: {text}" for text in lines] or ["space"]
    return differences


def finished(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that have ended, in whatever state."""
    return [trial for trial in trials if trial.state.is_finished()]


def counted(trials: Iterable[FrozenTrial]) -> int:
    """Number of trials that count towards `n_trials`.

    Not counted: failures that were retried, trials that were stopped with their sweep, copies (from
    another study, or of an equal configuration) and excluded draws.
    """
    trials = list(trials)
    retried = {trial.user_attrs.get("retry_of") for trial in trials}
    count = 0
    for trial in finished(trials):
        kind = trial.user_attrs.get("outcome", {}).get("kind")
        replaced = trial.number in retried or kind == "stopped"
        is_copy = bool({"warm_from", "same_as", "excluded"} & trial.user_attrs.keys())
        count += not is_copy and not (trial.state is TrialState.FAIL and replaced)
    return count


def trial_of(study: optuna.Study, number: int) -> FrozenTrial:
    """A trial by its number, without reading all the others."""
    storage = study._storage
    trial_id = storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
    return storage.get_trial(trial_id)


def outcome_of(trial: FrozenTrial) -> TrialOutcome | None:
    """The outcome that a trial has committed; None before."""
    stored = trial.user_attrs.get("outcome")
    return TrialOutcome(**stored) if stored else None


def needed(objectives: Sequence[Objective], limits: Sequence[Limit]) -> list[str]:
    """The metrics, by recorded names, without which a trial is not complete."""
    metrics = [*(objective.metric for objective in objectives), *(limit.metric for limit in limits)]
    return list(dict.fromkeys(map(recorded_name, metrics)))


def tell(
    study: optuna.Study,
    trial: int | optuna.Trial,
    outcome: TrialOutcome,
    objectives: Sequence[Objective],
    limits: Sequence[Limit],
    learns_from_pruned: bool,
) -> FrozenTrial:
    """Tell Optuna the outcome of a trial; its user attribute `outcome` is the same afterwards.

    complete: COMPLETE, with its values and a constraint for each limit. pruned: PRUNED. fail: FAIL.
    over_limit: PRUNED with constraints if the sampler learns from that; else COMPLETE, where an
    objective that was not measured has the worst value of any complete trial. Constraints are
    relative violations, since samplers add them up; of a limit that was not measured it is 0.

    Args:
        study: From `open_study`.
        trial: The trial, or its number.
        outcome: Becomes a failure if it is inconsistent: complete without a finite value for each
            objective and limit, or over a limit without breaking one.
        objectives: Of the study, in its order.
        limits: Of the study.
        learns_from_pruned: See `src.sweep.samplers.SamplerChoice`.

    Returns:
        The trial as it is now in the study. A trial that was told before is not changed.
    """
    number = trial if isinstance(trial, int) else trial.number
    frozen = trial_of(study, number)
    if frozen.state.is_finished():
        return frozen
    outcome = _consistent(outcome, objectives, limits)
    if frozen.user_attrs.get("outcome") != asdict(outcome):
        study._storage.set_trial_user_attr(frozen._trial_id, "outcome", asdict(outcome))
    state, values = TrialState.COMPLETE, None
    if outcome.state == "complete":
        values = [outcome.metrics[recorded_name(objective.metric)] for objective in objectives]
    elif outcome.state == "over_limit" and not learns_from_pruned:
        positions = range(len(objectives))
        values = [_worst(study, index, objectives[index], limits, outcome) for index in positions]
    else:
        state = TrialState.FAIL if outcome.state == "fail" else TrialState.PRUNED
    if outcome.state in ("complete", "over_limit"):
        # A study with these draws nothing and starts nothing.
        passive = copy.copy(study)
        passive.sampler, passive.pruner = (
            optuna.samplers.RandomSampler(),
            optuna.pruners.NopPruner(),
        )
        handle = optuna.Trial(passive, frozen._trial_id)
        for name, violation in violations(limits, outcome.metrics).items():
            if name not in frozen.constraints:  # a killed scheduler may have set some
                handle.set_constraint(name, violation)
    return study.tell(number, values, state)


def _consistent(
    outcome: TrialOutcome, objectives: Sequence[Objective], limits: Sequence[Limit]
) -> TrialOutcome:
    """The outcome, or the failure that it really is."""
    if outcome.state == "over_limit":
        if max(violations(limits, outcome.metrics).values(), default=0.0) > 0:
            return outcome
        reason = "reported as over a limit, but no metric breaks one"
        return replace(outcome, state="fail", kind="wrong_return", reason=reason)
    for name in needed(objectives, limits) if outcome.state == "complete" else ():
        value = outcome.metrics.get(name)
        if value is None:
            reason = f"{name} was not recorded"
            return replace(outcome, state="fail", kind="wrong_return", reason=reason)
        if not math.isfinite(value):
            return replace(outcome, state="fail", kind="diverged", reason=f"{name} is {value}")
    return outcome


def _worst(
    study: optuna.Study,
    index: int,
    objective: Objective,
    limits: Sequence[Limit],
    outcome: TrialOutcome,
) -> float:
    """The measured value of an objective, else the worst of the complete trials, else a bound."""
    measured = outcome.metrics.get(recorded_name(objective.metric), math.nan)
    if math.isfinite(measured):
        return measured
    values = [
        trial.values[index]
        for trial in study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        if trial.user_attrs.get("outcome", {}).get("state") == "complete"
    ]
    if values:
        return max(values) if objective.direction == "minimize" else min(values)
    bounds = [limit.value for limit in limits if limit.metric == objective.metric]
    return bounds[0] if bounds else _WORST[objective.direction]


def warm_start(
    study: optuna.Study,
    storage: BaseStorage,
    old_name: str,
    objectives: Sequence[Objective],
    limits: Sequence[Limit],
    space: Space,
) -> int:
    """Copy the complete trials of another study that are in this one's space and have its metrics.

    A second call copies the trials that the old study got since.

    Args:
        study: Receives the copies.
        storage: Contains both studies.
        old_name: Name of the other study.
        objectives: Of `study`; values are read from what the old trials recorded.
        limits: Of `study`; checked against what the old trials recorded.
        space: Of `study`.

    Returns:
        Number of copied trials.

    Raises:
        UserError: There is no study of that name, it is this one, or its trials shared other
            settings.
    """
    names = [name for name in optuna.get_all_study_names(storage) if name != study.study_name]
    if old_name not in names:
        close = difflib.get_close_matches(old_name, names, n=3)
        hint = f"did you mean {' or '.join(close)}?"
        if not close:
            hint = f"there are: {', '.join(sorted([*names, study.study_name]))}"
        is_itself = old_name == study.study_name
        problem = "is this study itself" if is_itself else "is no study of this database"
        raise UserError(f"hydra.sweeper.warm_start: {old_name} {problem}; {hint}")
    old = optuna.load_study(study_name=old_name, storage=storage)
    settings = [set(each.user_attrs.get(_DEFINITION, {}).get("fixed", [])) for each in (study, old)]
    if differing := sorted(settings[0] ^ settings[1]):
        problem = f"was trained with other settings ({', '.join(differing[:6])})"
        way = "its results do not compare with this study's"
        raise UserError(f"hydra.sweeper.warm_start: {old_name} {problem}: {way}")
    present = {trial.user_attrs.get("warm_from") for trial in study.get_trials(deepcopy=False)}
    copies = [
        _copy(trial, source, objectives, limits, space)
        for trial in old.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        if (source := f"{old_name}#{trial.number}") not in present
    ]
    trials = [copy_ for copy_ in copies if copy_ is not None]
    study.add_trials(trials)
    return len(trials)


def _copy(
    trial: FrozenTrial,
    source: str,
    objectives: Sequence[Objective],
    limits: Sequence[Limit],
    space: Space,
) -> FrozenTrial | None:
    """A copy of a complete trial for another study; None if it does not belong there."""
    outcome, cell = outcome_of(trial), list(trial.user_attrs.get("cell", []))
    is_copy = bool({"same_as", "excluded"} & trial.user_attrs.keys())
    if is_copy or outcome is None or outcome.state != "complete":
        return None
    values = [outcome.metrics.get(name, math.nan) for name in needed(objectives, limits)]
    params = space.params_of(cell)
    if params is None or not all(map(math.isfinite, values)):
        return None
    drawn = optuna.trial.FixedTrial(params)
    space.suggest(drawn)  # type: ignore[arg-type]
    return optuna.trial.create_trial(
        values=values[: len(objectives)],
        params=drawn.params,
        distributions=drawn.distributions,
        user_attrs={"outcome": asdict(outcome), "cell": cell, "warm_from": source},
        constraints=violations(limits, outcome.metrics),
    )
