"""The Pareto report from end to end: compute, write, publish to MLflow, show."""

import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from src.core.cli import console, say
from src.core.config import load_settings
from src.core.errors import ConfigError, UserError, masked
from src.core.files import atomic_folder, refuse_unwritable
from src.core.tables import Table
from src.deployment import trained
from src.metrics.formatting import is_cost
from src.metrics.pareto import Scale, hypervolume
from src.metrics.registry import Limit, Objective, parse_limits
from src.reporting import ablation, charts, collect, comparison, decisions, page, uncertainty
from src.reporting.ablation import importance
from src.reporting.collect import StudyRuns
from src.reporting.decisions import Answer, cost_of, quality_objective, sentences
from src.reporting.record import Report, ReportSettings
from src.reporting.uncertainty import measure, with_intervals
from src.sweep import overrides
from src.tracking import model_registry, read
from src.tracking.read import texts
from src.tracking.run import Run, recordable
from src.tracking.store import Store, existing

MOST_CURVES = 120  # trials whose learning curves are read, besides the front and the chosen ones
FEW_PARAMETERS = 3  # with more, each of them hides the effect of the others
FOLDER = "report"  # within the artifacts of the study's run
DESCRIPTION = "mlflow.note.content"  # the tag that MLflow shows as a run's description
log = logging.getLogger(__name__)


def make(config: DictConfig) -> Report:
    """Make, write and publish the report of a composed `conf/command/report.yaml`.

    Raises:
        UserError: Bad input, or nothing to report on; the message names the key.
    """
    settings = load_settings(config, ReportSettings, without=("tracking", "from_experiment"))
    experiment = config.from_experiment
    if not settings.studies and not settings.filter and not experiment:
        names: list[str] = []
        with suppress(UserError):  # the studies of the store, if it can be read
            names = collect.known_studies(read.cached_runs(existing(config)))[: collect.MOST_NAMES]
        hint = f"; there are {', '.join(names)}" if names else ""
        needs = "name one, as in study=dense_size (or take experiment=..., or filter=...)"
        raise UserError(f"study: {needs}{hint}")
    store = existing(config, experiment)
    studies, title = _studies(settings, store, settings.refresh)
    name = re.sub(r"[^\w.=,+-]+", "_", title).strip("_.")[:100] or "report"
    folder = Path(settings.folder) / name
    refuse_unwritable(folder, "the report")
    for study in studies:
        states, status = texts(study.trials, "tags.trial_state"), study.trials["status"]
        ends = states.where(status == "FINISHED", status).replace("", "complete").str.lower()
        if not (ends == "complete").any():
            counts = ends.str.replace("_", " ").value_counts()
            numbers = ", ".join(f"{number} {end}" for end, number in counts.items())
            problem = f"has no finished trial yet ({numbers}); nothing can be compared"
            raise UserError(f"{study.name}: {problem}")
    objectives, limits, notes = collect.purpose(studies, settings.objectives, settings.limits)
    if settings.test and _test_chosen(studies, objectives, limits, settings, store):
        studies, title = _studies(settings, store, refresh=False)
    earlier = studies[0].before(moment) if (moment := settings.moment()) else None
    if earlier is not None and earlier.trials.empty:
        first = f"the first ended {studies[0].trials['end_time'].min():%Y-%m-%dT%H:%M} UTC"
        problem = f"no trial of {studies[0].name} had ended by then, {first}"
        raise UserError(f"before={settings.before}: {problem}")
    log.info("report on %s: %d trials", title, sum(len(study.trials) for study in studies))
    report = build(studies, objectives, limits, settings, title, earlier)
    report.warnings[:0] = notes
    drawn = charts.charts(report)
    from src.reporting import plots_static  # matplotlib

    with atomic_folder(folder, "the report") as draft:
        page.write(report, drawn, draft)
        plots_static.write(drawn, draft / "figures")
    # a report on another question is not the study's own report
    asked = settings.objectives is not None or settings.limits is not None or len(studies) > 1
    for study in studies if settings.publish else []:
        if study.run_id:
            publish(report, study, folder, beside=asked)
        else:
            message = "%s has no run of its own in MLflow: the report is in %s only"
            log.warning(message, study.name, folder)
    if settings.register:
        register(report, store, settings)
    show(report, folder)
    return report


def build(
    studies: Sequence[StudyRuns],
    objectives: list[Objective],
    limits: list[Limit],
    settings: ReportSettings,
    title: str,
    earlier: StudyRuns | None = None,
) -> Report:
    """Compute a report on one study, or on several side by side; the answers are of the first.

    `earlier` is the first study at an earlier time, to compare it with.
    """
    store, every = studies[0].store, [*studies, *([earlier] if earlier else [])]
    study_of = {run_id: study for study in studies for run_id in study.trials["run_id"]}
    compared = [collect.compared(study, objectives, limits) for study in every]
    values = np.vstack([collect.values_of(table, objectives) for table in compared])
    scale = Scale.fit(values, objectives)
    ranked = [collect.rank(table, objectives, scale) for table in compared[: len(studies)]]
    tables = [table for table, _ in ranked]
    if len(tables) > 1:
        tables = [table.assign(label=table["study"] + " " + table["label"]) for table in tables]
    bounds = bounds_of(settings)
    answers = decisions.decide(tables[0], objectives, limits, settings.margin, **bounds)
    choices = decisions.budget_choices(tables[0], objectives)[0]["run_id"]
    table = _with_commands(pd.concat(tables, ignore_index=True), answers, set(choices), study_of)
    quality = quality_objective(objectives)
    name, cost = quality.per_epoch.partition("/")[2], cost_of(objectives)
    measured, doubts = measure(table, cost, name, study_of, settings)
    table = with_intervals(table, measured["intervals"], quality.metric)
    # over several studies data and protocol would be mixed in
    first = table[table["study"] == tables[0]["study"].iloc[0]]
    effects = ablation.effects(first, overrides.parameters(first), objectives)
    shares, caveats = importance(first, overrides.parameters(first), objectives)
    with_result = table["state"].isin(["front", "dominated", "over limit"])
    # the interesting trials, and others evenly from the best to the worst
    important = table["front"] | (table["chosen"] != "")
    others = table.index[~important & (table["state"] != "over_limit")]
    even = np.linspace(0, len(others) - 1, min(MOST_CURVES, len(others))).round().astype(int)
    shown = table[important | table.index.isin(others[even])]
    trial_of: dict[str, str] = {}
    for run_id in shown["run_id"]:
        seeds = texts(study_of[run_id].seeds_of(run_id), "run_id")
        trial_of |= dict.fromkeys(seeds if len(seeds) else [run_id], run_id)
    history = read.history(store, list(trial_of), quality.per_epoch, settings.refresh)
    beside = collect.comparison([*tables, *compared[len(studies) :]], objectives, scale)
    fronts = {
        one["study"].iloc[0]: collect.values_of(one[one["front"]], objectives) for one in tables
    }
    over_time = [collect.progress(one, objectives, scale) for one in tables]
    files = collect.files_of(store, table[table["chosen"] != ""])
    computed: dict[str, Any] = {**measured, **files}
    report = Report(
        title=title,
        studies=[study.name for study in studies],
        objectives=objectives,
        limits=limits,
        written=datetime.now(UTC).isoformat(timespec="seconds"),
        source=masked(store.uri),
        table=table,
        quality=quality.metric,
        costs=collect.costs_of(table, objectives),
        parameters=overrides.parameters(table[with_result]),
        answers=answers,
        **computed,
        effects=effects,
        importance=shares,
        curves=learning_curves(history, shown, trial_of),
        progress=pd.concat(over_time, ignore_index=True),
        reference=[*sentences("scale", scale=scale), ranked[0][1]],
        hypervolume={name: hypervolume(scale.transform(some)) for name, some in fronts.items()},
        counts=uncertainty.counts(table),
        warnings=[],
        remarks=[],
        comparison=beside if len(compared) > 1 else pd.DataFrame(),
        tables=_effect_tables(effects, objectives),
    )
    # the caveats of several objectives are about the same trials
    notes = [*doubts, *caveats[:1]]
    trials = pd.concat([study.trials for study in studies], ignore_index=True)
    on_test = uncertainty.on_test(report, bounds["floors"], settings.level)
    doubts, remarks = uncertainty.warnings(report, notes, trials)
    return replace(report, on_test=on_test, warnings=doubts, remarks=remarks)


def _with_commands(
    table: pd.DataFrame,
    answers: Sequence[Answer],
    choices: set[str],
    study_of: Mapping[str, StudyRuns],
) -> pd.DataFrame:
    """Add the answers that chose a run, its first net, and the command that trains it again."""
    names: dict[str, list[str]] = {}
    for answer in answers:
        names.setdefault(answer.run_id, []).append(answer.name)
    chosen = {run_id: "; ".join(some) for run_id, some in names.items() if run_id}
    table = table.assign(chosen=table["run_id"].map(chosen).fillna(""), command="", net="")
    offered = table["front"] | (table["chosen"] != "") | table["run_id"].isin(choices)
    for position in table.index[offered]:
        run_id = str(table.at[position, "run_id"])
        study = study_of[run_id]
        table.at[position, "net"] = study.runs_of(run_id)[0]
        row = study.trials[study.trials["run_id"] == run_id].iloc[0]
        table.at[position, "command"] = collect.retrain(study, row, study.artifacts(run_id))
    return table


def bounds_of(settings: ReportSettings) -> dict[str, list[Limit]]:
    """Budgets and floors; `params <= 692e3` and `recall/mel >= 0.8` need no efficiency/ and val/.

    Raises:
        ConfigError: A text that is not a limit; the message names the key.
    """
    bounds: dict[str, list[Limit]] = {"budgets": [], "floors": []}
    for key, limits in bounds.items():
        for number, bound in enumerate(getattr(settings, key)):
            problems = []
            for prefix in ("", "efficiency/", "val/"):
                try:
                    limits += parse_limits({"limits": [f"{prefix}{bound.strip()}"]})
                    break
                except ConfigError as error:
                    problems.append(error.problem)
            else:
                raise ConfigError(f"{key}[{number}]", problems[0])
    return bounds


def learning_curves(
    history: pd.DataFrame, table: pd.DataFrame, trial_of: dict[str, str] | None = None
) -> pd.DataFrame:
    """One curve per trial, up to the last epoch that was trained.

    The curve of a trial with several seeds is their mean up to the last epoch that all of them
    have: beyond it, the mean of fewer seeds would jump.

    Args:
        history: What runs recorded after their epochs: run_id, step (of the optimizer), value; in
            any order. The last row of a step counts (a resumed run may record it twice). A missing
            value is an epoch without a point.
        table: One row per trial: run_id, label, state.
        trial_of: The trial of a run, for the seeds of a trial.

    Returns:
        `Report.curves`: run_id (of the trial), label, state, epoch (from 1), value; in the order of
        the table, then by epoch. Trials without an epoch are left out.
    """
    points = history.drop_duplicates(["run_id", "step"], keep="last")
    points = points.sort_values(["run_id", "step"], kind="stable")
    points["epoch"] = points.groupby("run_id").cumcount() + 1
    points["trial"] = points["run_id"].replace(trial_of or {})
    seeds = points.groupby("trial")["run_id"].nunique()
    means = points.groupby(["trial", "epoch"])["value"].agg(["mean", "size", "count"]).reset_index()
    complete = (means["size"] == means["trial"].map(seeds)) & (means["count"] == means["size"])
    means = means[complete].rename(columns={"trial": "run_id", "mean": "value"})
    trials = table[["run_id", "label", "state"]].drop_duplicates("run_id")
    curves = trials.merge(means[["run_id", "epoch", "value"]], on="run_id", how="inner")
    return curves.reset_index(drop=True)


def publish(report: Report, study: StudyRuns, folder: Path, beside: bool = False) -> None:
    """Write a report to the study's run: files, metrics, description; tag the front.

    `beside` is for a report on another question than the study's, or on several studies: its files
    get a folder below `report/`, and nothing else is written.
    """
    run = Run.attach(study.store, study.run_id)
    run.artifact(folder, f"{FOLDER}/{folder.name}" if beside else FOLDER)
    if beside:
        return
    rows = report.table[report.table["study"] == study.name]
    run.log(headline(report, rows))
    run.flush()
    run.tag(**{DESCRIPTION: page.markdown(report), "report": report.written})
    before = study.trials.set_index("run_id")
    for tag in ("front", "knee"):
        was = (texts(before, f"tags.{tag}") == "true").reindex(rows["run_id"], fill_value=False)
        for run_id, now, then in zip(rows["run_id"], rows[tag], was, strict=True):
            if now != then:
                Run.attach(study.store, str(run_id)).tag(**{tag: str(bool(now)).lower()})


def headline(report: Report, rows: pd.DataFrame) -> dict[str, float]:
    """Metrics of the run of a study with these rows: its front, the knee, the answers."""
    volume = report.hypervolume.get(str(rows["study"].iloc[0]), 0.0)
    metrics = {"report/front": float(rows["front"].sum()), "report/hypervolume": volume}
    chosen = {"knee": rows[rows["knee"]]}
    chosen |= {answer.name: rows[rows["run_id"] == answer.run_id] for answer in report.answers}
    for name, row in chosen.items():
        words = name.replace("<=", "at most").replace(">=", "at least").replace("/", "_")
        short = re.sub(r"[^\w.-]", "", re.sub(r"\s+", "_", words.strip()))
        for metric in [objective.metric for objective in report.objectives]:
            if len(row) and pd.notna(row.get(metric, pd.Series([np.nan])).iloc[0]):
                key = recordable(f"report/{short}/{metric}")
                metrics[key] = float(row[metric].iloc[0])
    return metrics


def register(report: Report, store: Store, settings: ReportSettings) -> None:
    """Register the cheapest model within the margin, or the best one without such an answer.

    Raises:
        UserError: No answer chose a model, or its files are missing.
    """
    answers = [answer for answer in report.answers if answer.run_id]
    cheapest = [answer for answer in answers if answer.name.startswith("cheapest within")]
    if not answers:
        raise UserError(f"register={settings.register}: no model was chosen, see the report")
    answer = (cheapest or answers)[0]
    row = report.table.set_index("run_id").loc[answer.run_id]
    net_run, model = trained.log_model(store, answer.run_id)
    tags = {name: row[name] for name in ("study", "trial", "split")} | {"answer": answer.name}
    tags["classes"] = trained.class_names(store, trained.find(store, net_run))
    note = f"{answer.question}\n\n{answer.text}\n\nResearch software, no medical device."
    target = (str(settings.register), settings.alias)
    version = model_registry.register(store, model, *target, tags, note)
    log.info("registered %s as version %d of %s, alias %s", row["label"], version, *target)


def show(report: Report, folder: Path) -> None:
    """Print answers, the front, chosen models on test and warnings."""
    console.rule(f"{report.title}: the Pareto report", align="left")
    columns, labels = ["name", "label", "quality", "cost"], {"name": "model", "label": "answer"}
    answers = pd.DataFrame(page.answers(report), columns=columns).replace({"label": {"": "none"}})
    console.print(Table(answers, caption="The page has the reasons.", labels=labels).to_rich())
    console.print(page.short_front(report, comparison.MOST_ROWS).to_rich())
    if len(report.comparison):
        console.print(Table(report.comparison, "Studies side by side, on one scale").to_rich())
    if "table-on_test" in (tables := page.tables(report)):
        tested = tables["table-on_test"]
        # the page has the value of each seed; a question has its floor
        frame = tested.frame.drop(columns=["floor", "seed_values"]).dropna(axis=1, how="all")
        console.print(replace(tested, frame=frame).to_rich())
    for line in report.warnings:
        say(f"! {line}")
    say(f"look: {folder / 'report.html'}", wrap=False)


def _effect_tables(effects: pd.DataFrame, objectives: list[Objective]) -> dict[str, pd.DataFrame]:
    """Means by value for each parameter, the clearest differences, and the smallest good values."""
    if not effects.groupby(["parameter", "objective"])["n"].sum().max() >= charts.LEAST_TRIALS:
        return {}
    names = effects["parameter"].unique()
    tables = {
        f"effect of {name}": ablation.ablation_table(effects, objectives, name) for name in names
    }
    # of costs a net's own figures say more than averages over unevenly drawn trials
    qualities = [objective for objective in objectives if not is_cost(objective.metric)]
    tables["clearest differences"] = ablation.contrasts(effects, qualities)
    quality = quality_objective(objectives)
    ordered = effects[effects["ordered"] & (effects["objective"] == quality.metric)]
    if len(ordered) and len(names) <= FEW_PARAMETERS:
        steps = ordered["parameter"].unique()
        rows = [ablation.knee_of(effects, str(name), quality) for name in steps]
        tables["smallest sufficient values"] = pd.DataFrame(rows)
    return tables


def _studies(settings: ReportSettings, store: Store, refresh: bool) -> tuple[list[StudyRuns], str]:
    """The studies, or the search, and the title."""
    if settings.filter:
        runs = read.runs(store, settings.filter)
        return [collect.selection(runs, settings.filter, store)], settings.filter
    runs = read.cached_runs(store, refresh=refresh)
    if not settings.studies:
        name = f"experiment {store.experiment}"
        return [collect.selection(runs, name, store)], name
    studies = [collect.study(runs, name, store) for name in settings.studies]
    return studies, " and ".join(settings.studies)


def _test_chosen(
    studies: Sequence[StudyRuns],
    objectives: list[Objective],
    limits: list[Limit],
    settings: ReportSettings,
    store: Store,
) -> bool:
    """Evaluate answers and fronts on the test split, once; whether any run had no test figures."""
    tested = False
    tables = [collect.compared(study, objectives, limits) for study in studies]
    for number, table in enumerate(tables):
        chosen = table["front"].copy()
        if number == 0:
            bounds = bounds_of(settings)
            answers = decisions.decide(table, objectives, limits, settings.margin, **bounds)
            chosen |= table["run_id"].isin([answer.run_id for answer in answers])
        validated = table.reindex(columns=["best/val/accuracy"]).notna().all(axis=1)
        rows = table[chosen & validated & (table["tested"] == "")]
        tested |= comparison.test_once(store, rows, comparison.ANSWER)
    return tested
