"""The wrapper around a command: working folder, passwords and control characters."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from src.core import cli
from src.core.cli import Command
from src.core.errors import ConfigError, masked, printable

SECRET = "pass-w0rd"
URLS = (
    f"http://me:{SECRET}@127.0.0.1:9",
    f"https://me:{SECRET}@host/path?x=1",
    f"postgresql+psycopg://me:{SECRET}@127.0.0.1:9/runs",
    f"postgresql://host/runs?user=me&password={SECRET}",
    f"sqlite:////data/runs.db?password={SECRET}",
)
COMMAND = Command("command/audit", f"{__name__}:job", "")


def job(config: DictConfig) -> None:
    """What the command does: see the tests."""
    print(f"in {Path.cwd()}")
    if config.folder == "bug":
        cli.say(f"look: {URLS[0]}", wrap=False)
        logging.getLogger("paretoderm").warning("waiting for %s", URLS[1])
        raise RuntimeError(f"no answer of {' or '.join(URLS)}")


def test_relative_paths_mean_the_folder_of_the_command(
    run_entry: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, output = run_entry(COMMAND.run, "paper=sun2023", "hydra.job.chdir=true")
    assert status == 0
    assert f"in {tmp_path}\n" in output
    assert Path.cwd() == tmp_path


@pytest.mark.parametrize("url", URLS)
def test_passwords_are_masked(url: str) -> None:
    assert SECRET not in masked(f"cannot reach {url} (refused)")
    assert masked(f"a {url} b").replace("***", SECRET) == f"a {url} b"
    assert SECRET not in str(ConfigError("uri", f"must be another than {url}").under("tracking"))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql+psycopg://me:p:w/d@h/runs", "postgresql+psycopg://me:***@h/runs"),
        ("https://me:s3@cret@mlflow.example.org", "https://me:***@mlflow.example.org"),
        ("host=h password='pa ss' dbname=d", "host=h password=*** dbname=d"),
        ("MLFLOW_TRACKING_PASSWORD=s3cret python", "MLFLOW_TRACKING_PASSWORD=*** python"),
        ("http://db/x?access_token=s3cret&a=1", "http://db/x?access_token=***&a=1"),
        ("passwd=s3cret&a=b, password = s3cret", "passwd=***&a=b, password = ***"),
        ("git+HTTPS://s3cret@h/x me@h", "git+HTTPS://***@h/x me@h"),  # a token has no password
        ("HF_TOKEN=s3cret AWS_SECRET_ACCESS_KEY='s 3'", "HF_TOKEN=*** AWS_SECRET_ACCESS_KEY=***"),
        ("'Authorization': 'Bearer s3.cret'", "'Authorization': 'Bearer ***'"),
        ("http://h/x?a=1&sig=s3cret", "http://h/x?a=1&sig=***"),
        ("http://h/x?X-Amz-Signature=s3cret&a=1", "http://h/x?X-Amz-Signature=***&a=1"),
        ("S3_KEY=s3cret TOKEN=s3cret", "S3_KEY=*** TOKEN=***"),
        ("authorization: token s3cret", "authorization: token ***"),
        ("X-Api-Key: s3cret {'HF_TOKEN': 's 3'}", "X-Api-Key: *** {'HF_TOKEN': ***}"),
        ("""{'password': 's3 cret', "passwd": "x"}""", """{'password': ***, "passwd": ***}"""),
        *(
            (text, text)  # nothing else is masked
            for text in (
                "https://mlflow.example.org:5000",
                "?a=b&viewStateShareKey=x class_token=true",
                "postgresql://me@h/runs",
                "password authentication failed: no password",
                "sqlite:////data/mlruns/mlflow.db",
            )
        ),
    ],
)
def test_nothing_else_is_masked(url: str, shown: str) -> None:
    assert masked(url) == shown


def test_the_traceback_of_a_bug_shows_no_password(
    run_entry: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    uri = f"tracking.uri=http://me:{SECRET}@127.0.0.1:9"
    status, output = run_entry(COMMAND.run, "paper=sun2023", "folder=bug", uri)
    assert status == 1
    assert "Traceback" in output
    assert "look: http://me:***@127.0.0.1:9" in output
    assert SECRET not in output
    logs = [file.read_text() for file in tmp_path.rglob("*.log")]
    assert any("waiting for https://me:***@host" in text for text in logs)
    assert SECRET not in "".join(logs)


def test_control_characters_do_not_reach_the_terminal(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    name = "\x1b]0;title\x07\x1b[31mmel\x9b2J\u202egnp.exe\u2066\u200f"
    cli.say(f"class {name}")
    cli.console.print(name, markup=False)
    with pytest.raises(SystemExit):
        cli.fail(f"no image of class {name}")
    logging.getLogger("paretoderm").warning("class %s", name)
    output = capsys.readouterr()
    shown = output.out + output.err + caplog.text
    assert shown.count("mel") == 4
    assert not {"\x1b", "\x07", "\x9b", "\u202e", "\u2066", "\u200f"} & set(shown)
    assert (
        printable("two\nlines\t\N{BLACK HEART SUIT} é 黑")
        == "two\nlines\t\N{BLACK HEART SUIT} é 黑"
    )
