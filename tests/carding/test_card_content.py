"""What a card says, held against what was recorded; expected values by hand."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from card_records import Runs, record_evaluation

from src.carding import build, find, page
from src.carding.external import external
from src.carding.limits import limits
from src.carding.record import ABSENT, Card, number
from src.carding.recorded import RunRecord
from src.metrics.settings import AuditSettings as Clinical

CardOf = Callable[[str], Card]


def facts(*parts: object) -> dict[str, str]:
    return {name: value for part in parts for name, value in part.facts}  # type: ignore[attr-defined]


def test_the_model_and_its_data_are_told_as_they_were_recorded(runs: Runs, card_of: CardOf) -> None:
    card = card_of(runs.seeds[0])
    told = facts(card.model, card.data, card.training, card.cost)
    assert told["Run"] == f"{runs.seeds[0]}, seed 0"
    assert told["Parameters"] == "691,911"
    assert told["Multiply-adds an image"].startswith(
        "30,037,824; one fused multiply-add counts as one"
    )
    assert told["Input"].startswith("RGB pictures, 64 x 64 px; a frame is squashed")
    assert told["Labels, in the order of the output"] == "bkl, mel, nv"
    assert told["Started from"] == "random weights"
    assert told["Images"] == "train 500; val 168; test 168"
    assert told["Split"].startswith("grouped; images are grouped by lesion")
    assert told["Split"].endswith("no lesion on two sides of it")
    assert told["Loss"] == "Focal (gamma 2.0, weighted yes)"
    assert told["Epochs"].endswith("kept: number 7, by val/balanced_accuracy")
    assert told["Commit"] == f"{'a' * 40}, without uncommitted changes"
    assert told["Hardware and software"].startswith(
        "Abacus 9, 2 cores; 8.0 GB; no GPU; Python 3.11"
    )
    assert told["Latency beside CustomCNN of 691,911 parameters, in turn with it"] == "1.50 times"
    assert str(runs.store.folder) not in page.render(card)  # no paths of a machine


def test_figures_come_with_their_sizes_intervals_and_the_verdict(
    runs: Runs, card_of: CardOf
) -> None:
    card = card_of(runs.seeds[0])
    overall = {row[0]: row[1:] for row in card.quality.sheets[0].rows}
    assert card.quality.sheets[0].head == ("measure", "test", "val")
    assert overall["images / lesions or patients"] == ("72 / 36", "72 / 36")
    assert overall["recall of mel"][0].startswith("0.33 [0.")  # 8 of 24
    assert overall["balanced accuracy"][0].startswith(
        "0.78 ["
    )  # two classes of three whole, one by a third
    assert any(
        each.startswith("FAIL: recall of mel by the most probable class is 0.333")
        for each in card.short
    )
    assert "on 24 images of 12 lesions" in card.short[-1]
    assert any(
        each.startswith("It does not reach a recall of 0.8 of mel on test: 0.333")
        for each in card.limits
    )
    assert any("misses about 67." in each for each in card.limits)
    classes = {row[0]: row for row in card.data.sheets[0].rows}
    assert classes["mel"] == ("mel", "24 / 12", "24 / 12")


def test_the_threshold_of_the_file_is_the_one_that_val_chose(runs: Runs, card_of: CardOf) -> None:
    card = card_of(runs.seeds[0])
    audited = facts(card.quality)["Threshold for sensitivity >= 0.8, chosen on val"]
    stored = facts(card.model)["Stored decision"]
    value = float(audited.removeprefix("mel from a probability of "))
    assert float(
        stored.removeprefix("mel from a probability of ").partition(" ")[0]
    ) == pytest.approx(value, abs=2e-3)
    assert "(sensitivity >= 0.8 on val); temperature" in stored


def test_subgroups_have_their_sizes_and_unknown_skin_types_are_said(
    runs: Runs, card_of: CardOf
) -> None:
    card = card_of(runs.seeds[0])
    rows = {row[0]: row for row in card.subgroups.sheets[0].rows}
    assert rows["sex: male"][1:5] == ("36", "18", "12", "6")  # every other lesion
    assert rows["sex: male"][5] == "too few"
    assert any("2 of 4 subgroups have fewer than 10 lesions of mel" in each for each in card.limits)
    assert any("skin type" in each for each in card.limits)


def test_a_trial_is_told_with_all_its_seeds(runs: Runs, card_of: CardOf) -> None:
    card = card_of(runs.trial)
    told = facts(card.model, card.training)
    assert told["Run"] == f"{runs.trial}, a trial of 2 seeds (0, 1)"
    assert [told[f"Net of seed {seed}"] for seed in (0, 1)] == list(runs.seeds)
    assert told["Epochs"].endswith("kept: number 7 and 7 (one a net), by val/balanced_accuracy")
    assert any(each.startswith("Figures are means of 2 seeds") for each in card.limits)
    assert not any("one training, of one seed" in each for each in card.limits)
    assert any("one training, of one seed" in each for each in card_of(runs.seeds[1]).limits)
    assert card.commands[0].startswith(f"python -m src.predict model={runs.seeds[0]} ")


def test_a_leaking_split_is_said_first_and_loudly(runs: Runs, card_of: CardOf) -> None:
    card = card_of(runs.leaking)
    assert card.beware[0].startswith("THE SPLIT LEAKS")
    assert card.limits[0] == card.beware[0]
    text = page.render(card)
    assert text.index("**THE SPLIT LEAKS") < text.index("## What it is")
    assert any("not committed" in each for each in card.limits)
    assert not card_of(runs.seeds[0]).beware


def test_a_compressed_net_names_its_origin_and_what_was_lost(runs: Runs, card_of: CardOf) -> None:
    card = card_of(runs.compressed)
    told = facts(card.compression)
    assert card.title == "custom on ham10000, compressed (onnx_int8_static)"
    assert told["Compression"] == "onnx_int8_static: Static (percentile 99)"
    assert told["Made from run"] == runs.seeds[0]
    assert told["Lost of balanced accuracy, on test"] == "+1.2 points [-0.4, +3.1]"
    assert told["Lost of recall of mel, on test"] == "+5.0 points [+1.0, +9.0]"
    assert facts(card.model)["Precision of the weights"] == "int8"
    assert facts(card.model)["Size"] == "0.70 MB"
    assert facts(card.training)["Epochs"].endswith(
        "kept: number 7, by val/balanced_accuracy"
    )  # its origin's
    assert facts(card.training)["Run"] == f"{runs.seeds[0]}, from which this model was made"
    assert "Its compression cost +5.0 points [+1.0, +9.0] of recall of mel." in card.limits
    assert not any("of balanced accuracy" in each for each in card.limits)  # its interval holds 0
    assert not card_of(runs.seeds[0]).compression.facts


def test_a_pruned_net_is_not_said_to_have_the_channels_that_it_lost(place: Runs) -> None:
    place.store.client.set_tag(place.compressed, "compression.channels", "features.0.0 11/32")
    card = build.build(
        place.store, find.of_run(place.store, place.compressed), Clinical(samples=100, fixed=())
    )
    assert "Architecture, before channels were taken out" in facts(card.model)
    assert facts(card.compression)["Recorded of it: channels"] == "features.0.0 11/32"


def test_a_model_that_is_a_file_is_exported_as_that_file(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "deployed", lambda store, net: Path("model.tflite"))
    card = build.build(
        runs.store, find.of_run(runs.store, runs.compressed), Clinical(samples=100, fixed=())
    )
    assert f"python -m src.export run={runs.compressed} format=litert" in card.commands


def test_what_is_not_recorded_is_said_to_be_so(runs: Runs, card_of: CardOf) -> None:
    card = card_of(runs.bare)
    told = facts(card.model, card.data, card.training, card.cost)
    for name in ("Parameters", "Size", "Unreadable images left out", "Measured on"):
        assert told[name] == ABSENT, name
    assert told["Images"] == f"train {ABSENT}; val {ABSENT}; test {ABSENT}"
    assert any(
        each.startswith("Nothing is known of age, sex, site and skin type") for each in card.limits
    )
    assert any(
        each.startswith("The commit that trained it is not recorded") for each in card.limits
    )
    assert any(each.startswith("Its latency is not recorded") for each in card.limits)
    assert "nan" not in page.render(card).lower().replace("provenance", "")


def test_external_evaluations_are_told_with_their_intervals(
    place: Runs, card_of: CardOf, tmp_path: Path
) -> None:
    nothing = "No evaluation on other data is recorded: how it does on pictures from elsewhere is not known."
    assert card_of(place.trial).external.told == (nothing,)
    assert nothing in card_of(place.trial).limits
    run_id = record_evaluation(place.store, place.seeds[0], tmp_path / "evaluation")
    recorded = RunRecord(place.store, find.of_run(place.store, place.trial))
    [sheet] = external(recorded).sheets
    found = (
        "isic2019",
        "seed 0",
        "1,518",
        "3",
        "0.25 [0.21-0.30]",
        "0.26 [0.15-0.39]",
        "0.62 [0.50-0.70]",
        run_id[:8],
    )
    assert sheet.rows == (found,)
    told = limits(recorded, {})
    assert nothing not in told
    assert "On isic2019, as evaluated there (seed 0), its balanced accuracy is 0.250." in told


def test_the_head_is_yaml_that_states_results_and_no_licence_of_its_own(
    runs: Runs, card_of: CardOf
) -> None:
    text = page.render(card_of(runs.seeds[0]))
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["license"] == "other"
    assert head["datasets"] == ["ham10000"]
    assert {"image-classification", "not-a-medical-device", "float32"} <= set(head["tags"])
    [result] = head["model-index"][0]["results"]
    assert result["dataset"] == {"name": "ham10000", "type": "ham10000", "split": "test"}
    measured = {each["type"]: each["value"] for each in result["metrics"]}
    assert measured["balanced_accuracy"] == pytest.approx(7 / 9, abs=1e-4)
    licence = facts(card_of(runs.seeds[0]).licence)
    assert licence["Of the data"].startswith("CC BY-NC 4.0: no commercial use")
    assert licence["To be cited for the data"].startswith("Tschandl")
    assert licence["Of the code"] == ABSENT


@pytest.mark.parametrize("which", ["trial", "leaking", "compressed", "bare"])
def test_the_page_can_be_read_as_it_is(runs: Runs, card_of: CardOf, which: str) -> None:
    text = page.render(card_of(getattr(runs, which)))
    assert max(map(len, text.splitlines())) <= 140
    assert "\n\n\n" not in text
    assert "None" not in text
    for title in (
        "What it is",
        "What it is for",
        "Data",
        "Training",
        "How good it is",
        "Limits",
        "Licence and citation",
    ):
        assert f"\n## {title}\n" in text


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([], ABSENT),
        ([float("nan")], ABSENT),
        ([691911.0], "691,911 MB"),
        ([2.0, 2.0], "2 MB"),
        ([1.0, 2.0, 6.0], "3 MB (1 to 6)"),
    ],
)
def test_figures_of_several_nets_are_their_mean_and_range(values: list[float], told: str) -> None:
    assert number(values, unit="MB") == told
