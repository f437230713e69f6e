"""Use from Python: compose, run, study, load_model, predictions, loading by Lightning, notebook."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from src import api, dry_run
from src.core.cli import ROOT
from src.core.config import instantiate
from src.core.errors import ConfigError, UserError
from src.deployment import trained
from src.deployment.predict import find, predictions_frame
from src.deployment.runtimes.base import in_batches
from src.tracking import read
from src.training.classifier import RECIPE, Classifier

TINY = ["efficiency=fast", "data.source.lesions=100", "model.image_size=32", "data.batch_size=16"]
TINY += ["data.source.native_size=32", "threads=1"]  # larger pictures take longer to draw
SMALL = [*TINY, "model.net.width=4", "trainer.max_epochs=1"]


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, module_patch: pytest.MonkeyPatch, empty_database: Path
) -> Path:
    """A working folder; the module runs in it."""
    path = tmp_path_factory.mktemp("api")
    (path / "mlruns").mkdir()
    (path / "mlruns" / "mlflow.db").write_bytes(empty_database.read_bytes())
    module_patch.chdir(path)
    module_patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return path


@pytest.fixture(scope="module")
def result(folder: Path) -> api.RunResult:
    config = api.compose(SMALL)
    config.model.net.width = 6  # as one does in a notebook
    return api.run(config)


def test_a_run_returns_its_metrics_and_is_logged(result: api.RunResult) -> None:
    row = read.runs(result.store, f"attributes.run_id = '{result.run_id}'").iloc[0]
    assert row["status"] == "FINISHED"
    assert result.metrics["best/val/accuracy"] == row["metrics.best/val/accuracy"]
    assert "model.net.width=6" in row["tags.overrides"].split()
    assert "test/accuracy" in result.metrics


def test_predictions_are_those_of_the_model(folder: Path, result: api.RunResult) -> None:
    table = api.predictions(result.run_id)
    classes = [name for name in table if str(name).startswith("p/")]
    accuracy = (table[classes].idxmax(axis=1).str.removeprefix("p/") == table["label"]).mean()
    assert accuracy == pytest.approx(result.metrics["best/val/accuracy"])
    model = api.load_model(result.run_id[:8])
    pictures = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    with torch.inference_mode():
        probability = model(pictures)
    assert probability.shape == (3, 7)
    np.testing.assert_allclose(probability.sum(dim=1), 1, rtol=1e-5)
    assert not model.training


def test_a_decision_rule_goes_with_the_model(folder: Path, tmp_path: Path) -> None:
    """Train, record, export, predict: the same decisions as by hand from the recorded offsets."""
    result = api.run(api.compose([*SMALL, "decision=balanced"]))
    val, test = (api.predictions(result.run_id, split) for split in ("val", "test"))
    text = read.artifact(result.store, result.run_id, "decision.json").read_text()
    offsets = json.loads(text)["balanced"]
    classes = list(offsets)
    by_hand = (np.log(test[[f"p/{name}" for name in classes]]) + list(offsets.values())).to_numpy()
    decided = [classes[label] for label in by_hand.argmax(axis=1)]
    assert test["decision/balanced"].tolist() == decided
    for split, table in (("best/val", val), ("test", test)):
        pair = table["label"], table["decision/balanced"]
        for name in ("balanced_accuracy", "decision/balanced/balanced_accuracy"):
            assert result.metrics[f"{split}/{name}"] == pytest.approx(
                balanced_accuracy_score(*pair)
            )
        recall = result.metrics[f"{split}/decision/balanced/recall/mel"]
        assert recall == pytest.approx((pair[1] == "mel")[pair[0] == "mel"].mean())
        counted = (pair[0] == pair[1]).mean()
        assert result.metrics[f"{split}/decision/balanced/accuracy"] == pytest.approx(counted)
    assert {f"test/{name}" for name in ("decision/accuracy/accuracy", "chosen/specificity/mel")} < {
        *result.metrics
    }
    run = trained.single(result.store, result.run_id)
    file = trained.write_file(result.store, run, "onnx", tmp_path)
    model = find(str(file), lambda: result.store, 1)
    about = model.description
    assert (about.rule, about.offsets) == ("balanced", pytest.approx(tuple(offsets.values())))
    config = run.config.data
    data = instantiate(config, "data", ("root",)).prepare()
    probability = in_batches(model.runtimes[0], data.cache.images[data.rows("test")])
    rows = predictions_frame(probability, about)
    assert rows["top"].tolist() == decided
    with pytest.raises(ConfigError, match="decision: balanced is fitted on validation"):
        api.run(api.compose([*SMALL, "decision=balanced", "data.fractions=[0.8,0.0,0.2]"]))
    with pytest.raises(ConfigError, match="decision: "):
        api.run(api.compose([*SMALL, "decision=best"]))


def test_lightning_loads_the_checkpoint_without_arguments(
    folder: Path, result: api.RunResult
) -> None:
    path = read.artifact(result.store, result.run_id, "checkpoint/best.ckpt")
    classifier = Classifier.load_from_checkpoint(path)
    assert not classifier.training
    assert (classifier.name, classifier.image_size) == ("custom", 32)
    assert Classifier.load_from_checkpoint(path, image_size=40).image_size == 40
    assert len(classifier.metrics.classes) == 7
    pictures = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    with torch.inference_mode():
        expected = api.load_model(result.run_id)(pictures)
        logits = classifier(pictures.permute(0, 3, 1, 2))
    torch.testing.assert_close(torch.softmax(logits, dim=1), expected)


def test_a_checkpoint_that_names_other_code_is_refused(
    folder: Path, result: api.RunResult, tmp_path: Path
) -> None:
    path = read.artifact(result.store, result.run_id, "checkpoint/best.ckpt")
    content = torch.load(path, weights_only=True)
    recipe = content[RECIPE]
    recipe["model"]["net"]["_target_"] = "os.system"
    torch.save(content, tmp_path / "evil.ckpt")
    with pytest.raises(ConfigError, match=r"model\.net\._target_: os.system is named by no file"):
        Classifier.load_from_checkpoint(tmp_path / "evil.ckpt")
    recipe["model"] = [("_target_", "os.getcwd"), ("net", {})]
    torch.save(content, tmp_path / "pairs.ckpt")
    with pytest.raises(UserError, match="does not say how its classifier is built"):
        Classifier.load_from_checkpoint(tmp_path / "pairs.ckpt")
    del content[RECIPE]
    torch.save(content, tmp_path / "plain.ckpt")
    with pytest.raises(UserError, match="does not say how its classifier is built"):
        Classifier.load_from_checkpoint(tmp_path / "plain.ckpt")
    with pytest.raises(UserError, match="no such checkpoint"):
        Classifier.load_from_checkpoint(tmp_path / "nowhere.ckpt")


def test_a_study_has_trials_front_and_best(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_run, "CHECKED", 0)  # a trial fails, and is not refused before
    study = api.study([*TINY, "model.net.width=4,0,8", "trainer.max_epochs=1"], name="widths")
    assert (study.name, study.is_complete) == ("widths", False)
    assert sorted(study.trials["status"]) == ["FAILED", "FINISHED", "FINISHED"]
    best = study.best()
    assert best["run_id"] == study.trials.iloc[0]["run_id"]
    assert bool(best["front"])
    assert set(study.front["run_id"]) <= set(study.trials["run_id"])
    cheapest = study.best("efficiency/params")
    assert cheapest["overrides"] == "model.net.width=4"
    limit = f"efficiency/params <= {cheapest['efficiency/params']}"
    assert study.best("val/accuracy", [limit])["run_id"] == cheapest["run_id"]
    with pytest.raises(UserError, match="no trial has"):
        study.best("val/accuracy", ["efficiency/params <= 1"])
    assert isinstance(study.trials, pd.DataFrame)


@pytest.mark.usefixtures("folder")
def test_the_notebook_runs_from_its_first_cell_to_its_last() -> None:
    notebook = json.loads((ROOT / "docs" / "notebook.ipynb").read_text())
    names: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "notebook", "exec"), names)
    assert names["probabilities"].shape == (2, 7)
    torch.testing.assert_close(names["probabilities"].sum(1), torch.ones(2), atol=1e-4, rtol=0)
    assert len(names["study"].trials) == 2
    assert 1 <= len(names["study"].front) <= 2
    assert len(names["predictions"]) > 0


def test_bad_values_raise(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.net\.width"):
        api.run(api.compose([*SMALL, "model.net.width=0"]))
    with pytest.raises(ConfigError, match="dry_run"):
        api.study([*SMALL, "model.net.width=4,8", "dry_run=true"])
