"""On what and by what a section's runs were made, from their own records."""

import json
import shlex
import statistics
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import pandas as pd

from src.core.errors import UserError
from src.headline.cells import ResultCell, texts
from src.headline.part import Origin
from src.metrics.formatting import count, joined
from src.tracking import read
from src.tracking.store import Store

_FIT = "metrics.time/fit_s"
SHORT = 7  # digits of a commit
_LOCAL = (
    "tracking.",
    "hydra.run",
    "hydra.sweep.",
    "study=",
)  # overrides that say where the record went


def origin(store: Store, cells: Sequence[ResultCell]) -> Origin:
    """Commands, hardware, commits and dates of all runs of some cells, each kind once.

    Args:
        store: To read from.
        cells: Those whose figures are shown.
    """
    used = [cell for cell in cells if len(cell.runs)]
    if not used:
        return Origin()
    runs = pd.concat([cell.runs for cell in used], ignore_index=True).drop_duplicates("run_id")
    studies = list(dict.fromkeys(cell.study for cell in used))
    return Origin(
        tuple(
            dict.fromkeys(command for study in studies for command in _commands(store, study, runs))
        ),
        _hardware(store, runs),
        _commits(runs),
        _tallied(texts(runs, "tags.chosen_by").replace("", "not recorded")),
        f"{runs['start_time'].min():%Y-%m-%d %H:%M} to {runs['end_time'].max():%Y-%m-%d %H:%M} UTC",
        len(runs),
        _minutes(used),
    )


def _commands(store: Store, study: str, runs: pd.DataFrame) -> list[str]:
    """What was typed: of a study as its own run recorded it, of single runs as each of them did."""
    parents = read.runs(store, f"tags.study = '{study}' and tags.kind = 'study'")
    if parents.empty:
        own = runs[texts(runs, "tags.study") == study]
        return [_command([], shlex.split(overrides)) for overrides in texts(own, "tags.overrides")]
    first = parents.iloc[-1]
    sweeps = str(first.get("tags.sweeps", "") or "")
    typed = shlex.split(str(first.get("tags.fixed_overrides", "") or ""))
    head = ["-m", *([f"sweeps={sweeps}"] if sweeps else [])]
    named = [] if sweeps == study else [f"hydra.sweeper.study_name={study}"]
    return [_command(head, [*(each for each in typed if not each.startswith("sweeps=")), *named])]


def _command(head: Sequence[str], overrides: Sequence[str]) -> str:
    kept = [_without_path(each) for each in overrides if not each.startswith(_LOCAL)]
    return " ".join(["python", "-m", "src.train", *head, *map(_quoted, kept)])


def _quoted(override: str) -> str:
    return override if override.endswith("=...") else shlex.quote(override)


def _without_path(override: str) -> str:
    """A folder of the machine says nothing to a reader on another one."""
    key, sign, value = override.partition("=")
    return f"{key}=..." if sign and PurePath(value).is_absolute() else override


def _hardware(store: Store, runs: pd.DataFrame) -> tuple[str, ...]:
    devices = texts(runs, "tags.device")
    lines = [
        _machine(store, run_id, device)
        for run_id, device in zip(runs["run_id"], devices, strict=True)
    ]
    counts = pd.Series(lines).value_counts(sort=False)
    return tuple(
        line if len(counts) == 1 else f"{line} ({count(int(n), 'run')})"
        for line, n in zip(map(str, counts.index), counts, strict=True)
    )


def _machine(store: Store, run_id: str, device: str) -> str:
    try:
        found: dict[str, Any] = json.loads(
            read.artifact(store, run_id, "environment.json").read_text()
        )
    except (UserError, OSError, ValueError):
        return f"{device or 'hardware not recorded'} (no environment recorded)"
    packages = found.get("packages") or {}
    versions = [
        f"{name} {packages[name]}"
        for name in ("torch", "pytorch-lightning", "timm")
        if packages.get(name)
    ]
    gpus = found.get("gpus") or []
    parts = [
        f"{found.get('cpu', 'unknown processor')}, {count(int(found.get('cores') or 0), 'core')}",
        f"{found.get('ram_gb', '?')} GB",
        f"GPU {joined([str(gpu) for gpu in gpus])}" if gpus else "no GPU",
        f"Python {found.get('python', '?')}",
        *versions,
    ]
    return "; ".join(parts)


def _commits(runs: pd.DataFrame) -> tuple[str, ...]:
    """Each commit once, with its number of runs, and whether files differed from it."""
    names = texts(runs, "tags.git_commit").replace("", "unknown").str.slice(0, SHORT)
    dirty = texts(runs, "tags.git_dirty").str.lower()
    said = names + dirty.map({"true": " with uncommitted changes", "false": ""}).fillna(
        " (changes not known)"
    )
    return _tallied(said)


def _minutes(cells: Sequence[ResultCell]) -> tuple[str, ...]:
    """How long a training took, by cell: its seeds' median, least and most; nothing of what was not recorded."""
    told: dict[str, list[float]] = {}
    for cell in cells:
        if _FIT in cell.runs:
            told.setdefault(cell.name, []).extend(cell.runs[_FIT].dropna() / 60)
    return tuple(
        f"{name} {_short(statistics.median(own))} ({_short(min(own))} to {_short(max(own))})"
        for name, own in told.items()
        if own
    )


def _short(minutes: float) -> str:
    return f"{minutes:.0f}" if minutes >= 9.5 else f"{minutes:.1f}"


def _tallied(said: pd.Series) -> tuple[str, ...]:
    """Each text once, with its number of runs."""
    counts = said.value_counts(sort=False)
    return tuple(
        f"{text} ({count(int(number), 'run')})"
        for text, number in zip(counts.index, counts, strict=True)
    )
