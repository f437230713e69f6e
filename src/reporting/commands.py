"""The command that trains a trial again."""

import shlex
from pathlib import Path

import pandas as pd

from src.analysis.swept import scan
from src.reporting.collect import Study

OF_A_STUDY = ("repeats=", "dry_run=", "test=", "seed=", "study=")  # a single run has none of these, or its own


def retrain(study: Study, trial: pd.Series, artifacts: Path | None) -> str:
    """One line for a shell that trains a trial's configuration again, as a run of its own.

    Args:
        study: Of the trial.
        trial: Its row, as the store gives it: `tags.overrides`, `tags.seed`, `tags.kind`.
        artifacts: The folder that holds the trained run's config.yaml; None if it is on a server.

    Returns:
        The overrides as they were typed, where the record holds them all. Else, for studies that were recorded without,
        Hydra is pointed to the recorded config; empty where not even that is at hand.
    """
    cell = [f"{key}={value}" for key, value in scan(_text(trial.get("tags.overrides"))).items()]
    seed = _text(trial.get("tags.seed"))
    # a run of its own, unlike a trial, has all its overrides in its tag; a compressed one stands below its origin
    above, origin = (_text(trial.get(name)) for name in ("parent_id", "tags.origin"))
    fixed = "" if not study.run_id and above in ("", origin) else study.fixed_overrides
    if fixed is None:
        return _from_config(artifacts)
    shared = shlex.split(fixed)
    kept = [each for each in [*shared, *cell] if not each.startswith(OF_A_STUDY)]
    # the file of sweeps/ says MULTIRUN, which the command line overrules
    file = [f"sweeps={study.sweeps}", "hydra.mode=RUN"] if study.sweeps else []
    kept = [each for each in kept if not each.startswith("sweeps=")]
    if origin:
        kept = [f"origin={_origin(study, trial)}" if each.startswith("origin=") else each for each in kept]
    one_of_several = ["repeats=1"] if study.sweeps else []
    seeded = [f"seed={int(float(seed))}"] if seed else []
    return shlex.join(["python", "-m", "src.train", *file, *kept, *one_of_several, *seeded])


def _origin(study: Study, trial: pd.Series) -> str:
    """The run that a trial's first seed was made from: the trial's own origin is a trial, too."""
    first = study.runs_of(str(trial.get("run_id")))[0]
    own = study.seeds[study.seeds["run_id"] == first] if len(study.seeds) else study.seeds
    return _text((own.iloc[0] if len(own) else trial).get("tags.origin"))


def _from_config(artifacts: Path | None) -> str:
    if artifacts is None or not (artifacts / "config.yaml").exists():
        return ""
    where = ["--config-path", str(artifacts), "--config-name", "config"]
    return shlex.join(["python", "-m", "src.train", *where, "study=null", "repeats=1", "hydra.run.dir=logs/runs/again"])


def _text(value: object) -> str:
    return "" if value is None or value != value else str(value)
