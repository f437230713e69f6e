"""The two papers' claims: what is computed, against hand arithmetic and the counts in the papers."""

import math
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from src.auditing import tables
from src.auditing.audit import Audit, Audited, audit
from src.auditing.claims import MeasuredClaim, Paper, parse
from src.auditing.figures import Found
from src.auditing.recorded import Runs
from src.auditing.selection import choose
from src.auditing.verdicts import (
    CONTRADICTED,
    NOT_REPRODUCED,
    NOT_TESTABLE,
    OTHER_READING,
    REPRODUCED,
)
from src.core.config import resolve
from src.tracking.run import flatten

CONF = Path(__file__).resolve().parents[2] / "conf"


@pytest.fixture(scope="module")
def papers() -> dict[str, Paper]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return {
            name: parse(resolve(compose("command/audit", [f"paper={name}"]))["paper"])
            for name in ("mamun2025", "sun2023")
        }


def audited(paper: Paper) -> Audit:
    return audit(paper, Runs(pd.DataFrame(columns=["run_id", "status"]), None, paper))


@pytest.fixture(scope="module")
def mamun(papers: dict[str, Paper]) -> Audit:
    return audited(papers["mamun2025"])


@pytest.fixture(scope="module")
def sun(papers: dict[str, Paper]) -> Audit:
    return audited(papers["sun2023"])


@pytest.fixture(scope="module")
def quotable(shared_data: Path) -> str:
    """The papers' texts without line ends."""
    texts = sorted((shared_data.parent / "seeds").glob("*.txt"))
    if not texts:
        pytest.skip("the papers' texts are not there")
    return " ".join(" ".join(path.read_text(encoding="utf-8") for path in texts).split())


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
    multiply_adds = (
        62**2 * 32 * 27 + 29**2 * 64 * 288 + 12**2 * 128 * 576 + 4608 * 128 + 128 * 64 + 64 * 7
    )
    assert multiply_adds == 30_037_824
    assert values(mamun, "flops_custom") == [531_465_984, 505_908_992, 30_037_824]
    for name in ("parameters_custom", "flops_custom"):
        assert claim(mamun, name).verdict.name == OTHER_READING
        assert claim(mamun, name).verdict.outcome.reading == "64 px, no padding, dense 128 and 64"  # type: ignore[union-attr]
    assert values(mamun, "gap_parameters") == [
        128_071,
        convolutions + 128 * 128 + 128 + 128 * 64 + 64 + 64 * 7 + 7,
    ]
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
        assert claim(mamun, name).claim.readings[2].measured.less == "custom"  # type: ignore[union-attr]
        assert points == pytest.approx(0.0203)
        assert relative == pytest.approx(2.03 / 89.08)
        assert math.isnan(measured)
        assert claim(mamun, name).verdict.name == CONTRADICTED


def test_mamun_memory_is_less_under_the_reading_that_gives_the_counts(mamun: Audit) -> None:
    assert values(mamun, "memory") == pytest.approx(
        [25_785_415 / 23_522_375, 691_911 / 23_522_375], rel=0.01
    )
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
def test_sun_parameters_are_keras_counts_of_a_3x3_map(
    sun: Audit, name: str, backbone: int, inputs: int
) -> None:
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
def test_sun_specificities_are_true_negatives_over_all_images(
    sun: Audit, name: str, hits: int, false: int
) -> None:
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
    for name in (
        "images",
        "patients",
        "oversampled",
        "test_size",
        "stratified",
        "imagenet_accuracy",
    ):
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
    assert (
        verdicts["not_better_auc"] == NOT_TESTABLE
    )  # the lead, 0.002, is a lower bound in standard errors
    assert "never that it is not" in claim(sun, "not_better_auc").reason
    assert (verdicts["among_best_auc"], values(sun, "among_best_auc")) == (REPRODUCED, [2])
    assert verdicts["low_false_positives"] == CONTRADICTED
    per_true, false, true = values(sun, "low_false_positives")
    assert per_true == pytest.approx(588 / 54, rel=2e-3)
    assert (false, true) == pytest.approx((588, 54), rel=2e-3)
    assert verdicts["not_better_specificity"] == CONTRADICTED
    assert (588 - 297) / math.sqrt(588 + 297) > 9  # McNemar's statistic however the answers pair
    assert {verdicts[name] for name in ("better_recall", "vgg16_worse")} == {NOT_TESTABLE}
    assert {verdicts[name] for name in ("fewest_parameters", "least_time")} == {REPRODUCED}


@pytest.mark.parametrize("name", ["mamun", "sun"])
def test_without_runs_what_is_measured_is_not_testable_and_says_how(
    name: str, request: pytest.FixtureRequest
) -> None:
    done: Audit = request.getfixturevalue(name)
    measured = [
        each for each in done.claims if any(reading.measured for reading in each.claim.readings[:1])
    ]
    assert measured
    for each in measured:
        assert each.verdict.name == NOT_TESTABLE
        if not each.claim.untestable:
            assert f"are recorded; record them: {done.paper.command}" in each.reason


@pytest.mark.parametrize("name", ["mamun", "sun"])
def test_files_hold_every_claim_and_every_reading(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    done: Audit = request.getfixturevalue(name)
    tables.write(done, tmp_path, "Made then.")
    claims, readings = pd.read_csv(tmp_path / "claims.csv"), pd.read_csv(tmp_path / "readings.csv")
    assert list(claims["id"]) == [each.id for each in done.paper.claims]
    assert len(readings) == sum(len(each.readings) for each in done.paper.claims)
    assert claims["verdict"].value_counts().to_dict() == {
        name: n for name, n in done.counts.items() if n
    }
    assert claims["reason"].str.len().min() > 0
    text = (tmp_path / "audit.md").read_text()
    for each in done.claims:
        assert f"### {each.claim.id}\n" in text
        assert each.claim.claim in text


def test_mamun_dense_and_costs(mamun: Audit) -> None:
    assert values(mamun, "dense_dominates")[0] == pytest.approx(100_352 * 256 / 25_785_415)
    assert claim(mamun, "dense_dominates").verdict.name == REPRODUCED
    flops, parameters, _, flops_drawn, parameters_drawn, _ = values(mamun, "flops_predict_time")
    assert (parameters, parameters_drawn) == pytest.approx(
        (23_522_375 / 691_911, 23_522_375 / 25_785_415)
    )
    assert (flops, flops_drawn) == pytest.approx(
        (4.1095e9 / 30_037_824, 4.1095e9 / 531_465_984), rel=1e-3
    )
    for name in ("memory", "latency"):  # a word's limit is said
        assert claim(mamun, name).printed == "significantly reduces (less than 0.5)"
        assert "at least twofold" in claim(mamun, name).claim.note


def test_the_split_by_lesion_decides_the_melanoma_recall(mamun: Audit) -> None:
    first, leaking, _ = claim(mamun, "melanoma_recall").claim.readings
    assert first.measured == MeasuredClaim(system="custom_grouped", metric="recall/mel")
    assert leaking.measured == MeasuredClaim(system="custom", metric="recall/mel")
    assert (first.beside, leaking.beside) == (False, True)


class Told:
    """Runs that say one figure of everything."""

    def __init__(self, value: float, low: float, high: float) -> None:
        self.found = Found(value, low, high, f"{value:g}", frozenset({"measured"}), "m")

    def measure(self, wanted: MeasuredClaim) -> Found:
        return self.found


def only(paper: Paper, *starts: str) -> Paper:
    """Nothing is counted for the other claims."""
    return paper.model_copy(
        update={"claims": [each for each in paper.claims if each.id.startswith(starts)]}
    )


def test_a_measured_specificity_is_divided_as_the_paper_divides(papers: dict[str, Paper]) -> None:
    deciding = only(
        papers["sun2023"], "precision", "recall", "specificity", "auc", "svm", "majority"
    )
    done = audit(deciding, Told(0.9097, 0.9095, 0.9099))
    # 588 false positives: (6509 - 588) / 6509 = 0.9097, and over all 6,626 images the printed
    # 0.8936
    specificity = claim(done, "specificity_mobilenet")
    assert specificity.verdict.name == REPRODUCED
    assert specificity.outcomes[0].found.value == pytest.approx(0.9097 * 6509 / 6626)
    assert (specificity.outcomes[1].beside, specificity.outcomes[1].agrees) == (True, False)
    assert claim(done, "svm_worse").verdict.name == REPRODUCED
    assert claim(done, "majority_class").verdict.name == NOT_REPRODUCED


def test_an_interval_around_the_limit_is_undecided(papers: dict[str, Paper]) -> None:
    recall = claim(
        audit(only(papers["mamun2025"], "melanoma"), Told(0.78, 0.7, 0.85)), "melanoma_recall"
    )
    assert recall.verdict.name == NOT_TESTABLE
    assert recall.reason.startswith("undecided: the interval contains the limit")


@pytest.mark.parametrize("name", ["mamun2025", "sun2023"])
def test_a_preset_is_the_system_that_its_runs_are_held_to(
    name: str, papers: dict[str, Paper]
) -> None:
    systems = papers[name].systems
    with initialize_config_dir(str(CONF), version_base="1.3"):
        presets = {
            preset: flatten(resolve(compose("train", [f"experiment={preset}"])))
            for preset in {system.preset for system in systems.values()}
        }
    for named, system in systems.items():
        row = {f"params.{key}": value for key, value in presets[system.preset].items()}
        row |= {
            "tags.preset": system.preset,
            "tags.data": system.data,
            "tags.split": system.split,
            "tags.kind": "run",
        }
        row |= {
            "metrics.test/accuracy": "0.5",
            "metrics.data/images/test": "6626",
            "tags.seed": "0",
            "run_id": "r",
        }
        row |= {"tags.weights": "imagenet", "status": "FINISHED"}
        row |= {
            key: str(value) for key, value in system.fixed.items() if key.startswith("metrics.")
        }
        if named == "unbalanced":
            row |= {
                "params.data.oversample": "null",
                "params.loss._target_": "src.losses.cross_entropy.CrossEntropy",
            }
            row |= {"params.loss.gamma": "", "params.loss.weighted": "false"}
        assert not choose(pd.DataFrame([row]), system).problems, named
        assert choose(pd.DataFrame([row | {"params.data.image_size": "8"}]), system).problems, named


def test_the_parameters_that_runs_are_held_to_are_the_counted_ones(mamun: Audit) -> None:
    systems, key = mamun.paper.systems, "metrics.efficiency/params"
    drawn, pooled, _, small = values(mamun, "parameters_custom")
    assert [systems[name].fixed[key] for name in ("drawn", "pooled", "custom")] == [
        drawn,
        pooled,
        small,
    ]
    assert systems["resnet50"].fixed[key] == values(mamun, "parameters_resnet50")[0]


def test_claims_are_quoted(mamun: Audit, sun: Audit, quotable: str) -> None:
    for name in ("per_class", "dense_dominates", "flops_predict_time", "transferability"):
        assert claim(mamun, name).claim.claim.strip(".") in quotable
    for name in ("among_best_auc", "low_false_positives", "svm_worse", "majority_class"):
        assert claim(sun, name).claim.claim.strip(".") in quotable
