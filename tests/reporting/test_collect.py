"""Which runs a report is about, their table, and the command that trains a trial again."""

import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up import QUALITY as ACCURACY
from made_up import make_report, with_compressed

from src.core.errors import ConfigError, UserError
from src.metrics.pareto import Scale
from src.metrics.registry import Limit, Objective
from src.reporting import collect
from src.reporting.collect import StudyRuns, retrain
from src.tracking.store import Store

STORE = Store(uri="sqlite:////nowhere/mlflow.db", experiment="derm")
FLOPS = "efficiency/flops"
FLOPS_OBJECTIVES = [Objective("val/balanced_accuracy", "maximize"), Objective(FLOPS, "minimize")]


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


QUALITY, COST = Objective("val/accuracy", "maximize"), Objective("efficiency/params", "minimize")
OBJECTIVES = [QUALITY, COST]


def trial(
    number: int, accuracy: float, params: float, status: str = "FINISHED", state: str = "complete"
) -> dict:
    return {
        "run_id": f"run{number}",
        "parent_id": "parent",
        "status": status,
        "end_time": pd.Timestamp("2026-11-21", tz="UTC") + pd.Timedelta(minutes=number),
        "tags.model": "custom",
        "tags.trial": str(number),
        "tags.trial_state": state,
        "metrics.best/val/accuracy": accuracy,
        "metrics.efficiency/params": params,
    }


def study_of(*trials: dict, name: str = "s") -> StudyRuns:
    return StudyRuns(name, "parent", pd.DataFrame(list(trials)), pd.DataFrame())


TRIALS = [
    trial(0, 0.5, 4),
    trial(1, 0.9, 8),  # front
    trial(2, 0.9, 9),  # dominated by 1 alone
    trial(3, 0.6, 4),  # front
    trial(4, np.nan, 1, state="pruned"),
    trial(5, np.nan, 1, status="FAILED", state="fail"),
    trial(6, np.nan, 2),  # finished, but without the metric
]


def ranked(given: StudyRuns, limits: list[Limit] | None = None) -> pd.DataFrame:
    table = collect.compared(given, OBJECTIVES, limits or [])
    return collect.rank(
        table, OBJECTIVES, Scale.fit(collect.values_of(table, OBJECTIVES), OBJECTIVES)
    )[0]


def test_every_trial_has_its_state_and_those_with_a_result_their_rank() -> None:
    table = ranked(study_of(*TRIALS)).set_index("run_id")
    assert table["state"].to_dict() == {
        "run0": "dominated",
        "run1": "front",
        "run2": "dominated",
        "run3": "front",
        "run4": "pruned",
        "run5": "failed",
        "run6": "no value",
    }
    assert table["rank"].dropna().to_dict() == {"run1": 0, "run2": 1, "run3": 0, "run0": 1}
    assert table.loc["run3", "label"] == "custom #3"


def test_a_trial_over_a_limit_is_ranked_nowhere() -> None:
    table = ranked(study_of(*TRIALS), [Limit("efficiency/params", "<=", 8.0)]).set_index("run_id")
    assert table.loc["run2", "state"] == "over limit"
    assert np.isnan(table.loc["run2", "rank"])


def test_labels_are_unique_though_two_trials_share_model_and_number() -> None:
    table = collect.compared(
        study_of(trial(0, 0.5, 4), trial(0, 0.6, 4) | {"run_id": "other"}), OBJECTIVES, []
    )
    assert table["label"].is_unique


def test_the_hypervolume_over_time_never_falls_and_ends_at_the_fronts() -> None:
    given = study_of(*TRIALS)
    table = collect.compared(given, OBJECTIVES, [])
    scale = Scale.fit(collect.values_of(table, OBJECTIVES), OBJECTIVES)
    progress = collect.progress(table, OBJECTIVES, scale)
    assert list(progress["trials"]) == [1, 2, 3, 4, 5, 6, 7]
    assert (progress["hypervolume"].diff().dropna() >= 0).all()
    # accuracy 0.5 to 0.9 and 4 to 9 parameters (no factor of ten: linear) become 0 to 1; reference
    # 1.1 in both. run3 is (0.75, 0), run1 (0, 0.8): 0.35 x 1.1 + 0.75 x 0.3 = 0.61, of 1.1 x 1.1
    assert progress["hypervolume"].iloc[-1] == pytest.approx(0.61 / 1.21)


def test_new_points_are_those_that_no_other_front_covers() -> None:
    one = study_of(trial(0, 0.5, 4), trial(1, 0.9, 8))
    two = study_of(trial(0, 0.5, 4), trial(1, 0.8, 8), trial(2, 0.4, 1), name="t")
    tables = [ranked(one), ranked(two)]
    scale = Scale.fit(
        np.vstack([collect.values_of(each, OBJECTIVES) for each in tables]), OBJECTIVES
    )
    found = collect.comparison(tables, OBJECTIVES, scale)
    assert list(found["new_points"]) == [1, 1]  # 0.9 with 8; 0.4 with 1. (0.5, 4) is on both
    assert list(found["new"]) == ["custom #1", "custom #2"]
    assert list(found["front"]) == [2, 3]
    assert list(found["best best/val/accuracy"]) == [0.9, 0.8]
    assert list(found["best efficiency/params"]) == [4, 1]


def test_a_study_in_which_nothing_has_a_value_has_no_front() -> None:
    table = ranked(study_of(trial(0, np.nan, 4), trial(1, np.nan, 5)))
    assert not table["front"].any()
    assert not table["knee"].any()


def test_costs_are_those_that_any_trial_has() -> None:
    table = ranked(study_of(*TRIALS))
    assert collect.costs_of(table, OBJECTIVES) == ["efficiency/params"]
    assert collect.quality_of(OBJECTIVES) == "best/val/accuracy"
    throughput = Objective("efficiency/throughput", "maximize")
    assert collect.quality_of([throughput, Objective("val/loss", "minimize")]) == "best/val/loss"


def recorded_study(
    sweeps: str = "pareto", fixed: str | None = "", run_id: str = "parent"
) -> StudyRuns:
    return StudyRuns(
        "s", run_id, pd.DataFrame(), pd.DataFrame(), sweeps=sweeps, fixed_overrides=fixed
    )


def recorded_trial(overrides: str, parent: str | None = "parent") -> pd.Series:
    return pd.Series({"tags.overrides": overrides, "tags.seed": "3", "parent_id": parent})


def test_a_trial_of_a_sweeps_file_is_its_file_what_all_shared_and_its_cell() -> None:
    fixed = shlex.join(["data=ham10000", "repeats=3", "model.net.dense=[8, 4]", "seed=1"])
    command = retrain(
        recorded_study(fixed=fixed), recorded_trial("model.net.dense=[128, 64] loss=focal"), None
    )
    assert shlex.split(command) == [
        *["python", "-m", "src.train", "sweeps=pareto", "hydra.mode=RUN", "data=ham10000"],
        *[
            "model.net.dense=[8, 4]",
            "model.net.dense=[128, 64]",
            "loss=focal",
            "repeats=1",
            "seed=3",
        ],
    ]


def test_a_cell_of_a_grid_needs_no_file() -> None:
    command = retrain(
        recorded_study(sweeps="", fixed="data=ham10000"), recorded_trial("model=custom"), None
    )
    assert command == "python -m src.train data=ham10000 model=custom seed=3"


def test_a_run_of_its_own_is_its_overrides() -> None:
    command = retrain(
        recorded_study(sweeps="", fixed=None, run_id=""),
        recorded_trial("model=custom data.root='a b'", parent=None),
        None,
    )
    assert shlex.split(command)[3:] == ["model=custom", "data.root='a b'", "seed=3"]


def test_a_study_that_was_recorded_without_its_command_points_to_the_config(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 3\n")
    command = retrain(recorded_study(fixed=None), recorded_trial("model=custom"), tmp_path)
    assert f"--config-path {tmp_path} --config-name config study=null" in command
    assert retrain(recorded_study(fixed=None), recorded_trial("model=custom"), None) == ""


def test_a_compressed_trial_is_made_again_from_the_run_that_its_first_seed_was_made_from() -> None:
    made = recorded_trial("compression=prune").drop("tags.seed")
    made = pd.concat([made, pd.Series({"run_id": "t", "tags.origin": "trained", "tags.seed": "0"})])
    seeds = pd.DataFrame(
        {
            "run_id": ["t1", "t0"],
            "parent_id": "t",
            "status": "FINISHED",
            "tags.seed": ["1", "0"],
            "tags.origin": ["of1", "of0"],
        }
    )
    of_two = replace(recorded_study(sweeps="", fixed="origin=tra repeats=2"), seeds=seeds)
    assert retrain(of_two, made, None) == "python -m src.train origin=of0 compression=prune seed=0"
    of_one = recorded_study(sweeps="", fixed="origin=tra")
    assert (
        retrain(of_one, made, None) == "python -m src.train origin=trained compression=prune seed=0"
    )


def test_a_compressed_run_of_its_own_is_its_overrides() -> None:
    made = pd.concat(
        [
            recorded_trial("compression=prune origin=of", parent="of0"),
            pd.Series({"tags.origin": "of0"}),
        ]
    )
    command = retrain(recorded_study(sweeps="", fixed=None, run_id=""), made, None)
    assert command == "python -m src.train compression=prune origin=of0 seed=3"


def compressed_run(
    run_id: str, parent: str | None, quality: float, flops: float, **tags: str
) -> dict[str, object]:
    figures = {
        f"metrics.{ACCURACY}": quality,
        f"metrics.{FLOPS}": flops,
        "metrics.efficiency/size_mb": flops / 1e6,
    }
    said = {
        "tags.kind": "run",
        "tags.study": "s",
        "tags.model": "custom",
        "tags.trial": "0",
        **tags,
    }
    row = {
        "run_id": run_id,
        "parent_id": parent,
        "status": "FINISHED",
        "end_time": pd.Timestamp("2026-11-21", tz="UTC"),
    }
    return row | figures | said


def a_study() -> pd.DataFrame:
    """A trial, its compression as a trial, and a compression of a run of another study."""
    made = {"tags.origin": "aaaaaaaa", "tags.compression": "int8", "tags.lost_on": "test"}
    return pd.DataFrame(
        [
            compressed_run("parent", None, np.nan, np.nan) | {"tags.kind": "study"},
            compressed_run("aaaaaaaa", "parent", 0.7, 8e6),
            compressed_run("bbbbbbbb", "parent", 0.69, 8e6, **made)
            | {"metrics.efficiency/size_mb": 2.0},
            compressed_run(
                "cccccccc",
                "parent",
                0.6,
                2e6,
                **made | {"tags.origin": "dddddddd", "tags.compression": "half"},
            ),
            compressed_run("dddddddd", None, 0.65, 4e6) | {"tags.study": "t"},
            # made from the trial, by the command line: it stands below it, and is no seed of it
            compressed_run("eeeeeeee", "aaaaaaaa", 0.68, 8e6, **made),
        ]
    )


def test_a_study_knows_its_origins_and_takes_no_compressed_run_for_a_seed() -> None:
    found = collect.study(a_study(), "s", STORE)
    assert set(found.trials["run_id"]) == {"aaaaaaaa", "bbbbbbbb", "cccccccc"}
    assert set(found.origins["run_id"]) == {"aaaaaaaa", "dddddddd"}
    assert found.runs_of("aaaaaaaa") == ["aaaaaaaa"]
    assert found.before(pd.Timestamp("2026-11-22", tz="UTC")).origins.equals(found.origins)


def test_rows_hold_their_origin_s_figures_and_are_called_by_their_compression() -> None:
    table = collect.compared(collect.study(a_study(), "s", STORE), FLOPS_OBJECTIVES, []).set_index(
        "run_id"
    )
    assert table["compression"].to_dict() == {
        "aaaaaaaa": "",
        "bbbbbbbb": "int8",
        "cccccccc": "half",
    }
    assert table.at["bbbbbbbb", "label"] == "custom int8 #0"
    assert table.at["cccccccc", f"origin/{FLOPS}"] == 4e6
    assert table.at["cccccccc", f"origin/{ACCURACY}"] == 0.65
    assert table.at["cccccccc", "origin_label"] == "custom dddddd"
    assert np.isnan(table.at["aaaaaaaa", f"origin/{FLOPS}"])
    assert collect.costs_of(table, FLOPS_OBJECTIVES) == [FLOPS, "efficiency/size_mb"]


def test_without_origins_nothing_changes() -> None:
    runs = a_study().drop(columns=["tags.origin", "tags.compression", "tags.lost_on"])
    table = collect.compared(collect.study(runs, "s", STORE), FLOPS_OBJECTIVES, [])
    assert not [name for name in table if "origin" in str(name) or "compression" in str(name)]
    assert collect.costs_of(table, FLOPS_OBJECTIVES) == [FLOPS]
    report = make_report(12)
    assert collect.compression_costs(report.table).empty


def test_losses_are_in_points_beside_the_shares_of_cost() -> None:
    rows = collect.compression_costs(with_compressed().table)
    assert rows["metric"].tolist() == ["balanced_accuracy", "recall/mel"] * 3
    first = rows.iloc[0]
    assert (first["size"], first["latency"], first["FLOPs"]) == (0.25, 0.5, 1.0)
    assert first[["lost", "low", "high"]].tolist() == pytest.approx([1.0, 0.0, 2.0])
    assert rows.iloc[5][["lost", "low", "high"]].tolist() == pytest.approx([8.0, 5.0, 11.0])
    assert set(rows["split"]) == {"test"}
    # balanced accuracy: intervals of 1 point around 1, -0.2 and 4; recall: 3 around 2, -0.4 and 8
    less, more, unknown = "less than 1 point", "more than 1 point", "undecided"
    verdicts = rows.groupby("metric")["verdict"].agg(list)
    assert verdicts["balanced_accuracy"] == [unknown, less, more]
    assert verdicts["recall/mel"] == [unknown, unknown, more]
