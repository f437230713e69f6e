"""Compares the runs of a study, evaluates its front on the test split once, and shows both."""

import functools
import itertools
import logging
import math
import shlex
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from src.core import cli
from src.core.errors import UserError
from src.core.tables import Table
from src.deployment import trained
from src.metrics import bootstrap, formatting, pareto, registry
from src.metrics.registry import COMPRESSION, COSTS, LOST, PRIMARY, RECORDED, Limit, Objective
from src.reporting import style
from src.reporting.decisions import decide, sentences
from src.reporting.record import ReportSettings
from src.sweep.overrides import parameters
from src.tracking import read, views
from src.tracking.read import texts
from src.tracking.run import Run
from src.tracking.store import Store

MOST_ROWS = 20  # in the terminal; comparison.csv has all
# Values of the tag `tested`: why a run was evaluated on the test split.
FRONT_MEMBER = "as a member of the front"
ANSWER = "as the answer to a question of a report"
TIMES = [*registry.MAIN_TIMES.values(), "efficiency/throughput"]
METHODS = ["latency_method", "ratio_method"]  # tags: how, and when
_TAGS = ["model", "trial", "overrides", "split", "grouped_by", "split_fingerprint", "kind"]
_TAGS += ["tested", "front", *COMPRESSION, "trial_state", "failure", "flops_missing", *METHODS]
_MOST_FAILURES = 5
log = logging.getLogger(__name__)


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
        OVER_LIMIT, PUT_BACK, FAILED, KILLED, RUNNING), failure, flops_missing (operators),
        latency_method, ratio_method, feasible, front, and the metrics by recorded names. Sorted by
        the first objective, the best first; runs without a result last.
    """
    table = pd.DataFrame({tag: texts(runs, f"tags.{tag}") for tag in _TAGS}, runs.index)
    table.insert(0, "run_id", runs["run_id"])
    table = table.rename(columns={"front": "was_front", "trial_state": "status"})
    table["kind"] = table["kind"].replace("", "run")
    # MLflow's status; trials that were stopped by decision have their own
    early = table["status"].isin(["pruned", "over_limit", "put_back"])
    table["status"] = table["status"].str.upper().where(early, runs["status"])
    metrics = runs.loc[:, runs.columns.str.startswith("metrics.")]
    metrics = metrics.rename(columns=lambda name: name.removeprefix("metrics."))
    names = [objective.metric for objective in objectives]
    for name in set(names) & set(metrics):
        metrics[name] = metrics[name].astype(float).replace([math.inf, -math.inf], math.nan)
    feasible = table["status"] == "FINISHED"
    for limit in limits:
        measured = metrics.reindex(columns=[limit.metric]).iloc[:, 0]
        feasible &= measured.map(limit.holds).astype(bool)
    values = metrics.reindex(columns=names).to_numpy(dtype=float, copy=True)
    values[~feasible.to_numpy()] = math.nan
    front = pareto.front(values, list(objectives))
    table = pd.concat([table.assign(feasible=feasible, front=front), metrics], axis="columns")
    order = pareto.as_losses(values, objectives)[:, 0].argsort(kind="stable")  # NaN last
    return table.iloc[order].reset_index(drop=True)


def comparison_table(table: pd.DataFrame, title: str, split: str) -> Table:
    """Quality and cost of each run of `compare`; members of the front are bold.

    `split` is "val" or "test": where the quality was measured.
    """
    prefix = RECORDED[split]
    quality, spread = f"{prefix}/{PRIMARY}", f"spread/{prefix}/{PRIMARY}"
    melanoma = f"{prefix}/recall/{registry.melanoma_class(table, prefix)}"
    columns = [quality, spread, f"{prefix}/accuracy", melanoma, *COSTS]
    if table.reindex(columns=[spread]).isna().all(axis=None):
        columns.remove(spread)
    figures = table.reindex(columns=columns).astype(float)
    marks = table["status"].replace({"PRUNED": "pruned", "PUT_BACK": "put back", "FINISHED": "no"})
    over = (table["status"] == "OVER_LIMIT") | (marks == "no") & ~table["feasible"]
    marks = marks.mask(over, "over limit").mask(table["front"], "yes")
    frame = pd.concat([_row_names(table), figures], axis="columns").assign(front=marks)
    heads = {name: "±" if name == spread else registry.short_label(name) for name in columns}
    return Table(
        frame,
        title,
        # in two lines, to fit a narrow terminal
        labels={name: head.replace(" ", "\n").replace("/", "/\n") for name, head in heads.items()},
        formats={name: functools.partial(formatting.cell, name) for name in heads},
        bold=frozenset(np.flatnonzero(table["front"]).tolist()),
    )


def degradation_table(table: pd.DataFrame) -> Table | None:
    """What compression cost in percentage points; None if no run is compressed."""
    metrics = [PRIMARY, "accuracy", f"recall/{registry.melanoma_class(table, LOST)}"]
    metrics = [f"{LOST}/{name}" for name in metrics]
    rows = table[table["origin"] != ""]
    rows = rows[rows.reindex(columns=metrics).notna().any(axis="columns")]
    if rows.empty:
        return None

    def points(value: float, low: float, high: float) -> str | None:
        show = "{:.1f}".format
        return None if math.isnan(value) else show(value) + formatting.interval(low, high, show)

    frame = pd.DataFrame({"model": _row_names(table), "compression": rows["compression"]})
    for name in metrics:
        ends = rows.reindex(columns=[name, f"{name}/low", f"{name}/high"]).astype(float) * 100
        frame[name] = pd.Series(map(points, *ends.T.to_numpy()), rows.index)
    frame = frame.loc[rows.index].assign(on=rows["lost_on"], origin=rows["origin"].str[:8])
    return Table(
        frame,
        "Lost by compression, percentage points [95% interval]",
        "Origin minus compressed; above 0: the compressed model is worse.",
        labels={name: registry.short_label(name) for name in metrics},
        formats=dict.fromkeys(metrics, str),
    )


def _row_names(table: pd.DataFrame) -> pd.Series:
    """The model of each row, with the number of the trial if several rows have that model."""
    several = table["model"].duplicated(keep=False)
    return table["model"].mask(several, table["model"] + " #" + table["trial"].astype(str))


def warnings(table: pd.DataFrame) -> list[str]:
    """What may make the figures of `compare` misleading."""
    finished = table[table["status"] == "FINISHED"]
    missing = table[table["flops_missing"] != ""].groupby("flops_missing", sort=False)["model"]
    return sentences(
        "warnings",
        unvalidated=len(finished) > 0 and "best/val/accuracy" not in table,
        leaks=finished["split"].str.contains("leaking").any(),
        ungrouped=(finished["grouped_by"] == "image").any(),
        splits=finished["split_fingerprint"].nunique(),
        methods=max(len(set(finished.get(name, [])) - {""}) for name in METHODS),
        timed=int(finished.reindex(columns=TIMES[:1]).notna().to_numpy().sum()),
        finished=len(finished),
        incomplete={operators: list(models.unique()) for operators, models in missing},
    )


def summarise_study(
    store: Store, study_run: Run, objectives: list[Objective], limits: list[Limit], *at_end: str
) -> pd.DataFrame:
    """Compare the trials of a study, test the front once, and record both on the study's run.

    "test" evaluates members of the front without test figures on the test split; "time" measures
    the latency of those without it.

    Returns:
        The comparison, one row per trial.
    """
    runs = read.children(store, study_run.id)
    table = compare(runs, objectives, limits)
    is_timed = "time" in at_end and measure_once(store, table[table["front"]])
    if ("test" in at_end and test_once(store, table[table["front"]], FRONT_MEMBER)) or is_timed:
        runs = read.children(store, study_run.id)
        table = compare(runs, objectives, limits)
    for run_id in table.loc[table["front"], "run_id"]:
        try:
            trained.log_model(store, run_id)
        except Exception as error:
            reason = cli.one_line(error) or traceback.format_exc()
            log.error("run %s has no model in MLflow: %s", run_id, reason)
    bounds = record_intervals(store, table, objectives)
    changed = table[table["front"] != (table["was_front"] == "true")]
    colours = itertools.cycle(style.CYCLE)
    for run_id, member in zip(changed["run_id"], changed["front"], strict=True):
        colour = next(colours) if member else style.PALE
        Run.attach(store, run_id).tag(front=bool(member), **{views.COLOUR: colour})
    study_run.table(table.drop(columns=["was_front"]), "comparison.csv")
    front, states = table[table["front"]], table["status"].replace("KILLED", "FAILED")
    metrics = {"runs/all": len(table), "runs/front": len(front)}
    for state in ("FINISHED", "PRUNED", "OVER_LIMIT", "PUT_BACK", "FAILED"):
        metrics[f"runs/{state.lower()}"] = int((states == state).sum())
    for objective in objectives if len(front) else []:
        best = front[objective.metric].agg("max" if objective.direction == "maximize" else "min")
        metrics[f"study_best/{objective.metric}"] = best
    study_run.log(metrics)
    ends = ("", ".name", "._target_")  # what says which of a group's files was chosen
    keys = [
        [key + end for end in ends if f"params.{key}{end}" in runs]
        for key in map(str, parameters(table))
    ]
    shown = map(str, comparison_table(table, "", "val").frame)
    columns = [*bounds, *(column for column in shown if f"metrics.{column}" in runs)]
    names = {objective.metric: objective.direction for objective in objectives}
    views.save(study_run, names, columns, [first for first, *_ in filter(None, keys)])
    pages = views.pages(store, study_run.id)
    _show(table, [*objectives, *limits], study_run.name, store, pages)
    cli.say(f"report: {store.report_command(study_run.name)}", wrap=False)
    return table


def record_intervals(
    store: Store, table: pd.DataFrame, objectives: Sequence[Objective]
) -> list[str]:
    """Record the 95% interval of the first quality on validation, of members of the front.

    `intervals` of `src.metrics.bootstrap` computes it, by lesion and seed. A trial has none without
    a trained net, or if its recorded predictions do not define the metric.

    Returns:
        The names of the recorded metrics: low/<quality>, high/<quality>; empty without them.
    """
    names = [item.metric for item in objectives if item.metric.startswith("best/val/")][:1]
    bounds: list[str] = []
    for run_id in table.loc[table["front"], "run_id"] if names else ():
        metric = names[0].removeprefix("best/val/")
        try:
            frames = trained.find(store, run_id).predictions(store, "val")
            if not frames or metric not in bootstrap.gather(frames).metrics:
                continue
        except UserError as error:
            log.warning("run %s has no interval: %s", run_id, error)
            continue
        low, high = bootstrap.intervals(frames, [metric])[["low", "high"]].to_numpy(dtype=float)[0]
        if low == low:  # it has an interval
            values = {f"low/{names[0]}": low, f"high/{names[0]}": high}
            Run.attach(store, run_id).log(values)
            bounds = list(values)
    return bounds


def chosen_notes(
    table: pd.DataFrame, objectives: Sequence[Objective], limits: Sequence[Limit]
) -> dict[int, str]:
    """Why each chosen trial of `compare` was chosen, in Markdown, by the trial's number."""
    table = table.assign(label=_row_names(table))
    notes: dict[int, str] = {}
    for _, row in table[table["front"]].iterrows():
        figures = [formatting.figure(item.metric, row[item.metric]) for item in objectives]
        front = f"**On the Pareto front**: {formatting.joined(figures)}."
        notes[int(row["trial"])] = f"{front} Run `{row['run_id']}` in MLflow."
    answers = []
    if not all(formatting.is_cost(objective.metric) for objective in objectives):
        answers = decide(table, objectives, limits, ReportSettings.margin, (), ())
    numbers = table.set_index("run_id")["trial"]
    for answer in answers:
        if answer.run_id:
            number = int(numbers[answer.run_id])
            notes[number] = (
                f"{notes.get(number, '')}\n\n**{answer.question}** {answer.text}".strip()
            )
    return notes


def show_single(
    store: Store, run_id: str, objectives: list[Objective], limits: list[Limit]
) -> None:
    """Show one run as `summarise_study` shows a study."""
    runs = read.runs(store, f"attributes.run_id = '{run_id}'")
    table = compare(runs, objectives, limits)
    pages = {"run": views.page(store, run_id)}
    _show(table, [*objectives, *limits], str(runs.at[0, "name"]), store, pages)


def test_run(store: Store, run_id: str) -> dict[str, float]:
    """Evaluate a finished run's checkpoint on its test split and record the figures.

    There are none without a test split.
    """
    # torch takes seconds to import, and most reports do not test a run
    from src.core.config import read_recorded
    from src.deployment.compression import origin
    from src.training import loop

    config = read_recorded(read.artifact(store, run_id, "config.yaml"))
    parts = loop.build(config, pretrained=False)
    parts.classifier = trained.restore(parts.classifier, store, run_id)
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
    chosen = chosen[chosen.reindex(columns=["test/accuracy"]).isna().all(axis="columns")]
    for run_id, kind in zip(chosen["run_id"], chosen["kind"], strict=True):
        log.info("run %s is evaluated on the test split, %s", run_id, why)
        run = Run.attach(store, run_id)
        try:
            (test_seeds if kind == "trial" else test_run)(store, run_id)
            run.tag(tested=why)
            run.untag("test_failure")
        except Exception as error:
            reason = cli.one_line(error) or traceback.format_exc()
            run.tag(test_failure=reason)
            log.error("run %s could not be evaluated on the test split: %s", run_id, reason)
    return len(chosen) > 0


def measure_once(store: Store, chosen: pd.DataFrame) -> bool:
    """Measure the times that finished trials of a comparison lack; returns whether any did.

    Those of the first seed's net are recorded on the trial and all seeds. A failure is logged, and
    the other trials are still measured. Compressed runs have their times already.
    """
    from src.training import loop
    from src.training.classifier import Classifier

    lacking = chosen.reindex(columns=TIMES).isna().any(axis="columns") & (chosen["origin"] == "")
    for run_id in chosen.loc[lacking, "run_id"]:
        try:
            log.info("run %s is on the front: its latency is measured", run_id)
            model = trained.find(store, run_id)
            nets = [net.run_id for net in model.nets]
            recorded = store.client.get_run(nets[0]).data.metrics
            cost = {name: recorded[name] for name in recorded if name.startswith("efficiency/")}
            file = read.artifact(store, nets[0], trained.CHECKPOINT)
            classifier = Classifier.load_from_checkpoint(file)
            profile = loop.measure(model.config, classifier, cost, when="at the end of the study")
            times = {k: v for k, v in profile.metrics.items() if k not in {*cost, views.LOG_FLOPS}}
            profile = replace(profile, metrics=times)  # the rest may differ between the seeds
            for member in dict.fromkeys([*nets, run_id]):
                run = Run.attach(store, member)
                loop.log_cost(run, profile, "efficiency_at_end.json")
                run.flush()
        except Exception as error:
            reason = cli.one_line(error) or traceback.format_exc()
            log.error("run %s: its latency could not be measured: %s", run_id, reason)
    return bool(lacking.any())


def test_seeds(store: Store, run_id: str) -> None:
    """Test each finished seed of a trial once; record mean and spread on the trial.

    Raises:
        UserError: No seed has finished.
    """
    from src.sweep.repeats import aggregate

    seeds = read.children(store, run_id)
    seeds = seeds[seeds["status"] == "FINISHED"].set_index("run_id")
    if seeds.empty:
        raise UserError(f"run {run_id} has no finished seeds: nothing to test")
    recorded = seeds.loc[:, seeds.columns.str.startswith("metrics.test/")].astype(float)
    recorded = recorded.rename(columns=lambda name: name.removeprefix("metrics."))
    figures = [
        recorded.loc[seed].dropna().to_dict() or test_run(store, seed) for seed in seeds.index
    ]
    means, spreads = aggregate(figures)
    trial = Run.attach(store, run_id)
    if (texts(seeds, "tags.origin") != "").any():
        from src.deployment.compression import origin

        pairs = [(store.client.get_run(seed).data.tags["origin"], seed) for seed in seeds.index]
        origin.record_degradation(store, trial, pairs)
    trial.log(means | {f"spread/{name}": value for name, value in spreads.items()})
    trial.flush()


def _show(
    table: pd.DataFrame,
    front_of: list[Objective | Limit],
    title: str,
    store: Store,
    pages: dict[str, str],
) -> None:
    """Print the comparison, its warnings, the failures, and where to look next."""
    rows = table[table["front"] | (table.index < MOST_ROWS)].head(2 * MOST_ROWS)
    if "best/val/accuracy" in table:
        caption = f"{title}: validation, at the chosen epoch"
        cli.console.print(comparison_table(rows, caption, "val").to_rich())
    tested = rows[rows.reindex(columns=["test/accuracy"]).notna().all(axis="columns")]
    if len(tested):
        caption = f"{title}: test, never used to choose"
        cli.console.print(comparison_table(tested, caption, "test").to_rich())
    if (degradation := degradation_table(rows)) is not None:
        cli.console.print(degradation.to_rich())
    failed = table[table["status"].isin(["FAILED", "KILLED", "RUNNING"])]
    lines = sentences(
        "comparison",
        front_of=front_of,
        repeated=(table["kind"] == "trial").any(),
        warnings=warnings(table),
        former=int(((table["tested"] == FRONT_MEMBER) & ~table["front"]).sum()),
        hidden=len(table) - len(rows),
        failed=failed.head(_MOST_FAILURES).to_dict("records"),
        more_failed=len(failed) - _MOST_FAILURES,
    )
    listed = rows[rows["front"]] if len(rows) > _MOST_FAILURES else rows
    for row in listed.join(_row_names(table).rename("name")).to_dict("records"):
        overrides = row["overrides"] if len(table) > 1 else ""
        lines.append(f"run {row['run_id']}  {row['name']}  {overrides}".rstrip())
    for line in lines:
        cli.say(line)
    address, lines = store.uri.rstrip("/"), ["look:"]
    if not store.is_server:
        typed = "" if store.uri == Store().uri else " " + shlex.quote(f"uri={store.uri}")
        command = "python -m src.tracking.ui" + typed
        command = command if typed or Path.cwd() != cli.ROOT else "make ui"
        address, lines = "http://127.0.0.1:5000", [f"look: {command}, then"]
    lines += [f"{name:<9}{address}{page}" for name, page in pages.items()]
    cli.say("\n".join(lines), wrap=False)
