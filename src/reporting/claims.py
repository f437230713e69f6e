"""Checks the claims of a paper against arithmetic, counts of networks and recorded runs.

conf/paper/<paper>.yaml is a table: what the paper claims, where, the printed value, and how to
compute it: one expression per reading of the claim, see `Figures`.
"""

import ast
import functools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import pydantic
import torch
from annotated_types import Ge, Gt, Le
from omegaconf import DictConfig, OmegaConf
from torch import nn

from src.core.cli import ROOT, console, say
from src.core.config import check, instantiate, load_settings, resolve
from src.core.environment import git_state
from src.core.errors import ConfigError, UserError, closest, masked
from src.core.files import atomic_folder
from src.core.tables import Table
from src.efficiency import flops
from src.metrics import bootstrap, formatting
from src.metrics.paired import paired_difference
from src.tracking import read
from src.tracking.run import Run, recordable, text
from src.tracking.store import Store

# Nodes of an expression: calls of known functions and arithmetic.
ARITHMETIC: tuple[type[ast.AST], ...] = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.Call, ast.keyword, ast.Name, ast.Constant),
    *(ast.operator, ast.unaryop, ast.expr_context),
)
MOST_RANGES = 12  # in one expression: it is evaluated at 3 to the power of so many points
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
# Starts of the names of parameters in which two seeds of one system may differ.
FREE = ["seed", "tracking.", "study", "repeats", "threads", "objective.", "test", "dry_run"]
FREE += ["data.root", "data.cache_dir", "data.source.root"]
_TAGS = ["tags.weights", "tags.git_commit", "tags.git_dirty", "tags.study", "tags.seed"]


class _Strict(pydantic.BaseModel):
    """A part of conf/paper/<paper>.yaml; unknown keys are refused."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class PaperSystem(_Strict):
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

    def number(self, key: str = "") -> "PrintedNumber | None":
        """The number that it prints or means; None if it is untestable and in words.

        Raises:
            ConfigError: It is testable, in words, and has no value; the message names the `key`.
        """
        if self.value is not None:
            return parse_number(f"{self.value:g}", key, self.step)
        if self.untestable and not _NUMBER.fullmatch(self.printed.strip()):
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

    @classmethod
    def exact(cls, value: float, origin: str, how: str) -> "Figure":
        """A figure without a range."""
        return cls(value, value, value, frozenset({origin}), how)

    def __str__(self) -> str:
        if self.text or math.isnan(self.value):
            return self.text or "-"
        return f"{self.value:,.0f}" if self.value == round(self.value) else f"{self.value:,.5g}"


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


def true_negative_share(precision: Any, recall: Any, positives: Any, images: Any) -> Any:
    """True negatives divided by all images: a specificity with the wrong denominator."""
    return specificity(precision, recall, positives, images) * (images - positives) / images


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
        one, two = area / (2 - area), 2 * area**2 / (1 + area)
        pairs = (positives - 1) * (one - area**2) + (negatives - 1) * (two - area**2)
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
    "true_negative_share": true_negative_share,
    "z_of_shares": z_of_shares,
    "z_of_areas": z_of_areas,
    "common_denominator": common_denominator,
    "rank_from_lowest": rank_from_lowest,
    "rank_from_highest": lambda *values: rank_from_lowest(*(-value for value in values)),
}


def _running_statistics(net: nn.Module, image_size: int) -> int:
    """Means and variances of batch normalisation: buffers in torch, parameters in Keras."""
    means = (getattr(module, "running_mean", None) for module in net.modules())
    return sum(2 * mean.numel() for mean in means if mean is not None)


def _convolution_biases(net: nn.Module, image_size: int) -> int:
    """Biases that the convolutions here lack; those of Keras' ResNet50 have them."""
    bare = (m for m in net.modules() if isinstance(m, nn.Conv2d) and m.bias is None)
    return sum(module.out_channels for module in bare)


@functools.cache
def _flops(net: nn.Module, image_size: int) -> int:
    """Multiply-adds; they do not depend on the weights, which are all zero here."""
    filled = deepcopy(net).to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*filled.parameters(), *filled.buffers()):
            tensor.zero_()
    return flops.count_flops(filled, image_size).total


QUANTITIES: dict[str, Callable[[nn.Module, int], float]] = {
    "parameters": lambda net, _: flops.count_parameters(net),
    "running_statistics": _running_statistics,
    "convolution_biases": _convolution_biases,
    "flops": _flops,
    "size_mb": lambda net, _: flops.size_mb(net),
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
        self._paper = paper
        self._measure = measure
        self._claims = {claim.id: claim for claim in paper.claims}
        self._results: dict[str, Figure] = {}
        self._open: list[str] = []
        self._sources: dict[str, Callable[..., Figure]] = {
            "count": self._count,
            "measured": self._measured,
            "published": lambda value, source: Figure.exact(value, "published", source),
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
        if less and formatting.is_cost(metric):
            problem = f"less takes a metric on the test split, but got {metric}: divide the costs"
            raise ConfigError("", problem)
        return self._measure(system, metric, less)

    def _count(self, name: str, quantity: str, *more: str) -> Figure:
        _refuse_unknown([name], self._paper.nets)
        _refuse_unknown([quantity, *more], QUANTITIES)
        config = json.dumps(self._paper.nets[name].get("net", {}))
        net = _build(config, f"paper.nets.{name}.net")
        counts = [(title, QUANTITIES[title](*net)) for title in (quantity, *more)]
        parts = " + ".join(f"{Figure(count)} {title.replace('_', ' ')}" for title, count in counts)
        total = sum(count for _, count in counts)
        return Figure.exact(total, "counted", f"{parts} of the net {name}")


def _refuse_unknown(names: Iterable[str], choices: Iterable[str]) -> None:
    choices = sorted(choices)
    for name in names:
        if name not in choices:
            verb = "are" if len(choices) > 1 else "is"
            listed = f"; there {verb} {', '.join(choices[:20]) or 'none'}"
            raise ConfigError("", f"does not know {name!r}{closest(name, choices) or listed}")


def choose_runs(
    runs: pd.DataFrame, system: PaperSystem, studies: Sequence[str] = (), seeds: int = 1
) -> tuple[pd.DataFrame, list[str], str]:
    """The finished and tested runs of a system, with equal settings, one per seed.

    Of the runs with the fewest differences from the paper's system: those of the setting with most
    seeds, then the newest; of several runs of a seed the newest.

    Args:
        runs: As `src.tracking.read.runs` gives them, the newest first.
        system: What they must be.
        studies: Only runs of these; empty: of all.
        seeds: Fewer decide nothing.

    Returns:
        Rows of `runs` by seed, empty if none is recorded; why they decide nothing, empty if they
        do; seeds, weights, commit and study, and how many runs are not among them.
    """
    tags = {"kind": "run", "preset": system.preset, "data": system.data, "split": system.split}
    equal = {"status": "FINISHED", **{f"tags.{tag}": value for tag, value in tags.items()}}
    used = [*equal, "metrics.test/accuracy", *_TAGS, *system.fixed]
    table = runs.astype(object).where(runs.notna(), "")
    table = table.reindex(columns=list(dict.fromkeys([*table, *used])), fill_value="")
    tested = table[(table[list(equal)] == list(equal.values())).all(axis=1)]
    tested = tested[tested["metrics.test/accuracy"] != ""]
    tested = tested[tested["tags.study"].isin(studies)] if studies else tested
    if tested.empty:
        among = f" in {' and '.join(studies)}" if studies else ""
        problem = f"no tested runs of {system.preset} (split {system.split}) are recorded{among}"
        return tested, [problem], ""
    records = tested.to_dict("records")
    differences = np.array([len(_differences(row, system.fixed)) for row in records])
    nearest = tested[differences == differences.min()]
    settings = nearest.filter(regex=rf"^params\.(?!{'|'.join(map(re.escape, FREE))})").columns
    groups = [rows for _, rows in nearest.groupby([*settings, "tags.weights"], sort=False)]
    same = max(groups, key=lambda rows: rows["tags.seed"].nunique())
    # sorted, so that the same runs give the same bootstrap samples
    rows = pd.DataFrame(same).drop_duplicates("tags.seed").sort_values("tags.seed")
    others = ", ".join(_differences(rows.iloc[0], system.fixed))
    problems = [f"these runs have {others}"] if others else []
    problems += [f"{len(rows)} of {seeds} seeds"] if len(rows) < seeds else []
    title = f"{formatting.count(len(rows), 'seed')} of {system.preset}, split {system.split}"
    dirty = rows["tags.git_dirty"].map(lambda text: " with changes" * (text.lower() == "true"))
    for name, values in (
        ("weights", rows["tags.weights"]),
        ("commit", rows["tags.git_commit"].str[:7] + dirty),
        ("study", rows["tags.study"]),
    ):
        texts = list(filter(None, values.unique()))
        title += f", {name} {' and '.join(texts)}" if texts else ""
    again = sorted(same["tags.seed"][same["tags.seed"].duplicated()].unique())
    title += f"; seed {', '.join(again)} trained more than once, the newest taken" if again else ""
    rest = len(tested) - len(same)
    return rows, problems, title + (f"; runs with other settings left out: {rest}" if rest else "")


def _differences(row: Mapping[Any, Any] | pd.Series, fixed: Mapping[str, Any]) -> list[str]:
    """Where a run differs from the paper's system, in words."""
    differences = []
    for column, expected in fixed.items():
        recorded, name = str(row[column]), column.partition(".")[2]
        if not _equals(recorded, expected):
            instead = f"{name} {recorded} instead of {text(expected)}"
            differences.append(instead if recorded else f"no {name}")
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


@dataclass
class ClaimsSettings:
    """The values of conf/command/audit.yaml, which says what each means."""

    study: str | list[str] | None = None
    seeds: Annotated[int, Ge(1)] = 3
    samples: Annotated[int, Ge(200)] = 2000
    level: Annotated[float, Gt(0.5), Le(0.999)] = 0.95
    seed: Annotated[int, Ge(0)] = 0
    folder: str = "reports"
    publish: bool = True


def _cost(rows: pd.DataFrame, metric: str) -> tuple[float, float, float, str]:
    values = pd.to_numeric(rows.get(f"metrics.{metric}", pd.Series(dtype=float))).dropna()
    if values.empty:
        raise UserError(f"its runs have no {metric}")
    return values.mean(), values.min(), values.max(), f"{metric}, least to largest"


def recorded_runs(
    runs: pd.DataFrame, store: Store | None, paper: Paper, settings: ClaimsSettings
) -> Measure:
    """The function that answers measured(...) of `Figures` from the table of runs of a store.

    It takes a system of the paper; a metric on the test split without the split's name, which gets
    a bootstrap interval by group and seed, or a cost such as efficiency/latency_ms/b1/p50, which
    gets its extremes; and a system whose metric on the same images is subtracted, or "". The
    figure is the mean over the seeds; without one its `problem` says why.
    """
    studies = [settings.study] if isinstance(settings.study, str) else settings.study or []
    samples = (settings.samples, settings.seed, settings.level)

    @functools.cache
    def choose(system: str) -> tuple[pd.DataFrame, list[str], str]:
        return choose_runs(runs, paper.systems[system], studies, settings.seeds)

    @functools.cache
    def predictions(system: str) -> list[pd.DataFrame]:
        assert store is not None
        return [read.predictions(store, run_id, "test") for run_id in choose(system)[0]["run_id"]]

    def estimate(system: str, metric: str, less: str) -> tuple[float, float, float, str]:
        if formatting.is_cost(metric):
            return _cost(choose(system)[0], metric)
        frames, kind = predictions(system), f"{settings.level:.0%} interval by group and seed"
        if less:
            pair = paired_difference(frames, predictions(less), metric, *samples, (system, less))
            return *pair[:3], f"{metric}, {system} less {less} on the same images, paired {kind}"
        row = bootstrap.intervals(frames, [metric], *samples).iloc[0]
        sizes = f"{row['images']:,} images of {row['groups']:,} lesions or patients"
        return row["estimate"], row["low"], row["high"], f"{metric} on {sizes}, {kind}"

    def measure(system: str, metric: str, less: str = "") -> Figure:
        chosen = [choose(name) for name in (system, less) if name]
        problem = "; ".join(dict.fromkeys(text for _, texts, _ in chosen for text in texts))
        measured = frozenset({"measured"})
        if any(rows.empty for rows, _, _ in chosen):
            return Figure(origins=measured, problem=problem, unrecorded=True)
        try:
            value, low, high, how = estimate(system, metric, less)
        except bootstrap.DifferentImagesError as error:
            what = "the two systems or their seeds" if less else "its seeds"
            problem = f"{what} were tested on different images ({error})"
            return Figure(origins=measured, problem=problem)
        except UserError as error:
            return Figure(origins=measured, problem=str(error))
        how = "; ".join([how, *(title for *_, title in chosen)])
        return Figure(value, low, high, measured, how, problem, text=f"{value:.4g}")

    return measure


def agrees(figure: Figure, number: PrintedNumber, relation: str) -> bool | None:
    """Whether a figure is as the claim says; None without a figure, and if it is undecided.

    equal: a value in its range would be printed the same way. below, above: the whole range keeps
    the limit, or all of it breaks the limit.
    """
    if math.isnan(figure.value):
        return None
    if relation == "equal":
        point = math.isnan(figure.low)  # no interval
        low, high = (figure.value,) * 2 if point else (figure.low, figure.high)
        return number.admits(low, high)
    if relation == "below":
        kept, broken = figure.high < number.value, figure.low >= number.value
    else:
        kept, broken = figure.low > number.value, figure.high <= number.value
    return kept if kept or broken else None


def decide(readings: Sequence[Mapping[str, Any]]) -> tuple[str, int | None]:
    """The verdict on a testable claim by its readings, and the position of the decisive one.

    The first reading that agrees reproduces the claim. If none does, arithmetic on printed numbers
    alone contradicts it; otherwise it is not reproduced if the paper's own reading, the first one,
    could be tested.
    """
    first = next((n for n, row in enumerate(readings) if not row["beside"]), None)
    deciding = [n for n, row in enumerate(readings) if row["decides"]]
    for position in deciding:
        if readings[position]["agrees"]:
            return (REPRODUCED if position == first else OTHER_READING), position
    for position in deciding:
        if readings[position]["from"] == "printed":
            return CONTRADICTED, position
    return (NOT_REPRODUCED if first in deciding else NOT_TESTABLE), first


def check_claims(paper: Paper, measure: Measure) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Check every claim of a paper; nothing is trained.

    Returns:
        claims: One row per claim, in the paper's order: id, claim, where, printed, here (the figure
            that the verdict rests on, in the printed unit, with its range), verdict, reading,
            reason, note, problems (why it is not testable), unrecorded (whether runs are missing),
            and as numbers printed_value, value, low, high.
        readings: One row per reading: id, reading, beside, here, agrees, decides, how, problem,
            from (origins), value, low, high, unrecorded.

    Raises:
        ConfigError: A claim that cannot be evaluated; the message names its key.
    """
    figures, claims, readings = Figures(paper, measure), [], []
    for position, claim in enumerate(paper.claims):
        key = f"paper.claims[{position}]"
        number = claim.number(key)
        rows = []
        for kind in ("readings", "beside"):
            for name, reading in getattr(claim, kind).items():
                figure = figures.evaluate(reading.value, f"{key}.{kind}.{name}")
                rows.append(_check_reading(claim, number, name, kind, figure))
        readings += rows
        claims.append(_check_claim(claim, number, rows))
    return pd.DataFrame(claims), pd.DataFrame(readings)


def _check_reading(
    claim: Claim, number: PrintedNumber | None, name: str, kind: str, figure: Figure
) -> dict[str, Any]:
    unit, beside = getattr(claim, kind)[name].unit, kind == "beside"
    value, low, high = figure.value, figure.low, figure.high
    agreed, problem = None, figure.problem
    if number is not None and not (beside and unit is not None):
        agreed = agrees(figure, number, claim.relation)
        undecided = agreed is None and not math.isnan(value)
        problem = problem or (UNDECIDED if undecided else "")
    if number is not None and unit is None:
        texts = [number.like(end) for end in (value, low, high)]
    else:
        texts = [f"{end:,.4g} {unit or ''}".strip() for end in (value, low, high)]
    here = "-" if math.isnan(value) else texts[0]
    if texts[1] != texts[2] and not math.isnan(value + low):
        here = f"{here} ({texts[1]} to {texts[2]})"
    row = {"id": claim.id, "reading": name, "beside": beside, "here": here, "agrees": agreed}
    row |= {"decides": not (beside or problem or agreed is None), "how": figure.how}
    row |= {"problem": problem, "from": " and ".join(sorted(figure.origins))}
    row |= {"value": value, "low": low, "high": high}
    return row | {"unrecorded": figure.unrecorded and not beside}


def _check_claim(
    claim: Claim, number: PrintedNumber | None, readings: list[dict[str, Any]]
) -> dict[str, Any]:
    verdict, position = (NOT_TESTABLE, None) if claim.untestable else decide(readings)
    row = {} if position is None else readings[position]
    problems: list[str] = []
    if verdict == NOT_TESTABLE:
        reasons = [claim.untestable] if claim.untestable else []
        reasons = reasons or [row["problem"] for row in readings if not row["beside"]]
        problems = list(dict.fromkeys(reasons))
        figures = [f"{row['reading']} {row['here']}" for row in readings if row["here"] != "-"]
        reason = "; ".join(problems) + (f"; beside it: {'; '.join(figures)}" if figures else "")
    else:
        published = row["from"] == "published"
        how = f"{row['here']}, {row['how']}" if published else f"{row['how']} = {row['here']}"
        reason = f"{row['reading']}: {how}"
        reason += f", printed {claim.text}" * (verdict in (CONTRADICTED, NOT_REPRODUCED))
    checked: dict[str, Any] = {}
    checked |= {"id": claim.id, "claim": claim.claim, "where": claim.where, "printed": claim.text}
    checked |= {"here": row.get("here", "-"), "verdict": verdict}
    checked |= {"reading": row.get("reading", ""), "reason": reason, "note": claim.note}
    checked |= {"problems": problems}
    checked |= {"unrecorded": any(row["unrecorded"] for row in readings)}
    checked |= {"printed_value": number and number.value}
    return checked | {name: row.get(name) for name in ("value", "low", "high")}


def counts(claims: pd.DataFrame) -> dict[str, int]:
    """Number of claims by verdict, zeros included."""
    numbers = claims["verdict"].value_counts()
    return {verdict: int(numbers.get(verdict, 0)) for verdict in VERDICTS}


def write_audit(
    paper: Paper, claims: pd.DataFrame, readings: pd.DataFrame, folder: Path, made: str
) -> None:
    """Write audit.md with the line `made`, claims.csv and readings.csv in place of the folder.

    Raises:
        UserError: The folder cannot be written; it is as before then.
    """
    columns = ["id", "claim", "where", "printed", "here", "verdict", "reason", "note"]
    tables = [Table(claims[columns], "Claims")]
    if len(readings):
        columns = ["id", "reading", "here", "agrees", "decides", "how", "problem"]
        tables.append(Table(readings[columns], "Readings"))
    parts = [f"# Audit: {paper.title}", f"{paper.citation} {paper.source}", f"Read: {paper.read}"]
    parts += [made, f"**{len(claims)} claims: {_summary(claims)}.**", LEGEND, "## Protocol"]
    parts.append("\n".join(f"- {note}" for note in paper.protocol))
    parts += [table.to_markdown() for table in tables]
    with atomic_folder(folder, "the audit") as draft:
        (draft / "audit.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
        Table(claims).to_csv(draft / "claims.csv")
        Table(readings).to_csv(draft / "readings.csv")


def _summary(claims: pd.DataFrame) -> str:
    return ", ".join(f"{number} {verdict}" for verdict, number in counts(claims).items())


def audit_paper(config: DictConfig) -> None:
    """Check the paper that a composed `conf/command/audit.yaml` names; write, record and print.

    Raises:
        UserError: Bad input; the message names the culprit.
    """
    settings = load_settings(config, ClaimsSettings, without=("tracking", "paper"))
    check(resolve(config.tracking), "tracking")
    paper = parse_paper(resolve(config.paper))
    store: Store = instantiate(config.tracking, "tracking")
    missing = store.database is not None and not store.database.exists()
    runs = pd.DataFrame() if missing else read.cached_runs(store.open(create=False))
    studies = sorted(set(read.texts(runs, "tags.study")) - {""})
    for chosen in [settings.study] if isinstance(settings.study, str) else settings.study or []:
        if chosen not in studies:
            message = f"study={chosen}: no runs of it in the store{closest(chosen, studies)}"
            raise UserError(f"{message}; leave study= out for all runs")
    claims, readings = check_claims(paper, recorded_runs(runs, store, paper, settings))
    folder = Path(settings.folder) / recordable(f"audit_{paper.name}").replace("/", "_")
    commit, dirty = git_state(ROOT)
    when = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC at commit {commit or 'unknown'}"
    changes = " with changes" if dirty else ""
    made = f"Made {when}{changes}; runs from {masked(store.uri)}."
    write_audit(paper, claims, readings, folder, made)
    if settings.publish:
        tags: dict[str, object] = {"kind": "audit", "paper": paper.name}
        tags |= {"git_commit": commit or "unknown", "git_dirty": dirty}
        numbers = {f"audit/{name.replace(' ', '_')}": n for name, n in counts(claims).items()}
        with Run.start(store, f"audit {paper.name}", tags, {"audit": asdict(settings)}) as run:
            run.artifact(folder, "audit")
            run.log(numbers)
    contradicted = claims["verdict"] == CONTRADICTED
    with_reading = claims["verdict"].isin((OTHER_READING, CONTRADICTED, NOT_REPRODUCED))
    verdicts = claims["verdict"] + (" (" + claims["reading"] + ")").where(with_reading, "")
    shown = claims[["id", "printed", "here"]].assign(verdict=verdicts)
    bold = frozenset(claims.index[contradicted])
    console.print(Table(shown, f"{paper.name}: claims", bold=bold).to_rich())
    say(_summary(claims))
    for row in claims[contradicted].to_dict("records"):
        say(f"! {row['id']}: {row['reason']}")
    untested = claims.explode("problems").dropna(subset="problems")
    for problem, ids in untested.groupby("problems", sort=False)["id"]:
        say(f"- not testable: {formatting.joined(list(ids))}: {problem}")
    if claims["unrecorded"].any():
        say(f"record the missing runs: {paper.command}", wrap=False)
    say(f"look: {folder / 'audit.md'}", wrap=False)
