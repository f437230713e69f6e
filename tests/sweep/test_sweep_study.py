"""The definition of a study, which trials count, outcomes told to Optuna, warm start."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import sqlalchemy
from optuna.distributions import FloatDistribution
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import TrialState, create_trial
from optuna_dashboard import get_note, save_note

from src.core.errors import UserError
from src.metrics import pareto
from src.metrics.registry import Limit, Objective
from src.sweep import space as spaces
from src.sweep.records import CELL, OUTCOME, TrialOutcome, needed, violations
from src.sweep.space import Space
from src.sweep.storage import default_url, open_storage
from src.sweep.study import OwnedStudy, counted, open_study, save_notes, tell, warm_start

ACCURACY = Objective("val/accuracy", "maximize")
FLOPS = Objective("efficiency/flops", "minimize")
LOSS = Objective("val/loss", "minimize")
PARAMS = Limit("efficiency/params", "<=", 1000)
RECALL = Limit("val/recall/mel", ">=", 0.8)
AXES = [ACCURACY, FLOPS]
DEFINITION = {"objectives": AXES, "limits": [PARAMS], "fixed": ["data=synthetic", "seed=1"]}
GOOD = {
    "best/val/accuracy": 0.9,
    "efficiency/flops": 5e6,
    "efficiency/params": 600.0,
    "best/val/recall/mel": 0.6,
}


@pytest.fixture
def storage() -> BaseStorage:
    return InMemoryStorage()


def space_of(*arguments: str, conditions: Any = None, exclude: Any = ()) -> Space:
    return spaces.parse(arguments, {}, conditions or {}, [], exclude)[0]


SPACE = space_of("width=range(8,33,8)")


def opened(storage: BaseStorage, name: str = "first", **changes: Any) -> OwnedStudy:
    sampler = optuna.samplers.RandomSampler(0)
    contents: dict[str, Any] = {**DEFINITION, "space": SPACE, **changes}
    return open_study(storage, name, sampler=sampler, **contents)


def tell_outcome(
    study: OwnedStudy, outcome: TrialOutcome, learns_from_pruned: bool = True
) -> optuna.trial.FrozenTrial:
    trial = study.ask({"x": FloatDistribution(0, 1)})
    study._storage.set_trial_system_attr(trial._trial_id, OUTCOME, asdict(outcome))
    study.learns_from_pruned = learns_from_pruned
    return tell(study, trial, outcome)


def test_the_same_definition_continues(tmp_path: Path) -> None:
    url = default_url(tmp_path)
    study = opened(open_storage(url))
    assert isinstance(study.pruner, optuna.pruners.NopPruner)
    study.ask()
    resumed = opened(open_storage(url), fixed=["seed=1", "data=synthetic"])
    assert len(resumed.trials) == 1
    assert [direction.name for direction in resumed.directions] == ["MAXIMIZE", "MINIMIZE"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"objectives": [Objective("val/accuracy", "minimize"), FLOPS]},
            r"it has maximize best/val/accuracy, not minimize best/val/accuracy\)",
        ),
        (
            {"objectives": [FLOPS, ACCURACY]},
            "objectives: it has maximize best/val/accuracy, minimize efficiency/flops, not",
        ),
        ({"objectives": [ACCURACY]}, "objectives: it has minimize efficiency/flops, not none"),
        ({"limits": []}, "limits: it has efficiency/params <= 1000, not none"),
        (
            {"limits": [Limit("efficiency/params", "<=", 1000.0001)]},
            "limits: it has .*<= 1000, not .*<= 1000.0001",
        ),
        ({"space": space_of()}, r"\(width: was range\(8,40,8\), is no longer swept"),
        (
            {"fixed": ["seed=1", "data=ham10000"]},
            r"fixed: it has data=synthetic, not data=ham10000\)",
        ),
        (
            {"limits": [], "fixed": []},
            "limits: .*; fixed: it has data=synthetic, seed=1, not none",
        ),
    ],
)
def test_another_definition_is_refused(
    storage: BaseStorage, changes: dict[str, Any], message: str
) -> None:
    opened(storage)
    with pytest.raises(UserError, match=message) as caught:
        opened(storage, **changes)
    ways_out = "take another hydra.sweeper.study_name"
    if "fixed" not in changes:  # results under other settings do not compare
        ways_out += ", and hydra.sweeper.warm_start=first to start from its trials"
    assert str(caught.value).endswith(ways_out)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "rest", "problem"),
    [
        (["w=8,16", "b=1,2"], {}, ""),
        (
            ["w=8,16,32", "c=1,2", "b=1,2"],
            {},
            "w: was choice(8,16), is choice(8,16,32); c: was not swept, is choice(1,2)",
        ),
        (["w=8,16"], {}, "b: was choice(1,2), is no longer swept"),
        (["b=1,2", "w=8,16"], {}, "order: it has w, b, not b, w"),
        (["w=8,16", "b=1,2"], {"exclude": ["w=8 b=1"]}, "newly excluded: w=8 b=1"),
        (["w=8,16", "+b=1,2"], {}, "b: was choice(1,2), is choice(1,2) as +b"),
        (
            ["w=8,16"],
            {"conditions": {"w=8": {"b": "1,2"}}},
            "b: was choice(1,2), is choice(1,2) when w=8",
        ),
    ],
)
def test_another_space_is_refused(
    storage: BaseStorage, arguments: list[str], rest: dict[str, Any], problem: str
) -> None:
    opened(storage, space=space_of("w=choice(8,16)", "b=1,2"))
    space = space_of(*arguments, **rest)
    if problem:
        with pytest.raises(UserError) as caught:
            opened(storage, space=space)
        assert f"({problem})" in str(caught.value)
    else:
        opened(storage, space=space)


@pytest.mark.parametrize("content", ["nothing", "a trial", "a definition of another version"])
def test_only_an_empty_study_without_a_definition_is_taken_over(
    storage: BaseStorage, content: str
) -> None:
    directions = ["maximize", "minimize"]
    study = optuna.create_study(storage=storage, study_name="first", directions=directions)
    if content == "a trial":
        study.ask()
    elif content != "nothing":
        study.set_user_attr("definition", {"fixed": DEFINITION["fixed"], "space": {}})
    if content != "nothing":
        problem = "first was not made by this version of the program: take another"
        with pytest.raises(UserError, match=problem):
            opened(storage)
    else:  # of a killed scheduler
        opened(storage).ask()
        assert len(opened(storage).trials) == 1


OVER = TrialOutcome("over_limit", metrics={"efficiency/params": 3000.0, "efficiency/flops": 9e6})


@pytest.mark.parametrize(
    ("outcome", "limits", "state", "values", "constraints"),
    [
        (
            TrialOutcome("complete", metrics=GOOD, epoch=3),
            [PARAMS],
            TrialState.COMPLETE,
            [0.9, 5e6],
            {"efficiency/params <= 1000": -0.4},
        ),
        (
            TrialOutcome("complete", metrics=GOOD),
            [PARAMS, RECALL],
            TrialState.COMPLETE,
            [0.9, 5e6],
            # 0.2 of 0.8 are missing: infeasible
            {"efficiency/params <= 1000": -0.4, "best/val/recall/mel >= 0.8": 0.25},
        ),
        (
            TrialOutcome("pruned", reason="behind", metrics={"efficiency/flops": 5e6}),
            [PARAMS],
            TrialState.PRUNED,
            None,
            {},
        ),
        (TrialOutcome("fail", "killed", "by signal 9"), [PARAMS], TrialState.FAIL, None, {}),
        (
            OVER,
            [PARAMS, RECALL],
            TrialState.PRUNED,
            None,
            {"efficiency/params <= 1000": 2.0, "best/val/recall/mel >= 0.8": 0.0},
        ),
    ],
)
def test_outcomes_are_told_to_optuna(
    tmp_path: Path,
    outcome: TrialOutcome,
    limits: list[Limit],
    state: TrialState,
    values: list[float] | None,
    constraints: dict[str, float],
) -> None:
    study = opened(open_storage(default_url(tmp_path)), limits=limits)
    trial = tell(study, study.ask().number, outcome)
    assert (trial.state, trial.values) == (state, values)
    assert trial.constraints == pytest.approx(constraints)
    assert trial.system_attrs[OUTCOME] == asdict(outcome)


def test_a_trial_over_a_limit_has_the_worst_values(storage: BaseStorage) -> None:
    study = opened(storage)
    first = tell_outcome(study, OVER, learns_from_pruned=False)
    assert (first.state, first.values) == (TrialState.COMPLETE, [0.0, 9e6])  # no other trial
    for accuracy in (0.7, 0.5, 0.9):
        tell_outcome(
            study, TrialOutcome("complete", metrics=GOOD | {"best/val/accuracy": accuracy})
        )
    second = tell_outcome(study, OVER, learns_from_pruned=False)
    assert second.values == [0.5, 9e6]
    assert second.constraints == {"efficiency/params <= 1000": 2.0}


@pytest.mark.parametrize(
    ("limits", "losses", "expected"),
    [
        ((PARAMS,), [], 10.0),
        ((PARAMS,), [0.3, 0.8], 0.8),
        ((PARAMS, Limit("val/loss", "<=", 2.5)), [], 2.5),
    ],
)
def test_worst_value_of_a_minimized_objective(
    storage: BaseStorage, limits: tuple[Limit, ...], losses: list[float], expected: float
) -> None:
    study = opened(storage, objectives=[LOSS], limits=limits)
    for loss in losses:
        tell_outcome(study, TrialOutcome("complete", metrics=GOOD | {"best/val/loss": loss}))
    over = TrialOutcome("over_limit", metrics={"efficiency/params": 3000.0})
    assert tell_outcome(study, over, False).values == [expected]


@pytest.mark.parametrize(
    ("state", "metrics", "kind", "reason"),
    [
        (
            "complete",
            GOOD | {"best/val/accuracy": math.nan},
            "diverged",
            "best/val/accuracy is nan",
        ),
        ("complete", GOOD | {"efficiency/flops": math.inf}, "diverged", "efficiency/flops is inf"),
        ("complete", GOOD | {"efficiency/params": math.nan}, "diverged", "params is nan"),
        (
            "complete",
            {"val/accuracy": 0.9, "efficiency/flops": 1.0},
            "wrong_return",
            "no best/val/accuracy",
        ),
        (
            "complete",
            {"best/val/accuracy": 0.9, "efficiency/flops": 1.0},
            "wrong_return",
            "no efficiency/params",
        ),
        ("over_limit", GOOD, "wrong_return", "no metric breaks one"),
    ],
)
def test_an_inconsistent_outcome_is_a_failure(
    storage: BaseStorage, state: Any, metrics: dict[str, float], kind: str, reason: str
) -> None:
    study = opened(storage)
    trial = tell_outcome(study, TrialOutcome(state, metrics=metrics, run_id="r", epoch=4))
    assert trial.state is TrialState.FAIL
    stored = study.get_trials(deepcopy=False)[trial.number].system_attrs[OUTCOME]
    assert (stored["state"], stored["kind"]) == ("fail", kind)
    assert reason in stored["reason"]
    assert (stored["run_id"], stored["epoch"]) == ("r", 4)


def test_a_trial_is_told_once(storage: BaseStorage) -> None:
    study = opened(storage)
    first = tell_outcome(study, TrialOutcome("complete", metrics=GOOD))
    second = tell(study, first.number, TrialOutcome("fail", "killed"))
    assert (second.state, second.values, second.user_attrs) == (
        TrialState.COMPLETE,
        first.values,
        first.user_attrs,
    )
    assert len(study.trials) == 1


def test_optunas_own_tools_show_names_figures_and_the_front(storage: BaseStorage) -> None:
    study = opened(storage, limits=[PARAMS, RECALL])
    draws = np.random.default_rng(0).uniform([0, 1, 800, 0.7], [1, 9, 1200, 1.0], (40, 4))
    names = [ACCURACY.metric, FLOPS.metric, PARAMS.metric, RECALL.metric]
    for draw in draws:
        metrics = dict(zip(names, draw.tolist(), strict=True))
        tell_outcome(study, TrialOutcome("complete", metrics=metrics))
    tell_outcome(study, OVER)
    tell_outcome(study, TrialOutcome("fail", "killed", "killed by signal 9", run_id="r"))
    values, keeps = draws[:, :2].copy(), (draws[:, 2] <= 1000) & (draws[:, 3] >= 0.8)
    values[~keeps] = math.nan
    members = np.flatnonzero(pareto.front(values, AXES))
    assert 1 < len(members) < keeps.sum() < len(draws)
    assert [trial.number for trial in study.best_trials] == members.tolist()
    figure = optuna.visualization.plot_pareto_front(study)
    infeasible, _, best = figure.data
    assert list(zip(best.x, best.y, strict=True)) == list(map(tuple, values[members]))
    assert len(infeasible.x) == (~keeps).sum()
    axes = (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text)
    assert axes == (ACCURACY.metric, FLOPS.metric)
    table = study.trials_dataframe()
    assert table[f"values_{ACCURACY.metric}"].dropna().tolist() == draws[:, 0].tolist()
    attributes = table.filter(like="user_attrs_")
    for name, column in zip(names, draws.T, strict=True):
        assert attributes[f"user_attrs_{name}"][: len(draws)].tolist() == column.tolist()
    assert attributes["user_attrs_reason"].dropna().tolist() == ["killed by signal 9"]
    assert not attributes.map(lambda cell: isinstance(cell, dict | list)).any(axis=None)


def test_the_dashboard_has_the_notes_and_others_stay(storage: BaseStorage) -> None:
    study = opened(storage)
    trials = [optuna.Trial(study, study.ask()._trial_id) for _ in range(4)]
    save_notes(study, {0: "first", 1: "x" * 3000, 2: "third"})
    save_note(trials[0], "mine")
    assert [get_note(trial) for trial in trials] == ["mine", "x" * 2045, "third", ""]
    for _ in range(2):
        save_notes(study, {0: "changed", 2: "third", 3: "fourth"})
        assert [get_note(trial) for trial in trials] == ["mine", "", "third", "fourth"]


def test_an_interrupted_tell_is_completed(
    storage: BaseStorage, recwarn: pytest.WarningsRecorder
) -> None:
    study = opened(storage)
    trial = study.ask()
    trial.set_constraint("efficiency/params <= 1000", -0.4)  # where the scheduler was killed
    outcome = TrialOutcome("complete", metrics=GOOD)
    assert tell(study, trial, outcome).values == [0.9, 5e6]
    assert [str(warning.message) for warning in recwarn] == []


@pytest.mark.parametrize("limit", [PARAMS, RECALL, Limit("efficiency/flops", ">=", 0)])
@pytest.mark.parametrize("measured", [-1e9, -1.0, 0.0, 0.79, 0.8, 1.0, 1000.0, 1000.1, 1e9])
def test_violation_is_positive_where_the_limit_is_broken(limit: Limit, measured: float) -> None:
    (name,) = needed([], [limit])
    (violation,) = violations([limit], {name: measured}).values()
    assert (violation > 0) == (not limit.holds(measured))


def trial_with(
    state: TrialState, outcome: TrialOutcome | None = None, **attributes: Any
) -> optuna.trial.FrozenTrial:
    return create_trial(
        state=state,
        value=1.0 if state is TrialState.COMPLETE else None,
        user_attrs=attributes,
        system_attrs={OUTCOME: asdict(outcome)} if outcome else {},
    )


def test_what_counts_and_what_does_not() -> None:
    study = optuna.create_study()
    counting = [
        trial_with(TrialState.COMPLETE),  # 0
        trial_with(TrialState.PRUNED),
        trial_with(TrialState.FAIL),  # 2: given up
        trial_with(TrialState.COMPLETE, retry_of=5),
    ]
    others = [
        trial_with(TrialState.RUNNING),  # 4
        trial_with(TrialState.FAIL),  # 5: retried by 3
        trial_with(TrialState.FAIL),  # 6: its retry waits
        trial_with(TrialState.WAITING, retry_of=6),
        trial_with(TrialState.FAIL),  # 8: gone on with by 9
        trial_with(TrialState.RUNNING, retry_of=8),
        trial_with(TrialState.FAIL, TrialOutcome("fail", "stopped")),
        trial_with(TrialState.COMPLETE, warm_from="old#1"),
        trial_with(TrialState.COMPLETE, same_as=0),
        trial_with(TrialState.PRUNED, excluded="width > 32"),
    ]
    study.add_trials(counting + others)
    trials = study.get_trials(deepcopy=False)
    assert counted(trials) == len(counting)
    assert counted(iter(trials)) == 4


@pytest.fixture
def old_and_new(storage: BaseStorage) -> tuple[OwnedStudy, OwnedStudy]:
    """A study with trials of all kinds, and an empty one with one objective."""
    old = opened(storage, name="old")
    for width, metrics in [
        (8, GOOD),
        (16, GOOD | {"best/val/accuracy": 0.8, "efficiency/params": 2000.0}),
        (64, GOOD),  # not in the new space
        (32, {"best/val/accuracy": 0.7, "efficiency/flops": 1.0, "efficiency/params": 1.0}),
    ]:
        complete(old, width, metrics)
    tell_outcome(old, TrialOutcome("fail", "error", "no"))
    tell_outcome(old, OVER, learns_from_pruned=False)
    same = old.ask()
    same.set_user_attr("same_as", 0)
    old.tell(same, [0.9, 5e6])
    return old, opened(storage, name="new", objectives=[ACCURACY])


def complete(study: OwnedStudy, width: int, metrics: dict[str, float]) -> None:
    trial = study.ask()
    study._storage.set_trial_system_attr(trial._trial_id, CELL, [f"width={width}"])
    tell(study, trial, TrialOutcome("complete", metrics=metrics))


def test_a_warm_start_copies_what_lies_in_the_new_space(
    old_and_new: tuple[OwnedStudy, OwnedStudy],
) -> None:
    old, new = old_and_new
    assert warm_start(new, "old") == 3
    trials = new.trials
    assert [trial.params for trial in trials] == [{"width": 8}, {"width": 16}, {"width": 32}]
    assert [trial.values for trial in trials] == [[0.9], [0.8], [0.7]]
    assert [trial.user_attrs["warm_from"] for trial in trials] == ["old#0", "old#1", "old#3"]
    assert trials[1].constraints == {"efficiency/params <= 1000": 1.0}
    assert trials[0].system_attrs[CELL] == ["width=8"]
    assert trials[0].system_attrs[OUTCOME]["metrics"] == GOOD
    assert counted(trials) == 0
    # The sampler learns from the copies.
    new.sampler = optuna.samplers.TPESampler(n_startup_trials=3, seed=0)
    assert SPACE.suggest(new.ask()).params["width"] in (8, 16, 24, 32)
    assert new.best_trial.params == {"width": 8}
    # A second call copies what is new.
    assert warm_start(new, "old") == 0
    complete(old, 24, GOOD)
    assert warm_start(new, "old") == 1
    assert len(new.trials) == 3 + 1 + 1


@pytest.mark.usefixtures("old_and_new")
def test_a_warm_start_copies_only_what_has_the_new_metrics(storage: BaseStorage) -> None:
    new = opened(storage, name="newer", objectives=[ACCURACY], limits=[RECALL])
    assert warm_start(new, "old") == 2  # the last one recorded no recall
    assert new.trials[0].constraints == {"best/val/recall/mel >= 0.8": pytest.approx(0.25)}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("odl", "did you mean old?"),
        ("xyz", "there are: new, old"),
        ("new", "is this study itself"),
        ("set", "set was trained with other settings (data=ham10000, data=synthetic)"),
    ],
)
def test_a_study_that_cannot_be_copied_is_reported(
    storage: BaseStorage, old_and_new: tuple[OwnedStudy, OwnedStudy], name: str, message: str
) -> None:
    if name == "set":
        opened(storage, name="set", fixed=["seed=1", "data=ham10000"])
    with pytest.raises(UserError, match="hydra.sweeper.warm_start: ") as caught:
        warm_start(old_and_new[1], name)
    assert message in str(caught.value)


def test_finished_trials_are_read_once(tmp_path: Path) -> None:
    """Statements, not seconds: finished trials come from memory."""
    storage = open_storage(default_url(tmp_path))
    study = opened(storage)
    study.add_trials(
        [create_trial(values=[1.0, 2.0], system_attrs={CELL: ["a"]}) for _ in range(60)]
    )
    counted(study.get_trials(deepcopy=False))
    statements: list[str] = []

    def keep(connection: object, cursor: object, statement: str, *rest: object) -> None:
        statements.append(statement)

    sqlalchemy.event.listen(storage._backend.engine, "before_cursor_execute", keep)  # type: ignore[attr-defined]
    assert counted(study.get_trials(deepcopy=False)) == 60
    assert len(statements) <= 2
