"""Learning curves of a study's trials, epoch by epoch."""

from collections.abc import Mapping

import pandas as pd

COLUMNS = ["run_id", "label", "state", "epoch", "value"]


def curves(history: pd.DataFrame, table: pd.DataFrame, trial_of: Mapping[str, str] | None = None) -> pd.DataFrame:
    """A curve a trial, over the epochs that it was trained: that of a pruned trial ends where the trial ended.

    The curve of a trial with several seeds is the mean over those that have any epoch, as far as all of them go: one
    that went on over fewer seeds would jump where a seed ends.

    Args:
        history: What the runs recorded after their epochs: run_id, step (of the optimizer), value. In any order; of a
            step that a resumed run recorded twice the last row counts. Missing values keep their place, but are no
            points.
        table: A row a trial: run_id, label, state.
        trial_of: Trial of a run, by run ids, where they are not the same: for the seeds of a trial.

    Returns:
        Columns run_id (of the trial), label, state, epoch (from 1), value; in the table's order, then by epoch. Runs
        that belong to no trial of the table are left out, as are trials without an epoch.
    """
    points = history.drop_duplicates(["run_id", "step"], keep="last").sort_values(["run_id", "step"], kind="stable")
    points = points.assign(epoch=points.groupby("run_id").cumcount() + 1)
    points = points.assign(trial=points["run_id"].map(lambda run: (trial_of or {}).get(run, run)))
    seeds = points.groupby("trial")["run_id"].nunique()
    means = points.groupby(["trial", "epoch"])["value"].agg(["mean", "size", "count"]).reset_index()
    # every seed has this epoch, and a number there
    complete = means[(means["size"] == means["trial"].map(seeds)) & (means["count"] == means["size"])]
    known = table.set_index("run_id")
    found = complete[complete["trial"].isin(known.index)].rename(columns={"trial": "run_id", "mean": "value"})
    found = found.assign(**{name: found["run_id"].map(known[name]) for name in ("label", "state")})
    place = {run: number for number, run in enumerate(known.index)}
    return found.sort_values("run_id", key=lambda runs: runs.map(place), kind="stable")[COLUMNS].reset_index(drop=True)
