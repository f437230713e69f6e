import io
import logging
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rich.console import Console

from src.metrics.registry import PRIMARY, Objective
from src.sweep import display
from src.sweep.display import LiveView
from src.sweep.records import Event, RunningTrial, StudyStatus, Task, TrialOutcome
from src.sweep.space import Cell

ACCURACY = f"val/{PRIMARY}"
OBJECTIVES = [Objective(ACCURACY, "maximize"), Objective("efficiency/flops", "minimize")]
CELLS = [
    f"model.net.width={width} model.net.depth=3 model.net.dense=[128,64] "
    f"model.net.dropout={dropout} loss={loss} optimizer.weight_decay=0.0001 scheduler=cosine"
    for width, dropout, loss in [
        (8, 0.25, "weighted_cross_entropy"),
        (16, 0.5, "focal"),
        (4, 0.125, "focal"),
    ]
]
NOW = 10_000.0


@pytest.fixture(autouse=True)
def set_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    def set_to(seconds: float) -> None:
        monkeypatch.setattr("time.monotonic", lambda: seconds)

    set_to(NOW)
    return set_to


def running(number: int, cell: str, value: float | None = 0.5, seconds: float = 80) -> RunningTrial:
    metrics = {} if value is None else {ACCURACY: value}
    progress = {"epoch": 7, "epochs": 18, "metrics": metrics}
    task = Task("", "pareto", number, number, "", "", {})
    return RunningTrial(task, Cell(tuple(cell.split()), {}), NOW - seconds, progress=progress)


def busy(complete: int = 5, **changes: Any) -> StudyStatus:
    status = StudyStatus(OBJECTIVES, [], total=100, slots=3)
    values: dict[str, Any] = {
        "counts": {"complete": complete, "pruned": 2, "over_limit": 1, "fail": 1},
        "counted": 9,
        "put_back": 3,
        "running": [
            running(9, CELLS[0], 0.5123),
            running(10, CELLS[1], None),
            running(11, CELLS[2], 0.98765, seconds=3700),
        ],
        "front": [(3, [0.6123, 30037824.0]), (4, [0.5, 2e7]), (5, [0.4, 1e7])],
        "cells": {3: CELLS[0].split()},
        "durations": [60.0] * 9,
    }
    for name, value in {**values, **changes}.items():
        setattr(status, name, value)
    return status


def drawn(status: StudyStatus, width: int = 100, **options: Any) -> list[str]:
    console, file = console_of(width=width)
    events = ["trial 7 failed: OutOfMemoryError: " + "no room " * 40]
    console.print(display.render("pareto", status, events, 754, width, **options))
    return file.getvalue().splitlines()


def console_of(**options: Any) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, color_system=None, **options), file


@pytest.mark.parametrize("width", [100, 160, 80])
def test_table_keeps_within_its_width_and_aligns_numbers(width: int) -> None:
    lines = drawn(busy(), width)
    assert max(map(len, lines)) == width  # more of the overrides where there is room
    trials = [line for line in lines if re.match(r"\s+(9|10|11)  ", line)]
    assert [line.split()[0] for line in trials] == ["9", "10", "11"]
    values, times = ("0.512", "-", "0.988"), ("1:20", "1:20", "1:01:40")
    expected = [["7/18", *row] for row in zip(values, times, strict=True)]
    assert [line.rstrip().split()[-3:] for line in trials] == expected
    for column in (-1, -2, -3):  # right-aligned: the texts of a column end at the same position
        ends = {[word.end() for word in re.finditer(r"\S+", line)][column] for line in trials}
        assert len(ends) == 1


def test_table_names_counts_front_best_and_the_reason_of_a_failure() -> None:
    text = "\n".join(drawn(busy()))
    for expected in (
        "maximize balanced accuracy, minimize FLOPs",
        "9/100 trials",
        "5 done, 2 pruned, 1 over a limit, 1 failed, 3 put back in the queue",
        "front  3 trials",
        "trial 3: balanced accuracy 0.612, FLOPs 30M",
        "trial 7 failed: OutOfMemoryError: no room",
        "12:34 elapsed",
    ):
        assert expected in text
    assert CELLS[0] in " ".join(text.split())  # in full, over several lines


def test_a_new_study_many_trials_and_markup_can_be_drawn() -> None:
    lines = drawn(StudyStatus(OBJECTIVES, [], 10, 2))
    assert lines[0].startswith("pareto")
    assert "0 done" in lines[2]
    lines = drawn(busy(running=[running(n, f"model.net.width={n}") for n in range(40)]), rows=10)
    assert "  and 30 more" in lines
    assert sum("model.net.width=" in line for line in lines) == 11  # ten and the best one
    lines = drawn(busy(running=[running(1, "model.net.dense=[red]")]))
    assert any("dense=[red]" in line for line in lines)


def test_long_cells_keep_what_differs() -> None:
    assert display.shortened([cell.split() for cell in CELLS], 60) == [
        "width=8 dropout=0.25 loss=weighted_cross_entropy ...",
        "width=16 dropout=0.5 loss=focal ...",
        "width=4 dropout=0.125 loss=focal ...",
    ]


@pytest.mark.parametrize(
    ("cell", "width", "expected"),
    [
        ("model.net.width=8", 20, "model.net.width=8"),
        ("model.net.width=8 optimizer.lr=0.1", 20, "width=8 lr=0.1"),
        # One "lr" would be ambiguous.
        ("a.lr=0.1 b.lr=0.2 model.width=8", 26, "a.lr=0.1 b.lr=0.2 width=8"),
        ("model.net.dense=[64, 32] loss=focal", 28, "dense=[64, 32] loss=focal"),
    ],
)
def test_short_cells_are_unchanged_and_paths_go_first(cell: str, width: int, expected: str) -> None:
    assert display.shortened([cell.split()], width) == [expected]


def test_numbers_and_times_are_short() -> None:
    values = (0.6123, 12.34, 30037824.0, None, float("nan"))
    assert [display.number(value) for value in values] == ["0.612", "12.3", "30M", "-", "-"]
    assert [display.clock(seconds) for seconds in (7.9, 754, 7509)] == ["0:07", "12:34", "2:05:09"]


def event(outcome: TrialOutcome, **changes: Any) -> Event:
    values = {"number": 4, "values": [], "seconds": None, "tail": ""}
    return Event(outcome=outcome, **{**values, "again": False, **changes})


STOPPED = event(TrialOutcome("fail", "stopped", "asked to end"), seconds=5.0, again=True)
DONE = event(TrialOutcome("complete"), values=[0.6123, 3.2e6])
OVER = event(TrialOutcome("over_limit", "", "7 breaks x <= 5"))
FAILED = event(
    TrialOutcome("fail", "out_of_memory", "no room\nat all"),
    tail="step 1 [bold]\nstep 2",
    seconds=80.0,
    again=True,
)


@pytest.mark.parametrize(
    ("ended", "line"),
    [
        (STOPPED, "trial 4 stopped: asked to end (0:05), put back in the queue"),
        (DONE, "trial 4 done: balanced accuracy 0.612, FLOPs 3.2M"),
        (OVER, "trial 4 over a limit: 7 breaks x <= 5"),
    ],
)
def test_lines_of_events(ended: Event, line: str) -> None:
    assert display.event_line(ended, OBJECTIVES) == line


def test_log_gets_events_at_once_and_a_status_line_every_half_minute(
    set_clock: Callable[[float], None],
) -> None:
    console, file = console_of(width=60, force_terminal=False)
    with LiveView("pareto", console) as view:
        for second in range(65):
            set_clock(NOW + second)
            view.show(busy(second, events=[FAILED] if second == 10 else []))
    lines = file.getvalue().splitlines()
    first = "trial 4 failed: no room at all (1:20), put back in the queue"
    assert lines[:3] == [first, "    step 1 [bold]", "    step 2"]
    # At 30 s, at 60 s, and the last state at the end.
    assert re.findall(r"(\d+) done", "\n".join(lines[3:])) == ["30", "60", "64"]
    assert max(map(len, lines)) <= 60
    text = " ".join("\n".join(lines[3:]).split())  # broken at blanks only
    counts = "30 done, 2 pruned, 1 over a limit, 1 failed, 3 put back in the queue"
    assert text.startswith(f"pareto: 9/100 trials finished ({counts}); 3 running; best is trial 3:")
    assert "\x1b" not in file.getvalue()


def test_log_repeats_no_status_line_while_nothing_happens(
    set_clock: Callable[[float], None],
) -> None:
    console, file = console_of(width=120, force_terminal=False)
    with LiveView("pareto", console) as view:
        for second in range(600):
            set_clock(NOW + second)
            view.show(busy(5 if second < 300 else 6))
    lines = file.getvalue().splitlines()
    assert [line for line in lines if "trials finished" in line] == lines[::2]
    assert re.findall(r"(\d+) done", file.getvalue()) == ["5", "6"]


def test_terminal_is_redrawn_twice_a_second_and_ends_with_the_last_state(
    set_clock: Callable[[float], None],
) -> None:
    console, file = console_of(width=100, height=40, force_terminal=True)
    with LiveView("pareto", console) as view:
        for step in range(101):
            set_clock(NOW + step / 50)
            view.show(busy(step, events=[DONE, FAILED] if step == 100 else []))
        view.say("stopped")
    text = file.getvalue()
    redraws = re.findall(r"(?<!trial )\b(\d+) done", text)
    # At 0, 0.5, 1, 1.5 and 2 s; each printed line draws the table again below it; and the end.
    assert sorted(set(map(int, redraws))) == [0, 25, 50, 75, 100]
    assert len(redraws) <= 5 + 4 + 2
    assert "step 2" in text
    assert "stopped" in text


@pytest.fixture
def handler() -> Iterator[logging.StreamHandler[Any]]:
    handler = logging.StreamHandler(sys.stderr)
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


def test_log_lines_go_above_the_table_and_back_to_their_stream(
    handler: logging.StreamHandler[Any],
) -> None:
    console, file = console_of(width=100, height=40, force_terminal=True)
    with LiveView("pareto", console) as view:
        view.show(busy())
        logging.getLogger("some.part").warning("something was seen")
        assert "something was seen" in file.getvalue()
    assert handler.stream is sys.stderr
