import json

import pytest

from src.core.errors import UserError
from src.deployment.description import RESEARCH, Decision, Description

WHOLE = Description(
    "3f2a",
    "custom",
    ("nv", "mel"),
    64,
    "pad",
    "ham10000",
    "grouped",
    "free",
    "int8",
    Decision("mel", 0.25, "s", 1.5),
)


def test_it_survives_its_file() -> None:
    assert Description.from_json(WHOLE.to_json(), "x") == WHOLE


def test_other_programs_can_read_it() -> None:
    said = json.loads(WHOLE.to_json())
    assert said["classes"] == ["nv", "mel"]
    assert said["decision"] == {
        "positive": "mel",
        "threshold": 0.25,
        "aim": "s",
        "temperature": 1.5,
    }
    assert said["notice"] == RESEARCH


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", "null", '{"run_id": 1}', "no json", '{"decision": 3, "classes": 4}']
)
def test_what_is_none_is_refused(content: str) -> None:
    with pytest.raises(UserError, match=r"^model\.onnx: holds no description"):
        Description.from_json(content, "model.onnx")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_size", "64"),
        ("image_size", 0),
        ("classes", "nvmel"),
        ("classes", ["nv"]),
        ("classes", ["nv", 3]),
        ("geometry", "stretch"),
        ("licence", None),
        ("version", 2),
        ("surprise", 1),
        ("decision", {"positive": "mel", "threshold": 1.5, "aim": "s", "temperature": None}),
        (
            "decision",
            {"positive": "mel", "threshold": float("nan"), "aim": "s", "temperature": None},
        ),
        ("decision", {"positive": "mel", "threshold": 0.5, "aim": "s", "temperature": 0.0}),
        ("decision", {"positive": "bcc", "threshold": 0.5, "aim": "s", "temperature": 1.0}),
    ],
)
def test_what_a_description_cannot_hold_is_named(name: str, value: object) -> None:
    content = json.dumps(json.loads(WHOLE.to_json()) | {name: value})
    with pytest.raises(UserError, match=rf"^model\.onnx: holds no description .*{name}"):
        Description.from_json(content, "model.onnx")
