"""The clinical audit: its figures, their names, what few lesions allow, what it refuses."""

import numpy as np
import pandas as pd
import pytest
from clinical_cases import frame, made_up, people
from scipy.optimize import brentq
from scipy.special import betainc
from scipy.stats import binom
from sklearn.metrics import recall_score

from src.core.errors import ConfigError, UserError
from src.metrics import curves
from src.metrics.bootstrap import curve_statistics, estimates, gather, intervals
from src.metrics.decision_rules import with_decisions
from src.metrics.settings import AuditSettings
from src.metrics.thresholds import points
from src.reporting.clinical import plots, presentation
from src.reporting.clinical.audit import audit, verdicts
from src.reporting.clinical.presentation import markdown
from src.reporting.clinical.results import ClinicalAudit, RecallVerdict

SETTINGS = AuditSettings(samples=100)
NAMES = ("nv", "mel")


def proportion(estimate: float, groups: int) -> tuple[float, float]:
    """Clopper and Pearson's limits: rates at which so many, or so few, have a chance of 2.5%."""
    hits, low, high = estimate * groups, 0.0, 1.0
    if hits:
        low = brentq(lambda p: betainc(hits, groups - hits + 1, p) - 0.025, 0, 1)
    if hits < groups:
        high = brentq(lambda p: betainc(hits + 1, groups - hits, p) - 0.975, 0, 1)
    return low, high


def test_record_names(audited: ClinicalAudit) -> None:
    parts = [
        (("auroc", "average_precision", "auroc_above_80_sensitivity", "pauc_80"), audited.classes),
        ([f"sensitivity_at_spec{at}" for at in (80, 90, 95)], ["mel"]),
        ([f"specificity_at_sens{at}" for at in (80, 90, 95)], ["mel"]),
        ([f"chosen/{rate}" for rate in ("sensitivity", "specificity", "ppv", "npv")], ["mel"]),
    ]
    expected = {
        f"test/{name}/{label}" for names, labels in parts for name in names for label in labels
    }
    errors = [f"test/{name}" for name in ("ece", "adaptive_ece", "brier", "nll")]
    expected |= {f"{name}{end}" for name in errors for end in ("", "_scaled")}
    assert set(audited.metrics) == expected | {"test/isic_balanced_accuracy", "test/temperature"}
    assert all(np.isfinite(value) for value in audited.metrics.values())


def test_tables_agree_with_the_bootstrap_and_with_each_other(audited: ClinicalAudit) -> None:
    ends = ["estimate", "low", "high"]
    reference = intervals(made_up(11), samples=100).set_index("metric")
    for row in audited.per_class.to_dict("records"):
        estimate, low, high = reference.loc[f"{row['measure']}/{row['class']}", ends]
        if row["measure"] != "f1":  # a share: the wider one, end by end
            exact = proportion(row["estimate"], row["groups"])
            low, high = min(low, exact[0]), max(high, exact[1])
        assert [row[name] for name in ends] == pytest.approx([estimate, low, high])
    argmax = audited.operating[audited.operating["rule"] == "argmax"].set_index("measure")
    recall = argmax.loc["sensitivity"]
    assert recall["estimate"] == pytest.approx(reference.loc["recall/mel", "estimate"])
    assert (audited.verdicts[0].low, audited.verdicts[0].high) == (recall["low"], recall["high"])
    melanoma = audited.per_class[audited.per_class["class"] == "mel"].set_index("measure")
    columns = [*ends, "interval", "images", "groups"]
    pairs = {"sensitivity": "recall", "specificity": "specificity", "ppv": "precision"}
    for rate, measure in pairs.items():  # one figure, one interval
        assert argmax.loc[rate, columns].to_list() == melanoma.loc[measure, columns].to_list()
    balanced = reference.loc["balanced_accuracy", "estimate"]
    assert audited.subgroups.iloc[0]["estimate"] == pytest.approx(balanced)
    isic = audited.isic.set_index("class").loc["mel", "auc"]
    assert audited.metrics["test/auroc/mel"] == pytest.approx(isic)
    assert (audited.images, audited.lesions, audited.seeds) == (240, 120, 2)
    assert audited.positives == (made_up(11)[0]["label"] == "mel").sum()


@pytest.mark.parametrize(("skill", "outcome"), [(6, "PASS"), (0, "FAIL")])
def test_a_good_net_passes_and_a_bad_one_fails(skill: float, outcome: str) -> None:
    assert audit(made_up(1, skill=skill, nets=1), settings=SETTINGS).verdicts[0].outcome == outcome


def test_only_the_class_and_the_threshold_for_sensitivity_are_judged() -> None:
    rules = ("argmax", "sensitivity >= 0.8", "specificity >= 0.9")
    rows = [
        {"rule": rule, "measure": measure, "estimate": 0.9, "low": 0.85, "high": 0.95}
        for rule in rules
        for measure in ("sensitivity", "ppv")
    ]
    table = pd.DataFrame(rows).assign(images=30, groups=20, problem="")
    judged = [
        (verdict.rule, verdict.outcome)
        for verdict in verdicts(table, "mel", AuditSettings(goal=0.8))
    ]
    assert judged == [(rule, "PASS") for rule in rules[:2]]


def test_without_validation_and_metadata() -> None:
    test = made_up(2, names=("benign", "malignant"), nets=1)
    result = audit(test, settings=SETTINGS, split="isic2019")
    assert (result.positive, result.temperatures) == ("malignant", ())
    assert set(result.operating["rule"]) == {"argmax"}
    absent = ("scaled", "chosen", "temperature")
    assert not [name for name in result.metrics if any(word in name for word in absent)]
    assert all(name.startswith("isic2019/") for name in result.metrics)
    assert any("no threshold was chosen" in note for note in result.notes)
    assert "subgroups" not in result.tables


def test_images_without_the_class_leave_the_verdict_open() -> None:
    test = [table[table["label"] != "mel"] for table in made_up(3, nets=1)]
    result = audit(test, made_up(4, nets=1), people(test[0]), SETTINGS)
    assert {verdict.outcome for verdict in result.verdicts} == {"UNDECIDED"}
    assert "test/auroc/mel" not in result.metrics
    assert any("No images of mel" in note for note in result.notes)
    assert "not known" in markdown(result)


def test_nets_and_classes_must_be_the_same_on_validation() -> None:
    with pytest.raises(UserError, match="validation was predicted by 1 nets, these images by 2"):
        audit(made_up(1), made_up(2, nets=1), settings=SETTINGS)
    with pytest.raises(UserError, match="validation has the classes"):
        audit(made_up(1), made_up(2, names=("nv", "mel")), settings=SETTINGS)


def test_the_class_looked_for() -> None:
    assert AuditSettings().looked_for(("nv", "MEL")) == "MEL"
    assert AuditSettings(positive="nv").looked_for(NAMES) == "nv"
    with pytest.raises(ConfigError, match="positive: must be one of nv, mel, but got 'bcc'"):
        AuditSettings(positive="bcc").looked_for(NAMES)
    with pytest.raises(ConfigError, match="positive: none of a, b is called melanoma"):
        audit(made_up(1, names=("a", "b")), settings=SETTINGS)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("goal", 0.0), ("sensitivity", 1.0), ("specificity", 1.5), ("level", 0)),
        *(("fixed", [0.9, 1.0]), ("samples", 99), ("smallest", 0), ("seed", -1)),
    ],
)
def test_settings_out_of_range_are_refused(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: input should be"):
        AuditSettings(**{key: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("lesions", [16, 30])
def test_a_recall_just_below_the_goal_passes_in_one_of_forty_at_most(lesions: int) -> None:
    outcomes, lows, target = [], [], np.array([1] * lesions + [0] * 3)
    for hits in range(lesions + 1):
        predicted = np.array([1] * hits + [0] * (lesions - hits + 3))
        predictions = gather([frame(np.eye(2)[predicted], target, NAMES)])
        row = points(predictions, None, "mel", SETTINGS).iloc[0]
        figures = (row["estimate"], row["low"], row["high"], row["estimate"])
        outcomes.append(RecallVerdict("argmax", "mel", 0.80, *figures, lesions, lesions).outcome)
        lows.append(row["low"])
    rise = np.diff(lows)
    assert np.all(rise >= 0)  # more hits are never less proof
    assert np.all(rise[lesions // 2 :] > 0)
    chance = binom.pmf(np.arange(lesions + 1), lesions, 0.79)
    assert chance[[outcome == "PASS" for outcome in outcomes]].sum() <= 0.025
    assert outcomes[0] == "FAIL"


def test_one_lesion_of_the_class_gives_no_interval_to_a_ranking() -> None:
    target = np.array([1] * 4 + [0] * 60)
    group = np.concatenate([[0] * 4, np.arange(1, 61)])  # four images of one melanoma
    score = np.random.default_rng(0).random(64)
    table = frame(np.stack([1 - score, score], axis=1), target, NAMES, group)
    predictions = gather([table])
    statistics = curves.CURVES | curves.fixed_points((0.9,))
    rows = estimates(predictions, [curve_statistics(predictions, "mel", statistics)], SETTINGS)
    assert rows["estimate"].notna().all()
    assert rows[["low", "high"]].isna().all(axis=None)
    assert (set(rows["images"]), set(rows["groups"])) == ({4}, {1})
    overall = audit([table], settings=SETTINGS).overall
    assert set(overall.loc[overall["low"].notna(), "metric"]) == {"accuracy"}
    assert len(overall) == 5


def test_what_no_resampling_changes_has_no_interval() -> None:
    target = np.arange(40) % 2
    perfect = audit([frame(np.eye(2)[target], target, NAMES)], settings=SETTINGS)
    # all of 20 lesions are separated: the exact interval of a share, whose lower end is 0.83
    exact = ["accuracy", "auroc", "average_precision"]
    ranking = perfect.ranking.set_index("metric")
    assert ranking.drop(index=exact, errors="ignore")["low"].isna().all()
    overall = perfect.overall.set_index("metric")
    assert overall.drop(index=exact, errors="ignore")["low"].isna().all()
    areas = [*ranking.loc[["auroc", "average_precision"], "low"], overall.loc["auroc", "low"]]
    assert areas == pytest.approx([0.025 ** (1 / 20)] * 5)
    per_class = perfect.per_class.set_index(["class", "measure"])
    f1 = per_class.loc[("mel", "f1"), ["estimate", "low", "high", "interval"]]
    assert f1.fillna("").to_list() == [1, "", "", ""]
    assert per_class.loc[("mel", "precision"), "low"] == pytest.approx(0.025 ** (1 / 20))
    assert overall.loc["accuracy", "low"] == pytest.approx(0.025 ** (1 / 40))
    wrong = audit([frame(np.eye(2)[1 - target], target, NAMES)], settings=SETTINGS).per_class
    wrong = wrong.set_index(["class", "measure"]).loc[("mel", "f1")]
    assert wrong["estimate"] == 0
    assert np.isnan(wrong["low"])


def test_a_subgroup_is_measured_by_its_lesions() -> None:
    target = np.array([1] * 12 + [0] * 20)
    group = np.concatenate([np.arange(12) // 4, np.arange(3, 23)])  # 12 images of 3 melanomas
    table = frame(np.eye(2)[target], target, NAMES, group)
    metadata = pd.DataFrame({"image_id": table["image_id"], "sex": "male"})
    rows = audit([table], metadata=metadata, settings=SETTINGS).subgroups
    rows = rows[rows["by"] == "sex"].set_index("measure")
    recall = rows.loc["recall", ["note", "positives", "positive_lesions"]]
    assert recall.to_list() == ["too few: 3 lesions of mel", 12, 3]
    assert np.isnan(rows.loc["recall", "estimate"])
    balanced = rows.loc["balanced_accuracy", "note"]
    assert balanced.startswith("too few: fewer than two classes")


def test_a_mean_over_classes_rests_on_the_rarest() -> None:
    tables = made_up(4, images=60, nets=1)
    overall = audit(tables, settings=SETTINGS).overall.set_index("metric")
    fewest = tables[0].groupby("label")["group"].nunique().min()
    assert set(overall.drop(index="accuracy")["groups"]) == {fewest}
    assert overall.loc["accuracy", "groups"] == gather(tables).groups


def test_the_audit_is_by_the_decision_rule_of_the_predictions() -> None:
    val = [with_decisions(table, "balanced") for table in made_up(12)]
    nets = zip(made_up(11), val, strict=True)
    test = [with_decisions(table, "balanced", fitted_on) for table, fitted_on in nets]
    result = audit(test, val, settings=AuditSettings(samples=100))
    pairs = [(table["label"], table["decision/balanced"]) for table in test]
    recalls = [recall_score(*pair, labels=["mel"], average=None)[0] for pair in pairs]
    first, second = result.verdicts
    assert (first.rule, first.by) == ("balanced", "the decision rule balanced")
    assert first.recall == pytest.approx(np.mean(recalls))
    per_class = result.per_class.set_index(["class", "measure"])["estimate"]
    assert per_class["mel", "recall"] == pytest.approx(first.recall)
    on_val = result.operating.set_index(["rule", "measure"])["val"]["balanced", "sensitivity"]
    own = [(t["decision/balanced"] == "mel")[t["label"] == "mel"].mean() for t in val]
    assert on_val == pytest.approx(np.mean(own))
    # thresholds and calibration are those of the probabilities
    argmax = audit(made_up(11), made_up(12), settings=AuditSettings(samples=100))
    assert second.recall == argmax.verdicts[1].recall
    pd.testing.assert_frame_equal(result.calibration, argmax.calibration)
    tables = presentation.audit_tables(result)
    assert tables[1].title == "Each class, by the decision rule balanced"
    [legend] = plots.curves(result, "auroc").legends
    assert "decision rule balanced" in [text.get_text() for text in legend.get_texts()]
