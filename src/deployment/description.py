"""What a model file says about itself: classes, geometry, licence, decision threshold."""

import json
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, MinLen

from src.core.errors import UserError

KEY = "paretoderm"  # the metadata entry of a model file that holds its description
VERSION = 1
RESEARCH = (
    "Research software, not a medical device: its output is not a diagnosis and does not replace "
    "an examination."
)
_STRICT = {"extra": "forbid", "allow_inf_nan": False}  # how pydantic validates the classes below


@dataclass(frozen=True)
class Decision:
    """How probabilities become a decision about one class. All of it is chosen on validation.

    Attributes:
        positive: The class that is decided about.
        threshold: Images with at least this probability count as positive, in [0, 1].
        aim: What the threshold was chosen for, such as "sensitivity >= 0.8 on val".
        temperature: Divides log-probabilities for calibrated ones; None if none was fitted.
    """

    positive: str
    threshold: Annotated[float, Ge(0), Le(1)]
    aim: str
    temperature: Annotated[float, Gt(0)] | None = None

    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class Description:
    """What is needed to feed a model, to read its output and to know its origin.

    Attributes:
        run_id: The run that trained (or compressed) the model.
        model: Name of the architecture.
        classes: In the order of the probabilities.
        image_size: Side of the square input, px.
        geometry: How a picture becomes square, see `src.data.cache.square`.
        data: Name of the training data set.
        split: How the data set was split, such as "grouped" or "image (leaking)".
        licence: What the licence of the training data allows.
        precision: Of the weights: "float32", "float16", "bfloat16" or "int8".
        decision: Threshold and temperature; None without a validation split.
    """

    run_id: str
    model: str
    classes: Annotated[tuple[str, ...], MinLen(2)]
    image_size: Annotated[int, Ge(1)]
    geometry: Literal["squash", "center_crop", "pad"]
    data: str
    split: str
    licence: str
    precision: str = "float32"
    decision: Decision | None = None

    __pydantic_config__ = _STRICT

    def to_json(self) -> str:
        """The description as text for a model file."""
        return json.dumps({"version": VERSION, "notice": RESEARCH, **asdict(self)}, sort_keys=True)

    @classmethod
    def from_json(cls, content: str, path: str) -> "Description":
        """Read a description from a model file.

        Args:
            content: Written by `to_json`.
            path: The file, for the error message.

        Raises:
            UserError: The content is not such a description.
        """
        import pydantic  # takes 0.3 s, which processes that only write descriptions do not need

        try:
            fields = json.loads(content)
            if not isinstance(fields, dict) or fields.pop("version", None) != VERSION:
                raise ValueError(f"none of version {VERSION}")
            fields.pop("notice", None)
            description = pydantic.TypeAdapter(cls).validate_json(json.dumps(fields), strict=True)
            decision = description.decision
            if decision and decision.positive not in description.classes:
                raise ValueError(f"decision.positive: {decision.positive} is none of its classes")
        except ValueError as error:
            reason = str(error)
            if isinstance(error, pydantic.ValidationError):
                first = error.errors()[0]
                reason = f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}"
            raise UserError(
                f"{path}: holds no description of a Paretoderm model ({reason}); export it again"
            ) from None
        return description
