"""Whether a class that must not be missed is found often enough: an interval held against a goal."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

Outcome = Literal["PASS", "FAIL", "UNDECIDED"]


@dataclass(frozen=True)
class Verdict:
    """One rule's recall beside the goal.

    Attributes:
        rule: How images are called positive: "argmax", or what the threshold was chosen for on validation.
        name: The class that is looked for.
        goal: Recall to reach.
        estimate: Reached, the mean over the seeds; NaN if it is not known.
        low: Of the interval.
        high: Of the interval.
        images: Of the class.
        lesions: Of the class.
        outcome: PASS: all of the interval reaches the goal; FAIL: none of it does; else UNDECIDED.
        problem: What is wrong with the rule, or empty.
    """

    rule: str
    name: str
    goal: float
    estimate: float
    low: float
    high: float
    images: int
    lesions: int
    outcome: Outcome
    problem: str = ""

    @property
    def text(self) -> str:
        """The verdict in a sentence."""
        how = "the most probable class" if self.rule == "argmax" else f"the threshold chosen for {self.rule}"
        size = f"{self.images} images of {self.lesions} lesions"
        if np.isnan(self.estimate):
            return f"{self.outcome}: recall of {self.name} by {how} is not known ({self.problem or size})."
        span = f"[{self.low:.3f}, {self.high:.3f}]" if not np.isnan(self.low) else "no interval"
        because = {
            "PASS": "the whole interval reaches",
            "FAIL": "the whole interval is below",
            "UNDECIDED": "the interval contains"
            if not np.isnan(self.low)
            else "without an interval nothing is said of",
        }[self.outcome]
        warning = f" But: {self.problem}." if self.problem else ""
        return (
            f"{self.outcome}: recall of {self.name} by {how} is {self.estimate:.3f} {span} "
            f"on {size}; {because} the goal of {self.goal:.2f}.{warning}"
        )


def judge(low: float, high: float, goal: float) -> Outcome:
    """PASS if all of [low, high] is at least `goal`, FAIL if all of it is below; NaN decides nothing."""
    if low >= goal:
        return "PASS"
    return "FAIL" if high < goal else "UNDECIDED"


def verdicts(points: pd.DataFrame, name: str, goal: float) -> tuple[Verdict, ...]:
    """A verdict on the most probable class, and one on the threshold that was chosen for sensitivity.

    Args:
        points: From `operating.points`.
        name: The class that is looked for.
        goal: Its recall must reach it.
    """
    asked = (points["measure"] == "sensitivity") & ~points["rule"].str.startswith("specificity")
    rows = points[asked].to_dict("records")
    return tuple(
        Verdict(
            rule=str(row["rule"]),
            name=name,
            goal=goal,
            estimate=float(row["estimate"]),
            low=float(row["low"]),
            high=float(row["high"]),
            images=int(row["images"]),
            lesions=int(row["groups"]),
            outcome=judge(float(row["low"]), float(row["high"]), goal),
            problem=str(row["problem"]),
        )
        for row in rows
    )
