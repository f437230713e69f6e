"""Compares the runs of a study, evaluates its front on the test split once, and shows both."""

import functools
import logging
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from src.core.cli import format_bug, one_line
from src.core.errors import UserError
from src.core.tables import Table
from src.metrics.formatting import cell
from src.metrics.pareto import front
from src.metrics.registry import (
    COMPRESSION,
    LOST,
    PRIMARY,
    Limit,
    Objective,
    melanoma_class,
    recorded_name,
    short_label,
)
from src.tracking import read
from src.tracking.run import Run
from src.tracking.store import Store

COSTS = (
    "efficiency/flops",
    "efficiency/params",
    "efficiency/latency_ms/b1/p50",
    "efficiency/latency_ratio",
)
MOST_ROWS = 20  # in the terminal; comparison.csv has all
MOST_FAILURES = 5
# Values of the tag `tested`: why a run was evaluated on the test split.
FRONT_MEMBER = "as a member of the front"
ANSWER = "as the answer to a question of a report"
log = logging.getLogger(__name__)
console = Console(width=80)


def compare(
    runs: pd.DataFrame, objectives: Sequence[Objective], limits: Sequence[Limit] = ()
) -> pd.DataFrame:
    """One row per run, also for failed runs.

    An infinite value of an objective counts, and is shown, as missing.

    Args:
        runs: From `src.tracking.read`: `run_id`, `status`, `tags.*`, `metrics.*`.
        objectives: Of the front, read at the chosen epoch.
        limits: That members of the front keep; a run without the metric does not keep a limit.

    Returns:
        Columns run_id, model, trial, overrides, split, grouped_by, split_fingerprint, kind, tested
        (why), was_front (the tag), compression, origin, lost_on, status (FINISHED, PRUNED,
        OVER_LIMIT, FAILED, KILLED, RUNNING), failure, feasible, front, and the metrics by recorded
        names. Sorted by the first objective, the best first; runs without a result last.
    """
    tags = ("model", "trial", "overrides", "split", "grouped_by", "split_fingerprint")
    table = pd.DataFrame({"run_id": runs["run_id"], **{tag: _tag(runs, tag) for tag in tags}})
    table["kind"] = _tag(runs, "kind", "run")
    table["tested"], table["was_front"] = _tag(runs, "tested"), _tag(runs, "front")
    for tag in COMPRESSION:
        table[tag] = _tag(runs, tag)
    # MLflow's status; trials that were stopped by decision have their own
    state = _tag(runs, "trial_state")
    early = state.isin(["pruned", "over_limit"])
    table["status"] = runs["status"].mask(early, state.str.upper())
    table["failure"] = _tag(runs, "failure")
    metrics = runs.loc[:, runs.columns.str.startswith("metrics.")]
    metrics = metrics.rename(columns=lambda name: name.removeprefix("metrics."))
    names = [recorded_name(objective.metric) for objective in objectives]
    for name in set(names) & set(metrics):
        metrics[name] = metrics[name].astype(float).replace([math.inf, -math.inf], math.nan)
    feasible = table["status"] == "FINISHED"
    for limit in limits:
        measured = metrics.reindex(columns=[recorded_name(limit.metric)]).iloc[:, 0]
        feasible &= measured.map(limit.holds).astype(bool)
    values = metrics.reindex(columns=names).to_numpy(dtype=float, copy=True)
    values[~feasible.to_numpy()] = math.nan
    on_front = front(values, list(objectives))
    table = pd.concat([table.assign(feasible=feasible, front=on_front), metrics], axis="columns")
    sign = 1 if objectives[0].direction == "minimize" else -1
    order = pd.Series(sign * values[:, 0]).sort_values(kind="stable", na_position="last")
    return table.iloc[order.index].reset_index(drop=True)


def _tag(runs: pd.DataFrame, tag: str, default: str = "") -> pd.Series:
    values = runs.get(f"tags.{tag}", pd.Series(index=runs.index, dtype=object))
    return values.astype(object).fillna(default)


def comparison_table(table: pd.DataFrame, title: str, split: str) -> Table:
    """Quality and cost of each run; members of the front are bold.

    Args:
        table: From `compare`.
        title: Above the table.
        split: "val" or "test": where the quality was measured.
    """
    prefix = "best/val" if split == "val" else split
    quality = f"{prefix}/{PRIMARY}"
    columns = [f"{prefix}/accuracy", f"{prefix}/recall/{melanoma_class(table, prefix)}", *COSTS]
    spread = f"spread/{quality}"
    if spread in table and table[spread].notna().any():
        columns.insert(0, spread)
    figures = table.reindex(columns=[quality, *columns]).astype(float)
    marks = table["status"].where(~table["status"].isin(["PRUNED", "OVER_LIMIT"]))
    marks = marks.fillna(table["status"].str.lower().str.replace("_", " "))
    marks = marks.mask(table["status"] == "FINISHED", "no").mask(table["front"], "yes")
    marks = marks.mask((table["status"] == "FINISHED") & ~table["feasible"], "over limit")
    frame = pd.concat([row_names(table), figures], axis="columns").assign(front=marks)
    # in two lines, to fit a narrow terminal
    heads = {name: "±" if name == spread else short_label(name) for name in [quality, *columns]}
    formats = {name: functools.partial(cell, name) for name in heads}
    labels = {name: head.replace(" ", "\n").replace("/", "/\n") for name, head in heads.items()}
    members = frozenset(np.flatnonzero(table["front"]).tolist())
    return Table(frame, title, labels=labels, formats=formats, bold=members)


def degradation_table(table: pd.DataFrame) -> Table | None:
    """What compression cost in percentage points; None if no run is compressed."""
    metrics = [PRIMARY, "accuracy", f"recall/{melanoma_class(table, LOST)}"]
    metrics = [f"{LOST}/{name}" for name in metrics]
    rows = table[table["origin"] != ""]
    rows = rows[rows.reindex(columns=metrics).notna().any(axis="columns")]
    if rows.empty:
        return None
    names = row_names(table)[rows.index]
    frame = pd.DataFrame({"model": names, "compression": rows["compression"]})
    for name in metrics:
        ends = rows.reindex(columns=[name, f"{name}/low", f"{name}/high"]).astype(float) * 100
        frame[name] = [_points(*row) for row in ends.itertuples(index=False)]
    frame = frame.assign(on=rows["lost_on"], origin=rows["origin"].str[:8])
    return Table(
        frame,
        "Lost by compression, percentage points [95% interval]",
        "Origin minus compressed; above 0: the compressed model is worse.",
        labels={name: short_label(name) for name in metrics},
        formats=dict.fromkeys(metrics, str),
    )


def _points(value: float, low: float, high: float) -> str | None:
    interval = "" if math.isnan(low + high) else f" [{low:.1f}, {high:.1f}]"
    return None if math.isnan(value) else f"{value:.1f}{interval}"


def row_names(table: pd.DataFrame) -> pd.Series:
    """The model of each row, with the number of the trial if several rows have that model."""
    several = table["model"].duplicated(keep=False)
    return table["model"].mask(several, table["model"] + " #" + table["trial"].astype(str))


def warnings(table: pd.DataFrame) -> list[str]:
    """What may make the figures of `compare` misleading."""
    finished = table[table["status"] == "FINISHED"]
    checks = {
        "No validation split: nothing was chosen, the last epoch of each run counts, and there is "
        "no front.": len(finished) > 0 and recorded_name("val/accuracy") not in table,
        "LEAKAGE: images of one lesion or patient are on both sides of the split. The figures are "
        "too good.": finished["split"].str.contains("leaking").any(),
        "The data do not say which images show one lesion or patient. The split may leak.": (
            finished["grouped_by"] == "image"
        ).any(),
        "These runs had different images or splits. Their figures, and the front, cannot be "
        "compared.": finished["split_fingerprint"].nunique() > 1,
    }
    return [text for text, holds in checks.items() if holds]


def summarise_study(
    store: Store, study_run: Run, objectives: list[Objective], limits: list[Limit], test_front: bool
) -> pd.DataFrame:
    """Compare the trials of a study, test the front once, and record both on the study's run.

    Args:
        store: Of the runs.
        study_run: The parent of the trials.
        objectives: Of the front.
        limits: That its members keep.
        test_front: Whether members without test figures are evaluated on the test split.

    Returns:
        The comparison, one row per trial.
    """
    table = compare(read.children(store, study_run.id), objectives, limits)
    if test_front and test_once(store, table[table["front"]], FRONT_MEMBER):
        table = compare(read.children(store, study_run.id), objectives, limits)
    changed = table[table["front"] != (table["was_front"] == "true")]
    for run_id, member in zip(changed["run_id"], changed["front"], strict=True):
        Run.attach(store, run_id).tag(front=str(bool(member)).lower())
    study_run.table(table.drop(columns="was_front"), "comparison.csv")
    study_run.log(aggregates(table, objectives))
    show(table, [*objectives, *limits], study_run.name, store, study_run.id)
    return table


def aggregates(table: pd.DataFrame, objectives: list[Objective]) -> dict[str, float]:
    """Metrics of a study's run: trials by outcome, best value of each objective on the front.

    Args:
        table: From `compare`.
        objectives: Of the study.
    """
    states = {
        "finished": ["FINISHED"],
        "pruned": ["PRUNED"],
        "over_limit": ["OVER_LIMIT"],
        "failed": ["FAILED", "KILLED"],
    }
    counts = {f"runs/{name}": table["status"].isin(some).sum() for name, some in states.items()}
    metrics = {"runs/all": len(table), **counts, "runs/front": table["front"].sum()}
    for objective in objectives:
        name = recorded_name(objective.metric)
        if table["front"].any() and name in table:
            values = table.loc[table["front"], name]
            best = values.max() if objective.direction == "maximize" else values.min()
            metrics[f"study_best/{name}"] = best
    return {name: float(value) for name, value in metrics.items()}


def show_single(
    store: Store, run_id: str, objectives: list[Objective], limits: list[Limit]
) -> None:
    """Show one run as `summarise_study` shows a study."""
    runs = read.runs(store, f"attributes.run_id = '{run_id}'")
    name = str(runs.at[0, "name"])
    show(compare(runs, objectives, limits), [*objectives, *limits], name, store, run_id)


def test_run(store: Store, run_id: str) -> dict[str, float]:
    """Evaluate a finished run's checkpoint on its test split and record the figures.

    Returns:
        The figures; none if there is no test split.
    """
    # torch takes seconds to import, and most reports do not test a run
    from src.core.config import check_targets
    from src.deployment.compression import origin
    from src.deployment.trained import restore
    from src.training import loop

    config = OmegaConf.load(read.artifact(store, run_id, "config.yaml"))
    assert isinstance(config, DictConfig)
    check_targets(config)
    parts = loop.build(config, pretrained=False)
    parts.classifier = restore(parts.classifier, store, run_id)
    if not parts.data.has("test"):
        return {}
    run = Run.attach(store, run_id)
    with tempfile.TemporaryDirectory() as folder:
        figures = loop.evaluate(config, parts, "test", run, Path(folder))
    if config.get("origin"):
        origin.record_degradation(store, run, [(config.origin, run_id)])
    run.flush()
    return figures


def test_once(store: Store, chosen: pd.DataFrame, why: str) -> bool:
    """Evaluate finished trials on their test split, each seed of a trial, unless they have figures.

    A failure is recorded in the tag `test_failure`, and the other trials are still evaluated.

    Args:
        store: Of the runs.
        chosen: Rows of a comparison.
        why: For the tag `tested`.

    Returns:
        Whether any trial had no test figures.
    """
    if "test/accuracy" in chosen:
        chosen = chosen[chosen["test/accuracy"].isna()]
    for run_id, kind in zip(chosen["run_id"], chosen["kind"], strict=True):
        log.info("run %s is evaluated on the test split, %s", run_id, why)
        run = Run.attach(store, run_id)
        try:
            (test_seeds if kind == "trial" else test_run)(store, run_id)
            run.tag(tested=why)
            run.untag("test_failure")
        except Exception as error:
            reason = one_line(error) or format_bug(error)
            run.tag(test_failure=reason)
            log.error("run %s could not be evaluated on the test split: %s", run_id, reason)
    return len(chosen) > 0


def test_seeds(store: Store, run_id: str) -> None:
    """Test each finished seed of a trial once; record mean and spread on the trial.

    Raises:
        UserError: No seed has finished.
    """
    from src.sweep.repeats import aggregate

    children = read.children(store, run_id)
    finished = children[children["status"] == "FINISHED"]
    if finished.empty:
        raise UserError(f"run {run_id} has no finished seeds: nothing to test")
    recorded = finished.loc[:, finished.columns.str.startswith("metrics.test/")]
    figures = []
    for (_, row), seed in zip(recorded.iterrows(), finished["run_id"], strict=True):
        known = {name.removeprefix("metrics."): float(row[name]) for name in row.dropna().index}
        figures.append(known or test_run(store, seed))
    means, spreads = aggregate(figures)
    trial = Run.attach(store, run_id)
    if "tags.origin" in children and children["tags.origin"].notna().any():
        from src.deployment.compression import origin

        pairs = [(origin.origin_of(store, seed), seed) for seed in finished["run_id"]]
        origin.record_degradation(store, trial, pairs)
    trial.log(means | {f"spread/{name}": value for name, value in spreads.items()})
    trial.flush()


def show(
    table: pd.DataFrame, front_of: list[Objective | Limit], title: str, store: Store, run_id: str
) -> None:
    """Print the comparison, its warnings, the failures, and where to look next."""
    shown = table[table["front"] | (table.index < MOST_ROWS)].head(2 * MOST_ROWS)
    if recorded_name("val/accuracy") in table:
        caption = f"{title}: validation, at the chosen epoch"
        console.print(comparison_table(shown, caption, "val").to_rich())
    tested = shown[shown["test/accuracy"].notna()] if "test/accuracy" in shown else shown.iloc[:0]
    if len(tested):
        caption = f"{title}: test, never used to choose"
        console.print(comparison_table(tested, caption, "test").to_rich())
    if (lost := degradation_table(shown)) is not None:
        console.print(lost.to_rich())
    lines = [
        f"front: {', '.join(map(str, front_of))}",
        "FLOPs: a multiply-add counts as one. x ref: latency relative to the 692K-parameter "
        "reference network at 64 px.",
    ]
    if (table["kind"] == "trial").any():
        lines.append("±: standard deviation over the seeds; the figure is their mean.")
    lines += warnings(table)
    if former := int(((table["tested"] == FRONT_MEMBER) & ~table["front"]).sum()):
        lines.append(
            f"{former} runs were tested as members of an earlier front and are not on this one: "
            "the study continued after their test figures were seen."
        )
    if len(shown) < len(table):
        lines.append(f"{len(table) - len(shown)} more rows are in the artifact comparison.csv.")
    lines += failures(table)
    names = row_names(table)
    listed = shown[shown["front"]] if len(shown) > MOST_FAILURES else shown
    for name, row in zip(names[listed.index], listed.to_dict("records"), strict=True):
        overrides = row["overrides"] if len(table) > 1 else ""
        lines.append(f"run {row['run_id']}  {name}  {overrides}".rstrip())
    for line in lines:
        console.print(line, highlight=False, markup=False)
    address = f"python -m src.tracking.ui uri={store.uri}"
    if store.is_server:
        address = store.uri.rstrip("/")
    else:
        address = (
            f"{'make ui' if store.uri == Store().uri else address}, then http://127.0.0.1:5000"
        )
    page = f"look: {address}/#/experiments/{store.experiment_id}/runs/{run_id}"
    console.print(page, highlight=False, markup=False, soft_wrap=True)


def failures(table: pd.DataFrame) -> list[str]:
    """One line per run without a result, up to a limit."""
    failed = table[table["status"].isin(["FAILED", "KILLED", "RUNNING"])]
    lines = []
    for row in failed.head(MOST_FAILURES).to_dict("records"):
        name = row["model"] or f"trial {row['trial']}"
        lines.append(f"{row['status']}: {name}, run {row['run_id']}: {row['failure']}")
    if (more := len(failed) - MOST_FAILURES) > 0:
        lines.append(f"{more} more failed: see comparison.csv.")
    return lines
