"""What `python -m src.export` does before it looks into a store; the rest is in tests/deployment."""

import sys

import pytest

from src import export


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("run=12e4", "run='12e4'"),  # a number to Hydra
        ("format=onnx", "format=onnx"),
        ("format=onnx,litert", "format=[onnx,litert]"),  # a sweep to Hydra
        ("format=[onnx,litert]", "format=[onnx,litert]"),
        ("data.root=/x", "root=/x"),
        ("folder=out", "folder=out"),
    ],
)
def test_arguments_are_read_as_they_are_meant(typed: str, read: str) -> None:
    assert export.as_hydra_reads(typed) == read


def test_help_shows_examples_and_every_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["export", "--help"])
    export.main()
    said = capsys.readouterr().out
    assert "python -m src.export run=3f2a9c" in said
    for key in ("run:", "format:", "folder:", "root:", "images:", "tolerance:", "publish:"):
        assert f"\n{key}" in said
