"""Whether a class that must not be missed is found often enough: an interval held against a goal."""

from collections.abc import Sequence
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
        outcome: PASS: all of the interval reaches the goal; FAIL: none of it does; else UNDECIDED, as it is where there
            is a problem.
        problem: What is wrong with the rule, or empty.
        specificity: Reached by the same rule, for recall alone can be bought; NaN if it is not known.
        beware: What the caller knows against the predictions, in sentences.
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
    specificity: float = np.nan
    beware: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The verdict in a sentence, and what stands against it."""
        return " ".join([self._sentence, *(f"Beware: {each}" for each in self.beware)])

    @property
    def _sentence(self) -> str:
        how = "the most probable class" if self.rule == "argmax" else f"the threshold chosen for {self.rule}"
        size = f"{self.images} images of {self.lesions} lesions"
        if np.isnan(self.estimate):
            return f"{self.outcome}: recall of {self.name} by {how} is not known ({self.problem or size})."
        price = f" at a specificity of {self.specificity:.3f}" if not np.isnan(self.specificity) else ""
        return (
            f"{self.outcome}: recall of {self.name} by {how} is {self.estimate:.3f} {span(self.low, self.high)}{price} "
            f"on {size}; {self._because} the goal of {self.goal:g}."
        )

    @property
    def _because(self) -> str:
        if self.problem:
            return f"{self.problem} fulfils it on validation, which says nothing of"
        if np.isnan(self.low):
            return "without an interval nothing is said of"
        reasons = {"PASS": "the whole interval reaches", "FAIL": "the whole interval is below"}
        return reasons.get(self.outcome, "the interval contains")


def span(low: float, high: float) -> str:
    """An interval in words: "[0.500, 0.680]", or that there is none."""
    return "(no interval)" if np.isnan(low) else f"[{low:.3f}, {high:.3f}]"


def judge(low: float, high: float, goal: float) -> Outcome:
    """PASS if all of [low, high] is at least `goal`, FAIL if all of it is below; NaN decides nothing."""
    if low >= goal:
        return "PASS"
    return "FAIL" if high < goal else "UNDECIDED"


def verdicts(points: pd.DataFrame, name: str, goal: float, beware: Sequence[str] = ()) -> tuple[Verdict, ...]:
    """A verdict on the most probable class, and one on the threshold that was chosen for sensitivity.

    Args:
        points: From `operating.points`.
        name: The class that is looked for.
        goal: Its recall must reach it.
        beware: What the caller knows against the predictions.
    """
    specificity = points[points["measure"] == "specificity"].set_index("rule")["estimate"]
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
            outcome="UNDECIDED" if row["problem"] else judge(float(row["low"]), float(row["high"]), goal),
            problem=str(row["problem"]),
            specificity=float(specificity.get(row["rule"], np.nan)),
            beware=tuple(beware),
        )
        for row in rows
    )
