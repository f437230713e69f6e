"""Sentences of clinical audits and evaluations, from the template sentences.j2."""

import functools
import re
from pathlib import Path
from typing import Any

import jinja2

from src.metrics.formatting import interval


def sentences(part: str, **values: Any) -> list[str]:
    """The sentences of one part of sentences.j2, each in one line."""
    text = _template().render(part=part, **values)
    return [" ".join(item.split()) for item in re.split(r"^- ", text, flags=re.MULTILINE)[1:]]


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(  # noqa: S701  plain text: the pages escape it
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        # a text from outside stays within its sentence
        finalize=lambda value: " ".join(value.split()) if isinstance(value, str) else value,
    )
    environment.globals["interval"] = interval
    return environment.from_string(Path(__file__).with_name("sentences.j2").read_text("utf-8"))
