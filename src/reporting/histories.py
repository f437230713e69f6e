"""Interactive pictures of what happened on the way: learning curves, hypervolume over time; and recall by class."""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from src.reporting import layout
from src.reporting.interactive import Picture, Section, View, axis, base_layout, plain, rounded
from src.reporting.palette import DASHES, PALE, SEQUENTIAL, SHAPES, cycle, mark
from src.reporting.record import Report

MOST_CURVES = 250
MOST_ROWS = 40


def curves(report: Report) -> Section | None:
    """The quality by epoch; pruned trials end where they ended."""
    frame = report.curves
    if frame.empty:
        return None
    runs = layout.thin(layout.curve_order(report), layout.important(report), MOST_CURVES)
    shown = frame[frame["run_id"].isin(runs)].sort_values(["run_id", "epoch"])
    names = layout.named(report).set_index("run_id")["name"].to_dict()
    named, rest = shown[shown["run_id"].isin(names)], shown[~shown["run_id"].isin(names)]
    traces = []
    for state, rows in sorted(rest.groupby("state"), key=lambda pair: pair[0] == "front"):
        bold = state == "front"
        colour = mark(str(state)).colour if state in ("front", "pruned") else PALE
        look = {"color": colour, "width": 2 if bold else 1}
        traces += _lines(str(state).replace("_", " "), rows, look, mark(str(state)).symbol, 1.0 if bold else 0.8)
    for position, (run, rows) in enumerate(named.groupby("run_id", sort=False)):
        look = {"color": cycle(position + 1), "width": 3, "dash": DASHES[position % len(DASHES)][0]}
        label = f"{plain(names[run])}: {plain(rows['label'].iloc[0])}"
        traces += _lines(label, rows, look, SHAPES[position % len(SHAPES)][0], 1.0)
    title = layout.axis_title(report, layout.curve_metric(report), "<br>")
    figure = go.Figure(traces, base_layout(xaxis=axis("epoch", tickformat="d"), yaxis=axis(title)))
    total = frame["run_id"].nunique()
    note = f"{len(set(shown['run_id']))} of {total} curves are drawn, in even steps of quality, the front's all."
    views = [View("all", note=note if len(set(shown["run_id"])) < total else "")]
    text = (
        "The end of each curve is marked: pruned trials (triangles) end where they were stopped. The front is bold. "
        f"{layout.CURVES_OF_SEEDS}"
    )
    return Section("curves", "Learning curves", text, [Picture(figure, views, 520)])


def progress(report: Report) -> Section | None:
    """How the front grew, by trials and by time."""
    frame = report.progress
    if frame.empty:
        return None
    traces, by_trials, by_time = [], {}, {}
    for position, (study, rows) in enumerate(frame.groupby("study", sort=False)):
        steps = layout.steps(rows)
        by_trials[position] = {"x": rounded(steps["trials"])}
        by_time[position] = {"x": [f"{ended:%Y-%m-%d %H:%M:%S}" for ended in steps["ended"]]}
        line = {"shape": "hv", "color": cycle(position), "width": 2, "dash": DASHES[position % len(DASHES)][0]}
        traces.append(
            go.Scatter(
                name=plain(study),
                mode="lines+markers" if len(steps) <= 60 else "lines",
                marker={"symbol": SHAPES[position % len(SHAPES)][0], "size": 6},
                line=line,
                y=rounded(steps["hypervolume"]),
                hovertemplate="%{x}: %{y:.4f}<extra>%{fullData.name}</extra>",
                **by_trials[position],
            )
        )
    views = [View("by trials", by_trials, {"xaxis": axis("trials ended")})]
    if frame["ended"].notna().all():
        views.append(View("by time", by_time, {"xaxis": axis("time (UTC)", type="date")}))
    scales = {"xaxis": views[0].layout["xaxis"], "yaxis": axis("hypervolume of the front, higher is better")}
    figure = go.Figure(traces, base_layout(showlegend=len(traces) > 1, **scales))
    text = "A line that is flat at its end says that more trials of this kind would hardly move the front."
    return Section("progress", "Hypervolume over time", text, [Picture(figure, views, 400)])


def recalls(report: Report) -> Section | None:
    """Recall of each class, of the front and the chosen runs; of test where it was measured."""
    splits = [split for split in ("test", "val") if len(layout.recalls(report, split))]
    if not splits:
        return None
    views = [_recall_view(report, split) for split in splits]
    heat = go.Heatmap(
        zmin=0,
        zmax=1,
        colorscale=SEQUENTIAL,
        texttemplate="%{z:.2f}",
        hovertemplate="%{text}<extra></extra>",
        xgap=1,
        ygap=1,
        colorbar={
            "title": {"text": "recall, higher is better", "side": "right"},
            "lenmode": "pixels",
            "len": 260,
            "y": 1,
            "yanchor": "top",
        },
        **views[0].traces[0],
    )
    scales = {
        "xaxis": axis("class", side="top", showgrid=False, type="category", ticks=""),
        "yaxis": axis("", autorange="reversed", showgrid=False, type="category", ticks=""),
    }
    figure = go.Figure(heat, base_layout(margin={"l": 20, "r": 10, "t": 60, "b": 20}, **scales))
    text = (
        "The share of each class's images that was recognised: the front and the chosen runs, the cheapest at the top."
    )
    height = max(360, 110 + 28 * max(len(view.traces[0]["y"]) for view in views))
    return Section("recalls", "Recall of each class", text, [Picture(figure, views, height, 560)])


def _lines(name: str, rows: pd.DataFrame, look: dict[str, Any], symbol: str, opacity: float) -> list[go.Scatter]:
    """All curves of one kind as one line with gaps, and a mark where each ends."""
    x: list[Any] = []
    y: list[Any] = []
    texts: list[str] = []
    for run, curve in rows.groupby("run_id", sort=False):
        x += [*rounded(curve["epoch"]), None]
        y += [*rounded(curve["value"]), None]
        texts += [f"<b>{plain(curve['label'].iloc[0])}</b><br>run {plain(run)}"] * (len(curve) + 1)
    ends = [place - 1 for place, value in enumerate(x) if value is None]
    shared = {
        "hovertemplate": "%{text}<br>epoch %{x}: %{y:.4f}<extra></extra>",
        "legendgroup": name,
        "opacity": opacity,
    }
    hollow = look["width"] == 1
    marks = {"color": look["color"], "symbol": f"{symbol}-open" if hollow else symbol, "size": 6 if hollow else 8}
    return [
        go.Scatter(name=name, mode="lines", line=look, x=x, y=y, text=texts, **shared),
        go.Scatter(
            mode="markers",
            marker=marks,
            showlegend=False,
            x=[x[place] for place in ends],
            y=[y[place] for place in ends],
            text=[texts[place] for place in ends],
            **shared,
        ),
    ]


def _recall_view(report: Report, split: str) -> View:
    wide = layout.recalls(report, split)
    shown = wide.head(MOST_ROWS)
    rows = report.recalls[report.recalls["split"] == split].set_index(["run_id", "class"])
    labels = rows.reset_index().drop_duplicates("run_id").set_index("run_id")["label"]
    texts = [[_recall_text(rows, labels[run], str(run), str(name)) for name in shown] for run in shown.index]
    heat = {
        "z": [rounded(values) for values in shown.to_numpy(dtype=np.float64)],
        "x": [plain(name) for name in shown],
        "y": [plain(labels[run]) for run in shown.index],
        "text": texts,
    }
    note = f"The first {len(shown)} of {len(wide)} runs." if len(shown) < len(wide) else ""
    return View({"val": "validation"}.get(split, split), {0: heat}, {}, note)


def _recall_text(rows: pd.DataFrame, label: str, run: str, name: str) -> str:
    head = f"<b>{plain(label)}</b><br>run {plain(run)}<br>{plain(name)}"
    if (run, name) not in rows.index:
        return f"{head}: not measured"
    recall, low, high, images = (
        layout.number(rows.at[(run, name), key]) for key in ("recall", "low", "high", "images")
    )
    interval = "" if low == layout.NOTHING else f" [{low}, {high}]"
    return f"{head}: {recall}{interval}<br>{images} images"
