"""What a deployed model says about itself, in its own file or beside it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from src.data.geometry import Geometry
from src.errors import UserError

KEY = "paretoderm"  # under which a model's file holds its description
RESEARCH = "Research software, no medical device: its answers are no diagnosis and replace no examination."


@dataclass(frozen=True)
class Decision:
    """How probabilities become an answer about the class that is looked for; all of it chosen on validation.

    Attributes:
        positive: The class that is looked for.
        threshold: Its probability, as the model gives it, from which an image counts as positive; in [0, 1].
        aim: What the threshold was chosen for, such as "sensitivity 0.80 on val".
        temperature: By which log-probabilities are divided for calibrated ones; None where none was fitted.
    """

    positive: str
    threshold: float
    aim: str
    temperature: float | None = None


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
    classes: tuple[str, ...]
    image_size: int
    geometry: Geometry
    data: str
    split: str
    licence: str
    precision: str = "float32"
    decision: Decision | None = None

    def to_json(self) -> str:
        """As text for a model's file."""
        return json.dumps({"version": 1, "notice": RESEARCH, **asdict(self)}, sort_keys=True)

    @classmethod
    def from_json(cls, content: str, where: str) -> "Description":
        """The description that a model's file holds.

        Args:
            content: From `to_json`.
            where: The file, for the message.

        Raises:
            UserError: It is no such description.
        """
        try:
            given: Mapping[str, Any] = json.loads(content)
            decision = given["decision"]
            return cls(
                **{name: given[name] for name in cls.__dataclass_fields__ if name not in ("classes", "decision")},
                classes=tuple(map(str, given["classes"])),
                decision=None if decision is None else Decision(**decision),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{where}: holds no description of a Paretoderm model ({error!r}); export it again"
            ) from error
