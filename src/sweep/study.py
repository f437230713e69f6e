"""Definition, counting, telling Optuna, warm start."""

import copy
import difflib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from src.core.errors import UserError
from src.metrics.registry import Limit, Objective, recorded_name
from src.sweep.records import TrialOutcome, violations

_DEFINITION = "definition"
_EXHAUSTED = "exhausted"
# Worse than what a usable trial has, yet not so far off that a surrogate model sees nothing else:
# chance level of seven classes is a loss of 1.9, and the metrics that are maximized are fractions
# or speeds.
_WORST = {"maximize": 0.0, "minimize": 10.0}


@dataclass(frozen=True)
class Definition:
    """What must stay the same for trials of two sittings to belong to one study.

    Attributes:
        name: Of the study.
        objectives: In the order of the trials' values.
        limits: What a trial has to keep.
        space: What is searched, as plain JSON values.
        fixed: Overrides that all trials share; their order means nothing.
    """

    name: str
    objectives: list[Objective]
    limits: list[Limit]
    space: dict[str, Any]
    fixed: list[str]

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        content = {
            "objectives": [str(objective) for objective in self.objectives],
            # not as the limit writes itself, which rounds
            "limits": sorted(
                f"{limit.metric} {limit.operator} {limit.value!r}" for limit in self.limits
            ),
            "space": self.space,
            "fixed": sorted(self.fixed),
        }
        return dict(json.loads(json.dumps(content)))


class OwnedStudy(optuna.Study):
    """A study that is asked and told outside `optimize`: a sampler that has nothing left says so by `exhausted`."""

    def stop(self) -> None:
        """Called by a sampler that has drawn all there is (brute force)."""
        if not self.exhausted:
            self.set_user_attr(_EXHAUSTED, True)

    @property
    def exhausted(self) -> bool:
        """Whether the sampler has drawn all there is, in this sitting or in an earlier one."""
        return bool(self._storage.get_study_user_attrs(self._study_id).get(_EXHAUSTED))


def open_study(
    storage: BaseStorage,
    definition: Definition,
    sampler: optuna.samplers.BaseSampler,
    pruner: optuna.pruners.BasePruner | None,
    differences: Callable[[dict[str, Any], dict[str, Any]], list[str]],
) -> OwnedStudy:
    """The study of that name; made if there is none, checked against its definition if there is one.

    Args:
        storage: From `src.sweep.storage.open_storage`.
        definition: What the study is about to be asked for.
        sampler: Proposes.
        pruner: For one objective; None where trials are pruned by other means or not at all.
        differences: Says in words how two spaces (the recorded one, the new one) differ.

    Raises:
        UserError: The study is defined otherwise, or was not made here; the message says how to go
            on.
    """
    directions = [objective.direction for objective in definition.objectives]
    pruner = pruner or optuna.pruners.NopPruner()  # for Optuna None is the median pruner
    try:
        study = OwnedStudy(definition.name, storage, sampler, pruner)
    except KeyError:
        optuna.create_study(storage=storage, study_name=definition.name, directions=directions)
        study = OwnedStudy(definition.name, storage, sampler, pruner)
    recorded = study.user_attrs.get(_DEFINITION)
    if recorded is None:
        # an owner that was killed at once leaves an empty study without a definition
        same = [direction.name.lower() for direction in study.directions] == directions
        if not same or study.user_attrs or study.get_trials(deepcopy=False):
            raise UserError(
                f"study {definition.name} was not made by this program: take another hydra.sweeper.study_name or "
                "hydra.sweeper.storage"
            )
        study.set_user_attr(_DEFINITION, definition.plain())
    elif found := _differences(recorded, definition.plain(), differences):
        raise UserError(
            f"study {definition.name} was started with other settings ({'; '.join(found)}): take another "
            f"hydra.sweeper.study_name{_warm_hint(recorded, definition)}"
        )
    return study


def _warm_hint(recorded: dict[str, Any], definition: Definition) -> str:
    if recorded["fixed"] != definition.plain()["fixed"]:
        return ""  # results under other settings do not compare
    return f", and hydra.sweeper.warm_start={definition.name} to start from its trials"


def finished(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that have come to an end, whichever."""
    return [trial for trial in trials if trial.state.is_finished()]


def orphans(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that Optuna believes to run; before the first ask of a sitting nobody runs them."""
    return [trial for trial in trials if trial.state is TrialState.RUNNING]


def counted(trials: Iterable[FrozenTrial]) -> int:
    """How many trials count towards `n_trials`.

    That is those that ended, but for failures that another trial repeats, trials that were stopped
    with their sweep, copies (from another study, or of an equal configuration), and excluded draws.
    """
    every = list(trials)
    repeated = {trial.user_attrs.get("retry_of") for trial in every}
    return sum(
        not {"warm_from", "same_as", "excluded"} & trial.user_attrs.keys()
        and not (
            trial.state is TrialState.FAIL
            and (trial.number in repeated or _kind(trial) == "stopped")
        )
        for trial in finished(every)
    )


def tell(
    study: optuna.Study,
    trial: int | optuna.Trial,
    outcome: TrialOutcome,
    objectives: Sequence[Objective],
    limits: Sequence[Limit],
    learns_from_pruned: bool,
) -> FrozenTrial:
    """Tell Optuna what a trial came to; the user attribute `outcome` says the same afterwards.

    Complete: COMPLETE, with its values and a constraint for each limit. Pruned: PRUNED. Failed:
        FAIL. Over a limit:
    PRUNED with constraints if the sampler learns from that, else COMPLETE, what was not measured
    standing at the worst value that any complete trial has. Constraints hold the violation as a
    share of the limit's value, since samplers add them up whatever their units; a limit that was
    not measured is neither kept nor broken: 0.

    Args:
        study: From `open_study`.
        trial: The trial, or its number.
        outcome: Turned into a failure where it cannot be true: complete without a finite value for
            each objective and limit, or over a limit without breaking one.
        objectives: Of the study, in its order.
        limits: Of the study.
        learns_from_pruned: Whether the sampler learns from pruned trials, see `src.sweep.samplers`.

    Returns:
        The trial as it now stands in the study. One that had been told before is left as it was.
    """
    number = trial if isinstance(trial, int) else trial.number
    frozen = trial_of(study, number)
    if frozen.state.is_finished():
        return frozen
    outcome = _possible(outcome, objectives, limits)
    if frozen.user_attrs.get("outcome") != asdict(outcome):
        study._storage.set_trial_user_attr(frozen._trial_id, "outcome", asdict(outcome))
    state, values = TrialState.COMPLETE, None
    if outcome.state == "complete":
        values = [outcome.metrics[recorded_name(objective.metric)] for objective in objectives]
    elif outcome.state == "over_limit" and not learns_from_pruned:
        values = [
            _worst(study, position, objectives, limits, outcome)
            for position in range(len(objectives))
        ]
    else:
        state = TrialState.FAIL if outcome.state == "fail" else TrialState.PRUNED
    if outcome.state in ("complete", "over_limit"):
        _set_constraints(study, frozen, violations(limits, outcome.metrics))
    return study.tell(number, values, state)


def trial_of(study: optuna.Study, number: int) -> FrozenTrial:
    """A trial by its number, without reading all the others."""
    return study._storage.get_trial(
        study._storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
    )


def outcome_of(trial: FrozenTrial) -> TrialOutcome | None:
    """What a trial has committed; None before."""
    found = trial.user_attrs.get("outcome")
    return TrialOutcome(**found) if found else None


def needed(objectives: Sequence[Objective], limits: Sequence[Limit]) -> list[str]:
    """The metrics, by recorded names, without which a trial is not complete."""
    metrics = [*(objective.metric for objective in objectives), *(limit.metric for limit in limits)]
    return list(dict.fromkeys(map(recorded_name, metrics)))


def _differences(
    recorded: dict[str, Any],
    new: dict[str, Any],
    differences: Callable[[dict[str, Any], dict[str, Any]], list[str]],
) -> list[str]:
    found = []
    for key in ("objectives", "limits", "fixed"):
        gone = [text for text in recorded[key] if text not in new[key]]
        come = [text for text in new[key] if text not in recorded[key]]
        if recorded[key] != new[key]:
            was, now = (
                (gone, come) if gone or come else (recorded[key], new[key])
            )  # or else only the order changed
            found.append(
                f"{key}: it has {', '.join(was) or 'none'}, not {', '.join(now) or 'none'}"
            )
    if recorded["space"] != new["space"]:
        found += [f"space: {text}" for text in differences(recorded["space"], new["space"])] or [
            "space"
        ]
    return found


def _possible(
    outcome: TrialOutcome, objectives: Sequence[Objective], limits: Sequence[Limit]
) -> TrialOutcome:
    """The outcome, or the failure that it really is."""
    if (
        outcome.state == "over_limit"
        and max(violations(limits, outcome.metrics).values(), default=0.0) <= 0
    ):
        return replace(
            outcome,
            state="fail",
            kind="wrong_return",
            reason="over a limit, but no metric breaks one",
        )
    if outcome.state != "complete":
        return outcome
    for name in needed(objectives, limits):
        if name not in outcome.metrics:
            return replace(
                outcome, state="fail", kind="wrong_return", reason=f"{name} was not recorded"
            )
        if not math.isfinite(outcome.metrics[name]):
            return replace(
                outcome, state="fail", kind="diverged", reason=f"{name} is {outcome.metrics[name]}"
            )
    return outcome


def _set_constraints(study: optuna.Study, frozen: FrozenTrial, values: Mapping[str, float]) -> None:
    # with samplers of its own the handle draws nothing and starts nothing
    quiet = copy.copy(study)
    quiet.sampler, quiet.pruner = optuna.samplers.RandomSampler(), optuna.pruners.NopPruner()
    handle = optuna.Trial(quiet, frozen._trial_id)
    for name, value in values.items():
        if name not in frozen.constraints:  # an owner that was killed while it told has set some
            handle.set_constraint(name, value)


def _worst(
    study: optuna.Study,
    position: int,
    objectives: Sequence[Objective],
    limits: Sequence[Limit],
    outcome: TrialOutcome,
) -> float:
    """The measured value of an objective, else the worst among the complete trials; without any see `_WORST`."""
    objective = objectives[position]
    measured = outcome.metrics.get(recorded_name(objective.metric), math.nan)
    if math.isfinite(measured):
        return measured
    complete = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    told = [
        trial.values[position]
        for trial in complete
        if trial.user_attrs.get("outcome", {}).get("state") == "complete"
    ]
    if told:
        return max(told) if objective.direction == "minimize" else min(told)
    bounds = [limit.value for limit in limits if limit.metric == objective.metric]
    return bounds[0] if bounds else _WORST[objective.direction]


def _kind(trial: FrozenTrial) -> str:
    return str(trial.user_attrs.get("outcome", {}).get("kind", ""))


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
        params_of: From a trial's overrides to parameters of the new space; None where they lie
            outside.
        suggest: Draws the new space's parameters from a trial (an `optuna.trial.FixedTrial` here).

    Returns:
        How many were copied.

    Raises:
        UserError: There is no study of that name, it is this one, or its trials shared other
            settings.
    """
    names = optuna.get_all_study_names(storage)
    if old_name not in names or old_name == study.study_name:
        close = difflib.get_close_matches(
            old_name, [name for name in names if name != study.study_name], n=3
        )
        hint = (
            f"did you mean {' or '.join(close)}?"
            if close
            else f"there are: {', '.join(sorted(names)) or 'none'}"
        )
        problem = (
            "is this study itself"
            if old_name == study.study_name
            else "is no study of this database"
        )
        raise UserError(f"hydra.sweeper.warm_start: {old_name} {problem}; {hint}")
    old = optuna.Study(
        old_name, storage, optuna.samplers.RandomSampler(), optuna.pruners.NopPruner()
    )
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
