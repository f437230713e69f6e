"""Paths as users type them."""

from pathlib import Path


def expanded(name: str) -> Path:
    """A path with `~` expanded, where there is such a user."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def is_there(path: Path) -> bool:
    """Whether there is such a file or folder; of no name that a system refuses there is."""
    try:
        return path.exists()
    except OSError:
        return False
