"""Which runs a report is about, and what is said when there are none."""

import pandas as pd
import pytest

from src.core.errors import ConfigError, UserError
from src.metrics.registry import Limit, Objective
from src.reporting import collect
from src.tracking.store import Store

STORE = Store(uri="sqlite:////nowhere/mlflow.db", experiment="derm")


def run(
    run_id: str,
    kind: str,
    study: str = "s",
    parent: str | None = None,
    status: str = "FINISHED",
    **more,
) -> dict:
    row = {
        "run_id": run_id,
        "parent_id": parent,
        "status": status,
        "tags.kind": kind,
        "tags.study": study,
    }
    row["end_time"] = pd.Timestamp("2026-11-21T12:00", tz="UTC")
    return row | {"metrics.best/val/balanced_accuracy": 0.5, "metrics.efficiency/flops": 1e6} | more


def study_of_two_seeds() -> pd.DataFrame:
    told = {
        "tags.objectives": "maximize val/auroc; minimize efficiency/params",
        "tags.limits": "efficiency/params <= 5",
    }
    return pd.DataFrame(
        [
            run("parent", "study", **told),
            run("a", "trial", parent="parent"),
            run("a1", "run", parent="a", **{"tags.seed": "10"}),
            run("a0", "run", parent="a", **{"tags.seed": "9"}),
            run("a2", "run", parent="a", status="FAILED", **{"tags.seed": "11"}),
            run("other", "run", study="t"),
        ]
    )


def test_a_study_is_its_trials_its_seeds_and_what_it_was_after() -> None:
    found = collect.study(study_of_two_seeds(), "s", STORE)
    assert list(found.trials["run_id"]) == ["a"]
    assert set(found.seeds["run_id"]) == {"a0", "a1", "a2"}
    assert found.own_objectives == (
        Objective("val/auroc", "maximize"),
        Objective("efficiency/params", "minimize"),
    )
    assert found.own_limits == (Limit("efficiency/params", "<=", 5.0),)
    assert found.run_id == "parent"


def test_the_nets_of_a_trial_are_its_finished_seeds_in_order_of_the_seeds() -> None:
    found = collect.study(study_of_two_seeds(), "s", STORE)
    assert found.runs_of("a") == ["a0", "a1"]


def test_runs_that_share_a_study_tag_without_a_study_run_are_a_study_too() -> None:
    found = collect.study(study_of_two_seeds(), "t", STORE)
    assert (list(found.trials["run_id"]), found.run_id, found.runs_of("other")) == (
        ["other"],
        "",
        ["other"],
    )


def test_an_unknown_study_is_told_with_those_there_are() -> None:
    with pytest.raises(
        UserError, match=r"study=nosuch: no such study in sqlite.*experiment derm.*there are s, t"
    ):
        collect.study(study_of_two_seeds(), "nosuch", STORE)


def test_a_password_of_the_store_is_not_told() -> None:
    store = Store(uri="postgresql://me:secret@127.0.0.1/db")
    with pytest.raises(UserError) as raised:
        collect.study(study_of_two_seeds(), "nosuch", store)
    assert "secret" not in str(raised.value)


def test_a_selection_leaves_out_study_runs_and_seeds_whose_trial_is_there() -> None:
    found = collect.selection(study_of_two_seeds(), "all", STORE)
    assert set(found.trials["run_id"]) == {"a", "other"}
    with pytest.raises(UserError, match="nothing: finds no runs"):
        collect.selection(study_of_two_seeds().iloc[:1], "nothing", STORE)


def test_before_keeps_what_had_ended() -> None:
    found = collect.study(study_of_two_seeds(), "s", STORE)
    assert len(found.before(pd.Timestamp("2026-11-21T12:01", tz="UTC")).trials) == 1
    assert len(found.before(pd.Timestamp("2026-11-21T12:00", tz="UTC")).trials) == 0


def test_objectives_are_the_studys_own_unless_others_are_typed() -> None:
    found = collect.study(
        study_of_two_seeds().assign(
            **{"metrics.best/val/auroc": 0.9, "metrics.efficiency/params": 4.0}
        ),
        "s",
        STORE,
    )
    own, limits, _ = collect.purpose([found], None, None)
    assert own == list(found.own_objectives)
    assert limits == list(found.own_limits)
    typed, none, _ = collect.purpose(
        [found], ["val/balanced_accuracy", {"metric": "efficiency/flops"}], []
    )
    assert typed == [
        Objective("val/balanced_accuracy", "maximize"),
        Objective("efficiency/flops", "minimize"),
    ]
    assert none == []


def test_a_single_objective_gets_a_second_and_says_so() -> None:
    found = collect.selection(study_of_two_seeds(), "all", STORE)
    chosen, _, notes = collect.purpose([found], ["val/balanced_accuracy"], None)
    assert [each.metric for each in chosen] == ["val/balanced_accuracy", "efficiency/flops"]
    assert len(notes) == 1
    assert "efficiency/flops" in notes[0]


@pytest.mark.parametrize(
    ("objectives", "limits", "message"),
    [
        (
            ["val/f1/mel"],
            None,
            r"objectives\[0\]: no run has val/f1/mel; there is val/balanced_accuracy",
        ),
        (["val/acuracy"], None, r"objectives\[0\].*unknown metric"),
        (
            ["test/accuracy"],
            None,
            r"objectives\[0\].*must not be read on the split that is reported",
        ),
        (
            ["efficiency/flops", "efficiency/params"],
            None,
            "objectives: must have one that is no cost",
        ),
        (None, ["val/recall/xyz >= 0.5"], r"limits\[0\]: no run has val/recall/xyz"),
        (None, ["params < 3"], r"limits\[0\]: must be like"),
    ],
)
def test_what_cannot_be_drawn_over_is_one_line(objectives, limits, message: str) -> None:
    found = collect.selection(study_of_two_seeds(), "all", STORE)
    with pytest.raises(ConfigError, match=message):
        collect.purpose([found], objectives, limits)
