"""A paper's claims as data: what conf/paper/<paper>.yaml may hold, and that all it names is there."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import pydantic

from src.auditing.counts import COUNTS
from src.auditing.operations import OPERATIONS
from src.core.errors import ConfigError

KINDS = ("printed", "count", "operation", "figure", "measured", "published")


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Requirement(_Strict):
    """What runs must have for their figures to speak for or against the paper.

    Attributes:
        column: Of the table of runs, such as tags.weights or metrics.data/images.
        equals: The text it must have; or
        at_least: The least number it may be.
        otherwise: Why runs without it say nothing about the claim.
    """

    column: str
    equals: str | None = None
    at_least: float | None = None
    otherwise: str

    @pydantic.model_validator(mode="after")
    def _one_test(self) -> "Requirement":
        if (self.equals is None) == (self.at_least is None):
            raise ValueError("must have either equals or at_least")
        return self


class PaperSystem(_Strict):
    """A system of the paper, as it is trained here.

    Attributes:
        preset: Choice of conf/experiment that its runs come from; their tag `preset`.
        data: The data set's name; their tag `data`.
        split: How the images were split; their tag `split`, such as "image (leaking)" or "grouped".
        fixed: What makes it the paper's system: columns of the table of runs, such as
            params.model.net.width or metrics.efficiency/params, and their values; the tag `preset`
            outlives every override.
        requires: And what else its runs must have. Others are shown beside the claim, but decide
            nothing.
    """

    preset: str
    data: str
    split: str
    fixed: dict[str, Any] = {}
    requires: list[Requirement] = []

    @pydantic.field_validator("fixed")
    @classmethod
    def _columns(cls, fixed: dict[str, Any]) -> dict[str, Any]:
        for column in fixed:
            if not column.startswith(("params.", "metrics.", "tags.")):
                raise ValueError(f"{column} must start with params., metrics. or tags.")
        return fixed


class MeasuredClaim(_Strict):
    """A metric of a system's recorded runs.

    Attributes:
        system: Its name in the paper's `systems`.
        metric: On the test split, by the run record's names without the split, such as accuracy or
            recall/mel; or a cost, such as efficiency/latency_ms/b1/p50.
        less: Another system, whose value on the same images is taken off; of metrics on the test
            split only.
    """

    system: str
    metric: str
    less: str = ""

    @property
    def systems(self) -> list[str]:
        """Both, or the one."""
        return [self.system, self.less] if self.less else [self.system]

    @property
    def is_cost(self) -> bool:
        """Whether it is of the run rather than of its predictions."""
        return self.metric.startswith(("efficiency/", "time/"))

    @pydantic.model_validator(mode="after")
    def _pairs(self) -> "MeasuredClaim":
        if self.less and self.is_cost:
            raise ValueError(
                f"less takes a metric on the test split, but got {self.metric}: take operation: ratio"
            )
        return self


class Figure(_Strict):
    """A number by one of `KINDS`.

    Attributes:
        printed: As the paper prints it; `step`: the worth of its last digit, where that is not the
            last one printed.
        count: What is counted of a net (one of `COUNTS`, several are added up); `net`: its name in
            the paper's `nets`.
        operation: One of `OPERATIONS`; `of`: numbers, names of figures, and ids of claims (their
            printed values).
        figure: Another figure or a claim's printed value, as it is.
        measured: From recorded runs.
        published: By others; `source`: where.
    """

    printed: str | None = None
    step: float | None = None
    count: str | list[str] | None = None
    net: str | None = None
    operation: str | None = None
    of: list[float | str] = []
    figure: str | None = None
    measured: MeasuredClaim | None = None
    published: float | None = None
    source: str = ""

    @property
    def kind(self) -> str:
        """Which of `KINDS` it is."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def counts(self) -> list[str]:
        """What is counted."""
        return [self.count] if isinstance(self.count, str) else list(self.count or [])

    @property
    def references(self) -> list[str]:
        """Names of other figures."""
        return [each for each in [*self.of, self.figure] if isinstance(each, str)]

    @pydantic.model_validator(mode="after")
    def _one_kind(self) -> "Figure":
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(
                f"must have one of {', '.join(KINDS)}, but has {' and '.join(given) or 'none'}"
            )
        partners = {"count": "net", "operation": "of", "published": "source"}
        partner = partners.get(self.kind)
        if partner and not getattr(self, partner):
            raise ValueError(f"{self.kind} needs {partner}")
        return self


class Reading(Figure):
    """One way to understand a claim, and the figure that it leads to.

    Attributes:
        name: The way, in words; the first reading of a claim is what the paper says.
        beside: Shown beside the claim, decides nothing.
        unit: Of a figure beside that is not in the printed one's unit.
    """

    name: str
    unit: str | None = None
    beside: bool = False


class Claim(_Strict):
    """Something that the paper says.

    Attributes:
        id: A name; as a figure it is the printed value.
        claim: A sentence.
        where: In the paper: abstract, section, table and row.
        printed: The number as printed, or words.
        value: The number that those words stand for.
        step: Worth of its last digit, if that is not the last one printed.
        relation: Of the true value to the printed one.
        readings: The first is the paper's own; none only where the claim is untestable.
        untestable: Why it cannot be tested; empty if it can.
        note: What a reader should know beside.
    """

    id: str
    claim: str
    where: str
    printed: str
    value: float | None = None
    step: float | None = None
    relation: Literal["equal", "below", "above"] = "equal"
    readings: list[Reading] = []
    untestable: str = ""
    note: str = ""


class Paper(_Strict):
    """A paper and what it claims.

    Attributes:
        name: As it is typed.
        title, citation, source: Of the paper.
        read: What of it was at hand.
        protocol: What its reader must know: where it is silent or says two things, and what was
            taken here.
        command: Records the runs that its claims are measured by.
        nets: Composed configs of `conf/model`, by name, each with its image size and number of
            outputs.
        systems: By name.
        figures: That several claims use, by name.
        claims: In the paper's order.
    """

    name: str
    title: str
    citation: str
    source: str
    read: str
    protocol: list[str] = []
    command: str
    nets: dict[str, dict[str, Any]] = {}
    systems: dict[str, PaperSystem] = {}
    figures: dict[str, Figure] = {}
    claims: list[Claim]


def parse(plain: Mapping[str, Any]) -> Paper:
    """The claims of a paper, everything that they name checked.

    Args:
        plain: What stands in conf/paper/<paper>.yaml, composed and resolved.

    Raises:
        ConfigError: The message names the key.
    """
    try:
        paper = Paper.model_validate(dict(plain))
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        given = (
            ""
            if isinstance(problem["input"], Mapping | list)
            else f", but got {problem['input']!r}"
        )
        told = problem["msg"].removeprefix("Value error, ")
        raise ConfigError(
            _key(("paper", *problem["loc"])), f"{told[:1].lower()}{told[1:]}{given}"
        ) from None
    _check_names(paper)
    return paper


def _check_names(paper: Paper) -> None:
    known = set(paper.figures)
    for number, claim in enumerate(paper.claims):
        where = f"paper.claims[{number}]"
        if claim.id in known:
            raise ConfigError(
                f"{where}.id", f"{claim.id} is taken: each claim and figure needs a name of its own"
            )
        known.add(claim.id)
        if not claim.readings and not claim.untestable:
            raise ConfigError(where, f"{claim.id} needs readings, or a reason why it is untestable")
    for where, figure in _all_figures(paper):
        _known(figure.counts, COUNTS, f"{where}.count")
        _known([figure.operation or "sum"], OPERATIONS, f"{where}.operation")
        _known(figure.references, known, f"{where}.{'of' if figure.of else 'figure'}")
        _known([figure.net] if figure.net else [], paper.nets, f"{where}.net")
        _known(
            figure.measured.systems if figure.measured else [], paper.systems, f"{where}.measured"
        )


def _all_figures(paper: Paper) -> Iterator[tuple[str, Figure]]:
    for name, figure in paper.figures.items():
        yield f"paper.figures.{name}", figure
    for number, claim in enumerate(paper.claims):
        for place, reading in enumerate(claim.readings):
            yield f"paper.claims[{number}].readings[{place}]", reading


def _known(names: Iterable[str], known: Iterable[str], key: str) -> None:
    choices = sorted(known)
    for name in names:
        if name not in choices:
            close = difflib.get_close_matches(name, choices, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there {_are(choices)}"
            raise ConfigError(key, f"does not know {name!r}; {hint}")


def _are(choices: list[str]) -> str:
    return f"{'are' if len(choices) > 1 else 'is'} {', '.join(choices[:20]) or 'none'}"


def _key(location: Iterable[str | int]) -> str:
    return "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in location
    ).lstrip(".")
