"""The clinical audit: its figures, their names, what few lesions allow, what it refuses."""

import numpy as np
import pandas as pd
import pytest
from clinical_cases import frame, made_up
from scipy.optimize import brentq
from scipy.special import betainc
from scipy.stats import binom

from src.core.errors import ConfigError, UserError
from src.metrics import curves
from src.metrics.bootstrap import curve_statistics, estimates, gather, intervals
from src.metrics.settings import AuditSettings
from src.metrics.thresholds import points
from src.reporting.clinical.audit import audit
from src.reporting.clinical.presentation import markdown
from src.reporting.clinical.results import ClinicalAudit, RecallVerdict

SETTINGS = AuditSettings(samples=100)


def people(table: pd.DataFrame) -> pd.DataFrame:
    number = np.arange(len(table))
    return pd.DataFrame(
        {
            "image_id": table["image_id"],
            "age": 25 + 10 * (number % 7),
            "sex": np.where(number % 2, "male", "=1+1"),  # what a spreadsheet would run
            "localization": np.where(number % 5, "back", "a | b <i>"),
        }
    )


def proportion(estimate: float, groups: int) -> tuple[float, float]:
    """Clopper and Pearson's limits: rates at which so many, or so few, have a chance of 2.5%."""
    hits = estimate * groups
    low = brentq(lambda p: betainc(hits, groups - hits + 1, p) - 0.025, 0, 1) if hits else 0.0
    high = (
        brentq(lambda p: betainc(hits + 1, groups - hits, p) - 0.975, 0, 1)
        if hits < groups
        else 1.0
    )
    return low, high


@pytest.fixture(scope="module")
def found() -> ClinicalAudit:
    test = made_up(11)
    return audit(test, made_up(12), people(test[0]), SETTINGS)


def test_the_headline_figures_go_by_their_record_names(found: ClinicalAudit) -> None:
    curves = ("auroc", "average_precision", "auroc_above_80_sensitivity", "pauc_80")
    by_class = {f"test/{name}/{label}" for label in found.classes for name in curves}
    errors = {
        f"test/{name}{end}"
        for name in ("ece", "adaptive_ece", "brier", "nll")
        for end in ("", "_scaled")
    }
    fixed = {
        f"test/{name}{at}/mel"
        for name in ("sensitivity_at_spec", "specificity_at_sens")
        for at in (80, 90, 95)
    }
    chosen = {f"test/chosen/{name}/mel" for name in ("sensitivity", "specificity", "ppv", "npv")}
    assert set(found.metrics) == by_class | errors | fixed | chosen | {
        "test/isic_balanced_accuracy",
        "test/temperature",
    }
    assert all(np.isfinite(value) for value in found.metrics.values())


def test_tables_agree_with_the_analysis_and_with_each_other(found: ClinicalAudit) -> None:
    there = intervals(made_up(11), samples=100).set_index("metric")
    for row in found.per_class.to_dict("records"):
        estimate, low, high = there.loc[
            f"{row['measure']}/{row['class']}", ["estimate", "low", "high"]
        ]
        if row["measure"] != "f1":  # a share: the wider one, end by end
            exact = proportion(row["estimate"], row["groups"])
            low, high = min(low, exact[0]), max(high, exact[1])
        assert [row["estimate"], row["low"], row["high"]] == pytest.approx([estimate, low, high])
    argmax = found.operating.set_index(["rule", "measure"]).loc[("argmax", "sensitivity")]
    assert argmax["estimate"] == pytest.approx(there.loc["recall/mel", "estimate"])
    assert (found.verdicts[0].low, found.verdicts[0].high) == (argmax["low"], argmax["high"])
    argmax = found.operating[found.operating["rule"] == "argmax"].set_index("measure")
    mine = found.per_class[found.per_class["class"] == "mel"].set_index("measure")
    columns = ["estimate", "low", "high", "interval", "images", "groups"]
    for one, other in (
        ("sensitivity", "recall"),
        ("specificity", "specificity"),
        ("ppv", "precision"),
    ):
        assert (
            argmax.loc[one, columns].to_list() == mine.loc[other, columns].to_list()
        )  # one figure, one interval
    assert found.subgroups.iloc[0]["estimate"] == pytest.approx(
        there.loc["balanced_accuracy", "estimate"]
    )
    assert found.metrics["test/auroc/mel"] == pytest.approx(
        found.isic.set_index("class").loc["mel", "auc"]
    )
    assert (found.images, found.lesions, found.seeds) == (240, 120, 2)
    assert found.positives == (made_up(11)[0]["label"] == "mel").sum()


def test_a_good_net_passes_and_a_bad_one_fails() -> None:
    good = audit(made_up(1, skill=6), settings=SETTINGS).verdicts[0]
    bad = audit(made_up(1, skill=0), settings=SETTINGS).verdicts[0]
    assert (good.outcome, bad.outcome) == ("PASS", "FAIL")


def test_without_validation_and_metadata_the_rest_is_there() -> None:
    found = audit(
        made_up(2, names=("benign", "malignant"), nets=1), settings=SETTINGS, split="isic2019"
    )
    assert found.positive == "malignant"
    assert found.temperatures == ()
    assert set(found.operating["rule"]) == {"argmax"}
    assert not any(
        "scaled" in name or "chosen" in name or "temperature" in name for name in found.metrics
    )
    assert all(name.startswith("isic2019/") for name in found.metrics)
    assert any("no threshold was chosen" in note for note in found.notes)
    assert "subgroups" not in found.tables


def test_images_without_the_class_leave_the_verdict_open() -> None:
    test = [table[table["label"] != "mel"] for table in made_up(3)]
    found = audit(test, made_up(4), people(test[0]), SETTINGS)
    assert {verdict.outcome for verdict in found.verdicts} == {"UNDECIDED"}
    assert "test/auroc/mel" not in found.metrics
    assert any("No images of mel" in note for note in found.notes)
    assert "not known" in markdown(found)


def test_nets_and_classes_must_be_the_same_on_validation() -> None:
    with pytest.raises(UserError, match="validation was predicted by 1 nets, these images by 2"):
        audit(made_up(1), made_up(2, nets=1), settings=SETTINGS)
    with pytest.raises(UserError, match="validation has the classes"):
        audit(made_up(1), made_up(2, names=("nv", "mel")), settings=SETTINGS)


def test_the_class_looked_for_is_named_or_found() -> None:
    assert AuditSettings().looked_for(("nv", "MEL")) == "MEL"
    assert AuditSettings(positive="nv").looked_for(("nv", "mel")) == "nv"
    with pytest.raises(ConfigError, match="positive: must be one of nv, mel, but got 'bcc'"):
        AuditSettings(positive="bcc").looked_for(("nv", "mel"))
    with pytest.raises(ConfigError, match="positive: none of a, b is called melanoma"):
        audit(made_up(1, names=("a", "b")), settings=SETTINGS)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("goal", 0.0),
        ("sensitivity", 1.0),
        ("specificity", 1.5),
        ("level", 0),
        ("fixed", [0.9, 1.0]),
        ("samples", 99),
        ("smallest", 0),
        ("seed", -1),
    ],
)
def test_settings_out_of_range_are_refused(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: must be"):
        AuditSettings(**{key: value})  # type: ignore[arg-type]


NAMES = ("nv", "mel")


def found_of(found: int, lesions: int, others: int = 3) -> pd.DataFrame:
    """So many of the lesions are found, all others are rejected; an image a lesion."""
    target = np.array([1] * lesions + [0] * others)
    predicted = np.array([1] * found + [0] * (lesions - found + others))
    return frame(np.eye(2)[predicted], target, NAMES)


@pytest.mark.parametrize("lesions", [16, 20, 30])
def test_a_recall_just_below_the_goal_passes_in_one_of_forty_at_most(lesions: int) -> None:
    outcomes, lows = [], []
    for found in range(lesions + 1):
        row = points(
            gather([found_of(found, lesions)]), None, "mel", AuditSettings(samples=500)
        ).iloc[0]
        figures = (row["estimate"], row["low"], row["high"], row["estimate"])
        outcomes.append(RecallVerdict("argmax", "mel", 0.80, *figures, lesions, lesions).outcome)
        lows.append(row["low"])
    rise = np.diff(lows)
    assert np.all(rise >= 0)  # more found is never less proof
    assert np.all(rise[lesions // 2 :] > 0)
    chance = binom.pmf(np.arange(lesions + 1), lesions, 0.79)
    assert chance[[outcome == "PASS" for outcome in outcomes]].sum() <= 0.025
    assert outcomes[0] == "FAIL"


def test_one_lesion_of_the_class_gives_no_interval_to_an_order() -> None:
    rng = np.random.default_rng(0)
    target = np.array([1] * 4 + [0] * 60)
    group = np.concatenate([[0] * 4, np.arange(1, 61)])  # four images of one melanoma
    score = rng.random(64)
    table = frame(np.stack([1 - score, score], axis=1), target, NAMES, group)
    given_ = gather([table])
    statistics = curves.CURVES | curves.fixed_points((0.9,))
    found = estimates(given_, [curve_statistics(given_, "mel", statistics)], SETTINGS)
    assert found["estimate"].notna().all()
    assert found[["low", "high"]].isna().all(axis=None)
    assert set(found["images"]) == {4}
    assert set(found["groups"]) == {1}
    overall = audit([table], settings=SETTINGS).overall.set_index("metric")
    assert overall["low"].isna().to_dict() == {
        name: name != "accuracy"
        for name in ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "isic_balanced_accuracy")
    }


def test_what_no_resampling_changes_has_no_interval() -> None:
    target = np.arange(40) % 2
    perfect = audit([frame(np.eye(2)[target], target, NAMES)], settings=SETTINGS)
    assert perfect.ranking["low"].isna().all()
    overall = perfect.overall.set_index("metric")
    assert overall.drop(index="accuracy")["low"].isna().all()
    per_class = perfect.per_class.set_index(["class", "measure"])
    assert per_class.loc[("mel", "f1"), "estimate"] == 1
    assert per_class.loc[("mel", "f1"), ["low", "high", "interval"]].fillna("").to_list() == [
        "",
        "",
        "",
    ]
    assert per_class.loc[("mel", "precision"), "low"] == pytest.approx(0.025 ** (1 / 20))
    assert overall.loc["accuracy", "low"] == pytest.approx(0.025 ** (1 / 40))
    wrong = audit(
        [frame(np.eye(2)[1 - target], target, NAMES)], settings=SETTINGS
    ).per_class.set_index(["class", "measure"])
    assert wrong.loc[("mel", "f1"), "estimate"] == 0
    assert np.isnan(wrong.loc[("mel", "f1"), "low"])


def test_a_subgroup_is_measured_by_its_lesions() -> None:
    target = np.array([1] * 12 + [0] * 20)
    group = np.concatenate(
        [np.arange(12) // 4, np.arange(3, 23)]
    )  # twelve images of three melanomas
    table = frame(np.eye(2)[target], target, NAMES, group)
    people = pd.DataFrame({"image_id": table["image_id"], "sex": "male"})
    rows = audit([table], metadata=people, settings=SETTINGS).subgroups.set_index(["by", "measure"])
    assert rows.loc[("sex", "recall"), "note"] == "too few: 3 lesions of mel"
    assert tuple(rows.loc[("sex", "recall"), ["positives", "positive_lesions"]]) == (12, 3)
    assert np.isnan(rows.loc[("sex", "recall"), "estimate"])
    assert rows.loc[("sex", "balanced_accuracy"), "note"].startswith(
        "too few: fewer than two classes"
    )


def test_a_mean_over_classes_rests_on_the_rarest() -> None:
    tables = made_up(4, images=60, nets=1)
    given_ = gather(tables)
    overall = audit(tables, settings=SETTINGS).overall.set_index("metric")
    fewest = tables[0].groupby("label")["group"].nunique().min()
    assert set(overall.drop(index="accuracy")["groups"]) == {fewest}
    assert overall.loc["accuracy", "groups"] == given_.groups
