import io
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from src.metrics.registry import Objective
from src.sweep.display import (
    BestRow,
    DisplayState,
    LiveView,
    RunningRow,
    clock,
    event_line,
    middle,
    number,
    render,
    shortened,
    status_line,
)
from src.sweep.records import TrialOutcome
from src.sweep.status import Event, StudyStatus

ACCURACY = "val/balanced_accuracy"
FLOPS = "efficiency/flops"
OBJECTIVES = [Objective(ACCURACY, "maximize"), Objective(FLOPS, "minimize")]
CELLS = [
    f"model.net.width={width} model.net.depth=3 model.net.dense=[128,64] model.net.dropout={dropout} loss={loss} "
    "optimizer.weight_decay=0.0001 scheduler=cosine"
    for width, dropout, loss in [
        (8, 0.25, "weighted_cross_entropy"),
        (16, 0.5, "focal"),
        (4, 0.125, "focal"),
    ]
]


def row(
    number: int, cell: str, value: float | None = 0.5, seconds: float = 80, metric: str = ACCURACY
) -> RunningRow:
    return RunningRow(number, cell, 7, 18, metric, value, seconds)


def busy(**changes: Any) -> DisplayState:
    rows = [
        row(9, CELLS[0], 0.5123),
        row(10, CELLS[1], None),
        row(11, CELLS[2], 0.98765, seconds=3700),
    ]
    values: dict[str, Any] = {
        "study": "pareto",
        "n_jobs": 3,
        "done": 5,
        "pruned": 2,
        "over_limit": 1,
        "failed": 1,
        "put_back": 3,
        "total": 100,
        "running": rows,
        "front": 4,
        "best": BestRow(3, CELLS[0], {ACCURACY: 0.6123, FLOPS: 30037824.0}),
        "events": ["trial 7 failed: OutOfMemoryError: " + "no room " * 40],
        "finished_seconds": [60.0] * 9,
        "elapsed": 754,
    }
    return DisplayState(**(values | changes))


def drawn(snapshot: DisplayState, width: int = 100, **options: Any) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(render(snapshot, OBJECTIVES, width, **options))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [100, 160, 80])
def test_table_keeps_within_its_width_and_aligns_numbers(width: int) -> None:
    lines = drawn(busy(), width)
    assert max(map(len, lines)) <= min(width, 100)
    trials = [line for line in lines if re.match(r"\s+(9|10|11)  ", line)]
    assert len(trials) == 3
    assert [line.split()[0] for line in trials] == ["9", "10", "11"]
    assert [line.rstrip().split()[-3:] for line in trials] == [
        ["7/18", "0.512", "1:20"],
        ["7/18", "-", "1:20"],
        ["7/18", "0.988", "1:01:40"],
    ]
    for column in (-1, -2, -3):  # right-aligned: each column's texts end at one place
        ends = {[found.end() for found in re.finditer(r"\S+", line)][column] for line in trials}
        assert len(ends) == 1


def test_table_names_counts_front_best_and_what_failed_and_why() -> None:
    text = "\n".join(drawn(busy()))
    assert "maximize balanced accuracy, minimize FLOPs" in text
    assert "9/100 trials" in text
    assert "5 done, 2 pruned, 1 over a limit, 1 failed, 3 put back in the queue" in text
    assert "front  4 trials" in text
    assert "trial 3: balanced accuracy 0.612, FLOPs 30M" in text
    assert "trial 7 failed: OutOfMemoryError: no room" in text
    assert "12:34 gone" in text
    assert CELLS[0] in " ".join(text.split())  # the best one's in full, over several lines


def test_many_running_trials_are_cut_with_their_number() -> None:
    rows = [row(number, f"model.net.width={number}") for number in range(40)]
    lines = drawn(busy(running=rows), rows=10)
    assert "  and 30 more" in lines
    assert sum("model.net.width=" in line for line in lines) == 11  # ten and the best one's


def test_markup_in_a_cell_is_text() -> None:
    assert any(
        "dense=[red]" in line for line in drawn(busy(running=[row(1, "model.net.dense=[red]")]))
    )


def test_a_study_that_has_just_begun_can_be_drawn() -> None:
    lines = drawn(DisplayState("width", 2))
    assert lines[0].startswith("width")
    assert "0 done" in lines[2]


@pytest.mark.parametrize("width", [60, 45])
def test_long_cells_keep_what_differs(width: int) -> None:
    texts = shortened(CELLS, width)
    assert all(len(text) <= width for text in texts)
    assert len(set(texts)) == 3
    for text, needed in zip(
        texts, [("8", "0.25"), ("16", "0.5", "focal"), ("4", "0.125", "focal")], strict=True
    ):
        assert all(f"={value}" in text for value in needed)
        assert "cosine" not in text  # the same in all


def test_short_cells_are_left_as_they_are_and_paths_go_first() -> None:
    assert shortened(["model.net.width=8"], 20) == ["model.net.width=8"]
    assert shortened(["model.net.width=8 optimizer.lr=0.1"], 20) == ["width=8 lr=0.1"]
    assert shortened(["a.lr=0.1 b.lr=0.2 model.width=8"], 26) == [
        "a.lr=0.1 b.lr=0.2 width=8"
    ]  # one lr would be a riddle
    assert shortened(["model.net.dense=[64, 32] loss=focal"], 28) == ["dense=[64, 32] loss=focal"]


@given(st.lists(st.text("ab=. [],_1", max_size=60), max_size=4), st.integers(5, 50))
def test_shortened_texts_always_fit(cells: list[str], width: int) -> None:
    found = shortened(cells, width)
    assert len(found) == len(cells)
    assert all(len(text) <= width for text in found)


@given(st.text(max_size=40), st.integers(0, 45))
def test_middle_keeps_both_ends(text: str, width: int) -> None:
    found = middle(text, width)
    assert len(found) <= width
    assert found == text or len(text) > width
    if len(text) > width >= 5:
        assert found.startswith(text[0])
        assert found.endswith(text[-1])


@pytest.mark.parametrize(
    ("changes", "seconds"),
    [
        ({"finished_seconds": []}, None),
        ({"total": None}, None),
        # 100 - 9 over - 3 running = 88 to start, of 60 s each; of the running ones 50, 30 and 0 s
        # are left; 3 slots
        (
            {"running": [row(1, "", seconds=10), row(2, "", seconds=30), row(3, "", seconds=99)]},
            (88 * 60 + 80) / 3,
        ),
        ({"running": []}, 91 * 60 / 3),
        ({"running": [], "done": 96}, 0),
        # the last 20 of them count: (10 x 40 + 10 x 80) / 20 = 60
        ({"running": [], "finished_seconds": [1e6] * 5 + [40.0] * 10 + [80.0] * 10}, 91 * 60 / 3),
        ({"running": [], "counted": 90}, 10 * 60 / 3),
        (
            {"running": [row(1, "", seconds=99)], "total": 10},
            None,
        ),  # the last one is slower than all before it
        ({"running": [row(1, "", seconds=50), row(2, "", seconds=99)], "total": 11}, None),
        ({"running": [row(1, "", seconds=50), row(2, "", seconds=20)], "total": 11}, 50 / 2),
    ],
)
def test_time_left_by_arithmetic(changes: dict[str, Any], seconds: float | None) -> None:
    assert busy(**changes).time_left == (None if seconds is None else pytest.approx(seconds))


def test_numbers_and_times_are_short() -> None:
    assert [number(value) for value in (0.6123, 12.34, 30037824.0, None, float("nan"))] == [
        "0.612",
        "12.3",
        "30M",
        "-",
        "-",
    ]
    assert [clock(seconds) for seconds in (7.9, 754, 7509)] == ["0:07", "12:34", "2:05:09"]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_log_gets_events_as_they_come_and_a_status_line_every_half_minute() -> None:
    console = Console(file=io.StringIO(), width=60, force_terminal=False)
    assert isinstance(console.file, io.StringIO)
    time = Clock()
    with LiveView("pareto", OBJECTIVES, console, time) as view:
        for second in range(65):
            time.now = float(second)
            view.update(busy(done=second))
            if second == 10:
                view.event("trial 12 failed: out of memory", ["step 1 [bold]", "step 2"])
    lines = console.file.getvalue().splitlines()
    assert lines[:3] == ["trial 12 failed: out of memory", "    step 1 [bold]", "    step 2"]
    # at 30 s, at 60 s, and the last state at the end
    assert re.findall(r"(\d+) done", "\n".join(lines[3:])) == ["30", "60", "64"]
    assert max(map(len, lines)) <= 100
    whole = " ".join("\n".join(lines[3:]).split())
    assert " ".join(status_line(busy(done=30)).split()) in whole  # broken at blanks only
    assert "\x1b" not in console.file.getvalue()


def test_terminal_is_redrawn_at_most_twice_a_second_and_ends_with_the_last_state() -> None:
    console = Console(
        file=io.StringIO(), width=100, height=40, force_terminal=True, color_system=None
    )
    assert isinstance(console.file, io.StringIO)
    time = Clock()
    with LiveView("pareto", OBJECTIVES, console, time) as view:
        for step in range(101):
            time.now = step / 50
            view.update(busy(done=step))
        view.event("trial 3 done: 0.5")
        view.event("trial 12 failed: out of memory", ["last words"])
    written = console.file.getvalue()
    redraws = re.findall(r"(\d+) done", written)
    # at 0, 0.5, 1, 1.5 and 2 s; each of the two printed lines draws the table again below itself;
    # and the end
    assert sorted(set(map(int, redraws))) == [0, 25, 50, 75, 100]
    assert len(redraws) <= 5 + 2 + 2
    assert "last words" in written
    assert "trial 3 done" not in written


@pytest.fixture
def handler() -> Iterator[logging.StreamHandler[Any]]:
    handler = logging.StreamHandler(sys.stderr)
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


def test_log_lines_go_through_the_table_and_back_to_their_stream(
    handler: logging.StreamHandler[Any],
) -> None:
    console = Console(
        file=io.StringIO(), width=100, height=40, force_terminal=True, color_system=None
    )
    assert isinstance(console.file, io.StringIO)
    with LiveView("pareto", OBJECTIVES, console) as view:
        view.update(busy())
        logging.getLogger("some.part").warning("something was seen")
        assert "something was seen" in console.file.getvalue()
    assert handler.stream is sys.stderr


def test_owners_standing_is_shown_with_its_events(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    assert isinstance(console.file, io.StringIO)
    standing = StudyStatus(OBJECTIVES, [], 10, 2)
    standing.counts["fail"] = 1
    failure = TrialOutcome("fail", "out_of_memory", "no room\nat all")
    standing.events = [Event(4, ["a=1"], failure, [], 80.0, "first\nlast", again=True)]
    with LiveView("pareto", OBJECTIVES, console) as view:
        view.show(standing)
        view.say("stopped")
    lines = console.file.getvalue().splitlines()
    told = "trial 4 failed: no room at all (1:20), put back in the queue"
    assert lines[:4] == [told, "    first", "    last", "stopped"]
    assert lines[4].startswith("pareto: 0/10 trials over (0 done, 1 failed); 0 running")


def test_a_trial_that_was_stopped_is_not_said_to_have_failed() -> None:
    event = Event(
        3, ["a=1"], TrialOutcome("fail", "stopped", "asked to end"), [], 5.0, "", again=True
    )
    assert (
        event_line(event, OBJECTIVES)
        == "trial 3 stopped: asked to end (0:05), put back in the queue"
    )


def test_finished_trial_is_told_with_its_values() -> None:
    event = Event(4, ["a=1"], TrialOutcome("complete"), [0.6123, 3.2e6], None, "", again=False)
    assert event_line(event, OBJECTIVES) == "trial 4 done: balanced accuracy 0.612, FLOPs 3.2M"
