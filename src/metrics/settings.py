"""Settings of the clinical audit, checked when they are read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Lt

from src.core.config import check_arguments
from src.core.errors import ConfigError
from src.metrics.registry import melanoma_of

Share = Annotated[float, Gt(0), Lt(1)]


@dataclass(frozen=True)
class AuditSettings:
    """What the clinical audit computes.

    Attributes:
        positive: The class looked for; None is the one called melanoma.
        goal: Recall that the class must reach, in (0, 1).
        sensitivity: Target of a threshold chosen on validation, in (0, 1).
        specificity: Target of the other threshold chosen on validation, in (0, 1).
        fixed: Specificities in (0, 1) at which sensitivity is read off the ROC curve, and the
            reverse.
        samples: Bootstrap samples, at least 100: fewer have no 2.5% at an end.
        seed: Of the random numbers.
        level: Coverage of the intervals, in (0, 1).
        smallest: Fewest lesions of a class in a subgroup with figures. Lesions are counted, because
            more images of the same ones add little.

    Raises:
        ConfigError: A value out of its range; the key is the attribute.
    """

    positive: str | None = None
    goal: Share = 0.80
    sensitivity: Share = 0.80
    specificity: Share = 0.90
    fixed: tuple[Share, ...] = (0.80, 0.90, 0.95)
    samples: Annotated[int, Ge(100)] = 2000
    seed: Annotated[int, Ge(0)] = 0
    level: Share = 0.95
    smallest: Annotated[int, Ge(1)] = 10

    def __post_init__(self) -> None:
        object.__setattr__(self, "fixed", tuple(self.fixed))  # a config gives a list
        check_arguments(AuditSettings, vars(self))

    def looked_for(self, classes: Sequence[str]) -> str:
        """The name of the class looked for; a ConfigError if it is none of `classes`."""
        listed = ", ".join(classes)
        name = melanoma_of(classes) if self.positive is None else self.positive
        if name is not None and name in classes:
            return name
        problem = f"must be one of {listed}, but got {name!r}"
        if name is None:
            problem = f"none of {listed} is called melanoma; name the class looked for"
        raise ConfigError("clinical.positive", problem)
