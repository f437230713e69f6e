"""An Optuna study: its definition, which trials count, outcomes told to Optuna, warm start."""

import copy
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import NopPruner
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from src.core.errors import DivergedError, UserError, closest
from src.metrics.registry import COSTS, MELANOMA, Limit, Objective, default_quality_metrics
from src.sweep import records
from src.sweep.records import TrialOutcome, needed, outcome_of, violations
from src.sweep.space import Space

_DEFINITION = "definition"
_EXHAUSTED = "exhausted"
_NOTES = "paretoderm:notes"  # system attribute with the notes that `save_notes` wrote
_NOTE_LENGTH = 2045  # of optuna-dashboard: it would divide a longer note
# Figures of the terminal's table; user attributes of a trial besides its objectives and limits.
_SHOWN = [*(f"best/val/{name}" for name in default_quality_metrics(MELANOMA[:1])), *COSTS]
# Worse than any usable trial, yet not so far off that a surrogate model sees nothing else: chance
# level of seven classes is a loss of 1.9; metrics that are maximized are fractions or speeds.
_WORST = {"maximize": 0.0, "minimize": 10.0}


class OwnedStudy(optuna.Study):
    """A study that is asked and told outside of `optimize`; see `open_study`."""

    objectives: Sequence[Objective]
    limits: Sequence[Limit]
    space: Space
    learns_from_pruned: bool = True  # its sampler, see `src.sweep.samplers.SamplerChoice`

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
    name: str,
    objectives: Sequence[Objective],
    limits: Sequence[Limit],
    space: Space,
    fixed: Sequence[str],
    sampler: optuna.samplers.BaseSampler,
    pruner: optuna.pruners.BasePruner | None = None,
) -> OwnedStudy:
    """Create the study, or load it and check that it has the same definition.

    Args:
        storage: From `src.sweep.storage.open_storage`.
        name: Of the study.
        objectives: In the order of the trials' values.
        limits: Constraints, in any order.
        space: The search space.
        fixed: Overrides that all trials share, in any order.
        sampler: Proposes.
        pruner: Of Optuna, for one objective; None: another pruner, or none.

    Raises:
        UserError: The study has another definition, or was not created by this program; the message
            says how to continue.
    """
    directions = [objective.direction for objective in objectives]
    definition = {
        "objectives": [str(objective) for objective in objectives],
        # str(limit) would round its value.
        "limits": sorted(f"{item.metric} {item.operator} {item.value!r}" for item in limits),
        "fixed": sorted(fixed),
        **space.describe(),
    }
    pruner = pruner or NopPruner()  # for Optuna None is the median pruner
    try:
        study = OwnedStudy(name, storage, sampler, pruner)
    except KeyError:
        # It exists if the answer to a first attempt was lost.
        optuna.create_study(
            storage=storage, study_name=name, directions=directions, load_if_exists=True
        )
        study = OwnedStudy(name, storage, sampler, pruner)
    study.objectives, study.limits, study.space = objectives, limits, space
    recorded = study.user_attrs.get(_DEFINITION)
    if recorded is None or recorded.keys() != definition.keys():
        # A scheduler that was killed at once leaves an empty study without a definition.
        same = [direction.name.lower() for direction in study.directions] == directions
        if not same or study.user_attrs or study.get_trials(deepcopy=False):
            way = "take another hydra.sweeper.study_name or hydra.sweeper.storage"
            raise UserError(f"study {name} was not made by this version of the program: {way}")
        with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
            study.set_metric_names([objective.metric for objective in objectives])
        study.set_user_attr(_DEFINITION, definition)
    elif differences := _differences(recorded, definition):
        way = "take another hydra.sweeper.study_name"
        if recorded["fixed"] == definition["fixed"]:  # results under other settings do not compare
            way += f", and hydra.sweeper.warm_start={name} to start from its trials"
        problem = f"was started with other settings ({'; '.join(differences)})"
        raise UserError(f"study {name} {problem}: {way}")
    return study


def _differences(recorded: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    before, after = recorded["parameters"], new["parameters"]
    lines = [
        f"{name}: was {before.get(name, 'not swept')}, is {after.get(name, 'no longer swept')}"
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    ]
    for label, first, other in (("no longer", recorded, new), ("newly", new, recorded)):
        texts = [text for text in first["exclude"] if text not in other["exclude"]]
        lines += [f"{label} excluded: {text}" for text in texts]
    for key in ("objectives", "limits", "fixed", *([] if lines else ["order"])):
        was = [text for text in recorded[key] if text not in new[key]]
        now = [text for text in new[key] if text not in recorded[key]]
        if recorded[key] != new[key]:
            if not was and not now:  # only the order changed
                was, now = recorded[key], new[key]
            texts = [", ".join(side) or "none" for side in (was, now)]
            lines.append("{}: it has {}, not {}".format(key, *texts))
    return lines


def counted(trials: Iterable[FrozenTrial]) -> int:
    """Number of trials that count towards `n_trials`.

    Not counted: failures that were retried, trials that were stopped with their sweep, copies (from
    another study, or of an equal configuration) and excluded draws.
    """
    trials = list(trials)
    retried = {trial.user_attrs.get("retry_of") for trial in trials}
    count = 0
    for trial in trials:
        outcome = outcome_of(trial)
        replaced = trial.number in retried or (outcome and outcome.kind == "stopped")
        is_copy = bool({"warm_from", "same_as", "excluded"} & trial.user_attrs.keys())
        is_final = trial.state is not TrialState.FAIL or not replaced
        count += trial.state.is_finished() and is_final and not is_copy
    return count


def trial_of(study: optuna.Study, number: int) -> FrozenTrial:
    """A trial by its number, without reading all the others."""
    storage = study._storage
    trial_id = storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
    return storage.get_trial(trial_id)


def tell(study: OwnedStudy, trial: int | optuna.Trial, outcome: TrialOutcome) -> FrozenTrial:
    """Tell Optuna the outcome of a trial, and add `readable` user attributes.

    complete: COMPLETE, with its values and a constraint for each limit. pruned: PRUNED. fail: FAIL.
    over_limit: PRUNED with constraints if the sampler learns from that; else COMPLETE, where an
    objective that was not measured has the worst value of any complete trial. Constraints are
    relative violations, since samplers add them up; of a limit that was not measured it is 0.

    Args:
        study: From `open_study`.
        trial: The trial, or its number.
        outcome: Becomes a failure if it is inconsistent: complete without a finite value for each
            objective and limit, or over a limit without breaking one.

    Returns:
        The trial as it is now in the study. A trial that was told before is not changed.
    """
    number = trial if isinstance(trial, int) else trial.number
    frozen = trial_of(study, number)
    if frozen.state.is_finished():
        return frozen
    outcome = _consistent(study, outcome)
    if outcome_of(frozen) != outcome:
        study._storage.set_trial_system_attr(frozen._trial_id, records.OUTCOME, asdict(outcome))
    for name, value in readable(study, outcome).items():
        study._storage.set_trial_user_attr(frozen._trial_id, name, value)
    state, values = TrialState.COMPLETE, None
    if outcome.state == "complete":
        values = [outcome.metrics[item.metric] for item in study.objectives]
    elif outcome.state == "over_limit" and not study.learns_from_pruned:
        values = [_worst(study, index, outcome) for index in range(len(study.objectives))]
    else:
        state = TrialState.FAIL if outcome.state == "fail" else TrialState.PRUNED
    if outcome.state in ("complete", "over_limit"):
        # A study with these draws nothing and starts nothing.
        passive = copy.copy(study)
        passive.sampler, passive.pruner = optuna.samplers.RandomSampler(), NopPruner()
        handle = optuna.Trial(passive, frozen._trial_id)
        for name, violation in violations(study.limits, outcome.metrics).items():
            if name not in frozen.constraints:  # a killed scheduler may have set some
                handle.set_constraint(name, violation)
    return study.tell(number, values, state)


def save_notes(study: optuna.Study, notes: Mapping[int, str]) -> None:
    """Give trials, by their numbers, the notes in Markdown that optuna-dashboard shows.

    They take the place of those of an earlier call. A note that somebody has edited stays.
    """
    storage, study_id = study._storage, study._study_id
    attributes = storage.get_study_system_attrs(study_id)
    earlier = attributes.get(_NOTES, {})
    for number in dict.fromkeys([*notes, *map(int, earlier)]):
        trial = storage.get_trial_id_from_study_id_trial_number(study_id, number)
        # as optuna_dashboard.save_note writes them, which is not installed everywhere
        version, body = (f"dashboard:{trial}:note_{key}" for key in ("ver", "str:0"))
        note = notes.get(number, "")[:_NOTE_LENGTH]
        if attributes.get(body, "") == earlier.get(str(number), "") != note:
            storage.set_study_system_attr(study_id, version, attributes.get(version, 0) + 1)
            storage.set_study_system_attr(study_id, body, note)
    saved = {str(number): note[:_NOTE_LENGTH] for number, note in notes.items()}
    storage.set_study_system_attr(study_id, _NOTES, saved)


def readable(study: OwnedStudy, outcome: TrialOutcome) -> dict[str, str | float]:
    """User attributes for tables and dashboards: why a trial ended early, and its figures."""
    names = dict.fromkeys([*needed(study.objectives, study.limits), *_SHOWN])
    figures = {name: outcome.metrics[name] for name in names if name in outcome.metrics}
    return figures | ({"reason": outcome.reason} if outcome.reason else {})


def _consistent(study: OwnedStudy, outcome: TrialOutcome) -> TrialOutcome:
    """The outcome, or the failure that it really is."""
    try:
        if outcome.state == "complete":
            records.check_complete(outcome.metrics, needed(study.objectives, study.limits))
        excess = violations(study.limits, outcome.metrics).values()
        if outcome.state == "over_limit" and max(excess, default=0.0) <= 0:
            raise records.WrongReturnError("reported as over a limit, but no metric breaks one")
    except (DivergedError, records.WrongReturnError) as error:
        kind, reason = records.classify(error)
        return replace(outcome, state="fail", kind=kind, reason=reason)
    return outcome


def _worst(study: OwnedStudy, index: int, outcome: TrialOutcome) -> float:
    """The measured value of an objective, else the worst of the complete trials, else a bound."""
    objective = study.objectives[index]
    measured = outcome.metrics.get(objective.metric, math.nan)
    if math.isfinite(measured):
        return measured
    values = [
        trial.values[index]
        for trial in study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        if (stored := outcome_of(trial)) and stored.state == "complete"
    ]
    if values:
        return max(values) if objective.direction == "minimize" else min(values)
    bounds = (limit.value for limit in study.limits if limit.metric == objective.metric)
    return next(bounds, _WORST[objective.direction])


def warm_start(study: OwnedStudy, old_name: str) -> int:
    """Copy the complete trials of another study that are in this one's space and have its metrics.

    The other study is in the same storage. Values and constraints are computed from what its trials
    recorded. A second call copies the trials that it got since.

    Returns:
        Number of copied trials.

    Raises:
        UserError: There is no study of that name, it is this one, or its trials shared other
            settings.
    """
    key, storage = "hydra.sweeper.warm_start", study._storage
    names = [name for name in optuna.get_all_study_names(storage) if name != study.study_name]
    if old_name not in names:
        hint = closest(old_name, names, count=3)
        hint = hint or f"; there are: {', '.join(sorted([*names, study.study_name]))}"
        is_itself = old_name == study.study_name
        problem = "is this study itself" if is_itself else "is no study of this database"
        raise UserError(f"{key}: {old_name} {problem}{hint}")
    old = optuna.load_study(study_name=old_name, storage=storage)
    new_fixed, old_fixed = (
        set(item.user_attrs.get(_DEFINITION, {}).get("fixed", [])) for item in (study, old)
    )
    if differing := sorted(new_fixed ^ old_fixed):
        problem = f"was trained with other settings ({', '.join(differing[:6])})"
        way = "its results do not compare with this study's"
        raise UserError(f"{key}: {old_name} {problem}: {way}")
    copied = {trial.user_attrs.get("warm_from") for trial in study.get_trials(deepcopy=False)}
    trials = []
    for trial in old.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
        source = f"{old_name}#{trial.number}"
        if source not in copied:
            trials += _copies(study, trial, source)
    study.add_trials(trials)
    return len(trials)


def _copies(study: OwnedStudy, trial: FrozenTrial, source: str) -> list[FrozenTrial]:
    """A copy of a complete trial for the study; none if the trial does not belong there."""
    outcome, cell = outcome_of(trial), list(trial.system_attrs.get(records.CELL, []))
    is_copy = bool({"same_as", "excluded"} & trial.user_attrs.keys())
    if is_copy or outcome is None or outcome.state != "complete":
        return []
    required = needed(study.objectives, study.limits)
    values = [outcome.metrics.get(name, math.nan) for name in required]
    params = study.space.params_of(cell)
    if params is None or not all(map(math.isfinite, values)):
        return []
    domains = {parameter.name: parameter.domain for parameter in study.space.parameters}
    copied = optuna.trial.create_trial(
        values=values[: len(study.objectives)],
        params=params,
        distributions={name: domains[name].distribution for name in params},
        user_attrs={**readable(study, outcome), "warm_from": source},
        system_attrs={records.OUTCOME: asdict(outcome), records.CELL: cell},
        constraints=violations(study.limits, outcome.metrics),
    )
    return [copied]
