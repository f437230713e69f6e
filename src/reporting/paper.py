"""A paper's claims as data, and the figures that their expressions stand for.

conf/paper/<paper>.yaml is a table: what the paper claims, where, the printed value, and how to
compute it: one expression per reading of the claim, see `Figures`.
"""

import ast
import functools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
import torch
from omegaconf import OmegaConf
from torch import nn

from src.core.config import check, instantiate
from src.core.errors import ConfigError, closest
from src.efficiency.flops import QUANTITIES
from src.metrics.formatting import is_cost

# Nodes of an expression: calls of known functions and arithmetic.
ARITHMETIC: tuple[type[ast.AST], ...] = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.Call, ast.keyword, ast.Name, ast.Constant),
    *(ast.operator, ast.unaryop, ast.expr_context),
)
MOST_RANGES = 12  # in one expression: it is evaluated at 3 to the power of so many points
SCALES = {"%": 1e-2, "K": 1e3, "thousand": 1e3, "M": 1e6, "million": 1e6, "B": 1e9, "billion": 1e9}
_NUMBER = re.compile(r"([+-]?)(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?\s*(%|[A-Za-z][A-Za-z ]*)?")


class _Strict(pydantic.BaseModel):
    """A part of conf/paper/<paper>.yaml; unknown keys are refused."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class PaperSystem(_Strict):
    """A system of the paper, as it is trained here.

    Attributes:
        preset, data, split: Tags of its runs: a choice of conf/experiment, a data set, and
            "grouped" or "image (leaking)".
        compression: The same of its compressed runs, which have no preset; "": not compressed.
        seeds: Fewest that decide, if it is not that of the command: 1 for costs.
        fixed: Columns of the table of runs, such as params.model.net.width, and the values that
            make a run the paper's system; ">= 30" stands for any number from 30. Runs with other
            values are shown and decide nothing.
    """

    preset: str
    data: str
    split: str
    compression: str = ""
    seeds: int | None = None
    fixed: dict[Annotated[str, pydantic.Field(pattern=r"^(params|metrics|tags)\.")], Any] = {}


class Reading(_Strict):
    """One way to understand a claim: an expression, and its unit if it is not the printed one."""

    value: str
    unit: str | None = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return value if isinstance(value, Mapping) else {"value": str(value)}


class Claim(_Strict):
    """A row of the table.

    Attributes:
        id: Its name; in expressions it is the printed value.
        claim, where: The sentence, and its position in the paper.
        printed: The number as printed, or words.
        value: The number that the words mean.
        step: Value of the last significant digit, if it is not the last printed one.
        relation: Of the true value to the printed one.
        readings: By description, the paper's own reading first.
        beside: Further results that are shown and decide nothing.
        untestable: Why it cannot be tested; empty if it can.
        asks: Of a question or a check that the paper leaves to others, such as "open question 1":
            it is answered by the figures of its readings.
        command: Records what the readings need, if it is not the paper's command.
        note: A remark for the reader.
    """

    id: str
    claim: str
    where: str
    printed: str
    value: float | None = None
    step: float | None = None
    relation: Literal["equal", "below", "above"] = "equal"
    readings: dict[str, Reading] = {}
    beside: dict[str, Reading] = {}
    untestable: str = ""
    asks: str = ""
    command: str = ""
    note: str = ""

    @property
    def text(self) -> str:
        """The printed text; for words the number that they mean too."""
        relation = {"equal": "", "below": "less than ", "above": "more than "}[self.relation]
        if self.value is None:
            return f"{relation}{self.printed}"
        return f"{self.printed} ({relation}{self.value:g})"

    def number(self, key: str = "") -> "PrintedNumber | None":
        """The number that it prints or means; None if it needs none and is in words.

        Raises:
            ConfigError: It is testable, in words, and has no value; the message names the `key`.
        """
        if self.value is not None:
            return parse_number(f"{self.value:g}", key, self.step)
        if (self.untestable or self.asks) and not _NUMBER.fullmatch(self.printed.strip()):
            return None
        return parse_number(self.printed, f"{key}.printed", self.step)


class Paper(_Strict):
    """A paper and its claims; systems, and figures that several claims use, have names.

    Attributes:
        source, read: Where it is, and which parts of it were available.
        protocol: Where it is silent or ambiguous, and what was assumed.
        command: Records the runs that measure its claims.
        nets: Composed configs of `conf/model` by name, with image size and number of outputs.
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
    figures: dict[str, str | float] = {}
    claims: list[Claim]


def parse_paper(plain: Mapping[str, Any]) -> Paper:
    """The paper in a composed and resolved conf/paper/<paper>.yaml.

    Raises:
        ConfigError: The message names the key.
    """
    try:
        paper = Paper.model_validate(dict(plain))
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        value, message = problem["input"], problem["msg"]
        message += "" if isinstance(value, Mapping | list) else f", but got {value!r}"
        parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"])
        raise ConfigError(f"paper{''.join(parts)}", message[:1].lower() + message[1:]) from None
    names = set(paper.figures)
    for number, claim in enumerate(paper.claims):
        key = f"paper.claims[{number}]"
        if claim.id in names:
            raise ConfigError(f"{key}.id", f"{claim.id} is taken: claims and figures need a name")
        names.add(claim.id)
        if not claim.readings and not claim.untestable:
            raise ConfigError(key, f"{claim.id} needs readings, or a reason why it is untestable")
    return paper


@dataclass(frozen=True)
class PrintedNumber:
    """A number in a paper.

    Attributes:
        text: As printed: "692K", "13,216.76%", "0.8284", "14.4 seconds".
        value: Its value; a percentage as a fraction, "692K" as 692,000.
        step: Value of one unit of the last significant digit; 0: the number is exact.
        unit: The text behind the digits, such as "%", "K" or "seconds".
        digits: Printed decimals.
    """

    text: str
    value: float
    step: float
    unit: str
    digits: int

    def admits(self, low: float, high: float) -> bool:
        """Whether a value from `low` to `high` rounds to this number; halves round either way."""
        # binary fractions differ from the printed decimal ones
        half = self.step / 2 + 1e-14 * abs(self.value) + 1e-9 * self.step
        return low <= self.value + half and high >= self.value - half

    def like(self, value: float) -> str:
        """`value` with this unit and precision; more digits where it would look the same."""
        scale = SCALES.get(self.unit, 1.0)
        if math.isnan(value):
            return "-"
        if value == self.value or (scale > 1 and value == round(value)):
            return self.text if value == self.value else f"{value:,.0f}"
        text, fewest = "", max(self.digits, int(self.unit == "%"))
        for digits in range(fewest, max(fewest, self.digits + 6) + 1):
            text = f"{value / scale:,.{digits}f}"
            # rounding may not change a value by more than 5%
            close = abs(float(text.replace(",", "")) * scale - value) <= 0.05 * abs(value)
            same = text == f"{self.value / scale:,.{digits}f}"
            if self.admits(value, value) or (close and not same):
                break
        return f"{text}{' ' if len(self.unit) > 1 else ''}{self.unit}"


def parse_number(text: str, key: str = "printed", step: float | None = None) -> PrintedNumber:
    """A printed number: digits with or without thousands separators, then a unit or nothing.

    Args:
        text: As printed.
        key: The config key, for the error message.
        step: Value of the last significant digit, if it is not the last printed one; 0: exact.

    Raises:
        ConfigError: `text` is no number.
    """
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        problem = f"must be a number as printed, such as 692K, 96.7% or 0.8284, but got {text!r}"
        raise ConfigError(key, problem)
    sign, integer, decimals, unit = (part or "" for part in match.groups())
    scale, digits = SCALES.get(unit, 1.0), max(0, len(decimals) - 1)
    last = 10.0**-digits if step is None else step
    digits = max(digits, -math.floor(math.log10(last))) if 0 < last < 1 else digits
    value = float(f"{sign}{integer.replace(',', '')}{decimals}") * scale
    return PrintedNumber(text, value, last * scale, unit, digits)


@dataclass(frozen=True)
class Figure:
    """The result of an expression.

    Attributes:
        value: NaN if there is none.
        low, high: Its range: of rounding for printed numbers and what is computed from them, the
            confidence interval of a metric, the extremes of a cost.
        origins: Of "printed", "counted", "published" and "measured"; none for plain numbers.
        how: How it was obtained.
        problem: Why it decides nothing; empty if it does.
        unrecorded: Whether it is missing because no run is recorded.
        text: How it is written in arithmetic, if not by its value.
    """

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    origins: frozenset[str] = frozenset()
    how: str = ""
    problem: str = ""
    unrecorded: bool = False
    text: str = ""

    def __str__(self) -> str:
        if self.text or math.isnan(self.value):
            return self.text or "-"
        return f"{self.value:,.0f}" if self.value == round(self.value) else f"{self.value:,.5g}"


def _exact(value: float, origin: str, how: str) -> Figure:
    return Figure(value, value, value, frozenset({origin}), how)


Measure = Callable[..., Figure]  # (system, metric, less) -> figure, see `recorded_runs`


# Functions of expressions. An operand is a number, or an array of its value and, if there is a
# range, its low and high end.


def precision(recall: Any, specificity: Any, prevalence: Any) -> Any:
    """Precision by Bayes' theorem, in [0, 1]."""
    true, false = recall * prevalence, (1 - specificity) * (1 - prevalence)
    return true / (true + false)


def prevalence(precision: Any, recall: Any, specificity: Any) -> Any:
    """The share of positive images at which the three rates are possible, by Bayes' theorem."""
    odds = precision * (1 - specificity) / (recall * (1 - precision))
    return odds / (1 + odds)


def specificity(precision: Any, recall: Any, positives: Any, images: Any) -> Any:
    """The specificity that precision and recall imply."""
    return 1 - recall * positives * (1 / precision - 1) / (images - positives)


def z_of_shares(first: Any, second: Any, number: Any) -> Any:
    """Difference of two shares of `number` cases in standard errors, taken as independent.

    Two classifiers on the same cases agree more often, so that the true value is larger.
    """
    pooled = (first + second) / 2
    return (first - second) / np.sqrt(2 * pooled * (1 - pooled) / number)


def z_of_areas(first: Any, second: Any, positives: Any, negatives: Any) -> Any:
    """Difference of two areas under ROC curves in standard errors, taken as independent.

    Source: Hanley & McNeil, Radiology 143, 1982.
    """

    def variance(area: Any) -> Any:
        q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)  # as in the source
        pairs = (positives - 1) * (q1 - area**2) + (negatives - 1) * (q2 - area**2)
        return (area * (1 - area) + pairs) / (positives * negatives)

    return (first - second) / np.sqrt(variance(first) + variance(second))


def common_denominator(least: float, most: float, *shares: np.ndarray) -> int:
    """The smallest integer from `least` to `most` of which all rounded shares are whole parts.

    Raises:
        ValueError: There is none.
    """
    ends = [(share.min(), share.max()) for share in shares]
    for number in range(math.ceil(least), math.floor(most) + 1):
        if all(math.ceil(a * number - 1e-9) <= math.floor(b * number + 1e-9) for a, b in ends):
            return number
    raise ValueError(f"no number from {least:g} to {most:g} has them all as whole parts")


def rank_from_lowest(first: np.ndarray, *others: np.ndarray) -> int:
    """The rank of the first value, 1 for the lowest; ties share the better rank."""
    return 1 + sum(bool(other.flat[0] < first.flat[0]) for other in others)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sqrt": np.sqrt,
    "rounded_up": lambda value: np.ceil(np.round(value, 6)),
    "precision": precision,
    "prevalence": prevalence,
    "specificity": specificity,
    "z_of_shares": z_of_shares,
    "z_of_areas": z_of_areas,
    "common_denominator": common_denominator,
    "rank_from_lowest": rank_from_lowest,
    "rank_from_highest": lambda *values: rank_from_lowest(*(-value for value in values)),
}


@functools.cache
def _build(config: str, key: str) -> tuple[nn.Module, int]:
    """A net without values from its config as JSON, and its image size."""
    values = json.loads(config)
    if "weights" in values:
        values["weights"] = "random"  # counts do not depend on them: nothing is downloaded
    check(values, key)
    with torch.device("meta"):  # nor is memory filled, which takes longer than counting
        net = instantiate(OmegaConf.create(values), key)
    return net.eval(), int(values["image_size"])


class Figures:
    """Evaluates the expressions of a paper, each one once.

    An expression is Python arithmetic on numbers, names of figures, ids of claims (their printed
    values), `FUNCTIONS`, and these three: count('net', 'parameters', ...) is the sum of
    `QUANTITIES` of a net; measured('system', 'metric', less='other system') comes from recorded
    runs; published(number, 'source') from another paper. The range of an expression spans its
    values at all combinations of its operands' ends: the true range if it is monotone in each.
    """

    def __init__(self, paper: Paper, measure: Measure) -> None:
        self._paper, self._measure = paper, measure
        self._claims = {claim.id: claim for claim in paper.claims}
        self._results: dict[str, Figure] = {}
        self._open: list[str] = []
        self._sources: dict[str, Callable[..., Figure]] = {
            "count": self._count,
            "measured": self._measured,
            "published": lambda value, source: _exact(value, "published", source),
        }

    def _of(self, name: str) -> Figure:
        """A figure, or the printed value of a claim."""
        if name in self._claims:
            number = self._claims[name].number()
            if number is None:
                raise ConfigError("", f"the claim {name} prints no number: it needs a value")
            low, high = number.value - number.step / 2, number.value + number.step / 2
            origins = frozenset({"printed"})
            return Figure(number.value, low, high, origins, "as printed", text=number.text)
        names = [*self._paper.figures, *self._claims, *FUNCTIONS, *self._sources]
        _refuse_unknown([name], names)
        key = f"paper.figures.{name}"
        if name in self._open:
            raise ConfigError(key, f"depends on itself: {' -> '.join([*self._open, name])}")
        self._open.append(name)
        figure = self.evaluate(str(self._paper.figures[name]), key)
        self._open.pop()
        return figure

    def evaluate(self, expression: str, key: str) -> Figure:
        """The figure of an expression.

        Raises:
            ConfigError: It cannot be evaluated; the message names `key`, or that of a figure in it.
        """
        if expression not in self._results:
            try:
                with np.errstate(divide="raise", invalid="raise", over="raise"):
                    self._results[expression] = self._evaluate(expression)
            except ConfigError as error:
                raise error if error.key else ConfigError(key, error.problem) from error
            except (SyntaxError, TypeError, ArithmeticError, ValueError) as error:
                raise ConfigError(key, f"{expression} is not defined ({error})") from error
        return self._results[expression]

    def _evaluate(self, expression: str) -> Figure:
        tree = ast.parse(expression.strip(), "expression", "eval")
        code = compile(tree, "expression", "eval")
        functions = FUNCTIONS.keys() | self._sources.keys()
        named = {name: self._of(name) for name in code.co_names if name not in functions}
        for node in ast.walk(tree):
            if not isinstance(node, ARITHMETIC):  # attributes and nested scopes could reach more
                raise SyntaxError(f"{type(node).__name__} is not allowed")
        is_arithmetic = any(isinstance(node, ast.BinOp) for node in ast.walk(tree))
        operands: list[tuple[Figure, np.ndarray]] = []

        def operand(figure: Figure) -> np.ndarray:
            """Its value and ends along an axis of its own: arithmetic combines all of them."""
            ends = np.array([figure.value, figure.low, figure.high])
            ranges = sum(values.size > 1 for _, values in operands)
            if figure.low == figure.high:
                ends = ends[:1]
            elif is_arithmetic and ranges == MOST_RANGES:
                raise ValueError(f"over {ranges} numbers have a range: name a part as a figure")
            operands.append((figure, ends.reshape(-1, *[1] * ranges)))
            return operands[-1][1]

        scope: dict[str, Any] = {name: operand(figure) for name, figure in named.items()}
        scope |= FUNCTIONS
        for name, call in self._sources.items():
            scope[name] = lambda *args, call=call, **options: operand(call(*args, **options))
        # every name in it is a figure or one of our functions, so that nothing else can be called
        result = eval(code, {"__builtins__": {}}, scope)
        for figure, values in operands:
            if result is values:
                return figure
        figures = [figure for figure, _ in operands]
        origins = frozenset[str]().union(*(figure.origins for figure in figures))
        problem = "; ".join(dict.fromkeys(figure.problem for figure in figures if figure.problem))
        if any(math.isnan(figure.value) for figure in figures):
            lacks = any(figure.unrecorded for figure in figures)
            return Figure(origins=origins, problem=problem, unrecorded=lacks)
        values = np.asarray(result, dtype=float)
        ends = float(values.flat[0]), float(values.min()), float(values.max())
        texts = {name: str(figure) for name, figure in named.items()}
        how = re.sub(r"[A-Za-z_]\w*", lambda name: texts.get(name[0], name[0]), expression)
        runs = [figure.how for figure in named.values() if figure.origins == {"measured"}]
        return Figure(*ends, origins, f"{how} ({'; '.join(runs)})" if runs else how, problem)

    def _measured(self, system: str, metric: str, less: str = "") -> Figure:
        _refuse_unknown([system, *([less] if less else [])], self._paper.systems)
        if less and (is_cost(metric) or "*" in metric):
            raise ConfigError("", f"less takes a metric on the test split: divide costs ({metric})")
        return self._measure(system, metric, less)

    def _count(self, name: str, quantity: str, *more: str) -> Figure:
        _refuse_unknown([name], self._paper.nets)
        _refuse_unknown([quantity, *more], QUANTITIES)
        net = _build(json.dumps(self._paper.nets[name].get("net", {})), f"paper.nets.{name}.net")
        counts = [(title, QUANTITIES[title](*net)) for title in (quantity, *more)]
        parts = " + ".join(f"{Figure(count)} {title.replace('_', ' ')}" for title, count in counts)
        return _exact(sum(count for _, count in counts), "counted", f"{parts} of the net {name}")


def _refuse_unknown(names: Iterable[str], choices: Iterable[str]) -> None:
    choices = sorted(choices)
    for name in names:
        if name not in choices:
            verb = "are" if len(choices) > 1 else "is"
            listed = f"; there {verb} {', '.join(choices[:20]) or 'none'}"
            raise ConfigError("", f"does not know {name!r}{closest(name, choices) or listed}")
