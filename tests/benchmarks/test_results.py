"""docs/results.md: from made-up runs, what is pooled, compared and kept; and the page itself."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from benchmarks import results
from benchmarks.results_record import Record
from src.metrics.decision_rules import with_decisions
from src.metrics.paired import PairedDifference, paired_difference
from src.tracking import read
from src.tracking.run import Run
from src.tracking.store import Store

CLASSES = ("mel", "nv", "bkl")
SEEDS = (0, 1)
BOOTSTRAP = {"samples": 200, "seed": 0, "level": 0.95}
METRICS = ["accuracy", "balanced_accuracy", "recall/melanoma"]
SCORES = {"accuracy": accuracy_score, "balanced_accuracy": balanced_accuracy_score}


def predictions(share: float, seed: int, images: int = 60, siblings: bool = False) -> pd.DataFrame:
    """Of the same images every time, two a lesion; about `share` of them get their own class."""
    number, random = np.arange(images), np.random.default_rng(seed)
    label = (number // 2) % len(CLASSES)
    guess = random.integers(0, len(CLASSES), images)
    predicted = np.where(random.random(images) < share, label, guess)
    scores = np.eye(len(CLASSES))[predicted] * 0.7 + 0.1
    table = pd.DataFrame(
        {
            "image_id": [f"i{at:03d}" for at in number],
            "group": [f"g{at // 2}" for at in number],
            "label": np.array(CLASSES)[label],
        }
    )
    if siblings:
        table["has_sibling"] = number % 4 < 2
    return table.assign(**{f"p/{name}": scores[:, at] for at, name in enumerate(CLASSES)})


def score(frame: pd.DataFrame, name: str) -> float:
    """By scikit-learn."""
    predicted = frame[[f"p/{label}" for label in CLASSES]].to_numpy().argmax(axis=1)
    return float(SCORES[name](frame["label"], np.array(CLASSES)[predicted]))


def record(
    store: Store,
    study: str,
    frames: Sequence[pd.DataFrame],
    seeds: Sequence[int] = SEEDS,
    params: dict[str, Any] | None = None,
    metrics: dict[str, float] | None = None,
    **tags: Any,
) -> list[str]:
    """A tested run for each seed: as a training leaves it, but nothing was trained.

    A list or tuple as a tag has a value for each run.
    """
    ids = []
    for number, (frame, seed) in enumerate(zip(frames, seeds, strict=True)):
        values = {"kind": "run", "study": study, "seed": seed, "model": "custom"}
        values |= {"split": "grouped", "weights": "random", "split_fingerprint": "s0"}
        values |= {"git_commit": "a" * 40, "git_dirty": False, "device": "Abacus 9"}
        values["overrides"] = ""
        for name, value in tags.items():
            values[name] = value[number] if isinstance(value, list | tuple) else value
        data = {"image_size": 64, "root": f"/home/somebody/{seed}"}
        config = {"seed": seed, "data": data, **(params or {})}
        with Run.start(store, "custom", values, config) as run:
            for split in ("val", "test"):
                run.table(frame, f"predictions/{split}.csv")
            run.log({"efficiency/params": 691911.0, "efficiency/flops": 30037824.0})
            run.log({"efficiency/latency_ratio": 1.0})
            for name in SCORES:
                value = score(frame, name)
                run.log({f"test/{name}": value, f"best/val/{name}": value})
            run.log(metrics or {})
        ids.append(run.id)
    return ids


def pair(share: float, **options: Any) -> list[pd.DataFrame]:
    """Predictions of two seeds."""
    return [predictions(share, seed, **options) for seed in SEEDS]


def section(kind: str, *studies: str, **values: object) -> dict:
    commands = {study: f"record {study}" for study in studies}
    return {"kind": kind, "title": kind, "studies": commands, "metrics": METRICS, **values}


def render(store: Store, section: dict) -> str:
    studies = {*section["studies"], *(s.get("study") for s in section.get("systems", []))}
    record = Record.of_store(store, studies).rounded()
    return results.render(record, section, {"seeds": 2, **BOOTSTRAP})


def rows(page: str, head: str) -> list[dict[str, str]]:
    """The rows of the table with `head` in its first line; none without that table."""
    lines = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line] for line in lines]
    heads = [at for at, line in enumerate(cells) if line[0] == "model"] + [len(cells)]
    for start, end in zip(heads[:-1], heads[1:], strict=True):
        if head in cells[start]:
            return [dict(zip(cells[start], row, strict=True)) for row in cells[start + 2 : end]]
    return []


def test_seeds_of_one_configuration_are_pooled_and_the_newest_of_each_counts(store: Store) -> None:
    frames = pair(0.8)
    share = "60 of 600 images (10.0%), mel 33.3% (published 2.0%)"
    record(store, "s", [predictions(0.1, 7), *frames], [0, 0, 1], data_share=share)
    record(store, "s", [predictions(0.5, 5)], [0], {"loss": {"gamma": 2}})
    page = render(store, section("systems", "s", "absent"))
    [row] = rows(page, "seeds")
    assert row["seeds"] == "2"
    scores = [score(frame, "accuracy") for frame in frames]
    spread = np.std(scores, ddof=1)
    assert row["accuracy"].startswith(f"{np.mean(scores):.3f} ± {spread:.3f} \\[")
    assert (row["params"], row["FLOPs"]) == ("691,911", "30.04M")
    assert "Missing: custom, 64 px, loss.gamma=2, grouped: 1 of 2 seeds" in page
    assert "Missing: absent: no run; record it by record absent" in page
    many = section("systems", "s", *(f"absent{number}" for number in range(20)))
    listed = re.findall(r"Missing: (absent\d+): no run", render(store, many))
    assert listed == [f"absent{number}" for number in range(20)]  # equal pages of equal records
    assert f"- Data: {share} (2 runs)" in page
    assert "- Image size, px: 64 (2 runs)" in page


@pytest.mark.parametrize(
    ("tags", "images", "problem"),
    [
        ({"split_fingerprint": ["a", "b"]}, 60, "differ in the tag split_fingerprint"),
        ({"weights": ["a", "b"]}, 60, "differ in the tag weights"),
        ({}, 58, "its seeds are not pooled: seed 1 lacks image"),
    ],
)
def test_seeds_that_differ_in_data_or_weights_are_not_pooled(
    store: Store, tags: dict, images: int, problem: str
) -> None:
    record(store, "s", [predictions(0.8, 0), predictions(0.8, 1, images)], **tags)
    [cell] = results.read_cells(Record.of_store(store, ["s"]), "s", 2)
    assert problem in cell.problem
    assert render(store, section("systems", "s")) == ""


def test_printed_values_are_beside_the_printed_system_under_the_image_split(store: Store) -> None:
    for size, split in ((64, "image (leaking)"), (64, "grouped"), (32, "image (leaking)")):
        params = {"data": {"image_size": size, "split": split.split()[0]}}
        record(store, "s", pair(0.8), params=params, preset="paper/custom", split=split)
    system: dict[str, object] = {"preset": "paper/custom", "px": 64, "corrected": {"accuracy": 0.9}}
    system["printed"] = {"accuracy": 0.8705, "efficiency/params": 692000.0}
    page = render(store, section("systems", "s", systems=[system, {"preset": "paper/other"}]))
    table = rows(page, "seeds")
    [marked] = [row for row in table if "printed" in row["accuracy"]]
    assert len(table) == 3
    assert (marked["split"], marked["model"]) == ("image (leaking)", "custom, 64 px")
    assert marked["accuracy"].endswith("(printed 0.8705) (corrected 0.9)")
    assert marked["params"] == "691,911 (printed 692,000)"
    assert "paper/other: no figure; record it by record s" in page


def test_differences_are_those_of_the_paired_bootstrap(store: Store) -> None:
    frames = {"a": pair(0.95), "b": pair(0.4), "c": pair(0.8, images=40)}
    for name in frames:
        # a backbone with random weights is marked
        params = {"net": name, "model": {"net": {"weights": "auto"}}}
        record(store, "s", frames[name], params=params, preset=f"paper/{name}")
    differences = [["paper/a", "paper/b"], ["paper/a", "paper/c"]]
    page = render(store, section("systems", "s", differences=differences))
    [row] = rows(page, "minus")
    value, low, high, _ = paired_difference(frames["a"], frames["b"], "accuracy", 200, 0, 0.95)
    assert row["accuracy"] == f"{value:+.3f} \\[{low:+.3f}, {high:+.3f}\\], better"
    assert (row["model"], row["minus"]) == ("a, 64 px", "b, 64 px")
    assert row["params ratio"] == "1"
    assert "Missing: a, 64 px minus c, 64 px:" in page  # tested on other images
    assert rows(page, "seeds")[0]["weights"] == "RANDOM, not pretrained"


@pytest.mark.parametrize("images", [40.0, 39.0])
def test_leakage_is_the_difference_of_arms_with_equally_many_images(
    store: Store, images: float
) -> None:
    for arm, share, trained in (("out", 0.5, 40.0), ("in", 0.95, images)):
        params = {"data": {"image_size": 64, "siblings": arm}}
        record(
            store, "leak", pair(share, siblings=True), SEEDS, params, {"data/images/train": trained}
        )
    page = render(store, section("leakage", "leak"))
    table = rows(page, "minus")
    if images != 40:
        assert table == []
        assert "the arms have \\[39.0, 40.0\\] training images" in page
        return
    assert [row["test images"] for row in table] == ["all", "with siblings (30)", "without (30)"]
    assert table[0]["model"].endswith(": in")
    assert table[0]["minus"] == "out"
    assert table[0]["accuracy"].endswith("better")
    # Arms are neither systems nor candidates.
    assert render(store, section("systems", "leak")) == ""


def test_candidates_are_chosen_on_validation_within_the_limits(store: Store) -> None:
    # The name, the share of right answers on test, on validation, and the parameters.
    cases = [("good", 0.9, 0.7, 1e5), ("better_on_test", 0.99, 0.1, 1e5), ("large", 0.9, 0.9, 9e5)]
    cases += [("second", 0.8, 0.6, 1e5), ("third", 0.5, 0.5, 1e5)]
    for name, test, val, params in cases:
        metrics = {"best/val/balanced_accuracy": val, "efficiency/params": params}
        record(store, "s", pair(test), SEEDS, {"net": name}, metrics, preset=f"c/{name}")
    record(store, "ref", pair(0.5), preset="paper/custom")
    better = section(
        "better",
        "s",
        split="grouped",
        limits=["efficiency/params <= 500e3"],
        systems=[{"preset": "paper/custom", "study": "ref"}],
        metrics=["balanced_accuracy"],
    )
    table = {}
    for row in rows(render(store, better), "minus"):
        table[row["model"].partition(",")[0], row["minus"].partition(",")[0]] = row
    assert set(table) == {("good", "custom"), ("second", "good"), ("third", "good")}
    assert table["good", "custom"]["params ratio"] == f"{1e5 / 691911:.2g}"
    assert "better" in table["good", "custom"]["bal. acc."]


def test_a_compressed_net_is_compared_with_its_origin(store: Store) -> None:
    before, after = pair(0.9), pair(0.6)
    origins = record(store, "base", before)
    tags = {"origin": origins, "compression": "onnx_int8"}
    params, metrics = {"compression": "onnx_int8"}, {"efficiency/size_mb": 0.7}
    record(store, "s", after, SEEDS, params, metrics, **tags)
    page = render(store, section("compressed", "s"))
    [row] = rows(page, "minus")
    value = paired_difference(after, before, "accuracy", 200, 0, 0.95, made_from=True)
    assert row["accuracy"].startswith(f"{value.difference:+.3f}")
    assert row["minus"] == f"custom ({origins[0][:8]})"
    assert [line["model"] for line in rows(page, "seeds")] == [row["minus"], row["model"]]


def test_the_origin_names_commands_commits_and_devices_but_no_folder(store: Store) -> None:
    fixed = "data.root=/home/somebody/data threads=1 tracking.folder=/x"
    Run.start(
        store, "s", {"kind": "study", "study": "s", "sweeps": "paper", "fixed_overrides": fixed}
    )
    record(store, "s", pair(0.8), git_dirty=[False, True])
    page = render(store, section("systems", "s"))
    assert "Command: `python -m src.train -m sweeps=paper data.root=... threads=1`" in page
    assert "aaaaaaa (1 runs); aaaaaaa (changed) (1 runs)" in page
    assert "Device: Abacus 9 (2 runs)" in page
    assert "/home" not in page


def test_metrics_of_a_class_need_the_class_and_small_differences_do_not_read_as_zero(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frame = pd.DataFrame({"p/MEL": [], "p/nv": []})
    names = {"accuracy": "accuracy", "recall/melanoma": "recall/MEL", "f1/nv": "f1/nv"}
    names |= {"recall/bkl": None}
    assert {name: results.recorded(name, frame) for name in names} == names
    assert results.recorded("recall/melanoma", frame.drop(columns="p/MEL")) is None
    cell = results.Cell("s", "", "a", {}, frame, [frame], [frame], "")
    small = PairedDifference(0.0004, 0.00001, 0.001, np.nan)
    monkeypatch.setattr(results, "paired_difference", lambda *_, **__: small)
    text = results.difference(results.Pair(cell, cell), "accuracy", [200, 0, 0.95])
    assert text == "+0.00040 [+0.00001, +0.00100], better"


def test_a_section_may_be_about_a_decision_rule_or_the_images_of_one_source(store: Store) -> None:
    frames = pair(0.6)
    ids = record(store, "s", frames)
    metrics = ["accuracy", "accuracy@accuracy"]
    [row] = rows(render(store, section("systems", "s", metrics=metrics)), "seeds")
    decided = [with_decisions(frame, "accuracy", frame) for frame in frames]
    expected = [(f["decision/accuracy"] == f["label"]).mean() for f in decided]
    assert row["accuracy, decision=accuracy"].startswith(f"{np.mean(expected):.3f} ±")
    assert row["accuracy"].startswith(f"{np.mean([score(f, 'accuracy') for f in frames]):.3f} ±")

    images, labels = {", second ten": "i01", ", all": "i"}, {ids[1][:8]: "a net"}
    shown = rows(render(store, section("systems", "s", images=images, labels=labels)), "seeds")
    assert [row["model"] for row in shown] == ["a net, second ten", "a net, all"]
    for row, part in zip(shown, (slice(10, 20), slice(None)), strict=True):
        mean = np.mean([score(frame[part], "accuracy") for frame in frames])
        assert row["accuracy"].startswith(f"{mean:.3f} ±")


def test_the_record_keeps_what_a_store_lacks_and_the_page_is_computed_from_it_alone(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    sections = {name: section("systems", name, title=name) for name in ("one", "two")}
    settings = tmp_path / "results.yaml"
    content = {"seeds": 2, **BOOTSTRAP, "top": "What it says.", "sections": sections}
    settings.write_text(yaml.safe_dump(content))
    monkeypatch.setattr(results, "SETTINGS", settings)
    monkeypatch.setattr(results, "Store", lambda *_, **__: store)
    page, docs = tmp_path / "results.md", ["--docs", str(tmp_path)]
    record(store, "other", pair(0.8))
    with pytest.raises(SystemExit, match="error: mlruns has no run of one, two"):
        results.main(["record", *docs])
    record(store, "one", pair(0.8), overrides="data.root=/home/somebody/x model=custom")
    results.main(["record", *docs])
    first = page.read_text()
    assert "## one" in first
    assert "## two" not in first
    for run in read.runs(store)["run_id"]:
        store.client.delete_run(run)
    record(store, "two", pair(0.5))
    results.main(["record", *docs])
    both = page.read_text()
    assert first.partition("## one")[2].strip() in both
    assert "## two" in both
    stored = Record.of_files(tmp_path / "results")
    assert not stored.runs.astype("str").apply(lambda c: c.str.contains("/home")).any(axis=None)
    for (_, split), frame in stored.predictions.items():
        assert split in ("val", "test")
        sums = frame.filter(regex="^p/").sum(axis=1)
        np.testing.assert_allclose(sums, 1, atol=1e-6)
    with pytest.raises(SystemExit) as caught:
        results.main(["verify", *docs])
    assert caught.value.code is None
    page.write_text(both.replace("0.", "0.9", 1))
    with pytest.raises(SystemExit, match="results.md is not what .* gives"):
        results.main(["verify", *docs])
    results.main(docs)
    assert page.read_text() == both
    with pytest.raises(SystemExit, match="error: "):
        results.main(["--docs", str(tmp_path / "elsewhere")])
    with pytest.raises(SystemExit):
        results.main(["leek"])
    assert "invalid choice: 'leek'" in capsys.readouterr().err


def test_probabilities_are_recorded_in_half_precision(store: Store) -> None:
    random = np.random.default_rng(0)
    values = random.dirichlet([0.1, 0.5, 2], size=60)
    values[0] = [1.0, 0.0, 0.0]
    frame = predictions(0.5, 0).assign(**{f"p/{c}": values[:, n] for n, c in enumerate(CLASSES)})
    run_id, _ = record(store, "s", [frame, frame])
    stored = Record.of_store(store, ["s"]).rounded().predictions[run_id, "test"]
    columns = [f"p/{name}" for name in CLASSES]
    large = values > 1e-6
    ratio = stored[columns].to_numpy()[large] / values[large]
    np.testing.assert_allclose(ratio, 1, atol=0.008)  # of a logarithm up to 16, 1/128 at most
    assert stored.loc[0, "p/mel"] == pytest.approx(1)


def test_the_page_is_the_one_that_the_record_gives_and_its_settings_can_be_used(root: Path) -> None:
    settings = yaml.safe_load(results.SETTINGS.read_text())
    page = results.page(Record.of_files(root / results.FOLDER), settings)
    assert page == (root / results.PAGE).read_text()
    assert page.count("\n") <= 150
    assert sum(file.stat().st_size for file in (root / results.FOLDER).iterdir()) < 3e6
    for values in settings["sections"].values():
        assert values["kind"] in ("systems", "leakage", "better", "compressed")
        results.parse_limits(values)
        for system in values.get("systems", []):
            # "": runs without a preset, of a study that is named
            assert system["preset"] or system["study"]
            file = root / "conf" / "experiment" / f"{system['preset']}.yaml"
            assert file.is_file() or not system["preset"]
        for command in values["studies"].values():
            name = command.partition("sweeps=")[2].split(" ")[0]
            assert not name or (root / "sweeps" / f"{name}.yaml").is_file()
