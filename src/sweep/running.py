"""A trial that is under way, as its owner sees it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from src.sweep.space import Cell
from src.sweep.task import Kind, Task


@dataclass
class Running:
    """A trial that was handed to the executor and whose end was not reported yet.

    Attributes:
        task: As the executor returned it.
        cell: Where in the space it lies.
        began: When it was handed over or, where it had to wait, when it began to run; `time.monotonic`.
        stopped: Why the owner ended it; None if it did not.
        waits: Handed over, but without a sign of life: it may stand in an engine's queue.
        progress: What it last said of itself.
    """

    task: Task
    cell: Cell
    began: float
    stopped: tuple[Kind, str] | None = None
    waits: bool = False
    progress: dict[str, Any] = field(default_factory=dict)


def fresh_folder(folder: Path) -> Path:
    """The folder, or one beside it: another study of that name may have left it, and nothing is overwritten."""
    number, fresh = 2, folder
    while fresh.exists():
        fresh = folder.with_name(f"{folder.name}-{number}")
        number += 1
    return fresh
