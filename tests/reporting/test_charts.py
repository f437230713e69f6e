"""What each chart shows, before it is drawn."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from made_up import COSTS, PARAMETERS, QUALITY, make_report, with_compressed

from src.reporting import charts, collect, page, style


def traces(chart, start=""):
    """The traces of the first view whose names start so."""
    every = chart.pictures[0][0].traces
    return [one for one in every if one.get("name", "").startswith(start)]


def ends(trace):
    interval = trace["error_y"]
    return trace["y"] - interval["arrayminus"], trace["y"] + interval["array"]


def test_a_full_report_has_all_charts_in_order(report, bare):
    keys = ["front", "recalls", "roc", "layers", "effects"]
    keys += ["importance", "parallel", "curves", "progress"]
    assert [chart.key for chart in charts.charts(report)] == keys
    assert [chart.key for chart in charts.charts(bare)] == ["front"]
    two = report.table[report.table["status"] == "FINISHED"].head(2)
    effects = report.effects.groupby(["parameter", "objective"]).head(2).assign(n=1)
    of_two = {"table": two, "effects": effects, "progress": report.progress.head(2)}
    keys = [chart.key for chart in charts.charts(replace(report, **of_two))]
    assert not {"effects", "parallel", "progress"} & set(keys)
    views = charts.front(bare).pictures[0]
    assert [view.label for view in views] == ["FLOPs (multiply-adds)", "parameters"]


def test_every_trial_with_a_quality_is_a_point_of_its_state(report):
    chart = charts.front(report)
    for state, rows in report.table[report.table["quality"].notna()].groupby("state"):
        [points] = traces(chart, state)
        assert points["name"] == f"{state} ({len(rows)})"
        assert sorted(points["y"]) == sorted(rows["quality"])
        assert ("error_y" in points) == (state == "front")
    [front], members = traces(chart, "front"), report.members
    np.testing.assert_allclose(ends(front), members[["quality_low", "quality_high"]].T)


def test_every_view_has_its_cost_its_scale_and_the_number_of_hidden_trials(report):
    views = charts.front(report).pictures[0]
    for cost, view in zip(COSTS, views, strict=True):
        hidden = int(report.table.loc[report.table["quality"].notna(), cost].isna().sum())
        assert (f"{hidden} trials" in view.note) == (hidden > 0)
        assert view.x["title"].endswith("lower is better")
        assert view.y["title"] == "balanced accuracy (validation), higher is better"
        assert all(len(one["x"]) == len(one["y"]) for one in view.traces)
    assert views[0].x["title"] == "FLOPs (multiply-adds), lower is better"
    assert views[0].x["type"] == views[1].x["type"] == "log"


def test_panels_are_the_objectives_and_one_latency(report):
    [panels] = charts.front(report).panels
    titles = [view.x["title"].removesuffix(", lower is better") for view in panels]
    latency = "latency relative to the reference net"
    assert titles == ["FLOPs (multiply-adds)", "parameters", latency]


@pytest.mark.parametrize(
    ("direction", "best"), [("maximize", [0.5, 0.5, 0.7]), ("minimize", [0.5, 0.4, 0.4])]
)
def test_the_step_line_is_the_best_quality_up_to_a_cost(direction, best):
    report = make_report(12)
    table = report.members.iloc[:3].assign(quality=[0.5, 0.4, 0.7])
    table[COSTS[0]] = [1e6, 2e6, 3e6]
    first = replace(report.objectives[0], direction=direction)
    changed = replace(report, table=table, objectives=[first, *report.objectives[1:]])
    [line] = [one for one in traces(charts.front(changed)) if one["mode"] == "lines"]
    assert (list(line["x"]), list(line["y"])) == ([1e6, 2e6, 3e6], best)
    assert line["line"]["shape"] == "hv"


def test_points_say_label_state_run_figures_with_units_and_overrides(report):
    row = report.table[report.table["state"] == "dominated"].iloc[0]
    text = traces(charts.front(report), "dominated")[0]["hovertext"][0]
    assert text.startswith(f"{row['label']} (dominated)\nrun {row['run_id']}\n")
    assert f"balanced accuracy (validation): {row[QUALITY]:.4f}" in text
    assert " multiply-adds\n" in text
    assert row["overrides"] in text.replace("\n", " ")


def test_knee_and_chosen_runs_have_a_number_and_a_legend_entry(report):
    labels = report.table.set_index("run_id")["label"]
    chart = charts.front(report)
    numbered = [one for one in traces(chart) if "text" in one]
    assert [[one["name"].partition(":")[0]] for one in numbered] == [
        one["text"] for one in numbered
    ]
    names = " ".join(one["name"] for one in numbered)
    texts = " ".join(one["hovertext"][0] for one in numbered)
    for answer in report.answers:
        if answer.run_id:
            assert answer.name in texts
            assert labels[answer.run_id] in names
    assert "(knee" in names


def test_a_legend_names_two_answers_of_a_run_and_counts_the_others(report):
    table = report.table.assign(chosen="", knee=False)
    table.loc[0, "chosen"] = "best; cheapest within 0.02; best with a, b and c; best with d"
    table.loc[1, ["chosen", "knee"]] = "best with e", True
    named = replace(report, table=table).named["name"]
    assert list(named) == ["best; cheapest within 0.02; 2 more", "knee; best with e"]


def test_the_front_of_every_study_has_another_colour_and_shape(two_studies):
    fronts = traces(charts.front(two_studies), "front of")
    names = [one["name"].split(" (")[0] for one in fronts]
    assert names == ["front of dense_size", "front of frontier"]
    for look in ("color", "symbol"):
        assert len({one["marker"][look] for one in fronts}) == 2


def test_curves_end_where_they_ended_and_those_of_the_front_are_bolder(report):
    chart = charts.curves(report)
    every = traces(chart)
    last = report.curves[report.curves["state"] == "pruned"].groupby("run_id")["epoch"].max()
    names = [one["name"] for one in every]
    assert sorted(every[names.index("pruned") + 1]["x"]) == sorted(last)
    front, pruned = (traces(chart, name)[0]["line"]["width"] for name in ("front", "pruned"))
    assert front > pruned
    assert chart.pictures[0][0].y["title"] == "balanced accuracy (validation), higher is better"
    runs = report.curves["run_id"].nunique()
    assert sum(int(np.isnan(one["y"]).sum()) for one in every) == runs  # a gap after each curve


def test_curves_say_that_they_are_means_if_trials_had_several_seeds(report):
    legends = [
        charts.curves(replace(report, table=report.table.assign(repeats=repeats))).legend
        for repeats in (1, 3)
    ]
    assert legends == ["", charts.SEEDS_NOTE]


def test_many_curves_and_lines_are_thinned_but_the_front_stays(large):
    important = large.important
    view = charts.curves(large).pictures[0][0]
    drawn = {text for one in view.traces for text in one["hovertext"]}
    assert len(drawn) <= charts.MOST_CURVES + len(important)
    assert all(any(run in text for text in drawn) for run in important)
    assert view.note.startswith(f"{len(drawn)} of {large.curves['run_id'].nunique()} curves")
    view = charts.parallel(large).pictures[0][0]
    count = len(view.traces[0]["line"]["color"])
    assert count <= charts.MOST_LINES + len(important)
    assert view.note.startswith(f"{count} of {len(large.parameters)} trials")


def crossings(report):
    """The dimensions of the parallel coordinates and the colours, all of them finite."""
    [lines] = traces(charts.parallel(report))
    assert np.isfinite([axis["values"] for axis in lines["dimensions"]]).all()
    assert np.isfinite(lines["line"]["color"]).all()
    return lines["dimensions"], lines["line"]["color"]


def test_parallel_axes_are_the_parameters_then_the_objectives(report):
    axes, _ = crossings(report)
    quality = "balanced accuracy (validation), higher is better"
    titles = [*PARAMETERS, quality, "FLOPs (multiply-adds), lower is better"]
    assert [axis["label"] for axis in axes][:6] == titles
    assert axes[3]["ticktext"] == ["cross_entropy", "focal"]
    assert axes[3]["tickvals"] == [0.0, 1.0]
    assert axes[2]["ticktext"][0] == "not set"  # some trials do not have dropout


@pytest.mark.parametrize("name", ["quality", QUALITY, "efficiency/flops"])
def test_infinite_figures_do_not_stop_a_chart(report, name):
    table = report.table.copy()
    rows = table.index[table["quality"].notna() & table[name].notna()]
    table.loc[rows[0], name], table.loc[rows[1], name] = math.inf, -math.inf
    # without a finite quality there is no line; one without a finite cost crosses below the others
    lines, before = (crossings(one)[1] for one in (replace(report, table=table), report))
    assert len(lines) == len(before) - (2 if name == "quality" else 0)
    nothing = replace(report, table=table.assign(**{name: math.inf}))
    if name == "quality":
        assert charts.parallel(nothing) is None
    else:
        assert len(crossings(nothing)[0]) == 6
    assert charts.front(replace(report, table=table)) is not None


def test_effects_have_a_picture_per_parameter_and_a_view_per_objective(report):
    chart = charts.effects(report)
    assert len(chart.pictures) == report.effects["parameter"].nunique()
    search = "parameter == 'model.net.width' and objective == 'best/val/balanced_accuracy'"
    rows = report.effects.query(search).sort_values("position")
    for drawn, column in zip(traces(chart), ("mean", "best"), strict=True):
        assert list(drawn["y"]) == list(rows[column])
    losses = chart.pictures[-1][0]
    assert "line" not in losses.traces[0]  # a line would put losses in an order
    assert losses.x["ticktext"] == ["cross_entropy", "focal"]
    assert [view.label for view in chart.pictures[0]][1] == "FLOPs"
    assert chart.panels[0][0].x["title"] == "model.net.width"
    singles = charts.effects(replace(report, effects=report.effects.assign(n=1)))
    [trials] = singles.pictures[0][0].traces  # the mean of one trial is the best one
    assert "line" not in trials


def test_importance_has_a_bar_per_parameter_and_objective(report):
    bars = traces(charts.importance(report))
    assert len(bars) == len({one["marker"]["color"] for one in bars}) == 3
    for one in bars:
        assert sum(one["x"]) == pytest.approx(1)


def test_recalls_are_on_test_first_then_on_validation(report):
    views = charts.recalls(report).pictures[0]
    assert [view.label for view in views] == ["test", "validation"]
    [heatmap] = views[0].traces
    run = report.members["run_id"].iloc[0]
    rows = report.recalls[(report.recalls["run_id"] == run) & (report.recalls["split"] == "test")]
    assert list(heatmap["z"][0]) == list(rows["recall"])
    assert list(heatmap["x"]) == rows["class"].to_list()
    some = charts.recalls(replace(report, recalls=report.recalls.drop(rows.index[0])))
    assert some.pictures[0][0].traces[0]["hovertext"][0].tolist().count("not measured") == 1
    only = replace(report, recalls=report.recalls.query("split == 'val'"))
    assert [view.label for view in charts.recalls(only).pictures[0]] == ["validation"]


def test_roc_has_chance_and_a_line_with_its_area_for_each_chosen_model(report):
    [view] = charts.roc(report).pictures[0]
    chosen = report.table[report.table["chosen"] != ""].set_index("label")
    chance, *lines = view.traces
    assert list(chance["x"]) == list(chance["y"]) == [0, 1]
    names = [f"{label}: AUROC {row[QUALITY]:.3f}" for label, row in chosen.iterrows()]
    assert [line["name"] for line in lines] == names
    assert len({line["line"]["color"] for line in lines}) == len(lines) == 2
    for line in lines:
        assert (line["x"][0], line["y"][0], line["x"][-1], line["y"][-1]) == (0, 0, 1, 1)
    assert view.y["title"] == "sensitivity for mel, higher is better"


def test_layers_are_shares_of_each_chosen_net_in_its_order_and_small_ones_are_one_bar(report):
    small, large = charts.layers(report).pictures[0]
    flops, params = small.traces
    assert (flops["name"], params["name"]) == ("FLOPs", "parameters")
    assert list(flops["y"]) == ["part.3 Conv2d", "part.2 Conv2d", "part.1 Conv2d"]  # from below
    np.testing.assert_allclose(flops["x"], [3 / 6, 2 / 6, 1 / 6])
    np.testing.assert_allclose(params["x"], [1 / 3] * 3)
    flops, params = large.traces
    # 1 + ... + 20 = 210; layers 11 to 20 have more than a twentieth, the others one of parameters
    kept = [*range(20, 10, -1), 2, 1]
    assert list(flops["y"]) == ["8 others"] + [f"part.{n} Conv2d" for n in kept]
    assert (flops["x"][0], params["x"][0]) == pytest.approx((52 / 210, 8 / 20))
    assert list(flops["text"])[:2] == ["52", "20"]
    assert charts.layers(replace(report, layers=pd.DataFrame())) is None
    table = page.tables(report)["table-layers"].frame
    sums = table.groupby("label", sort=False)[["flops", "params"]].sum()
    assert sums.to_numpy().tolist() == [[6, 3], [210, 20]]


def test_progress_has_a_line_per_study_by_trials_and_by_time(two_studies):
    views = charts.progress(two_studies).pictures[0]
    assert [view.label for view in views] == ["by trials", "by time"]
    studies = two_studies.progress.groupby("study", sort=False)
    for one, (study, rows) in zip(views[0].traces, studies, strict=True):
        assert (one["name"], one["y"][-1]) == (study, rows["hypervolume"].iloc[-1])
    assert len({one["line"]["dash"] for one in views[0].traces}) == 2


def test_lines_run_from_an_origin_to_its_compressed_version():
    report = with_compressed()
    lines = charts.origin_lines(report, COSTS[0])
    table = report.table.set_index("run_id")
    assert lines["outside"].tolist() == [False, False, True]
    for _, line in lines.iterrows():
        ends = table.loc[line["run_id"], [COSTS[0], "quality"]]
        assert (line["to_x"], line["to_y"]) == tuple(ends)
        if not line["outside"]:
            ends = table.loc[line["origin"], [COSTS[0], "quality"]]
            assert (line["from_x"], line["from_y"]) == tuple(ends)
    assert lines["from_x"].iloc[2] == pytest.approx(2 * lines["to_x"].iloc[2])
    sizes = charts.origin_lines(report, "efficiency/size_mb")
    np.testing.assert_allclose(sizes["to_x"] / sizes["from_x"], 0.25)
    chart = charts.front(report)
    for cost, view in zip(report.costs, chart.pictures[0], strict=True):
        expected = charts.origin_lines(report, cost)
        drawn = next(one for one in view.traces if one["name"].startswith("compression ("))
        ends = expected[["from_x", "to_x"]].assign(gap=np.nan).to_numpy().ravel()
        np.testing.assert_array_equal(drawn["x"], ends)
        outside = next(one for one in view.traces if one["name"].startswith("origin, not a trial"))
        assert list(outside["x"]) == [expected["from_x"].iloc[2]]
    texts = [text for one in traces(chart) for text in one.get("hovertext", [])]
    assert any("compressed (onnx_int8_static) from custom" in text for text in texts)
    assert not [one for one in traces(charts.front(make_report(12))) if "compress" in one["name"]]
    assert charts.origin_lines(make_report(12), COSTS[0]).empty
    assert collect.compressed(pd.DataFrame({"a": [1]})).empty
    assert style.ORIGIN["symbol"] == "circle-open"
