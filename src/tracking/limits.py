"""What MLflow takes as a name and as a value, and how everything else is made to fit.

Source of the numbers and of the characters: `mlflow.utils.validation` of MLflow 3.17.
"""

import hashlib
import json
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from src.errors import ConfigError

PARAM_LENGTH = 6000
TAG_LENGTH = 8000
NAME_LENGTH = 250
PARAMS_PER_BATCH = 100
METRICS_PER_BATCH = 1000

T = TypeVar("T")


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested configuration as flat parameters.

    Args:
        config: Mappings within mappings; every other value, lists too, is a leaf.
        prefix: What the keys start with, such as "model.".

    Returns:
        Dotted, recordable keys -> values as `text` writes them, cut to MLflow's limit. An empty mapping is a leaf.

    Raises:
        ConfigError: Two keys that MLflow can only record as one.
    """
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            leaves = flatten(value, f"{prefix}{key}.")
        else:
            leaves = {recordable(f"{prefix}{key}"): cut(text(value), PARAM_LENGTH)}
        if twins := flat.keys() & leaves.keys():
            raise ConfigError(f"{prefix}{key}", f"would be recorded as {twins.pop()!r}, like another key: rename it")
        flat |= leaves
    return flat


def text(value: object) -> str:
    """A value the way a user types it in an override: strings as they are, `null`, `true`, `0.001`, `[32, 64]`."""
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def cut(value: str, limit: int) -> str:
    """The value, or its start with a note (full length and hash, so that two long values stay comparable)."""
    if len(value) <= limit:
        return value
    note = f"... [cut from {len(value)} characters, sha256 {hashlib.sha256(value.encode()).hexdigest()[:16]}]"
    return value[: limit - len(note)] + note


def masked(text: str) -> str:
    """Without the passwords of the URLs in it, which must not be recorded."""
    return re.sub(r"(://[^:/@\s]*):[^@\s]*@", r"\1:***@", text)


def recordable(name: str) -> str:
    """The name of a metric or parameter as MLflow takes it: characters it refuses become `_`, `a//b` becomes `a/b`."""
    clean = posixpath.normpath(re.sub(r"[^/\w.\- :]", "_", name)).strip("/")
    while clean.startswith(".."):
        clean = f"__{clean[2:]}"
    if clean in ("", "."):
        clean = "_"
    if len(clean) > NAME_LENGTH:
        clean = f"{clean[: NAME_LENGTH - 17]}_{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return clean


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items in lists of at most `size`, in order."""
    whole = list(items)
    for start in range(0, len(whole), size):
        yield whole[start : start + size]
