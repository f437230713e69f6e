"""Optional packages: asked for where they are used, and named where they are missing."""

from collections.abc import Iterator
from contextlib import contextmanager

from src.errors import DependencyError


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Let imports within the block fail with the command that installs them.

    Args:
        extra: Of pyproject.toml: onnx, executorch, litert or prune.

    Raises:
        DependencyError: A package cannot be imported.
    """
    try:
        yield
    except ImportError as error:
        raise DependencyError(
            f"{error.name or error}: not installed, and needed here; install it with: pip install -e '.[{extra}]'"
        ) from error
