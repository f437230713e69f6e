"""`python -m src.audit` as a user types it: files, MLflow, bad input."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from src import audit
from src.tracking import read
from src.tracking.store import Store

Typed = Callable[..., tuple[int, str]]
NO_NETS = ["paper.nets={}", "paper.figures={}"]
READING = "{name: own, operation: sum, of: [5, 7]}"
ONE = f"[{{id: size, claim: It is 12., where: abstract, printed: '12', readings: [{READING}]}}]"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_audit_is_told_written_and_recorded(
    run_entry: Typed, place: Path, empty_database: Path
) -> None:
    (place / "mlruns").mkdir()
    (place / "mlruns" / "mlflow.db").write_bytes(empty_database.read_bytes())
    store = Store(folder=place / "mlruns", experiment="template")
    status, said = run_entry(
        audit.main,
        "paper=mamun2025",
        *NO_NETS,
        f"paper.claims={ONE}",
        "tracking.experiment=template",
    )
    assert status == 0, said
    assert "1 reproduced, 0 reproduced under another reading" in said
    assert "look: reports/audit_mamun2025/audit.md" in said
    assert max(map(len, said.splitlines())) <= 100
    folder = place / "reports" / "audit_mamun2025"
    assert {path.name for path in folder.iterdir()} == {"audit.md", "claims.csv", "readings.csv"}
    assert pd.read_csv(folder / "claims.csv")["verdict"].tolist() == ["reproduced"]
    [(_, run)] = read.runs(store, "tags.kind = 'audit'").iterrows()
    assert (run["status"], run["tags.paper"]) == ("FINISHED", "mamun2025")
    assert run["metrics.audit/reproduced"] == 1
    assert run["metrics.audit/contradicted_by_its_own_numbers"] == 0
    assert (
        read.artifact(store, run["run_id"], "audit/audit.md").read_text()
        == (folder / "audit.md").read_text()
    )

    (folder / "left.txt").write_text("of an earlier audit")
    arguments = [
        "paper=mamun2025",
        *NO_NETS,
        f"paper.claims={ONE}",
        "publish=false",
        "tracking.folder=nosuch",
    ]
    status, said = run_entry(audit.main, *arguments)
    assert status == 0, said
    assert not (folder / "left.txt").exists()
    assert not (place / "nosuch").exists()


def test_what_cannot_be_tested_is_told_by_name_and_reason(run_entry: Typed, place: Path) -> None:
    why = {
        "speed": "no time is printed",
        "heat": "nothing is measured",
        "noise": "no time is printed",
    }
    claim = "claim: So., where: here, printed: so"
    untested = [f"{{id: {name}, {claim}, untestable: {text}}}" for name, text in why.items()]
    claims = f"[{', '.join(untested)}, {ONE[1:]}"
    status, said = run_entry(
        audit.main, "paper=mamun2025", *NO_NETS, f"paper.claims={claims}", "publish=false"
    )
    assert status == 0, said
    assert "1 reproduced" in said
    lines = [line for line in said.splitlines() if line.startswith("- not testable")]
    assert lines == [
        "- not testable: speed and noise: no time is printed",
        "- not testable: heat: nothing is measured",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["paper=mamun2025", "paper.claims=[{id: x}]"], "paper.claims[0].claim: field required"),
        (
            ["paper=mamun2025", f"paper.claims={ONE.replace('sum', 'summ')}"],
            "paper.claims[0].readings[0].operation: does not know 'summ'; did you mean sum?",
        ),
        (
            ["paper=mamun2025", f"paper.claims={ONE.replace('[5, 7]', '[5]')}", *NO_NETS],
            "paper.claims[0].readings[0].operation: sum takes two or more figures, but got 1",
        ),
        (
            [
                "paper=mamun2025",
                f"paper.claims={ONE.replace(chr(39) + '12' + chr(39), 'twelve')}",
                *NO_NETS,
            ],
            "paper.claims[0].printed: must be a number as printed",
        ),
    ],
)
def test_bad_input_is_one_line(
    run_entry: Typed, place: Path, arguments: list[str], message: str
) -> None:
    status, said = run_entry(audit.main, *arguments, "publish=false")
    assert status == 2, said
    assert message in said.strip().splitlines()[-1], said
    assert "Traceback" not in said
