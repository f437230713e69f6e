"""The clinical audit as a whole: what is in it, what it is called, what it refuses, and how it is shown."""

import io
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from clinical_cases import made_up
from rich.console import Console
from scipy.optimize import brentq
from scipy.special import betainc

from src.core.errors import ConfigError, UserError
from src.metrics.bootstrap import intervals
from src.metrics.settings import AuditSettings
from src.reporting.clinical import page as pages
from src.reporting.clinical.audit import audit
from src.reporting.clinical.record import ClinicalAudit

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
    """Clopper and Pearson's limits, as the rates at which so many, or so few, have a chance of 2.5%."""
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
    assert "not known" in pages.markdown(found)


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


def test_a_terminal_of_100_columns_shows_the_summary_first(found: ClinicalAudit) -> None:
    screen = Console(width=100, file=io.StringIO(), color_system=None)
    for part in pages.render(found):
        screen.print(part)
    shown = screen.file.getvalue()  # type: ignore[attr-defined]
    assert max(len(line) for line in shown.splitlines()) <= 100
    assert shown.startswith("240 images of 120 lesions or patients (test), by 2 nets (seeds)")
    assert "no medical device" in shown.partition("Finding mel")[0]
    assert "…" not in shown
    assert found.verdicts[0].outcome in shown


def test_the_folder_is_written_whole(found: ClinicalAudit, tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    folder = tmp_path / "deep" / "clinical"
    folder.mkdir(parents=True)
    (folder / "old.txt").write_text("from before")
    files = {path.name for path in pages.write(found, folder)}
    drawn = ("roc", "precision_recall", "reliability", "subgroups")
    pictures = {f"{name}.{kind}" for name in drawn for kind in ("png", "svg")}
    tables = {f"{name}.csv" for name in found.tables}
    assert files == {"clinical.md", *pictures, *tables}
    assert [path.name for path in folder.parent.iterdir()] == ["clinical"]
    assert dict(mpl.rcParams) == before
    page = (folder / "clinical.md").read_text()
    assert r"site: a \| b &lt;i&gt;" in page
    assert "![ROC curves, a class a panel](roc.png)" in page
    assert "'=1+1" in pd.read_csv(folder / "subgroups.csv")["subgroup"].to_list()
    read = pd.read_csv(folder / "operating.csv")
    assert read["estimate"].to_list() == pytest.approx(found.operating["estimate"].to_list())


def test_a_folder_that_cannot_be_is_one_line(found: ClinicalAudit, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written there"):
        pages.write(found, tmp_path / "file" / "clinical")
