"""An access to a database server that does not answer is repeated until it does."""

import logging
import re
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from src.core.errors import UserError, causes, masked

_FIRST_PAUSE = 0.25  # s, doubled up to the longest
_LONGEST_PAUSE = 8.0
log = logging.getLogger(__name__)
T = TypeVar("T")


class Retry:
    """Repeats accesses to one database while its server is away.

    The outage is logged in one line. After it lasted too long, or was interrupted, no access waits
    again: the process is ending.

    Args:
        key: The config key that names the database, for messages.
        url: Of the database; its password is not shown.
        seconds: The longest outage; 0: nothing is repeated.

    Attributes:
        restore: Called before an access is repeated, such as to take a lock again. It may raise.
    """

    def __init__(self, key: str, url: str, seconds: float = 0.0) -> None:
        self.name = f"{key}: cannot use {masked(url)}"
        self.seconds = seconds
        self.restore: Callable[[], object] = object  # nothing, as a store with it is pickled

    def call(self, access: Callable[[bool], T]) -> T:
        """The result of `access(False)`, or after an outage of `access(True)`.

        The server may have done what an access asked for although its answer was lost: with True
        the access must take that into account.

        Raises:
            UserError: The server was away for too long.
        """
        try:
            return access(False)
        except Exception as error:
            if not is_outage(error):
                raise
            problem = error
        limit, pause, until = self.seconds, _FIRST_PAUSE, time.monotonic() + self.seconds
        if limit:
            log.warning("%s: waiting for up to %g s", self._text(problem), limit)
        while (remaining := until - time.monotonic()) > 0:
            try:
                time.sleep(min(pause, remaining))
                self.restore()
                return access(True)
            except (KeyboardInterrupt, SystemExit):
                self.seconds = 0.0
                raise
            except Exception as error:
                if not is_outage(error):
                    raise
                problem = error
            pause = min(2 * pause, _LONGEST_PAUSE)
        self.seconds = 0.0
        way = f" (waited for {limit:g} s; the same command continues)" if limit else ""
        raise UserError(self._text(problem) + way) from problem

    def _text(self, error: BaseException) -> str:
        """The error's cause in one line, without a password."""
        cause = next(_operational(error))
        text = " ".join(str(getattr(cause, "orig", None) or cause).split())
        return f"{self.name}: {masked(re.sub(r'[.;:]$', '', text))[:300]}"


def is_outage(error: BaseException) -> bool:
    """Whether an access failed because the database did not answer, or not for now."""
    return not isinstance(error, UserError) and any(True for _ in _operational(error))


def _operational(error: BaseException | None) -> Iterator[BaseException]:
    """The errors of the database's connection among an error and its causes."""
    from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

    for cause in causes(error):
        lost = isinstance(cause, DBAPIError) and cause.connection_invalidated
        kinds = OperationalError | InterfaceError | ConnectionError | TimeoutError
        if lost or isinstance(cause, kinds):
            yield cause
