"""The definition of a study, which trials count, outcomes told to Optuna, warm start."""

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import TrialState, create_trial

from src.core.errors import UserError
from src.metrics.registry import Limit, Objective
from src.sweep.records import TrialOutcome, violations
from src.sweep.storage import default_url, open_storage
from src.sweep.study import (
    Definition,
    OwnedStudy,
    counted,
    finished,
    needed,
    open_study,
    tell,
    warm_start,
)

ACCURACY = Objective("val/accuracy", "maximize")
FLOPS = Objective("efficiency/flops", "minimize")
LOSS = Objective("val/loss", "minimize")
PARAMS = Limit("efficiency/params", "<=", 1000)
RECALL = Limit("val/recall/mel", ">=", 0.8)
DEFINITION = Definition(
    "mine",
    [ACCURACY, FLOPS],
    [PARAMS],
    {"parameters": {"width": "range(8,64)"}, "order": ["width"], "exclude": []},
    ["data=synthetic", "seed=1"],
)
GOOD = {
    "best/val/accuracy": 0.9,
    "efficiency/flops": 5e6,
    "efficiency/params": 600.0,
    "best/val/recall/mel": 0.6,
}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return default_url(tmp_path_factory.mktemp("studies"))


@pytest.fixture
def storage(database: str) -> BaseStorage:
    """A real database, without the studies of earlier tests."""
    opened = open_storage(database)
    for study in opened.get_all_studies():
        opened.delete_study(study._study_id)
    return opened


def opened(storage: BaseStorage, **changes: Any) -> OwnedStudy:
    definition = replace(DEFINITION, **changes)
    return open_study(storage, definition, optuna.samplers.RandomSampler(0), None)


def tell_outcome(
    study: optuna.Study,
    outcome: TrialOutcome,
    learns_from_pruned: bool = True,
    objectives: list[Objective] | None = None,
    limits: list[Limit] | None = None,
) -> optuna.trial.FrozenTrial:
    trial = study.ask({"x": FloatDistribution(0, 1)})
    trial.set_user_attr("outcome", asdict(outcome))
    return tell(
        study,
        trial,
        outcome,
        objectives or [ACCURACY, FLOPS],
        [PARAMS] if limits is None else limits,
        learns_from_pruned,
    )


class TestOpening:
    def test_the_same_definition_continues(self, storage: BaseStorage, database: str) -> None:
        opened(storage).ask()
        again = opened(open_storage(database), fixed=["seed=1", "data=synthetic"])
        assert len(again.trials) == 1
        assert [direction.name for direction in again.directions] == ["MAXIMIZE", "MINIMIZE"]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"objectives": [Objective("val/accuracy", "minimize"), FLOPS]},
                r"objectives: it has maximize val/accuracy, not minimize val/accuracy\)",
            ),
            (
                {"objectives": [FLOPS, ACCURACY]},
                "objectives: it has maximize val/accuracy, minimize efficiency/flops, not",
            ),
            ({"objectives": [ACCURACY]}, "objectives: it has minimize efficiency/flops, not none"),
            ({"limits": []}, "limits: it has efficiency/params <= 1000, not none"),
            (
                {"limits": [Limit("efficiency/params", "<=", 1000.0001)]},
                "limits: it has .*<= 1000, not .*<= 1000.0001",
            ),
            (
                {"space": {"parameters": {}, "order": [], "exclude": []}},
                r"space: width: was range\(8,64\), is no longer swept",
            ),
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
        self, storage: BaseStorage, changes: dict[str, Any], message: str
    ) -> None:
        opened(storage)
        with pytest.raises(UserError, match=message) as caught:
            opened(storage, **changes)
        message = str(caught.value)
        ways_out = "take another hydra.sweeper.study_name"
        if "fixed" not in changes:  # results under other settings do not compare
            ways_out += ", and hydra.sweeper.warm_start=mine to start from its trials"
        assert message.endswith(ways_out)
        assert "\n" not in message

    def test_study_of_another_program_is_refused(self, storage: BaseStorage) -> None:
        optuna.create_study(
            storage=storage, study_name="mine", directions=["maximize", "minimize"]
        ).ask()
        with pytest.raises(
            UserError, match="study mine was not made by this program: take another"
        ):
            opened(storage)

    def test_an_empty_study_of_a_killed_scheduler_is_taken_over(self, storage: BaseStorage) -> None:
        optuna.create_study(storage=storage, study_name="mine", directions=["maximize", "minimize"])
        opened(storage).ask()
        assert len(opened(storage).trials) == 1

    def test_without_a_pruner_nothing_is_pruned(self, storage: BaseStorage) -> None:
        assert isinstance(opened(storage).pruner, optuna.pruners.NopPruner)


class TestTelling:
    def test_complete(self, storage: BaseStorage) -> None:
        trial = tell_outcome(opened(storage), TrialOutcome("complete", metrics=GOOD, epoch=3))
        assert (trial.state, trial.values) == (TrialState.COMPLETE, [0.9, 5e6])
        assert trial.constraints == {"efficiency/params <= 1000": pytest.approx(-0.4)}

    def test_complete_that_breaks_a_limit_is_infeasible(self, storage: BaseStorage) -> None:
        trial = tell_outcome(
            opened(storage), TrialOutcome("complete", metrics=GOOD), limits=[PARAMS, RECALL]
        )
        assert trial.constraints["val/recall/mel >= 0.8"] == pytest.approx(
            0.25
        )  # 0.2 of 0.8 are missing
        assert trial.values == [0.9, 5e6]

    def test_pruned(self, storage: BaseStorage) -> None:
        trial = tell_outcome(
            opened(storage),
            TrialOutcome("pruned", reason="behind", metrics={"efficiency/flops": 5e6}),
        )
        assert (trial.state, trial.values, trial.constraints) == (TrialState.PRUNED, None, {})

    def test_failed(self, storage: BaseStorage) -> None:
        outcome = TrialOutcome("fail", "killed", "killed by signal 9 (SIGKILL)")
        study = opened(storage)
        trial = tell(study, study.ask().number, outcome, [ACCURACY, FLOPS], [PARAMS], True)
        assert (trial.state, trial.values) == (TrialState.FAIL, None)
        assert trial.user_attrs["outcome"] == asdict(outcome)  # the trial itself could not store it

    def test_over_a_limit_as_pruned(self, storage: BaseStorage) -> None:
        cost = {"efficiency/params": 3000.0, "efficiency/flops": 9e6}
        trial = tell_outcome(
            opened(storage), TrialOutcome("over_limit", metrics=cost), limits=[PARAMS, RECALL]
        )
        assert (trial.state, trial.values) == (TrialState.PRUNED, None)
        assert trial.constraints == {"efficiency/params <= 1000": 2.0, "val/recall/mel >= 0.8": 0.0}

    def test_over_a_limit_with_the_worst_values(self, storage: BaseStorage) -> None:
        study = opened(storage)
        over = TrialOutcome(
            "over_limit", metrics={"efficiency/params": 3000.0, "efficiency/flops": 9e6}
        )
        first = tell_outcome(study, over, learns_from_pruned=False)
        assert (first.state, first.values) == (
            TrialState.COMPLETE,
            [0.0, 9e6],
        )  # nothing to compare with
        for accuracy in (0.7, 0.5, 0.9):
            tell_outcome(
                study, TrialOutcome("complete", metrics=GOOD | {"best/val/accuracy": accuracy})
            )
        second = tell_outcome(study, over, learns_from_pruned=False)
        assert second.values == [0.5, 9e6]
        assert second.constraints == {"efficiency/params <= 1000": 2.0}

    @pytest.mark.parametrize(
        ("objective", "limits", "losses", "expected"),
        [
            (LOSS, [PARAMS], [], 10.0),
            (LOSS, [PARAMS], [0.3, 0.8], 0.8),
            (LOSS, [PARAMS, Limit("val/loss", "<=", 2.5)], [], 2.5),
        ],
    )
    def test_worst_value_of_a_minimized_objective(
        self, objective: Objective, limits: list[Limit], losses: list[float], expected: float
    ) -> None:
        study = opened(InMemoryStorage(), objectives=[objective], limits=limits)
        for loss in losses:
            tell_outcome(
                study,
                TrialOutcome("complete", metrics=GOOD | {"best/val/loss": loss}),
                objectives=[objective],
                limits=limits,
            )
        over = TrialOutcome("over_limit", metrics={"efficiency/params": 3000.0})
        assert tell_outcome(study, over, False, [objective], limits).values == [expected]

    @pytest.mark.parametrize(
        ("metrics", "kind", "reason"),
        [
            (GOOD | {"best/val/accuracy": math.nan}, "diverged", "best/val/accuracy is nan"),
            (GOOD | {"efficiency/flops": math.inf}, "diverged", "efficiency/flops is inf"),
            (GOOD | {"efficiency/params": math.nan}, "diverged", "efficiency/params is nan"),
            (
                {"val/accuracy": 0.9, "efficiency/flops": 1.0},
                "wrong_return",
                "best/val/accuracy was not recorded",
            ),
            (
                {"best/val/accuracy": 0.9, "efficiency/flops": 1.0},
                "wrong_return",
                "efficiency/params was not recorded",
            ),
        ],
    )
    def test_complete_without_its_values_is_a_failure(
        self, storage: BaseStorage, metrics: dict[str, float], kind: str, reason: str
    ) -> None:
        study = opened(storage)
        trial = tell_outcome(study, TrialOutcome("complete", metrics=metrics, run_id="r", epoch=4))
        assert trial.state is TrialState.FAIL
        stored = study.get_trials(deepcopy=False)[trial.number].user_attrs["outcome"]
        assert (stored["state"], stored["kind"], stored["reason"]) == ("fail", kind, reason)
        assert (stored["run_id"], stored["epoch"]) == ("r", 4)

    def test_over_a_limit_without_breaking_one_is_a_failure(self, storage: BaseStorage) -> None:
        trial = tell_outcome(opened(storage), TrialOutcome("over_limit", metrics=GOOD))
        assert (trial.state, trial.user_attrs["outcome"]["kind"]) == (
            TrialState.FAIL,
            "wrong_return",
        )

    def test_telling_again_changes_nothing(self, storage: BaseStorage) -> None:
        study = opened(storage)
        first = tell_outcome(study, TrialOutcome("complete", metrics=GOOD))
        again = tell(
            study, first.number, TrialOutcome("fail", "killed"), [ACCURACY, FLOPS], [PARAMS], True
        )
        assert (again.state, again.values, again.user_attrs) == (
            TrialState.COMPLETE,
            first.values,
            first.user_attrs,
        )
        assert len(study.trials) == 1

    def test_an_interrupted_tell_is_completed(
        self, storage: BaseStorage, recwarn: pytest.WarningsRecorder
    ) -> None:
        study = opened(storage)
        trial = study.ask()
        trial.set_constraint("efficiency/params <= 1000", -0.4)  # where the scheduler was killed
        outcome = TrialOutcome("complete", metrics=GOOD)
        assert tell(study, trial, outcome, [ACCURACY, FLOPS], [PARAMS], True).values == [0.9, 5e6]
        assert [str(warning.message) for warning in recwarn] == []

    @given(
        st.sampled_from([PARAMS, RECALL, Limit("efficiency/flops", ">=", 0)]), st.floats(-1e9, 1e9)
    )
    def test_violation_is_positive_where_the_limit_is_broken(
        self, limit: Limit, measured: float
    ) -> None:
        (name,) = needed([], [limit])
        (violation,) = violations([limit], {name: measured}).values()
        assert (violation > 0) == (not limit.holds(measured))


def trial_with(state: TrialState, **attributes: Any) -> optuna.trial.FrozenTrial:
    return create_trial(
        state=state, value=1.0 if state is TrialState.COMPLETE else None, user_attrs=attributes
    )


def test_what_counts_and_what_does_not() -> None:
    study = optuna.create_study()
    counting = [
        trial_with(TrialState.COMPLETE),  # 0
        trial_with(TrialState.PRUNED),
        trial_with(TrialState.FAIL),  # 2: given up
        trial_with(TrialState.COMPLETE, retry_of=5, continues=["folder"]),
    ]
    others = [
        trial_with(TrialState.RUNNING),  # 4
        trial_with(TrialState.FAIL),  # 5: retried by 3
        trial_with(TrialState.FAIL),  # 6: its retry waits
        trial_with(TrialState.WAITING, retry_of=6),
        trial_with(TrialState.FAIL),  # 8: gone on with by 9
        trial_with(TrialState.RUNNING, retry_of=8, continues=["folder"]),
        trial_with(TrialState.FAIL, outcome={"kind": "stopped"}),
        trial_with(TrialState.COMPLETE, warm_from="old#1"),
        trial_with(TrialState.COMPLETE, same_as=0),
        trial_with(TrialState.PRUNED, excluded="width > 32"),
    ]
    study.add_trials(counting + others)
    trials = study.get_trials(deepcopy=False)
    assert counted(trials) == len(counting)
    assert len(finished(trials)) == 4 + 7
    assert counted(iter(trials)) == 4


class TestWarmStart:
    NEW = {"name": "new", "objectives": [ACCURACY], "limits": [PARAMS], "space": {}}

    def old(self, storage: BaseStorage) -> None:
        old = opened(storage, name="old")
        for width, metrics in [
            (8, GOOD),
            (16, GOOD | {"best/val/accuracy": 0.8, "efficiency/params": 2000.0}),
            (64, GOOD),  # not in the new space
            (32, {"best/val/accuracy": 0.7, "efficiency/flops": 1.0, "efficiency/params": 1.0}),
        ]:
            trial = old.ask({"w": optuna.distributions.IntDistribution(1, 100)})
            trial.set_user_attr("cell", [f"width={width}"])
            tell(old, trial, TrialOutcome("complete", metrics=metrics), [ACCURACY, FLOPS], [], True)
        tell_outcome(old, TrialOutcome("fail", "error", "no"))
        tell_outcome(
            old,
            TrialOutcome("over_limit", metrics={"efficiency/params": 5e3}),
            learns_from_pruned=False,
        )
        same = old.ask()
        same.set_user_attr("same_as", 0)
        old.tell(same, [0.9, 5e6])

    @staticmethod
    def params_of(cell: list[str]) -> dict[str, Any] | None:
        width = int(dict(text.split("=") for text in cell).get("width", 64))
        return {"width": width} if width <= 32 else None

    @staticmethod
    def suggest(trial: Any) -> None:
        trial.suggest_int("width", 8, 32, step=8)

    def start(
        self, study: optuna.Study, storage: BaseStorage, limits: list[Limit], name: str = "old"
    ) -> int:
        return warm_start(study, storage, name, [ACCURACY], limits, self)

    def test_copies_what_lies_in_the_new_space(self, storage: BaseStorage) -> None:
        self.old(storage)
        new = opened(storage, **self.NEW)
        assert self.start(new, storage, [PARAMS]) == 3
        trials = new.trials
        assert [trial.params for trial in trials] == [{"width": 8}, {"width": 16}, {"width": 32}]
        assert [trial.values for trial in trials] == [[0.9], [0.8], [0.7]]
        assert [trial.user_attrs["warm_from"] for trial in trials] == ["old#0", "old#1", "old#3"]
        assert trials[1].constraints == {"efficiency/params <= 1000": 1.0}
        assert trials[0].user_attrs["cell"] == ["width=8"]
        assert trials[0].user_attrs["outcome"]["metrics"] == GOOD
        assert counted(trials) == 0

    def test_copies_only_what_has_the_new_metrics(self, storage: BaseStorage) -> None:
        self.old(storage)
        new = opened(storage, **self.NEW | {"limits": [RECALL]})
        assert self.start(new, storage, [RECALL]) == 2  # the last one recorded no recall
        assert new.trials[0].constraints == {"val/recall/mel >= 0.8": pytest.approx(0.25)}

    def test_second_call_copies_what_is_new(self, storage: BaseStorage) -> None:
        self.old(storage)
        new = opened(storage, **self.NEW)
        self.start(new, storage, [PARAMS])
        assert self.start(new, storage, [PARAMS]) == 0
        old = opened(storage, name="old")
        trial = old.ask()
        trial.set_user_attr("cell", ["width=24"])
        tell(old, trial, TrialOutcome("complete", metrics=GOOD), [ACCURACY, FLOPS], [], True)
        assert self.start(new, storage, [PARAMS]) == 1
        assert len(new.trials) == 4

    def test_sampler_learns_from_the_copies(self, storage: BaseStorage) -> None:
        self.old(storage)
        new = opened(storage, **self.NEW)
        self.start(new, storage, [PARAMS])
        new.sampler = optuna.samplers.TPESampler(n_startup_trials=3, seed=0)
        trial = new.ask()
        self.suggest(trial)
        assert trial.params["width"] in (8, 16, 24, 32)
        assert new.best_trial.params == {"width": 8}

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("odl", "did you mean old?"),
            ("xyz", "there are: new, old"),
            ("new", "is this study itself"),
        ],
    )
    def test_an_unknown_study_is_reported(
        self, storage: BaseStorage, name: str, message: str
    ) -> None:
        self.old(storage)
        new = opened(storage, **self.NEW)
        with pytest.raises(UserError, match="hydra.sweeper.warm_start: ") as caught:
            self.start(new, storage, [PARAMS], name)
        assert message in str(caught.value)


def test_finished_trials_are_read_once(tmp_path: Path) -> None:
    """Statements, not seconds: finished trials come from memory."""
    import sqlalchemy

    storage = open_storage(default_url(tmp_path))
    study = opened(storage)
    study.add_trials(
        [create_trial(values=[1.0, 2.0], user_attrs={"cell": ["a"]}) for _ in range(60)]
    )
    counted(study.get_trials(deepcopy=False))
    statements: list[str] = []

    def keep(connection: object, cursor: object, statement: str, *rest: object) -> None:
        statements.append(statement)

    sqlalchemy.event.listen(storage._backend.engine, "before_cursor_execute", keep)  # type: ignore[attr-defined]
    assert counted(study.get_trials(deepcopy=False)) == 60
    assert len(statements) <= 2
