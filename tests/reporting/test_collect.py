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
from src.reporting.collect import StudyRuns
from src.tracking.store import Store

STORE = Store(uri="sqlite:////nowhere/mlflow.db", experiment="derm")
FLOPS, PARAMS = "efficiency/flops", "efficiency/params"
FLOPS_OBJECTIVES = [Objective("val/balanced_accuracy", "maximize"), Objective(FLOPS, "minimize")]
OBJECTIVES = [Objective("val/accuracy", "maximize"), Objective(PARAMS, "minimize")]
NOON = pd.Timestamp("2026-11-21T12:00", tz="UTC")
MINUTE = pd.Timedelta(minutes=1)


def run(
    run_id: str, kind: str, parent: str | None = None, status: str = "FINISHED", **tags: object
) -> dict:
    row = {"run_id": run_id, "parent_id": parent, "status": status, "end_time": NOON}
    row |= {f"metrics.{ACCURACY}": 0.5, f"metrics.{FLOPS}": 1e6}
    return row | {
        f"tags.{name}": value for name, value in ({"kind": kind, "study": "s"} | tags).items()
    }


PURPOSE = {
    "objectives": "maximize val/auroc; minimize efficiency/params",
    "limits": "efficiency/params <= 5",
}
RUNS = pd.DataFrame(
    [
        run("parent", "study", **PURPOSE),
        run("a", "trial", "parent"),
        run("a1", "run", "a", seed="10"),
        run("a0", "run", "a", seed="9"),
        run("a2", "run", "a", status="FAILED", seed="11"),
        run("other", "run", study="t"),
    ]
)


def test_a_study_has_trials_seeds_objectives_and_limits() -> None:
    study = collect.study(RUNS, "s", STORE)
    assert list(study.trials["run_id"]) == ["a"]
    assert set(study.seeds["run_id"]) == {"a0", "a1", "a2"}
    auroc, params = Objective("val/auroc", "maximize"), Objective(PARAMS, "minimize")
    assert study.objectives == (auroc, params)
    assert study.limits == (Limit(PARAMS, "<=", 5.0),)
    assert study.run_id == "parent"
    assert study.runs_of("a") == ["a0", "a1"]  # finished seeds, in order of the seeds
    # runs that share the tag are a study without a run of its own
    other = collect.study(RUNS, "t", STORE)
    assert (list(other.trials["run_id"]), other.run_id) == (["other"], "")
    assert other.runs_of("other") == ["other"]
    assert [len(study.before(NOON + late).trials) for late in (MINUTE, 0 * MINUTE)] == [1, 0]


def test_limits_without_a_study_are_those_of_the_config_and_old_metrics_are_ignored() -> None:
    config = {"params.objective.limits": '["efficiency/params <= 7"]'}
    other = collect.study(RUNS.assign(**config), "t", STORE)
    assert (other.objectives, other.limits) == ((), (Limit(PARAMS, "<=", 7.0),))
    old = collect.study(RUNS.assign(**{"tags.objectives": "maximize val/gone"}), "s", STORE)
    assert (old.objectives, old.limits) == ((), ())


def test_an_unknown_study_is_named_with_the_known_ones_and_without_a_password() -> None:
    message = r"study=nosuch: no such study in sqlite.*experiment derm.*there are s, t"
    with pytest.raises(UserError, match=message):
        collect.study(RUNS, "nosuch", STORE)
    with pytest.raises(UserError, match=r"me:\*\*\*@"):
        collect.study(RUNS, "nosuch", Store(uri="postgresql://me:secret@127.0.0.1/db"))


def test_a_selection_excludes_study_runs_and_seeds_whose_trial_is_there() -> None:
    assert set(collect.selection(RUNS, "all", STORE).trials["run_id"]) == {"a", "other"}
    with pytest.raises(UserError, match="nothing: finds no runs"):
        collect.selection(RUNS.iloc[:1], "nothing", STORE)


def test_objectives_are_those_of_the_study_unless_others_are_typed() -> None:
    measured = {"metrics.best/val/auroc": 0.9, f"metrics.{PARAMS}": 4.0}
    study = collect.study(RUNS.assign(**measured), "s", STORE)
    objectives, limits, notes = collect.purpose([study], None, None)
    assert (objectives, limits, notes) == ([*study.objectives], [*study.limits], [])
    typed = ["val/balanced_accuracy", {"metric": FLOPS}]
    assert collect.purpose([study], typed, [])[:2] == (FLOPS_OBJECTIVES, [])
    objectives, _, [note] = collect.purpose([study], ["val/balanced_accuracy"], None)
    assert objectives == FLOPS_OBJECTIVES
    assert f"{FLOPS} was added" in note
    other = replace(study, objectives=tuple(FLOPS_OBJECTIVES))
    assert "different objectives" in collect.purpose([study, other], None, None)[2][0]


@pytest.mark.parametrize(
    ("objectives", "limits", "message"),
    [
        (["val/f1/mel"], None, r"s\[0\]: no run has best/val/f1/mel; there is best/val/balanced"),
        (["val/acuracy"], None, r"objectives\[0\].*unknown metric"),
        (["test/accuracy"], None, r"s\[0\].*must not be read on the split that is reported"),
        ([FLOPS, PARAMS], None, "objectives: must have one that is no cost"),
        (None, ["val/recall/xyz >= 0.5"], r"limits\[0\]: no run has best/val/recall/xyz"),
        (None, ["params < 3"], r"limits\[0\]: must be like"),
    ],
)
def test_impossible_objectives_and_limits_are_named(objectives, limits, message: str) -> None:
    study = collect.selection(RUNS, "all", STORE)
    with pytest.raises(ConfigError, match=message):
        collect.purpose([study], objectives, limits)


def trial(
    number: int, accuracy: float, params: float, status: str = "FINISHED", state: str = "complete"
) -> dict:
    tags = {"model": "custom", "trial": str(number), "trial_state": state}
    row = run(f"run{number}", "run", "parent", status, **tags)
    row = {name: value for name, value in row.items() if not name.startswith("metrics.")}
    metrics = {"metrics.best/val/accuracy": accuracy, f"metrics.{PARAMS}": params}
    return row | metrics | {"end_time": NOON + number * MINUTE}


def study_of(*trials: dict, name: str = "s") -> StudyRuns:
    return StudyRuns(name, "parent", pd.DataFrame(list(trials)), pd.DataFrame())


STUDY = study_of(
    trial(0, 0.5, 4),
    trial(1, 0.9, 8),  # front
    trial(2, 0.9, 9),  # dominated by 1 alone
    trial(3, 0.6, 4),  # front
    trial(4, np.nan, 1, state="pruned"),
    trial(5, np.nan, 1, status="FAILED", state="fail"),
    trial(6, np.nan, 2),  # finished, but without the metric
    trial(7, np.nan, 2, state="put_back"),
)


def scaled(*tables: pd.DataFrame) -> Scale:
    values = [collect.values_of(table, OBJECTIVES) for table in tables]
    return Scale.fit(np.vstack(values), OBJECTIVES)


def ranked(study: StudyRuns, *limits: Limit) -> pd.DataFrame:
    table = collect.compared(study, OBJECTIVES, limits)
    return collect.rank(table, OBJECTIVES, scaled(table))[0]


def test_trials_have_a_state_a_label_and_those_with_a_result_a_rank() -> None:
    table = ranked(STUDY).set_index("run_id")
    states = ["dominated", "front", "dominated", "front", "pruned", "failed", "no value"]
    states.append("put_back")
    assert table["state"].sort_index().tolist() == states
    assert table["rank"].dropna().to_dict() == {"run1": 0, "run2": 1, "run3": 0, "run0": 1}
    assert table.loc["run3", "label"] == "custom #3"
    limited = ranked(STUDY, Limit(PARAMS, "<=", 8.0)).set_index("run_id")
    assert limited.loc["run2", "state"] == "over limit"
    assert np.isnan(limited.loc["run2", "rank"])
    twins = study_of(trial(0, 0.5, 4), trial(0, 0.6, 4) | {"run_id": "other"})
    assert collect.compared(twins, OBJECTIVES, []).set_index("run_id")["label"].to_dict() == {
        "run0": "custom #0 run0",
        "other": "custom #0 other",
    }


def test_the_hypervolume_never_falls_and_ends_at_that_of_the_front() -> None:
    table = collect.compared(STUDY, OBJECTIVES, [])
    progress = collect.progress(table, OBJECTIVES, scaled(table))
    assert list(progress) == ["study", "trials", "ended", "hypervolume"]
    assert list(progress["trials"]) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert (progress["hypervolume"].diff().dropna() >= 0).all()
    # accuracy 0.5 to 0.9 and 4 to 9 parameters (no factor of ten: linear) become 0 to 1; reference
    # 1.1 in both. run3 is (0.75, 0), run1 (0, 0.8): 0.35 x 1.1 + 0.75 x 0.3 = 0.61, of 1.1 x 1.1
    assert progress["hypervolume"].iloc[-1] == pytest.approx(0.61 / 1.21)


def test_new_points_are_those_that_no_other_front_covers() -> None:
    one = study_of(trial(0, 0.5, 4), trial(1, 0.9, 8))
    two = study_of(trial(0, 0.5, 4), trial(1, 0.8, 8), trial(2, 0.4, 1), name="t")
    tables = [ranked(one), ranked(two)]
    rows = collect.comparison(tables, OBJECTIVES, scaled(*tables))
    assert list(rows["new_points"]) == [1, 1]  # 0.9 with 8; 0.4 with 1. (0.5, 4) is on both
    assert list(rows["new"]) == ["custom #1", "custom #2"]
    assert list(rows["front"]) == [2, 3]
    assert list(rows["best best/val/accuracy"]) == [0.9, 0.8]
    assert list(rows[f"best {PARAMS}"]) == [4, 1]
    empty = ranked(study_of(trial(0, np.nan, 4), trial(1, np.nan, 5)))
    assert not empty[["front", "knee"]].any(axis=None)
    rows = collect.comparison([tables[0], empty], OBJECTIVES, scaled(tables[0]))
    assert rows["new_points"].tolist() == [2, 0]
    assert np.isnan(rows["best best/val/accuracy"].iloc[1])


def test_costs_are_those_that_any_trial_has() -> None:
    assert collect.costs_of(ranked(STUDY), OBJECTIVES) == [PARAMS]


def retrained(
    overrides: str,
    fixed: str | None = "",
    sweeps: str = "",
    study_id: str = "parent",
    folder: Path | None = None,
    seeds: pd.DataFrame | None = None,
    **row: str,
) -> list[str]:
    """The arguments of the command that trains a trial with these overrides again."""
    study = StudyRuns("s", study_id, pd.DataFrame(), pd.DataFrame() if seeds is None else seeds)
    study = replace(study, sweeps=sweeps, fixed_overrides=fixed)
    row = {"tags.overrides": overrides, "tags.seed": "3", "parent_id": study_id} | row
    words = shlex.split(collect.retrain(study, pd.Series(row), folder))
    assert not words or words[:3] == ["python", "-m", "src.train"]
    return words[3:]


def test_a_trial_is_trained_again_by_the_overrides_as_they_were_typed(tmp_path: Path) -> None:
    fixed = shlex.join(["data=ham10000", "repeats=3", "model.net.dense=[8, 4]", "seed=1"])
    assert retrained("model.net.dense=[128, 64] loss=focal", fixed, "pareto") == [
        *["sweeps=pareto", "hydra.mode=RUN", "data=ham10000", "model.net.dense=[8, 4]"],
        *["model.net.dense=[128, 64]", "loss=focal", "repeats=1", "seed=3"],
    ]
    assert retrained("model=custom", "data=ham10000") == ["data=ham10000", "model=custom", "seed=3"]
    single = retrained("model=custom data.root='a b'", None, study_id="")
    assert single == ["model=custom", "data.root='a b'", "seed=3"]
    # a study that was recorded without its command
    assert retrained("model=custom", None) == []
    (tmp_path / "config.yaml").write_text("seed: 3\n")
    words = ["--config-path", str(tmp_path), "--config-name", "config", "study=null"]
    assert retrained("model=custom", None, folder=tmp_path)[:5] == words


def test_a_compressed_trial_is_made_again_from_the_origin_of_its_first_seed() -> None:
    made = {"run_id": "t", "tags.origin": "trained"}
    seeds = {"run_id": ["t1", "t0"], "parent_id": "t", "status": "FINISHED"}
    seeds |= {"tags.seed": ["1", "0"], "tags.origin": ["of1", "of0"]}
    fixed = "origin=tra repeats=2"
    words = retrained("compression=prune", fixed, seeds=pd.DataFrame(seeds), **made)
    assert words == ["origin=of0", "compression=prune", "seed=3"]
    words = retrained("compression=prune", fixed, **made)
    assert words == ["origin=trained", "compression=prune", "seed=3"]
    single = {"tags.origin": "of0", "parent_id": "of0"}
    words = retrained("compression=prune origin=of", None, study_id="", **single)
    assert words == ["compression=prune", "origin=of0", "seed=3"]


def compressed_run(
    run_id: str, parent: str | None, quality: float, flops: float, size: float, **tags: str
) -> dict:
    tags = {"model": "custom", "trial": "0"} | tags
    figures = {ACCURACY: quality, FLOPS: flops, "efficiency/size_mb": size}
    row = run(run_id, "run", parent, **tags)
    return row | {f"metrics.{name}": value for name, value in figures.items()}


INT8 = {"origin": "aaaaaaaa", "compression": "int8", "lost_on": "test"}
HALF = {"origin": "dddddddd", "compression": "half", "lost_on": "test"}
# A trial, its compression as a trial, and a compression of a run of another study.
COMPRESSED = pd.DataFrame(
    [
        run("parent", "study"),
        compressed_run("aaaaaaaa", "parent", 0.7, 8e6, 8.0),
        compressed_run("bbbbbbbb", "parent", 0.69, 8e6, 2.0, **INT8),
        compressed_run("cccccccc", "parent", 0.6, 2e6, 2.0, **HALF),
        compressed_run("dddddddd", None, 0.65, 4e6, 4.0, study="t"),
        # made from the trial, by the command line: it is below it, and is no seed of it
        compressed_run("eeeeeeee", "aaaaaaaa", 0.68, 8e6, 8.0, **INT8),
    ]
)


def test_a_study_has_the_origins_of_its_trials_and_their_figures() -> None:
    study = collect.study(COMPRESSED, "s", STORE)
    assert set(study.trials["run_id"]) == {"aaaaaaaa", "bbbbbbbb", "cccccccc"}
    assert set(study.origins["run_id"]) == {"aaaaaaaa", "dddddddd"}
    assert study.runs_of("aaaaaaaa") == ["aaaaaaaa"]
    assert study.before(NOON + MINUTE).origins.equals(study.origins)
    table = collect.compared(study, FLOPS_OBJECTIVES, []).set_index("run_id")
    names = {"aaaaaaaa": "", "bbbbbbbb": "int8", "cccccccc": "half"}
    assert table["compression"].to_dict() == names
    assert table.at["bbbbbbbb", "label"] == "custom int8 #0"
    row = table.loc["cccccccc"]
    figures = (row[f"origin/{FLOPS}"], row[f"origin/{ACCURACY}"], row["origin_label"])
    assert figures == (4e6, 0.65, "custom dddddd")
    assert np.isnan(table.at["aaaaaaaa", f"origin/{FLOPS}"])
    assert collect.costs_of(table, FLOPS_OBJECTIVES) == [FLOPS, "efficiency/size_mb"]


def test_without_origins_there_are_no_columns_of_compression() -> None:
    runs = COMPRESSED.drop(columns=["tags.origin", "tags.compression", "tags.lost_on"])
    table = collect.compared(collect.study(runs, "s", STORE), FLOPS_OBJECTIVES, [])
    assert not [name for name in table if "origin" in str(name) or "compression" in str(name)]
    assert collect.costs_of(table, FLOPS_OBJECTIVES) == [FLOPS]
    assert collect.compression_costs(make_report(12).table).empty


def test_losses_are_in_points_beside_the_shares_of_cost() -> None:
    rows = collect.compression_costs(with_compressed().table)
    assert rows["metric"].tolist() == ["balanced_accuracy", "recall/mel"] * 3
    assert rows.loc[0, ["size", "latency", "FLOPs"]].tolist() == [0.25, 0.5, 1.0]
    ends = rows[["lost", "low", "high"]].to_numpy()
    assert ends[[0, 5]].tolist() == [pytest.approx([1, 0, 2]), pytest.approx([8, 5, 11])]
    assert set(rows["split"]) == {"test"}
    # balanced accuracy: intervals of 1 point around 1, -0.2 and 4; recall: 3 around 2, -0.4 and 8
    less, more, unknown = "less than 1 point", "more than 1 point", "undecided"
    verdicts = rows.groupby("metric")["verdict"].agg(list)
    assert verdicts["balanced_accuracy"] == [unknown, less, more]
    assert verdicts["recall/mel"] == [unknown, unknown, more]


def test_predictions_are_read_by_seed_and_none_if_a_seed_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    requests: list[tuple[str, str]] = []

    def predictions(store: Store, run_id: str, split: str) -> pd.DataFrame:
        requests.append((run_id, split))
        if split == "test" and run_id == "a1":
            raise UserError("no such artifact")
        return pd.DataFrame({"image_id": [run_id]})

    monkeypatch.setattr(collect.read, "predictions", predictions)
    study = collect.study(RUNS, "s", STORE)
    frames = study.predictions("a", "val")
    assert [frame["image_id"].item() for frame in frames] == ["a0", "a1"]
    assert requests == [("a0", "val"), ("a1", "val")]
    assert study.predictions("a", "test") == []


def test_layers_are_those_of_the_first_net_of_each_chosen_trial(tmp_path, monkeypatch):
    (tmp_path / "layers.csv").write_text("layer,type,flops,params\n,Net,5,0\nhead,Linear,7,3\n")

    def artifact(_, net, name):
        if net == "b" or name != "layers.csv":
            raise UserError("no such artifact")
        return tmp_path / name

    monkeypatch.setattr(collect.read, "artifact", artifact)
    chosen = pd.DataFrame({"run_id": ["x", "y"], "label": ["#1", "#2"], "net": ["a", "b"]})
    files = collect.files_of(STORE, chosen)
    rows = files["layers"][["label", "layer", "flops"]].to_numpy().tolist()
    assert rows == [["#1", "the net itself", 5], ["#1", "head", 7]]
    assert files["sheet"] == b""
    assert collect.files_of(STORE, chosen.iloc[1:])["layers"].empty
