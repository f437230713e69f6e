import io
import logging
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from src.metrics.registry import Objective
from src.sweep import display, status
from src.sweep.display import (
    LiveView,
    clock,
    event_line,
    middle,
    number,
    render,
    shortened,
    status_line,
)
from src.sweep.records import RunningTrial, Task, TrialOutcome
from src.sweep.space import Cell
from src.sweep.status import Event, StudyStatus

ACCURACY, FLOPS = "val/balanced_accuracy", "efficiency/flops"
OBJECTIVES = [Objective(ACCURACY, "maximize"), Objective(FLOPS, "minimize")]
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
def frozen_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (display, status):
        monkeypatch.setattr(module.time, "monotonic", lambda: NOW)


def running(number: int, cell: str, value: float | None = 0.5, seconds: float = 80) -> RunningTrial:
    task = Task("", "pareto", number, number, "", "", {})
    metrics = {} if value is None else {ACCURACY: value}
    progress = {"epoch": 7, "epochs": 18, "metrics": metrics}
    return RunningTrial(task, Cell(tuple(cell.split()), {}), NOW - seconds, progress=progress)


def busy(**changes: Any) -> StudyStatus:
    made = StudyStatus(OBJECTIVES, [], total=100, slots=3)
    made.counts = {"complete": 5, "pruned": 2, "over_limit": 1, "fail": 1}
    made.counted, made.put_back = 9, 3
    made.running = [
        running(9, CELLS[0], 0.5123),
        running(10, CELLS[1], None),
        running(11, CELLS[2], 0.98765, seconds=3700),
    ]
    made.front = [(3, [0.6123, 30037824.0]), (4, [0.5, 2e7]), (5, [0.4, 1e7])]
    made.cells = {3: CELLS[0].split()}
    made.durations = [60.0] * 9
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def drawn(shown: StudyStatus, width: int = 100, **options: Any) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    events = ["trial 7 failed: OutOfMemoryError: " + "no room " * 40]
    console.print(render("pareto", shown, events, 754, width, **options))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [100, 160, 80])
def test_table_keeps_within_its_width_and_aligns_numbers(width: int) -> None:
    lines = drawn(busy(), width)
    assert max(map(len, lines)) <= min(width, 100)
    trials = [line for line in lines if re.match(r"\s+(9|10|11)  ", line)]
    assert [line.split()[0] for line in trials] == ["9", "10", "11"]
    assert [line.rstrip().split()[-3:] for line in trials] == [
        ["7/18", "0.512", "1:20"],
        ["7/18", "-", "1:20"],
        ["7/18", "0.988", "1:01:40"],
    ]
    for column in (-1, -2, -3):  # right-aligned: the texts of a column end in the same place
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


def test_many_running_trials_are_cut_with_their_number() -> None:
    rows = [running(number, f"model.net.width={number}") for number in range(40)]
    lines = drawn(busy(running=rows), rows=10)
    assert "  and 30 more" in lines
    assert sum("model.net.width=" in line for line in lines) == 11  # ten and the best one


def test_markup_in_a_cell_is_text() -> None:
    lines = drawn(busy(running=[running(1, "model.net.dense=[red]")]))
    assert any("dense=[red]" in line for line in lines)


def test_a_study_that_has_just_begun_can_be_drawn() -> None:
    lines = drawn(StudyStatus(OBJECTIVES, [], 10, 2))
    assert lines[0].startswith("pareto")
    assert "0 done" in lines[2]


@pytest.mark.parametrize("width", [60, 45])
def test_long_cells_keep_what_differs(width: int) -> None:
    texts = shortened(CELLS, width)
    assert all(len(text) <= width for text in texts)
    assert len(set(texts)) == 3
    values = [("8", "0.25"), ("16", "0.5", "focal"), ("4", "0.125", "focal")]
    for text, different in zip(texts, values, strict=True):
        assert all(f"={value}" in text for value in different)
        assert "cosine" not in text  # the same in all


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
    assert shortened([cell], width) == [expected]


@given(st.lists(st.text("ab=. [],_1", max_size=60), max_size=4), st.integers(5, 50))
def test_shortened_texts_always_fit(cells: list[str], width: int) -> None:
    texts = shortened(cells, width)
    assert len(texts) == len(cells)
    assert all(len(text) <= width for text in texts)


@given(st.text(max_size=40), st.integers(0, 45))
def test_middle_keeps_both_ends(text: str, width: int) -> None:
    cut = middle(text, width)
    assert len(cut) <= width
    assert cut == text or len(text) > width
    if len(text) > width >= 5:
        assert (cut[0], cut[-1]) == (text[0], text[-1])


def test_numbers_and_times_are_short() -> None:
    values = (0.6123, 12.34, 30037824.0, None, float("nan"))
    assert [number(value) for value in values] == ["0.612", "12.3", "30M", "-", "-"]
    assert [clock(seconds) for seconds in (7.9, 754, 7509)] == ["0:07", "12:34", "2:05:09"]


def event(outcome: TrialOutcome, **changes: Any) -> Event:
    values = {"number": 4, "values": [], "seconds": None, "tail": ""}
    return Event(outcome=outcome, **{**values, "again": False, **changes})


@pytest.mark.parametrize(
    ("ended", "line"),
    [
        (
            event(TrialOutcome("fail", "stopped", "asked to end"), seconds=5.0, again=True),
            "trial 4 stopped: asked to end (0:05), put back in the queue",
        ),
        (
            event(TrialOutcome("complete"), values=[0.6123, 3.2e6]),
            "trial 4 done: balanced accuracy 0.612, FLOPs 3.2M",
        ),
        (
            event(TrialOutcome("over_limit", "", "7 breaks x <= 5")),
            "trial 4 over a limit: 7 breaks x <= 5",
        ),
    ],
)
def test_lines_of_events(ended: Event, line: str) -> None:
    assert event_line(ended, OBJECTIVES) == line


FAILURE = TrialOutcome("fail", "out_of_memory", "no room\nat all")


def console_of(**options: Any) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, color_system=None, **options), file


def test_log_gets_events_at_once_and_a_status_line_every_half_minute() -> None:
    console, file = console_of(width=60, force_terminal=False)
    clock_s = 0.0
    with LiveView("pareto", OBJECTIVES, console, lambda: clock_s) as view:
        for second in range(65):
            clock_s = float(second)
            shown = busy(counts={"complete": second, "pruned": 0, "over_limit": 0, "fail": 0})
            if second == 10:
                shown.events = [
                    event(FAILURE, tail="step 1 [bold]\nstep 2", seconds=80.0, again=True)
                ]
            view.show(shown)
    lines = file.getvalue().splitlines()
    first = "trial 4 failed: no room at all (1:20), put back in the queue"
    assert lines[:3] == [first, "    step 1 [bold]", "    step 2"]
    # At 30 s, at 60 s, and the last state at the end.
    assert re.findall(r"(\d+) done", "\n".join(lines[3:])) == ["30", "60", "64"]
    assert max(map(len, lines)) <= 100
    shown = busy(counts={"complete": 30, "pruned": 0, "over_limit": 0, "fail": 0})
    line = " ".join(status_line("pareto", shown).split())
    assert line in " ".join("\n".join(lines[3:]).split())  # broken at blanks only
    assert line.startswith(
        "pareto: 9/100 trials finished (30 done, 3 put back in the queue); 3 running"
    )
    assert "\x1b" not in file.getvalue()


def test_terminal_is_redrawn_twice_a_second_and_ends_with_the_last_state() -> None:
    console, file = console_of(width=100, height=40, force_terminal=True)
    clock_s = 0.0
    with LiveView("pareto", OBJECTIVES, console, lambda: clock_s) as view:
        for step in range(101):
            clock_s = step / 50
            shown = busy(counts={"complete": step, "pruned": 0, "over_limit": 0, "fail": 0})
            view.show(shown)
        shown.events = [
            event(TrialOutcome("complete"), values=[0.5, 1.0]),
            event(FAILURE, tail="last words"),
        ]
        view.show(shown)
        view.say("stopped")
    text = file.getvalue()
    redraws = re.findall(r"(?<!trial )\b(\d+) done", text)
    # At 0, 0.5, 1, 1.5 and 2 s; each printed line draws the table again below it; and the end.
    assert sorted(set(map(int, redraws))) == [0, 25, 50, 75, 100]
    assert len(redraws) <= 5 + 3 + 2
    assert "last words" in text
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
    with LiveView("pareto", OBJECTIVES, console) as view:
        view.show(busy())
        logging.getLogger("some.part").warning("something was seen")
        assert "something was seen" in file.getvalue()
    assert handler.stream is sys.stderr
