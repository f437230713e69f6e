"""The report as one HTML file that works without a network: the script of its pictures is in it."""

import base64
import gzip
import json
import os
from pathlib import Path
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs

from src.reporting import page_tables
from src.reporting.interactive import Section
from src.reporting.record import Report
from src.reporting.sections import sections

_TEMPLATE = Path(__file__).with_name("page.html.j2")


def write(report: Report, path: Path) -> Path:
    """Writes the page, whole or not at all.

    Args:
        report: What it says.
        path: The file; its folder is made if need be.

    Returns:
        The path.
    """
    text = render(report)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def render(report: Report) -> str:
    """The page as text: HTML5, with Plotly's script and the figures' data inside, both compressed."""
    found = sections(report)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        report=report,
        sections=found,
        tables=page_tables.tables(report),
        answers=page_tables.answers(report),
        counts=page_tables.counts(report),
        plotly=packed(get_plotlyjs()),
        data=packed(drawings(found)),
    )


def packed(text: str) -> str:
    """Compressed, as base64: small, and no text from outside can end the script element that it stands in."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def drawings(found: list[Section]) -> str:
    """The figures and their views as JSON."""
    data: list[dict[str, Any]] = []
    for section in found:
        for picture in section.pictures:
            figure = json.loads(picture.figure.to_json())
            views = [{"traces": view.traces, "layout": view.layout, "note": view.note} for view in picture.views]
            data.append({"data": figure["data"], "layout": figure["layout"], "views": views})
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False)
