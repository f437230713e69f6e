"""Which pictures the page shows, in which order."""

from src.reporting import histories, profiles
from src.reporting.interactive import Section, front
from src.reporting.record import Report

_MAKERS = (
    front,
    histories.recalls,
    profiles.effects,
    profiles.importance,
    profiles.parallel,
    histories.curves,
    histories.progress,
)


def sections(report: Report) -> list[Section]:
    """The sections that there is something to draw for."""
    return [section for section in (make(report) for make in _MAKERS) if section is not None]
