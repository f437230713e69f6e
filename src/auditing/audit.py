"""An audit: every claim of a paper with what its readings lead to and its verdict, before anything is written."""

import math
import sys
from collections import Counter
from dataclasses import dataclass, replace

from tqdm import tqdm

from src.auditing import printed
from src.auditing.claims import Claim, Paper
from src.auditing.figures import Figures, Recorded
from src.auditing.printed import Printed
from src.auditing.verdicts import (
    CONTRADICTED,
    NOT_REPRODUCED,
    NOT_TESTABLE,
    UNDECIDED,
    VERDICTS,
    ClaimOutcome,
    ClaimVerdict,
    agrees,
    decide,
)
from src.core.errors import ConfigError


@dataclass(frozen=True)
class Audited:
    """A claim and what came of it.

    Attributes:
        claim: As the paper makes it.
        number: What it prints; None for a claim without a number.
        outcomes: One a reading, in the claim's order.
        verdict: And the outcome that it rests on.
        command: Records the runs that it lacks; empty if it lacks none.
    """

    claim: Claim
    number: Printed | None
    outcomes: list[ClaimOutcome]
    verdict: ClaimVerdict
    command: str = ""

    @property
    def found(self) -> str:
        """The figure that the verdict rests on, in the unit of the printed one, with its range."""
        outcome = self.verdict.outcome
        return "-" if outcome is None else shown(outcome, self.number)

    @property
    def reason(self) -> str:
        """Why the verdict is what it is, in one line."""
        outcome, name = self.verdict.outcome, self.verdict.name
        if name == NOT_TESTABLE:
            return self._why_not_testable()
        assert outcome is not None  # every other verdict rests on one
        told = f"{outcome.found.how} = {self.found}"
        if outcome.found.origins == {"published"}:
            told = f"{self.found}, {outcome.found.how}"
        refuted = f", printed {self.printed}" if name in (CONTRADICTED, NOT_REPRODUCED) else ""
        return f"{outcome.reading}: {told}{refuted}"

    @property
    def printed(self) -> str:
        """What the paper prints; of words, the number that they stand for too."""
        relation = {"equal": "", "below": "less than ", "above": "more than "}[self.claim.relation]
        if self.claim.value is None or self.number is None:
            return f"{relation}{self.claim.printed}"
        return f"{self.claim.printed} ({relation}{self.number.text})"

    @property
    def problems(self) -> list[str]:
        """Why it is not testable, each reason once; empty if it is."""
        if self.verdict.name != NOT_TESTABLE or self.claim.untestable:
            return [self.claim.untestable] if self.claim.untestable else []
        own = [outcome.found.problem for outcome in self.outcomes if not outcome.beside]
        return list(dict.fromkeys(problem for problem in own if problem))

    def _why_not_testable(self) -> str:
        told = "; ".join(
            [*self.problems, *([f"record them: {self.command}"] if self.command else [])]
        )
        beside = [
            f"{outcome.reading} {shown(outcome, self.number)}"
            for outcome in self.outcomes
            if not math.isnan(outcome.found.value)
        ]
        return f"{told}; beside it: {'; '.join(beside)}" if beside else told


@dataclass(frozen=True)
class Audit:
    """A paper, audited.

    Attributes:
        paper: Its claims and its protocol.
        claims: One each, in the paper's order.
    """

    paper: Paper
    claims: list[Audited]

    @property
    def counts(self) -> dict[str, int]:
        """How many claims came to each verdict, those of none too."""
        found = Counter(each.verdict.name for each in self.claims)
        return {name: found[name] for name in VERDICTS}


def audit(paper: Paper, recorded: Recorded) -> Audit:
    """Hold every claim of a paper against what is counted, computed and recorded here; nothing is trained.

    Args:
        paper: Its claims.
        recorded: What runs say.

    Raises:
        ConfigError: A claim that cannot be worked out; the message names its key.
    """
    figures = Figures(paper, recorded)
    bar = tqdm(
        paper.claims, desc=paper.name, unit="claim", leave=False, disable=not sys.stderr.isatty()
    )
    return Audit(
        paper, [_audited(claim, figures, place, paper.command) for place, claim in enumerate(bar)]
    )


def shown(outcome: ClaimOutcome, number: Printed | None) -> str:
    """A reading's figure, in its own unit or that of the printed one, with its range if it has one."""
    found = outcome.found
    if math.isnan(found.value):
        return "-"
    if number is not None and outcome.unit is None:
        text, low, high = map(number.like, found.range)
    else:
        text, low, high = (f"{value:,.4g} {outcome.unit or ''}".strip() for value in found.range)
    return text if low == high or math.isnan(found.low) else f"{text} ({low} to {high})"


def _audited(claim: Claim, figures: Figures, place: int, command: str) -> Audited:
    key = f"paper.claims[{place}]"
    number = _number(claim, key)
    outcomes = []
    for index, reading in enumerate(claim.readings):
        found = figures.work_out(reading, f"{key}.readings[{index}]")
        other_unit = reading.beside and reading.unit is not None
        agreed = None
        if number is not None and not other_unit:
            agreed = agrees(found, number, claim.relation)
            if agreed is None and not math.isnan(found.value) and not found.problem:
                found = replace(found, problem=UNDECIDED)
        outcomes.append(ClaimOutcome(reading.name, found, reading.beside, agreed, reading.unit))
    verdict = ClaimVerdict(NOT_TESTABLE, None) if claim.untestable else decide(outcomes)
    lacks = any(outcome.found.unrecorded and not outcome.beside for outcome in outcomes)
    return Audited(claim, number, outcomes, verdict, command if lacks else "")


def _number(claim: Claim, key: str) -> Printed | None:
    if claim.value is not None:
        return printed.parse(f"{claim.value:g}", key, claim.step)
    try:
        return printed.parse(claim.printed, f"{key}.printed", claim.step)
    except ConfigError:
        if claim.untestable:
            return None
        raise
