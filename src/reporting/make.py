"""A report from end to end: read, test what is chosen, compute, write, publish, and tell the terminal."""

import logging
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape

from src.analysis.comparison import recorded_name
from src.config import check, resolve
from src.errors import UserError
from src.objectives import Limit, Objective
from src.reporting import collect, front, page, static, tables
from src.reporting.build import build, decide_on
from src.reporting.collect import Study
from src.reporting.publish import publish
from src.reporting.reader import Reader
from src.reporting.record import Report
from src.reporting.settings import Settings
from src.tracking import cache, read
from src.tracking.existing import existing
from src.tracking.store import Store
from src.whole import whole_folder

log = logging.getLogger(__name__)
console = Console(width=100)
PAGE = "report.html"


def make(config: DictConfig) -> Report:
    """Make the report that a config asks for.

    Args:
        config: A composed `conf/report.yaml`.

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
    log.info("computing the report on %s: %d trials", title, sum(len(each.trials) for each in studies))
    reader = Reader(store, studies, settings.refresh)
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
                log.warning("%s has no run of its own in MLflow: the report is in %s only", study.name, folder)
    if settings.register:
        from src.reporting.register import register  # torch takes seconds to import, most reports need none

        register(report, reader, settings)
    show(report, folder)
    return report


def write(report: Report, folder: Path) -> None:
    """Write the page, the pictures and the tables: the whole folder or, if that fails, nothing; what was there goes."""
    with whole_folder(folder, "the report") as draft:
        tables.write(report, draft)
        static.write(report, draft / "figures")
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


def _settings(config: DictConfig) -> tuple[Settings, Store]:
    plain = resolve(config)
    own = {key: value for key, value in plain.items() if key not in ("tracking", "from_experiment")}
    check({"_target_": "src.reporting.settings.Settings", **own})
    settings = Settings(**own)
    settings.check()
    if not settings.studies and not settings.filter and not plain["from_experiment"]:
        raise UserError(
            "study: name one, as in study=dense_size (or take experiment=..., or filter=...)" + _hint(config)
        )
    return settings, existing(config, plain["from_experiment"])


def _hint(config: DictConfig) -> str:
    """The studies there are, if the store can be read."""
    try:
        names = collect.known_studies(cache.cached_runs(existing(config)))
    except UserError:
        return ""
    return f"; there are {', '.join(names[: collect.SHOWN_NAMES])}" if names else ""


def _studies(config: DictConfig, settings: Settings, store: Store, refresh: bool) -> tuple[list[Study], str]:
    if settings.filter:
        found = read.runs(store, settings.filter)
        return [collect.selection(found, settings.filter, store)], settings.filter
    runs = cache.cached_runs(store, refresh=refresh)
    if not settings.studies:
        name = f"experiment {store.experiment}"
        return [collect.selection(runs, name, store)], name
    return [collect.study(runs, name, store) for name in settings.studies], " and ".join(settings.studies)


def _refuse_unwritable(folder: Path) -> None:
    """Before anything is tested or computed."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder.parent):
            pass
        if folder.exists() and not folder.is_dir():
            raise FileExistsError(f"{folder} is a file")
    except OSError as error:
        raise UserError(f"folder={folder.parent}: the report cannot be written there ({error})") from error


def _refuse_empty(study: Study) -> None:
    ends = _column(study.trials, "tags.trial_state").where(study.trials["status"] == "FINISHED", study.trials["status"])
    ends = ends.replace("", "complete").str.lower().str.replace("_", " ")
    if not (ends == "complete").any():
        told = ", ".join(f"{number} {end}" for end, number in ends.value_counts().items())
        raise UserError(f"{study.name}: has no finished trial yet ({told}); nothing can be compared")


def _earlier(study: Study, settings: Settings) -> Study | None:
    moment = settings.moment()
    if moment is None:
        return None
    earlier = study.before(moment)
    if earlier.trials.empty:
        first = study.trials["end_time"].min()
        ended = f"the first did {first:%Y-%m-%dT%H:%M} UTC"
        raise UserError(f"before={settings.before}: no trial of {study.name} had ended by then, {ended}")
    return earlier


def _column(frame: pd.DataFrame, name: str) -> pd.Series:
    return frame[name].fillna("") if name in frame else pd.Series("", index=frame.index)


def _test_chosen(
    studies: Sequence[Study], objectives: list[Objective], limits: list[Limit], settings: Settings, store: Store
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
        untested = table.get("test/accuracy", pd.Series(index=table.index)).isna() & (table["tested"] == "")
        to_test.append(table[wanted & trained & untested])
    if not any(map(len, to_test)):
        return False
    from src import summary  # torch takes seconds to import, most reports need none

    tested = [
        summary.test_once(store, rows, summary.ANSWER) for rows in to_test
    ]  # all of them, not only up to the first
    return any(tested)


def _folder_name(title: str) -> str:
    return re.sub(r"[^\w.=,+-]+", "_", title).strip("_.")[:100] or "report"
