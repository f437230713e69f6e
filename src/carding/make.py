"""A card from end to end: find the model, read its record, write, publish, and tell the terminal."""

import logging
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from src.carding import find, page
from src.carding.build import build
from src.carding.publish import publish
from src.carding.record import Card
from src.carding.settings import CardSettings
from src.core.config import check, resolve
from src.core.errors import UserError
from src.metrics.settings import AuditSettings as Clinical
from src.reporting.clinical import external
from src.reporting.clinical.record import clinical
from src.tracking.store import Store, existing

log = logging.getLogger(__name__)
console = Console(width=100)


def make(config: DictConfig) -> Card:
    """Make the card that a config asks for.

    Args:
        config: A composed `conf/command/card.yaml`.

    Returns:
        The card, after it was written and published.

    Raises:
        UserError: Bad input; the message names the culprit.
    """
    settings, asked, store = _settings(config)
    subject = find.find(store, settings.wanted)
    external.refuse_root(subject.evaluated, settings.own_root)
    card = build(store, subject, asked, settings.own_root)
    path = page.write(card, Path(settings.folder) / subject.folder)
    places = publish(card, subject, store) if settings.publish else []
    show(card, [str(path), *places])
    return card


def attach(config: DictConfig) -> None:
    """Publish the card of the model that a report has registered, without a file beside the record.

    What cannot be told of it is said, and is no failure: the model is registered.

    Args:
        config: A composed `conf/command/report.yaml`, with the model's name as `register`.
    """
    name = f"{config.register}@{config.alias}"
    try:
        store = existing(config, config.from_experiment)
        subject = find.find(store, name)
        places = publish(build(store, subject, Clinical(fixed=())), subject, store)
    except UserError as error:
        log.warning("%s has no model card: %s", name, error)
        return
    log.info("model card: %s", "; ".join(places))


def show(card: Card, places: list[str]) -> None:
    """Tell the card in short on the terminal, 100 columns wide, and where all of it is."""
    console.rule(f"Model card: {card.title}", align="left")
    for sentence in card.beware:
        console.print(f"! {sentence}", style="bold red", markup=False, highlight=False)
    for sentence in card.short:
        console.print(f"- {sentence}", markup=False, highlight=False)
    console.print("Limits:", style="bold")
    for sentence in card.limits[len(card.beware) :]:
        console.print(f"- {sentence}", markup=False, highlight=False)
    for place in places:
        console.print(f"look: {place}", markup=False, highlight=False, soft_wrap=True)


def _settings(config: DictConfig) -> tuple[CardSettings, Clinical, Store]:
    plain = {str(key): config[key] for key in config if key not in ("clinical", "tracking")}
    check({"_target_": "src.carding.settings.CardSettings", **plain})
    values = resolve(config.clinical)
    check({"_target_": "src.metrics.settings.AuditSettings", **values}, "clinical")
    settings = CardSettings(**plain)
    settings.wanted  # noqa: B018  it is refused here, before the store is opened
    return settings, clinical(values), existing(config)
