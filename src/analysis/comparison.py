"""Runs side by side: who is on the front, in one table for people and one for machines."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from rich import box
from rich.table import Table

from src.analysis.dominance import front
from src.objectives import Limit, Objective

LOST = "compression/lost"  # before the name of a metric: the origin's less the compressed net's
MELANOMA = ("mel", "melanoma", "malignant")  # what the class whose missed cases cost lives is called, by data set
COMPRESSION = ("compression", "origin", "lost_on")  # tags: how, of which run, and on which split that was judged
FORMATS = {
    "efficiency/flops": lambda value: engineering(value),
    "efficiency/params": lambda value: engineering(value),
    "efficiency/latency_ms/b1/p50": lambda value: f"{value:.2f}",
    "efficiency/latency_ratio": lambda value: f"{value:.2f}",
}


def recorded_name(metric: str) -> str:
    """Under which name a run holds its final value: validation metrics at the chosen epoch, the others as they are."""
    return f"best/{metric}" if metric.startswith("val/") else metric


def compare(runs: pd.DataFrame, objectives: Sequence[Objective], limits: Sequence[Limit] = ()) -> pd.DataFrame:
    """One row a run, failed ones too.

    An infinite value of an objective is no result: it counts, and stands in the table, as missing.

    Args:
        runs: As `src.tracking.read` gives them: `run_id`, `status`, `tags.*`, `metrics.*`.
        objectives: What the front is drawn over, read at the chosen epoch.
        limits: What a member of the front has to keep; a run without the metric does not.

    Returns:
        Columns run_id, model, trial, overrides, split, grouped_by, split_fingerprint, kind, tested (as what), was_front
        (the tag as it stands), compression, origin, lost_on, status (FINISHED, PRUNED, OVER_LIMIT, FAILED, KILLED,
        RUNNING), failure, feasible, front, and the run's metrics by recorded names. Best first by the first objective;
        runs without a result last.
    """
    table = pd.DataFrame(
        {
            "run_id": runs["run_id"],
            "model": _column(runs, "tags.model", ""),
            **{
                tag: _column(runs, f"tags.{tag}", "")
                for tag in ("trial", "overrides", "split", "grouped_by", "split_fingerprint")
            },
            "kind": _column(runs, "tags.kind", "run"),
            "tested": _column(runs, "tags.tested", ""),
            "was_front": _column(runs, "tags.front", ""),
            **{tag: _column(runs, f"tags.{tag}", "") for tag in COMPRESSION},
            "status": _status(runs),
            "failure": _column(runs, "tags.failure", ""),
        }
    )
    metrics = [name for name in runs.columns if name.startswith("metrics.")]
    table = pd.concat([table, runs[metrics].rename(columns=lambda name: name.removeprefix("metrics."))], axis=1)
    names = [recorded_name(objective.metric) for objective in objectives]
    for name in set(names) & set(table):
        table[name] = table[name].astype(float).replace([math.inf, -math.inf], math.nan)
    values = np.column_stack([_column(table, name, math.nan).to_numpy(dtype=float) for name in names])
    feasible = (table["status"] == "FINISHED").to_numpy()
    for limit in limits:
        measured = _column(table, recorded_name(limit.metric), math.nan)
        feasible = feasible & measured.map(limit.holds).to_numpy(dtype=bool)
    values[~feasible] = math.nan
    at = list(table).index("failure") + 1
    table.insert(at, "feasible", feasible)
    table.insert(at + 1, "front", front(values, list(objectives)))
    ascending = objectives[0].direction == "minimize"
    order = pd.Series(values[:, 0] if ascending else -values[:, 0])
    return table.iloc[order.sort_values(kind="stable", na_position="last").index].reset_index(drop=True)


def render(table: pd.DataFrame, title: str, split: str) -> Table:
    """The comparison for a terminal of 100 columns.

    Args:
        table: From `compare`.
        title: Line above the table.
        split: "val" or "test": which split's quality is shown.
    """
    prefix = "best/val" if split == "val" else split
    columns = [
        ("bal. acc.", f"{prefix}/balanced_accuracy"),
        ("accuracy", f"{prefix}/accuracy"),
        ("mel recall", f"{prefix}/recall/{melanoma_class(table, prefix)}"),
        ("FLOPs", "efficiency/flops"),
        ("params", "efficiency/params"),
        ("ms/image", "efficiency/latency_ms/b1/p50"),
        ("x ref", "efficiency/latency_ratio"),
    ]
    drawn = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE, padding=(0, 1, 0, 0))
    drawn.add_column("model", overflow="fold")
    for label, _ in columns:
        drawn.add_column(label, justify="right", no_wrap=True)
    drawn.add_column("front", justify="center")
    for _, row in table.iterrows():
        cells = [_format(name, row.get(name, math.nan)) for _, name in columns]
        spread = row.get(f"spread/{columns[0][1]}", math.nan)
        cells[0] += f" ±{spread:.3f}" if not math.isnan(spread) else ""
        mark = "yes" if row["front"] else _why_not(row)
        drawn.add_row(row_name(table, row), *cells, mark, style="bold" if row["front"] else None)
    return drawn


def render_lost(table: pd.DataFrame) -> Table | None:
    """What compression cost, for a terminal of 100 columns; None where no run is a compressed one.

    Args:
        table: From `compare`.
    """
    names = {
        "bal. acc.": f"{LOST}/balanced_accuracy",
        "accuracy": f"{LOST}/accuracy",
        "mel recall": f"{LOST}/recall/{melanoma_class(table, LOST)}",
    }
    rows = table.reindex(columns=[*table, *(name for name in names.values() if name not in table)])
    rows = rows[(rows["origin"] != "") & rows[list(names.values())].notna().any(axis="columns")]
    if rows.empty:
        return None
    drawn = Table(
        title="lost by compression, points [95% interval]: the origin's figure less its own, above 0 is worse",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    drawn.add_column("model", overflow="fold")
    drawn.add_column("compression", overflow="fold")
    for label in names:
        drawn.add_column(label, justify="right", no_wrap=True)
    drawn.add_column("on")
    drawn.add_column("origin", no_wrap=True)
    for _, row in rows.iterrows():
        cells = [
            _points(*(row.get(f"{name}{end}", math.nan) for end in ("", "/low", "/high"))) for name in names.values()
        ]
        drawn.add_row(row_name(table, row), row["compression"], *cells, row["lost_on"], str(row["origin"])[:8])
    return drawn


def _points(value: float, low: float, high: float) -> str:
    """A difference of shares in percentage points with its interval, such as "0.3 [-0.1, 0.9]"."""
    if math.isnan(value):
        return "-"
    spans = "" if math.isnan(low) or math.isnan(high) else f" [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{100 * value:.1f}{spans}"


def notes(table: pd.DataFrame) -> list[str]:
    """What a reader must know before believing the figures.

    Args:
        table: From `compare`.
    """
    found = ["FLOPs: a multiply-add counts as one. x ref: latency, in turn with the 692K-parameter net at 64 px."]
    finished = table[table["status"] == "FINISHED"]
    if (finished["kind"] == "trial").any():
        found.append(
            "Figures of trials with several seeds are means over the seeds; ±: their sample standard deviation."
        )
    if len(finished) and recorded_name("val/accuracy") not in table:
        found.append("No validation split: nothing was chosen, each run's last epoch counts, and there is no front.")
    if finished["split"].str.contains("leaking").any():
        found.append("LEAKS: images of one lesion or patient are on both sides of the split; the figures are too good.")
    if (finished["grouped_by"] == "image").any():
        found.append("The data do not say which images show one lesion or patient: the split may leak.")
    if finished["split_fingerprint"].nunique() > 1:
        found.append("These runs saw different images or splits: their figures do not compare, nor does the front.")
    return found


def row_name(table: pd.DataFrame, row: pd.Series) -> str:
    """The model, with its number in the multirun where several runs have that model."""
    alone = (table["model"] == row["model"]).sum() == 1
    return str(row["model"]) if alone else f"{row['model']} #{row['trial']}"


def _status(runs: pd.DataFrame) -> pd.Series:
    """MLflow's, but a trial that was ended early by decision is called by what it is."""
    early = _column(runs, "tags.trial_state", "").isin(["pruned", "over_limit"])
    return runs["status"].mask(early, _column(runs, "tags.trial_state", "").str.upper())


def _why_not(row: pd.Series) -> str:
    if row["status"] in ("PRUNED", "OVER_LIMIT"):
        return str(row["status"]).lower().replace("_", " ")
    if row["status"] != "FINISHED":
        return str(row["status"])
    return "no" if row["feasible"] else "over limit"


def melanoma_class(table: pd.DataFrame, prefix: str) -> str:
    """The class that is melanoma in these runs, or "mel" where none of them has it."""
    recalls = [
        str(name).removeprefix(f"{prefix}/recall/") for name in table if str(name).startswith(f"{prefix}/recall/")
    ]
    return next((name for name in recalls if name.lower() in MELANOMA), MELANOMA[0])


def _column(frame: pd.DataFrame, name: str, default: str | float) -> pd.Series:
    return frame[name].fillna(default) if name in frame else pd.Series(default, index=frame.index)


def _format(name: str, value: float) -> str:
    if value is None or math.isnan(value):
        return "-"
    return FORMATS.get(name, lambda number: f"{number:.3f}")(value)


def engineering(value: float) -> str:
    """Three figures and a letter: 30037824 -> 30.0M."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g}{letter}"
    return f"{value:.0f}"
