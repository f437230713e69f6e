"""What the terminal says about a prediction: the model, its rule, the pictures one by one or counted."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from src.deployment.description import RESEARCH, Decision, Description

SHOWN = 20  # pictures that are listed; more are counted
WIDEST = 34  # characters of a picture's name


@dataclass
class Tally:
    """What is kept of the pictures while they come and go.

    Attributes:
        total: Pictures so far.
        first: Answers of the first of them, one more than are listed at most.
        problems: Name and reason of the first that could not be read.
        unreadable: How many there are of those.
        top: Pictures by most probable class.
        decisions: Pictures by decision.
        unsure: Pictures that are called so.
    """

    total: int = 0
    first: list[pd.Series] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    unreadable: int = 0
    top: Counter[str] = field(default_factory=Counter)
    decisions: Counter[str] = field(default_factory=Counter)
    unsure: int = 0

    def add(self, frame: pd.DataFrame) -> None:
        """Count a batch's rows."""
        self.total += len(frame)
        self.first += [row for _, row in frame.head(SHOWN + 1 - len(self.first)).iterrows()]
        amiss = frame[frame["problem"] != ""]
        self.unreadable += len(amiss)
        room = amiss.head(SHOWN - len(self.problems))
        self.problems += list(zip(room["image"], room["problem"], strict=True))
        self.top.update(frame["top"].dropna())
        self.decisions.update(frame["decision"].dropna())
        self.unsure += int(frame["unsure"].eq(True).sum())


def opening(title: str, description: Description, told: Sequence[str] = ()) -> RenderableType:
    """The notice, the model, how it decides, and what else is told of it."""
    size = f"{description.image_size} x {description.image_size} px, {description.geometry}"
    lines = [
        RESEARCH,
        f"Model: {title}; trained on {description.data}, split {description.split}; {description.precision}, {size}.",
        f"Licence: {description.licence}",
        rule(description.decision),
        *told,
    ]
    return Group(*(Text(line) for line in lines))


def rule(decision: Decision | None) -> str:
    """How probabilities become a decision, in a sentence or two."""
    if decision is None:
        return "Decision: none, for no threshold is stored with this model; nothing is calibrated."
    scaled = (
        "no temperature is stored, so nothing is calibrated"
        if decision.temperature is None
        else f"calibrated probabilities are at temperature {decision.temperature:.3g}"
    )
    return (
        f"Decision: {decision.positive} from p({decision.positive}) = {decision.threshold:.6g} on, as the model gives "
        f"it, uncalibrated (chosen for {decision.aim}); {scaled}."
    )


def answered(tally: Tally, decision: Decision | None, unsure_below: float | None, seconds: float) -> RenderableType:
    """The pictures one by one, or counted where there are many; and those that could not be read."""
    parts: list[RenderableType] = []
    if tally.total <= SHOWN:
        if tally.unreadable < tally.total:
            parts.append(_listed(tally, decision, unsure_below))
    else:
        parts.append(_counted(tally, decision, unsure_below, seconds))
    if tally.unreadable:
        parts.append(_problems(tally))
    return Group(*parts)


def _listed(tally: Tally, decision: Decision | None, unsure_below: float | None) -> Table:
    calibrated = decision is not None and decision.temperature is not None
    table = _table("image", "most probable", "calibrated" if calibrated else "its p")
    if decision is not None:
        table.add_column(Text(f"p({decision.positive})"), justify="right")
        table.add_column("decision")
    if unsure_below is not None:
        table.add_column(f"unsure (< {unsure_below:g})")
    for row in tally.first:
        if row["problem"]:
            continue
        cells = [_short(row["image"]), row["top"], f"{row['confidence']:.3f}"]
        if decision is not None:
            cells += [f"{row[f'p/{decision.positive}']:.4f}", row["decision"]]
        if unsure_below is not None:
            cells.append("unsure" if row["unsure"] else "")
        table.add_row(*map(Text, cells))
    table.columns[2].justify = "right"
    return table


def _counted(tally: Tally, decision: Decision | None, unsure_below: float | None, seconds: float) -> RenderableType:
    table = _table("", "pictures", "share")
    readable = max(tally.total - tally.unreadable, 1)

    def count(what: str, number: int) -> None:
        table.add_row(Text(what), f"{number:,}", f"{number / readable:.1%}")

    for name, number in tally.top.most_common():
        count(f"most probable: {name}", number)
    if decision is not None:
        table.add_section()
        for name in (decision.positive, f"not {decision.positive}"):
            count(f"decision: {name}", tally.decisions[name])
    if unsure_below is not None:
        table.add_section()
        count(f"unsure: confidence below {unsure_below:g}", tally.unsure)
    for column in table.columns[1:]:
        column.justify = "right"
    read = f"{tally.total:,} pictures, {tally.unreadable:,} unreadable"
    speed = f"{seconds:.1f} s, {tally.total / max(seconds, 1e-9):,.1f} images/s with decoding"
    return Group(table, Text(f"{read}; {speed}."))


def _problems(tally: Tally) -> RenderableType:
    table = _table("could not be read", "reason")
    for name, reason in tally.problems:
        table.add_row(Text(_short(name)), Text(reason))
    more = tally.unreadable - len(tally.problems)
    return Group(table, Text(f"and {more:,} more: the column problem of out= has them all.")) if more else table


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(Text(name))
    return table


def _short(name: str) -> str:
    return name if len(name) <= WIDEST else f"...{name[3 - WIDEST :]}"
