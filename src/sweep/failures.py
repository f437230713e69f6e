"""How a trial can end other than complete: by decision, or by a failure of some kind."""

from src.errors import DivergedError, UserError
from src.sweep.task import Kind, State
from src.tracking.store import TrackingError

FROM_OUTSIDE: tuple[Kind, ...] = ("killed", "time_limit", "stopped")  # of a trial that had not come to its own end


class EndedEarly(Exception):  # noqa: N818  a decision, no error
    """A trial that is not carried to its end, by decision and not by failure.

    Attributes:
        state: How the record calls it.
    """

    state: State = "pruned"


class Pruned(EndedEarly):
    """Stopped while training: it was behind."""


class OverLimit(EndedEarly):
    """Not trained at all: what it costs is known before, and is over a limit."""

    state: State = "over_limit"


class WrongReturnError(Exception):
    """The body's return value cannot be told to the study."""


class AllFailAlikeError(UserError):
    """The first trials of a study all failed in the same way: the others would, too."""


def classify(error: BaseException) -> tuple[Kind, str]:
    """What kind of failure an exception is, and its reason in one line."""
    text = " ".join(str(error).split())[:500]
    named = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if isinstance(error, DivergedError):
        return "diverged", text
    if isinstance(error, UserError) and not isinstance(error, TrackingError):
        return "bad_config", text
    if isinstance(error, WrongReturnError):
        return "wrong_return", text
    out_of_memory = type(error).__name__ == "OutOfMemoryError" or "not enough memory" in text or "CUDA out of" in text
    if isinstance(error, MemoryError) or out_of_memory:
        return "out_of_memory", named
    return "error", named
