"""Names, labels and directions of metrics; objectives and limits from a config."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from src.core.errors import ConfigError
from src.metrics.registry import (
    Limit,
    Objective,
    describe,
    parse_limits,
    parse_objectives,
    short_label,
)

QUALITY = "accuracy balanced_accuracy macro_f1 auroc "
QUALITY += "recall/mel precision/mel f1/mel specificity/mel"
COSTS = "flops params trainable_params size_mb latency_ms/b1/p50 latency_ms/b64/p99 latency_ratio "
COSTS += "peak_memory_mb"
BETTER_UP = [f"{split}/{name}" for split in ("val", "test", "best/val") for name in QUALITY.split()]
BETTER_UP += ["efficiency/throughput", "time/images_per_s"]
BETTER_DOWN = ["train/loss", "val/loss", "test/loss", "best/val/loss", "time/fit_s"]
BETTER_DOWN += [f"efficiency/{name}" for name in COSTS.split()]


@pytest.mark.parametrize("name", BETTER_UP + BETTER_DOWN)
def test_every_metric_of_the_run_record_is_described(name: str) -> None:
    metric = describe(name)
    assert metric.name == name
    assert metric.direction == ("maximize" if name in BETTER_UP else "minimize")
    assert metric.label
    assert "{" not in metric.label


def test_labels_have_unit_split_and_class_and_are_all_different() -> None:
    assert describe("efficiency/flops").axis == "FLOPs (multiply-adds)"
    assert describe("efficiency/latency_ms/b64/p99").axis == "latency of a batch of 64, p99 (ms)"
    assert describe("test/recall/mel").axis == "recall of mel (test)"
    label = describe("best/val/recall/basal cell/other").label
    assert label == "recall of basal cell/other (validation)"
    assert describe("val/loss").label == "loss (validation, each epoch)"
    names = BETTER_UP + BETTER_DOWN
    assert len({describe(name).axis for name in names}) == len(names)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("val/balanced_acuracy", "; did you mean .*val/balanced_accuracy"),
        ("flops", "; did you mean .*efficiency/flops"),
        ("eficiency/params", "; did you mean .*efficiency/params"),
        ("recall/mel", "; did you mean .*val/recall/<class>"),
        ("latency_ms/b1/p50", "; did you mean .*efficiency/latency_ms/b1/p50"),
        *((name, "") for name in ("", "val", "train/auroc", "val/recall/")),
        *((name, "") for name in ("efficiency/latency_ms/b0/p50", "efficiency/flops2")),
        ("best/test/loss", ""),
    ],
)
def test_unknown_name_lists_close_ones(wrong: str, right: str) -> None:
    with pytest.raises(ConfigError, match=f"^metric: unknown metric {wrong!r}{right}"):
        describe(wrong)


@pytest.mark.parametrize("name", ["val/auroc/mel", "val/pauc_80/mel", "val/temperature", "val/ece"])
def test_what_only_the_audit_computes_has_a_label_and_chooses_nothing(name: str) -> None:
    assert describe(name).audited
    with pytest.raises(ConfigError, match=f"{name} is computed by src.evaluate alone"):
        parse_objectives({"objectives": [{"metric": name}]})
    with pytest.raises(ConfigError, match="is computed by src.evaluate alone"):
        parse_limits({"limits": [f"{name} >= 0.5"]})


def test_what_is_decided_on_validation_chooses_runs_but_no_epoch() -> None:
    for name, text in {
        "val/chosen/ppv/mel": "ppv of mel at the threshold chosen on validation (validation)",
        "val/decision/balanced/accuracy": "accuracy, decision balanced (validation)",
        "val/decision/recall_floor/recall/mel": "recall of mel, decision recall_floor (validation)",
    }.items():
        metric = describe(f"best/{name}")
        assert (metric.fitted, metric.label, metric.direction) == (True, text, "maximize")
        [objective] = parse_objectives({"objectives": [{"metric": name}]})
        assert objective == Objective(f"best/{name}", "maximize")
        assert parse_limits({"limits": [f"{name} >= 0.5"]}) == [Limit(name, ">=", 0.5)]
    assert short_label("val/decision/balanced/accuracy") == "accuracy (balanced)"
    with pytest.raises(ConfigError, match="must not be read on the split that is reported"):
        parse_objectives({"objectives": [{"metric": "test/decision/balanced/accuracy"}]})


def test_objectives_from_a_config() -> None:
    entries = [
        {"metric": "val/balanced_accuracy", "direction": "maximize"},
        {"metric": "efficiency/flops"},
        {"metric": "val/recall/mel", "direction": "minimize"},  # the worst case
    ]
    expected = [
        Objective("val/balanced_accuracy", "maximize"),
        Objective("efficiency/flops", "minimize"),
        Objective("val/recall/mel", "minimize"),
    ]
    assert parse_objectives({"objectives": entries}) == expected
    assert parse_objectives(OmegaConf.create({"objectives": entries})) == expected
    # a validation metric has the name of the value at the kept epoch
    [typed] = parse_objectives({"objectives": [{"metric": "val/loss"}]})
    [recorded] = parse_objectives({"objectives": [{"metric": "best/val/loss"}]})
    assert typed == recorded == Objective("val/loss", "minimize")
    assert (typed.metric, typed.per_epoch) == ("best/val/loss", "val/loss")
    cost = Limit("efficiency/flops", "<=", 5)
    assert (cost.metric, cost.per_epoch) == ("efficiency/flops", "efficiency/flops")


FLOPS = {"metric": "efficiency/flops"}


NO_OBJECTIVE = r"^objective\.objectives\[0\]: must be {metric: "
REPEATED = r"^objective\.objectives\[1\]\.metric: must name each metric once, but got"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], r"^objective\.objectives: must list at least one"),
        (
            [FLOPS, {"metric": "val/acc"}],
            r"^objective\.objectives\[1\]\.metric: unknown metric 'val/acc'",
        ),
        (
            [{**FLOPS, "direction": "down"}],
            r"^objective\.objectives\[0\]\.direction: must be .* but got 'down'",
        ),
        ([{"direction": "minimize"}], NO_OBJECTIVE),
        ([{**FLOPS, "weight": 2}], NO_OBJECTIVE),
        (["efficiency/flops"], NO_OBJECTIVE),
        ([FLOPS, FLOPS], f"{REPEATED} efficiency/flops"),
        ([{"metric": "best/val/loss"}, {"metric": "val/loss"}], f"{REPEATED} val/loss"),
    ],
)
def test_bad_objectives_are_named(entries: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_objectives({"objectives": entries})


def test_limits_from_a_config() -> None:
    config = OmegaConf.create({"limits": ["efficiency/params <= 692e3", "  val/recall/mel>=0.8 "]})
    limit = Limit("val/recall/mel", ">=", 0.8)
    assert parse_limits(config) == [Limit("efficiency/params", "<=", 692_000.0), limit]
    assert parse_limits({}) == parse_limits({"limits": []}) == parse_limits({"limits": None}) == []
    assert str(limit) == "best/val/recall/mel >= 0.8"
    assert parse_limits({"limits": [str(limit)]}) == [limit]


NOT_A_LIMIT = 'objective.limits[1]: must be like "efficiency/params <= 692e3", but got '


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("efficiency/params", NOT_A_LIMIT),
        ("efficiency/params < 3", NOT_A_LIMIT),
        ("efficiency/params <= many", NOT_A_LIMIT),
        ("efficiency/params <= nan", NOT_A_LIMIT),
        ("<= 3 4", NOT_A_LIMIT),
        (5, NOT_A_LIMIT),
        (
            "efficiency/parms <= 3",
            "objective.limits[1].metric: unknown metric 'efficiency/parms'",
        ),
    ],
)
def test_bad_limits_are_named(text: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        parse_limits({"limits": ["efficiency/params <= 3", text]})


@given(bound=st.floats(-1e9, 1e9), measured=st.floats(-1e9, 1e9))
def test_limit_holds_up_to_its_bound(bound: float, measured: float) -> None:
    below, above = Limit("efficiency/params", "<=", bound), Limit("efficiency/params", ">=", bound)
    assert below.holds(measured) == (measured <= bound)
    assert above.holds(measured) == (measured >= bound)
    assert below.violation(measured) == -above.violation(measured)
    for limit in (below, above):
        assert limit.holds(bound)
        assert not limit.holds(math.nan)


def test_objective_configs_can_be_read(root: Path) -> None:
    files = sorted((root / "conf" / "objective").glob("*.yaml"))
    assert {file.stem for file in files} >= {"default", "latency", "clinical"}
    limits = {}
    for file in files:
        config = OmegaConf.load(file)
        assert parse_objectives(config)
        limits[file.stem] = parse_limits(config)
    assert limits["clinical"] == [Limit("val/recall/mel", ">=", 0.8)]
