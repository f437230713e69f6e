"""Settings of the clinical audit, checked when they are read."""

from collections.abc import Sequence
from dataclasses import dataclass

from src.core.errors import ConfigError
from src.metrics.registry import melanoma_of


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
    goal: float = 0.80
    sensitivity: float = 0.80
    specificity: float = 0.90
    fixed: tuple[float, ...] = (0.80, 0.90, 0.95)
    samples: int = 1000
    seed: int = 0
    level: float = 0.95
    smallest: int = 10

    def __post_init__(self) -> None:
        object.__setattr__(self, "fixed", tuple(self.fixed))  # a config gives a list
        shares = [(key, getattr(self, key)) for key in ("goal", "sensitivity", "specificity")]
        shares += [("level", self.level), *(("fixed", value) for value in self.fixed)]
        for key, value in shares:
            if not 0 < value < 1:
                raise ConfigError(key, f"must be between 0 and 1, but got {value:g}")
        for key, least in (("samples", 100), ("smallest", 1), ("seed", 0)):
            if getattr(self, key) < least:
                raise ConfigError(key, f"must be at least {least}, but got {getattr(self, key)}")

    def looked_for(self, classes: Sequence[str]) -> str:
        """The name of the class looked for; a ConfigError if it is none of `classes`."""
        listed = ", ".join(classes)
        if self.positive is not None and self.positive not in classes:
            raise ConfigError(
                "clinical.positive", f"must be one of {listed}, but got {self.positive!r}"
            )
        name = self.positive or melanoma_of(classes)
        if name is None:
            message = f"none of {listed} is called melanoma; name the class looked for"
            raise ConfigError("clinical.positive", message)
        return name
