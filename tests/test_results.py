"""`python -m src.results` as a user types it, and the sections that stand in conf/results.yaml."""

import functools
import re
import shutil
from pathlib import Path

import pytest
import yaml

from src import results
from src.core.errors import ConfigError
from src.headline.settings import Better, Compressed, Leakage, ResultsSettings, Systems
from src.tracking.store import Store


@pytest.fixture
def here(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_entry):
    """The entry in this process, in a folder whose store holds no run."""
    (tmp_path / "mlruns").mkdir()
    shutil.copy(empty_database, tmp_path / "mlruns" / "mlflow.db")
    Store(folder=tmp_path / "mlruns", uri=f"sqlite:///{tmp_path}/mlruns/mlflow.db").open()
    monkeypatch.chdir(tmp_path)
    return functools.partial(run_entry, results.main)


@pytest.fixture(scope="module")
def sections(root: Path) -> dict:
    return yaml.safe_load((root / "conf" / "results.yaml").read_text())["sections"]


def test_an_empty_store_gives_a_page_of_what_is_missing(
    here, tmp_path: Path, sections: dict
) -> None:
    status, said = here()
    assert status == 0
    page = (tmp_path / "docs" / "results.md").read_text()
    assert re.findall(r"^## (.*)$", page, re.M) == [
        section["title"] for section in sections.values()
    ]
    for section in sections.values():
        commands = (
            section["studies"].values()
            if isinstance(section["studies"], dict)
            else [section["command"]]
        )
        assert all(command in page for command in commands)
        for system in section.get("systems", []):
            assert system["preset"].partition("/")[2] in page
    assert "|" not in page
    assert "look: docs/results.md" in said
    assert max(map(len, said.splitlines())) <= 100


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (
            ("only=[leek]",),
            "only: must name sections (mamun2025, sun2023, leakage, better, compressed), but got leek",
        ),
        (("only=[leakage]",), "file: must be another than docs/results.md"),
        (("seeds=1",), "seeds"),
        (("sections.leakage.metrics=[]",), "sections.leakage.metrics"),
        (("+sections.sun2023.colour=red",), "sections.sun2023.colour"),
        (("sections.better.limits=[params]",), "sections.better.limits"),
        (("sections.better.kind=best",), "sections.better"),
        (("sections.better.search=[elsewhere]",), "sections.better.search"),
        (("sampels=3",), "sampels: unknown key"),
        (("tracking.folder=elsewhere",), "no run store is there"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    here, tmp_path: Path, arguments, problem: str
) -> None:
    status, said = here(*arguments)
    assert status == 2
    (line,) = [line for line in said.splitlines() if line.startswith("error:")]
    assert problem in line
    assert not (tmp_path / "docs").exists()


def test_help_tells_commands_and_values(here) -> None:
    status, said = here("--help")
    assert status == 0
    assert "python -m src.results" in said
    assert "samples: 2000" in said


def test_what_the_sections_name_is_there(root: Path, sections: dict) -> None:
    parsed = ResultsSettings(sections=sections).chosen()
    assert [type(section) for section in parsed.values()] == [
        Systems,
        Systems,
        Leakage,
        Better,
        Compressed,
    ]
    text = (root / "conf" / "results.yaml").read_text()
    for sweep in set(re.findall(r"sweeps=(\w+)", text)):
        assert (root / "sweeps" / f"{sweep}.yaml").exists(), sweep
    for preset in set(re.findall(r"preset: (\S+)", text)):
        assert (root / "conf" / "experiment" / f"{preset}.yaml").exists(), preset


def test_corrected_specificities_follow_from_the_printed_counts(sections: dict) -> None:
    malignant, every = 117, 6626  # recalls of Table 2 are 54, 32, 63 and 62 of 117
    networks = [system for system in sections["sun2023"]["systems"] if "corrected" in system]
    assert len(networks) == 4
    for system in networks:
        printed = system["printed"]
        hits = round(printed["recall/melanoma"] * malignant)
        false_alarms = round(hits / printed["precision/melanoma"]) - hits
        right = every - malignant - false_alarms
        assert right / every == pytest.approx(printed["specificity/melanoma"], abs=1e-4)
        assert right / (every - malignant) == pytest.approx(
            system["corrected"]["specificity/melanoma"], abs=1e-4
        )


def test_what_a_paper_pretrained_is_its_system_with_those_weights_alone(sections: dict) -> None:
    resnets = [
        each
        for name in ("mamun2025", "sun2023")
        for each in sections[name]["systems"]
        if "resnet" in each["preset"]
    ]
    references = [each for each in sections["better"]["references"] if each["name"] == "ResNet50"]
    assert [each.get("weights") for each in (*resnets, *references)] == ["imagenet"] * 4
    assert references[0]["px"] == 224
    assert "sweeps=mamun2025 " in references[0]["command"]


def test_a_section_that_is_not_asked_for_is_not_read(sections: dict) -> None:
    assert list(
        ResultsSettings(
            sections=sections | {"mamun2025": {}}, only=["leakage"], file="x.md"
        ).chosen()
    ) == ["leakage"]
    with pytest.raises(ConfigError, match="sections"):
        ResultsSettings(sections={}).chosen()
