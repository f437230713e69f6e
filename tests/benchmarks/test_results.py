"""docs/results.md from made-up runs: what is pooled, compared, printed beside, and never lost."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from recorded_runs import mean_score, predictions, record, study_run

from benchmarks import results
from src.core.errors import UserError
from src.metrics.paired import paired_difference
from src.tracking.store import Store

BOOTSTRAP = {"samples": 200, "seed": 0, "level": 0.95}
METRICS = ["accuracy", "balanced_accuracy", "recall/melanoma"]


@pytest.fixture
def store(empty_database: Path, tmp_path: Path) -> Store:
    folder = tmp_path / "mlruns"
    folder.mkdir()
    shutil.copy(empty_database, folder / "mlflow.db")
    return Store(uri=f"sqlite:///{folder}/mlflow.db", folder=folder).open()


def section(kind: str, *studies: str, **values: object) -> dict:
    commands = {study: f"record {study}" for study in studies}
    return {"kind": kind, "title": kind, "studies": commands, "metrics": METRICS, **values}


def render(store: Store, sections: dict) -> str:
    return results.render(store, sections, {"seeds": 2, **BOOTSTRAP})


def rows(page: str, head: str) -> list[dict[str, str]]:
    """The rows of the table whose first line holds `head`."""
    lines = page.splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith("|") and head in line)
    names = [cell.strip() for cell in lines[start].strip("|").split("|")]
    found = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        found.append(dict(zip(names, [c.strip() for c in line.strip("|").split("|")], strict=True)))
    return found


def test_seeds_of_one_configuration_are_pooled_and_the_newest_of_each_counts(store: Store) -> None:
    frames = [predictions(0.8, seed) for seed in (0, 1)]
    record(store, "s", predictions(0.1, 7), 0)
    for seed, frame in enumerate(frames):
        record(store, "s", frame, seed)
    record(store, "s", predictions(0.5, 5), 0, {"loss": {"gamma": 2}})
    page = render(store, section("systems", "s", "absent"))
    [row] = rows(page, "seeds")
    assert row["seeds"] == "2"
    assert row["accuracy"].startswith(f"{mean_score(frames, 'accuracy'):.3f} \\[")
    assert (row["params"], row["FLOPs"]) == ("691,911", "30.04M")
    assert "Missing: custom, 64 px, loss.gamma=2, grouped: 1 of 2 seeds" in page
    assert "Missing: absent: no run; record it by record absent" in page


@pytest.mark.parametrize(
    ("tag", "problem"),
    [("split_fingerprint", "differ in the tag split_fingerprint"), ("weights", "the tag weights")],
)
def test_seeds_that_differ_in_data_or_weights_are_not_pooled(
    store: Store, tag: str, problem: str
) -> None:
    for seed in (0, 1):
        record(store, "s", predictions(0.8, seed), seed, **{tag: f"value{seed}"})
    [cell] = results.read_cells(store, "s", 2)
    assert problem in cell.problem
    assert render(store, section("systems", "s")) == ""


def test_seeds_that_predicted_other_images_are_not_pooled(store: Store) -> None:
    for seed in (0, 1):
        record(store, "s", predictions(0.8, seed, images=60 - 2 * seed), seed)
    [cell] = results.read_cells(store, "s", 2)
    assert "its seeds are not pooled: seed 1 lacks image" in cell.problem


def test_printed_values_stand_beside_the_printed_system_under_the_image_split(store: Store) -> None:
    for size in (64, 32):
        for split in ("image (leaking)", "grouped"):
            for seed in (0, 1):
                params = {"data": {"image_size": size, "split": split.split()[0]}}
                tags = {"preset": "paper/custom", "split": split}
                record(store, "s", predictions(0.8, seed), seed, params, **tags)
    printed = {"accuracy": 0.8705, "efficiency/params": 692000.0}
    system = {
        "preset": "paper/custom",
        "px": 64,
        "printed": printed,
        "corrected": {"accuracy": 0.9},
    }
    page = render(store, section("systems", "s", systems=[system, {"preset": "paper/other"}]))
    table = rows(page, "seeds")
    marked = [row for row in table if "printed" in row["accuracy"]]
    assert len(table) == 4
    assert [(row["split"], row["model"]) for row in marked] == [
        ("image (leaking)", "custom, 64 px")
    ]
    assert marked[0]["accuracy"].endswith("(printed 0.8705) (corrected 0.9)")
    assert marked[0]["params"] == "691,911 (printed 692,000)"
    assert "paper/other: no figure; record it by record s" in page


def test_random_weights_of_a_backbone_are_marked(store: Store) -> None:
    for seed in (0, 1):
        params = {"model": {"net": {"weights": "auto"}}}
        record(store, "s", predictions(0.8, seed), seed, params)
    assert rows(render(store, section("systems", "s")), "seeds")[0]["weights"].startswith("RANDOM")


def test_differences_are_those_of_the_paired_bootstrap(store: Store) -> None:
    frames = {
        name: [predictions(right, seed) for seed in (0, 1)]
        for name, right in (("a", 0.95), ("b", 0.4))
    }
    for name, own in frames.items():
        for seed, frame in enumerate(own):
            record(store, "s", frame, seed, {"net": name}, preset=f"paper/{name}")
    page = render(store, section("systems", "s", differences=[["paper/a", "paper/b"]]))
    [row] = rows(page, "minus")
    value, low, high, _ = paired_difference(frames["a"], frames["b"], "accuracy", 200, 0, 0.95)
    assert row["accuracy"] == f"{value:+.3f} \\[{low:+.3f}, {high:+.3f}\\], better"
    assert (row["model"], row["minus"]) == ("a, 64 px", "b, 64 px")
    assert row["params ratio"] == "1"


def test_models_that_were_tested_on_other_images_are_not_compared(store: Store) -> None:
    for name, images in (("a", 60), ("b", 40)):
        for seed in (0, 1):
            frame = predictions(0.8, seed, images)
            record(store, "s", frame, seed, {"net": name}, preset=f"paper/{name}")
    page = render(store, section("systems", "s", differences=[["paper/a", "paper/b"]]))
    assert "Missing: a, 64 px minus b, 64 px:" in page
    assert "| minus" not in page


def arms(store: Store, out: float, into: float, trained: tuple[int, int] = (40, 40)) -> None:
    for arm, right, images in zip(("out", "in"), (out, into), trained, strict=True):
        for seed in (0, 1):
            params = {"data": {"image_size": 64, "siblings": arm}}
            frame = predictions(right, seed, siblings=True)
            record(store, "leak", frame, seed, params, {"data/images/train": float(images)})


def test_leakage_is_the_difference_of_the_arms_by_subset(store: Store) -> None:
    arms(store, 0.5, 0.95)
    table = rows(render(store, section("leakage", "leak")), "minus")
    assert [row["test images"] for row in table] == ["all", "with siblings (30)", "without (30)"]
    assert table[0]["model"].endswith(": in")
    assert table[0]["minus"] == "out"
    assert table[0]["accuracy"].endswith("better")
    # Arms are neither systems nor candidates.
    assert render(store, section("systems", "leak")) == ""


def test_arms_with_other_numbers_of_training_images_are_not_compared(store: Store) -> None:
    arms(store, 0.5, 0.9, trained=(40, 39))
    page = render(store, section("leakage", "leak"))
    assert "the arms have \\[39.0, 40.0\\] training images" in page
    assert "| minus" not in page


def test_candidates_are_chosen_on_validation_within_the_limits(store: Store) -> None:
    # The name, the share of right answers on test, on validation, and the parameters.
    cases = [("good", 0.9, 0.7, 1e5), ("better_on_test", 0.99, 0.1, 1e5), ("large", 0.9, 0.9, 9e5)]
    cases += [("second", 0.8, 0.6, 1e5), ("third", 0.5, 0.5, 1e5)]
    for name, test, val, params in cases:
        for seed in (0, 1):
            metrics = {"best/val/balanced_accuracy": val, "efficiency/params": params}
            values = {"net": name}
            record(store, "s", predictions(test, seed), seed, values, metrics, preset=f"c/{name}")
    for seed in (0, 1):
        record(store, "ref", predictions(0.5, seed), seed, preset="paper/custom")
    better = section(
        "better",
        "s",
        split="grouped",
        limits=["efficiency/params <= 500e3"],
        systems=[{"preset": "paper/custom", "study": "ref"}],
        metrics=["balanced_accuracy"],
    )
    table = rows(render(store, better), "minus")
    against = [(row["model"].partition(",")[0], row["minus"].partition(",")[0]) for row in table]
    assert set(against) == {
        ("good", "custom"),
        ("second", "custom"),
        ("third", "custom"),
        ("second", "good"),
        ("third", "good"),
    }
    assert table[against.index(("good", "custom"))]["params ratio"] == f"{1e5 / 691911:.2g}"
    assert "better" in table[against.index(("good", "custom"))]["bal. acc."]


def test_each_compressed_net_is_compared_with_its_own_origin(store: Store) -> None:
    before, after = ([predictions(right, seed) for seed in (0, 1)] for right in (0.9, 0.6))
    origins = [record(store, "base", frame, seed) for seed, frame in enumerate(before)]
    for seed, frame in enumerate(after):
        tags = {"origin": origins[seed], "compression": "onnx_int8"}
        metrics = {"efficiency/size_mb": 0.7}
        record(store, "s", frame, seed, {"compression": "onnx_int8"}, metrics, **tags)
    page = render(store, section("compressed", "s"))
    [row] = rows(page, "minus")
    value = paired_difference(after, before, "accuracy", 200, 0, 0.95, made_from=True)
    assert row["accuracy"].startswith(f"{value.difference:+.3f}")
    assert row["minus"] == f"custom ({origins[0][:8]})"
    assert [line["model"] for line in rows(page, "seeds")] == [row["minus"], row["model"]]


def test_the_origin_names_commands_commits_and_devices_but_no_folder(store: Store) -> None:
    study_run(store, "s", "paper", "data.root=/home/somebody/data threads=1 tracking.folder=/x")
    for seed in (0, 1):
        record(store, "s", predictions(0.8, seed), seed, git_dirty=seed == 1)
    page = render(store, section("systems", "s"))
    assert "Command: `python -m src.train -m sweeps=paper data.root=... threads=1`" in page
    assert "aaaaaaa (1 runs); aaaaaaa (changed) (1 runs)" in page
    assert "Device: Abacus 9 (2 runs)" in page
    assert "/home" not in page


def test_small_differences_do_not_read_as_zero() -> None:
    frame = pd.DataFrame({"p/mel": [], "p/nv": []})
    cell = results.Cell("s", "", "a", {}, frame, [frame], "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            results, "paired_difference", lambda *_, **__: _difference(0.0004, 0.00001, 0.001)
        )
        text = results.difference(results.Pair(cell, cell), "accuracy", [200, 0, 0.95])
    assert text == "+0.00040 [+0.00001, +0.00100], better"


def _difference(value: float, low: float, high: float) -> object:
    from src.metrics.paired import PairedDifference

    return PairedDifference(value, low, high, np.nan)


def test_figures_that_the_store_lacks_are_never_lost(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "results.md"
    recorded = "# Results\n\n## one\n\n| a |\n|---|\n| 1 |\n\n## two\n\n| b |\n|---|\n| 2 |\n"
    file.write_text(recorded)
    sections = {name: section("systems", name, title=name) for name in ("one", "two")}
    settings = {"seeds": 2, **BOOTSTRAP, "sections": sections}
    with pytest.raises(UserError, match="has no figures of one, two: .*results.md is unchanged"):
        results.write(store, settings, ["one", "two"], file)
    assert file.read_text() == recorded
    for seed in (0, 1):
        record(store, "two", predictions(0.8, seed), seed)
    assert results.write(store, settings, ["one", "two"], file) == file
    page = file.read_text()
    assert "## one\n\n| a |\n|---|\n| 1 |" in page  # kept
    assert "691,911" in page
    # A store with fewer rows than the page writes beside it.
    file.write_text(page.replace("\n| custom", "\n| x |\n| custom"))
    before = file.read_text()
    assert results.write(store, settings, ["two"], file) == tmp_path / "results.new.md"
    assert file.read_text() == before


def test_the_command_line_ends_with_one_line(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "page.md"
    with pytest.raises(SystemExit, match="error: .* has no figures of leakage"):
        results.main(["--only", "leakage", "--file", str(file), "--uri", store.uri])
    assert not file.exists()
    with pytest.raises(SystemExit, match="no run store is there"):
        results.main(["--folder", str(tmp_path / "elsewhere")])
    with pytest.raises(SystemExit):
        results.main(["--only", "leek"])
    assert "invalid choice: 'leek'" in capsys.readouterr().err


def test_each_section_of_the_settings_can_be_used(root: Path) -> None:
    settings = yaml.safe_load((root / "benchmarks" / "results.yaml").read_text())
    for values in settings["sections"].values():
        assert values["kind"] in ("systems", "leakage", "better", "compressed")
        results.parse_limits(values)
        for system in values.get("systems", []):
            assert (root / "conf" / "experiment" / f"{system['preset']}.yaml").is_file()
        for command in values["studies"].values():
            name = command.partition("sweeps=")[2].split(" ")[0]
            assert not name or (root / "sweeps" / f"{name}.yaml").is_file()
