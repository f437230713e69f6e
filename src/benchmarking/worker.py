"""The process that holds one model, and nothing else: commands come in as lines of JSON, answers go out so.

Each model has a process of its own. So its memory and its start are its own, a runtime that crashes or outgrows a limit
takes nobody along, thread pools of different libraries do not fight, and what is measured imports no more than what a
deployed model needs. The processes are quiet while another one has its turn.

    python -m src.benchmarking.worker '<spec as JSON>'
"""

import json
import os
import sys
import time
from typing import Any, TextIO

from src.errors import UserError


def main() -> None:
    """Emulate, load, answer; a mistake of the user's is an answer too, with the key `error`."""
    began, spec = time.perf_counter(), json.loads(sys.argv[1])
    answers = _own_channel()
    try:
        emulate(spec.get("cores"), spec.get("memory_mb"))
        from src.benchmarking.session import Session  # numpy and the runtime: counted, and limited

        session = Session(spec, began)
        _tell(answers, session.hello())
        for line in sys.stdin:
            _tell(answers, session.obey(json.loads(line)))
    except UserError as error:
        _tell(answers, {"error": " ".join(str(error).split())})
    except MemoryError:
        _tell(answers, {"error": "out of memory"})


def emulate(cores: int | None, memory_mb: int | None) -> None:
    """Hold this process to the first cores that it may use, and to so much memory.

    The limit is RLIMIT_DATA: what the process may make writable for itself. It is nearer to a small device's memory
    than RLIMIT_AS, which counts address space that is never touched and library files that are only mapped (torch
    maps gigabytes). Both count what is asked for; what is resident is checked besides, see `Session`.

    Args:
        cores: None: all.
        memory_mb: 10^6 bytes; None: no limit.

    Raises:
        UserError: This system cannot do it.
    """
    if cores:
        if not hasattr(os, "sched_setaffinity"):
            raise UserError(f"cores={cores}: this system cannot hold a process to cores; leave it out")
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    if memory_mb:
        try:
            import resource

            resource.setrlimit(resource.RLIMIT_DATA, (memory_mb * 10**6,) * 2)
        except (ImportError, ValueError, OSError) as error:
            raise UserError(f"memory_mb={memory_mb}: this system cannot limit a process ({error})") from error


def _own_channel() -> TextIO:
    """What was standard output, for answers alone: libraries that print do so on standard error."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return channel


def _tell(channel: TextIO, answer: dict[str, Any]) -> None:
    channel.write(json.dumps(answer) + "\n")
    channel.flush()


if __name__ == "__main__":
    main()
