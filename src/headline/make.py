"""The page of headline figures from end to end: read, compute, write, tell the terminal. Nothing is trained."""

import logging
from datetime import UTC, datetime
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from src.core.config import check, resolve
from src.headline import better, compressed, leakage, systems
from src.headline.document import WIDTH, markdown, show, write
from src.headline.figures import Bootstrap
from src.headline.part import Part
from src.headline.settings import Better, Compressed, Leakage, ResultsSettings, Section
from src.tracking.store import Store, existing

log = logging.getLogger(__name__)


def make(config: DictConfig) -> list[Part]:
    """Make the page that a config asks for.

    Args:
        config: A composed `conf/results.yaml`.

    Returns:
        The sections, after they were written.

    Raises:
        UserError: Bad input, or a store that cannot be read; the message names the culprit.
    """
    plain = resolve(config)
    own = {key: value for key, value in plain.items() if key != "tracking"}
    check({"_target_": "src.headline.settings.ResultsSettings", **own})
    settings = ResultsSettings(**own)
    sections = settings.chosen()
    store = existing(config)
    how = Bootstrap(settings.samples, settings.level, settings.seed)
    parts = []
    for name, section in sections.items():
        log.info("%s: reading %s, computing intervals", name, _counted(section))
        parts.append(_part(store, section, settings.seeds, how))
    file = Path(settings.file)
    write(markdown(parts, reading(settings), f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"), file)
    console = Console(width=WIDTH)
    show(parts, console)
    console.print(f"look: {file}", markup=False, highlight=False, soft_wrap=True)
    return parts


def reading(settings: ResultsSettings) -> list[str]:
    """What a reader must know of all figures."""
    return [
        f"A figure is the mean over at least {settings.seeds} seeds on the test split, which chose nothing; the split "
        "is the same for all seeds. What chose the epoch, or the settings, stands under each section (chosen by).",
        f"[low, high]: {settings.level:.0%} interval from {settings.samples} bootstrap samples that draw whole lesions "
        "or patients, and seeds as a second factor (`src/analysis/bootstrap.py`). With few seeds it is too narrow "
        "where the seeds differ much.",
        'Differences are paired by image; "within chance" means that their interval holds zero, not that there is '
        "no difference.",
        "FLOPs are multiply-adds. x latency: batch of one, in turn with the 692K network at 64 px on the same machine.",
        "An image split is marked as leaking where lesions or patients are on several sides. Research only, no "
        "medical device.",
    ]


def _counted(section: Section) -> str:
    number = len(section.studies)
    return f"{number} studies" if number > 1 else f"study {next(iter(section.studies))}"


def _part(store: Store, section: Section, needed: int, how: Bootstrap) -> Part:
    if isinstance(section, Leakage):
        return leakage.part(store, section, needed, how)
    if isinstance(section, Better):
        return better.part(store, section, needed, how)
    if isinstance(section, Compressed):
        return compressed.part(store, section, needed, how)
    return systems.part(store, section, needed, how)
