"""Checks the claims of a paper against arithmetic, counts of networks and recorded runs.

conf/paper/<paper>.yaml is a table: what the paper claims, where, the printed value, and how to
compute it: one expression per reading of the claim, see `Figures`.
"""

import ast
import difflib
import functools
import itertools
import json
import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import pydantic
import torch
from annotated_types import Ge, Gt, Le
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import nn

from src.core.cli import ROOT
from src.core.config import check, instantiate, load_settings, resolve
from src.core.environment import git_state
from src.core.errors import ConfigError, UserError
from src.core.files import atomic_folder
from src.core.tables import Table
from src.efficiency.flops import count_flops, count_parameters, size_mb
from src.metrics.bootstrap import DifferentImagesError, intervals
from src.metrics.formatting import is_cost, joined
from src.metrics.paired import paired_difference
from src.tracking import read
from src.tracking.run import Run, masked, recordable, text
from src.tracking.store import Store

# Nodes of an expression: calls of known functions and arithmetic.
ARITHMETIC: tuple[type[ast.AST], ...] = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.Call, ast.keyword, ast.Name, ast.Constant),
    *(ast.operator, ast.unaryop, ast.expr_context),
)
REPRODUCED = "reproduced"
OTHER_READING = "reproduced under another reading"
CONTRADICTED = "contradicted by its own numbers"
NOT_REPRODUCED = "not reproduced"
NOT_TESTABLE = "not testable"
VERDICTS = (REPRODUCED, OTHER_READING, CONTRADICTED, NOT_REPRODUCED, NOT_TESTABLE)
UNDECIDED = "undecided: the interval contains the limit"
SCALES = {"%": 1e-2, "K": 1e3, "thousand": 1e3, "M": 1e6, "million": 1e6, "B": 1e9, "billion": 1e9}
_NUMBER = re.compile(r"([+-]?)(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?\s*(%|[A-Za-z][A-Za-z ]*)?")
LEGEND = (
    "A printed number agrees with a computed one if the computed one, or a value in its range, "
    "would be printed the same way. A printed limit is kept or broken by the whole range; "
    "otherwise it is undecided. Metrics of too few seeds, or of runs that are not the paper's "
    "system, are shown and decide nothing."
)
# parameters in which two seeds of one system may differ, by the start of their names
FREE = tuple(
    f"params.{name}"
    for name in (
        *("seed", "tracking.", "study", "repeats", "threads", "objective.", "test", "dry_run"),
        *("data.root", "data.cache_dir", "data.source.root"),
    )
)


class Strict(pydantic.BaseModel):
    """A part of conf/paper/<paper>.yaml; unknown keys are refused."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class PaperSystem(Strict):
    """A system of the paper, as it is trained here.

    Attributes:
        preset, data, split: Tags of its runs: a choice of conf/experiment, a data set, and
            "grouped" or "image (leaking)".
        fixed: Columns of the table of runs, such as params.model.net.width, and the values that
            make a run the paper's system; ">= 30" stands for any number from 30. Runs with other
            values are shown and decide nothing.
    """

    preset: str
    data: str
    split: str
    fixed: dict[str, Any] = {}

    @pydantic.field_validator("fixed")
    @classmethod
    def _columns(cls, fixed: dict[str, Any]) -> dict[str, Any]:
        for column in fixed:
            if not column.startswith(("params.", "metrics.", "tags.")):
                raise ValueError(f"{column} must start with params., metrics. or tags.")
        return fixed


class Reading(Strict):
    """One way to understand a claim: an expression, and its unit if it is not the printed one."""

    value: str
    unit: str | None = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return value if isinstance(value, Mapping) else {"value": str(value)}


class Claim(Strict):
    """A row of the table.

    Attributes:
        id: Its name; in expressions it is the printed value.
        claim, where: The sentence, and its place in the paper.
        printed: The number as printed, or words.
        value: The number that the words mean.
        step: Value of the last significant digit, if it is not the last printed one.
        relation: Of the true value to the printed one.
        readings: By description, the paper's own reading first.
        beside: Further results that are shown and decide nothing.
        untestable: Why it cannot be tested; empty if it can.
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
    note: str = ""

    @property
    def text(self) -> str:
        """The printed text; for words the number that they mean too."""
        relation = {"equal": "", "below": "less than ", "above": "more than "}[self.relation]
        if self.value is None:
            return f"{relation}{self.printed}"
        return f"{self.printed} ({relation}{self.value:g})"


class Paper(Strict):
    """A paper and its claims.

    Attributes:
        name: As it is typed.
        title, citation, source, read: The paper, and which parts of it were available.
        protocol: Where it is silent or ambiguous, and what was assumed.
        command: Records the runs that measure its claims.
        nets: Composed configs of `conf/model` by name, with image size and number of outputs.
        systems: By name.
        figures: Expressions that several claims use, by name.
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
        value, message = problem["input"], problem["msg"].removeprefix("Value error, ")
        but = "" if isinstance(value, Mapping | list) else f", but got {value!r}"
        parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"])
        key = f"paper{''.join(parts)}"
        raise ConfigError(key, f"{message[:1].lower()}{message[1:]}{but}") from None
    names = set(paper.figures)
    for number, claim in enumerate(paper.claims):
        key = f"paper.claims[{number}]"
        if claim.id in names:
            raise ConfigError(f"{key}.id", f"{claim.id} is taken: claims and figures need a name")
        names.add(claim.id)
        if not claim.readings and not claim.untestable:
            lacks = f"{claim.id} needs readings, or a reason why it is untestable"
            raise ConfigError(key, lacks)
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
    unit: str = ""
    digits: int = 0

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
    """A printed number: digits with or without thousands separators, then a unit.

    Args:
        text: As printed; the unit is one of `SCALES`, any other word, or nothing.
        key: The config key, for the error message.
        step: Value of the last significant digit, if it is not the last printed one; 0: exact.

    Raises:
        ConfigError: `text` is no number.
    """
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        problem = f"must be a number as printed, such as 692K, 96.7% or 0.8284, but got {text!r}"
        raise ConfigError(key, problem)
    sign, whole, decimals, unit = (part or "" for part in match.groups())
    scale, digits = SCALES.get(unit, 1.0), max(0, len(decimals) - 1)
    last = 10.0**-digits if step is None else step
    digits = max(digits, -math.floor(math.log10(last))) if 0 < last < 1 else digits
    value = float(f"{sign}{whole.replace(',', '')}{decimals}") * scale
    return PrintedNumber(text, value, last * scale, unit, digits)


def claimed_number(claim: Claim, key: str) -> PrintedNumber | None:
    """The number that a claim prints or means; None for an untestable claim in words.

    Raises:
        ConfigError: A testable claim in words without a value.
    """
    if claim.value is not None:
        return parse_number(f"{claim.value:g}", key, claim.step)
    if claim.untestable and not _NUMBER.fullmatch(claim.printed.strip()):
        return None
    return parse_number(claim.printed, f"{key}.printed", claim.step)


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

    def __add__(self, other: "Figure | float") -> "Figure":
        return at_corners(operator.add, self, other)

    def __sub__(self, other: "Figure | float") -> "Figure":
        return at_corners(operator.sub, self, other)

    def __rsub__(self, other: float) -> "Figure":
        return at_corners(operator.sub, other, self)

    def __mul__(self, other: "Figure | float") -> "Figure":
        return at_corners(operator.mul, self, other)

    def __truediv__(self, other: "Figure | float") -> "Figure":
        return at_corners(operator.truediv, self, other)

    def __rtruediv__(self, other: float) -> "Figure":
        return at_corners(operator.truediv, other, self)

    __radd__, __rmul__ = __add__, __mul__


def exact(value: float, origin: str = "", how: str = "") -> Figure:
    """A figure without a range."""
    return Figure(value, value, value, frozenset({origin} if origin else ()), how)


def at_corners(function: Callable[..., float], *operands: Figure | float) -> Figure:
    """A function of figures; its range spans its values at every corner of the operands' ranges.

    That is the true range of a function that is monotone in each operand, as those here are.
    """
    figures = [each if isinstance(each, Figure) else exact(each) for each in operands]
    origins = frozenset[str]().union(*(figure.origins for figure in figures))
    problem = "; ".join(dict.fromkeys(figure.problem for figure in figures if figure.problem))
    if any(math.isnan(figure.value) for figure in figures):
        lacks = any(figure.unrecorded for figure in figures)
        return Figure(origins=origins, problem=problem, unrecorded=lacks)
    value = function(*(figure.value for figure in figures))
    corners = itertools.product(*({figure.low, figure.high} for figure in figures))
    values = [value, *(function(*corner) for corner in corners)]
    return Figure(value, min(values), max(values), origins, problem=problem)


def precision(recall: float, specificity: float, prevalence: float) -> float:
    """Precision by Bayes' theorem, in [0, 1]."""
    true, false = recall * prevalence, (1 - specificity) * (1 - prevalence)
    return true / (true + false)


def prevalence(precision: float, recall: float, specificity: float) -> float:
    """The share of positive images at which the three rates are possible, by Bayes' theorem."""
    odds = precision * (1 - specificity) / (recall * (1 - precision))
    return odds / (1 + odds)


def specificity(precision: float, recall: float, positives: float, images: float) -> float:
    """The specificity that precision and recall imply."""
    return 1 - recall * positives * (1 / precision - 1) / (images - positives)


def true_negative_share(precision: float, recall: float, positives: float, images: float) -> float:
    """True negatives divided by all images: a specificity with the wrong denominator."""
    return specificity(precision, recall, positives, images) * (images - positives) / images


def z_of_shares(first: float, second: float, number: float) -> float:
    """Difference of two shares of `number` cases in standard errors, taken as independent.

    Two classifiers on the same cases agree more often, so that the true value is larger.
    """
    pooled = (first + second) / 2
    return (first - second) / math.sqrt(2 * pooled * (1 - pooled) / number)


def z_of_areas(first: float, second: float, positives: float, negatives: float) -> float:
    """Difference of two areas under ROC curves in standard errors, taken as independent.

    Source: Hanley & McNeil, Radiology 143, 1982.
    """

    def variance(area: float) -> float:
        one, two = area / (2 - area), 2 * area**2 / (1 + area)
        pairs = (positives - 1) * (one - area**2) + (negatives - 1) * (two - area**2)
        return (area * (1 - area) + pairs) / (positives * negatives)

    return (first - second) / math.sqrt(variance(first) + variance(second))


def common_denominator(least: float, most: float, *shares: Figure) -> Figure:
    """The smallest integer from `least` to `most` of which all rounded shares are whole parts.

    Raises:
        ValueError: There is none.
    """
    ends = [(share.low, share.high) for share in shares]
    for number in range(math.ceil(least), math.floor(most) + 1):
        if all(math.ceil(a * number - 1e-9) <= math.floor(b * number + 1e-9) for a, b in ends):
            origins = frozenset[str]().union(*(share.origins for share in shares))
            return Figure(number, number, number, origins)
    raise ValueError(f"no number from {least:g} to {most:g} has them all as whole parts")


def rank_from_lowest(first: Figure, *others: Figure) -> Figure:
    """The rank of the first value, 1 for the lowest; ties share the better rank."""
    rank = 1 + sum(other.value < first.value for other in others)
    return Figure(
        rank, rank, rank, frozenset[str]().union(*(each.origins for each in (first, *others)))
    )


NUMERIC: dict[str, Callable[..., float]] = {
    "sqrt": math.sqrt,
    "rounded_up": lambda x: float(math.ceil(round(x, 6))),
    "precision": precision,
    "prevalence": prevalence,
    "specificity": specificity,
    "true_negative_share": true_negative_share,
    "z_of_shares": z_of_shares,
    "z_of_areas": z_of_areas,
}
FUNCTIONS: dict[str, Callable[..., Figure]] = {
    **{name: functools.partial(at_corners, function) for name, function in NUMERIC.items()},
    "common_denominator": common_denominator,
    "rank_from_lowest": rank_from_lowest,
    "rank_from_highest": lambda *values: rank_from_lowest(*(0 - value for value in values)),
}


def _running_statistics(net: nn.Module) -> int:
    """Means and variances of batch normalisation: buffers in torch, parameters in Keras."""
    means = (getattr(module, "running_mean", None) for module in net.modules())
    return sum(2 * mean.numel() for mean in means if mean is not None)


def _convolution_biases(net: nn.Module) -> int:
    """Biases that the convolutions here lack; those of Keras' ResNet50 have them."""
    bare = (m for m in net.modules() if isinstance(m, nn.Conv2d) and m.bias is None)
    return sum(module.out_channels for module in bare)


def _flops(net: nn.Module, image_size: int) -> int:
    """Multiply-adds; they do not depend on the weights, which are all zero here."""
    filled = deepcopy(net).to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*filled.parameters(), *filled.buffers()):
            tensor.zero_()
    return count_flops(filled, image_size).total


QUANTITIES: dict[str, Callable[[nn.Module, int], float]] = {
    "parameters": lambda net, _: count_parameters(net),
    "running_statistics": lambda net, _: _running_statistics(net),
    "convolution_biases": lambda net, _: _convolution_biases(net),
    "flops": _flops,
    "size_mb": lambda net, _: size_mb(net),
}


class Figures:
    """Evaluates the expressions of a paper, each one once.

    An expression is Python arithmetic on numbers, names of figures, ids of claims (their printed
    values), `FUNCTIONS`, and these three: count('net', 'parameters', ...) is the sum of
    `QUANTITIES` of a net; measured('system', 'metric', less='other system') comes from recorded
    runs; published(number, 'source') from another paper.

    Args:
        paper: Its claims.
        measure: Answers measured(...); gets the same arguments.
    """

    def __init__(self, paper: Paper, measure: Callable[[str, str, str], Figure]) -> None:
        self._paper = paper
        self._measure = measure
        self._claims = {claim.id: claim for claim in paper.claims}
        self._done: dict[str, Figure] = {}
        self._open: list[str] = []
        self._net = functools.cache(self._build)
        self._functions: dict[str, Callable[..., Figure]] = {
            **FUNCTIONS,
            "count": self._count,
            "measured": self._measured,
            "published": lambda value, source: exact(value, "published", source),
        }

    def of(self, name: str) -> Figure:
        """A figure, or the printed value of a claim, by its name.

        Raises:
            ConfigError: No such name, it depends on itself, or the claim prints no number.
        """
        if name in self._claims:
            number = claimed_number(self._claims[name], "")
            if number is None:
                raise ConfigError("", f"the claim {name} prints no number: it needs a value")
            low, high = number.value - number.step / 2, number.value + number.step / 2
            origins = frozenset({"printed"})
            return Figure(number.value, low, high, origins, "as printed", text=number.text)
        _refuse_unknown([name], [*self._paper.figures, *self._claims, *self._functions])
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
        if expression not in self._done:
            try:
                self._done[expression] = self._evaluate(expression)
            except ConfigError as error:
                raise error if error.key else ConfigError(key, error.problem) from error
            except (SyntaxError, TypeError, ArithmeticError, ValueError) as error:
                raise ConfigError(key, f"{expression} is not defined ({error})") from error
        return self._done[expression]

    def _evaluate(self, expression: str) -> Figure:
        tree = ast.parse(expression.strip(), "expression", "eval")
        code = compile(tree, "expression", "eval")
        operands = {name: self.of(name) for name in code.co_names if name not in self._functions}
        for node in ast.walk(tree):
            if not isinstance(node, ARITHMETIC):  # attributes and nested scopes could reach more
                raise SyntaxError(f"{type(node).__name__} is not allowed")
        # every name in it is a figure or one of our functions, so that nothing else can be called
        figure = eval(code, {"__builtins__": {}}, {**self._functions, **operands})
        figure = figure if isinstance(figure, Figure) else exact(float(figure))
        if figure.how or math.isnan(figure.value):
            return figure
        texts = {name: str(operand) for name, operand in operands.items()}
        how = re.sub(r"[A-Za-z_]\w*", lambda name: texts.get(name[0], name[0]), expression)
        runs = [each.how for each in operands.values() if each.origins == {"measured"}]
        return replace(figure, how=f"{how} ({'; '.join(runs)})" if runs else how)

    def _measured(self, system: str, metric: str, less: str = "") -> Figure:
        _refuse_unknown([system, *([less] if less else [])], self._paper.systems)
        if less and is_cost(metric):
            problem = f"less takes a metric on the test split, but got {metric}: divide the costs"
            raise ConfigError("", problem)
        return self._measure(system, metric, less)

    def _count(self, name: str, quantity: str, *more: str) -> Figure:
        _refuse_unknown([name], self._paper.nets)
        _refuse_unknown([quantity, *more], QUANTITIES)
        counts = [(each, exact(QUANTITIES[each](*self._net(name)))) for each in (quantity, *more)]
        parts = (f"{count} {each.replace('_', ' ')}" for each, count in counts)
        total = sum(count.value for _, count in counts)
        return exact(total, "counted", f"{' + '.join(parts)} of the net {name}")

    def _build(self, name: str) -> tuple[nn.Module, int]:
        """A net without values, and its image size."""
        key, config = f"paper.nets.{name}.net", dict(self._paper.nets[name].get("net", {}))
        if "weights" in config:
            config["weights"] = "random"  # counts do not depend on them: nothing is downloaded
        check(config, key)
        with torch.device("meta"):  # nor is memory filled, which takes longer than counting
            net = instantiate(OmegaConf.create(config), key)
        return net.eval(), int(config["image_size"])


@dataclass(frozen=True)
class SystemRuns:
    """Runs of a system with equal settings, one per seed.

    Attributes:
        rows: Of the table of runs, by seed; empty if none is recorded.
        problems: Why they decide nothing; empty if they do.
        text: Seeds, weights, commit and study, and which runs were left out.
    """

    rows: list[dict[Any, Any]]
    problems: list[str]
    text: str = ""


def choose_runs(
    runs: pd.DataFrame, system: PaperSystem, studies: Sequence[str] = (), seeds: int = 1
) -> SystemRuns:
    """The finished and tested runs of a system, with equal settings, one per seed.

    Of the runs with the fewest differences from the paper's system: those of the setting with most
    seeds, then the newest; of several runs of a seed the newest.

    Args:
        runs: As `src.tracking.read.runs` gives them, the newest first.
        system: What they must be.
        studies: Only runs of these; empty: of all.
        seeds: Fewer decide nothing.
    """
    tags = {"kind": "run", "preset": system.preset, "data": system.data, "split": system.split}
    tested = [
        row
        for row in runs.to_dict("records")
        if row["status"] == "FINISHED"
        and all(_text(row, f"tags.{tag}") == value for tag, value in tags.items())
        and (not studies or _text(row, "tags.study") in studies)
        and _text(row, "metrics.test/accuracy")
    ]
    if not tested:
        among = f" in {' and '.join(studies)}" if studies else ""
        problem = f"no tested runs of {system.preset} (split {system.split}) are recorded{among}"
        return SystemRuns([], [problem])
    fewest = min(len(_differences(row, system)) for row in tested)
    columns = [name for name in map(str, runs) if name.startswith("params.")]
    columns = [*(name for name in columns if not name.startswith(FREE)), "tags.weights"]
    settings: dict[tuple[str, ...], list[dict[Any, Any]]] = {}
    for row in tested:
        if len(_differences(row, system)) == fewest:
            settings.setdefault(tuple(_text(row, name) for name in columns), []).append(row)
    same = max(settings.values(), key=lambda rows: len({_text(row, "tags.seed") for row in rows}))
    count = Counter(_text(row, "tags.seed") for row in same)
    # the first one is the newest; sorted, so that the same runs give the same bootstrap samples
    by_seed = {_text(row, "tags.seed"): row for row in reversed(same)}
    rows = [by_seed[seed] for seed in sorted(by_seed)]
    differences = ", ".join(_differences(rows[0], system))
    problems = [f"these runs have {differences}"] if differences else []
    problems += [f"{len(rows)} of {seeds} seeds"] if len(rows) < seeds else []
    text = f"{len(rows)} seed{'s' * (len(rows) > 1)} of {system.preset}, split {system.split}"
    for name in ("weights", "git_commit", "study"):
        values = " and ".join(filter(None, dict.fromkeys(_fact(row, name) for row in rows)))
        text += f", {name.removeprefix('git_')} {values}" if values else ""
    again = ", ".join(sorted(seed for seed, number in count.items() if number > 1))
    text += f"; seed {again} trained more than once, the newest taken" if again else ""
    others = len(tested) - len(same)
    text += f"; runs with other settings left out: {others}" if others else ""
    return SystemRuns(rows, problems, text)


def _fact(row: Mapping[Any, Any], tag: str) -> str:
    """A tag; a commit is shortened, and marked if the tree had changes."""
    dirty = tag == "git_commit" and _text(row, "tags.git_dirty").lower() == "true"
    value = _text(row, f"tags.{tag}")
    return (value[:7] if tag == "git_commit" else value) + " with changes" * dirty


def _differences(row: Mapping[Any, Any], system: PaperSystem) -> list[str]:
    """Where a run differs from the paper's system, in words."""
    differences = []
    for column, expected in system.fixed.items():
        value, name = _text(row, column), column.partition(".")[2]
        if not _equals(value, expected):
            differences.append(
                f"{name} {value} instead of {text(expected)}" if value else f"no {name}"
            )
    return differences


def _equals(recorded: str, expected: object) -> bool:
    """Whether a recorded text is the expected value: 1.0 is 1, a missing one is null."""
    try:
        value = json.loads(recorded or "null")
    except json.JSONDecodeError:
        value = recorded
    if isinstance(expected, str) and expected.startswith(">= "):
        return isinstance(value, int | float) and value >= float(expected[3:])
    return bool(value == expected) and isinstance(value, bool) == isinstance(expected, bool)


def _text(row: Mapping[Any, Any], column: str) -> str:
    """A value as text, empty where it is missing."""
    value = row.get(column)
    return "" if value is None or value != value else str(value)


class RecordedRuns:
    """Recorded runs as figures.

    Args:
        runs: All runs of the store, as `src.tracking.read.runs` gives them; empty without a store.
        store: Holds their predictions; None without a store.
        paper: Its systems.
        settings: Studies, number of seeds, and the bootstrap.
    """

    def __init__(
        self, runs: pd.DataFrame, store: Store | None, paper: Paper, settings: "ClaimsSettings"
    ) -> None:
        self._settings = settings
        self._store = store
        limits = (settings.studies, settings.seeds)
        self._of = functools.cache(lambda name: choose_runs(runs, paper.systems[name], *limits))
        self._predictions = functools.cache(self._read)

    def measure(self, system: str, metric: str, less: str = "") -> Figure:
        """The mean of a metric over the seeds of a system, with its range, or why there is none.

        Args:
            system: By its name in the paper.
            metric: On the test split without the split's name, with a bootstrap interval by group
                and seed; or a cost, such as efficiency/latency_ms/b1/p50, with its extremes.
            less: A system whose metric on the same images is subtracted; the interval is paired.
        """
        chosen = [self._of(name) for name in (system, less) if name]
        problem = "; ".join(dict.fromkeys(text for each in chosen for text in each.problems))
        measured = frozenset({"measured"})
        if not all(each.rows for each in chosen):
            return Figure(origins=measured, problem=problem, unrecorded=True)
        try:
            figure = self._measure(system, metric, less)
        except DifferentImagesError as error:
            what = "the two systems or their seeds" if less else "its seeds"
            problem = f"{what} were tested on different images ({error})"
            return Figure(origins=measured, problem=problem)
        except UserError as error:
            return Figure(origins=measured, problem=str(error))
        how = "; ".join([figure.how, *(each.text for each in chosen)])
        return replace(
            figure, origins=measured, how=how, problem=problem, text=f"{figure.value:.4g}"
        )

    def _measure(self, system: str, metric: str, less: str) -> Figure:
        if is_cost(metric):
            texts = (_text(row, f"metrics.{metric}") for row in self._of(system).rows)
            values = [float(text) for text in texts if text]
            if not values:
                raise UserError(f"its runs have no {metric}")
            mean, how = sum(values) / len(values), f"{metric}, least to largest"
            return Figure(mean, min(values), max(values), how=how)
        settings, frames = self._settings, self._predictions(system)
        bootstrap = (settings.samples, settings.seed, settings.level)
        kind = f"{settings.level:.0%} interval by group and seed"
        if less:
            value, low, high, _ = paired_difference(
                frames, self._predictions(less), metric, *bootstrap, (system, less)
            )
            how = f"{metric}, {system} less {less} on the same images, paired {kind}"
            return Figure(value, low, high, how=how)
        row = intervals(frames, [metric], *bootstrap).iloc[0]
        sizes = f"{row['images']:,} images of {row['groups']:,} lesions or patients"
        return Figure(row["estimate"], row["low"], row["high"], how=f"{metric} on {sizes}, {kind}")

    def _read(self, system: str) -> list[pd.DataFrame]:
        assert self._store is not None
        return [
            read.predictions(self._store, row["run_id"], "test") for row in self._of(system).rows
        ]


def agrees(figure: Figure, number: PrintedNumber, relation: str) -> bool | None:
    """Whether a figure is as the claim says; None without a figure, and if it is undecided.

    equal: a value in its range would be printed the same way. below, above: the whole range keeps
    the limit, or all of it breaks the limit.
    """
    if math.isnan(figure.value):
        return None
    if relation == "equal":
        exact_value = math.isnan(figure.low)  # no interval
        low, high = (figure.value,) * 2 if exact_value else (figure.low, figure.high)
        return number.admits(low, high)
    if relation == "below":
        kept, broken = figure.high < number.value, figure.low >= number.value
    else:
        kept, broken = figure.low > number.value, figure.high <= number.value
    return kept if kept or broken else None


def decide(readings: Sequence[Mapping[str, Any]]) -> tuple[str, int | None]:
    """The verdict on a testable claim, and the position of the reading that it rests on.

    The first reading that agrees reproduces the claim. If none does, arithmetic on printed numbers
    alone contradicts it; otherwise it is not reproduced if the paper's own reading, the first one,
    could be tested.

    Args:
        readings: Rows of `PaperAudit.readings`, the paper's own reading first.
    """
    own = [place for place, row in enumerate(readings) if not row["beside"]]
    deciding = [place for place in own if readings[place]["decides"]]
    for place in deciding:
        if readings[place]["agrees"]:
            return (REPRODUCED if place == own[0] else OTHER_READING), place
    for place in deciding:
        if readings[place]["from"] == "printed":
            return CONTRADICTED, place
    if deciding and deciding[0] == own[0]:
        return NOT_REPRODUCED, own[0]
    return NOT_TESTABLE, own[0] if own else None


@dataclass(frozen=True)
class PaperAudit:
    """The result.

    Attributes:
        paper: Its claims.
        claims: One row per claim, in the paper's order: id, claim, where, printed, here (the figure
            that the verdict rests on, in the printed unit, with its range), verdict, reading,
            reason, problems (why it is not testable), unrecorded (whether runs are missing), note,
            and as numbers printed_value, value, low, high.
        readings: One row per reading: id, reading, beside, here, agrees, decides, how, problem,
            from (origins), unrecorded, value, low, high.
    """

    paper: Paper
    claims: pd.DataFrame
    readings: pd.DataFrame

    @property
    def counts(self) -> dict[str, int]:
        """Number of claims by verdict, zeros included."""
        count = Counter(self.claims["verdict"])
        return {name: count[name] for name in VERDICTS}

    def __str__(self) -> str:
        return ", ".join(f"{number} {name}" for name, number in self.counts.items())


def check_claims(paper: Paper, measure: Callable[[str, str, str], Figure]) -> PaperAudit:
    """Check every claim of a paper; nothing is trained.

    Args:
        paper: Its claims.
        measure: Answers measured(system, metric, less), see `RecordedRuns.measure`.

    Raises:
        ConfigError: A claim that cannot be evaluated; the message names its key.
    """
    figures, claims, readings = Figures(paper, measure), [], []
    for place, claim in enumerate(paper.claims):
        key = f"paper.claims[{place}]"
        number = claimed_number(claim, key)
        rows = [
            _check_reading(claim, number, name, reading, figure, kind == "beside")
            for kind in ("readings", "beside")
            for name, reading in getattr(claim, kind).items()
            if (figure := figures.evaluate(reading.value, f"{key}.{kind}.{name}"))
        ]
        readings += rows
        claims.append(_check_claim(claim, number, rows))
    return PaperAudit(paper, pd.DataFrame(claims), pd.DataFrame(readings))


def _check_reading(
    claim: Claim,
    number: PrintedNumber | None,
    name: str,
    reading: Reading,
    figure: Figure,
    beside: bool,
) -> dict[str, Any]:
    agreed, problem = None, figure.problem
    if number is not None and not (beside and reading.unit is not None):
        agreed = agrees(figure, number, claim.relation)
        undecided = agreed is None and not math.isnan(figure.value)
        problem = problem or (UNDECIDED if undecided else "")
    values = (figure.value, figure.low, figure.high)
    if number is not None and reading.unit is None:
        here, low, high = map(number.like, values)
    else:
        here, low, high = (f"{value:,.4g} {reading.unit or ''}".strip() for value in values)
    if math.isnan(figure.value):
        here = "-"
    elif low != high and not math.isnan(figure.low):
        here = f"{here} ({low} to {high})"
    row: dict[str, Any] = {"id": claim.id, "reading": name, "beside": beside, "here": here}
    row |= {"agrees": agreed, "decides": not (beside or problem or agreed is None)}
    row |= {"how": figure.how, "problem": problem, "from": " and ".join(sorted(figure.origins))}
    row |= dict(zip(("value", "low", "high"), values, strict=True))
    return row | {"unrecorded": figure.unrecorded and not beside}


def _check_claim(
    claim: Claim, number: PrintedNumber | None, readings: list[dict[str, Any]]
) -> dict[str, Any]:
    verdict, place = (NOT_TESTABLE, None) if claim.untestable else decide(readings)
    row = {} if place is None else readings[place]
    problems = [claim.untestable] if claim.untestable else []
    if verdict == NOT_TESTABLE and not claim.untestable:
        problems = list(dict.fromkeys(r["problem"] for r in readings if not r["beside"]))
    if verdict == NOT_TESTABLE:
        figures = (f"{r['reading']} {r['here']}" for r in readings if r["here"] != "-")
        beside = "; ".join(figures)
        reason = "; ".join(problems) + (f"; beside it: {beside}" if beside else "")
    else:
        published = row["from"] == "published"
        how = f"{row['here']}, {row['how']}" if published else f"{row['how']} = {row['here']}"
        reason = f"{row['reading']}: {how}"
        reason += f", printed {claim.text}" * (verdict in (CONTRADICTED, NOT_REPRODUCED))
    checked: dict[str, Any] = {"id": claim.id, "claim": claim.claim, "where": claim.where}
    checked |= {"printed": claim.text, "here": row.get("here", "-"), "verdict": verdict}
    checked |= {"reading": row.get("reading", ""), "reason": reason, "note": claim.note}
    checked |= {"problems": problems, "unrecorded": any(r["unrecorded"] for r in readings)}
    checked["printed_value"] = None if number is None else number.value
    return checked | {name: row.get(name) for name in ("value", "low", "high")}


def write_audit(audit: PaperAudit, folder: Path, made: str) -> None:
    """Write audit.md, claims.csv and readings.csv: all of the folder, or nothing.

    Args:
        audit: The result.
        folder: Its former content is deleted.
        made: When, with which commit, and from which store; a line.

    Raises:
        UserError: The folder cannot be written.
    """
    paper = audit.paper
    columns = ["id", "claim", "where", "printed", "here", "verdict", "reason", "note"]
    tables = [Table(audit.claims[columns], "Claims")]
    if len(audit.readings):
        columns = ["id", "reading", "here", "agrees", "decides", "how", "problem"]
        tables.append(Table(audit.readings[columns], "Readings"))
    parts = [f"# Audit: {paper.title}", f"{paper.citation} {paper.source}", f"Read: {paper.read}"]
    parts += [made, f"**{len(audit.claims)} claims: {audit}.**", LEGEND, "## Protocol"]
    parts.append("\n".join(f"- {note}" for note in paper.protocol))
    parts += [table.to_markdown() for table in tables]
    with atomic_folder(folder, "the audit") as draft:
        (draft / "audit.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
        Table(audit.claims).to_csv(draft / "claims.csv")
        Table(audit.readings).to_csv(draft / "readings.csv")


def _refuse_unknown(names: Iterable[str], choices: Iterable[str]) -> None:
    known = sorted(choices)
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            listed = f"there {'are' if len(known) > 1 else 'is'} {', '.join(known[:20]) or 'none'}"
            hint = f"did you mean {close[0]}?" if close else listed
            raise ConfigError("", f"does not know {name!r}; {hint}")


@dataclass
class ClaimsSettings:
    """The values of conf/audit.yaml, which says what each means."""

    study: str | list[str] | None = None
    seeds: Annotated[int, Ge(1)] = 3
    samples: Annotated[int, Ge(200)] = 2000
    level: Annotated[float, Gt(0.5), Le(0.999)] = 0.95
    seed: Annotated[int, Ge(0)] = 0
    folder: str = "reports"
    publish: bool = True

    @property
    def studies(self) -> list[str]:
        """Names of the studies whose runs count; empty: all runs count."""
        names = [self.study] if isinstance(self.study, str) else list(self.study or [])
        return list(dict.fromkeys(names))


def audit_paper(config: DictConfig) -> PaperAudit:
    """Check the paper that a composed `conf/audit.yaml` names; write, record and print the result.

    Raises:
        UserError: Bad input; the message names the culprit.
    """
    settings = load_settings(config, ClaimsSettings, without=("tracking", "paper"))
    check(resolve(config.tracking), "tracking")
    paper = parse_paper(resolve(config.paper))
    store: Store = instantiate(config.tracking, "tracking")
    missing = store.database is not None and not store.database.exists()
    runs = pd.DataFrame() if missing else read.cached_runs(store.open(create=False))
    audit = check_claims(paper, RecordedRuns(runs, store, paper, settings).measure)
    folder = Path(settings.folder) / recordable(f"audit_{paper.name}").replace("/", "_")
    commit, dirty = git_state(ROOT)
    now, changes = datetime.now(UTC).strftime("%Y-%m-%d %H:%M"), " with changes" if dirty else ""
    made = (
        f"Made {now} UTC at commit {commit or 'unknown'}{changes}; runs from {masked(store.uri)}."
    )
    write_audit(audit, folder, made)
    if settings.publish:
        tags: dict[str, object] = {"kind": "audit", "paper": paper.name}
        tags |= {"git_commit": commit or "unknown", "git_dirty": dirty}
        with Run.start(store, f"audit {paper.name}", tags, {"audit": asdict(settings)}) as run:
            run.artifact(folder, "audit")
            counts = audit.counts.items()
            run.log({f"audit/{name.replace(' ', '_')}": float(n) for name, n in counts})
    print_audit(audit, folder)
    return audit


def print_audit(audit: PaperAudit, folder: Path) -> None:
    """Print the verdicts, the contradictions and what cannot be tested, 100 columns wide."""
    console, claims = Console(width=100), audit.claims
    shown = claims[["id", "printed", "here"]].assign(
        verdict=[
            f"{verdict} ({reading})" if verdict in VERDICTS[1:4] else verdict
            for verdict, reading in zip(claims["verdict"], claims["reading"], strict=True)
        ]
    )
    contradicted = claims["verdict"] == CONTRADICTED
    bold = frozenset(claims.index[contradicted])
    console.print(Table(shown, f"{audit.paper.name}: claims", bold=bold).to_rich())
    console.print(str(audit), highlight=False)
    rows = claims[contradicted]
    lines = [f"! {name}: {reason}" for name, reason in zip(rows["id"], rows["reason"], strict=True)]
    untested = claims.explode("problems").dropna(subset="problems")
    for problem, ids in untested.groupby("problems", sort=False)["id"]:
        lines.append(f"- not testable: {joined(list(ids))}: {problem}")
    if claims["unrecorded"].any():
        lines.append(f"record the missing runs: {audit.paper.command}")
    for line in [*lines, f"look: {folder / 'audit.md'}"]:
        wrap = line.startswith(("record", "look"))
        console.print(line, markup=False, highlight=False, soft_wrap=wrap)
