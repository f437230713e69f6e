import json

import pytest

from src.core.errors import UserError
from src.deployment.description import RESEARCH, Decision, Description

DECISION = {"positive": "mel", "threshold": 0.25, "aim": "s", "temperature": 1.5}
DESCRIPTION = Description(
    *("3f2a", "custom", ("nv", "mel"), 64, "pad", "ham10000", "grouped", "free", "int8"),
    Decision(**DECISION),  # type: ignore[arg-type]
    rule="balanced",
    offsets=(0.25, -0.25),
)


def test_a_description_is_read_back_and_other_programs_can_read_it() -> None:
    assert Description.from_json(DESCRIPTION.to_json(), "x") == DESCRIPTION
    fields = json.loads(DESCRIPTION.to_json())
    assert fields["classes"] == ["nv", "mel"]
    assert fields["decision"] == DECISION
    assert fields["notice"] == RESEARCH
    assert (fields["rule"], fields["offsets"]) == ("balanced", [0.25, -0.25])


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        "null",
        '{"run_id": 1}',
        "no json",
        '{"decision": 3, "classes": 4}',
        "[" * 9**6,
    ],
)
def test_other_content_is_refused(content: str) -> None:
    with pytest.raises(UserError, match=r"^model\.onnx: holds no description"):
        Description.from_json(content, "model.onnx")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_size", "64"),
        ("image_size", 0),
        ("image_size", 10**9),  # memory for one picture
        ("classes", "nvmel"),
        ("classes", ["nv"]),
        ("classes", ["nv", 3]),
        ("classes", ["mel", "mel"]),
        ("classes", ["mel", "\x1b[2J"]),
        ("classes", ["mel", "a\nforged: line"]),
        ("classes", ["mel", ""]),
        ("geometry", "stretch"),
        ("licence", None),
        ("version", 2),
        ("surprise", 1),
        ("decision", DECISION | {"threshold": 1.5}),
        ("decision", DECISION | {"threshold": float("nan")}),
        ("decision", DECISION | {"temperature": 0.0}),
        ("decision", DECISION | {"positive": "bcc"}),
        ("offsets", [0.5]),  # of two classes
        ("offsets", [0.5, float("nan")]),
        ("offsets", []),
        ("rule", "nosuch"),
    ],
)
def test_an_invalid_field_is_named(name: str, value: object) -> None:
    content = json.dumps(json.loads(DESCRIPTION.to_json()) | {name: value})
    with pytest.raises(UserError, match=rf"^model\.onnx: holds no description .*{name}"):
        Description.from_json(content, "model.onnx")
