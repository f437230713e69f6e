"""Charts as the JSON that plotly.js reads."""

import html
import json
import math

import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import make_report, with_compressed

from src.reporting import charts, plots_html, style
from src.reporting.charts import View
from src.reporting.plots_html import figure, json_values, plain
from src.reporting.style import axis, scatter


@pytest.mark.parametrize("make", [make_report, with_compressed])
def test_every_figure_and_view_is_valid_for_plotly(make):
    for chart in charts.charts(make()):
        for picture in chart.pictures:
            drawn = figure(picture)
            json.dumps(drawn, allow_nan=False)
            for view in drawn["views"]:
                data = [dict(trace) for trace in drawn["data"]]
                for number, changes in view["traces"].items():
                    data[number] |= changes
                valid = go.Figure(data, drawn["layout"] | view["layout"])
                assert len(valid.data) == len(data)


def test_a_view_holds_only_what_differs_and_the_first_view_undoes_it(report):
    drawn = figure(charts.front(report).pictures[0])
    first, second = drawn["views"][:2]
    for number, trace in enumerate(drawn["data"]):
        changes = second["traces"][number]
        assert not {"y", "hovertext", "marker", "type"} & set(changes) or trace["mode"] == "lines"
        assert first["traces"][number] == {key: trace[key] for key in first["traces"][number]}
        assert set(changes) <= set(first["traces"][number])
    assert first["layout"]["xaxis"] == drawn["layout"]["xaxis"]
    assert second["layout"]["xaxis"]["title"]["text"].startswith("parameters")


POINTS = scatter(
    "a", [1, 2], [0.5, 0.6], [0.4, 0.5], [0.7, 0.8], ["x\ny", "z"], marker=style.marker("red")
)


def test_views_differ_in_what_only_one_of_them_has():
    empty = scatter("a", [], [], marker=style.marker("red"), line=style.line("blue"))
    first, second = (View("v", [one], axis("x"), axis("y")) for one in (POINTS, empty))
    for views in ((first, second), (second, first)):
        changes = [view["traces"][0] for view in figure(views)["views"]]
        with_points, without = changes if views[0] is first else changes[::-1]
        assert (without["error_y"], with_points["line"]) == (None, None)
        assert with_points["error_y"]["array"] == pytest.approx([0.2, 0.2])
        assert without["line"]["color"] == "blue"


def test_points_lines_and_intervals_become_traces():
    line = scatter("", [1, 2], [3, math.nan], line=style.line("blue", dash="dash", steps=True))
    y = axis("size", ((1.0, "one"), (2.0, "<two>")), range=[0, 3])
    drawn = figure([View("v", [POINTS, line], axis("cost", type="log"), y)])
    first, second = drawn["data"]
    assert first["mode"] == "markers"
    assert first["hovertext"] == ["<b>x</b><br>y", "<b>z</b><br>"]
    assert first["error_y"]["array"] == pytest.approx([0.2, 0.2])
    assert first["error_y"]["arrayminus"] == pytest.approx([0.1, 0.1])
    assert second["line"] == {"color": "blue", "width": 2, "dash": "dash", "shape": "hv"}
    assert second["y"] == [3, None]
    assert not second["showlegend"]
    assert drawn["layout"]["xaxis"]["type"] == "log"
    assert drawn["layout"]["yaxis"]["ticktext"] == ["one", "&lt;two&gt;"]
    assert drawn["layout"]["yaxis"]["range"] == [0, 3]


def test_thousands_of_points_are_drawn_by_webgl_and_few_are_not(report, large):
    assert len(large.table) > plots_html.WEBGL_FROM
    for some, kind in ((report, "scatter"), (large, "scattergl")):
        drawn = figure(charts.front(some).pictures[0])
        assert {trace["type"] for trace in drawn["data"]} == {kind}


def test_long_values_are_cut_unless_they_would_be_the_same(report):
    def ticks(names):
        parameters = report.parameters.replace({"loss": names})
        chart = charts.parallel(type(report)(**vars(report) | {"parameters": parameters}))
        [trace] = figure(chart.pictures[0])["data"]
        return trace["dimensions"][3]["ticktext"]

    assert ticks({"focal": "weighted_cross_entropy"}) == ["cross_entropy", "weighted_cros…"]
    twins = {"cross_entropy": "weighted_cross_a", "focal": "weighted_cross_b"}
    assert ticks(twins) == list(twins.values())


def test_long_names_are_wrapped_in_the_legend():
    name = "custom #0 (best with params <= 692k, cheapest with recall/mel >= 0.8)"
    view = View("all", [scatter(name, [1], [2])], axis("x"), axis("y"))
    lines = figure([view])["data"][0]["name"].split("<br>")
    assert max(map(len, map(html.unescape, lines))) <= 44
    assert html.unescape(" ".join(lines)) == name


def test_twelve_parallel_axes_fit_the_page(report):
    numbers = {f"p{number}": range(len(report.parameters)) for number in range(5)}
    parameters = report.parameters.assign(**numbers)
    chart = charts.parallel(type(report)(**vars(report) | {"parameters": parameters}))
    assert len(chart.pictures[0][0].traces[0]["dimensions"]) == 12
    assert chart.width <= 1141  # see page.html.j2


@given(st.text())
def test_plain_text_holds_no_tag(text):
    assert "<" not in plain(text).replace("<br>", "")


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True)))
def test_rounding_keeps_five_figures_and_is_json(values):
    short = json_values(values)
    json.dumps(short, allow_nan=False)
    for value, near in zip(values, short, strict=True):
        if near is None:
            # the largest floats round to infinity
            assert not math.isfinite(value) or abs(value) > 1.7e308
        else:
            assert near == pytest.approx(value, rel=1e-4)


def x_axis(values, **look):
    shown = View("", [scatter("", values, [0.5] * len(values))], axis("x", **look), axis("y"))
    return figure([shown])["layout"]["xaxis"]


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([181_000, 488_000], ["240k", "320k", "400k", "480k"]),  # no power of ten between them
        ([2.1, 2.9], ["2.2", "2.4", "2.6", "2.8"]),
        ([30e6, 335e6], ["50M", "100M", "200M"]),
        ([1.0, 10.0], ["1", "2", "5", "10"]),
    ],
)
def test_each_tick_of_a_logarithmic_axis_says_its_magnitude(values, texts):
    assert x_axis(values, type="log")["ticktext"] == texts


def test_a_short_axis_repeats_no_whole_number():
    assert x_axis([1, 2, math.nan], tickformat="d")["dtick"] == 1
    assert "dtick" not in x_axis([1, 40], tickformat="d")
