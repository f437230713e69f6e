"""Colours, axes, which rows are drawn."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.ticker import LogLocator, MaxNLocator

from src.core.errors import ConfigError
from src.metrics.formatting import engineering
from src.metrics.registry import Metric, describe, recorded_name
from src.reporting.record import Report

NOTHING = "–"
_LOGARITHMIC = ("efficiency/flops", "efficiency/params", "efficiency/trainable_params")
_RANGE = " to "  # between the ends of a group of values
CURVES_OF_SEEDS = "Curves of several seeds are their mean as far as all go; a stopped trial's is of the seeds it had."
_SPREAD = (
    8.0  # a logarithmic axis is for values whose largest is at least this many times the smallest
)


@dataclass(frozen=True)
class PlotAxis:
    """One axis of parallel coordinates.

    Attributes:
        label: For people, with unit and direction.
        positions: Where each line crosses, float (N,), no NaN.
        ticks: Positions and their texts.
        low: The lower end.
        high: The upper end.
    """

    label: str
    positions: np.ndarray
    ticks: list[tuple[float, str]]
    low: float
    high: float


def metric(name: str) -> Metric:
    """What is known of a metric; one that the project does not know is shown by its recorded name."""
    try:
        return describe(name)
    except ConfigError:
        return Metric(name, name, "", "maximize")


def direction(report: Report, name: str) -> str:
    """Which way is better, as the report's objective says it, else as the metric's table does; empty if unknown."""
    own = [
        one.direction
        for one in report.objectives
        if recorded_name(one.metric) == recorded_name(name)
    ]
    try:
        return (
            "higher is better"
            if (own or [describe(name).direction])[0] == "maximize"
            else "lower is better"
        )
    except ConfigError:
        return ""


def axis_title(report: Report, name: str, split: str = ", ") -> str:
    """Label, unit and direction, such as "FLOPs (multiply-adds), lower is better"."""
    return split.join(part for part in (metric(name).axis, direction(report, name)) if part)


def heading(report: Report, name: str) -> str:
    """For the head of a table: label, unit, and an arrow that points to the better."""
    arrow = {"higher is better": " ↑", "lower is better": " ↓"}.get(direction(report, name), "")
    return f"{metric(name).axis}{arrow}"


def number(value: object) -> str:
    """A figure for people: four decimals of a fraction, letters for tens of thousands, a dash for a missing one."""
    if value is None or (isinstance(value, float | np.floating) and math.isnan(value)):
        return NOTHING
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | float | np.number):
        size = abs(float(value))
        if math.isinf(size):
            return "∞" if float(value) > 0 else "-∞"
        if size >= 1e4:
            return ("-" if float(value) < 0 else "") + engineering(size)
        return f"{float(value):.4f}" if 0.001 <= size < 1 else f"{float(value):.4g}"
    return str(value)


def tick(value: float) -> str:
    """A figure at an axis: three significant figures."""
    return (
        f"{'-' if value < 0 else ''}{engineering(abs(value))}"
        if abs(value) >= 1e4
        else f"{value:.3g}"
    )


def figure(name: str, value: object) -> str:
    """A metric's value with its unit."""
    unit = metric(name).unit
    text = number(value)
    return f"{text} {unit}" if unit and text != NOTHING else text


def logarithmic(name: str, values: pd.Series) -> bool:
    """Whether an axis is better logarithmic: sizes of nets, and positive values that lie evenly by their logarithm."""
    known = values.astype(float)[np.isfinite(values.astype(float))]
    if known.empty or known.min() <= 0:
        return False
    low, high = known.min(), known.max()
    middle = math.sqrt(
        math.sqrt(low * high) * (low + high) / 2
    )  # between the middle of either scale
    return name in _LOGARITHMIC or bool(high / low >= _SPREAD and known.median() < middle)


def drawn(report: Report, cost: str) -> pd.DataFrame:
    """The trials that have both figures, so that they can be a point."""
    if cost not in report.table or "quality" not in report.table:
        return report.table.iloc[:0]
    return report.table[_known(report.table["quality"]) & _known(report.table[cost])]


def staircase(
    members: pd.DataFrame, cost: str, descending: bool
) -> tuple[list[float], list[float]]:
    """The best quality of the front up to each cost: where a step line runs.

    Members that are on the front for another objective's sake lie below it.

    Args:
        members: The front; columns `quality` and `cost`.
        cost: The column on the x axis.
        descending: Quality is better when it is lower.
    """
    known = members[["quality", cost]].dropna().sort_values(cost)
    best = known["quality"].cummin() if descending else known["quality"].cummax()
    return known[cost].tolist(), best.tolist()


def named(report: Report) -> pd.DataFrame:
    """The runs that pictures name: the knee and those that answers chose; column `name` says for what."""
    table = report.table
    if not {"knee", "chosen"} <= set(table):
        return table.iloc[:0].assign(name="")
    rows = table[table["knee"].astype(bool) | (table["chosen"].fillna("") != "")]
    names = [
        ", ".join(part for part in ("knee" if row["knee"] else "", row["chosen"]) if part)
        for _, row in rows.iterrows()
    ]
    return rows.assign(name=pd.Series(names, index=rows.index, dtype=object))


def members(report: Report) -> pd.DataFrame:
    """The front, the cheapest first where a cost is known."""
    table = report.table
    rows = table[table["state"] == "front"] if "state" in table else table.iloc[:0]
    return (
        rows.sort_values(report.costs[0], kind="stable")
        if report.costs and report.costs[0] in rows
        else rows
    )


def important(report: Report) -> list[str]:
    """Run ids of the front and of the chosen runs, the front first, the cheapest first."""
    return list(dict.fromkeys([*members(report)["run_id"], *named(report)["run_id"]]))


def thin(run_ids: Sequence[str], keep: Sequence[str], limit: int) -> list[str]:
    """At most `limit` runs besides those to keep: every k-th, so that good and bad ones stay in proportion.

    Args:
        run_ids: Best first.
        keep: Runs that stay whatever happens.
        limit: How many others are drawn at most.
    """
    kept = set(keep)
    others = [run for run in run_ids if run not in kept]
    step = max(1, math.ceil(len(others) / limit))
    return [run for run in run_ids if run in kept] + others[::step]


def parallel(report: Report, limit: int) -> tuple[list[PlotAxis], pd.DataFrame]:
    """Axes of parallel coordinates: the swept parameters, then the objectives.

    Args:
        report: The report.
        limit: How many trials besides the named ones are drawn at most.

    Returns:
        The axes and the trials, a row a line, in the order of the positions; those with a quality
        only.
    """
    known = _swept(report)
    known = known.loc[thin(list(known.index), important(report), limit)] if len(known) else known
    axes = []
    for name in report.parameters:
        values = report.parameters[name].reindex(known.index)
        if _known(values).any():
            axes.append(_axis(str(name), str(name), values))
    for objective in report.objectives:
        name = recorded_name(objective.metric)
        if name in known and _known(known[name]).any():
            axes.append(_axis(name, axis_title(report, name), known[name]))
    return axes, known


def swept(report: Report) -> int:
    """How many trials parallel coordinates could show."""
    return len(_swept(report))


def recalls(report: Report, split: str) -> pd.DataFrame:
    """Recall of each class (columns) of the front and the chosen runs (rows), on one split."""
    frame = report.recalls
    frame = frame[frame["split"] == split] if "split" in frame else frame
    order = [run for run in important(report) if run in set(frame.get("run_id", []))]
    classes = list(dict.fromkeys(frame.get("class", [])))
    if not order:
        return pd.DataFrame()
    return frame.pivot_table(index="run_id", columns="class", values="recall").reindex(
        index=order, columns=classes
    )


def importance(report: Report) -> pd.DataFrame | None:
    """A row a parameter, the least important first, a column an objective; None where nothing is known."""
    if report.importance.empty:
        return None
    wide = report.importance.pivot_table(
        index="parameter", columns="objective", values="importance", sort=False
    )
    return wide.sort_values(wide.columns[0])


def curve_metric(report: Report) -> str:
    """What the learning curves show: the quality, epoch by epoch."""
    return report.quality.removeprefix("best/")


def curve_order(report: Report) -> list[str]:
    """Run ids that have a learning curve, in the table's order: the best first."""
    known = set(report.curves["run_id"])
    return [run for run in report.table["run_id"] if run in known]


def steps(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of `Report.progress` of one study at which the hypervolume changes, and the last one."""
    changed = rows["hypervolume"].diff().fillna(1) != 0
    changed.iloc[-1] = True
    return rows[changed]


def numeric(rows: pd.DataFrame) -> bool:
    """Whether all values of a parameter (rows of `Report.effects`) are numbers, or ranges such as "0.1 to 0.3"."""
    first = rows["value"].astype(str).str.partition(_RANGE)[0]
    return bool(pd.to_numeric(first, errors="coerce").notna().all())


def apart(rows: pd.DataFrame, least: float = 0.08) -> bool:
    """Whether a parameter's values (rows of `Report.effects`) lie so far apart that each can have its tick."""
    if numeric(rows) and rows["value"].astype(str).str.contains(_RANGE, regex=False).any():
        return False  # a range is too long for a tick
    places = np.sort(rows["position"].to_numpy(dtype=float))
    if numeric(rows) and logarithmic("", rows["position"]):
        places = np.log(places)
    return len(places) < 2 or bool(np.diff(places).min() >= least * (places[-1] - places[0]))


def wrapped(text: str, width: int, split: str = "\n") -> str:
    """The text in lines of at most `width` characters; longer words stay whole."""
    return split.join(textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False))


def wrapped_at(mark: str, text: str, width: int) -> str:
    """Like `wrapped`, but names such as model.net.dropout or weighted_focal may also break behind their dots or "_"."""
    return wrapped(text.replace(mark, f"{mark} "), width).replace(f"{mark} ", mark)


def _swept(report: Report) -> pd.DataFrame:
    table = report.table.set_index("run_id", drop=False)
    return table[_known(table["quality"]) & table.index.isin(report.parameters.index)]


def _known(values: pd.Series) -> pd.Series:
    """Which values can be put on an axis: infinite ones cannot."""
    return values.notna() & ~values.isin([math.inf, -math.inf])


def _axis(name: str, label: str, values: pd.Series) -> PlotAxis:
    if not pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
        texts = sorted({str(value) for value in values.dropna()})
        positions = values.map(
            lambda value: float(texts.index(str(value))) if pd.notna(value) else math.nan
        )
        ticks = [(float(place), text) for place, text in enumerate(texts)]
        return _with_missing(label, positions.astype(float).to_numpy(), ticks)
    numbers = values.astype(float).to_numpy()
    numbers = np.where(np.isfinite(numbers), numbers, math.nan)
    known = numbers[~np.isnan(numbers)]
    low, high = known.min(), known.max()
    scaled = logarithmic(name, pd.Series(known))
    marks = np.unique(known).tolist()
    if len(marks) > 8:
        locator = LogLocator(subs=(1, 2, 5)) if scaled else MaxNLocator(5)
        marks = [mark for mark in locator.tick_values(low, high) if low <= mark <= high] or [
            low,
            high,
        ]
    ticks = [(float(np.log10(mark) if scaled else mark), tick(mark)) for mark in marks]
    return _with_missing(label, np.log10(numbers) if scaled else numbers, ticks)


def _with_missing(label: str, positions: np.ndarray, ticks: list[tuple[float, str]]) -> PlotAxis:
    """Lines without a value on this axis cross it below all others."""
    low, high = float(np.nanmin(positions)), float(np.nanmax(positions))
    span = (high - low) or 1.0
    if np.isnan(positions).any():
        below = low - 0.15 * span
        return PlotAxis(
            label,
            np.where(np.isnan(positions), below, positions),
            [(below, "not set"), *ticks],
            below,
            high,
        )
    return PlotAxis(
        label, positions, ticks, *((low, high) if high > low else (low - 0.5, high + 0.5))
    )


BLACK = "#000000"
ORANGE = "#E69F00"
SKY = "#56B4E9"
GREEN = "#009E73"
YELLOW = "#F0E442"
BLUE = "#0072B2"
VERMILLION = "#D55E00"
PURPLE = "#CC79A7"
PALE = "#B8BCC2"
GRID = "#E5E7EB"
# For things side by side; yellow is too faint for lines on white, black is for text.
CYCLE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
SEQUENTIAL = "cividis"


@dataclass(frozen=True)
class Marker:
    """How the points of one kind look.

    Attributes:
        colour: Of the fill, or of the edge where it is hollow.
        symbol: Plotly's name of the shape.
        marker: Matplotlib's name of the same shape.
        size: Diameter in pixels; points in static pictures are half of it.
        hollow: Only the edge is drawn.
    """

    colour: str
    symbol: str
    marker: str
    size: float
    hollow: bool = False


# By state of a trial; what is not listed looks like "no value".
STATES = {
    "front": Marker(BLUE, "circle", "o", 11),
    "dominated": Marker(PALE, "circle", "o", 8),
    "over limit": Marker(ORANGE, "square", "s", 7, hollow=True),
    "pruned": Marker(PURPLE, "triangle-down", "v", 7, hollow=True),
    "over_limit": Marker(VERMILLION, "square", "s", 6, hollow=True),
    "no value": Marker("#7A7F87", "x-thin", "x", 6, hollow=True),
}
KNEE = Marker(VERMILLION, "star", "*", 19)
ORIGIN = Marker("#3B3F45", "circle", "o", 9, hollow=True)
CHOSEN = Marker(BLACK, "diamond", "D", 17, hollow=True)
# Shapes for studies, parameters or chosen runs side by side: Plotly's names and matplotlib's.
SHAPES = (
    ("circle", "o"),
    ("diamond", "D"),
    ("square", "s"),
    ("triangle-up", "^"),
    ("cross", "P"),
    ("hexagon", "h"),
)
DASHES = (("solid", "-"), ("dash", "--"), ("dot", ":"), ("dashdot", "-."))


def mark(state: str) -> Marker:
    """How a trial in this state looks."""
    return STATES.get(state, STATES["no value"])


def cycle(position: int) -> str:
    """The colour of the thing at this position among things side by side."""
    return CYCLE[position % len(CYCLE)]
