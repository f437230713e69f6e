"""The recorded runs that are a system of a paper: found by their tags, held to the paper by their parameters."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from src.auditing.claims import PaperSystem, Requirement
from src.tracking.run import text

SPLIT = "test"
# parameters of a run that two seeds of one system may differ in; by the start of their names
_FREE: tuple[str, ...] = (
    "params.seed",
    "params.tracking.",
    "params.study",
    "params.repeats",
    "params.threads",
    "params.objective.",
)
_FREE += (
    "params.test",
    "params.dry_run",
    "params.data.root",
    "params.data.cache_dir",
    "params.data.source.root",
)


@dataclass(frozen=True)
class Chosen:
    """Runs of a system under one setting, one a seed.

    Attributes:
        runs: Rows of the table of runs, by seed; none where none is recorded.
        problems: Why they decide nothing; none if they do.
        described: How many seeds of what, with weights, commit and study, and what was left out.
    """

    runs: pd.DataFrame
    problems: list[str]
    described: str


def choose(
    runs: pd.DataFrame, system: PaperSystem, studies: Sequence[str] = (), seeds: int = 1
) -> Chosen:
    """The finished and tested runs of a system under one setting, one a seed.

    Those that differ from the paper's system in as little as any do. Of several settings the one
    with most seeds, then the newest; of several runs of a seed the newest.

    Args:
        runs: As `src.tracking.read.runs` gives them, the newest first.
        system: What they must be.
        studies: Look at runs of these only; empty: at all.
        seeds: Fewer decide nothing.
    """
    tested = _tested(runs, system, studies)
    if tested.empty:
        among = f" in {' and '.join(studies)}" if studies else ""
        return Chosen(
            tested,
            [f"no tested runs of {system.preset} (split {system.split}) are recorded{among}"],
            "",
        )
    near, differences = _nearest(tested, system)
    settings = [
        name for name in near if str(name).startswith("params.") and not str(name).startswith(_FREE)
    ]
    number = (
        near[settings].fillna("").assign(weights=texts(near, "tags.weights")).apply(tuple, axis=1)
    )
    chosen = near.loc[
        number == texts(near, "tags.seed").groupby(number, sort=False).nunique().idxmax()
    ]
    twice = texts(chosen, "tags.seed").duplicated()
    newest = chosen.loc[~twice].sort_values(
        "tags.seed", kind="stable"
    )  # so that the same runs draw the same samples
    problems = differences.loc[newest.index[0]]
    if len(newest) < seeds:
        problems = [*problems, f"{len(newest)} of {seeds} seeds"]
    told = [_described(newest, system)]
    if twice.any():
        again = sorted(set(texts(chosen, "tags.seed")[twice]), key=lambda seed: (len(seed), seed))
        told.append(f"seed {', '.join(again)} trained more than once, the newest taken")
    if len(tested) > len(chosen):
        told.append(f"runs with other settings left out: {len(tested) - len(chosen)}")
    return Chosen(newest, problems, "; ".join(told))


def texts(frame: pd.DataFrame, column: str) -> pd.Series:
    """A column as text, empty where it is missing."""
    if column not in frame:
        return pd.Series("", index=frame.index, dtype=object)
    return frame[column].astype(object).where(frame[column].notna(), "").astype(str)


def _tested(runs: pd.DataFrame, system: PaperSystem, studies: Sequence[str]) -> pd.DataFrame:
    tags = {"kind": "run", "preset": system.preset, "data": system.data, "split": system.split}
    found = runs[runs["status"] == "FINISHED"] if len(runs) else runs
    for tag, value in tags.items():
        found = found[texts(found, f"tags.{tag}") == value]
    if studies:
        found = found[texts(found, "tags.study").isin(studies)]
    return found[texts(found, f"metrics.{SPLIT}/accuracy") != ""]


def _nearest(runs: pd.DataFrame, system: PaperSystem) -> tuple[pd.DataFrame, pd.Series]:
    """The runs with the fewest differences from the paper's system, and the differences of all, in words."""
    others: dict[Any, list[str]] = {index: [] for index in runs.index}
    unmet: dict[Any, list[str]] = {index: [] for index in runs.index}
    for column, wanted in system.fixed.items():
        name = column.partition(".")[2]
        for index, value in texts(runs, column).items():
            if not _same(value, wanted):
                others[index].append(
                    f"{name} {value} instead of {text(wanted)}" if value else f"no {name}"
                )
    for each in system.requires:
        for index in runs.index[~_meets(runs, each)]:
            unmet[index].append(each.otherwise)
    number = pd.Series({index: len(others[index]) + len(unmet[index]) for index in runs.index})
    told = {
        index: [f"these runs have {', '.join(each)}"] if each else []
        for index, each in others.items()
    }
    differences = pd.Series(
        {index: told[index] + unmet[index] for index in runs.index}, dtype=object
    )
    return runs[number == number.min()], differences


def _same(recorded: str, wanted: object) -> bool:
    """Whether a recorded value is the wanted one: numbers as numbers, so that 1.0 is 1; none is null."""
    try:
        value = json.loads(recorded or "null")
    except json.JSONDecodeError:
        value = recorded
    return (
        type(value) is type(wanted) and value == wanted
        if isinstance(wanted, bool)
        else bool(value == wanted)
    )


def _meets(runs: pd.DataFrame, wanted: Requirement) -> pd.Series:
    if wanted.at_least is None:
        return texts(runs, wanted.column) == wanted.equals
    return pd.to_numeric(texts(runs, wanted.column), errors="coerce") >= wanted.at_least


def _described(runs: pd.DataFrame, system: PaperSystem) -> str:
    told = [
        f"{len(runs)} seed{'s' if len(runs) > 1 else ''} of {system.preset}, split {system.split}"
    ]
    dirty = texts(runs, "tags.git_dirty").str.lower() == "true"
    commits = texts(runs, "tags.git_commit").str[:7] + dirty.map({True: " with changes", False: ""})
    values = {
        "weights": texts(runs, "tags.weights"),
        "commit": commits,
        "study": texts(runs, "tags.study"),
    }
    for name, column in values.items():
        named = [value for value in column.unique() if value]
        told += [f"{name} {' and '.join(named)}"] if named else []
    return ", ".join(told)
