"""`python -m src.evaluate` from end to end: what it prints, writes and records."""

import re

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf
from PIL import Image
from sklearn.metrics import roc_auc_score

from src.core.errors import UserError
from src.core.files import CONF
from src.deployment import trained as runs
from src.metrics.decision_rules import offsets_by_rule, with_decisions
from src.metrics.registry import parse_objectives
from src.metrics.settings import AuditSettings
from src.reporting.clinical import evaluate, external, plots
from src.reporting.clinical.results import EvaluateSettings
from src.reporting.comparison import compare
from src.tracking import read
from src.tracking.run import Run

from .conftest import command, copy_of
from .small_world import HAM, PER_CLASS, OnIsic, SmallStore

FEW = AuditSettings(samples=100)


def run_of(small: SmallStore, run_id: str) -> pd.Series:
    """The tags, parameters and metrics that a run has."""
    return read.runs(small.store).set_index("run_id").loc[run_id].dropna()


def test_recorded_splits_of_a_run(
    small: SmallStore, evaluated, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Seconds; test_presentation draws all figures.
    monkeypatch.setattr(plots, "figure_titles", lambda result: {"roc": ""})
    Run.attach(small.store.open(), small.untested).tag(split="image (leaking)")
    before = run_of(small, small.untested)
    status, output = evaluated(f"run={small.untested[:9]}")
    assert status == 0, output
    lines = output[output.index("custom (") :].splitlines()
    assert max(map(len, lines[:-1])) <= 80  # the last one has a path
    assert len(lines) <= 40
    assert lines[0] == f"custom ({small.untested[:8]}) on ham10000, its own data"
    verdicts = tuple(f"{outcome}: recall of mel" for outcome in ("PASS", "FAIL", "UNDECIDED"))
    assert any(line.startswith(verdicts) for line in lines[1:9])
    assert "The run's test split has not been evaluated yet" in " ".join(output.split())
    folder = small.folder / "reports" / f"evaluation_{small.untested[:8]}_own"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # no drafts
    [val] = (folder / "clinical").iterdir()
    assert val.name == "val"
    assert Image.open(val / "roc.png").size[0] > 300
    page = read.artifact(small.store, small.untested, "evaluation.md").read_text()
    assert page == (folder / "evaluation.md").read_text()
    assert "clinical/val/clinical.md" in page
    # two tables and two pictures come before the link to the rest
    opening = page.partition("Full audit")[0]
    assert opening.count("\n\n**") == 2
    assert re.findall(r"\(clinical/val/(\w+).png\)", opening) == ["roc", "reliability"]
    for written in (page, (val / "clinical.md").read_text()):  # both contain the verdict
        assert "Warning: Validation chose the epoch: its figures are too good." in written
        assert "Warning: LEAKS: images of one lesion or patient are on both sides" in written
    recorded = read.artifact(small.store, small.untested, "clinical/val")
    files = [sorted(path.name for path in folder.iterdir()) for folder in (recorded, val)]
    assert files[0] == files[1]
    run = run_of(small, small.untested)
    ranking = pd.read_csv(val / "ranking.csv").set_index(["metric", "class"])["estimate"]
    assert run["metrics.best/val/auroc/mel"] == pytest.approx(ranking["auroc", "mel"])
    kept = [name for name in before.index if name.startswith(("metrics.", "params.", "tags."))]
    assert run[kept].to_dict() == before[kept].to_dict()
    assert run["status"] == "FINISHED"
    assert not any(name.startswith("metrics.test/") for name in run.index)


def test_the_test_split_is_evaluated_only_on_demand(small: SmallStore) -> None:
    store, name = small.store.open(), "metrics.test/accuracy"
    first, trial = run_of(small, small.single)[name], runs.find(store, small.trial)
    result = evaluate.recorded_splits(trial, EvaluateSettings(), FEW, store)
    assert list(result.audits) == ["val"]
    assert result.notes[0].startswith(
        "Only 1 of 2 seeds have been evaluated on the run's test split"
    )
    assert name not in run_of(small, small.untested)
    result = evaluate.recorded_splits(trial, EvaluateSettings(test=True), FEW, store)
    assert list(result.audits) == ["test", "val"]
    assert result.notes == result.audits["test"].warnings == ()
    run = run_of(small, small.trial)
    assert run["tags.tested"] == "for a clinical audit"
    assert run[name] == pytest.approx((first + run_of(small, small.untested)[name]) / 2)


def test_another_decision_rule_is_fitted_on_validation(small: SmallStore, on_other_data) -> None:
    store = small.store.open()
    run = runs.find(store, small.single)
    [val], [test] = (run.predictions(store, split) for split in ("val", "test"))
    result = evaluate.recorded_splits(run, EvaluateSettings(decision="balanced"), FEW, store)
    for split, table in (
        ("val", with_decisions(val, "balanced")),
        ("test", with_decisions(test, "balanced", val)),
    ):
        overall = result.audits[split].overall.set_index("metric")["estimate"]
        pair = table["label"], table["decision/balanced"]
        assert overall["accuracy"] == pytest.approx((pair[0] == pair[1]).mean())
        assert result.audits[split].verdicts[0].rule == "balanced"
    recorded = run_of(small, small.single)
    name = "metrics.test/decision/balanced/accuracy"
    assert recorded[name] == pytest.approx((pair[0] == pair[1]).mean())
    other = on_other_data("data=isic2019", f"data.root={small.data / 'isic'}", decision="balanced")
    [frame], [audit] = other.predictions.values(), other.audits.values()
    by_hand = fit_by_hand(frame, val)
    assert frame["decision/balanced"].tolist() == by_hand
    assert audit.verdicts[0].rule == "balanced"
    assert other.choices == ("decision=balanced",)


def fit_by_hand(frame: pd.DataFrame, val: pd.DataFrame) -> list[str]:
    """Decisions by the offsets of all of validation."""
    offsets = offsets_by_rule(val)["balanced"]
    scores = np.log(frame[[f"p/{name}" for name in offsets]]) + list(offsets.values())
    return [list(offsets)[label] for label in scores.to_numpy().argmax(axis=1)]


def test_other_data(isic: OnIsic) -> None:
    folder, store = isic.folder, isic.store.store
    words = " ".join(isic.output.split())
    assert max(len(line) for line in isic.output.splitlines() if "image/s" not in line) <= 100
    assert "Overlap with the run's own images: 3 of 32" in words
    assert "Trained at 32 px, geometry squash, on pictures 80x60 px (all of 84)." in words
    assert "pictures 64x64 px" not in words  # one of them is 48x48
    untested = "Only 1 of 2 seeds have been evaluated on the run's test split"
    assert f"{untested}; the drop is from validation" in words

    overlap = pd.read_csv(folder / "overlap.csv").set_index("image_id")
    assert overlap["why"].to_dict() == {
        "ISIC_1000000_downsampled": "same image id",
        "ISIC_2000001": "same picture",
        "ISIC_2000002": "same lesion or patient",
    }
    assert overlap.loc["ISIC_2000001", "own_image_id"] == "ISIC_1000005"
    predictions = [pd.read_csv(folder / "predictions" / f"seed_{seed}.csv") for seed in (0, 1)]
    for table in predictions:
        assert len(table) == 29
        assert not set(table["image_id"]) & set(overlap.index)
        assert table.filter(like="p/").sum(axis=1).to_numpy() == pytest.approx(1)
        assert set(table.loc[table["label"] == "akiec", "original_label"]) == {"ak", "scc"}
    labels = pd.read_csv(folder / "labels.csv").set_index("original_label")
    others = ("ak", "bcc", "bkl", "df", "nv", "scc", "vasc")
    assert labels["images"].to_dict() == dict.fromkeys(others, 4) | {"mel": 1}

    drop = pd.read_csv(folder / "drop.csv").set_index("metric")
    hits = [
        (table.filter(like="p/").idxmax(axis=1).str[2:] == table["label"]).mean()
        for table in predictions
    ]
    assert drop.loc["accuracy", "external"] == pytest.approx(np.mean(hits))
    val = read.children(store, isic.store.trial)["metrics.best/val/accuracy"].mean()
    assert drop.loc["accuracy", "own"] == pytest.approx(val)
    apart = pd.read_csv(folder / "by_original_label.csv").set_index("original_label")
    assert apart.loc[["ak", "scc"], "counts_as"].tolist() == ["akiec", "akiec"]
    for name in ("drop.png", "examples.png"):
        assert Image.open(folder / name).size[0] > 300


def test_an_evaluation_of_other_data_is_a_separate_run(isic: OnIsic) -> None:
    folder, store = isic.folder, isic.store.store
    table = read.runs(store)
    [run] = (row for _, row in table[table["tags.kind"] == "evaluation"].iterrows())
    assert run["parent_id"] is None or pd.isna(run["parent_id"])
    assert run["status"] == "FINISHED"
    tags = {"evaluated_run": isic.store.trial, "data": "isic2019", "image_size": "32"}
    tags |= {"labels": "isic2019_to_ham10000", "overlap": "exclude", "geometry": "squash"}
    assert {name: run[f"tags.{name}"] for name in tags} == tags
    assert len(run["tags.data_fingerprint"]) == 64
    drop = pd.read_csv(folder / "drop.csv").set_index("metric")
    balanced = run["metrics.isic2019/balanced_accuracy"]
    assert balanced == pytest.approx(drop.loc["balanced_accuracy", "external"])
    change = run["metrics.isic2019/change/recall/mel"]
    assert change == pytest.approx(drop.loc["recall/mel", "difference"])
    assert run["metrics.isic2019/overlap"] == 3
    files = {path.name for path in read.artifact(store, run["run_id"], "").iterdir()}
    assert {path.name for path in folder.iterdir()} < files
    trial = run_of(isic.store, isic.store.trial)
    assert not any(name.startswith("metrics.isic2019") for name in trial.index)
    # what reports read: the children of trials and studies
    objective = {"metric": "val/accuracy", "direction": "maximize"}
    objectives = parse_objectives({"objectives": [objective]})
    assert len(compare(read.children(store, isic.store.trial), objectives)) == 2


def test_melanoma_or_not_without_the_source_data(small: SmallStore, on_other_data) -> None:
    data = ["data=siim2020", f"data.root={small.data / 'siim'}"]
    message = r"overlap=exclude: needs the run's own data \(/nosuch: the folder of HAM10000"
    with pytest.raises(UserError, match=message):
        on_other_data(*data, own_root="/nosuch")
    result = on_other_data(*data, "data.name='../my set'", own_root="/nosuch", overlap="keep")
    assert result.folder == f"evaluation_{small.single[:8]}_my_set_overlap-keep"
    warning = result.audits["my_set"].warnings[0]
    assert warning.startswith("Overlap with the training images: not checked")
    assert "none of 12, by id and lesion of its val and test." in " ".join(result.notes)
    assert any(note.startswith("The question is mel or not") for note in result.notes)
    table = result.predictions["0"]
    assert table["label"].value_counts().to_dict() == {"rest": 8, "mel": 4}
    assert table["original_label"].value_counts().to_dict() == {"benign": 8, "malignant": 4}
    assert (table["p/rest"] + table["p/mel"]).to_numpy() == pytest.approx(1)
    assert {"recall/mel", "recall/rest", "auroc/mel"} <= set(result.drop["metric"])
    assert result.compared_with == "test"
    [recorded] = runs.find(small.store, small.single).predictions(small.store, "test")
    expected = roc_auc_score(recorded["label"] == "mel", recorded["p/mel"])
    assert result.drop.set_index("metric").loc["auroc/mel", "own"] == pytest.approx(expected)


def test_other_source_data_do_not_hide_overlap(small: SmallStore, on_other_data) -> None:
    """One lesion of each class is missing; val and test are known from the record."""
    ham, part = small.data / "ham", small.folder / "part"
    part.mkdir()
    for folder in ham.glob("HAM10000_images_*"):
        (part / folder.name).symlink_to(folder)
    table = pd.read_csv(ham / "HAM10000_metadata.csv")
    kept = table[table.index % PER_CLASS < PER_CLASS - 2]
    kept.to_csv(part / "HAM10000_metadata.csv", index=False)
    data = ["data=ham10000", f"data.root={ham}"]
    message = f"own_root={part}: is not what the run was trained on; give the right one, or"
    with pytest.raises(UserError, match=message):
        on_other_data(*data, own_root=str(part))
    result = on_other_data(*data, own_root=str(part), overlap="keep")
    recorded = [
        pd.read_csv(read.artifact(small.store, small.single, f"predictions/{split}.csv"))
        for split in ("val", "test")
    ]
    overlap = set(kept["image_id"]).union(*(frame["image_id"] for frame in recorded))
    assert set(result.overlap["image_id"]) == overlap
    number = len(overlap)
    assert number > len(kept)
    [note] = (note for note in result.notes if note.startswith("Overlap with the run's own images"))
    counts = f"{number} of 84 ({number} same image id), kept. The intervals of the differences"
    assert counts in note
    audit = result.audits["ham10000"]
    assert audit.warnings == (
        "Overlap with the training images: the run's data here are not what it was trained on.",
        f"{number} of these 84 images the run has had, and they were KEPT: "
        "the figures are too good.",
    )
    assert audit.verdicts[0].warnings == audit.warnings


def test_a_folder_for_data_that_have_none_is_refused(small: SmallStore, evaluated) -> None:
    path = small.folder / "mlruns" / "artifacts" / small.single / "artifacts" / "config.yaml"
    config = OmegaConf.load(path)
    config.data.source = OmegaConf.load(CONF / "data" / "synthetic.yaml").source
    OmegaConf.save(config, path)
    message = "error: own_root: the run's own data (ham10000) lie in no folder; leave it out\n"
    for data in ([], ["data=isic2019"]):
        status, output = evaluated(f"run={small.single}", *data, "own_root=/nosuch")
        assert status == 2, output
        assert output.endswith(message)


@pytest.fixture(scope="module")
def unchanged(trained: SmallStore, tmp_path_factory: pytest.TempPathFactory) -> SmallStore:
    """A copy of the store for commands that must not write to it; MLflow opens it once."""
    with pytest.MonkeyPatch.context() as patch:
        return copy_of(trained, tmp_path_factory.mktemp("unchanged"), patch)


ON_ISIC = "run=SINGLE data=isic2019 data.root=FOLDER/isic"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run=SINGLE data=ham10000 data.root=FOLDER/ham", "the run has had all of these images"),
        (f"{ON_ISIC} labels=siim2020_to_ham10000", "does not know mel (4"),
        (f"{ON_ISIC} labels=nosuch", "labels: nosuch: no such mapping"),
        (f"{ON_ISIC} data.image_size=64", "data.image_size: must be the"),
        (f"{ON_ISIC} data.geometry=round", "data.geometry: "),
        ("run=SINGLE data=isic2019 data.root=/nosuch", "/nosuch: the folder of ISIC 2019 is not"),
        ("run=SINGLE data.root=/nosuch", "data.root: unknown key"),
        ("run=SINGLE clinical.goal=2", "clinical.goal: input should be less than 1, but got 2"),
        ("run=SINGLE clinical.positive=wart", "clinical.positive: must be one of akiec"),
        (
            "run=SINGLE folder=/proc/reports",
            "folder=/proc/reports: the evaluation cannot be written",
        ),
        ("run=SINGLE tracking.folder=elsewhere", "no run store is there"),
    ],
)
def test_bad_input_is_one_line(
    unchanged: SmallStore, monkeypatch: pytest.MonkeyPatch, arguments: str, message: str
) -> None:
    small = unchanged
    arguments = arguments.replace("SINGLE", small.single).replace("FOLDER", str(small.data))
    status, output = command(small, monkeypatch)(*arguments.split())
    assert status == 2, output
    assert message in output.strip().splitlines()[-1], output
    assert "Traceback" not in output
    assert not list(small.folder.glob("reports/evaluation*"))


def test_unknown_classes_are_refused_or_counted(small: SmallStore, on_other_data) -> None:
    data = ["data=isic2019", f"data.root={small.data / 'isic'}"]
    mapping = small.folder / "mine.yaml"
    mapping.write_text("mel: mel\nnv: nv\n")
    with pytest.raises(UserError, match=r"mine.yaml does not know .*add to the mapping") as refused:
        on_other_data(*data, mapping=str(mapping))
    unmapped = ("ak", "bcc", "bkl", "df", "scc", "vasc")
    assert all(f"{name} (4 images)" in str(refused.value) for name in unmapped)
    result = on_other_data(*data, mapping=str(mapping), unknown="list")
    assert result.predictions["0"]["label"].value_counts().to_dict() == {"nv": 4, "mel": 1}
    start = "Left out, of classes that the mapping does not know"
    [note] = (note for note in result.notes if note.startswith(start))
    assert "scc (4)" in note
    assert result.folder == f"evaluation_{small.single[:8]}_isic2019_labels-mine_unknown-list"


def test_a_part_of_the_other_data(trained: SmallStore, composed) -> None:
    run = runs.find(trained.store, trained.single)
    data = ["data=isic2019", f"data.root={trained.data / 'isic'}", "data.split=image"]
    for fractions, images in (("[0.5,0.5,0]", 16), ("[0.75,0.25,0]", 8)):
        config = composed(*data, f"data.fractions={fractions}")
        part = external.open_data(config, run, HAM, EvaluateSettings(part="val"))
        assert len(part.rows) == len(part.frame) == images
