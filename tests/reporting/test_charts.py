import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import COSTS, QUALITY, make_report

from src.reporting import plots_html, style
from src.reporting.plots_html import WEBGL_FROM, front, plain, rounded, sections

OKABE_ITO = {"#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"}


def traces(section, picture=0):
    return list(section.pictures[picture].figure.data)


def by_name(section, start):
    return next(trace for trace in traces(section) if (trace.name or "").startswith(start))


def test_a_full_report_has_all_sections_in_the_order_of_what_people_ask(report):
    keys = ["front", "recalls", "effects", "importance", "parallel", "curves", "progress"]
    assert [section.key for section in sections(report)] == keys


def test_a_study_with_one_run_shows_its_point_and_leaves_out_the_rest(bare):
    found = sections(bare)
    assert [section.key for section in found] == ["front"]
    assert len(by_name(found[0], "front").y) == 1
    assert [view.label for view in found[0].pictures[0].views] == [
        "FLOPs (multiply-adds)",
        "parameters",
    ]


def test_every_trial_with_quality_is_a_point_of_its_state(report):
    section = front(report)
    known = report.table[report.table["quality"].notna()]
    for state, count in known["state"].value_counts().items():
        trace = by_name(section, str(state).replace("_", " "))
        assert trace.name == f"{state} ({count})"
        assert sorted(trace.y) == pytest.approx(
            sorted(known.loc[known["state"] == state, "quality"]), rel=1e-4
        )


def test_each_view_holds_every_point_s_cost_and_says_how_many_have_none(report):
    section = front(report)
    views = section.pictures[0].views
    assert len(views) == len(COSTS)
    for cost, view in zip(COSTS, views, strict=True):
        for position, trace in enumerate(traces(section)):
            if trace.mode != "lines":
                assert len(view.traces[position]["x"]) == len(trace.y)
        hidden = int(report.table.loc[report.table["quality"].notna(), cost].isna().sum())
        assert (f"{hidden} trials" in view.note) == (hidden > 0)
        assert "lower is better" in view.layout["xaxis"]["title"]["text"].replace("<br>", " ")
    assert views[0].layout["xaxis"]["type"] == "log"
    assert views[1].layout["xaxis"]["type"] == "log"
    assert (
        section.pictures[0].figure.layout.xaxis.title.text
        == "FLOPs (multiply-adds)<br>lower is better"
    )
    y = "balanced accuracy (validation, chosen epoch)<br>higher is better"
    assert section.pictures[0].figure.layout.yaxis.title.text == y


def test_the_step_line_is_the_best_quality_up_to_each_cost():
    report = make_report(12)
    members = style.members(report).iloc[:3].assign(quality=[0.5, 0.4, 0.7])
    members[COSTS[0]] = [1e6, 2e6, 3e6]
    assert style.staircase(members, COSTS[0], descending=False) == (
        [1e6, 2e6, 3e6],
        [0.5, 0.5, 0.7],
    )
    assert style.staircase(members, COSTS[0], descending=True) == ([1e6, 2e6, 3e6], [0.5, 0.4, 0.4])


def test_intervals_stand_around_the_front_only(report):
    section = front(report)
    members = report.table[report.table["state"] == "front"]
    assert by_name(section, "front").error_y.array == pytest.approx(
        (members["quality_high"] - members["quality"])[style.members(report).index], rel=1e-3
    )
    assert by_name(section, "dominated").error_y.array is None


def test_hovering_tells_label_run_state_figures_with_units_and_overrides(report):
    row = report.table[report.table["state"] == "dominated"].iloc[0]
    text = by_name(front(report), "dominated").hovertext[0]
    assert text.startswith(f"<b>{row['label']}</b> (dominated)<br>run {row['run_id']}<br>")
    assert f"balanced accuracy (validation, chosen epoch): {row[QUALITY]:.4f}" in text
    assert " multiply-adds<br>" in text
    assert row["overrides"] in text.replace("<br>", " ")


def test_knee_and_chosen_models_are_named_in_the_picture_and_in_the_legend(report):
    section = front(report)
    knee = report.table[report.table["knee"]].iloc[0]
    assert list(by_name(section, "knee").text) == [knee["label"]]
    for answer in report.answers:
        if answer.run_id:
            label = report.table.set_index("run_id").at[answer.run_id, "label"]
            assert any(
                plain(answer.name) in (trace.name or "") and label in trace.name
                for trace in traces(section)
            )


def test_tags_from_outside_stay_text(report):
    table = report.table.copy()
    table["label"] = "<b>x</b><script>" + table["label"]
    text = by_name(front(replace(report, table=table)), "dominated").hovertext[0]
    assert "&lt;script&gt;" in text
    assert "<script" not in text


@given(st.text())
def test_plain_text_holds_no_tag(text):
    assert "<" not in plain(text)


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True)))
def test_rounding_keeps_five_figures_and_is_json(values):
    short = rounded(values)
    json.dumps(short, allow_nan=False)
    for value, near in zip(values, short, strict=True):
        if near is None:
            # the largest floats round to infinity
            assert not math.isfinite(value) or abs(value) > 1.7e308
        else:
            assert near == pytest.approx(value, rel=1e-4)


def test_each_study_has_its_own_front_colour_and_shape(two_studies):
    fronts = [
        trace for trace in traces(front(two_studies)) if (trace.name or "").startswith("front of")
    ]
    assert [trace.name.split(" (")[0] for trace in fronts] == [
        "front of dense_size",
        "front of frontier",
    ]
    assert (
        len({trace.marker.color for trace in fronts})
        == len({trace.marker.symbol for trace in fronts})
        == 2
    )


def test_thousands_of_points_are_drawn_by_webgl_and_few_are_not(report, large):
    assert isinstance(by_name(front(report), "dominated"), go.Scatter)
    assert len(large.table) > WEBGL_FROM
    assert {trace.type for trace in traces(front(large))} == {"scattergl"}


def test_pruned_curves_end_where_they_ended_and_front_curves_are_bolder(report):
    section = plots_html.curves(report)
    lines = [trace for trace in traces(section) if trace.mode == "lines"]
    pruned = next(trace for trace in lines if trace.name == "pruned")
    ends = next(
        trace
        for trace in traces(section)
        if trace.mode == "markers" and trace.legendgroup == "pruned"
    )
    last = report.curves[report.curves["state"] == "pruned"].groupby("run_id")["epoch"].max()
    assert sorted(ends.x) == sorted(last)
    assert next(trace for trace in lines if trace.name == "front").line.width > pruned.line.width
    assert (
        section.pictures[0].figure.layout.yaxis.title.text
        == "balanced accuracy (validation)<br>higher is better"
    )


def test_too_many_curves_and_lines_are_thinned_but_the_front_stays_and_the_page_says_so(large):
    section = plots_html.curves(large)
    total = large.curves["run_id"].nunique()
    drawn = {text for trace in traces(section) if trace.mode == "lines" for text in trace.text}
    members = set(large.table.loc[large.table["state"] == "front", "run_id"])
    assert len(drawn) <= plots_html.MOST_CURVES + len(style.important(large))
    assert all(any(run in text for text in drawn) for run in members)
    assert section.pictures[0].views[0].note.startswith(f"{len(drawn)} of {total} curves")
    lines = plots_html.parallel(large).pictures[0]
    count = len(lines.figure.data[0].dimensions[0].values)
    assert count <= plots_html.MOST_LINES + len(style.important(large))
    assert lines.views[0].note.startswith(f"{count} of {len(large.parameters)}")


def test_parallel_axes_are_the_swept_parameters_then_the_objectives_with_categories_as_ticks(
    report,
):
    dimensions = plots_html.parallel(report).pictures[0].figure.data[0].dimensions
    names = [one.label.replace(".<br>", ".").replace("<br>", " ") for one in dimensions]
    assert names[:4] == [
        "model.net.width",
        "model.net.dense",
        "model.net.dropout",
        "loss",
    ]
    assert names[4:6] == [
        "balanced accuracy (validation, chosen epoch), higher is better",
        "FLOPs (multiply-adds), lower is better",
    ]
    assert list(dimensions[3].ticktext) == ["cross_entropy", "focal"]
    assert list(dimensions[3].tickvals) == [0, 1]
    assert dimensions[2].ticktext[0] == "not set"  # dropout belongs to some trials only
    values = np.array([one.values for one in dimensions], dtype=float)
    assert np.isfinite(values).all()


@pytest.mark.parametrize("name", ["quality", QUALITY, "efficiency/flops"])
def test_infinite_figures_do_not_stop_parallel_coordinates(report, name):
    table = report.table.copy()
    known = table.index[table["quality"].notna() & table[name].notna()]
    table.loc[known[0], name], table.loc[known[1], name] = math.inf, -math.inf
    trace = plots_html.parallel(replace(report, table=table)).pictures[0].figure.data[0]
    assert np.isfinite(np.array([one["values"] for one in trace.dimensions], dtype=float)).all()
    assert np.isfinite(np.array(trace.line.color, dtype=float)).all()
    # a trial without a finite quality has no colour, so no line; one without a finite cost crosses
    # below the others
    before = len(plots_html.parallel(report).pictures[0].figure.data[0].line.color)
    assert len(trace.line.color) == before - (2 if name == "quality" else 0)
    nothing = replace(report, table=table.assign(**{name: math.inf}))
    section = plots_html.parallel(nothing)
    assert (
        section is None
        if name == "quality"
        else len(section.pictures[0].figure.data[0].dimensions) == 6
    )


def losses(report, names):
    rows = report.effects[report.effects["parameter"] == "loss"]
    first = rows.drop_duplicates("objective")
    every = pd.concat(
        [first.assign(value=name, position=float(place)) for place, name in enumerate(names)]
    )
    return plots_html.effects(replace(report, effects=every)).pictures[0].views[0].layout["xaxis"]


def test_every_text_of_a_parameter_has_its_tick_in_lines_or_upright(report):
    scale = losses(report, ["cross_entropy", "weighted_cross_entropy", "weighted_focal"])
    assert scale["tickvals"] == [0, 1, 2]
    assert scale["ticktext"] == [
        "cross_entropy",
        "weighted_<br>cross_entropy",
        "weighted_<br>focal",
    ]
    assert scale["tickangle"] == 0
    many = [f"very_long_name_{number:02}" for number in range(20)]
    scale = losses(report, many)
    assert scale["ticktext"] == many
    assert scale["tickangle"] == -90
    assert losses(report, ["<b>", "a&b"])["ticktext"] == ["&lt;b&gt;", "a&amp;b"]


def test_twelve_parallel_axes_fit_the_page_and_long_values_are_cut_unless_they_would_be_the_same(
    report,
):
    parameters = report.parameters.assign(
        **{f"p{number}": range(len(report.parameters)) for number in range(5)}
    )
    assert len(parameters.columns) + len(report.objectives) == 12
    assert (
        plots_html.parallel(replace(report, parameters=parameters)).pictures[0].width <= 1141
    )  # see page.html.j2
    names = {"cross_entropy": "cross_entropy", "focal": "weighted_cross_entropy"}
    section = plots_html.parallel(
        replace(report, parameters=report.parameters.replace({"loss": names}))
    )
    ticks = section.pictures[0].figure.data[0].dimensions[3].ticktext
    assert list(ticks) == ["cross_entropy", "weighted_cros…"]
    assert "cut short" in section.text
    twins = {"cross_entropy": "weighted_cross_a", "focal": "weighted_cross_b"}
    section = plots_html.parallel(
        replace(report, parameters=report.parameters.replace({"loss": twins}))
    )
    assert list(section.pictures[0].figure.data[0].dimensions[3].ticktext) == list(twins.values())
    assert "cut short" not in section.text


def test_effects_have_a_picture_a_parameter_and_a_view_an_objective(report):
    section = plots_html.effects(report)
    assert len(section.pictures) == report.effects["parameter"].nunique()
    rows = report.effects.query(
        "parameter == 'model.net.width' and objective == @QUALITY"
    ).sort_values("position")
    view = section.pictures[0].views[0]
    assert view.traces[0]["y"] == pytest.approx(rows["mean"].to_list(), rel=1e-4)
    assert view.traces[1]["y"] == pytest.approx(rows["best"].to_list(), rel=1e-4)
    loss = section.pictures[-1].views[0]
    assert loss.traces[0]["mode"] == "markers"  # a line would put losses in an order
    assert [view.label for view in section.pictures[0].views][1] == "FLOPs"


def test_importance_has_a_bar_a_parameter_and_objective(report):
    bars = traces(plots_html.importance(report))
    assert len(bars) == 3
    for bar in bars:
        assert sum(bar.x) == pytest.approx(1, abs=1e-3)
    assert (
        len({bar.marker.color for bar in bars})
        == len({bar.marker.pattern.shape for bar in bars})
        == 3
    )


def test_recalls_are_of_test_where_there_is_test_else_of_validation(report):
    section = plots_html.recalls(report)
    assert [view.label for view in section.pictures[0].views] == ["test", "validation"]
    heat = traces(section)[0]
    run = style.members(report)["run_id"].iloc[0]
    rows = report.recalls[(report.recalls["run_id"] == run) & (report.recalls["split"] == "test")]
    assert list(heat.z[0]) == pytest.approx(rows["recall"].to_list(), rel=1e-4)
    assert list(heat.x) == rows["class"].to_list()
    only = replace(report, recalls=report.recalls.query("split == 'val'"))
    assert [view.label for view in plots_html.recalls(only).pictures[0].views] == ["validation"]


def test_progress_has_a_line_a_study_by_trials_and_by_time(two_studies):
    section = plots_html.progress(two_studies)
    assert [trace.name for trace in traces(section)] == ["dense_size", "frontier"]
    assert [view.label for view in section.pictures[0].views] == ["by trials", "by time"]
    for study, trace in zip(two_studies.studies, traces(section), strict=True):
        last = two_studies.progress.loc[two_studies.progress["study"] == study, "hypervolume"].iloc[
            -1
        ]
        assert trace.y[-1] == pytest.approx(last, rel=1e-4)


def test_colours_are_okabe_and_ito_s():
    assert set(style.CYCLE) <= OKABE_ITO
    assert len(set(style.CYCLE)) == len(style.CYCLE)
    assert len({(look.symbol, look.colour) for look in style.STATES.values()}) == len(style.STATES)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (math.nan, "–"),
        (None, "–"),
        (30037824, "30M"),
        (0.71, "0.7100"),
        (0.00012345, "0.0001234"),
        (9120, "9120"),
        (math.inf, "∞"),
        (True, "yes"),
        (-691911.0, "-692k"),
    ],
)
def test_figures_for_people(value, text):
    assert style.number(value) == text
