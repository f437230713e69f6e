"""Describes each chart of a report; plots_html.py and plots_static.py both draw from this.

Traces and axes have the names and values of Plotly's figures. Positions are numbers, NaN where a
value is missing. Texts are plain, titles of axes are texts: plots_html.py escapes and wraps them.
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from src.metrics.formatting import interval
from src.reporting import collect, style
from src.reporting.record import Report
from src.reporting.style import Axis, Look, Ticks, Trace, axis, scatter
from src.sweep.overrides import is_numeric

MOST_CURVES = 250
MOST_LINES = 1500  # of parallel coordinates; more are a grey area, and slow
MOST_ROWS = 40  # of the table of recalls
MOST_LAYERS = 12  # of a net; the others are one bar
MOST_PANELS = 3
LEAST_TRIALS = 3  # two trials have neither effects nor a course: the front shows them
MOST_TICKS = 8
SEEDS_NOTE = (
    "A trial with several seeds has the mean curve of its seeds, up to the last epoch of all seeds."
)
_RANGE = " to "  # between the ends of a group of values of a continuous parameter
_STATES = ("running", "killed", "failed", "over_limit", "pruned", "no value", "over limit")
_THINNED = "the front, and others in even steps of quality."
_PATTERNS = ("", "/", "x", "-", ".", "+")


@dataclass(frozen=True)
class View:
    """One way to show a picture: chosen by a button on the page, a panel on paper.

    The views of a picture have equally many traces, in the same order. Parallel coordinates have no
    axes. `note` says what is omitted.
    """

    label: str
    traces: Sequence[Trace]
    x: Axis = field(default_factory=dict)
    y: Axis = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Chart:
    """Pictures of one subject.

    Attributes:
        key: File name and link.
        title: Heading.
        pictures: The views of each picture, of which there is at least one; equally many views.
        panel_size: Width and height of a panel of a file on paper, in inches.
        height: Of a picture on the page, in pixels.
        width: Its least width on the page, in pixels.
        panels: What a file on paper shows, rows of views; none: the first view of each picture.
        legend: A line above the legend of the file.
        single: The panel that is a file alone; the panels together are a second file.
    """

    key: str
    title: str
    pictures: Sequence[Sequence[View]]
    panel_size: tuple[float, float]
    height: int = 480
    width: int = 0
    panels: Sequence[Sequence[View]] = ()
    legend: str = ""
    single: View | None = None


def charts(report: Report) -> list[Chart]:
    """The charts that have something to show, in the order of the page."""
    makers: tuple[Callable[[Report], Chart | None], ...]
    makers = (front, recalls, roc, layers, effects, importance, parallel, curves, progress)
    return [chart for chart in (make(report) for make in makers) if chart is not None]


def front(report: Report) -> Chart | None:
    """Quality against each cost: all trials, fronts with intervals, the knee, the answers."""
    costs = drawn_costs(report)
    if not costs:
        return None
    objectives = [objective.metric for objective in report.objectives]
    names = dict.fromkeys([report.quality, *objectives, *report.costs])
    texts: dict[str, str] = {}  # of each trial that is pointed at
    for row in report.table.to_dict("records"):
        state = [row["state"].replace("_", " "), "knee" if row.get("knee") else "", row["chosen"]]
        lines = [f"{row['label']} ({'; '.join(filter(None, state))})", f"run {row['run_id']}"]
        if row.get("compression"):
            lines.append(f"compressed ({row['compression']}) from {row['origin_label']}")
        for name in names:
            if name in row:
                lines.append(_value(name, row[name]))
            if name == report.quality:
                ends = (row.get("quality_low"), row.get("quality_high"))
                lines[-1] += interval(*ends, style.number)
        lines += textwrap.wrap(str(row.get("overrides") or ""), 70)[:6]
        texts[row["run_id"]] = "\n".join(lines)
    views = {cost: _front_view(report, cost, texts) for cost in costs}
    panels: list[str] = []  # of several latencies one is enough: they look alike
    for cost in sorted(costs, key=lambda name: name not in objectives):
        if "latency" not in cost or not any("latency" in other for other in panels):
            panels.append(cost)
    drawn = [views[cost] for cost in costs if cost in panels[:MOST_PANELS]]
    size = (max(3.5, 7.2 / MOST_PANELS * len(drawn)) / len(drawn), 2.8)
    shown, single = [list(views.values())], views[panels[0]]
    return Chart("front", "The front", shown, size, 540, panels=[drawn], single=single)


def _front_view(report: Report, cost: str, texts: Mapping[str, str]) -> View:
    table = report.table[report.table["quality"].notna()]

    def points(name: str, rows: pd.DataFrame, marker: Look, **more: Any) -> Trace:
        x, y = (style.finite(rows[column]).to_numpy() for column in (cost, "quality"))
        hover = [texts[run_id] for run_id in rows["run_id"]]
        return scatter(name, x, y, texts=hover, marker=marker, **more)

    lines = origin_lines(report, cost)
    traces = _origins(report, cost, lines) if len(collect.compressed(report.table)) else []
    opacity = 0.45 if len(table) > 2000 else 1.0
    for state in (*_STATES, "dominated"):
        if len(rows := table[table["state"] == state]):
            name = f"{state.replace('_', ' ')} ({len(rows)})"
            marker = style.STATES.get(state, style.STATES["no value"])
            traces.append(points(name, rows, marker, opacity=opacity))
    several = len(report.studies) > 1
    descending = style.direction(report, report.quality).startswith("lower")
    for position, study in enumerate(report.studies):
        rows, marker = report.members, style.STATES["front"]
        colour, shape, dash = style.look(position)
        if several:
            rows = rows[rows["study"] == study]
            marker = style.marker(colour, shape, marker["size"])
        steps = rows[["quality", cost]].dropna().sort_values(cost)
        best = steps["quality"].cummin() if descending else steps["quality"].cummax()
        line = style.line(marker["color"], dash=dash, steps=True)
        traces.append(scatter("", steps[cost].to_numpy(), best.to_numpy(), line=line))
        name = f"front{f' of {study}' if several else ''} ({len(rows)})"
        ends = rows[["quality_low", "quality_high"]].to_numpy(dtype=float)
        intervals = {} if np.isnan(ends).all() else {"low": ends[:, 0], "high": ends[:, 1]}
        traces.append(points(name, rows, marker, **intervals))
    chosen = report.named
    for position, (_, row) in enumerate(chosen[chosen["quality"].notna()].iterrows()):
        hollow = style.marker(style.BLACK, style.look(1 + position % 5)[1], 17, hollow=True)
        name = f"{position + 1}: {row['label']} ({row['name']})"
        marker = style.KNEE if row["knee"] else hollow
        meta = f"{row['label']}{' (knee)' if row['knee'] else ''}"
        traces.append(points(name, row.to_frame().T, marker, label=str(position + 1), meta=meta))
    # Of points in one place Plotly reports the smallest: unseen points above the important runs.
    targets = table[table["run_id"].isin(report.important)]
    traces.append(points("", targets, style.marker(style.BLACK, size=5), opacity=0.0))
    drawn = _drawn(report, cost)
    hidden = len(table) - len(drawn)
    note = f"{hidden} trials without {style.metric(cost).label} are not shown." if hidden else ""
    log = style.logarithmic(cost, pd.concat([drawn[cost], lines["from_x"]]))
    x, y = (axis(style.axis_title(report, name)) for name in (cost, report.quality))
    x["type"] = "log" if log else "linear"
    return View(style.metric(cost).axis, traces, x, y, note)


def _origins(report: Report, cost: str, lines: pd.DataFrame) -> list[Trace]:
    """Lines from the models to their compressed versions, and points of models without a trial."""
    x, y = (
        np.column_stack([lines[f"from_{axis}"], lines[f"to_{axis}"], np.full(len(lines), np.nan)])
        for axis in "xy"
    )
    kinds = ", ".join(collect.compressed(report.table)["compression"].unique())
    outside = lines[lines["outside"]].drop_duplicates("origin")
    title = "origin, not a trial of this report"
    texts = [
        f"{row['origin_label']} ({title})\nrun {row['origin']}\n"
        f"{_value(report.quality, row['from_y'])}\n{_value(cost, row['from_x'])}"
        for row in outside.to_dict("records")
    ]
    line = style.line(style.ORIGIN["color"], width=1)
    from_x, from_y = outside[["from_x", "from_y"]].to_numpy(dtype=float).T
    return [
        scatter(f"compression ({kinds})", x.ravel(), y.ravel(), line=line),
        scatter(title, from_x, from_y, texts=texts, marker=style.ORIGIN),
    ]


def _value(name: str, value: object) -> str:
    return f"{style.metric(name).label}: {style.with_unit(name, value)}"


def recalls(report: Report) -> Chart | None:
    """Recall of each class, of the front and the chosen runs; on test where it was measured."""
    views: list[View] = []
    most = columns = 0
    for split, label in (("test", "test"), ("val", "validation")) if len(report.recalls) else ():
        rows = report.recalls[report.recalls["split"] == split].copy()
        if rows.empty:
            continue
        classes = list(dict.fromkeys(rows["class"]))
        runs = [run for run in report.important if run in set(rows["run_id"])]
        drawn = runs[:MOST_ROWS]
        rows["text"] = [
            f"{row['label']}\nrun {row['run_id']}\n{row['class']}: {row['recall']:.3f}"
            f"{interval(row['low'], row['high'])}\n{row['images']} images"
            for row in rows.to_dict("records")
        ]
        values, hover = (
            rows.pivot(index="run_id", columns="class", values=name).reindex(drawn, columns=classes)
            for name in ("recall", "text")
        )
        labels = rows.drop_duplicates("run_id").set_index("run_id")["label"]
        title = {"text": f"recall on {label}, higher is better", "side": "right"}
        bar = {"title": title, "lenmode": "pixels", "len": 260, "y": 1, "yanchor": "top"}
        trace: Trace = {"type": "heatmap", "z": values.to_numpy(dtype=float), "x": classes}
        trace |= {"y": labels[drawn].tolist(), "hovertext": hover.fillna("not measured").to_numpy()}
        trace |= {"zmin": 0, "zmax": 1, "colorscale": "Cividis", "texttemplate": "%{z:.2f}"}
        trace |= {"xgap": 1, "ygap": 1, "colorbar": bar}
        note = f"The first {len(drawn)} of {len(runs)} runs." if len(drawn) < len(runs) else ""
        axes = (axis("class", type="category"), axis("", type="category"))
        views.append(View(label, [trace], *axes, note))
        most, columns = max(most, len(drawn)), len(classes)
    if not views:
        return None
    size, height = (2.4 + 0.45 * columns, 0.7 + 0.19 * most), max(360, 110 + 28 * most)
    return Chart("recalls", "Recall of each class", [views], size, height, 560)


def roc(report: Report) -> Chart | None:
    """ROC curves of the chosen runs on validation, one class against the rest; and chance."""
    if report.roc.empty:
        return None
    diagonal = np.array([0.0, 1.0])
    traces = [scatter("chance", diagonal, diagonal, line=style.line(style.PALE, 1, "dot"))]
    for position, (_, rows) in enumerate(report.roc.groupby("run_id", sort=False)):
        colour, _, dash = style.look(position)
        name = f"{rows['label'].iloc[0]}: AUROC {rows['auroc'].iloc[0]:.3f}"
        x, y = rows[["false_positive_rate", "sensitivity"]].to_numpy(dtype=float).T
        traces.append(scatter(name, x, y, line=style.line(colour, 2, dash)))
    classes = ", ".join(report.roc["class"].unique())
    y_axis = axis(f"sensitivity for {classes}, higher is better")
    view = View("all", traces, axis("1 - specificity, lower is better"), y_axis)
    return Chart("roc", "ROC of the chosen models on validation", [[view]], (3.6, 2.8))


def largest_layers(report: Report) -> pd.DataFrame:
    """`Report.layers` with the share of each, in the net's order; small layers are one row."""
    tables = [pd.DataFrame()]
    for _, rows in report.layers.groupby("run_id", sort=False) if len(report.layers) else ():
        counts = rows[["flops", "params"]]
        shares = (counts / counts.sum().clip(lower=1)).add_prefix("share_")
        order = shares.max(axis=1).sort_values(ascending=False, kind="stable").index
        rows = rows.join(shares)
        largest, smaller = rows[rows.index.isin(order[:MOST_LAYERS])], rows.loc[order[MOST_LAYERS:]]
        if len(smaller):
            summary = smaller.head(1).assign(layer=f"{len(smaller)} others", type="")
            summary[[*counts, *shares]] = smaller[[*counts, *shares]].sum().to_numpy()[None]
            largest = pd.concat([largest, summary])
        tables.append(largest)
    return pd.concat(tables, ignore_index=True)


def layers(report: Report) -> Chart | None:
    """Each layer's share of the FLOPs and of the parameters of a chosen net; a view per net."""
    if report.layers.empty:
        return None
    views, most = [], 0
    for _, rows in largest_layers(report).groupby("run_id", sort=False):
        rows, bars = rows[::-1], []
        names = (rows["layer"] + " " + rows["type"]).str.strip()
        for number, (name, title) in enumerate({"flops": "FLOPs", "params": "parameters"}.items()):
            texts = rows[name].map(style.number)
            bars.append(_bar(title, number, names, rows[f"share_{name}"], texts))
        x = axis("share of the net", tickformat=".0%")
        views.append(View(rows["label"].iloc[0], bars, x, axis("", type="category")))
        most = max(most, len(rows))
    title, size = "FLOPs and parameters by layer", (4.6, 0.7 + 0.25 * most)
    return Chart("layers", title, [views], size, 190 + 34 * most, 600, legend=views[0].label)


def _bar(name: str, number: int, names: pd.Series, lengths: pd.Series, texts: pd.Series) -> Trace:
    """Horizontal bars with texts at their ends; each trace has a pattern too."""
    pattern = {"shape": _PATTERNS[number % 6], "fillmode": "overlay", "fgcolor": "white"}
    bar: Trace = {"type": "bar", "orientation": "h", "name": name, "cliponaxis": False}
    bar |= {"y": list(map(str, names)), "x": lengths.to_numpy(dtype=float), "text": [*texts]}
    bar |= {"marker": {"color": style.look(number)[0], "pattern": pattern}}
    return bar | {"textposition": "outside"}


def effects(report: Report) -> Chart | None:
    """Each parameter's effect on each objective: the mean of all trials, and the best trial."""
    frame = report.effects
    if frame.empty or frame.groupby(["parameter", "objective"])["n"].sum().max() < LEAST_TRIALS:
        return None
    objectives = frame["objective"].unique()
    pictures = [
        [_effect(report, name, objective) for objective in objectives]
        for name in frame["parameter"].unique()
    ]
    panels, size = list(zip(*pictures, strict=True)), (max(1.65, 3.5 / len(pictures)), 1.6)
    return Chart("effects", "The effect of each parameter", pictures, size, 360, panels=panels)


def _effect(report: Report, parameter: str, objective: str) -> View:
    rows = report.effects.sort_values("position").astype({"value": str})
    rows = rows[(rows["parameter"] == parameter) & (rows["objective"] == objective)]
    x = rows["position"].to_numpy(dtype=float)
    numbers = pd.to_numeric(rows["value"].str.partition(_RANGE)[0], errors="coerce")
    numeric = bool(numbers.notna().all())
    log = numeric and style.logarithmic("", rows["position"])
    scaled = np.log(x) if log else x
    apart = len(x) < 2 or np.diff(scaled).min() >= 0.08 * np.ptp(scaled)
    ticks: Ticks | None = None
    if not numeric or (apart and not rows["value"].str.contains(_RANGE, regex=False).any()):
        ticks = list(zip(x.tolist(), rows["value"], strict=True))
    means, best = [], []
    for row in rows.to_dict("records"):
        head = f"{parameter} = {row['value']}\n"
        mean = style.with_unit(objective, row["mean"])
        mean += interval(row["low"], row["high"], style.number)
        means.append(f"{head}mean {mean}\n{row['n']} trials")
        best.append(f"{head}{style.with_unit(objective, row['best'])}\nrun {row['best_run']}")
    first, second = style.CYCLE[:2]
    # A line would put texts in an order, and noise between single trials.
    several = rows["n"].max() > 1
    solid = style.line(first) if numeric and several else None
    dashed = style.line(second, 1.5, "dash") if numeric else None
    columns = {name: rows[name].to_numpy(dtype=float) for name in ("mean", "low", "high", "best")}
    mean_y, low, high, best_y = columns.values()
    filled, hollow = style.marker(first), style.marker(second, "diamond", 9, hollow=True)
    traces = [
        scatter("mean of all", x, mean_y, low, high, means, marker=filled, line=solid),
        scatter("best trial", x, best_y, texts=best, marker=hollow, line=dashed),
    ][: 2 if several else 1]
    limits = {} if numeric or not len(x) else {"range": [x.min() - 0.5, x.max() + 0.5]}
    scale = axis(parameter, ticks, type="log" if log else "linear", **limits)
    label, quality = style.metric(objective).label, axis(style.axis_title(report, objective))
    return View(label, traces, scale, quality)


def importance(report: Report) -> Chart | None:
    """Each parameter's importance for each objective."""
    if report.importance.empty:
        return None
    wide = report.importance.pivot_table(
        index="parameter", columns="objective", values="importance", sort=False
    )
    wide = wide.sort_values(wide.columns[0])
    bars: list[Trace] = []
    for number, (name, lengths) in enumerate(wide.items()):
        texts = lengths.map(lambda value: "-" if pd.isna(value) else f"{value:.0%}")
        label = style.metric(str(name)).label
        bars.append(_bar(label, number, wide.index.to_series(), lengths, texts))
    x = axis("importance (share of what all parameters explain)", tickformat=".0%")
    view = View("all", bars, x, axis("", type="category"))
    title, size = "The importance of each parameter", (4.6, 0.7 + 0.2 * wide.size)
    return Chart("importance", title, [[view]], size, 190 + 24 * wide.size)


def parallel(report: Report) -> Chart | None:
    """A line per trial through its parameters and objectives, coloured by quality."""
    table = report.table.set_index("run_id", drop=False)
    table = table[table.index.isin(report.parameters.index)]
    table = table[style.finite(table["quality"]).notna()]
    rows = table.loc[_thinned(list(table.index), report.important, MOST_LINES)]
    metrics = [objective.metric for objective in report.objectives if objective.metric in rows]
    columns = report.parameters.reindex(rows.index).join(rows[metrics].apply(style.finite))
    titles = {name: style.axis_title(report, name) for name in metrics}
    dimensions = [
        _dimension(name, titles.get(name, name), columns[name])
        for name in map(str, columns.dropna(axis="columns", how="all"))
    ]
    if len(rows) < LEAST_TRIALS or len(dimensions) < 2:
        return None
    title = {"text": style.axis_title(report, report.quality), "side": "right"}
    bar = {"colorbar": {"title": title}, "colorscale": "Cividis", "showscale": True}
    line = {"color": rows["quality"].to_numpy(dtype=float), **bar}
    lines = {"type": "parcoords", "line": line, "dimensions": dimensions}
    note = f"{len(rows)} of {len(table)} trials: {_THINNED}" if len(rows) < len(table) else ""
    view = View("all", [lines], note=note)
    height = max(style.wrapped(axis["label"], 13).count("\n") + 1 for axis in dimensions)
    size = (max(4.5, 1.1 * len(dimensions) + 1.2), 3.0)
    heading = "Parameters and objectives of each trial"
    return Chart("parallel", heading, [[view]], size, 390 + 15 * height, 95 * len(dimensions))


def _dimension(name: str, title: str, values: pd.Series) -> Axis:
    """Values as positions; a trial without a value crosses below all others."""
    if is_numeric(values):
        positions = style.finite(values)
        log = style.logarithmic(name, positions)
        marks = np.unique(positions.dropna())
        if len(marks) > MOST_TICKS:
            marks = (np.geomspace if log else np.linspace)(marks[0], marks[-1], 5)
        positions = np.log10(positions) if log else positions
        ticks = [(float(np.log10(mark) if log else mark), style.tick(mark)) for mark in marks]
    else:
        texts = sorted({str(value) for value in values.dropna()})
        ticks = [(float(number), text) for number, text in enumerate(texts)]
        positions = values.map(lambda value: float(texts.index(str(value))), na_action="ignore")
    crossings = positions.astype(float).to_numpy()
    low, high = float(np.nanmin(crossings)), float(np.nanmax(crossings))
    if np.isnan(crossings).any():
        low -= 0.15 * ((high - low) or 1.0)
        crossings, ticks = np.nan_to_num(crossings, nan=low), [(low, "not set"), *ticks]
    ends = [low, high] if high > low else [low - 0.5, high + 0.5]
    return {"label": title, "values": crossings, "range": ends} | style.positions(ticks)


def curves(report: Report) -> Chart | None:
    """The quality after each epoch; the curve of a pruned trial ends where it was stopped."""
    frame = report.curves
    if frame.empty:
        return None
    order = report.table.loc[report.table["run_id"].isin(frame["run_id"]), "run_id"]
    runs = _thinned(list(order), report.important, MOST_CURVES)
    histories = frame[frame["run_id"].isin(runs)].sort_values(["run_id", "epoch"])
    names = report.named.set_index("run_id")["name"].to_dict()
    traces: list[Trace] = []
    other_runs = histories[~histories["run_id"].isin(names)].groupby("state")
    for state, rows in sorted(other_runs, key=lambda pair: pair[0] == "front"):
        marker = style.STATES.get(str(state), style.STATES["no value"])
        colour = marker["color"] if state in ("front", "pruned") else style.PALE
        width, opacity = (2, 1.0) if state == "front" else (1, 0.8)
        end = style.marker(colour, marker["symbol"].removesuffix("-open"), 8, state != "front")
        name = str(state).replace("_", " ")
        traces += _curve(name, rows, end, style.line(colour, width), opacity)
    chosen = histories[histories["run_id"].isin(names)].groupby("run_id", sort=False)
    for position, (run_id, rows) in enumerate(chosen):
        _, shape, dash = style.look(position)
        colour = style.look(position + 1)[0]
        end = style.marker(colour, shape)
        name = f"{rows['label'].iloc[0]} ({names[run_id]})"
        traces += _curve(name, rows, end, style.line(colour, 3, dash))
    total = frame["run_id"].nunique()
    note = f"{len(runs)} of {total} curves: {_THINNED}" if len(runs) < total else ""
    quality = axis(style.axis_title(report, report.quality))
    view = View("all", traces, axis("epoch", tickformat="d"), quality, note)
    repeats = report.table.get("repeats", pd.Series(dtype=float))
    legend = SEEDS_NOTE if pd.to_numeric(repeats, errors="coerce").gt(1).any() else ""
    return Chart("curves", "Learning curves", [[view]], (4.6, 2.8), 520, legend=legend)


def _curve(
    name: str, rows: pd.DataFrame, end: Look, line: Look, opacity: float = 1.0
) -> list[Trace]:
    """All curves of one kind as one line with gaps, and a point where each curve ends."""
    ends = rows.groupby("run_id", sort=False).tail(1)
    gaps = ends.assign(epoch=np.nan, value=np.nan)
    curves = pd.concat([rows, gaps]).sort_values("run_id", kind="stable")

    def trace(name: str, points: pd.DataFrame, **look: Any) -> Trace:
        texts = (points["label"] + "\nrun " + points["run_id"]).tolist()
        x, y = points["epoch"].to_numpy(), points["value"].to_numpy()
        return scatter(name, x, y, texts=texts, **look)

    return [trace(name, curves, line=line, opacity=opacity), trace("", ends, marker=end)]


def progress(report: Report) -> Chart | None:
    """The hypervolume of the front, by trials that have ended and by time."""
    frame = report.progress
    if len(frame) < LEAST_TRIALS:
        return None
    by_trials, by_time = [], []
    for position, (study, rows) in enumerate(frame.groupby("study", sort=False)):
        changed = rows["hypervolume"].diff().fillna(1) != 0
        changed.iloc[-1] = True
        steps = rows[changed]
        colour, shape, dash = style.look(position)
        look: dict[str, Any] = {"line": style.line(colour, dash=dash, steps=True)}
        look["marker"] = style.marker(colour, shape, 6) if len(steps) <= 60 else None
        y = steps["hypervolume"].to_numpy()
        by_trials.append(scatter(str(study), steps["trials"].to_numpy(dtype=float), y, **look))
        times = [f"{ended:%Y-%m-%d %H:%M:%S}" for ended in steps["ended"]]
        by_time.append(scatter(str(study), times, y, **look))
    y_axis = axis("hypervolume of the front, higher is better")
    x_axis = axis("trials that have ended", tickformat="d")
    views = [View("by trials", by_trials, x_axis, y_axis)]
    if frame["ended"].notna().all():
        views.append(View("by time", by_time, axis("time (UTC)", type="date"), y_axis))
    return Chart("progress", "Hypervolume over time", [views], (4.6, 2.2), 400)


def drawn_costs(report: Report) -> list[str]:
    """The costs that have a view of the front, in its order."""
    return [cost for cost in report.costs if len(_drawn(report, cost))]


def _drawn(report: Report, cost: str) -> pd.DataFrame:
    """The trials with a finite quality and a finite cost."""
    if cost not in report.table or "quality" not in report.table:
        return report.table.iloc[:0]
    values = report.table[["quality", cost]].apply(style.finite)
    return report.table[values.notna().all(axis="columns")]


def origin_lines(report: Report, cost: str) -> pd.DataFrame:
    """Lines from origins to their compressed versions.

    Returns:
        Columns run_id, label and compression of the trial, origin, origin_label, from_x, from_y,
        to_x, to_y, outside (whether the origin has no point of its own in the report).
    """
    points = _drawn(report, cost)
    ends = [f"origin/{cost}", f"origin/{report.quality}", cost, "quality"]
    columns = ["run_id", "label", "compression", "origin", "origin_label"]
    lines = collect.compressed(points).reindex(columns=[*columns, *ends])
    lines.columns = pd.Index([*columns, "from_x", "from_y", "to_x", "to_y"])
    lines = lines.assign(outside=~lines["origin"].isin(points["run_id"]))
    return lines.replace([np.inf, -np.inf], np.nan).dropna(subset=["from_x", "from_y"])


def _thinned(run_ids: Sequence[str], keep: Sequence[str], limit: int) -> list[str]:
    """The runs to keep, and every n-th of the others, so that at most `limit` others are drawn."""
    is_kept = pd.Index(run_ids).isin(list(keep))
    candidates = np.asarray(run_ids)[~is_kept]
    return [*np.asarray(run_ids)[is_kept], *candidates[:: max(1, -(-len(candidates) // limit))]]
