"""The command that trains a trial again, as a shell reads it."""

import shlex
from dataclasses import replace
from pathlib import Path

import pandas as pd

from src.reporting.collect import StudyRuns, retrain


def study(sweeps: str = "pareto", fixed: str | None = "", run_id: str = "parent") -> StudyRuns:
    return StudyRuns(
        "s", run_id, pd.DataFrame(), pd.DataFrame(), sweeps=sweeps, fixed_overrides=fixed
    )


def trial(overrides: str, parent: str | None = "parent") -> pd.Series:
    return pd.Series({"tags.overrides": overrides, "tags.seed": "3", "parent_id": parent})


def test_a_trial_of_a_sweeps_file_is_its_file_what_all_shared_and_its_cell() -> None:
    fixed = shlex.join(["data=ham10000", "repeats=3", "model.net.dense=[8, 4]", "seed=1"])
    command = retrain(study(fixed=fixed), trial("model.net.dense=[128, 64] loss=focal"), None)
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
    command = retrain(study(sweeps="", fixed="data=ham10000"), trial("model=custom"), None)
    assert command == "python -m src.train data=ham10000 model=custom seed=3"


def test_a_run_of_its_own_is_its_overrides() -> None:
    command = retrain(
        study(sweeps="", fixed=None, run_id=""),
        trial("model=custom data.root='a b'", parent=None),
        None,
    )
    assert shlex.split(command)[3:] == ["model=custom", "data.root='a b'", "seed=3"]


def test_a_study_that_was_recorded_without_its_command_points_to_the_config(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 3\n")
    command = retrain(study(fixed=None), trial("model=custom"), tmp_path)
    assert f"--config-path {tmp_path} --config-name config study=null" in command
    assert retrain(study(fixed=None), trial("model=custom"), None) == ""


def test_a_compressed_trial_is_made_again_from_the_run_that_its_first_seed_was_made_from() -> None:
    made = trial("compression=prune").drop("tags.seed")
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
    of_two = replace(study(sweeps="", fixed="origin=tra repeats=2"), seeds=seeds)
    assert retrain(of_two, made, None) == "python -m src.train origin=of0 compression=prune seed=0"
    of_one = study(sweeps="", fixed="origin=tra")
    assert (
        retrain(of_one, made, None) == "python -m src.train origin=trained compression=prune seed=0"
    )


def test_a_compressed_run_of_its_own_is_its_overrides() -> None:
    made = pd.concat(
        [trial("compression=prune origin=of", parent="of0"), pd.Series({"tags.origin": "of0"})]
    )
    command = retrain(study(sweeps="", fixed=None, run_id=""), made, None)
    assert command == "python -m src.train compression=prune origin=of0 seed=3"
