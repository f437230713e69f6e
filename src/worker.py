"""ENTRY: a worker that runs trials of a study whose owner uses `hydra/sweeper/executor=workers`.

python -m src.worker storage=postgresql://user:password@host/studies n_jobs=2
"""

import logging
import signal
import sys
import threading
from types import FrameType

from src.core.cli import one_line_errors
from src.core.errors import ConfigError, UserError

USAGE = """
Runs trials of studies kept in a database, until it is ended (Ctrl+C) or has been idle for long enough.

  python -m src.worker storage=postgresql://user:password@host/studies n_jobs=2 devices=auto

  storage=             the study's database, as its owner names it (hydra.sweeper.storage)
  study=               only trials of this study
  n_jobs=              how many trials at once; as many as the GPUs take, 1 without a GPU
  devices=auto         ids of GPUs, such as 0,1; null for the CPU
  trials_per_device=1  how many trials share a GPU
  threads=auto         CPU threads a trial; auto shares the cores out
  idle_exit_s=         end after so many seconds without a trial
  lost_after_s=60      seconds without a sign of life after which an owner or a worker is given up
"""
_DEFAULTS = {
    "storage": "",
    "study": "",
    "n_jobs": "",
    "devices": "auto",
    "trials_per_device": "1",
    "threads": "auto",
    "idle_exit_s": "",
    "lost_after_s": "60",
    "entry": "src.sweep.trial:main",
}


def main(arguments: list[str]) -> None:
    """Work until told to stop.

    Args:
        arguments: As in `USAGE`.

    Raises:
        UserError: An argument that is none of these, or a database that cannot be used.
    """
    options = dict(_DEFAULTS)
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key not in options or not value:
            raise UserError(
                f"{argument}: not an argument of a worker; see python -m src.worker --help"
            )
        options[key] = value
    if not options["storage"]:
        raise ConfigError(
            "storage", "must be the URL of the study's database; see python -m src.worker --help"
        )
    _work(options)


def _work(options: dict[str, str]) -> None:
    # torch and SQLAlchemy take seconds to import: not before a wrong argument is told
    from src.sweep.executors.agent import WorkerAgent
    from src.sweep.executors.local import LocalExecutor
    from src.sweep.executors.tasks_table import TasksTable

    logging.basicConfig(level=logging.INFO, format="[%(asctime)s] %(message)s", datefmt="%H:%M:%S")
    devices = options["devices"]
    executor = LocalExecutor(
        n_jobs=_number(options, "n_jobs"),
        devices="auto"
        if devices == "auto"
        else None
        if devices == "null"
        else list(devices.split(",")),
        trials_per_device=_number(options, "trials_per_device") or 1,
        threads="auto" if options["threads"] == "auto" else _number(options, "threads"),
        preload=["src.run"],
        entry=options["entry"],
    )
    table = TasksTable(options["storage"])
    logging.info("a worker for %d trials at once, at %s", executor.slots, table.shown_url)
    idle, lost = _number(options, "idle_exit_s"), _number(options, "lost_after_s")
    agent = WorkerAgent(table, executor, options["study"] or None, float(lost or 60), idle)
    agent.run(_told_to_stop())
    logging.info("ended after %d trials", agent.done)


def _told_to_stop() -> threading.Event:
    """Set by Ctrl+C and SIGTERM."""
    stop = threading.Event()

    def end(signum: int, frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    return stop


def _number(options: dict[str, str], key: str) -> int | None:
    text = options[key]
    if not text or text == "null":
        return None
    if not text.isdigit():
        raise ConfigError(key, f"must be a whole number, but got {text}")
    return int(text)


if __name__ == "__main__":
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(USAGE)
    else:
        with one_line_errors():
            main(sys.argv[1:])
