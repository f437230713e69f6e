"""What `python -m src.evaluate` does before it looks into a store; the rest is in tests/evaluation."""

import sys

import pytest

from src import evaluate


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("run=3f2a9c", "run='3f2a9c'"),
        ("run=12e4", "run='12e4'"),  # a number to Hydra
        ("run=0012", "run='0012'"),
        ("run=null", "run=null"),
        ("run='3f'", "run='3f'"),
        ("run=", "run="),
        ("labels=mine.yaml", "mapping=mine.yaml"),
        ("data=isic2019", "data=isic2019"),
        ("--help", "--help"),
    ],
)
def test_an_id_stays_a_text(typed: str, read: str) -> None:
    assert evaluate.as_hydra_reads(typed) == read


def test_help_shows_examples_and_every_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate", "--help"])
    evaluate.main()
    said = capsys.readouterr().out
    assert "python -m src.evaluate run=3f2a9c data=isic2019" in said
    for key in ("run:", "test:", "mapping:", "unknown:", "overlap:", "clinical:", "folder:"):
        assert f"\n{key}" in said


def test_help_lists_the_mappings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate", "--help", "labels"])
    evaluate.main()
    assert (
        "isic2019_to_ham10000  ISIC 2019's eight classes as HAM10000's seven"
        in capsys.readouterr().out
    )
