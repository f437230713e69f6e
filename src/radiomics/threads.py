"""How many threads numpy's linear algebra may start: torch's own setting does not reach it."""

from contextlib import AbstractContextManager
from functools import cache
from typing import Any

from threadpoolctl import ThreadpoolController


def blas(most: int) -> AbstractContextManager[Any]:
    """A context in which a matrix product takes no more than so many threads; as before at its end.

    Args:
        most: At least 1.
    """
    return _libraries().limit(limits=most, user_api="blas")


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()  # looks through all that is loaded, which takes longer than an image
