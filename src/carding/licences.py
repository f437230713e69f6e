"""What licences allow, and whom to cite: the last section of a card."""

from importlib import metadata

from src.carding.record import ABSENT, CardPart, facts
from src.deployment.description import Description

OWNERS = " (training data: "  # behind the terms, in the note that src.deployment.description makes


def licence(description: Description) -> CardPart:
    """Of the data, the model and the code; and the citation of the data set."""
    terms, _, owners = description.licence.partition(OWNERS)
    return CardPart(
        facts(
            ("Of the data", terms),
            (
                "Of this model",
                f"{ABSENT}; what the licence of the data forbids may hold for what was learnt from them",
            ),
            ("Of the code", _of_code()),
            ("To be cited for the data", owners.removesuffix(")")),
        )
    )


def _of_code() -> str:
    try:
        found = metadata.metadata("paretoderm")
    except metadata.PackageNotFoundError:
        return ABSENT
    return next((found[key] for key in ("License-Expression", "License") if key in found), ABSENT)
