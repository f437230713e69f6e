"""How the clinical audit is shown: warnings first, rules named, no claim that does not hold."""

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from clinical_cases import frame, made_up, people
from PIL import Image
from rich.console import Console

from src.core.errors import UserError
from src.metrics.settings import AuditSettings
from src.reporting.clinical import presentation
from src.reporting.clinical.audit import audit
from src.reporting.clinical.results import ClinicalAudit, Evaluation

from .conftest import LEAK

FEW = AuditSettings(samples=100)


@pytest.fixture(scope="module")
def small() -> list[pd.DataFrame]:
    return made_up(3, images=60, nets=1)


def test_warnings_come_first_and_follow_every_verdict(audited: ClinicalAudit) -> None:
    screen = Console(width=100, file=io.StringIO(), color_system=None)
    for part in presentation.render(audited):
        screen.print(part)
    output = screen.file.getvalue()  # type: ignore[attr-defined]
    assert output.startswith(f"Warning: {LEAK}")
    assert max(len(line) for line in output.splitlines()) <= 100
    assert "240 images of 120 lesions or patients (test), by 2 nets (seeds)" in output
    assert "no medical device" in output.partition("Finding mel")[0]
    assert "…" not in output
    text = presentation.markdown(audited)
    assert text.split("\n\n")[1].startswith(f"- Warning: {LEAK}\n")
    assert all(verdict.text.endswith(f"Warning: {LEAK}") for verdict in audited.verdicts)
    assert text.count(LEAK) == 1 + len(audited.verdicts)
    rates = audited.operating.set_index(["rule", "measure"])["estimate"]
    for verdict in audited.verdicts:
        assert verdict.specificity == rates[verdict.rule, "specificity"]
        assert f"at a specificity of {verdict.specificity:.3f}" in verdict.text


@pytest.mark.parametrize("columns", [80, 120])
def test_an_evaluation_takes_at_most_forty_lines_of_the_terminal(
    audited: ClinicalAudit, columns: int
) -> None:
    model: Any = SimpleNamespace(title="custom (3f2a9c00)", data="ham10000")
    notes = tuple(f"note {number}" for number in range(50))
    result = Evaluation(model, "", {"test": audited}, notes)

    def printed(**options: bool) -> str:
        console = Console(width=columns, file=io.StringIO(), color_system=None)
        for part in presentation.render_evaluation(result, console, **options):
            console.print(part)
        return console.file.getvalue()  # type: ignore[attr-defined]

    lines = printed().splitlines()
    assert len(lines) <= 39  # and the line that says where to look
    assert max(map(len, lines)) <= columns
    text = " ".join(" ".join(lines).split())
    assert lines[0] == "custom (3f2a9c00) on ham10000, its own data"
    assert text.index(LEAK) < text.index("recall of mel") < text.index("no medical device")
    assert text.count(LEAK) == 1
    for name in audited.classes:
        rates = audited.per_class.set_index(["class", "measure"]).loc[(name, "recall")]
        assert f"{rates['estimate']:.2f} [{rates['low']:.2f}, " in text
    shown, hidden = text.count(" note "), int(text.partition(" more tables")[0].split()[-1])
    assert hidden == len(notes) - shown + len(presentation.audit_tables(audited)) - 2
    everything = printed(verbose=True)
    assert all(f"- {note}\n" in everything for note in notes)
    assert all(table.title in everything for table in presentation.audit_tables(audited))


def test_a_threshold_that_every_image_passes_decides_nothing() -> None:
    target = np.array([1] * 60 + [0] * 60)
    constant = frame(np.full((120, 2), 0.5), target, ("nv", "mel"))
    by_class, by_threshold = audit([constant], [constant], settings=FEW).verdicts
    assert by_threshold.low > 0.8
    assert (by_threshold.outcome, by_threshold.specificity) == ("UNDECIDED", 0)
    assert "specificity of 0.000" in by_threshold.text
    assert "every image passes" in by_threshold.text
    assert by_class.outcome == "FAIL"


def test_a_subgroups_recall_names_its_rule(audited: ClinicalAudit) -> None:
    test, val = made_up(11), made_up(12)
    male = people(test[0])["sex"] == "male"
    rows = audited.subgroups.set_index(["subgroup", "measure"])["estimate"]
    # the highest of val's own scores that four of five of its melanomas reach
    scores = [np.sort(table.loc[table["label"] == "mel", "p/mel"])[::-1] for table in val]
    values = [score[int(np.ceil(0.8 * len(score))) - 1] for score in scores]
    members = [table.loc[male & (table["label"] == "mel"), "p/mel"] for table in test]
    hits = [(score >= value).mean() for score, value in zip(members, values, strict=True)]
    assert rows["male", "recall_at_threshold"] == pytest.approx(np.mean(hits))
    everything = audited.operating.set_index(["rule", "measure"])["estimate"]
    assert rows["all", "recall_at_threshold"] == everything["sensitivity >= 0.8", "sensitivity"]
    assert rows["all", "recall"] == everything["argmax", "sensitivity"]
    sentences = " ".join(presentation.summary(audited))
    assert "Recall of mel by the most probable class is lowest for s" in sentences
    assert "Recall of mel by val's threshold for sensitivity >= 0.8 is lowest for s" in sentences
    tables = {table.title: table for table in presentation.audit_tables(audited)}
    table = tables["Subgroups: recall of mel"]
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
def test_none_and_all_are_exact(
    audited: ClinicalAudit, share: float, finds: str, misses: str
) -> None:
    measures = ["sensitivity", "specificity", "ppv", "npv"]
    rule = {"rule": "sensitivity >= 0.8", "measure": measures}
    operating = pd.DataFrame(rule).assign(estimate=share, val=0.8)
    text = " ".join(presentation.summary(replace(audited, operating=operating)))
    assert f"it finds {finds} and misses {misses}; of 100 others it alarms on {misses}" in text
    assert f"of 100 alarms {finds} are mel" in text


def test_settings_are_shown_and_fixed_points_can_be_omitted(small: list[pd.DataFrame]) -> None:
    settings = AuditSettings(samples=100, goal=0.825, level=0.995, fixed=())
    result = audit(small, settings=settings, split="val")
    assert "the goal of 0.825" in result.verdicts[0].text
    assert "Intervals: 99.5%," in " ".join(result.notes)
    assert result.fixed.empty
    assert "fixed" not in result.tables
    assert not any("_at_" in name for name in result.metrics)
    text = presentation.markdown(result)
    assert "points of the ROC curve" not in text
    # on validation nothing is called missing
    assert "No validation predictions" not in text
    assert "chosen on these images" in text
    assert "fitted on these images: not scaled" in text
    assert "thresholds chosen on validation" not in text


def test_the_number_of_images_with_metadata_is_noted(small: list[pd.DataFrame]) -> None:
    some = audit(small, metadata=people(small[0], 45), settings=FEW)
    assert "The metadata cover 45 of the 60 images." in some.notes
    none = audit(small, metadata=people(small[0]).assign(image_id="other"), settings=FEW)
    assert any("No metadata: it has none of the 60 images" in note for note in none.notes)
    assert none.subgroups.empty
    ids_only = audit(small, metadata=small[0][["image_id"]], settings=FEW)
    assert "" not in presentation.summary(ids_only)


def test_the_folder_is_written_completely(audited: ClinicalAudit, tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    folder = tmp_path / "deep" / "clinical"
    folder.mkdir(parents=True)
    (folder / "old.txt").write_text("from before")
    presentation.write(audited, folder)
    files = {path.name for path in folder.iterdir()}
    drawn = ("roc", "precision_recall", "reliability", "subgroups")
    figures = {f"{name}.{kind}" for name in drawn for kind in ("png", "svg")}
    assert files == {"clinical.md", *figures, *(f"{name}.csv" for name in audited.tables)}
    assert [path.name for path in folder.parent.iterdir()] == ["clinical"]
    assert dict(mpl.rcParams) == before
    assert all(Image.open(folder / f"{name}.png").size[0] > 300 for name in drawn)
    text = (folder / "clinical.md").read_text()
    assert r"site: a \| b &lt;i&gt;" in text
    assert "![ROC curves, one panel per class](roc.png)" in text
    assert "'=1+1" in pd.read_csv(folder / "subgroups.csv")["subgroup"].to_list()
    estimates = pd.read_csv(folder / "operating.csv")["estimate"].to_list()
    assert estimates == pytest.approx(audited.operating["estimate"].to_list())
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written there"):
        presentation.write(audited, tmp_path / "file" / "clinical")
