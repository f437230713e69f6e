"""What the clinical audit says in words: warnings first, which rule a figure is by, and nothing that is not so."""

import io
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from clinical_cases import frame, made_up
from matplotlib.figure import Figure
from rich.console import Console

from src.metrics.settings import AuditSettings
from src.reporting.clinical import page as pages
from src.reporting.clinical import page as sheets
from src.reporting.clinical import page as words
from src.reporting.clinical import plots
from src.reporting.clinical.audit import audit
from src.reporting.clinical.record import ClinicalAudit

FEW = AuditSettings(samples=100)
NAMES = ("nv", "mel")
LEAK = "The split leaks: lesions are on both sides."


def sexes(table: pd.DataFrame, known: int | None = None) -> pd.DataFrame:
    about = pd.DataFrame(
        {
            "image_id": table["image_id"],
            "sex": np.where(np.arange(len(table)) % 2, "male", "female"),
        }
    )
    return about[:known]


@pytest.fixture(scope="module")
def warned() -> ClinicalAudit:
    test = made_up(11)
    return audit(test, made_up(12), sexes(test[0]), FEW, notes=[LEAK])


def on_terminal(found: ClinicalAudit) -> str:
    screen = Console(width=100, file=io.StringIO(), color_system=None)
    for part in pages.render(found):
        screen.print(part)
    return screen.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_warnings_come_first_and_stand_beside_every_verdict(warned: ClinicalAudit) -> None:
    assert warned.notes[0] == LEAK
    assert on_terminal(warned).startswith(f"Beware: {LEAK}")
    page = pages.markdown(warned)
    assert page.split("\n\n")[1].startswith(f"- Beware: {LEAK}\n")
    assert all(verdict.text.endswith(f"Beware: {LEAK}") for verdict in warned.verdicts)
    assert page.count(LEAK) == 1 + len(warned.verdicts)


def test_a_threshold_that_every_image_passes_decides_nothing() -> None:
    target = np.array([1] * 60 + [0] * 60)
    constant = frame(np.full((120, 2), 0.5), target, NAMES)
    by_class, by_threshold = audit([constant], [constant], settings=FEW).verdicts
    assert by_threshold.low > 0.8
    assert (by_threshold.outcome, by_threshold.specificity) == ("UNDECIDED", 0)
    assert "specificity of 0.000" in by_threshold.text
    assert "every image passes" in by_threshold.text
    assert by_class.outcome == "FAIL"


def test_a_verdict_says_what_its_recall_costs(warned: ClinicalAudit) -> None:
    reached = warned.operating.set_index(["rule", "measure"])["estimate"]
    for verdict in warned.verdicts:
        assert verdict.specificity == reached[verdict.rule, "specificity"]
        assert f"at a specificity of {verdict.specificity:.3f}" in verdict.text


def test_on_validation_itself_nothing_is_said_to_be_missing() -> None:
    found = audit(made_up(2), settings=FEW, split="val")
    page = pages.markdown(found)
    assert "No validation predictions" not in page
    assert "chosen on these very images" in page
    assert "fitted on these images: not scaled" in page
    assert "thresholds chosen on validation" not in page


def test_a_subgroups_recall_is_by_a_rule_that_is_named(warned: ClinicalAudit) -> None:
    test, val = made_up(11), made_up(12)
    male = sexes(test[0])["sex"] == "male"
    rows = warned.subgroups.set_index(["subgroup", "measure"])["estimate"]
    # the strictest of val's own scores that four of five of its melanomas reach
    scores = [np.sort(table.loc[table["label"] == "mel", "p/mel"])[::-1] for table in val]
    values = [each[int(np.ceil(0.8 * len(each))) - 1] for each in scores]
    own = [table.loc[male & (table["label"] == "mel"), "p/mel"] for table in test]
    expected = np.mean([(each >= value).mean() for each, value in zip(own, values, strict=True)])
    assert rows["male", "recall_at_threshold"] == pytest.approx(expected)
    everything = warned.operating.set_index(["rule", "measure"])["estimate"]
    assert rows["all", "recall_at_threshold"] == everything["sensitivity >= 0.8", "sensitivity"]
    assert rows["all", "recall"] == everything["argmax", "sensitivity"]
    told = " ".join(words.summary(warned))
    assert "Recall of mel by the most probable class is lowest for sex" in told
    assert "Recall of mel by val's threshold for sensitivity >= 0.8 is lowest for sex" in told
    [table] = [
        sheet for sheet in sheets.audit_tables(warned) if sheet.title == "Subgroups: recall of mel"
    ]
    assert table.head[-2:] == ("recall, argmax", "recall, threshold")
    labels = [axes.get_xlabel() for axes in plots.subgroups(warned).axes]
    assert labels[0].startswith("recall of mel by\nthe most probable class")
    assert labels[1].startswith("recall of mel by\nval's threshold")


@pytest.mark.parametrize(
    ("share", "finds", "misses"),
    [
        (1.0, "100", "0"),
        (0.996, "more than 99", "fewer than 1"),
        (0.5, "50", "50"),
        (0.004, "fewer than 1", "more than 99"),
        (0.0, "0", "100"),
        (0.985, "98", "2"),
    ],
)
def test_none_and_all_are_said_only_where_it_is_so(
    warned: ClinicalAudit, share: float, finds: str, misses: str
) -> None:
    operating = pd.DataFrame(
        {
            "rule": "sensitivity >= 0.8",
            "measure": ["sensitivity", "specificity", "ppv", "npv"],
            "estimate": [share, share, share, share],
            "val": 0.8,
        }
    )
    found = replace(warned, operating=operating)
    told = " ".join(words.summary(found))
    assert f"it finds {finds} and misses {misses}; of 100 others it alarms on {misses}" in told
    assert f"of 100 alarms {finds} are mel" in told


def test_fixed_points_can_be_left_out() -> None:
    found = audit(made_up(1, images=60, nets=1), settings=AuditSettings(samples=100, fixed=()))
    assert found.fixed.empty
    assert "fixed" not in found.tables
    assert not any("_at_" in name for name in found.metrics)
    assert "what the ROC curve of these images offers" not in pages.markdown(found)


@pytest.mark.parametrize(("low", "high"), [(np.nan, np.nan), (0.6, 0.7)])
def test_an_interval_that_is_none_or_does_not_hold_the_mean_is_told_and_drawn(
    warned: ClinicalAudit, low: float, high: float
) -> None:
    table = warned.subgroups.assign(estimate=0.5, low=low, high=high, note="")
    found = replace(warned, subgroups=table)
    assert isinstance(plots.subgroups(found), Figure)
    told = " ".join(words.summary(found))
    assert "nan" not in told
    assert ("0.500 (no interval)" in told) == bool(np.isnan(low))


def test_how_many_images_the_metadata_know_is_said() -> None:
    test = made_up(3, images=60, nets=1)
    some = audit(test, metadata=sexes(test[0], 45), settings=FEW)
    assert "The metadata know 45 of the 60 images; the others are unknown." in some.notes
    none = audit(test, metadata=sexes(test[0]).assign(image_id="else"), settings=FEW)
    assert any(
        note.startswith("No metadata: those given name none of the 60 images")
        for note in none.notes
    )
    assert none.subgroups.empty
    assert "" not in words.summary(audit(test, metadata=test[0][["image_id"]], settings=FEW))


def test_a_goal_is_said_as_it_was_asked() -> None:
    found = audit(
        made_up(3, images=60, nets=1), settings=AuditSettings(samples=100, goal=0.825, level=0.995)
    )
    assert "the goal of 0.825" in found.verdicts[0].text
    assert "Intervals: 99.5%," in " ".join(found.notes)
