"""Errors that a user can mend: shown as one line, without a traceback."""

from pathlib import Path


class UserError(Exception):
    """Bad input. The message names the culprit and the way out, in one line."""


class ConfigError(UserError):
    """A value in the configuration that cannot be.

    Args:
        key: The configuration key, as the user would type it; a constructor gives the name of its
            own argument, and `src.core.config.instantiate` puts the path in front of it.
        problem: What is wrong and what would be right, such as "must be at least 1, but got 0".
    """

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}" if key else problem)
        self.key = key
        self.problem = problem

    def under(self, path: str) -> "ConfigError":
        """The same error, its key below `path`."""
        return ConfigError(f"{path}.{self.key}" if self.key else path, self.problem)


class DivergedError(UserError):
    """A training whose loss or metrics are no numbers any more; lower the learning rate or clip the gradient."""


class DataError(UserError):
    """A data set on disk that is not as it should be.

    Args:
        problem: What is wrong and the way out.
        path: The file or folder that it is about.
    """

    def __init__(self, problem: str, path: Path | str | None = None) -> None:
        super().__init__(f"{path}: {problem}" if path is not None else problem)


class DependencyError(UserError):
    """An optional package or a download that is needed here and is not to be had."""
