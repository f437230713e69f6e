"""What a model file says about itself: classes, geometry, licence, decision threshold."""

import functools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from annotated_types import Ge, Gt, Le, MinLen

from src.core.errors import RULES, ConfigError, UserError, check_class_names
from src.data.decoding import Geometry
from src.metrics import formatting

Kind = TypeVar("Kind")
KEY = "paretoderm"  # the metadata entry of a model file that holds its description
VERSION = 1
RESEARCH = (
    "Research software, not a medical device: its output is not a diagnosis and does not replace "
    "an examination."
)
sentences = functools.partial(formatting.sentences, Path(__file__).with_name("sentences.j2"))
STRICT = {"extra": "forbid", "allow_inf_nan": False}  # how pydantic validates the classes below


def validated(kind: type[Kind], fields: dict[str, Any]) -> Kind:
    """A dataclass from the content of a JSON file; ValueError with the first wrong key."""
    import pydantic  # takes 0.3 s, which processes that only write descriptions do not need

    try:
        return pydantic.TypeAdapter(kind).validate_json(json.dumps(fields), strict=True)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        value = "" if first["type"] == "missing" else f", but got {first['input']!r}"
        raise ValueError(f"{key}: {first['msg'].lower()}{value}") from None


@dataclass(frozen=True)
class Decision:
    """How probabilities become a decision about one class. All of it is chosen on validation."""

    positive: str  # the class that is decided about
    threshold: Annotated[float, Ge(0), Le(1)]  # images with at least it are positive
    aim: str  # what the threshold was chosen for, such as "sensitivity >= 0.8 on val"
    # Divides log-probabilities for calibrated ones; None if none was fitted.
    temperature: Annotated[float, Gt(0)] | None = None

    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class Description:
    """What is needed to feed a model, to read its output and to know its origin."""

    run_id: str  # the run that trained (or compressed) the model
    model: str  # name of the architecture
    classes: Annotated[tuple[str, ...], MinLen(2)]  # in the order of the probabilities
    image_size: Annotated[int, Ge(1), Le(16384)]  # side of the square input, px
    geometry: Geometry  # how a picture becomes square, see `src.data.cache.square`
    data: str  # name of the training data set
    split: str  # how the data set was split, such as "grouped" or "image (leaking)"
    licence: str  # what the licence of the training data allows
    precision: str = "float32"  # of the weights: float32, float16, bfloat16 or int8
    decision: Decision | None = None  # None without a validation split
    # How one class is decided for, see `src.metrics.decision_rules`, and what the rule adds to the
    # log-probabilities, in the order of the classes; none for "argmax".
    rule: str = "argmax"
    offsets: tuple[float, ...] = ()

    __pydantic_config__ = STRICT

    def to_json(self) -> str:
        """The description as text for a model file."""
        return json.dumps({"version": VERSION, "notice": RESEARCH, **asdict(self)}, sort_keys=True)

    @classmethod
    def from_json(cls, content: str, path: str) -> "Description":
        """Read what `to_json` wrote to the file `path`; UserError if it is no such description."""
        try:
            fields = json.loads(content)
            if not isinstance(fields, dict) or fields.pop("version", None) != VERSION:
                raise ValueError(f"none of version {VERSION}")
            fields.pop("notice", None)
            description = validated(cls, fields)
            decision = description.decision
            if decision and decision.positive not in description.classes:
                raise ValueError(f"decision.positive: {decision.positive} is none of its classes")
            check_class_names(description.classes)
            if description.rule not in RULES:
                raise ValueError(f"rule: must be one of {', '.join(RULES)}")
            needed = 0 if description.rule == "argmax" else len(description.classes)
            if len(description.offsets) != needed:
                raise ValueError(f"offsets: must be {needed}, but got {len(description.offsets)}")
        except (ValueError, RecursionError, ConfigError) as error:
            problem = f"holds no description of a Paretoderm model ({error})"
            raise UserError(f"{path}: {problem}; export it again") from None
        return description
