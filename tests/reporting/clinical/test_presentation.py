"""How the clinical audit is shown: warnings first, rules that are named, nothing that is not so."""

import io
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from clinical_cases import frame, made_up
from rich.console import Console

from src.core.errors import UserError
from src.metrics.settings import AuditSettings
from src.reporting.clinical import presentation
from src.reporting.clinical.audit import audit
from src.reporting.clinical.results import ClinicalAudit

FEW = AuditSettings(samples=100)
LEAK = "The split leaks: lesions are on both sides."


def people(table: pd.DataFrame, known: int | None = None) -> pd.DataFrame:
    number = np.arange(len(table))
    columns = {
        "image_id": table["image_id"],
        "sex": np.where(number % 2, "male", "=1+1"),  # what a spreadsheet would run
        "localization": np.where(number % 5, "back", "a | b <i>"),
    }
    return pd.DataFrame(columns)[:known]


@pytest.fixture(scope="module")
def warned() -> ClinicalAudit:
    test = made_up(11)
    return audit(test, made_up(12), people(test[0]), FEW, warnings=[LEAK])


def printed(result: ClinicalAudit) -> str:
    screen = Console(width=100, file=io.StringIO(), color_system=None)
    for part in presentation.render(result):
        screen.print(part)
    return screen.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_warnings_come_first_and_follow_every_verdict(warned: ClinicalAudit) -> None:
    assert warned.warnings == (LEAK,)
    output = printed(warned)
    assert output.startswith(f"Warning: {LEAK}")
    assert max(len(line) for line in output.splitlines()) <= 100
    assert "240 images of 120 lesions or patients (test), by 2 nets (seeds)" in output
    assert "no medical device" in output.partition("Finding mel")[0]
    assert "…" not in output
    text = presentation.markdown(warned)
    assert text.split("\n\n")[1].startswith(f"- Warning: {LEAK}\n")
    assert all(verdict.text.endswith(f"Warning: {LEAK}") for verdict in warned.verdicts)
    assert text.count(LEAK) == 1 + len(warned.verdicts)


def test_a_verdict_names_the_cost_of_its_recall(warned: ClinicalAudit) -> None:
    rates = warned.operating.set_index(["rule", "measure"])["estimate"]
    for verdict in warned.verdicts:
        assert verdict.specificity == rates[verdict.rule, "specificity"]
        assert f"at a specificity of {verdict.specificity:.3f}" in verdict.text


def test_a_threshold_that_every_image_passes_decides_nothing() -> None:
    target = np.array([1] * 60 + [0] * 60)
    constant = frame(np.full((120, 2), 0.5), target, ("nv", "mel"))
    by_class, by_threshold = audit([constant], [constant], settings=FEW).verdicts
    assert by_threshold.low > 0.8
    assert (by_threshold.outcome, by_threshold.specificity) == ("UNDECIDED", 0)
    assert "specificity of 0.000" in by_threshold.text
    assert "every image passes" in by_threshold.text
    assert by_class.outcome == "FAIL"


def test_on_validation_nothing_is_called_missing() -> None:
    text = presentation.markdown(audit(made_up(2), settings=FEW, split="val"))
    assert "No validation predictions" not in text
    assert "chosen on these images" in text
    assert "fitted on these images: not scaled" in text
    assert "thresholds chosen on validation" not in text


def test_a_subgroups_recall_names_its_rule(warned: ClinicalAudit) -> None:
    test, val = made_up(11), made_up(12)
    male = people(test[0])["sex"] == "male"
    rows = warned.subgroups.set_index(["subgroup", "measure"])["estimate"]
    # the highest of val's own scores that four of five of its melanomas reach
    scores = [np.sort(table.loc[table["label"] == "mel", "p/mel"])[::-1] for table in val]
    values = [each[int(np.ceil(0.8 * len(each))) - 1] for each in scores]
    own = [table.loc[male & (table["label"] == "mel"), "p/mel"] for table in test]
    expected = np.mean([(each >= value).mean() for each, value in zip(own, values, strict=True)])
    assert rows["male", "recall_at_threshold"] == pytest.approx(expected)
    everything = warned.operating.set_index(["rule", "measure"])["estimate"]
    assert rows["all", "recall_at_threshold"] == everything["sensitivity >= 0.8", "sensitivity"]
    assert rows["all", "recall"] == everything["argmax", "sensitivity"]
    sentences = " ".join(presentation.summary(warned))
    assert "Recall of mel by the most probable class is lowest for s" in sentences
    assert "Recall of mel by val's threshold for sensitivity >= 0.8 is lowest for s" in sentences
    [table] = [
        t for t in presentation.audit_tables(warned) if t.title == "Subgroups: recall of mel"
    ]
    heads = [table.heading(name) for name in table.frame]
    assert heads[-2:] == ["recall, argmax", "recall, threshold"]


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
    measures = ["sensitivity", "specificity", "ppv", "npv"]
    rule = {"rule": "sensitivity >= 0.8", "measure": measures}
    operating = pd.DataFrame(rule).assign(estimate=share, val=0.8)
    text = " ".join(presentation.summary(replace(warned, operating=operating)))
    assert f"it finds {finds} and misses {misses}; of 100 others it alarms on {misses}" in text
    assert f"of 100 alarms {finds} are mel" in text


def test_fixed_points_can_be_left_out() -> None:
    settings = AuditSettings(samples=100, fixed=())
    found = audit(made_up(1, images=60, nets=1), settings=settings)
    assert found.fixed.empty
    assert "fixed" not in found.tables
    assert not any("_at_" in name for name in found.metrics)
    assert "points of the ROC curve" not in presentation.markdown(found)


def test_the_number_of_images_with_metadata_is_noted() -> None:
    test = made_up(3, images=60, nets=1)
    some = audit(test, metadata=people(test[0], 45), settings=FEW)
    assert "The metadata cover 45 of the 60 images." in some.notes
    none = audit(test, metadata=people(test[0]).assign(image_id="else"), settings=FEW)
    assert any("No metadata: it has none of the 60 images" in note for note in none.notes)
    assert none.subgroups.empty
    assert "" not in presentation.summary(audit(test, metadata=test[0][["image_id"]], settings=FEW))


def test_goal_and_level_are_shown_as_asked() -> None:
    settings = AuditSettings(samples=100, goal=0.825, level=0.995)
    found = audit(made_up(3, images=60, nets=1), settings=settings)
    assert "the goal of 0.825" in found.verdicts[0].text
    assert "Intervals: 99.5%," in " ".join(found.notes)


def test_the_folder_is_written_completely(warned: ClinicalAudit, tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    folder = tmp_path / "deep" / "clinical"
    folder.mkdir(parents=True)
    (folder / "old.txt").write_text("from before")
    files = {path.name for path in presentation.write(warned, folder)}
    drawn = ("roc", "precision_recall", "reliability", "subgroups")
    figures = {f"{name}.{kind}" for name in drawn for kind in ("png", "svg")}
    assert files == {"clinical.md", *figures, *(f"{name}.csv" for name in warned.tables)}
    assert [path.name for path in folder.parent.iterdir()] == ["clinical"]
    assert dict(mpl.rcParams) == before
    text = (folder / "clinical.md").read_text()
    assert r"site: a \| b &lt;i&gt;" in text
    assert "![ROC curves, one panel per class](roc.png)" in text
    assert "'=1+1" in pd.read_csv(folder / "subgroups.csv")["subgroup"].to_list()
    read = pd.read_csv(folder / "operating.csv")
    assert read["estimate"].to_list() == pytest.approx(warned.operating["estimate"].to_list())
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written there"):
        presentation.write(warned, tmp_path / "file" / "clinical")
