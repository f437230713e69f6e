"""A paper's claims: expressions, verdicts, recorded runs, and the results for the two papers."""

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from src import audit as entry
from src.core.cli import ROOT
from src.core.config import resolve
from src.core.errors import ConfigError, UserError
from src.efficiency.flops import QUANTITIES
from src.metrics.bootstrap import intervals
from src.metrics.paired import paired_difference
from src.reporting import claims
from src.reporting.claims import (
    ANSWERED,
    CONTRADICTED,
    NOT_REPRODUCED,
    NOT_TESTABLE,
    OTHER_READING,
    REPRODUCED,
    agrees,
    check_claims,
    choose_runs,
)
from src.reporting.paper import (
    FUNCTIONS,
    SCALES,
    Figure,
    Figures,
    Measure,
    Paper,
    PaperSystem,
    parse_number,
    parse_paper,
)
from src.tracking import read
from src.tracking.run import Run, flatten
from src.tracking.store import Store

Audit = tuple[Paper, pd.DataFrame, pd.DataFrame]  # the paper, its claims, their readings
TINY = {
    "_target_": "src.models.custom.CustomCNN",
    "image_size": 10,
    "outputs": 2,
    "depth": 1,
    "dense": [],
}
ROW = {"claim": "C.", "where": "w"}
GOOD: dict[str, Any] = {
    **{"name": "x2025", "title": "T", "citation": "X, 2025.", "source": "somewhere"},
    **{"read": "all of it", "command": "python -m src.train"},
    "nets": {"tiny": {"net": TINY}},
    "systems": {
        name: {"preset": "x/net", "data": "synthetic", "split": "grouped"}
        for name in ("net", "none")
    },
    "figures": {"small": 5},
    "claims": [
        ROW | {"id": "twelve", "printed": "12", "readings": {"sum": "small + 7"}},
        ROW | {"id": "big", "printed": "23.9 million", "readings": {"sum": "big"}},
        ROW | {"id": "few", "printed": "few", "untestable": "words"},
        ROW | {"id": "kilo", "printed": "692K", "readings": {"sum": "kilo"}},
    ],
}


def measured(system: str, metric: str, less: str = "") -> Figure:
    """Recorded runs of one system, from random weights; none of another."""
    origins = frozenset({"measured"})
    if "none" in (system, less):
        return Figure(origins=origins, problem="no runs", unrecorded=True)
    return Figure(0.8, 0.7, 0.9, origins, "seen", "random weights")


def evaluate(expression: str, **figures: str) -> Figure:
    paper = parse_paper(GOOD | {"figures": GOOD["figures"] | figures})
    return Figures(paper, measured).evaluate(expression, "key")


# ---- the config


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("claims", 3, "paper.claims: input should be a valid list, but got 3"),
        ("claims.0.id", "small", r"paper.claims\[0\].id: small is taken"),
        ("claims.0.readings", {}, r"paper.claims\[0\]: twelve needs readings, or a reason why"),
        ("claims.0.relation", "about", r"\[0\].relation: input should be 'equal', 'below' or"),
        ("claims.0.printed", 12, r"\[0\].printed: input should be a valid string, but got 12"),
        ("claims.0.colour", "red", r"paper.claims\[0\].colour: extra inputs are not"),
        ("claims.1", {"id": "x"}, r"paper.claims\[1\].claim: field required"),
        ("systems.net.fixed", {"width": 3}, r"fixed.width.*\(params\|metrics\|tags\)"),
        # found when the claims are checked
        ("claims.0.readings.sum", "smal + 7", r"\[0\].readings.sum: does not know 'smal'; did you"),
        ("claims.0.printed", "twelve", r"paper.claims\[0\].printed: must be a number as printed"),
    ],
)
def test_bad_config_names_its_key(path: str, value: Any, message: str) -> None:
    plain = deepcopy(GOOD)
    *parents, last = (int(key) if key.isdigit() else key for key in path.split("."))
    node: Any = plain
    for key in parents:
        node = node[key]
    node[last] = value
    with pytest.raises(ConfigError, match=message) as refused:
        check_claims(parse_paper(plain), measured)
    assert "\n" not in str(refused.value)


# ---- expressions


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", "key:  is not defined"),
        ("1 +", "key: 1 \\+ is not defined"),
        ("1 / (small - 5)", r"key: 1 / \(small - 5\) is not defined \(divide by zero"),
        ("sqrt(small - 6)", "key: sqrt.* is not defined .invalid value"),
        ("1 / 0", "key: 1 / 0 is not defined .division by zero"),
        ("common_denominator(2, 3, kilo / 1000000000)", "no number from 2 to 3 has them all"),
        ("sqrt(4, 2)", "sqrt.* is not defined"),
        ("twelwe / 2", "key: does not know 'twelwe'; did you mean twelve"),
        ("sqr(4)", "key: does not know 'sqr'; did you mean sqrt"),
        ("().__class__", "key: does not know '__class__'"),
        ("few + 1", "key: the claim few prints no number: it needs a value"),
        ("count('tiny', 'weights')", "key: does not know 'weights'; there are convolution_biases"),
        ("count('tinny', 'flops')", "key: does not know 'tinny'; did you mean tiny"),
        ("count('tiny')", "is not defined .*missing 1 required"),
        (" + ".join(["published(1, 'x')"] * 40 + ["measured('net', 'auroc')"] * 13), "over 12 nu"),
        ("measured('nett', 'auroc')", "key: does not know 'nett'; did you mean net"),
        ("measured('net', 'time/fit_s', less='none')", "less takes a metric on the test split"),
        ("[x.__class__ for x in (1,)]", "ListComp is not allowed"),
        ("(lambda: 1)()", "Lambda is not allowed"),
        ("published(3)", "published.3. is not defined .*missing 1 required"),
        ("loop", "paper.figures.loop: depends on itself: loop -> back"),
    ],
)
def test_a_bad_expression_names_its_key(expression: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate(expression, loop="back + 1", back="loop")


def test_arithmetic_on_printed_numbers_has_the_range_of_their_rounding() -> None:
    figure = evaluate("1 - kilo / big")
    assert figure.value == pytest.approx(1 - 692 / 23900)
    assert figure.low == pytest.approx(1 - 692.5 / 23850)
    assert figure.high == pytest.approx(1 - 691.5 / 23950)
    assert figure.origins == {"printed"}
    assert figure.how == "1 - 692K / 23.9 million"


def test_origins_are_kept_and_plain_numbers_have_none() -> None:
    mixed = evaluate("fact + kilo + 1", fact="published(584, 'S')")
    assert mixed.origins == {"published", "printed"}
    plain = evaluate("28 * 28 * 128")
    assert (plain.value, plain.origins, plain.how) == (100_352, frozenset(), "28 * 28 * 128")


def test_problems_of_a_measured_figure_are_kept_by_arithmetic() -> None:
    named = {"some": "measured('net', 'accuracy')", "none": "measured('none', 'accuracy')"}
    half = evaluate("some / 2", **named)
    assert (half.low, half.value, half.high, half.problem) == (0.35, 0.4, 0.45, "random weights")
    gap = evaluate("some - none", **named)
    assert math.isnan(gap.value)
    assert (gap.problem, gap.unrecorded) == ("random weights; no runs", True)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("rounded_up(33126 * 0.2)", 6626),
        ("rounded_up(10 * 0.2)", 2),
        ("common_denominator(50, 200, a, b)", 117),
        ("rank_from_lowest(one, two, one, 0 * one)", 2),
        ("rank_from_highest(one, two, one, two)", 3),
        ("sqrt(9)", 3),
    ],
)
def test_functions_by_hand(expression: str, expected: float) -> None:
    named = {"a": "54 / 117 + 0 * twelve", "b": "32 / 117 + 0 * twelve"}
    named |= {"one": "twelve / 12", "two": "2 * twelve / 12"}
    assert evaluate(expression, **named).value == pytest.approx(expected)


counts = st.integers(1, 5000)


@given(counts, counts, counts, counts)
def test_rates_reproduce_their_confusion_matrix(
    hits: int, missed: int, false: int, true: int
) -> None:
    positives, negatives = hits + missed, false + true
    images = positives + negatives
    rates = hits / (hits + false), hits / positives, true / negatives
    cases = {
        "precision": ((rates[1], rates[2], positives / images), rates[0]),
        "prevalence": (rates, positives / images),
        "specificity": ((*rates[:2], positives, images), rates[2]),
    }
    for name, (operands, expected) in cases.items():
        assert FUNCTIONS[name](*operands) == pytest.approx(expected)


@given(st.floats(0.1, 0.9), st.floats(0.1, 0.9), st.floats(0.01, 0.5), st.data())
def test_a_range_contains_all_values_of_its_operands(
    recall: float, specificity: float, share: float, data: st.DataObject
) -> None:
    operands = [Figure(v, v - 0.005, v + 0.005) for v in (recall, specificity, share)]
    inside = [data.draw(st.floats(operand.low, operand.high)) for operand in operands]
    figures = Figures(parse_paper(GOOD), lambda system, metric, less: operands[int(metric)])
    names = ", ".join(f"measured('net', '{number}')" for number in range(3))
    result = figures.evaluate(f"precision({names})", "key")
    assert result.low <= result.value <= result.high
    assert result.low - 1e-12 <= FUNCTIONS["precision"](*inside) <= result.high + 1e-12


def test_arithmetic_on_a_value_without_an_interval_has_none() -> None:
    figures = Figures(parse_paper(GOOD), lambda *_: Figure(0.87))
    result = figures.evaluate("1 - measured('net', 'accuracy')", "key")
    assert result.value == pytest.approx(0.13)
    assert math.isnan(result.low)
    assert math.isnan(result.high)


@given(st.integers(2, 60), st.data())
def test_the_common_denominator_is_the_smallest_one(number: int, data: st.DataObject) -> None:
    parts = data.draw(st.lists(st.integers(1, number), min_size=1, max_size=4))
    rounded = [p / number + np.array([0, -5e-5, 5e-5]) for p in parts]
    fits = [
        n
        for n in range(1, number + 1)
        if all(any(low <= k / n <= high for k in range(n + 1)) for _, low, high in rounded)
    ]
    assert FUNCTIONS["common_denominator"](1, 100, *rounded) == fits[0]


def test_standard_errors_are_those_of_the_literature() -> None:
    chi2 = stats.chi2_contingency([[63, 54], [54, 63]], correction=False)[0]
    z = FUNCTIONS["z_of_shares"](63 / 117, 54 / 117, 117)
    assert z == pytest.approx(math.sqrt(chi2))
    # Hanley & McNeil, 20 malignant, 30 benign. A = 0.8: Q1 = 2/3, Q2 = 1.28/1.8
    first = (0.16 + 19 * (2 / 3 - 0.64) + 29 * (1.28 / 1.8 - 0.64)) / 600
    second = (0.25 + 19 * (1 / 3 - 0.25) + 29 * (1 / 3 - 0.25)) / 600  # A = 0.5: Q1 = Q2 = 1/3
    z = FUNCTIONS["z_of_areas"](0.8, 0.5, 20, 30)
    assert z == pytest.approx(0.3 / math.sqrt(first + second))


# ---- counts of nets


def test_what_keras_counts_and_torch_does_not() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 5, 1, bias=False), nn.BatchNorm2d(5), nn.Conv2d(5, 7, 1), nn.BatchNorm1d(4)
    )
    assert QUANTITIES["running_statistics"](net, 0) == 2 * 5 + 2 * 4
    assert QUANTITIES["convolution_biases"](net, 0) == 5
    untracked = nn.BatchNorm2d(3, track_running_stats=False)
    assert QUANTITIES["running_statistics"](untracked, 0) == 0


def test_counts_of_a_net_add_up_and_draw_no_random_numbers() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    # 10 px, unpadded 3x3, pooled by 2: a 4x4 map
    parameters = 32 * 27 + 32 + 2 * 4 * 4 * 32 + 2
    assert evaluate("count('tiny', 'parameters')").value == parameters
    assert evaluate("count('tiny', 'flops')").value == 8 * 8 * 32 * 27 + 2 * 4 * 4 * 32
    assert evaluate("count('tiny', 'parameters', 'running_statistics')").value == parameters
    assert evaluate("count('tiny', 'parameters', 'parameters')").value == 2 * parameters
    assert evaluate("count('tiny', 'size_mb')").value == pytest.approx(4e-6 * parameters)
    assert torch.rand(1) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 1}, "paper.nets.tiny.net.image_size: is too small"),
        ({"widht": 3}, "paper.nets.tiny.net.widht: unknown key; did you mean width"),
        ({"_target_": "src.models.nosuch"}, "paper.nets.tiny.net._target_: cannot import"),
        ({"dropout": 2.0}, "paper.nets.tiny.net.dropout: input should be less than 1"),
    ],
)
def test_an_impossible_net_names_its_key(change: dict[str, object], message: str) -> None:
    paper = parse_paper(GOOD | {"nets": {"tiny": {"net": TINY | change}}})
    with pytest.raises(ConfigError, match=message):
        Figures(paper, measured).evaluate("count('tiny', 'parameters')", "key")


# ---- printed numbers


@pytest.mark.parametrize(
    ("text", "value", "step", "unit"),
    [
        ("692K", 692_000, 1000, "K"),
        ("23.9 million", 23_900_000, 100_000, "million"),
        ("4.00 billion", 4e9, 1e7, "billion"),
        ("13,216.76%", 132.1676, 1e-4, "%"),
        ("1,602,929", 1_602_929, 1, ""),
        ("0.8284", 0.8284, 1e-4, ""),
        ("14.4 seconds", 14.4, 0.1, "seconds"),
    ],
)
def test_value_step_and_unit(text: str, value: float, step: float, unit: str) -> None:
    number = parse_number(text)
    assert (number.value, number.step) == pytest.approx((value, step), rel=1e-12)
    assert number.unit == unit


@given(st.decimals("0.01", "99999", places=6), st.integers(0, 4), st.sampled_from(["", *SCALES]))
def test_a_number_admits_exactly_what_rounds_to_it(true: Decimal, digits: int, unit: str) -> None:
    rounded = true.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)
    number = parse_number(f"{rounded:,}{unit}")
    scale = SCALES.get(unit, 1)
    assert number.admits(float(true) * scale, float(true) * scale)
    beyond = float(rounded + Decimal("0.51").scaleb(-digits)) * scale
    assert not number.admits(beyond, beyond)
    assert number.admits(number.value - number.step, number.value)  # a range that reaches it


@pytest.mark.parametrize(
    ("printed", "value", "shown"),
    [
        ("692K", 691_911, "691,911"),
        ("692K", 692_000, "692K"),
        ("96.7%", 1 - 692e3 / 23.9e6, "97.1%"),
        ("80%", 0.796, "79.6%"),
        ("80%", 0.0, "0.0%"),
        ("13,216.76%", 4.00e9 / 30.04e6 - 1, "13,215.58%"),
        ("0.8936", 0.90966, "0.9097"),
        ("500", 585.0, "585"),
        ("14.4 seconds", 0.0144, "0.014 seconds"),
        ("0.5", math.nan, "-"),
    ],
)
def test_values_are_shown_like_the_printed_number(printed: str, value: float, shown: str) -> None:
    assert parse_number(printed).like(value) == shown


@given(st.floats(0, 1e6), st.sampled_from(["96.7%", "692K", "0.8284", "500", "4.00 billion"]))
def test_a_value_that_does_not_agree_never_looks_the_same(value: float, text: str) -> None:
    number = parse_number(text)
    if not number.admits(value, value):
        assert number.like(value) != text


@pytest.mark.parametrize("text", ["", "lots", "69 2K", "K692", "1,60,929", "0.1.2"])
def test_other_texts_are_no_numbers(text: str) -> None:
    with pytest.raises(ConfigError, match="paper.claims.3..printed: must be a number as printed"):
        parse_number(text, "paper.claims[3].printed")


# ---- verdicts


@st.composite
def readings(draw: st.DrawFn) -> dict[str, Any]:
    problem = draw(st.sampled_from(["", "", "random weights"]))
    agreed, beside = draw(st.sampled_from([True, False, None])), draw(st.booleans())
    origin = draw(st.sampled_from(["", "printed", "counted", "printed and published", "measured"]))
    decides = not (beside or problem or agreed is None)
    return {"beside": beside, "agrees": agreed, "decides": decides, "from": origin}


@given(st.lists(readings(), max_size=5))
def test_a_verdict_follows_from_the_readings_that_decide(rows: list[dict[str, Any]]) -> None:
    verdict, position = claims.decide(rows)
    first = [row for row in rows if not row["beside"]]
    deciding = [row for row in first if row["decides"]]
    assert verdict in claims.VERDICTS
    assert (verdict in (REPRODUCED, OTHER_READING)) == any(row["agrees"] for row in deciding)
    if verdict == REPRODUCED:
        assert first[0]["agrees"]
    if verdict == OTHER_READING:
        assert rows[position] is not first[0]
    if verdict == CONTRADICTED:
        assert rows[position]["from"] == "printed"
    if verdict == NOT_REPRODUCED:
        assert first[0]["agrees"] is False
        assert first[0]["decides"]
    if not deciding:
        assert verdict == NOT_TESTABLE


@pytest.mark.parametrize(
    ("values", "printed", "relation", "expected"),
    [
        ((0.85, 0.83, 0.8704), "87.05%", "equal", False),
        ((0.85, 0.83, 0.87046), "87.05%", "equal", True),  # would be printed as 87.05
        ((math.nan, math.nan, math.nan), "87.05%", "equal", None),
        ((0.8705, math.nan, math.nan), "87.05%", "equal", True),  # one group: no interval
        ((0.85, 0.81, 0.9), "80%", "above", True),
        ((0.75, 0.7, 0.8), "80%", "above", False),
        ((0.75, 0.7, 0.79), "80%", "below", True),
        ((0.85, 0.8, 0.9), "80%", "below", False),
        ((0.85, math.nan, math.nan), "80%", "above", None),
        ((0.85, 0.79, 0.9), "80%", "above", None),  # the limit is inside
        ((0.75, 0.7, 0.81), "80%", "below", None),
    ],
)
def test_a_claim_is_kept_or_broken_by_both_ends_of_an_interval(
    values: tuple[float, float, float], printed: str, relation: str, expected: bool | None
) -> None:
    assert agrees(Figure(*values), parse_number(printed), relation) is expected


# ---- recorded runs

GROUPED = {"preset": "x/net", "data": "ham10000", "split": "grouped"}
SYSTEMS = {
    "any": GROUPED,
    "pretrained": GROUPED | {"fixed": {"tags.weights": "imagenet"}},
    "long": GROUPED | {"fixed": {"params.trainer.max_epochs": ">= 8"}},
    "image": GROUPED | {"split": "image (leaking)"},
    "wide": GROUPED | {"fixed": {"params.width": 32}},
    "half": GROUPED | {"preset": "x/half"},
}
PAPER = Paper.model_validate(GOOD | {"systems": SYSTEMS, "claims": []})


def predictions(seed: int, images: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    label = np.arange(images) % 3 == 0
    probability = np.clip(0.5 + 0.3 * (label - 0.5) + 0.3 * rng.standard_normal(images), 0, 1)
    return pd.DataFrame(
        {
            "image_id": [f"i{n}" for n in range(images)],
            "group": [f"g{n // 2}" for n in range(images)],
            "label": np.where(label, "mel", "nv"),
            "p/nv": 1 - probability,
            "p/mel": probability,
        }
    )


def record(
    store: Store, seed: int, epochs: int = 4, frame: pd.DataFrame | None = None, **tags: str
) -> None:
    common = {"kind": "run", **GROUPED, "weights": "random", "study": "s", "seed": str(seed)}
    params = {"seed": seed, "trainer": {"max_epochs": epochs}, "data": {"root": f"/disk{seed}"}}
    with Run.start(store, "net", common | tags, params) as run:
        run.log({"test/accuracy": 0.5, "efficiency/latency_ratio": 1.0 + seed})
        run.table(predictions(seed) if frame is None else frame, "predictions/test.csv")


@pytest.fixture(scope="module")
def store(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("recorded")
    (folder / "mlflow.db").write_bytes(empty_database.read_bytes())
    store = Store(uri=f"sqlite:///{folder}/mlflow.db", folder=folder)
    for seed in (0, 1):
        record(store, seed)
    record(store, 5, epochs=9)  # another setting, fewer seeds
    record(store, 0, study="other", frame=predictions(7))  # the newest of its seed
    record(store, 2, data="synthetic")
    record(store, 8, split="image (leaking)", frame=predictions(8, 40))
    record(store, 9, split="image (leaking)")
    dirty = {"git_commit": "0123456789", "git_dirty": "true"}
    record(store, 4, preset="x/half", frame=predictions(11), **dirty)
    return store


@pytest.fixture(scope="module")
def measure(store: Store) -> Callable[..., Measure]:
    """`measure(*studies, seeds=1)` reads the store."""
    table = read.runs(store)

    def measure(*studies: str, seeds: int = 1) -> Measure:
        settings = claims.ClaimsSettings(list(studies), 200, 0.9, 3, seeds=seeds)
        return claims.recorded_runs(table, store, PAPER, settings)

    return measure


def test_a_metric_is_the_mean_over_the_seeds_of_one_setting(measure) -> None:
    figure = measure()("any", "recall/mel")
    expected = intervals(NEWEST, ["recall/mel"], 200, 3, 0.9).iloc[0]
    recalls = [(frame["p/mel"] > frame["p/nv"])[frame["label"] == "mel"].mean() for frame in NEWEST]
    assert figure.value == pytest.approx(np.mean(recalls))
    assert (figure.low, figure.high) == pytest.approx((expected["low"], expected["high"]))
    assert figure.origins == {"measured"}
    assert not figure.problem
    for text in (
        "20 images of 20 lesions or patients",
        "2 seeds of x/net",
        "runs with other settings left out: 1",
        "seed 0 trained more than once, the newest taken",
    ):
        assert text in figure.how
    assert "commit 0123456 with changes" in measure()("half", "accuracy").how
    assert "with changes" not in figure.how


NEWEST = [predictions(7), predictions(1)]  # of the system "any", seeds 0 and 1
IMAGES = "were tested on different images"


def test_a_study_can_be_named(measure) -> None:
    expected = intervals([predictions(0), predictions(1)], ["auroc"], 200).iloc[0]
    assert measure("s")("any", "auroc").value == pytest.approx(expected["estimate"])


@pytest.mark.parametrize(
    ("asked", "arguments", "problem"),
    [
        ({}, ("long", "accuracy"), ""),  # the run of seed 5
        ({}, ("pretrained", "accuracy"), "these runs have weights random instead of imagenet"),
        ({}, ("wide", "accuracy"), "these runs have no width"),
        ({"seeds": 2}, ("any", "accuracy"), ""),
        ({"seeds": 3}, ("any", "accuracy"), "2 of 3 seeds"),
        ({"seeds": 3}, ("any", "efficiency/latency_ratio"), "2 of 3 seeds"),
        ({"seeds": 2}, ("half", "accuracy", "any"), "1 of 2 seeds"),
    ],
)
def test_few_runs_and_runs_of_another_system_are_measured_and_decide_nothing(
    measure, asked: dict[str, int], arguments: tuple[str, ...], problem: str
) -> None:
    figure = measure(**asked)(*arguments)
    assert not math.isnan(figure.value)
    assert (figure.problem, figure.unrecorded) == (problem, False)


@pytest.mark.parametrize(
    ("studies", "arguments", "problem"),
    [
        ([], ("any", "efficiency/size_mb"), "its runs have no efficiency/size_mb"),
        ([], ("image", "accuracy"), f"its seeds {IMAGES}"),
        ([], ("half", "accuracy", "image"), f"the two systems or their seeds {IMAGES}"),
        (["nosuch"], ("any", "auroc"), "no tested runs of x/net (split grouped) are recorded in"),
    ],
)
def test_what_cannot_be_measured_says_why(
    measure, studies: list[str], arguments: tuple[str, ...], problem: str
) -> None:
    figure = measure(*studies)(*arguments)
    assert math.isnan(figure.value)
    assert figure.problem.startswith(problem)
    assert figure.unrecorded == bool(studies)


def test_a_cost_is_the_mean_of_its_runs_with_the_extremes(measure) -> None:
    figure = measure()("any", "efficiency/latency_ratio")
    assert (figure.value, figure.low, figure.high) == (1.5, 1.0, 2.0)


def test_two_systems_are_compared_on_the_same_images(measure) -> None:
    figure = measure()("half", "accuracy", "any")
    expected = paired_difference([predictions(11)], NEWEST, "accuracy", 200, 3, 0.9)
    assert (figure.value, figure.low, figure.high) == pytest.approx(expected[:3])
    assert "1 seed of x/half" in figure.how
    assert "2 seeds of x/net" in figure.how


def table(*rows: Mapping[str, object]) -> pd.DataFrame:
    common = {f"tags.{key}": value for key, value in (GROUPED | {"kind": "run"}).items()}
    common |= {"status": "FINISHED", "metrics.test/accuracy": "0.5", "tags.seed": "0"}
    return pd.DataFrame([{**common, "run_id": f"r{n}", **row} for n, row in enumerate(rows)])


@pytest.mark.parametrize(
    ("recorded", "expected", "same"),
    [
        ("8", 32, False),
        ("32", 32, True),
        ("1.0", 1, True),
        ("[128, 64]", [128, 64], True),
        ("[128]", [128, 64], False),
        ("true", True, True),
        ("1", True, False),
        ("null", None, True),
        ("0.5", None, False),
        ("flatten", "flatten", True),
        ("gap", "flatten", False),
        (691_911.0, 691_911, True),
        (np.nan, 691_911, False),
        ("31", ">= 30", True),
        ("29", ">= 30", False),
        (np.nan, ">= 30", False),
    ],
)
def test_a_run_is_the_papers_system_by_its_parameters(
    recorded: object, expected: object, same: bool
) -> None:
    column = "params.model.net.width"
    system = PaperSystem(**GROUPED, fixed={column: expected})  # type: ignore[arg-type]
    rows, problems, _ = choose_runs(table({column: recorded}), system)
    assert len(rows) == 1  # it may stand beside the claim
    assert bool(problems) is not same
    assert same or "model.net.width" in problems[0]


def test_the_runs_nearest_to_the_paper_are_taken() -> None:
    fixed = {"params.width": 32, "params.dense": [128, 64], "params.loss": "focal"}
    system = PaperSystem(**GROUPED, fixed=fixed)  # type: ignore[arg-type]
    far = {"params.width": "8", "params.dense": "[]", "params.loss": "focal"}
    runs = table(far, far | {"tags.seed": "1"}, far | {"params.width": "32"})
    rows, problems, title = choose_runs(runs, system)
    assert list(rows["run_id"]) == ["r2"]
    assert problems == ["these runs have dense [] instead of [128, 64]"]
    assert "runs with other settings left out: 2" in title


def test_seeds_with_other_weights_are_not_pooled() -> None:
    rows = [{"tags.weights": "imagenet"}, {"tags.seed": "1", "tags.weights": "random"}]
    assert len(choose_runs(table(*rows), PAPER.systems["any"])[0]) == 1


def of_table(*rows: Mapping[str, object]) -> Measure:
    return claims.recorded_runs(table(*rows), None, PAPER, claims.ClaimsSettings(seeds=1))


def test_measurements_of_devices_are_those_of_the_runs_that_have_them() -> None:
    name = "metrics.benchmark/{}/web/t1/b1/p50_ms"
    rows = [{}, {name.format("phone"): 4.0}, {name.format("board"): 10.0, "tags.seed": "1"}]
    figure = of_table(*rows)("any", "benchmark/*/web/t1/b1/p50_ms")
    assert (figure.value, figure.low, figure.high, figure.problem) == (7, 4, 10, "")
    assert "benchmark/phone/web/t1/b1/p50_ms 4 and benchmark/board/web" in figure.how
    assert "2 seeds of x/net" in figure.how
    other = of_table(*rows)("any", "benchmark/*/web/t1/b1/energy_mj")
    assert other.unrecorded
    assert other.problem.endswith("are recorded with benchmark/*/web/t1/b1/energy_mj")


def test_an_evaluation_on_other_data_is_a_figure_of_its_run() -> None:
    def evaluation(of: str, value: float, **more: str) -> dict[str, object]:
        tags = {"kind": "evaluation", "evaluated_run": of, "data": "other", "overlap": "exclude"}
        row = {f"tags.{key}": text for key, text in (tags | more).items()}
        return row | {"metrics.other/recall/mel": value, "metrics.other/change/recall/mel": -9.0}

    runs = [{"parent_id": "trial"}, {"parent_id": "trial", "tags.seed": "1"}]
    rows = [evaluation("r4", 0.9, overlap="keep"), evaluation("trial", 0.5)]  # the newest first
    rows += [evaluation("trial", 0.1), {**runs[0], "tags.seed": "2"}, *runs]
    rows.insert(0, evaluation("r6", 0.8))
    figure = of_table(*rows)("any", "evaluation/*/recall/mel")
    # 0.5 of seeds 2 and 0 by their trial, 0.8 of seed 1 by its own newer evaluation
    assert (figure.value, figure.low, figure.high) == pytest.approx((0.6, 0.5, 0.8))


def test_compressed_runs_are_a_system_of_their_own() -> None:
    small = {"tags.preset": "", "tags.compression": "prune", "metrics.efficiency/params": 3.0}
    system = PaperSystem(**GROUPED, compression="prune")
    for rows, expected in (([{}, small], ["r1"]), ([{}], [])):
        chosen, problems, _ = choose_runs(table(*rows), system)
        assert list(chosen["run_id"]) == expected
        assert not problems or "x/net compressed by prune (split" in problems[0]
    assert list(choose_runs(table(small, {}), PAPER.systems["any"])[0]["run_id"]) == ["r1"]


@pytest.mark.parametrize(
    ("readings", "verdict", "reason"),
    [
        (
            {"a": "measured('net', 'm')"},  # a figure with a problem, which is shown
            NOT_TESTABLE,
            "random weights; beside it: a 80.0% (70.0% to 90.0%)",
        ),
        ({"a": "0.7 + 0.2"}, ANSWERED, "a: 0.7 + 0.2 = 90.0%, which is more than 87%"),
        ({"a": "0.2 + 0.2"}, ANSWERED, "a: 0.2 + 0.2 = 40.0%, which is not more than 87%"),
        (
            {"a": "measured('none', 'm')", "b": "0.7 + 0.2"},
            ANSWERED,
            "b: 0.7 + 0.2 = 90.0%, which is more than 87%; a: no runs",
        ),
        ({"a": "measured('none', 'm')"}, NOT_TESTABLE, "no runs"),
    ],
)
def test_a_question_is_answered_by_the_figures_of_its_readings(
    readings: dict[str, str], verdict: str, reason: str
) -> None:
    row = ROW | {"id": "q", "printed": "87%", "relation": "above", "readings": readings}
    paper = parse_paper(GOOD | {"claims": [row | {"asks": "open question 1"}]})
    [checked] = check_claims(paper, measured)[0].to_dict("records")
    assert (checked["verdict"], checked["reason"]) == (verdict, reason)


# ---- the two papers


@pytest.fixture(scope="module")
def papers() -> dict[str, Paper]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return {
            name: parse_paper(resolve(compose("command/audit", [f"paper={name}"]).paper))
            for name in ("mamun2025", "sun2023")
        }


def without_runs(paper: Paper) -> Audit:
    measure = claims.recorded_runs(pd.DataFrame(), None, paper, claims.ClaimsSettings())
    return (paper, *check_claims(paper, measure))


@pytest.fixture(scope="module")
def mamun(papers: dict[str, Paper]) -> Audit:
    return without_runs(papers["mamun2025"])


@pytest.fixture(scope="module")
def sun(papers: dict[str, Paper]) -> Audit:
    return without_runs(papers["sun2023"])


def claim(audit: Audit, name: str) -> pd.Series:
    return audit[1].set_index("id").loc[name]


def values(audit: Audit, name: str) -> list[float]:
    return audit[2].loc[audit[2]["id"] == name, "value"].tolist()


def test_the_verdicts_are_these(mamun: Audit, sun: Audit) -> None:
    assert list(claims.counts(mamun[1]).values()) == [4, 4, 3, 1, 11, 1]
    assert list(claims.counts(sun[1]).values()) == [9, 9, 4, 1, 31, 0]
    verdicts = pd.concat([mamun[1], sun[1]]).set_index("id")["verdict"]
    expected = {
        REPRODUCED: "flattened flops_resnet50_over flops_increase dense_dominates images patients "
        "oversampled test_size stratified imagenet_accuracy fewest_parameters least_time "
        "among_best_auc",
        OTHER_READING: "parameters_custom flops_custom parameters_resnet50 memory pixel3",
        CONTRADICTED: "reduction deviation improvement melanomas rates_svm not_better_specificity "
        "low_false_positives",
        NOT_REPRODUCED: "flops_resnet50 image_size",
        NOT_TESTABLE: "not_better_auc better_recall vgg16_worse energy per_class melanoma_recall "
        "compression on_devices other_data",
        ANSWERED: "gap_parameters",
    }
    for verdict, names in expected.items():
        rows = {name: np.atleast_1d(verdicts.loc[name])[0] for name in names.split()}
        assert set(rows.values()) == {verdict}, rows


def test_mamun_parameters_and_flops(mamun: Audit) -> None:
    # 64 px, unpadded: 3x3 convolutions 3-32-64-128 to a 6x6 map, dense 4608-128-64-7
    convolutions = 9 * (3 * 32 + 32 * 64 + 64 * 128) + 32 + 64 + 128
    dense = 4608 * 128 + 128 + 128 * 64 + 64 + 64 * 7 + 7
    one_dense = convolutions + 4608 * 128 + 128 + 128 * 7 + 7
    assert values(mamun, "parameters_custom") == [25_785_415, 128_071, one_dense, 691_911]
    assert convolutions + dense == 691_911
    multiply_adds = 62**2 * 32 * 27 + 29**2 * 64 * 288 + 12**2 * 128 * 576
    multiply_adds += 4608 * 128 + 128 * 64 + 64 * 7
    assert values(mamun, "flops_custom") == [531_465_984, 505_908_992, multiply_adds]
    for name in ("parameters_custom", "flops_custom"):
        assert claim(mamun, name)["reading"] == "64 px, no padding, dense 128 and 64"
    pooled = convolutions + 128 * 128 + 128 + 128 * 64 + 64 + 64 * 7 + 7
    assert values(mamun, "gap_parameters") == [128_071, pooled]


def test_mamun_resnet50(mamun: Audit) -> None:
    backbone, statistics, biases = 23_508_032, 53_120, 26_560
    in_torch = backbone + 2048 * 7 + 7
    dense = 2048 * 128 + 128 + 128 * 64 + 64 + 64 * 7 + 7
    keras = backbone + statistics + biases + dense
    one_dense = backbone + statistics + biases + 2048 * 128 + 128 + 128 * 7 + 7
    counted = values(mamun, "parameters_resnet50")
    assert counted == [in_torch, backbone + dense, keras, one_dense]
    counted, published, small, asked = values(mamun, "flops_resnet50")
    assert 4.08e9 < counted < 4.12e9  # fvcore counts batch normalisation too: 4.09e9 without
    assert (published, small) == (3.8e9, pytest.approx(counted * (64 / 224) ** 2, rel=0.01))
    assert asked == pytest.approx(30_037_824 * 133.1676)


def test_mamun_arithmetic(mamun: Audit) -> None:
    reduction = claim(mamun, "reduction")
    assert reduction["here"] == "97.1%"
    assert reduction["reason"] == "its own numbers: 1 - 692K / 23.9 million = 97.1%, printed 96.7%"
    increase = values(mamun, "flops_increase")
    assert increase[0] == pytest.approx((4000 - 30.04) / 30.04)
    assert increase[2] + 1 == pytest.approx(values(mamun, "flops_resnet50")[2] / 30_037_824)
    for name in ("deviation", "improvement"):
        points, relative, both = values(mamun, name)
        assert (points, relative) == pytest.approx((0.0203, 2.03 / 89.08))
        assert math.isnan(both)
    ratios = [25_785_415 / 23_522_375, 691_911 / 23_522_375]
    assert values(mamun, "memory") == pytest.approx(ratios, rel=0.01)
    assert values(mamun, "dense_dominates")[0] == pytest.approx(100_352 * 256 / 25_785_415)
    flops, parameters, _, flops_drawn, parameters_drawn, *_ = values(mamun, "flops_predict_time")
    assert (parameters, 1 / parameters_drawn) == pytest.approx((1 / ratios[1], ratios[0]))
    expected = (4.1095e9 / 30_037_824, 4.1095e9 / 531_465_984)
    assert (flops, flops_drawn) == pytest.approx(expected, rel=1e-3)
    for name in ("memory", "latency"):  # the limit that the words mean is shown
        assert claim(mamun, name)["printed"] == "significantly reduces (less than 0.5)"
        assert "at least twofold" in claim(mamun, name)["note"]


@pytest.mark.parametrize(
    ("name", "backbone", "inputs", "hits", "false"),
    [
        ("mobilenet", 939_120, 5_184, 54, 588),
        ("efficientnet", 5_919_312, 11_520, 32, 297),
        ("resnet50", 23_587_712, 18_432, 63, 617),
        ("vgg16", 14_714_688, 4_608, 62, 1266),
    ],
)
def test_sun_table_2(
    sun: Audit, name: str, backbone: int, inputs: int, hits: int, false: int
) -> None:
    # parameters are Keras' counts with a 3x3 map; specificities are divided by all images
    parameters, expected = claim(sun, f"parameters_{name}"), backbone + (inputs + 1) * 128 + 129
    assert parameters["printed_value"] == values(sun, f"parameters_{name}")[1] == expected
    assert values(sun, f"parameters_{name}")[0] > expected  # a 7x7 map at 224 px
    assert parameters["reason"].startswith("96 px, flattened, as Keras counts")
    of_benign, of_all, _, _ = values(sun, f"rates_{name}")
    assert of_benign == pytest.approx((6509 - false) / 6509, abs=3e-4)
    assert of_all == pytest.approx((6509 - false) / 6626, abs=3e-4)
    assert claim(sun, f"recall_{name}")["printed"] == f"{hits / 117:.4f}"
    assert claim(sun, f"precision_{name}")["printed"] == f"{hits / (hits + false):.4f}"
    assert claim(sun, f"specificity_{name}")["printed"] == f"{(6509 - false) / 6626:.4f}"
    for claimed in (parameters, claim(sun, f"rates_{name}")):
        assert claimed["verdict"] == OTHER_READING
    assert claim(sun, f"rates_{name}")["reason"].startswith("true negatives over all images")


def test_sun_data_and_comparisons(sun: Audit) -> None:
    assert values(sun, "melanomas") == [585, 584]
    assert values(sun, "image_size") == [pytest.approx(96, abs=0.01)]
    assert claim(sun, "pixel3")["reading"] == "milliseconds"
    assert values(sun, "pixel3")[2] == pytest.approx(69737 / 6626)
    odds = 0.2593 * 0.6058 / (0.3874 * 0.7407)
    assert values(sun, "rates_svm")[-1] == pytest.approx(odds / (1 + odds))
    assert values(sun, "rates_svm")[-1] > 0.35  # the networks' test set has 0.0177
    assert values(sun, "auc_svm")[1] == pytest.approx(0.6007)
    assert "never that it is not" in claim(sun, "not_better_auc")["reason"]
    assert values(sun, "among_best_auc") == [2]
    assert values(sun, "low_false_positives") == pytest.approx([588 / 54, 588, 54], rel=2e-3)


def test_without_runs_measured_claims_are_not_testable_and_say_why(
    mamun: Audit, sun: Audit, tmp_path: Path
) -> None:
    for audit in (mamun, sun):
        paper = audit[0]
        for row in paper.claims:
            first = next(iter(row.readings.values()), None)
            if first is not None and "measured(" in first.value:
                checked = claim(audit, row.id)
                assert checked["verdict"] == NOT_TESTABLE
                assert "are recorded" in checked["reason"]
                assert checked["unrecorded"]
        claims.write_audit(*audit, tmp_path / "audit", "Made then.")
        written = pd.read_csv(tmp_path / "audit" / "claims.csv")
        readings = pd.read_csv(tmp_path / "audit" / "readings.csv")
        assert list(written["id"]) == [row.id for row in paper.claims]
        assert len(readings) == sum(len(row.readings) + len(row.beside) for row in paper.claims)
        assert written["reason"].str.len().min() > 0
        text = (tmp_path / "audit" / "audit.md").read_text()
        assert all(f"| {row.id} " in text for row in paper.claims)
    with pytest.raises(UserError, match="folder=/proc: the audit cannot be written there"):
        claims.write_audit(*mamun, Path("/proc/x"), "Made then.")


def only(paper: Paper, *starts: str) -> Paper:
    """Nothing is counted for the other claims."""
    rows = [row for row in paper.claims if row.id.startswith(starts) or not row.readings]
    return paper.model_copy(update={"claims": rows})


def constant(value: float, low: float, high: float) -> Callable[[str, str, str], Figure]:
    return lambda *_: Figure(value, low, high, frozenset({"measured"}), "m")


def test_a_measured_specificity_is_divided_as_the_paper_divides(papers: dict[str, Paper]) -> None:
    names = ("precision", "recall", "specificity", "auc", "svm", "majority")
    paper = only(papers["sun2023"], *names)
    audit = (paper, *check_claims(paper, constant(0.9097, 0.9095, 0.9099)))
    # 588 false positives: (6509 - 588) / 6509 = 0.9097, and over all images the printed 0.8936
    assert claim(audit, "specificity_mobilenet")["verdict"] == REPRODUCED
    rows = audit[2][audit[2]["id"] == "specificity_mobilenet"]
    assert rows["value"].iloc[0] == pytest.approx(0.9097 * 6509 / 6626)
    assert rows[["beside", "agrees"]].iloc[1].tolist() == [True, False]
    assert claim(audit, "svm_worse")["verdict"] == REPRODUCED
    assert claim(audit, "majority_class")["verdict"] == NOT_REPRODUCED


def test_melanoma_recall_is_decided_by_the_split_by_lesion(papers: dict[str, Paper]) -> None:
    paper = only(papers["mamun2025"], "melanoma")
    audit = (paper, *check_claims(paper, constant(0.78, 0.7, 0.85)))
    row = claim(audit, "melanoma_recall")
    assert row["verdict"] == NOT_TESTABLE
    assert row["reason"].startswith("undecided: the interval contains the limit")
    recall = next(row for row in paper.claims if row.id == "melanoma_recall")
    [reading] = recall.readings.values()
    assert reading.value == "measured('custom_grouped', 'recall/mel')"
    assert "measured('custom', 'recall/mel')" in {other.value for other in recall.beside.values()}


@pytest.mark.parametrize("name", ["mamun2025", "sun2023"])
def test_every_preset_is_the_system_of_the_paper(name: str, papers: dict[str, Paper]) -> None:
    systems = papers[name].systems
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        presets = {
            preset: flatten(resolve(compose("train", [f"experiment={preset}"])))
            for preset in {system.preset for system in systems.values()}
        }
    for system_name, system in systems.items():
        row = {f"params.{key}": value for key, value in presets[system.preset].items()}
        row |= {f"tags.{tag}": getattr(system, tag) for tag in ("preset", "data", "split")}
        row |= {"metrics.data/images/test": "6626", "tags.weights": "imagenet"}
        params = system.fixed.get("metrics.efficiency/params")
        row |= {"metrics.efficiency/params": str(params)} if params else {}
        if system.compression:
            row |= {"tags.preset": "", "tags.compression": system.compression}
            row |= {"metrics.efficiency/params": "400000"}  # pruned
        if system_name == "unbalanced":
            loss = {"_target_": "src.losses.cross_entropy.CrossEntropy", "gamma": ""}
            row |= {
                f"params.loss.{key}": text for key, text in (loss | {"weighted": "false"}).items()
            }
            row |= {"params.data.oversample": "null"}
        assert not choose_runs(table(row), system)[1], system_name
        assert choose_runs(table(row | {"params.data.image_size": "8"}), system)[1]


def test_the_parameters_of_systems_are_the_counted_ones(mamun: Audit) -> None:
    systems, key = mamun[0].systems, "metrics.efficiency/params"
    drawn, pooled, _, small = values(mamun, "parameters_custom")
    fixed = [systems[name].fixed[key] for name in ("drawn", "pooled", "custom", "resnet50")]
    assert fixed == [drawn, pooled, small, values(mamun, "parameters_resnet50")[0]]


def test_claims_are_quoted(mamun: Audit, sun: Audit, shared_data: Path) -> None:
    texts = sorted((shared_data.parent / "seeds").glob("*.txt"))
    if not texts:
        pytest.skip("the papers' texts are not there")
    quotable = " ".join(" ".join(path.read_text(encoding="utf-8") for path in texts).split())
    for audit, names in (
        (mamun, "per_class dense_dominates flops_predict_time transferability"),
        (mamun, "gap_parameters melanoma_recall compression on_devices other_data"),
        (sun, "among_best_auc low_false_positives svm_worse majority_class"),
    ):
        for name in names.split():
            assert claim(audit, name)["claim"].strip(".") in quotable


# ---- the command

NO_NETS = ["paper.nets={}", "paper.figures={}"]
ROWS = ["{id: size, claim: It is 12., where: here, printed: '12', readings: {sum: '5 + 7'}}"]
ROWS += [
    "{id: asked, claim: Is it?, where: here, printed: so, asks: next check 1, command: make it,"
    "readings: {sum: '5 + 7', run: \"measured('custom', 'accuracy')\"}}"
]
ROWS += [
    f"{{id: {name}, claim: So., where: here, printed: so, untestable: {why}}}"
    for name, why in {"speed": "no time", "heat": "not measured", "noise": "no time"}.items()
]


def test_an_audit_is_printed_written_and_recorded(
    run_entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_database: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "mlruns" / "mlflow.db").write_bytes(empty_database.read_bytes())
    arguments = ["paper=mamun2025", *NO_NETS, f"paper.claims=[{', '.join(ROWS)}]"]
    status, output = run_entry(entry.main, *arguments, "tracking.experiment=template")
    assert status == 0, output
    assert "1 reproduced, 0 reproduced under another reading" in output
    assert "next check 1, asked: answered: sum: 5 + 7 = 12" in output
    assert "  record it: make it\n" in output
    assert "look: reports/audit_mamun2025/audit.md" in output
    assert [line for line in output.splitlines() if line.startswith("- not testable")] == [
        "- not testable: speed and noise: no time",
        "- not testable: heat: not measured",
    ]
    assert max(map(len, output.splitlines())) <= 100
    folder = tmp_path / "reports" / "audit_mamun2025"
    assert {path.name for path in folder.iterdir()} == {"audit.md", "claims.csv", "readings.csv"}
    verdicts = pd.read_csv(folder / "claims.csv")["verdict"].tolist()
    assert verdicts == ["reproduced", "answered"] + ["not testable"] * 3
    store = Store(folder=tmp_path / "mlruns", experiment="template")
    [run] = read.runs(store, "tags.kind = 'audit'").to_dict("records")
    assert (run["status"], run["tags.paper"]) == ("FINISHED", "mamun2025")
    assert run["metrics.audit/reproduced"] == 1
    assert run["metrics.audit/contradicted_by_its_own_numbers"] == 0
    recorded = read.artifact(store, run["run_id"], "audit/audit.md").read_text()
    assert recorded == (folder / "audit.md").read_text()

    (folder / "former.txt").write_text("of an earlier audit")
    status, output = run_entry(entry.main, *arguments, "publish=false", "tracking.folder=nosuch")
    assert status == 0, output
    assert not (folder / "former.txt").exists()
    assert not (tmp_path / "nosuch").exists()
