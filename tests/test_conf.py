"""Every file of conf/ has a header, composes, passes the checks and builds what it names."""

import re
from collections.abc import Iterator
from pathlib import Path

import hydra.utils
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from src.config import check, resolve

CONF = Path(__file__).resolve().parent.parent / "conf"
FILES = sorted(CONF.rglob("*.yaml"))
CHOICES = [
    (str(file.parent.relative_to(CONF)), file.stem)
    for file in FILES
    if file.parent != CONF and file.parent.name != "hydra" and not file.stem.startswith("_")
]


@pytest.fixture
def composer() -> Iterator[None]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def compose_choice(group: str, choice: str) -> DictConfig:
    prefix = "+" if group == "experiment" else ""
    return compose(
        "train", overrides=[f"{prefix}{group}={choice}"] if group.count("/") == 0 else [f"+{group}={choice}"]
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONF)))
def test_header_says_what_it_is(file: Path) -> None:
    first = next(line for line in file.read_text().splitlines() if not line.startswith("# @package"))
    assert re.match(r"# \S.{10,}", first), f"{file} has no header line"


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_choice_composes_and_passes_the_checks(composer: None, group: str, choice: str) -> None:
    check(resolve(compose_choice(group, choice)))


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_targets_can_be_imported(composer: None, group: str, choice: str) -> None:
    def targets(node: object) -> Iterator[str]:
        if isinstance(node, dict):
            if "_target_" in node:
                yield node["_target_"]
            for value in node.values():
                yield from targets(value)

    names = list(targets(resolve(compose_choice(group, choice))))
    assert names
    for name in names:
        assert callable(hydra.utils.get_object(name))
