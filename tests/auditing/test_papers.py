"""The two papers' claims: what is computed, against hand arithmetic and the counts in the papers."""

import math
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from src.auditing import tables
from src.auditing.audit import Audit, Audited, audit
from src.auditing.claims import parse
from src.auditing.recorded import Runs
from src.auditing.verdicts import CONTRADICTED, NOT_REPRODUCED, NOT_TESTABLE, OTHER_READING, REPRODUCED
from src.config import resolve

CONF = Path(__file__).resolve().parents[2] / "conf"


def audited(name: str) -> Audit:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        paper = parse(resolve(compose("audit", [f"paper={name}"]))["paper"])
    return audit(paper, Runs(pd.DataFrame(columns=["run_id", "status"]), None, paper))


@pytest.fixture(scope="module")
def mamun() -> Audit:
    return audited("mamun2025")


@pytest.fixture(scope="module")
def sun() -> Audit:
    return audited("sun2023")


def claim(audit: Audit, name: str) -> Audited:
    return next(each for each in audit.claims if each.claim.id == name)


def values(audit: Audit, name: str) -> list[float]:
    return [outcome.found.value for outcome in claim(audit, name).outcomes]


def test_mamun_parameters_and_flops(mamun: Audit) -> None:
    # 64 px, unpadded: 3x3 convolutions 3-32-64-128 to a 6x6 map, dense 4608-128-64-7
    convolutions = 9 * (3 * 32 + 32 * 64 + 64 * 128) + 32 + 64 + 128
    dense = 4608 * 128 + 128 + 128 * 64 + 64 + 64 * 7 + 7
    assert convolutions + dense == 691_911
    one_dense = convolutions + 4608 * 128 + 128 + 128 * 7 + 7
    assert values(mamun, "parameters_custom") == [25_785_415, 128_071, one_dense, 691_911]
    multiply_adds = 62**2 * 32 * 27 + 29**2 * 64 * 288 + 12**2 * 128 * 576 + 4608 * 128 + 128 * 64 + 64 * 7
    assert multiply_adds == 30_037_824
    assert values(mamun, "flops_custom") == [531_465_984, 505_908_992, 30_037_824]
    for name in ("parameters_custom", "flops_custom"):
        assert claim(mamun, name).verdict.name == OTHER_READING
        assert claim(mamun, name).verdict.outcome.reading == "64 px, no padding, dense 128 and 64"  # type: ignore[union-attr]
    assert values(mamun, "gap_parameters") == [128_071, convolutions + 128 * 128 + 128 + 128 * 64 + 64 + 64 * 7 + 7]
    assert claim(mamun, "gap_parameters").verdict.name == NOT_REPRODUCED
    assert claim(mamun, "flattened").verdict.name == REPRODUCED


def test_mamun_resnet50(mamun: Audit) -> None:
    backbone, statistics, biases = 23_508_032, 53_120, 26_560
    torch = backbone + 2048 * 7 + 7
    both_dense = 2048 * 128 + 128 + 128 * 64 + 64 + 64 * 7 + 7
    keras = backbone + statistics + biases + both_dense
    assert keras == 23_858_695
    one_dense = backbone + statistics + biases + 2048 * 128 + 128 + 128 * 7 + 7
    assert values(mamun, "parameters_resnet50") == [torch, backbone + both_dense, keras, one_dense]
    assert claim(mamun, "parameters_resnet50").verdict.name == OTHER_READING
    counted, published, small, asked = values(mamun, "flops_resnet50")
    assert 4.08e9 < counted < 4.12e9  # fvcore counts batch normalisation too: 4.09e9 without
    assert (published, small) == (3.8e9, pytest.approx(counted * (64 / 224) ** 2, rel=0.01))
    assert asked == pytest.approx(30_037_824 * 133.1676)
    assert claim(mamun, "flops_resnet50").verdict.name == NOT_REPRODUCED
    assert claim(mamun, "flops_resnet50_over").verdict.name == REPRODUCED


def test_mamun_own_arithmetic(mamun: Audit) -> None:
    reduction = claim(mamun, "reduction")
    assert reduction.verdict.name == CONTRADICTED
    assert reduction.found == "97.1%"
    assert reduction.reason == "its own numbers: 1 - 692K / 23.9 million = 97.1%, printed 96.7%"
    increase = claim(mamun, "flops_increase")
    assert increase.verdict.name == REPRODUCED
    assert increase.outcomes[0].found.value == pytest.approx((4000 - 30.04) / 30.04)
    counted = increase.outcomes[2].found.value + 1  # both at 64 px
    assert counted == pytest.approx(values(mamun, "flops_resnet50")[2] / 30_037_824)
    for name in ("deviation", "improvement"):
        points, relative, measured = values(mamun, name)
        assert points == pytest.approx(0.0203)
        assert relative == pytest.approx(2.03 / 89.08)
        assert math.isnan(measured)
        assert claim(mamun, name).verdict.name == CONTRADICTED


def test_mamun_memory_is_less_under_the_reading_that_gives_the_counts(mamun: Audit) -> None:
    assert values(mamun, "memory")[0] > 1
    assert claim(mamun, "memory").verdict.name == OTHER_READING


@pytest.mark.parametrize(
    ("name", "backbone", "inputs"),
    [
        ("mobilenet", 939_120, 5_184),
        ("efficientnet", 5_919_312, 11_520),
        ("resnet50", 23_587_712, 18_432),
        ("vgg16", 14_714_688, 4_608),
    ],
)
def test_sun_parameters_are_keras_counts_of_a_3x3_map(sun: Audit, name: str, backbone: int, inputs: int) -> None:
    found = claim(sun, f"parameters_{name}")
    expected = backbone + (inputs + 1) * 128 + 129
    assert found.number is not None
    assert found.number.value == expected
    assert found.outcomes[1].found.value == expected
    assert found.outcomes[0].found.value > expected  # a 7x7 map at 224 px
    assert found.verdict.name == OTHER_READING
    assert found.reason.startswith("96 px, flattened, as Keras counts")


@pytest.mark.parametrize(
    ("name", "hits", "false"),
    [("mobilenet", 54, 588), ("efficientnet", 32, 297), ("resnet50", 63, 617), ("vgg16", 62, 1266)],
)
def test_sun_specificities_are_true_negatives_over_all_images(sun: Audit, name: str, hits: int, false: int) -> None:
    rates = claim(sun, f"rates_{name}")
    of_benign, of_all, _, _ = (outcome.found for outcome in rates.outcomes)
    assert of_benign.value == pytest.approx((6509 - false) / 6509, abs=3e-4)
    assert of_all.value == pytest.approx((6509 - false) / 6626, abs=3e-4)
    printed = {each.claim.id: each.claim.printed for each in sun.claims}
    assert f"{hits / 117:.4f}" == printed[f"recall_{name}"]
    assert f"{hits / (hits + false):.4f}" == printed[f"precision_{name}"]
    assert f"{(6509 - false) / 6626:.4f}" == printed[f"specificity_{name}"]
    assert rates.verdict.name == OTHER_READING
    assert rates.reason.startswith("true negatives over all images")


def test_sun_data(sun: Audit) -> None:
    assert values(sun, "melanomas") == [585, 584]
    assert claim(sun, "melanomas").verdict.name == CONTRADICTED
    assert values(sun, "image_size") == [pytest.approx(96, abs=0.01)]
    assert claim(sun, "image_size").verdict.name == NOT_REPRODUCED
    for name in ("images", "patients", "oversampled", "test_size", "stratified", "imagenet_accuracy"):
        assert claim(sun, name).verdict.name == REPRODUCED, name
    assert claim(sun, "pixel3").verdict.outcome.reading == "milliseconds"  # type: ignore[union-attr]
    assert claim(sun, "pixel3").outcomes[2].found.value == pytest.approx(69737 / 6626)


def test_sun_the_baseline_was_tested_on_other_images(sun: Audit) -> None:
    rates = claim(sun, "rates_svm")
    assert rates.verdict.name == CONTRADICTED
    odds = 0.2593 * 0.6058 / (0.3874 * 0.7407)
    assert rates.outcomes[-1].found.value == pytest.approx(odds / (1 + odds))
    assert rates.outcomes[-1].found.value > 0.35  # the networks' test set has 0.0177
    assert claim(sun, "auc_svm").outcomes[1].found.value == pytest.approx(0.6007)


def test_sun_comparisons(sun: Audit) -> None:
    verdicts = {each.claim.id: each.verdict.name for each in sun.claims}
    assert verdicts["not_better_auc"] == REPRODUCED
    assert verdicts["not_better_specificity"] == CONTRADICTED
    assert (588 - 297) / math.sqrt(588 + 297) > 9  # McNemar's statistic however the answers pair
    assert {verdicts[name] for name in ("better_recall", "vgg16_worse")} == {NOT_TESTABLE}
    assert {verdicts[name] for name in ("fewest_parameters", "least_time")} == {REPRODUCED}


@pytest.mark.parametrize("name", ["mamun", "sun"])
def test_without_runs_what_is_measured_is_not_testable_and_says_how(name: str, request: pytest.FixtureRequest) -> None:
    done: Audit = request.getfixturevalue(name)
    measured = [each for each in done.claims if any(reading.measured for reading in each.claim.readings[:1])]
    assert measured
    for each in measured:
        assert each.verdict.name == NOT_TESTABLE
        assert f"are recorded; record them: {done.paper.command}" in each.reason


@pytest.mark.parametrize("name", ["mamun", "sun"])
def test_files_hold_every_claim_and_every_reading(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    done: Audit = request.getfixturevalue(name)
    tables.write(done, tmp_path, "Made then.")
    claims, readings = pd.read_csv(tmp_path / "claims.csv"), pd.read_csv(tmp_path / "readings.csv")
    assert list(claims["id"]) == [each.id for each in done.paper.claims]
    assert len(readings) == sum(len(each.readings) for each in done.paper.claims)
    assert claims["verdict"].value_counts().to_dict() == {name: n for name, n in done.counts.items() if n}
    assert claims["reason"].str.len().min() > 0
    text = (tmp_path / "audit.md").read_text()
    for each in done.claims:
        assert f"### {each.claim.id}\n" in text
        assert each.claim.claim in text
