"""The Pareto report from end to end."""

import logging
import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape

from src.core.config import check, resolve
from src.core.errors import ConfigError, UserError
from src.core.files import atomic_folder
from src.metrics.formatting import is_cost
from src.metrics.pareto import Scale, hypervolume
from src.metrics.registry import Limit, Objective, parse_limits, recorded_name
from src.reporting import ablation, collect, importance, page, plots_html, plots_static
from src.reporting import collect as front
from src.reporting import page as tables
from src.reporting import text as findings
from src.reporting import text as narrative
from src.reporting.collect import PredictionReader, StudyRuns, retrain
from src.reporting.decisions import Answer, decide
from src.reporting.page import markdown
from src.reporting.record import Report, ReportSettings
from src.reporting.uncertainty import measure, with_intervals
from src.sweep import overrides
from src.tracking import read
from src.tracking import read as cache
from src.tracking.run import Run, masked, recordable
from src.tracking.store import Store, existing

CURVES = 120  # trials whose learning curves are read and drawn


def build(
    studies: Sequence[StudyRuns],
    objectives: list[Objective],
    limits: list[Limit],
    reader: PredictionReader,
    settings: ReportSettings,
    title: str,
    earlier: StudyRuns | None = None,
) -> Report:
    """Compute a report.

    Args:
        studies: One, or several side by side; the answers are of the first.
        objectives: Over which the fronts are drawn.
        limits: That their members keep.
        reader: Of predictions and histories.
        settings: Of the report.
        title: Of the report.
        earlier: The first study as it was, to compare it with.
    """
    compared = [
        front.compared(each, objectives, limits)
        for each in [*studies, *([earlier] if earlier else [])]
    ]
    scale = Scale.fit(
        np.vstack([front.values_of(each, objectives) for each in compared]), objectives
    )
    ranked = [front.rank(each, objectives, scale) for each in compared[: len(studies)]]
    tables = [each for each, _ in ranked]
    if len(tables) > 1:
        tables = [each.assign(label=each["study"] + " " + each["label"]) for each in tables]
    own = tables[0]
    answers = decide_on(own, objectives, limits, settings)
    table = pd.concat(tables, ignore_index=True)
    table = table.assign(chosen=_chosen(table, answers), command="")
    quality = front.quality_of(objectives)
    cost = cost_of(own, objectives)
    metric = quality.removeprefix("best/").partition("/")[2]
    measured = measure(table, cost, metric, reader, settings)
    table = with_intervals(table, measured.intervals, quality)
    table["command"] = _commands(table, reader)
    parameters = overrides.parameters(
        table[table["state"].isin(["front", "dominated", "over limit"])]
    )
    first = table[
        table["study"] == own["study"].iloc[0]
    ]  # over several studies data and protocol would be mixed in
    effects = ablation.effects(first, overrides.parameters(first), objectives)
    weights, reasons = importance.importance(first, overrides.parameters(first), objectives)
    beside, fresh = front.comparison([*tables, *compared[len(studies) :]], objectives, scale)
    trials = pd.concat([each.trials for each in studies], ignore_index=True)
    volumes = {
        each["study"].iloc[0]: hypervolume(scale.transform(_front(each, objectives)))
        for each in tables
    }
    report = Report(
        title=title,
        studies=[each.name for each in studies],
        objectives=objectives,
        limits=limits,
        written=datetime.now(UTC).isoformat(timespec="seconds"),
        source=masked(reader.store.uri),
        table=table,
        quality=quality,
        costs=front.costs_of(table, objectives),
        parameters=parameters,
        answers=answers,
        intervals=measured.intervals,
        pairs=measured.pairs,
        drops=measured.drops,
        effects=effects,
        importance=weights,
        curves=_curves(table, quality, reader),
        progress=pd.concat(
            [front.progress(each, objectives, scale) for each in tables], ignore_index=True
        ),
        recalls=measured.recalls,
        reference=scale.describe(),
        hypervolume=volumes,
        counts=narrative.counts(table),
        paragraphs=[],
        warnings=[],
        comparison=beside if len(compared) > 1 else pd.DataFrame(),
        tables=_ablations(effects, objectives),
    )
    floors = bounds_of(settings)["floors"]
    # the reasons of one objective: those of the others say the same of the same trials
    notes = [*measured.notes, *reasons[:1]]
    return replace(
        report,
        paragraphs=findings.paragraphs(report, ranked[0][1], floors, settings.level, fresh),
        warnings=findings.warnings(report, notes, trials),
    )


def decide_on(
    table: pd.DataFrame,
    objectives: Sequence[Objective],
    limits: Sequence[Limit],
    settings: ReportSettings,
) -> list[Answer]:
    """The answers for one study.

    Args:
        table: Of its trials, with their labels.
        objectives: Of the report.
        limits: Of the report.
        settings: Margin, budgets and floors.

    Raises:
        ConfigError: A budget or a floor that is none; the message names the key.
    """
    return decide(
        table,
        objectives,
        limits,
        settings.margin,
        **bounds_of(settings),
        cost=cost_of(table, objectives),
    )


def bounds_of(settings: ReportSettings) -> dict[str, list[Limit]]:
    """Budgets and floors.

    Raises:
        ConfigError: A text that is no limit; the message names the key.
    """
    return {
        key: [
            _limit(text, f"{key}[{number}]") for number, text in enumerate(getattr(settings, key))
        ]
        for key in ("budgets", "floors")
    }


def cost_of(table: pd.DataFrame, objectives: Sequence[Objective]) -> str:
    """By which metric a model is cheap: the first cost among the objectives, else FLOPs."""
    named = [each.metric for each in objectives if is_cost(each.metric)]
    return named[0] if named else "efficiency/flops"


def _limit(text: str, key: str) -> Limit:
    """A budget or a floor; `params <= 692e3` and `recall/mel >= 0.8` may stand without efficiency/ and val/."""
    problems = []
    for prefix in ("", "efficiency/", "val/"):
        try:
            return parse_limits({"limits": [f"{prefix}{text.strip()}"]})[0]
        except ConfigError as error:
            problems.append(error.problem)
    raise ConfigError(key, problems[0])


def _front(table: pd.DataFrame, objectives: Sequence[Objective]) -> np.ndarray:
    return front.values_of(table[table["front"]], objectives)


def _chosen(table: pd.DataFrame, answers: Sequence[Answer]) -> pd.Series:
    names = {
        run_id: ", ".join(answer.name for answer in answers if answer.run_id == run_id)
        for run_id in {answer.run_id for answer in answers if answer.run_id}
    }
    return table["run_id"].map(names).fillna("")


def _commands(table: pd.DataFrame, reader: PredictionReader) -> pd.Series:
    found = pd.Series("", index=table.index, dtype=object)
    for at in table.index[table["front"] | (table["chosen"] != "")]:
        run_id = str(table.at[at, "run_id"])
        study = reader.study_of(run_id)
        row = study.trials[study.trials["run_id"] == run_id].iloc[0]
        found[at] = retrain(study, row, reader.artifacts(run_id))
    return found


def _curves(table: pd.DataFrame, quality: str, reader: PredictionReader) -> pd.DataFrame:
    """Of the quality, for the interesting trials and for others evenly from the best to the worst."""
    always = table["front"] | (table["chosen"] != "")
    others = np.flatnonzero(~always & ~table["state"].isin(["over_limit"]))
    picked = others[
        np.unique(np.linspace(0, len(others) - 1, min(CURVES, len(others))).round().astype(int))
    ]
    shown = table[always | table.index.isin(table.index[picked])]
    history, trial_of = reader.history(list(shown["run_id"]), quality.removeprefix("best/"))
    return plots_html.learning_curves(history, shown, trial_of)


def _ablations(effects: pd.DataFrame, objectives: Sequence[Objective]) -> dict[str, pd.DataFrame]:
    if effects.empty:
        return {}
    return {
        f"effect of {name}": ablation.ablation_table(effects, objectives, [name]).drop(
            columns="parameter"
        )
        for name in effects["parameter"].unique()
    }


FOLDER = "report"  # within the artifacts of the study's run
DESCRIPTION = "mlflow.note.content"  # the tag that MLflow's UI shows as a run's description


def publish(
    report: Report, study: StudyRuns, folder: Path, store: Store, beside: str | None = None
) -> None:
    """Write a study's report to its run: files, headline figures and description; tag the members of its front.

    Args:
        report: Of that study.
        study: Must have a run of its own.
        folder: That holds the report's files.
        store: Opened if it is not yet.
        beside: Of a report on another question than the study's own, or on several studies: where
            its files go below `report/`. Its figures and its front are not the study's: nothing
            else is written.
    """
    run = Run.attach(store, study.run_id)
    if beside is not None:
        run.artifact(folder, f"{FOLDER}/{beside}")
        return
    own = report.table[report.table["study"] == study.name]
    run.artifact(folder, FOLDER)
    run.log(headline(report, own))
    run.flush()
    run.tag(**{DESCRIPTION: markdown(report), "report": report.written})
    tag_front(own, study.trials, store)


def headline(report: Report, own: pd.DataFrame) -> dict[str, float]:
    """Metrics of the study's run: size and hypervolume of its front, the knee, and what each answer chose.

    Args:
        report: Of the study.
        own: Its rows of the table.
    """
    named = [recorded_name(objective.metric) for objective in report.objectives]
    name = str(own["study"].iloc[0])
    found = {
        "report/front": float(own["front"].sum()),
        "report/hypervolume": report.hypervolume.get(name, 0.0),
    }
    chosen = {"knee": own[own["knee"]]}
    chosen |= {
        answer.name: own[own["run_id"] == answer.run_id]
        for answer in report.answers
        if answer.run_id
    }
    for what, rows in chosen.items():
        for metric in named:
            if len(rows) and metric in rows and pd.notna(rows[metric].iloc[0]):
                called = recordable(f"report/{_short(what)}/{metric.removeprefix('best/')}")
                found[called] = float(rows[metric].iloc[0])
    return found


def tag_front(own: pd.DataFrame, trials: pd.DataFrame, store: Store) -> None:
    """Set the tags `front` and `knee` where they are not yet what they should be.

    Args:
        own: The study's rows of the report's table.
        trials: The same runs as the store gave them.
        store: Opened if it is not yet.
    """
    before = trials.set_index("run_id")
    for tag in ("front", "knee"):
        now = pd.Series(own[tag].to_numpy(dtype=bool), index=own["run_id"])
        was = (
            before[f"tags.{tag}"] == "true"
            if f"tags.{tag}" in before
            else pd.Series(False, index=before.index)
        )
        changed = now[now != was.reindex(now.index).fillna(False).astype(bool)]
        for run_id, value in changed.items():
            Run.attach(store, str(run_id)).tag(**{tag: str(bool(value)).lower()})


def _short(name: str) -> str:
    """An answer's name as a part of a metric's name: no spaces, no signs that MLflow refuses."""
    words = name.replace("<=", "at most").replace(">=", "at least").replace("/", "_").split()
    return "_".join(
        "".join(sign for sign in word if sign.isalnum() or sign in "._-") for word in words
    )


log = logging.getLogger(__name__)
console = Console(width=100)
PAGE = "report.html"


def make(config: DictConfig) -> Report:
    """Make the report that a config asks for.

    Args:
        config: A composed `conf/command/report.yaml`.

    Returns:
        The report, after it was written and published.

    Raises:
        UserError: Bad input, or nothing to report on; the message names the culprit.
    """
    settings, store = _settings(config)
    studies, title = _studies(config, settings, store, settings.refresh)
    folder = Path(settings.folder) / _folder_name(title)
    _refuse_unwritable(folder)
    for study in studies:
        _refuse_empty(study)
    objectives, limits, notes = collect.purpose(studies, settings.objectives, settings.limits)
    if settings.test and _test_chosen(studies, objectives, limits, settings, store):
        studies, title = _studies(config, settings, store, False)
    earlier = _earlier(studies[0], settings)
    log.info(
        "computing the report on %s: %d trials", title, sum(len(each.trials) for each in studies)
    )
    reader = PredictionReader(store, studies, settings.refresh)
    report = build(studies, objectives, limits, reader, settings, title, earlier)
    report.warnings[:0] = notes
    write(report, folder)
    if settings.publish:
        # another question than the study's own must not stand in its record as if it were
        own = settings.objectives is None and settings.limits is None and len(studies) == 1
        for study in studies:
            if study.run_id:
                publish(report, study, folder, store, None if own else folder.name)
            else:
                log.warning(
                    "%s has no run of its own in MLflow: the report is in %s only",
                    study.name,
                    folder,
                )
    if settings.register:
        from src.reporting.register import (
            register,  # torch takes seconds to import, most reports need none
        )

        register(report, reader, settings)
    show(report, folder)
    return report


def write(report: Report, folder: Path) -> None:
    """Write the page, the pictures and the tables: the whole folder or, if that fails, nothing; what was there goes."""
    with atomic_folder(folder, "the report") as draft:
        tables.write_tables(report, draft)
        plots_static.write(report, draft / "figures")
        page.write(report, draft / PAGE)


def show(report: Report, folder: Path) -> None:
    """Tell the findings on the terminal, 100 columns wide."""
    console.rule(f"{report.title}: the Pareto report", align="left")
    for answer in report.answers:
        console.print(f"[bold]{escape(answer.question)}[/bold]")
        console.print(f"  {answer.text}", markup=False, highlight=False)
    console.print()
    for paragraph in report.paragraphs:
        console.print(f"- {paragraph}", markup=False, highlight=False)
    for warning in report.warnings:
        console.print(f"! {warning}", markup=False, highlight=False)
    console.print(f"look: {folder / PAGE}", markup=False, highlight=False, soft_wrap=True)


def _settings(config: DictConfig) -> tuple[ReportSettings, Store]:
    plain = resolve(config)
    own = {key: value for key, value in plain.items() if key not in ("tracking", "from_experiment")}
    check({"_target_": "src.reporting.record.ReportSettings", **own})
    settings = ReportSettings(**own)
    settings.check()
    if not settings.studies and not settings.filter and not plain["from_experiment"]:
        raise UserError(
            "study: name one, as in study=dense_size (or take experiment=..., or filter=...)"
            + _hint(config)
        )
    return settings, existing(config, plain["from_experiment"])


def _hint(config: DictConfig) -> str:
    """The studies there are, if the store can be read."""
    try:
        names = collect.known_studies(cache.cached_runs(existing(config)))
    except UserError:
        return ""
    return f"; there are {', '.join(names[: collect.SHOWN_NAMES])}" if names else ""


def _studies(
    config: DictConfig, settings: ReportSettings, store: Store, refresh: bool
) -> tuple[list[StudyRuns], str]:
    if settings.filter:
        found = read.runs(store, settings.filter)
        return [collect.selection(found, settings.filter, store)], settings.filter
    runs = cache.cached_runs(store, refresh=refresh)
    if not settings.studies:
        name = f"experiment {store.experiment}"
        return [collect.selection(runs, name, store)], name
    return [collect.study(runs, name, store) for name in settings.studies], " and ".join(
        settings.studies
    )


def _refuse_unwritable(folder: Path) -> None:
    """Before anything is tested or computed."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder.parent):
            pass
        if folder.exists() and not folder.is_dir():
            raise FileExistsError(f"{folder} is a file")
    except OSError as error:
        raise UserError(
            f"folder={folder.parent}: the report cannot be written there ({error})"
        ) from error


def _refuse_empty(study: StudyRuns) -> None:
    ends = _column(study.trials, "tags.trial_state").where(
        study.trials["status"] == "FINISHED", study.trials["status"]
    )
    ends = ends.replace("", "complete").str.lower().str.replace("_", " ")
    if not (ends == "complete").any():
        told = ", ".join(f"{number} {end}" for end, number in ends.value_counts().items())
        raise UserError(
            f"{study.name}: has no finished trial yet ({told}); nothing can be compared"
        )


def _earlier(study: StudyRuns, settings: ReportSettings) -> StudyRuns | None:
    moment = settings.moment()
    if moment is None:
        return None
    earlier = study.before(moment)
    if earlier.trials.empty:
        first = study.trials["end_time"].min()
        ended = f"the first did {first:%Y-%m-%dT%H:%M} UTC"
        raise UserError(
            f"before={settings.before}: no trial of {study.name} had ended by then, {ended}"
        )
    return earlier


def _column(frame: pd.DataFrame, name: str) -> pd.Series:
    return frame[name].fillna("") if name in frame else pd.Series("", index=frame.index)


def _test_chosen(
    studies: Sequence[StudyRuns],
    objectives: list[Objective],
    limits: list[Limit],
    settings: ReportSettings,
    store: Store,
) -> bool:
    """Evaluate the answers and the members of the fronts on the test split, those that were not; whether any was."""
    to_test = []
    for number, study in enumerate(studies):
        table = front.compared(study, objectives, limits)
        wanted = table["front"]
        if number == 0:
            answers = decide_on(table, objectives, limits, settings)
            wanted = wanted | table["run_id"].isin([answer.run_id for answer in answers])
        trained = table.get(recorded_name("val/accuracy"), pd.Series(index=table.index)).notna()
        untested = table.get("test/accuracy", pd.Series(index=table.index)).isna() & (
            table["tested"] == ""
        )
        to_test.append(table[wanted & trained & untested])
    if not any(map(len, to_test)):
        return False
    from src.reporting import (
        comparison as summary,  # torch takes seconds to import, most reports need none
    )

    tested = [
        summary.test_once(store, rows, summary.ANSWER) for rows in to_test
    ]  # all of them, not only up to the first
    return any(tested)


def _folder_name(title: str) -> str:
    return re.sub(r"[^\w.=,+-]+", "_", title).strip("_.")[:100] or "report"
