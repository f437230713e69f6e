"""`python -m src.evaluate` from end to end: what it says, writes and records."""

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf
from PIL import Image
from sklearn.metrics import roc_auc_score

from src.core.cli import ROOT
from src.core.errors import UserError
from src.deployment import trained as runs
from src.metrics.registry import parse_objectives
from src.metrics.settings import AuditSettings as Clinical
from src.reporting.clinical import evaluate, external
from src.reporting.clinical.results import EvaluateSettings
from src.reporting.comparison import compare
from src.tracking import read
from src.tracking.run import Run

from .small_world import HAM, PER_CLASS, OnIsic, Place

FEW = Clinical(samples=100)
PICTURES = ("roc", "precision_recall", "reliability", "subgroups")


def run_of(place: Place, run_id: str) -> pd.Series:
    return read.runs(place.store).set_index("run_id").loc[run_id]


def test_own_splits_of_a_run(place: Place, evaluated) -> None:
    Run.attach(place.store.open(), place.untested).tag(split="image (leaking)")
    before = run_of(place, place.untested)
    status, said = evaluated(f"run={place.untested[:9]}")
    assert status == 0, said
    lines = said[said.index("custom (") :].splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0] == f"custom ({place.untested[:8]}) on its own ham10000"
    assert any(
        line.startswith(("PASS: recall of mel", "FAIL: recall of mel", "UNDECIDED: "))
        for line in lines[1:9]
    )
    assert "The own test split has not been evaluated yet" in " ".join(said.split())
    folder = place.folder / "reports" / f"evaluation_{place.untested[:8]}_own"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # no drafts
    assert [path.name for path in (folder / "clinical").iterdir()] == ["val"]
    for name in PICTURES:
        assert Image.open(folder / "clinical" / "val" / f"{name}.png").size[0] > 300
    page = read.artifact(place.store, place.untested, "evaluation.md").read_text()
    assert page == (folder / "evaluation.md").read_text()
    assert "clinical/val/clinical.md" in page
    for written in (
        page,
        (folder / "clinical" / "val" / "clinical.md").read_text(),
    ):  # where the verdict stands
        assert "Warning: Validation chose the epoch: its figures are too good." in written
        assert "Warning: LEAKS: images of one lesion or patient are on both sides" in written
    run = run_of(place, place.untested)
    recorded = read.artifact(place.store, place.untested, "clinical/val")
    assert {path.name for path in recorded.iterdir()} == {
        path.name for path in (folder / "clinical/val").iterdir()
    }
    ranking = pd.read_csv(folder / "clinical" / "val" / "ranking.csv").set_index(
        ["metric", "class"]
    )
    assert run["metrics.best/val/auroc/mel"] == pytest.approx(
        ranking.loc[("auroc", "mel"), "estimate"]
    )
    kept = [
        name for name in before.dropna().index if name.startswith(("metrics.", "params.", "tags."))
    ]
    assert run[kept].to_dict() == before[kept].to_dict()
    assert run["status"] == "FINISHED"
    assert not [name for name in run.dropna().index if name.startswith("metrics.test/")]


def test_a_test_split_is_looked_at_once_and_only_when_asked(place: Place, evaluated) -> None:
    store = place.store.open()
    first = run_of(place, place.single)["metrics.test/accuracy"]
    found = evaluate.own_splits(runs.find(store, place.trial), EvaluateSettings(), FEW, store)
    assert list(found.audits) == ["val"]
    assert found.notes[0].startswith("Only 1 of 2 seeds have been evaluated on the own test split")
    assert "metrics.test/accuracy" not in run_of(place, place.untested).dropna()
    found = evaluate.own_splits(
        runs.find(store, place.trial), EvaluateSettings(test=True), FEW, store
    )
    assert list(found.audits) == ["test", "val"]
    assert found.notes == found.audits["test"].warnings == ()
    trial, child = run_of(place, place.trial), run_of(place, place.untested)
    assert trial["tags.tested"] == "for a clinical audit"
    assert trial["metrics.test/accuracy"] == pytest.approx(
        (first + child["metrics.test/accuracy"]) / 2
    )


def test_other_data(isic: OnIsic) -> None:
    folder, place = isic.folder, isic.place
    words = " ".join(isic.said.split())
    assert max(len(line) for line in isic.said.splitlines() if "image/s" not in line) <= 100
    assert "Overlap with the run's own images: 3 of 32" in words
    assert "Trained at 32 px, geometry squash, on pictures 80x60 px (all of 84)." in words
    assert "pictures 64x64 px" not in words  # one of them is 48x48
    assert (
        "Only 1 of 2 seeds have been evaluated on the own test split; the drop is from validation"
        in words
    )

    met = pd.read_csv(folder / "overlap.csv").set_index("image_id")
    assert met["why"].to_dict() == {
        "ISIC_1000000_downsampled": "same image id",
        "ISIC_2000001": "same picture",
        "ISIC_2000002": "same lesion or patient",
    }
    assert met.loc["ISIC_2000001", "own_image_id"] == "ISIC_1000005"
    predictions = [pd.read_csv(folder / "predictions" / f"seed_{seed}.csv") for seed in (0, 1)]
    for table in predictions:
        assert len(table) == 29
        assert not set(table["image_id"]) & set(met.index)
        assert table.filter(like="p/").sum(axis=1).to_numpy() == pytest.approx(1)
        assert set(table.loc[table["label"] == "akiec", "original_label"]) == {"ak", "scc"}
    labels = pd.read_csv(folder / "labels.csv").set_index("original_label")
    assert labels["images"].to_dict() == {
        "ak": 4,
        "bcc": 4,
        "bkl": 4,
        "df": 4,
        "mel": 1,
        "nv": 4,
        "scc": 4,
        "vasc": 4,
    }

    drop = pd.read_csv(folder / "drop.csv").set_index("metric")
    hits = [
        (table.filter(like="p/").idxmax(axis=1).str[2:] == table["label"]).mean()
        for table in predictions
    ]
    assert drop.loc["accuracy", "external"] == pytest.approx(np.mean(hits))
    val = read.children(place.store, place.trial)["metrics.best/val/accuracy"].mean()
    assert drop.loc["accuracy", "own"] == pytest.approx(val)
    apart = pd.read_csv(folder / "by_original_label.csv").set_index("original_label")
    assert apart.loc[["ak", "scc"], "counts_as"].tolist() == ["akiec", "akiec"]
    for name in ("drop.png", "examples.png"):
        assert Image.open(folder / name).size[0] > 300


def test_it_is_a_run_of_its_own_that_disturbs_no_study(isic: OnIsic) -> None:
    folder, place = isic.folder, isic.place
    table = read.runs(place.store)
    [run] = (row for _, row in table[table["tags.kind"] == "evaluation"].iterrows())
    assert run["parent_id"] is None or pd.isna(run["parent_id"])
    assert (run["status"], run["tags.evaluated_run"], run["tags.data"]) == (
        "FINISHED",
        place.trial,
        "isic2019",
    )
    assert (run["tags.labels"], run["tags.image_size"]) == ("isic2019_to_ham10000", "32")
    assert len(run["tags.data_fingerprint"]) == 64
    drop = pd.read_csv(folder / "drop.csv").set_index("metric")
    assert run["metrics.isic2019/balanced_accuracy"] == pytest.approx(
        drop.loc["balanced_accuracy", "external"]
    )
    assert run["metrics.isic2019/change/recall/mel"] == pytest.approx(
        drop.loc["recall/mel", "difference"]
    )
    assert run["metrics.isic2019/overlap"] == 3
    files = {path.name for path in read.artifact(place.store, run["run_id"], "").iterdir()}
    assert {path.name for path in folder.iterdir()} < files
    trial = run_of(place, place.trial)
    assert not [name for name in trial.dropna().index if name.startswith("metrics.isic2019")]
    # what reports read: the children of trials and studies
    objectives = parse_objectives(
        {"objectives": [{"metric": "val/accuracy", "direction": "maximize"}]}
    )
    assert len(compare(read.children(place.store, place.trial), objectives)) == 2


def test_melanoma_or_not_without_the_own_data(place: Place, trained: Place, on_other_data) -> None:
    data = ["data=siim2020", f"data.root={trained.folder / 'siim'}"]
    with pytest.raises(
        UserError,
        match=r"overlap=exclude: needs the run's own data \(/nosuch: the folder of HAM10000",
    ):
        on_other_data(*data, own_root="/nosuch")
    found = on_other_data(*data, "data.name='../my set'", own_root="/nosuch", overlap="keep")
    assert found.folder == f"evaluation_{place.single[:8]}_my_set_overlap-keep"
    assert (
        found.audits["my_set"]
        .warnings[0]
        .startswith("Overlap with the training images: not checked")
    )
    assert "none of 12, by id and lesion of its val and test." in " ".join(found.notes)
    assert any(note.startswith("The question is mel or not") for note in found.notes)
    table = found.predictions["0"]
    assert table["label"].value_counts().to_dict() == {"rest": 8, "mel": 4}
    assert table["original_label"].value_counts().to_dict() == {"benign": 8, "malignant": 4}
    assert (table["p/rest"] + table["p/mel"]).to_numpy() == pytest.approx(1)
    assert {"recall/mel", "recall/rest", "auroc/mel"} <= set(found.drop["metric"])
    assert found.compared_with == "test"
    [recorded] = runs.find(place.store, place.single).predictions(place.store, "test")
    expected = roc_auc_score(recorded["label"] == "mel", recorded["p/mel"])
    assert found.drop.set_index("metric").loc["auroc/mel", "own"] == pytest.approx(expected)


def test_own_data_that_are_not_the_runs_tell_no_overlap(
    place: Place, trained: Place, on_other_data
) -> None:
    """One lesion of each class is missing; val and test are known from the record."""
    own, part = trained.folder / "ham", place.folder / "part"
    part.mkdir()
    for folder in own.glob("HAM10000_images_*"):
        (part / folder.name).symlink_to(folder)
    table = pd.read_csv(own / "HAM10000_metadata.csv")
    kept = table[table.index % PER_CLASS < PER_CLASS - 2]
    kept.to_csv(part / "HAM10000_metadata.csv", index=False)
    data = ["data=ham10000", f"data.root={own}"]
    with pytest.raises(
        UserError,
        match=f"own_root={part}: is not what the run was trained on; give the right one, or",
    ):
        on_other_data(*data, own_root=str(part))
    found = on_other_data(*data, own_root=str(part), overlap="keep")
    recorded = [
        read.artifact(place.store, place.single, f"predictions/{split}.csv")
        for split in ("val", "test")
    ]
    seen = {name for path in recorded for name in pd.read_csv(path)["image_id"]}
    known = seen | set(kept["image_id"])
    assert set(found.overlap["image_id"]) == known
    assert len(known) > len(kept)
    [told] = (note for note in found.notes if note.startswith("Overlap with the run's own images"))
    assert (
        f"{len(known)} of 84 ({len(known)} same image id), kept. The intervals of the differences"
        in told
    )
    assert found.audits["ham10000"].warnings == (
        "Overlap with the training images: the own data here are not what the run was trained on.",
        f"{len(known)} of these 84 images the run has had, and they were KEPT: "
        "the figures are too good.",
    )
    assert found.audits["ham10000"].verdicts[0].warnings == found.audits["ham10000"].warnings


def test_a_folder_for_data_that_lie_in_none(place: Place, evaluated) -> None:
    path = place.folder / "mlruns" / "artifacts" / place.single / "artifacts" / "config.yaml"
    config = OmegaConf.load(path)
    config.data.source = OmegaConf.load(ROOT / "conf" / "data" / "synthetic.yaml").source
    OmegaConf.save(config, path)
    for data in ([], ["data=isic2019"]):
        status, said = evaluated(f"run={place.single}", *data, "own_root=/nosuch")
        assert status == 2, said
        assert said.endswith(
            "error: own_root: the run's own data (ham10000) lie in no folder; leave it out\n"
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["run=SINGLE", "data=ham10000", "data.root=FOLDER/ham"],
            "the run has had all of these images",
        ),
        (
            ["run=SINGLE", "data=isic2019", "data.root=FOLDER/isic", "labels=siim2020_to_ham10000"],
            "does not know mel (4",
        ),
        (
            ["run=SINGLE", "data=isic2019", "data.root=FOLDER/isic", "labels=nosuch"],
            "labels: nosuch: no such mapping",
        ),
        (
            ["run=SINGLE", "data=isic2019", "data.root=FOLDER/isic", "data.image_size=64"],
            "data.image_size: must be the",
        ),
        (
            ["run=SINGLE", "data=isic2019", "data.root=FOLDER/isic", "data.geometry=round"],
            "data.geometry: ",
        ),
        (
            ["run=SINGLE", "data=isic2019", "data.root=/nosuch"],
            "/nosuch: the folder of ISIC 2019 is not there",
        ),
        (["run=SINGLE", "data=nosuch"], "data=nosuch: no such choice"),
        (["run=SINGLE", "data.root=/nosuch"], "data.root: unknown key"),
        (["run=SINGLE", "clinical.goal=2"], "clinical.goal: must be between 0 and 1"),
        (["run=SINGLE", "clinical.positive=wart"], "clinical.positive: must be one of akiec"),
        (["run=SINGLE", "unknown=maybe"], "unknown: input should be"),
        (
            ["run=SINGLE", "folder=/proc/reports"],
            "folder=/proc/reports: the evaluation cannot be written there",
        ),
        (["run=zzz"], "run=zzz: no such run"),
        (["run="], "run: name one, as in run=3f2a9c"),
        ([], "run: name one, as in run=3f2a9c"),
        (["run=SINGLE", "tracking.folder=elsewhere"], "no run store is there"),
    ],
)
def test_bad_input_is_one_line(
    place: Place, trained: Place, evaluated, arguments: list[str], message: str
) -> None:
    filled = [
        each.replace("SINGLE", place.single).replace("FOLDER", str(trained.folder))
        for each in arguments
    ]
    status, said = evaluated(*filled)
    assert status == 2, said
    assert message in said.strip().splitlines()[-1], said
    assert "Traceback" not in said
    assert not list(place.folder.glob("reports/evaluation*"))


def test_unknown_classes_are_left_out_and_counted_when_asked(
    place: Place, trained: Place, on_other_data
) -> None:
    data = ["data=isic2019", f"data.root={trained.folder / 'isic'}"]
    mine = place.folder / "mine.yaml"
    mine.write_text("mel: mel\nnv: nv\n")
    with pytest.raises(UserError, match=r"mine.yaml does not know .*add to the mapping") as refused:
        on_other_data(*data, mapping=str(mine))
    assert all(
        f"{name} (4 images)" in str(refused.value)
        for name in ("ak", "bcc", "bkl", "df", "scc", "vasc")
    )
    found = on_other_data(*data, mapping=str(mine), unknown="list")
    assert found.predictions["0"]["label"].value_counts().to_dict() == {"nv": 4, "mel": 1}
    [left_out] = (
        note
        for note in found.notes
        if note.startswith("Left out, of classes that the mapping does not know")
    )
    assert "scc (4)" in left_out
    assert found.folder == f"evaluation_{place.single[:8]}_isic2019_labels-mine_unknown-list"


def test_a_part_of_the_other_data(trained: Place, composed) -> None:
    run, data = (
        runs.find(trained.store, trained.single),
        ["data=isic2019", f"data.root={trained.folder / 'isic'}"],
    )
    parts = [
        external.open_data(
            composed(*data, "data.split=image", f"data.fractions={each}"),
            run,
            HAM,
            EvaluateSettings(part="val"),
        )
        for each in ("[0.5,0.5,0]", "[0.75,0.25,0]")
    ]
    assert [len(found.rows) for found in parts] == [len(found.frame) for found in parts] == [16, 8]
