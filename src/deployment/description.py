"""What a model file says of itself: labels, geometry, licence, decision."""

import json
from dataclasses import asdict, dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le, MinLen
from omegaconf import DictConfig

from src.core.errors import UserError
from src.data.cache import Geometry
from src.data.fetch import COLLECTIONS

KEY = "paretoderm"  # under which a model's file holds its description
VERSION = 1
_CLOSED = {
    "extra": "forbid",
    "allow_inf_nan": False,
}  # how pydantic reads these classes from a file
RESEARCH = (
    "Research software, no medical device: its answers are no diagnosis and replace no examination."
)


@dataclass(frozen=True)
class Decision:
    """How probabilities become an answer about the class that is looked for; all of it chosen on validation.

    Attributes:
        positive: The class that is looked for.
        threshold: Its probability, as the model gives it, from which an image counts as positive;
            in [0, 1].
        aim: What the threshold was chosen for, such as "sensitivity 0.80 on val".
        temperature: By which log-probabilities are divided for calibrated ones; None where none was
            fitted.
    """

    positive: str
    threshold: Annotated[float, Ge(0), Le(1)]
    aim: str
    temperature: Annotated[float, Gt(0)] | None = None

    __pydantic_config__ = _CLOSED


@dataclass(frozen=True)
class Description:
    """What is needed to feed a model, to read its answers and to know where it comes from.

    Attributes:
        run_id: The run that trained (or compressed) it.
        model: Name of the architecture.
        classes: In the order of the probabilities.
        image_size: Side of the square picture, px.
        geometry: How a frame becomes that square.
        data: Name of the data set that it was trained on.
        split: How that was split, such as "grouped" or "image (leaking)".
        licence: Note on what the training data's licence allows.
        precision: Of the weights: "float32", "float16", "bfloat16" or "int8".
        decision: The stored threshold and temperature; None where there was no validation split.
    """

    run_id: str
    model: str
    classes: Annotated[tuple[str, ...], MinLen(2)]
    image_size: Annotated[int, Ge(1)]
    geometry: Geometry
    data: str
    split: str
    licence: str
    precision: str = "float32"
    decision: Decision | None = None

    __pydantic_config__ = _CLOSED

    def to_json(self) -> str:
        """As text for a model's file."""
        return json.dumps({"version": VERSION, "notice": RESEARCH, **asdict(self)}, sort_keys=True)

    @classmethod
    def from_json(cls, content: str, where: str) -> "Description":
        """The description that a model's file holds.

        Args:
            content: From `to_json`.
            where: The file, for the message.

        Raises:
            UserError: It is no such description.
        """
        import pydantic  # a third of a second that building a description does not take

        adapter = pydantic.TypeAdapter(cls)
        try:
            given = json.loads(content)
            if not isinstance(given, dict) or given.pop("version", None) != VERSION:
                raise ValueError(f"none of version {VERSION}")
            given.pop("notice", None)
            found = adapter.validate_json(json.dumps(given), strict=True)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}"
            raise UserError(_foreign(where, reason)) from None
        except ValueError as error:
            raise UserError(_foreign(where, str(error))) from None
        if found.decision and found.decision.positive not in found.classes:
            raise UserError(
                _foreign(
                    where, f"decision.positive: {found.decision.positive} is none of its classes"
                )
            )
        return found


def _foreign(where: str, reason: str) -> str:
    return f"{where}: holds no description of a Paretoderm model ({reason}); export it again"


DRAWN = "none applies: drawn pictures"
# sets that are taken from a collection of the archive, and come under its licence
_TAKEN_FROM = {"isic2018": "ham10000", "dermamnist": "ham10000"}


def note(data: DictConfig) -> str:
    """The licence, and whether it forbids commercial use.

    Args:
        data: The part `data` of a run's config.
    """
    source = str(data.source.get("_target_", "")).split(".")[
        -2
    ]  # by module, for a name can be chosen freely
    source = str(data.source.get("flag", source))  # of MedMNIST's sets
    if source == "synthetic":
        return DRAWN
    collection = COLLECTIONS.get(_TAKEN_FROM.get(source, source))
    if collection is None:
        return f"unknown: ask the owners of {data.get('name', source)}"
    terms, _, cite = collection.licence.removeprefix("Licence: ").partition(". Cite: ")
    use = ": no commercial use" if "NC" in terms else ""
    return f"{terms}{use} (training data: {cite})"
