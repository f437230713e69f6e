"""What a card says, found before anything is written."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from src.reporting.clinical.page import AuditTable

ABSENT = "not recorded"
Fact = tuple[str, str]  # what it is of, and what is known of it


@dataclass(frozen=True)
class CardPart:
    """A section of a card.

    Attributes:
        facts: What is known, in order.
        told: Sentences.
        sheets: Tables.
    """

    facts: tuple[Fact, ...] = ()
    told: tuple[str, ...] = ()
    sheets: tuple[AuditTable, ...] = ()


@dataclass(frozen=True)
class Card:
    """A model card (Mitchell et al., Model cards for model reporting, FAT* 2019), ready to be laid out.

    Attributes:
        title: One line.
        front: The head in YAML, as Hugging Face reads it: license, tags, datasets, metrics,
            results.
        beware: What speaks against the figures, in sentences; said before all else.
        short: The model in a few sentences.
        model: Architecture, size, precision, input, labels, output.
        compression: What it was made from, and what that cost; nothing of a net that was not
            compressed.
        data: Sets, splits, counts.
        training: Settings, seeds, commit, hardware.
        quality: On val and test.
        subgroups: By age, sex, site, skin type.
        external: On other data.
        cost: Latency and memory, with their conditions; exports; benchmarks.
        limits: Sentences that follow from what is recorded.
        commands: What to type to use it.
        licence: Of data, model and code, and whom to cite.
    """

    title: str
    front: dict[str, Any]
    beware: tuple[str, ...]
    short: tuple[str, ...]
    model: CardPart
    compression: CardPart
    data: CardPart
    training: CardPart
    quality: CardPart
    subgroups: CardPart
    external: CardPart
    cost: CardPart
    limits: tuple[str, ...]
    commands: tuple[str, ...]
    licence: CardPart


def number(values: Sequence[float], digits: int = 0, unit: str = "") -> str:
    """A figure of several nets: what they have in common, else their mean and range; `ABSENT` without any."""
    known = [f"{value:,.{digits}f}" for value in values if np.isfinite(value)]
    if not known:
        return ABSENT
    if len(set(known)) == 1:
        return f"{known[0]} {unit}".rstrip()
    low, high = min(values), max(values)
    return (
        f"{np.mean(values):,.{digits}f} {unit}".rstrip()
        + f" ({low:,.{digits}f} to {high:,.{digits}f})"
    )


def facts(*given: Fact) -> tuple[Fact, ...]:
    """The facts; one without a value is said to be `ABSENT`, never left out."""
    return tuple((name, value or ABSENT) for name, value in given)
