"""Runs side by side, tested once, shown at the end of every study."""

import logging
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf
from rich import box
from rich.console import Console
from rich.table import Table

from src.core.cli import format_bug, one_line
from src.core.config import check_targets
from src.core.errors import UserError
from src.deployment.compression import origin
from src.deployment.compression import origin as compression
from src.deployment.trained import restore
from src.metrics.formatting import cell
from src.metrics.pareto import front
from src.metrics.registry import COMPRESSION, LOST, Limit, Objective, melanoma_class, recorded_name
from src.sweep.repeats import aggregate
from src.tracking import read
from src.tracking.run import Run
from src.tracking.store import Store
from src.training import loop


def compare(
    runs: pd.DataFrame, objectives: Sequence[Objective], limits: Sequence[Limit] = ()
) -> pd.DataFrame:
    """One row a run, failed ones too.

    An infinite value of an objective is no result: it counts, and stands in the table, as missing.

    Args:
        runs: As `src.tracking.read` gives them: `run_id`, `status`, `tags.*`, `metrics.*`.
        objectives: What the front is drawn over, read at the chosen epoch.
        limits: What a member of the front has to keep; a run without the metric does not.

    Returns:
        Columns run_id, model, trial, overrides, split, grouped_by, split_fingerprint, kind, tested
        (as what), was_front (the tag as it stands), compression, origin, lost_on, status (FINISHED,
        PRUNED, OVER_LIMIT, FAILED, KILLED, RUNNING), failure, feasible, front, and the run's
        metrics by recorded names. Best first by the first objective; runs without a result last.
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
    table = pd.concat(
        [table, runs[metrics].rename(columns=lambda name: name.removeprefix("metrics."))], axis=1
    )
    names = [recorded_name(objective.metric) for objective in objectives]
    for name in set(names) & set(table):
        table[name] = table[name].astype(float).replace([math.inf, -math.inf], math.nan)
    values = np.column_stack(
        [_column(table, name, math.nan).to_numpy(dtype=float) for name in names]
    )
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
    return table.iloc[order.sort_values(kind="stable", na_position="last").index].reset_index(
        drop=True
    )


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
    drawn = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE, padding=(0, 1, 0, 0)
    )
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
            _points(*(row.get(f"{name}{end}", math.nan) for end in ("", "/low", "/high")))
            for name in names.values()
        ]
        drawn.add_row(
            row_name(table, row), row["compression"], *cells, row["lost_on"], str(row["origin"])[:8]
        )
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
    found = [
        "FLOPs: a multiply-add counts as one. x ref: latency, in turn with the 692K-parameter net at 64 px."
    ]
    finished = table[table["status"] == "FINISHED"]
    if (finished["kind"] == "trial").any():
        found.append(
            "Figures of trials with several seeds are means over the seeds; ±: their sample standard deviation."
        )
    if len(finished) and recorded_name("val/accuracy") not in table:
        found.append(
            "No validation split: nothing was chosen, each run's last epoch counts, and there is no front."
        )
    if finished["split"].str.contains("leaking").any():
        found.append(
            "LEAKS: images of one lesion or patient are on both sides of the split; the figures are too good."
        )
    if (finished["grouped_by"] == "image").any():
        found.append(
            "The data do not say which images show one lesion or patient: the split may leak."
        )
    if finished["split_fingerprint"].nunique() > 1:
        found.append(
            "These runs saw different images or splits: their figures do not compare, nor does the front."
        )
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


def _column(frame: pd.DataFrame, name: str, default: str | float) -> pd.Series:
    return frame[name].fillna(default) if name in frame else pd.Series(default, index=frame.index)


def _format(name: str, value: float) -> str:
    if value is None or math.isnan(value):
        return "-"
    return cell(name, value)


log = logging.getLogger(__name__)
console = Console(width=100)
SHOWN = 20  # rows of a table for people; the CSV holds all
SHOWN_FAILURES = 5
TESTED = "metrics.test/"
# why a run was tested, as its tag `tested` says
FRONT_MEMBER = "as a member of the front"
ANSWER = "as the answer to a question of a report"


def summarise_study(
    store: Store, study_run: Run, objectives: list[Objective], limits: list[Limit], test_front: bool
) -> pd.DataFrame:
    """Compare the trials of a study, test the front's members once, and record both on the parent.

    Args:
        store: Where the runs are.
        study_run: The study's own run, the parent of its trials.
        objectives: Over which the front is drawn.
        limits: That its members keep.
        test_front: Whether the members are evaluated on the test split, those that are not yet.

    Returns:
        The comparison, a row a trial.
    """
    table = compare(read.children(store, study_run.id), objectives, limits)
    if test_front and test_once(store, table[table["front"]], FRONT_MEMBER):
        table = compare(read.children(store, study_run.id), objectives, limits)
    for run_id, now, before in zip(
        table["run_id"], table["front"], table["was_front"] == "true", strict=True
    ):
        if now != before:
            Run.attach(store, run_id).tag(front=str(bool(now)).lower())
    study_run.table(table.drop(columns="was_front"), "comparison.csv")
    study_run.log(aggregates(table, objectives))
    show(table, [*objectives, *limits], study_run.name, store, study_run.id)
    return table


def aggregates(table: pd.DataFrame, objectives: list[Objective]) -> dict[str, float]:
    """What stands on a study's own run: how its trials ended, and the best value of each objective on the front.

    Args:
        table: From `compare`.
        objectives: Of the study.
    """
    counts = {
        "finished": table["status"] == "FINISHED",
        "pruned": table["status"] == "PRUNED",
        "over_limit": table["status"] == "OVER_LIMIT",
        "failed": table["status"].isin(["FAILED", "KILLED"]),
        "front": table["front"],
    }
    found = {"runs/all": float(len(table))} | {
        f"runs/{name}": float(rows.sum()) for name, rows in counts.items()
    }
    for objective in objectives:
        name = recorded_name(objective.metric)
        if table["front"].any() and name in table:
            values = table.loc[table["front"], name]
            found[f"study_best/{name}"] = float(
                values.max() if objective.direction == "maximize" else values.min()
            )
    return found


def show_single(
    store: Store, run_id: str, objectives: list[Objective], limits: list[Limit]
) -> None:
    """Show one run as `summarise_study` shows a study's."""
    runs = read.runs(store, f"attributes.run_id = '{run_id}'")
    show(
        compare(runs, objectives, limits),
        [*objectives, *limits],
        str(runs.at[0, "name"]),
        store,
        run_id,
    )


def test_run(store: Store, run_id: str) -> dict[str, float]:
    """Evaluate a finished run's checkpoint on its test split and add the figures to its record.

    Returns:
        The figures; none where there is no test split.
    """
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
        compression.record_degradation(store, run, [(config.origin, run_id)])
    run.flush()
    return figures


def test_once(store: Store, chosen: pd.DataFrame, why: str) -> bool:
    """Evaluate finished trials on their test split, those that are not yet; a trial of several seeds by each of them.

    Args:
        store: Where the runs are.
        chosen: Rows of a comparison.
        why: For the tag `tested`, such as "as a member of the front".

    Returns:
        Whether any was evaluated, or tried to be. One that could not be gets the tag
        `test_failure`.
    """
    if "test/accuracy" in chosen:
        chosen = chosen[chosen["test/accuracy"].isna()]
    for run_id, repeated in zip(chosen["run_id"], chosen["kind"] == "trial", strict=True):
        log.info("run %s, %s: evaluated on the test split, once", run_id, why)
        try:
            if repeated:
                _test_repeats(store, run_id)
            else:
                test_run(store, run_id)
            run = Run.attach(store, run_id)
            run.tag(tested=why)
            run.untag("test_failure")  # of an earlier try, on a machine without the data perhaps
        except Exception as error:  # the comparison of the others is not lost for it
            reason = one_line(error) or format_bug(error)
            Run.attach(store, run_id).tag(test_failure=reason)
            log.error("run %s could not be evaluated on the test split: %s", run_id, reason)
    return len(chosen) > 0


def _test_repeats(store: Store, run_id: str) -> None:
    """Each seed's run, and their mean and spread on the trial's."""
    children = read.children(store, run_id)
    figures = []
    for _, child in children[children["status"] == "FINISHED"].iterrows():
        names = [str(name) for name in child.index if str(name).startswith(TESTED)]
        known = {name.removeprefix("metrics."): float(child[name]) for name in names}
        tested = {name: value for name, value in known.items() if not math.isnan(value)}
        figures.append(tested or test_run(store, child["run_id"]))
    if not figures:
        raise UserError(f"run {run_id} has no finished seeds: nothing to test")
    means, spreads = aggregate(figures)
    trial = Run.attach(store, run_id)
    if "tags.origin" in children and children["tags.origin"].notna().any():
        finished = children.loc[children["status"] == "FINISHED", "run_id"]
        compression.record_degradation(
            store, trial, [(origin.origin_of(store, each), each) for each in finished]
        )
    trial.log(means | {f"spread/{name}": value for name, value in spreads.items()})
    trial.flush()


def show(
    table: pd.DataFrame, drawn_over: list[Objective | Limit], title: str, store: Store, run_id: str
) -> None:
    """Print the comparison, what is wrong with it, and where to look next."""
    shown = table[table["front"] | (table.index < SHOWN)].head(2 * SHOWN)
    if recorded_name("val/accuracy") in table:
        console.print(render(shown, f"{title}: validation, at the kept epoch", "val"))
    tested = shown[shown["test/accuracy"].notna()] if "test/accuracy" in shown else shown.iloc[:0]
    if len(tested):
        console.print(render(tested, f"{title}: test, never used for choosing", "test"))
    if (lost := render_lost(shown)) is not None:
        console.print(lost)
    former = table[(table["tested"] == FRONT_MEMBER) & ~table["front"]]
    if len(former):
        _say(
            f"{len(former)} runs were tested as members of an earlier front and have left it since: the study went on "
            "after their test figures were seen"
        )
    if len(shown) < len(table):
        _say(f"{len(table) - len(shown)} more rows are in the artifact comparison.csv")
    _say(f"front: {', '.join(map(str, drawn_over))}")
    for note in notes(table):
        _say(note)
    _say_failures(table)
    for _, row in (shown[shown["front"]] if len(shown) > SHOWN_FAILURES else shown).iterrows():
        _say(
            f"run {row['run_id']}  {row_name(table, row)}  {row['overrides'] if len(table) > 1 else ''}".rstrip()
        )
    page = f"#/experiments/{store.experiment_id}/runs/{run_id}"
    console.print(f"look: {_ui(store)}/{page}", highlight=False, markup=False, soft_wrap=True)


def _say_failures(table: pd.DataFrame) -> None:
    failed = table[table["status"].isin(["FAILED", "KILLED", "RUNNING"])]
    for _, row in failed.head(SHOWN_FAILURES).iterrows():
        _say(
            f"{row['status']}: {row['model'] or 'trial ' + row['trial']}, run {row['run_id']}: {row['failure']}"
        )
    if len(failed) > SHOWN_FAILURES:
        _say(f"{len(failed) - SHOWN_FAILURES} more failed: see comparison.csv")


def _ui(store: Store) -> str:
    """Where the store can be looked at: its server's address, or the command that serves it."""
    if store.is_server:
        return store.uri.rstrip("/")
    command = (
        "make ui" if store.uri == Store().uri else f"python -m src.tracking.ui uri={store.uri}"
    )
    return f"{command}, then http://127.0.0.1:5000"


def _say(line: str) -> None:
    console.print(line, highlight=False, markup=False)
