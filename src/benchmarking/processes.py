"""The parent's side of a worker: start it, ask it, and tell why it ended."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

import numpy as np

from src.benchmarking.stream import Dropped, Turn
from src.benchmarking.times import Times
from src.entry import ROOT

START_S, ANSWER_S = 600.0, 600.0  # patience; a large net is compiled at its start
POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS")


class Worker:
    """A process with one model; a context manager that ends it.

    Args:
        spec: What it loads, see `src.benchmarking.session.Session`.

    Attributes:
        hello: What it told when its first query had been answered.
        cold_start_s: From starting the interpreter until then. Its files may be in the page cache.

    Raises:
        Dropped: It could not be loaded, ran out of memory or crashed.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        self._spec = spec
        self._complaints = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  closed by `end`
        pools = dict.fromkeys(POOLS, str(spec["threads"]))
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        began = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "src.benchmarking.worker", json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
            env={**os.environ, **pools, "PYTHONPATH": path},
        )
        try:
            self.hello = self._answer(START_S)
        except BaseException:
            self.end()
            raise
        self.cold_start_s = time.perf_counter() - began

    def warm_up(self, seconds: float) -> Times:
        """Query for so long, at least once: times in ms."""
        return _ms(self._ask(do="warm_up", seconds=seconds)["ns"])

    def turn(self, untimed: int, timed: int, do: str = "turn") -> Turn:
        """Query so often.

        Args:
            untimed: First.
            timed: Then.
            do: "jpeg" begins each query with the photograph.

        Raises:
            Dropped: The process ended, or does not answer.
        """
        answer = self._ask(do=do, untimed=untimed, timed=timed)
        return Turn(_ms(answer["ns"]), answer["cpu_ns"] / 1e6)

    def from_jpeg(self, path: str) -> "FromJpeg":
        """The same model, each query from a photograph's bytes.

        Args:
            path: Of the photograph, which is read once.
        """
        self._ask(do="photograph", path=path)
        return FromJpeg(self)

    def end(self) -> None:
        """Let the process end; one that does not is killed."""
        with contextlib.suppress(OSError):
            if self._process.stdin:
                self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
        self._complaints.close()

    def _ask(self, **command: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise Dropped(self._why_ended("")) from error
        return self._answer(ANSWER_S)

    def _answer(self, patience: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        late = threading.Timer(patience, self._process.kill)
        late.start()
        try:
            line = self._process.stdout.readline()
            waited_in_vain = not late.is_alive()
        finally:
            late.cancel()  # after Ctrl+C too: else this process would wait for it
        if not line:
            raise Dropped(self._why_ended(f"gave no answer within {patience:.0f} s" if waited_in_vain else ""))
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Dropped(self._limited(answer["error"]))
        return answer

    def _why_ended(self, known: str) -> str:
        """In one line: by which signal, or the last line of what it wrote on standard error."""
        status = self._process.wait()
        self._complaints.seek(0)
        said = [line.strip() for line in self._complaints.read().splitlines() if line.strip()]
        how = f"ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        return self._limited(known or ": ".join([how, *said[-1:]]))

    def _limited(self, reason: str) -> str:
        limit = self._spec.get("memory_mb")
        return f"{reason} (under memory_mb={limit}, emulation)" if limit and "emulation" not in reason else reason

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


class FromJpeg:
    """A worker's model whose queries begin with a photograph.

    Args:
        worker: That has the photograph.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def warm_up(self, seconds: float) -> Times:
        """The model is warm: one query loads the decoder, another is timed."""
        return self.turn(1, 1).times

    def turn(self, untimed: int, timed: int) -> Turn:
        """Query so often."""
        return self._worker.turn(untimed, timed, "jpeg")


def _ms(nanoseconds: list[int]) -> Times:
    return np.array(nanoseconds, dtype=np.float64) / 1e6
