from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from src.core.cli import ROOT
from src.core.errors import ConfigError
from src.data.ham10000 import CLASSES as HAM
from src.data.isic2019 import CLASSES as ISIC
from src.data.siim2020 import CLASSES as SIIM
from src.reporting.clinical.external import Labels, choose, refuse_unknown

FOLDER = ROOT / "conf" / "labels"


def test_isic2019_for_a_net_of_ham10000() -> None:
    found = choose("auto", ISIC, HAM, FOLDER)
    assert found.name == "isic2019_to_ham10000"
    assert found.classes == HAM
    named = found.named(pd.Series(["ak", "scc", "mel", "vasc"]))
    assert named.tolist() == ["akiec", "akiec", "mel", "vasc"]


def test_classes_that_the_net_has_go_by_name() -> None:
    found = choose("auto", ("mel", "nv"), HAM, FOLDER)
    assert (found.name, found.classes) == ("identity", HAM)
    assert found.named(pd.Series(["nv", "mel"])).tolist() == ["nv", "mel"]


def test_a_set_of_melanoma_or_not_asks_one_class_of_several() -> None:
    found = choose("auto", SIIM, HAM, FOLDER)
    assert found.classes == ("rest", "mel")
    assert found.named(pd.Series(["malignant", "benign"])).tolist() == ["mel", "rest"]


@pytest.mark.parametrize("names", [HAM, ISIC])
def test_several_classes_for_a_net_of_melanoma_or_not(names: tuple[str, ...]) -> None:
    found = choose("auto", names, SIIM, FOLDER)
    assert found.classes == SIIM
    assert {name: found.to[name] for name in names if found.to[name] == "malignant"} == {
        "mel": "malignant"
    }


def test_the_rest_gets_the_sum_of_what_is_not_asked_for() -> None:
    table = pd.DataFrame({"image_id": ["a", "b"], "group": ["a", "b"], "label": ["mel", "nv"]})
    table = table.assign(**{"p/bcc": [0.1, 0.2], "p/mel": [0.6, 0.3], "p/nv": [0.3, 0.5]})
    told = Labels("x", {"m": "mel", "b": "rest"}, ("rest", "mel")).told(table)
    assert [column for column in told if column.startswith("p/")] == ["p/rest", "p/mel"]
    assert told["label"].tolist() == ["mel", "rest"]
    assert told["p/rest"].tolist() == pytest.approx([0.4, 0.7])
    assert told["p/mel"].tolist() == [0.6, 0.3]


@settings(max_examples=30)
@given(
    asked=st.sets(st.sampled_from(HAM), min_size=1, max_size=6),
    weights=st.lists(st.lists(st.floats(0.01, 1), min_size=7, max_size=7), min_size=1, max_size=5),
)
def test_nothing_of_a_probability_is_lost(asked: set[str], weights: list[list[float]]) -> None:
    probability = np.array(weights) / np.sum(weights, axis=1, keepdims=True)
    table = pd.DataFrame(probability, columns=[f"p/{name}" for name in HAM]).assign(label=HAM[0])
    classes = ("rest", *(name for name in HAM if name in asked))
    told = Labels("x", {}, classes).told(table)
    assert {column for column in told if column.startswith("p/")} == {
        f"p/{name}" for name in classes
    }
    np.testing.assert_allclose(told.filter(like="p/").sum(axis=1), 1)
    assert (told["label"] == (HAM[0] if HAM[0] in asked else "rest")).all()
    for name in asked:
        np.testing.assert_array_equal(told[f"p/{name}"], table[f"p/{name}"])


def test_without_a_rest_predictions_stay_as_they_are() -> None:
    table = pd.DataFrame({"label": ["mel"], "p/mel": [1.0], "p/nv": [0.0]})
    assert choose("auto", ("mel",), ("mel", "nv"), FOLDER).told(table) is table


def test_an_unknown_class_is_refused_with_all_of_them_listed() -> None:
    with pytest.raises(
        ConfigError,
        match="labels: no mapping for wart: the data have mel, wart, the net akiec, bcc",
    ):
        choose("auto", ("mel", "wart"), HAM, FOLDER)
    found = choose("auto", ("mel", "wart"), HAM, FOLDER, unknown="list")
    names = pd.Series(["mel", "wart", "wart"])
    assert found.named(names).isna().tolist() == [False, True, True]
    with pytest.raises(
        ConfigError, match=r"labels: identity does not know wart \(2 images\); add to the mapping"
    ):
        refuse_unknown(found, names)
    refuse_unknown(found, names.iloc[:1])


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("melanoma: mel\nother: rest\n")
    found = choose(str(tmp_path / "mine.yaml"), ("melanoma", "other"), HAM, FOLDER)
    assert found.classes == ("rest", "mel")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: strange\n", "speaks of strange, which the net does not have; it has akiec"),
        ("a: rest\n", "must name a class of the net beside rest"),
        ("- a\n", "must have lines like"),
        ("a: [\n", "cannot be read"),
        (
            "yes: mel\nno: rest\n",
            "has True, False where a class is named; put names like yes and no in quotes",
        ),
        ("a: no\n", "has False where a class is named"),
        ("a:\n", "has None where a class is named"),
    ],
)
def test_a_file_that_cannot_be_is_told(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        choose(str(tmp_path / "bad.yaml"), ("a",), HAM, FOLDER)


def test_quoted_names_and_numbers_are_names(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("'yes': mel\n0: rest\n")
    assert choose(str(tmp_path / "mine.yaml"), ("yes", "0"), HAM, FOLDER).to == {
        "yes": "mel",
        "0": "rest",
    }


def test_a_mapping_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(
        ConfigError, match="labels: nosuch: no such mapping; there are auto, isic2019_to_ham10000"
    ):
        choose("nosuch", ISIC, HAM, FOLDER)


def test_two_files_that_fit_must_be_told_apart(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text("lentigo: bkl\n")
    with pytest.raises(ConfigError, match="labels: one and two both fit; name one"):
        choose("auto", ("lentigo",), HAM, tmp_path)


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_files_speak_of_classes_that_there_are(file: Path) -> None:
    to = yaml.safe_load(file.read_text())
    assert set(to) <= {*HAM, *ISIC, *SIIM}
    assert set(to.values()) <= {*HAM, "rest"} or set(to.values()) <= set(SIIM)
