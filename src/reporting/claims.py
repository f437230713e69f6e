"""Checks the claims of a paper against arithmetic, counts of networks and recorded runs."""

import functools
import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from annotated_types import Ge
from omegaconf import DictConfig

from src.core.cli import ROOT, console, say
from src.core.config import check, instantiate, load_settings, resolve
from src.core.environment import git_state
from src.core.errors import UserError, closest, masked
from src.core.files import atomic_folder
from src.core.tables import Table, fill_markdown
from src.deployment.trained import EVALUATION
from src.metrics import bootstrap
from src.metrics.formatting import is_cost, joined
from src.metrics.paired import paired_difference
from src.reporting import paper as papers
from src.reporting.decisions import sentences
from src.reporting.paper import Claim, Figure, Figures, Measure, Paper, PaperSystem, PrintedNumber
from src.reporting.record import StudySettings
from src.tracking import read
from src.tracking.run import Run, recordable, text
from src.tracking.store import Store

REPRODUCED = "reproduced"
OTHER_READING = "reproduced under another reading"
CONTRADICTED = "contradicted by its own numbers"
NOT_REPRODUCED = "not reproduced"
NOT_TESTABLE = "not testable"
ANSWERED = "answered"  # of what the paper asks
VERDICTS = (REPRODUCED, OTHER_READING, CONTRADICTED, NOT_REPRODUCED, NOT_TESTABLE, ANSWERED)
UNDECIDED = "undecided: the interval contains the limit"
# Starts of the names of parameters in which two seeds of one system may differ.
FREE = ["seed", "tracking.", "study", "repeats", "threads", "objective.", "test", "dry_run"]
FREE += ["data.root", "data.cache_dir", "data.source.root"]
_TAGS = ["tags.weights", "tags.git_commit", "tags.git_dirty", "tags.study", "tags.seed"]


@dataclass
class ClaimsSettings(StudySettings):
    """The values of conf/command/audit.yaml, which says what each means."""

    seeds: Annotated[int, Ge(1)] = 3


def choose_runs(
    runs: pd.DataFrame,
    system: PaperSystem,
    studies: Sequence[str] = (),
    seeds: int = 1,
    having: str = "",
) -> tuple[pd.DataFrame, list[str], str]:
    """The finished and tested runs of a system, with equal settings, one per seed.

    Of the runs with the fewest differences from the paper's system: those of the setting with most
    seeds, then the newest; of several runs of a seed the newest.

    Args:
        runs: As `src.tracking.read.runs` gives them, the newest first.
        system: What they must be.
        studies: Only runs of these; empty: of all.
        seeds: Fewer decide nothing, unless the system has another number.
        having: Only runs with a metric of this name, in which `*` stands for any part; empty: all.

    Returns:
        Rows of `runs` by seed, empty if none is recorded; why they decide nothing, empty if they
        do; seeds, weights, commit and study, and how many runs are not among them.
    """
    tags = {"kind": "run", "data": system.data, "split": system.split}
    tags |= {"preset": "" if system.compression else system.preset}
    tags |= {"compression": system.compression}
    name = system.preset + f" compressed by {system.compression}" * bool(system.compression)
    equal = {"status": "FINISHED", **{f"tags.{tag}": value for tag, value in tags.items()}}
    used = [*equal, "metrics.test/accuracy", *_TAGS, *system.fixed]
    table = runs.astype(object).where(runs.notna(), "")
    table = table.reindex(columns=list(dict.fromkeys([*table, *used])), fill_value="")
    tested = table[(table[list(equal)] == list(equal.values())).all(axis=1)]
    tested = tested[tested["metrics.test/accuracy"] != ""]
    tested = tested[tested["tags.study"].isin(studies)] if studies else tested
    if having:
        tested = tested[(tested[_columns(runs, having)] != "").any(axis=1)]
    if tested.empty:
        among = f" in {' and '.join(studies)}" if studies else ""
        among += f" with {having}" if having else ""
        problem = f"no tested runs of {name} (split {system.split}) are recorded{among}"
        return tested, [problem], ""
    records = tested.to_dict("records")
    differences = np.array([len(_differences(row, system.fixed)) for row in records])
    nearest = tested[differences == differences.min()]
    settings = nearest.filter(regex=rf"^params\.(?!{'|'.join(map(re.escape, FREE))})").columns
    groups = [rows for _, rows in nearest.groupby([*settings, "tags.weights"], sort=False)]
    same = max(groups, key=lambda rows: rows["tags.seed"].nunique())
    # sorted, so that the same runs give the same bootstrap samples
    rows = pd.DataFrame(same).drop_duplicates("tags.seed").sort_values("tags.seed")
    others = ", ".join(_differences(rows.iloc[0], system.fixed))
    problems = [f"these runs have {others}"] if others else []
    fewest = system.seeds or seeds
    problems += [f"{len(rows)} of {fewest} seeds"] if len(rows) < fewest else []
    commits = rows["tags.git_commit"].str[:7]
    commits += rows["tags.git_dirty"].str.lower().map({"true": " with changes"}).fillna("")
    columns = {"weights": rows["tags.weights"], "commit": commits, "study": rows["tags.study"]}
    values = {key: list(filter(None, column.unique())) for key, column in columns.items()}
    again = sorted(same["tags.seed"][same["tags.seed"].duplicated()].unique())
    sizes = {"seeds": len(rows), "rest": len(tested) - len(same)}
    [title] = sentences("runs", name=name, split=system.split, values=values, again=again, **sizes)
    return rows, problems, title


def _differences(row: Mapping[Any, Any] | pd.Series, fixed: Mapping[str, Any]) -> list[str]:
    """Where a run differs from the paper's system, in words: 1.0 is 1, a missing value is null."""
    differences = []
    for column, expected in fixed.items():
        recorded, name = str(row[column]), column.partition(".")[2]
        value: Any = recorded
        with suppress(json.JSONDecodeError):
            value = json.loads(recorded or "null")
        equal = value == expected and isinstance(value, bool) == isinstance(expected, bool)
        if isinstance(expected, str) and expected.startswith(">= "):
            equal = isinstance(value, int | float) and value >= float(expected[3:])
        if not equal:
            instead = f"{name} {recorded} instead of {text(expected)}"
            differences.append(instead if recorded else f"no {name}")
    return differences


def _columns(runs: pd.DataFrame, metric: str) -> list[str]:
    """The columns of a metric in a table of runs; `*` stands for any part of its name."""
    pattern = "[^/]+".join(map(re.escape, f"metrics.{metric}".split("*")))
    return [column for column in runs.columns if re.fullmatch(pattern, column)]


def _cost(rows: pd.DataFrame, metric: str) -> tuple[float, float, float, str]:
    columns = {name: pd.to_numeric(rows[name]).dropna() for name in _columns(rows, metric)}
    columns = {name: values for name, values in columns.items() if len(values)}
    if not columns:
        raise UserError(f"its runs have no {metric}")
    texts = [
        f"{name.removeprefix('metrics.')} {values.mean():.4g}" for name, values in columns.items()
    ]
    values = pd.concat(columns.values())
    shown = joined(texts) if "*" in metric else metric
    return values.mean(), values.min(), values.max(), f"{shown}, least to largest"


def with_evaluations(runs: pd.DataFrame) -> pd.DataFrame:
    """The table of runs with what `src.evaluate` recorded of them on other data.

    Such metrics become columns metrics.evaluation/<data>/...; of several evaluations on the same
    data the newest counts. Those that kept pictures of the run's own data are left out.
    """
    tags = {"tags.kind": EVALUATION, "tags.overlap": "exclude", "status": "FINISHED"}
    matching = [read.texts(runs, column) == value for column, value in tags.items()]
    recorded: dict[str, dict[str, float]] = {}
    for row in runs[np.logical_and.reduce(matching)][::-1].to_dict("records"):
        start, evaluated = f"metrics.{row['tags.data']}/", row["tags.evaluated_run"]
        values = {
            str(name).replace("metrics.", "metrics.evaluation/", 1): value
            for name, value in row.items()
            if str(name).startswith(start) and not math.isnan(value)
        }
        of_trial = runs["parent_id"] == evaluated  # one evaluation of all its seeds
        for run_id in runs.loc[(runs["run_id"] == evaluated) | of_trial, "run_id"]:
            recorded.setdefault(run_id, {}).update(values)
    if not recorded:
        return runs
    columns = pd.DataFrame.from_dict(recorded, orient="index")
    return runs.merge(columns, how="left", left_on="run_id", right_index=True)


def recorded_runs(
    runs: pd.DataFrame, store: Store | None, paper: Paper, settings: ClaimsSettings
) -> Measure:
    """The function that answers measured(...) of `Figures` from the table of runs of a store.

    It takes a system of the paper; a metric on the test split without the split's name, which gets
    a bootstrap interval by group and seed, or a cost such as efficiency/latency_ms/b1/p50, which
    gets its extremes, as do benchmark/*/onnx/t1/b1/p50_ms (of all devices) and
    evaluation/*/accuracy (on all other data); and a system whose metric on the same images is
    subtracted, or "". The figure is the mean over the seeds; without one its `problem` says why.
    """
    samples = (settings.samples, settings.seed, settings.level)
    runs = with_evaluations(runs)

    @functools.cache
    def choose(system: str, metric: str = "") -> tuple[pd.DataFrame, list[str], str]:
        having = metric if "*" in metric else ""  # only runs that were measured in this way
        rest = (settings.studies, settings.seeds, having)
        return choose_runs(runs, paper.systems[system], *rest)

    @functools.cache
    def predictions(system: str) -> list[pd.DataFrame]:
        assert store is not None
        return [read.predictions(store, run_id, "test") for run_id in choose(system)[0]["run_id"]]

    def estimate(system: str, metric: str, less: str) -> tuple[float, float, float, str]:
        if is_cost(metric) or "*" in metric:
            return _cost(choose(system, metric)[0], metric)
        frames, kind = predictions(system), f"{settings.level:.0%} interval by group and seed"
        if less:
            pair = paired_difference(frames, predictions(less), metric, *samples, (system, less))
            return *pair[:3], f"{metric}, {system} less {less} on the same images, paired {kind}"
        row = bootstrap.intervals(frames, [metric], *samples).iloc[0]
        sizes = f"{row['images']:,} images of {row['groups']:,} lesions or patients"
        return row["estimate"], row["low"], row["high"], f"{metric} on {sizes}, {kind}"

    def measure(system: str, metric: str, less: str = "") -> Figure:
        chosen = [choose(name, metric) for name in (system, less) if name]
        problem = "; ".join(dict.fromkeys(text for _, texts, _ in chosen for text in texts))
        measured = frozenset({"measured"})
        if any(rows.empty for rows, _, _ in chosen):
            return Figure(origins=measured, problem=problem, unrecorded=True)
        try:
            value, low, high, how = estimate(system, metric, less)
        except bootstrap.DifferentImagesError as error:
            tested = "the two systems or their seeds" if less else "its seeds"
            problem = f"{tested} were tested on different images ({error})"
            return Figure(origins=measured, problem=problem)
        except UserError as error:
            return Figure(origins=measured, problem=str(error))
        how = "; ".join([how, *(title for *_, title in chosen)])
        return Figure(value, low, high, measured, how, problem, text=f"{value:.4g}")

    return measure


def agrees(figure: Figure, number: PrintedNumber, relation: str) -> bool | None:
    """Whether a figure is as the claim says; None without a figure, and if it is undecided.

    equal: a value in its range would be printed the same way. below, above: the whole range keeps
    the limit, or all of it breaks the limit.
    """
    if math.isnan(figure.value):
        return None
    if relation == "equal":
        point = math.isnan(figure.low)  # no interval
        low, high = (figure.value,) * 2 if point else (figure.low, figure.high)
        return number.admits(low, high)
    if relation == "below":
        holds, broken = figure.high < number.value, figure.low >= number.value
    else:
        holds, broken = figure.low > number.value, figure.high <= number.value
    return holds if holds or broken else None


def decide(readings: Sequence[Mapping[str, Any]]) -> tuple[str, int | None]:
    """The verdict on a testable claim by its readings, and the position of the decisive one.

    The first reading that agrees reproduces the claim. If none does, arithmetic on printed numbers
    alone contradicts it; otherwise it is not reproduced if the paper's own reading, the first one,
    could be tested.
    """
    first = next((n for n, row in enumerate(readings) if not row["beside"]), None)
    deciding = [n for n, row in enumerate(readings) if row["decides"]]
    for position in deciding:
        if readings[position]["agrees"]:
            return (REPRODUCED if position == first else OTHER_READING), position
    for position in deciding:
        if readings[position]["from"] == "printed":
            return CONTRADICTED, position
    return (NOT_REPRODUCED if first in deciding else NOT_TESTABLE), first


def check_claims(paper: Paper, measure: Measure) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Check every claim of a paper; nothing is trained.

    Returns:
        claims: One row per claim, in the paper's order: id, claim, where, printed, here (the figure
            that the verdict rests on, in the printed unit, with its range), verdict, reading,
            reason, note, problems (why it is not testable), unrecorded (whether runs are missing),
            and as numbers printed_value, value, low, high.
        readings: One row per reading: id, reading, beside, here, agrees, decides, how, problem,
            from (origins), value, low, high, unrecorded.

    Raises:
        ConfigError: A claim that cannot be evaluated; the message names its key.
    """
    figures, claims, readings = Figures(paper, measure), [], []
    for position, claim in enumerate(paper.claims):
        key = f"paper.claims[{position}]"
        number = claim.number(key)
        rows = []
        for kind in ("readings", "beside"):
            for name, reading in getattr(claim, kind).items():
                figure = figures.evaluate(reading.value, f"{key}.{kind}.{name}")
                unit, beside = reading.unit, kind == "beside"
                value, low, high = figure.value, figure.low, figure.high
                agreed, problem = None, figure.problem
                if number is not None and not (beside and unit is not None):
                    agreed = agrees(figure, number, claim.relation)
                    undecided = agreed is None and not math.isnan(value)
                    problem = problem or (UNDECIDED if undecided else "")
                if number is not None and unit is None:
                    texts = [number.like(end) for end in (value, low, high)]
                else:
                    texts = [f"{end:,.4g} {unit or ''}".strip() for end in (value, low, high)]
                measured = "-" if math.isnan(value) else texts[0]
                if texts[1] != texts[2] and not math.isnan(value + low):
                    measured = f"{measured} ({texts[1]} to {texts[2]})"
                row = {"id": claim.id, "reading": name, "beside": beside, "here": measured}
                decides = not (beside or problem or agreed is None)
                row |= {"agrees": agreed, "decides": decides, "how": figure.how}
                row |= {"problem": problem, "from": " and ".join(sorted(figure.origins))}
                row |= {"value": value, "low": low, "high": high}
                rows.append(row | {"unrecorded": figure.unrecorded and not beside})
        readings += rows
        claims.append(_check_claim(claim, number, rows))
    return pd.DataFrame(claims), pd.DataFrame(readings)


def _check_claim(
    claim: Claim, number: PrintedNumber | None, readings: list[dict[str, Any]]
) -> dict[str, Any]:
    verdict, position = (NOT_TESTABLE, None) if claim.untestable else decide(readings)
    row = {} if position is None else readings[position]
    of_system = [row for row in readings if not row["beside"]]
    answers = [
        row for row in of_system if claim.asks and not (row["problem"] or math.isnan(row["value"]))
    ]
    if answers:
        verdict, row = ANSWERED, answers[0]
    problems: list[str] = []
    if verdict == NOT_TESTABLE:
        reasons = [claim.untestable] if claim.untestable else [row["problem"] for row in of_system]
        problems = list(dict.fromkeys(reasons))
    values = {"claim": claim, "verdict": verdict, "row": row, "problems": problems}
    unanswered = [row for row in of_system if row not in answers]
    values |= {"readings": readings, "answers": answers, "unanswered": unanswered}
    [reason] = sentences("reason", **values)
    about = claim.model_dump(include={"id", "claim", "where", "asks", "command", "note"})
    about |= {"printed": claim.text, "here": row.get("here", "-"), "verdict": verdict}
    about |= {"reading": row.get("reading", ""), "reason": reason, "problems": problems}
    about |= {"unrecorded": any(row["unrecorded"] for row in readings)}
    about |= {"printed_value": number and number.value}
    return about | {name: row.get(name) for name in ("value", "low", "high")}


def counts(claims: pd.DataFrame) -> dict[str, int]:
    """Number of claims by verdict, zeros included."""
    numbers = claims["verdict"].value_counts()
    return {verdict: int(numbers.get(verdict, 0)) for verdict in VERDICTS}


def write_audit(
    paper: Paper, claims: pd.DataFrame, readings: pd.DataFrame, folder: Path, footer: str
) -> None:
    """Write audit.md with the line `footer`, claims.csv and readings.csv in place of the folder.

    Raises:
        UserError: The folder cannot be written; it is as before then.
    """
    columns = ["id", "claim", "where", "printed", "here", "verdict", "reason", "note"]
    is_question = claims["asks"] != ""
    tables = [Table(claims.loc[~is_question, columns], "Claims")]
    if is_question.any():
        columns = ["asks", "id", "claim", "here", "verdict", "reason", "command", "note"]
        title = "Open questions and next checks"
        tables.append(Table(claims.loc[is_question, columns].sort_values("asks"), title))
    if len(readings):
        columns = ["id", "reading", "here", "agrees", "decides", "how", "problem"]
        tables.append(Table(readings[columns], "Readings"))
    values = {"paper": paper, "made": footer, "claims": len(claims), "summary": _summary(claims)}
    page = fill_markdown(Path(__file__).with_name("claims.md.j2"), tables=tables, **values)
    with atomic_folder(folder, "the audit") as draft:
        (draft / "audit.md").write_text(page, encoding="utf-8")
        Table(claims).to_csv(draft / "claims.csv")
        Table(readings).to_csv(draft / "readings.csv")


def _summary(claims: pd.DataFrame) -> str:
    return ", ".join(f"{number} {verdict}" for verdict, number in counts(claims).items())


def audit_paper(config: DictConfig) -> None:
    """Check the paper that a composed `conf/command/audit.yaml` names; write, record and print.

    Raises:
        UserError: Bad input; the message names the culprit.
    """
    settings = load_settings(config, ClaimsSettings, without=("tracking", "paper"))
    check(resolve(config.tracking), "tracking")
    paper = papers.parse_paper(resolve(config.paper))
    store: Store = instantiate(config.tracking, "tracking")
    missing = store.database is not None and not store.database.exists()
    runs = pd.DataFrame() if missing else read.cached_runs(store.open(create=False))
    studies = sorted(set(read.texts(runs, "tags.study")) - {""})
    for chosen in settings.studies:
        if chosen not in studies:
            message = f"study={chosen}: no runs of it in the store{closest(chosen, studies)}"
            raise UserError(f"{message}; leave study= out for all runs")
    claims, readings = check_claims(paper, recorded_runs(runs, store, paper, settings))
    folder = Path(settings.folder) / recordable(f"audit_{paper.name}").replace("/", "_")
    commit, dirty = git_state(ROOT)
    when = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC at commit {commit or 'unknown'}"
    changes = " with changes" if dirty else ""
    footer = f"Made {when}{changes}; runs from {masked(store.uri)}."
    write_audit(paper, claims, readings, folder, footer)
    if settings.publish:
        tags: dict[str, object] = {"kind": "audit", "paper": paper.name}
        tags |= {"git_commit": commit or "unknown", "git_dirty": dirty}
        numbers = {f"audit/{name.replace(' ', '_')}": n for name, n in counts(claims).items()}
        with Run.start(store, f"audit {paper.name}", tags, {"audit": asdict(settings)}) as run:
            run.artifact(folder, "audit")
            run.log(numbers)
    contradicted = claims["verdict"] == CONTRADICTED
    with_reading = claims["verdict"].isin((OTHER_READING, CONTRADICTED, NOT_REPRODUCED))
    verdicts = claims["verdict"] + (" (" + claims["reading"] + ")").where(with_reading, "")
    shown = claims[["id", "printed", "here"]].assign(verdict=verdicts)
    bold, is_question = frozenset(claims.index[contradicted]), claims["asks"] != ""
    console.print(Table(shown[~is_question], f"{paper.name}: claims", bold=bold).to_rich())
    say(_summary(claims))
    for row in claims[is_question].sort_values("asks").to_dict("records"):
        reason = row["problems"][0] if row["problems"] else row["reason"]
        say(f"{row['asks']}, {row['id']}: {row['verdict']}: {reason}")
        if row["unrecorded"] and row["command"]:
            say(f"  record it: {row['command']}", wrap=False)
    for row in claims[contradicted].to_dict("records"):
        say(f"! {row['id']}: {row['reason']}")
    untested = claims[~is_question].explode("problems").dropna(subset="problems")
    for problem, ids in untested.groupby("problems", sort=False)["id"]:
        say(f"- not testable: {joined(list(ids))}: {problem}")
    if claims["unrecorded"].any():
        say(f"record the missing runs: {paper.command}", wrap=False)
    say(f"look: {folder / 'audit.md'}", wrap=False)
