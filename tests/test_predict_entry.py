"""What `python -m src.predict` does before it looks at a model; the rest is in tests/predicting."""

import sys

import pytest

from src import predict


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("model=3f2a9c", "named='3f2a9c'"),
        ("model=12e4", "named='12e4'"),  # a number to Hydra
        ("model=skin@champion", "named='skin@champion'"),
        ("model=skin/3", "named='skin/3'"),
        ("model=null", "named=null"),
        ("model='a b.onnx'", "named='a b.onnx'"),
        ("input=my pictures (1), at home/it's.jpg", r"input='my pictures (1), at home/it\'s.jpg'"),
        ("out=", "out="),
        ("out=null", "out=null"),
        ("unsure_below=0.5", "unsure_below=0.5"),
        ("gradcam=true", "gradcam=true"),
        ("--help", "--help"),
    ],
)
def test_ids_names_and_paths_stay_texts(typed: str, read: str) -> None:
    assert predict.as_hydra_reads(typed) == read


def test_help_shows_examples_and_every_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["predict", "--help"])
    predict.main()
    said = capsys.readouterr().out
    assert "python -m src.predict model=3f2a9c input=lesion.jpg" in said
    assert "no medical device" in said
    for key in ("named:", "input:", "out:", "unsure_below:", "gradcam:", "threads:", "batch_size:"):
        assert f"\n{key}" in said
