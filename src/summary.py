"""What runs amount to: a study's front tested once, its trials compared, and both shown."""

import logging
import math
import tempfile
from pathlib import Path

import pandas as pd
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from src import training
from src.analysis.comparison import compare, notes, recorded_name, render, render_lost, row_name
from src.compression import job as compression
from src.compression import origin
from src.config import check_targets
from src.entry import format_bug, one_line
from src.errors import UserError
from src.objectives import Limit, Objective
from src.sweep.repeats import aggregate
from src.tracking import read
from src.tracking.run import Run
from src.tracking.store import Store
from src.trained.restore import restore

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
    for run_id, now, before in zip(table["run_id"], table["front"], table["was_front"] == "true", strict=True):
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
    found = {"runs/all": float(len(table))} | {f"runs/{name}": float(rows.sum()) for name, rows in counts.items()}
    for objective in objectives:
        name = recorded_name(objective.metric)
        if table["front"].any() and name in table:
            values = table.loc[table["front"], name]
            found[f"study_best/{name}"] = float(values.max() if objective.direction == "maximize" else values.min())
    return found


def show_single(store: Store, run_id: str, objectives: list[Objective], limits: list[Limit]) -> None:
    """Show one run as `summarise_study` shows a study's."""
    runs = read.runs(store, f"attributes.run_id = '{run_id}'")
    show(compare(runs, objectives, limits), [*objectives, *limits], str(runs.at[0, "name"]), store, run_id)


def test_run(store: Store, run_id: str) -> dict[str, float]:
    """Evaluate a finished run's checkpoint on its test split and add the figures to its record.

    Returns:
        The figures; none where there is no test split.
    """
    config = OmegaConf.load(read.artifact(store, run_id, "config.yaml"))
    assert isinstance(config, DictConfig)
    check_targets(config)
    parts = training.build(config, pretrained=False)
    parts.classifier = restore(parts.classifier, store, run_id)
    if not parts.data.has("test"):
        return {}
    run = Run.attach(store, run_id)
    with tempfile.TemporaryDirectory() as folder:
        figures = training.evaluate(config, parts, "test", run, Path(folder))
    if config.get("origin"):
        compression.record_lost(store, run, [(config.origin, run_id)])
    run.flush()
    return figures


def test_once(store: Store, chosen: pd.DataFrame, why: str) -> bool:
    """Evaluate finished trials on their test split, those that are not yet; a trial of several seeds by each of them.

    Args:
        store: Where the runs are.
        chosen: Rows of a comparison.
        why: For the tag `tested`, such as "as a member of the front".

    Returns:
        Whether any was evaluated, or tried to be. One that could not be gets the tag `test_failure`.
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
        compression.record_lost(store, trial, [(origin.of(store, each), each) for each in finished])
    trial.log(means | {f"spread/{name}": value for name, value in spreads.items()})
    trial.flush()


def show(table: pd.DataFrame, drawn_over: list[Objective | Limit], title: str, store: Store, run_id: str) -> None:
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
        _say(f"run {row['run_id']}  {row_name(table, row)}  {row['overrides'] if len(table) > 1 else ''}".rstrip())
    page = f"#/experiments/{store.experiment_id}/runs/{run_id}"
    console.print(f"look: {_ui(store)}/{page}", highlight=False, markup=False, soft_wrap=True)


def _say_failures(table: pd.DataFrame) -> None:
    failed = table[table["status"].isin(["FAILED", "KILLED", "RUNNING"])]
    for _, row in failed.head(SHOWN_FAILURES).iterrows():
        _say(f"{row['status']}: {row['model'] or 'trial ' + row['trial']}, run {row['run_id']}: {row['failure']}")
    if len(failed) > SHOWN_FAILURES:
        _say(f"{len(failed) - SHOWN_FAILURES} more failed: see comparison.csv")


def _ui(store: Store) -> str:
    """Where the store can be looked at: its server's address, or the command that serves it."""
    if store.is_server:
        return store.uri.rstrip("/")
    command = "make ui" if store.uri == Store().uri else f"python -m src.tracking.ui uri={store.uri}"
    return f"{command}, then http://127.0.0.1:5000"


def _say(line: str) -> None:
    console.print(line, highlight=False, markup=False)
