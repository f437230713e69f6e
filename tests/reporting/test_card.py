"""Model cards: their content beside what was recorded, escaping, and where they are written."""

import html
import json
import re
import shutil
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from huggingface_hub import ModelCard
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from mlflow.tracking._tracking_service import utils as mlflow_utils
from omegaconf import OmegaConf
from PIL import Image

from src import card as entry
from src.core.cli import CONF
from src.core.errors import UserError
from src.metrics.settings import AuditSettings
from src.reporting import card
from src.reporting.card import ABSENT, MAX_DESCRIPTION, build, find, publish, shortened
from src.tracking import model_registry, read
from src.tracking.run import Run
from src.tracking.store import Store

CLASSES = ("bkl", "mel", "nv")
PER_CLASS = 24  # images in each of val and test, two per lesion
DETECTED = 8  # melanomas that the nets predict as such: a recall of a third
PARAMS = 691_911.0
COSTS = {"efficiency/params": PARAMS, "efficiency/size_mb": 2.77, "efficiency/latency_ratio": 1.5}
MEASURED = COSTS | {
    "best/epoch": 7.0,
    "data/images/train": 500.0,
    "data/images/val": 168.0,
    "data/images/test": 168.0,
    "data/unreadable": 0.0,
    "data/groups_on_two_sides": 0.0,
    "efficiency/flops": 30_037_824.0,
    "efficiency/latency_ms/b1/p50": 0.8,
    "efficiency/latency_ms/b1/p90": 0.9,
    "time/fit_s": 60.0,
}
EFFICIENCY = {"device": "Abacus 9", "torch": "2.13", "threads": 1, "reference": "CustomCNN"}
EFFICIENCY |= {"flop_convention": "one fused multiply-add counts as one (fvcore)"}
EFFICIENCY |= {"reference_params": 691_911}
ENVIRONMENT = {"cpu": "Abacus 9", "cores": 2, "ram_gb": 8.0, "gpus": [], "python": "3.11"}
ENVIRONMENT["packages"] = {"torch": "2.13"}
SETTINGS = AuditSettings(samples=100, fixed=())
Cards = Callable[[str], ModelCard]


@dataclass(frozen=True)
class Runs:
    """Ids of recorded runs: a trial of two seeds, and single runs."""

    store: Store
    trial: str
    seeds: tuple[str, str]
    leaking: str
    compressed: str
    bare: str
    hostile: str


def config(root: Path, *overrides: str) -> str:
    """The config of a run of `custom` on HAM10000, as YAML."""
    GlobalHydra.instance().clear()
    typed = ["model=custom", "data=ham10000", f"data.root={root}", "loss=weighted_focal"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_yaml(compose("train", [*typed, *overrides]), resolve=True)


def predictions(split: str, seed: int = 0, classes: tuple[str, ...] = CLASSES) -> pd.DataFrame:
    """Two thirds of class 1 (whole lesions) are predicted as class 2, everything else is right."""
    label = np.repeat(np.arange(len(classes)), PER_CLASS)
    number = np.tile(np.arange(PER_CLASS), len(classes))
    predicted = np.where((label == 1) & (number >= DETECTED), 2, label)
    noise = np.random.default_rng(seed).random((len(label), len(classes))) / 100
    weights = np.eye(len(classes))[predicted] + 0.1 + noise
    shares = weights / weights.sum(1, keepdims=True)
    frame = pd.DataFrame(shares, columns=[f"p/{name}" for name in classes])
    frame.insert(0, "image_id", [f"{split}_{n:03d}" for n in range(len(label))])
    frame.insert(1, "group", [f"{split}_lesion_{n // 2:03d}" for n in range(len(label))])
    frame.insert(2, "label", np.array(classes)[label])
    return frame


def write_metadata(root: Path) -> None:
    """HAM10000's metadata of the images of val and test: half of them of men, all of the back."""
    for name in ("HAM10000_images_part_1", "HAM10000_images_part_2"):
        (root / name).mkdir(parents=True)
        Image.new("RGB", (8, 6)).save(root / name / f"{name}.jpg")
    table = pd.concat([predictions("val"), predictions("test")])[["image_id", "group", "label"]]
    others = [[name] * 3 for name in ("akiec", "bcc", "df", "vasc")]  # the set has all its classes
    table = pd.concat([table, pd.DataFrame(others, columns=table.columns)], ignore_index=True)
    table.columns = pd.Index(["image_id", "lesion_id", "dx"])
    sex = np.where(np.arange(len(table)) // 2 % 2, "male", "female")
    table = table.assign(age=50.0, sex=sex, localization="back")
    table.to_csv(root / "HAM10000_metadata.csv", index=False)


def record(
    store: Store,
    yaml: str,
    parent: str | None = None,
    metrics: dict[str, float] = MEASURED,
    classes: tuple[str, ...] = CLASSES,
    **tags: Any,
) -> str:
    """Record a finished run."""
    common = {"kind": "run", "seed": 0, "model": "custom", "data": "ham10000", "weights": "random"}
    common |= {"split": "grouped", "grouped_by": "lesion", "split_fingerprint": "s0"}
    common |= {"data_fingerprint": "d0", "git_commit": "a" * 40, "git_dirty": False}
    common |= {"chosen_by": "val/balanced_accuracy"}
    common |= {"overrides": "model=custom data=ham10000 data.root=/home/me study=null"}
    tags = common | tags
    with Run.start(store, "custom", tags, {}, parent) as run:
        run.log(metrics)
        run.text(yaml, "config.yaml")
        run.text("weights", "checkpoint/best.ckpt")
        for split in ("val", "test"):
            run.table(predictions(split, tags["seed"], classes), f"predictions/{split}.csv")
        if metrics is MEASURED:
            run.text(json.dumps(EFFICIENCY), "efficiency.json")
            run.text(json.dumps(ENVIRONMENT), "environment.json")
    return run.id


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Runs:
    """A store with runs; tests that write take `copy`."""
    folder = tmp_path_factory.mktemp("cards")
    shutil.copy(empty_database, folder / "mlflow.db")
    store = Store(f"sqlite:///{folder}/mlflow.db", folder=folder).open()
    write_metadata(folder / "ham")
    yaml = config(folder / "ham")
    trial_tags = {"kind": "trial", "model": "custom", "data": "ham10000", "seed": 0}
    with Run.start(store, "custom", trial_tags) as trial:
        pass
    seeds = (record(store, yaml, trial.id), record(store, yaml, trial.id, seed=1))
    leaking = config(folder / "ham", "data.split=image")
    degradation = {"balanced_accuracy": (0.012, -0.004, 0.031), "recall/mel": (0.05, 0.01, 0.09)}
    lost = {}
    for name, values in degradation.items():
        for end, value in zip(("", "/low", "/high"), values, strict=True):
            lost[f"compression/lost/{name}{end}"] = value
    target = "+compression._target_=src.deployment.compression.onnx.OnnxStaticInt8"
    compression = ("+compression.name=onnx_int8_static", target, "+compression.percentile=99")
    hostile = config(folder / "gone", "data.name='<script>alert(1)</script>'")
    measured = lost | COSTS | {"efficiency/size_mb": 0.7}
    made = {"origin": seeds[0], "compression": "onnx_int8_static", "precision": "int8"}
    names = {"data": "<script>alert(1)</script>", "model": "x\n---\nlicense: mit"}
    names["split"] = "a|b](http://x) **c**"
    return Runs(
        store,
        trial.id,
        seeds,
        leaking=record(store, leaking, split="image (leaking)", git_dirty=True),
        compressed=record(
            store, config(folder / "ham", *compression), seeds[0], measured, lost_on="test", **made
        ),
        bare=record(store, config(folder / "gone"), metrics={}, git_commit="unknown"),
        hostile=record(store, hostile, **names),
    )


@pytest.fixture(scope="module")
def card_of(runs: Runs) -> Cards:
    """The card of a run, each made once."""
    cards: dict[str, ModelCard] = {}

    def make(run_id: str) -> ModelCard:
        if run_id not in cards:
            subject = find(runs.store, run_id)
            cards[run_id] = build(runs.store, subject, SETTINGS)
        return cards[run_id]

    return make


@pytest.fixture
def copy(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """A copy of the store that may be written to."""
    folder = tmp_path / "store"
    shutil.copytree(runs.store.folder, folder, ignore=shutil.ignore_patterns("*.lock"))
    # MLflow caches where the artifacts of a run are, by its id alone
    monkeypatch.setattr(mlflow_utils, "_artifact_repos_cache", OrderedDict())
    store = Store(f"sqlite:///{folder}/mlflow.db", folder=folder).open(create=False)
    return replace(runs, store=store)


def facts(card: ModelCard) -> dict[str, str]:
    """The values of "- **name**: value", unescaped."""
    lines = re.findall(r"^- \*\*(.+?)\*\*: (.+)$", card.text, re.MULTILINE)
    return {plain(name): plain(value) for name, value in lines}


def limits(card: ModelCard) -> str:
    """The section of limits, unescaped."""
    return plain(card.text.partition("\n## Limits\n")[2].partition("\n## ")[0])


def plain(text: str) -> str:
    return html.unescape(re.sub(r"\\(.)", r"\1", text))


def row_of(card: ModelCard, name: str) -> list[str]:
    """The cells of the first table row that starts so."""
    line = next(line for line in plain(card.text).splitlines() if line.startswith(f"| {name} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def register(store: Store, name: str, run_id: str, description: str = "") -> None:
    """A version of a registered model, without model files."""
    if not store.client.search_registered_models(f"name = '{name}'"):
        store.client.create_registered_model(name)
    uri = f"runs:/{run_id}/model"
    store.client.create_model_version(name, uri, run_id, description=description)


def test_a_card_has_the_recorded_facts(runs: Runs, card_of: Cards) -> None:
    made = card_of(runs.seeds[0])
    values = facts(made)
    expected = {
        "Parameters": "691,911",
        "Multiply-adds of an image": "30,037,824; one fused multiply-add counts as one (fvcore)",
        "Input": "RGB pictures, 64 x 64 px, squashed",
        "Labels, in the order of the output": "bkl, mel, nv",
        "Initial weights": "random weights",
        "Images": "train 500; val 168; test 168",
        "Split": "grouped; grouped by lesion",
        "Loss": "Focal (gamma 2.0, weighted yes)",
        "Epochs": "10; kept epoch: 7, by val/balanced_accuracy",
        "Commit": f"{'a' * 40}, without uncommitted changes",
        "Hardware": "Abacus 9, 2 cores; 8.0 GB; GPU: none",
        "Software": "Python 3.11; torch 2.13",
        "Command": "python -m src.train model=custom data=ham10000 data.root=...",
        "Of the data": "CC BY-NC 4.0: no commercial use",
        "Citation of the data": "Tschandl",
    }
    for name, value in expected.items():
        assert values[name].startswith(value), name
    latency = "Latency divided by that of CustomCNN (691,911 parameters), timed in turns"
    assert values[latency] == "1.50"
    assert row_of(made, "b1") == ["b1", "0.8", "0.9"]
    assert str(runs.store.folder) not in str(made)  # no paths of this machine
    # the threshold in the model's file is the one that validation chose
    chosen = float(values["Threshold for sensitivity >= 0.8, chosen on val"].split()[-1])
    stored = values["Stored decision"]
    assert float(stored.split()[5]) == pytest.approx(chosen, abs=2e-3)
    assert "(sensitivity >= 0.8 on val); temperature" in stored


def test_quality_has_intervals_sizes_and_the_verdict(runs: Runs, card_of: Cards) -> None:
    made = card_of(runs.seeds[0])
    text, limit_text = plain(made.text), limits(made)
    assert row_of(made, "balanced accuracy")[1].startswith("0.78 [")  # two of three classes right
    assert row_of(made, "mel")[1:3] == ["24", "12"]
    assert row_of(made, "mel")[3].startswith("0.33 [0.")  # 8 of 24
    assert "FAIL: recall of mel by the most probable class is 0.333" in text
    assert "It does not reach a recall of 0.8 of mel on test: 0.333" in limit_text
    assert "it misses about 67." in limit_text
    assert "trained once, with one seed" in limit_text
    male = row_of(made, "sex: male")
    assert male[1:6] == ["36", "18", "12", "6", "too few"]  # every other lesion
    assert "2 of 4 subgroups have fewer than 10 lesions of mel" in limit_text
    assert "skin type" in limit_text
    assert "No evaluation on other data is recorded" in limit_text
    assert "uncommitted" not in limit_text


def test_the_metadata_can_be_read_by_the_hub(runs: Runs, card_of: Cards) -> None:
    data = ModelCard(str(card_of(runs.seeds[0]))).data
    assert (data.license, data.datasets) == ("other", ["ham10000"])
    assert {"image-classification", "not-a-medical-device", "float32"} <= set(data.tags)
    results = {result.metric_type: result for result in data.eval_results}
    assert results["balanced_accuracy"].dataset_split == "test"
    assert results["balanced_accuracy"].metric_value == pytest.approx(7 / 9, abs=1e-4)


def test_a_trial_has_all_its_seeds(runs: Runs, card_of: Cards) -> None:
    made = card_of(runs.trial)
    values = facts(made)
    assert values["Run"] == f"{runs.trial}, a trial of 2 seeds"
    assert [values[f"Net of seed {seed}"] for seed in (0, 1)] == list(runs.seeds)
    assert values["Seeds"] == "0, 1"
    assert "Figures are means of 2 seeds" in limits(made)
    assert f"python -m src.predict model={runs.seeds[0]} " in made.text


def test_a_leaking_split_is_the_first_warning(runs: Runs, card_of: Cards) -> None:
    made = card_of(runs.leaking)
    assert made.text.index("**THE SPLIT LEAKS") < made.text.index("## What it is")
    assert limits(made).strip().startswith("- THE SPLIT LEAKS")
    assert "uncommitted changes" in limits(made)
    assert "**THE SPLIT" not in card_of(runs.seeds[0]).text


def test_a_compressed_model_has_its_origin_and_its_degradation(
    runs: Runs, copy: Runs, card_of: Cards, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = card_of(runs.compressed)
    values = facts(made)
    assert "# Model card: custom on ham10000, compressed (onnx_int8_static)" in made.text
    assert values["Compression"] == "onnx_int8_static: OnnxStaticInt8 (percentile 99)"
    assert values["Origin"] == f"run {runs.seeds[0]}"
    assert values["Degradation of balanced accuracy, on test"] == "+1.2 points [-0.4, +3.1]"
    assert values["Degradation of recall of mel, on test"] == "+5.0 points [+1.0, +9.0]"
    assert values["Precision of the weights"] == "int8"
    assert values["Size"] == "0.70 MB"
    assert values["Epochs"].endswith("kept epoch: 7, by val/balanced_accuracy")  # its origin's
    assert values["Trained run"] == f"{runs.seeds[0]}, the origin of this model"
    assert "The compression costs +5.0 points [+1.0, +9.0] of recall of mel." in limits(made)
    assert "of balanced accuracy" not in limits(made)  # its interval contains 0
    assert "## How it was compressed" not in card_of(runs.seeds[0]).text
    # a model that is a file is exported as that file; a pruned one lacks channels of its config
    copy.store.client.set_tag(copy.compressed, "compression.channels", "features.0.0 11/32")
    about = card.trained.describe(copy.store, card.trained.single(copy.store, copy.compressed))
    monkeypatch.setattr(card.trained, "describe", lambda store, net: about)
    monkeypatch.setattr(card.trained, "deployed_file", lambda store, run_id: Path("model.tflite"))
    pruned = build(copy.store, find(copy.store, copy.compressed), SETTINGS)
    assert facts(pruned)["Recorded channels"] == "features.0.0 11/32"
    assert "**Architecture, before channels were removed**" in pruned.text
    assert f"python -m src.export run={copy.compressed} format=litert" in pruned.text


def test_missing_values_are_not_recorded(runs: Runs, card_of: Cards) -> None:
    made = card_of(runs.bare)
    values = facts(made)
    for name in ("Size", "Unreadable images left out", "Measured on", "Hardware"):
        assert values[name] == ABSENT, name
    assert values["Images"] == f"train {ABSENT}; val {ABSENT}; test {ABSENT}"
    for sentence in (
        "Age, sex, site and skin type are unknown",
        "The training commit is not recorded",
        "Its latency is not recorded",
    ):
        assert sentence in limits(made)
    assert not re.search(r"\bnan\b|None", made.text)


def test_external_evaluations_have_their_intervals(copy: Runs, tmp_path: Path) -> None:
    folder = tmp_path / "evaluation" / "clinical" / "isic2019"
    folder.mkdir(parents=True)
    row = {"estimate": 0.25, "low": 0.21, "high": 0.3, "interval": "bootstrap"}
    tables = {
        "overall": {"metric": "balanced_accuracy"} | row,
        "per_class": {"class": "mel", "measure": "recall"} | row | {"estimate": 0.26},
        "operating": {"rule": "sensitivity >= 0.8", "measure": "sensitivity"} | row,
    }
    for name, values in tables.items():
        pd.DataFrame([values]).to_csv(folder / f"{name}.csv", index=False)
    tags = {"kind": "evaluation", "evaluated_run": copy.seeds[0], "data": "isic2019"}
    tags |= {"part": "all", "overlap": "exclude"}
    with Run.start(copy.store, "custom on isic2019", tags) as run:
        values = {"balanced_accuracy": 0.25, "images": 1518.0, "overlap": 3.0}
        run.log({f"isic2019/{name}": value for name, value in values.items()})
        run.artifact(tmp_path / "evaluation")
    subject = find(copy.store, copy.trial)
    made = build(copy.store, subject, SETTINGS)
    intervals = ["0.25 [0.21, 0.30]", "0.26 [0.21, 0.30]", "0.25 [0.21, 0.30]"]
    cells = ["isic2019", "seed 0", "1,518", "3", *intervals, run.id[:8]]
    assert row_of(made, "isic2019") == cells
    assert "On isic2019, evaluated with seed 0, the balanced accuracy is 0.250." in limits(made)
    assert "No evaluation on other data" not in made.text


def test_exports_and_benchmarks_are_rows(copy: Runs) -> None:
    with Run.reopen(copy.store, copy.seeds[0]) as run:
        run.log({"export/onnx/agreement": 1.0, "export/onnx/max_difference": 1e-7})
        run.log({"benchmark/vm/onnx/t1/b1/ratio": 0.3, "benchmark/vm/onnx/t1/b1/queries": 2000.0})
        run.tag(**{"benchmark/vm/onnx/t1/b1/reference": "custom in eager"})
    subject = find(copy.store, copy.seeds[0])
    made = build(copy.store, subject, SETTINGS)
    assert row_of(made, "onnx") == ["onnx", "1", "1e-07"]
    assert row_of(made, "vm/onnx/t1/b1") == ["vm/onnx/t1/b1", "custom in eager", "0.3"]


def test_html_markdown_and_yaml_in_names_are_harmless(runs: Runs, card_of: Cards) -> None:
    made = card_of(runs.hostile)
    assert "<script" not in str(made)
    assert "&lt;script&gt;" in made.text
    assert not re.search(r"(?<!\\)\]\(http|(?<!\\)\*\*c", made.text)
    read_back = ModelCard(str(made))
    assert read_back.data.license == "other"  # the name of the model adds no key
    assert read_back.data.model_name == "x\n---\nlicense: mit"
    assert read_back.data.datasets == ["_script_alert(1)_/script_"]
    assert read_back.text == made.text
    assert "license: mit\n" not in made.text
    assert "**c" not in made.text.replace("\\*\\*c", "")


def test_class_names_that_no_training_accepts_are_refused(copy: Runs) -> None:
    yaml = config(copy.store.folder / "gone")
    run_id = record(copy.store, yaml, classes=("a|b", "mel", "](http://x) **c**"))
    with pytest.raises(UserError, match="classes: must be made of letters"):
        build(copy.store, find(copy.store, run_id), SETTINGS)


@pytest.mark.parametrize("which", ["trial", "leaking", "compressed", "bare"])
def test_sections_are_complete(runs: Runs, card_of: Cards, which: str) -> None:
    text = card_of(getattr(runs, which)).text
    titles = ("What it is", "Intended use", "Data", "Training", "Quality", "Subgroups")
    titles += ("Other data", "Cost", "Limits", "How to load and run it", "Licence and citation")
    for title in titles:
        assert f"\n## {title}\n" in text
    assert not re.search(r"\{\{|\}\}|\{%", text)


def test_find_by_run_version_alias_and_start_of_an_id(copy: Runs, tmp_path: Path) -> None:
    store = copy.store
    register(store, "derm", copy.leaking)
    register(store, "derm", copy.seeds[0])
    store.client.set_registered_model_alias("derm", "champion", "1")
    expected = {"derm": copy.seeds[0], "derm/1": copy.leaking, "derm@champion": copy.leaking}
    expected |= {copy.trial[:12]: copy.trial, copy.seeds[1]: copy.seeds[1]}
    for name, run_id in expected.items():
        assert find(store, name).model.run_id == run_id, name
    [version] = find(store, "derm@champion").versions
    assert version.title == "derm, version 1 (champion)"
    (tmp_path / "stray.onnx").write_bytes(b"no model")
    for name, problem in {
        "derm@nobody": "model: derm@nobody",
        "derm/7": "model: derm/7",
        "nobody": "no such registered model; there are derm",
        str(tmp_path / "stray.onnx"): "stray.onnx",
    }.items():
        with pytest.raises(UserError, match=problem) as caught:
            find(store, name)
        assert "\n" not in str(caught.value)


def test_a_card_is_published_behind_the_former_description(copy: Runs, card_of: Cards) -> None:
    store, run_id = copy.store, copy.seeds[0]
    register(store, "derm", run_id, "Which is the best? This one.")
    for _ in range(2):  # the second card replaces the first
        written = publish(card_of(run_id), find(store, "derm"), store)
    assert written == [f"card/card.md of run {run_id}", "the description of derm, version 1"]
    assert read.artifact(store, run_id, "card/card.md").read_text() == str(card_of(run_id))
    [version] = model_registry.of_run(store, run_id)
    before = "Which is the best? This one.\n\n# Model card: custom on ham10000\n\n"
    assert version.description.startswith(before)
    assert version.description.count("# Model card") == 1
    assert "FAIL: recall of mel" in version.description


def test_a_description_ends_in_time() -> None:
    text = "\n# Model card: x\n\n" + "\n\n".join(["A paragraph of words."] * 400) + "\n"
    description = shortened(text, "Which is the best? This.", "r1")
    assert len(description) <= MAX_DESCRIPTION
    assert description.startswith("Which is the best? This.\n\n# Model card: x\n\nA paragraph")
    assert description.endswith("is `card/card.md` among the artifacts of run r1.*")
    limited = "# Model card: x\n\n## Data\n\nd\n\n## Limits\n\nl"
    expected = "# Model card: x\n\n## Limits\n\nl\n\n## Data\n\nd"
    assert shortened(limited, "", "r1") == expected


def test_the_command_writes_the_card(copy: Runs, run_entry, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    register(copy.store, "derm", copy.bare)
    options = ["clinical.samples=100", "publish=false", f"tracking.uri={copy.store.uri}"]
    status, output = run_entry(entry.main, "model=derm", *options)
    assert status == 0, output
    assert "Limits" in output
    text = (tmp_path / "reports" / f"card_{copy.bare[:8]}" / "card.md").read_text()
    assert "- **Registered as**: derm, version 1" in text
    assert "python -m src.predict model=derm/1 " in text
    with pytest.raises(UserError, match="has no artifact"):
        read.artifact(copy.store, copy.bare, "card/card.md")


def test_a_report_that_registers_a_model_gives_it_a_card(
    copy: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    register(copy.store, "derm", copy.bare, "Which is the best? This one.")
    copy.store.client.set_registered_model_alias("derm", "champion", "1")
    target = "src.tracking.store.Store"
    tracking = {"_target_": target, "uri": copy.store.uri, "experiment": "paretoderm"}
    values = {"register": "derm", "from_experiment": None, "tracking": tracking}
    card.attach(OmegaConf.create(values | {"alias": "champion"}))
    [version] = model_registry.of_run(copy.store, copy.bare)
    assert version.description.startswith("Which is the best? This one.\n\n# Model card: custom")
    assert read.artifact(copy.store, copy.bare, "card/card.md").exists()
    card.attach(OmegaConf.create(values | {"alias": "nobody"}))
    assert "derm@nobody has no model card" in caplog.text
