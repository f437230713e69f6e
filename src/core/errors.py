"""Errors that a user can correct, shown as one line; names that are checked without Hydra."""

import difflib
import errno
import importlib.util
import posixpath
import re
import typing
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

DecisionRule = Literal["argmax", "balanced", "accuracy", "recall_floor"]
RULES: tuple[str, ...] = typing.get_args(DecisionRule)
_NO_MEMORY = re.compile("not enough memory|allocate memory|CUDA out of|failed to map|new thread")
# passw(or)d=... of a connection, ?token=... of a query, 'password': '...' of printed settings,
# X_TOKEN=... of a command line or environment, a header of HTTP
_PASSWORD = re.compile(
    r"""(?i)(passw(?:or)?d *= *|['"]passw(?:or)?d['"]: *|[?&](?:access_?|auth_?|api_?|x-amz-)?"""
    r"""(?:token|key|secret|sig(?:nature)?)=|(?-i:\b[A-Z0-9_]*(?:TOKEN|SECRET|KEY)(?:=|['"]: *))|"""
    r"""(?:authorization['"]?: *['"]?(?:bearer|basic|token) |x-api-key['"]?: *))"""
    r"""('[^']*'|"[^"]*"|[^&\s'"]*)"""
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_LEAST_MB = 64  # with less left, errors of a library are about memory whatever they say


def masked(text: str) -> str:
    """The text without the passwords of its URLs, which must be neither shown nor recorded."""
    text = re.sub(r"(://[^:/@\s]*):\S*@", r"\1:***@", text)
    text = re.sub(r"(?i)(https?://)[^:/@\s]+@", r"\1***@", text)  # a token in the place of a user
    return _PASSWORD.sub(r"\1***", text)


def config_problem(error: Exception) -> str:
    """The first line of an error of OmegaConf or Hydra, without words about their inside."""
    first = (str(error).splitlines() or [""])[0]
    first = re.sub(r"^Key '\w+' is not in struct$", "cannot be left out", first)
    return re.sub(r'^\w+ raised while resolving interpolation: "?(.*?)"?$', r"\1", first)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error with its causes and contexts; none is repeated, although libraries make circles."""
    seen, queue = set[int](), [error]
    for cause in queue:  # which grows meanwhile
        if cause is not None and id(cause) not in seen:
            seen.add(id(cause))
            yield cause
            queue += [cause.__cause__, cause.__context__]


def full_disk(error: BaseException | None) -> str | None:
    """One line if a full disk or quota caused an error, with the file if it is known; else None."""
    way = "the disk is full: make space, then start it again"
    for cause in causes(error):
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            file = cause.filename2 or cause.filename
            return f"{file} cannot be written, {way}" if file else way
        if "database or disk is full" in str(cause):  # of SQLite
            return f"the database cannot be written, {way}"
    return None


def free_mb() -> float:
    """Addresses that `ulimit -v` leaves this process, MB; infinite without such a limit."""
    with suppress(ImportError, OSError):  # of other systems
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            return (limit - pages * resource.getpagesize()) / 1e6
    return float("inf")


def out_of_memory(error: BaseException | None) -> str | None:
    """One line if a lack of memory, such as a limit of `ulimit -v`, caused an error; else None."""
    is_scarce = free_mb() < _LEAST_MB
    for cause in causes(error):
        is_named = isinstance(cause, MemoryError) or type(cause).__name__ == "OutOfMemoryError"
        if is_named or is_scarce or _NO_MEMORY.search(str(cause)):
            text = " ".join(masked(str(cause)).split())[:300]
            way = "use a smaller data.batch_size, or fewer trials at once, or raise ulimit -v"
            return f"out of memory{text and f' ({text})'}: {way}"
    return None


def printable(text: str) -> str:
    """The text without control characters: escape codes of a terminal, or of its direction."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


class UserError(Exception):
    """Bad input. The message says on one line what is wrong and what to do, without passwords."""

    def __init__(self, message: str = "") -> None:
        super().__init__(masked(message))


class ConfigError(UserError):
    """An impossible value in the configuration: its key, what is wrong and what would be right.

    A constructor passes the name of its argument as `key`; `src.core.config.instantiate` prepends
    the path.
    """

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}" if key else problem)
        self.key = key
        self.problem = problem

    def under(self, path: str) -> "ConfigError":
        """The same error with the key below `path`."""
        return ConfigError(f"{path}.{self.key}" if self.key else path, self.problem)


class DivergedError(UserError):
    """A training whose loss or metrics are not finite."""


class DataError(UserError):
    """A data set at `path` that cannot be used: what is wrong and what to do."""

    def __init__(self, problem: str, path: Path | str | None = None) -> None:
        super().__init__(f"{path}: {problem}" if path is not None else problem)


class DependencyError(UserError):
    """A missing optional package, or a download that failed."""


def require(extra: str, *modules: str) -> None:
    """Raise DependencyError if a module, which an extra of pyproject.toml installs, is missing."""
    for name in modules:
        if importlib.util.find_spec(name) is None:
            way = f"install it with: pip install -e '.[{extra}]'"
            raise DependencyError(f"{name}: not installed, and needed here; {way}")


def closest(name: str, names: list[str], before: str = "; ", count: int = 1) -> str:
    """The question "; did you mean <similar name>?" for an unknown name, or an empty text.

    `before` separates the question from the text in front of it; at most `count` valid names are
    suggested, but neither the name itself nor the key above it.
    """
    others = [other for other in names if not f"{name}.".startswith(f"{other}.")]
    matches = difflib.get_close_matches(name, others, n=count)
    return f"{before}did you mean {' or '.join(matches)}?" if matches else ""


def check_class_names(names: Sequence[str]) -> None:
    """Check that class names can be parts of metric names, which MLflow must not shorten as paths.

    Raises:
        ConfigError: Names that are fewer than two, repeated, or not accepted by MLflow.
    """
    if len(names) < 2 or len(set(names)) < len(names):
        listed = ", ".join(map(repr, names))
        raise ConfigError("classes", f"must be two or more different names, but got {listed}")
    for name in names:
        path = f"recall/{name}"
        if not re.fullmatch(r"[\w\-./ :]+", name) or posixpath.normpath(path) != path:
            allowed = "letters, digits, spaces and _ - . / : as a metric's name is"
            raise ConfigError("classes", f"must be made of {allowed}, but got {name!r}")
