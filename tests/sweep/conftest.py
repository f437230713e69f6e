"""A real PostgreSQL server for the tests of this folder, started once a session and thrown away."""

import getpass
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest


def server_binaries() -> Path | None:
    """Folder of initdb and pg_ctl, which are often not on the PATH."""
    if shutil.which("pg_config"):
        binaries = Path(
            subprocess.run(
                ["pg_config", "--bindir"], capture_output=True, text=True, check=True
            ).stdout.strip()
        )
        if (binaries / "initdb").exists():
            return binaries
    on_path = shutil.which("initdb")
    if on_path:
        return Path(on_path).parent
    packaged = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))  # where Debian puts it
    return packaged[-1].parent if packaged else None


def unprivileged_user() -> str | None:
    """initdb refuses root: the user to run it as then, None if we are somebody else already."""
    if os.geteuid() != 0:
        return None
    users = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in users), None)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """URL of a real server's database `postgres`, with a password that counts."""
    binaries = server_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server is installed (pg_config --bindir has no initdb)")
    user = unprivileged_user()
    if os.geteuid() == 0 and user is None:
        pytest.skip("PostgreSQL refuses to run as root, and there is no user postgres or nobody")
    # not below tmp_path: its folders are closed to other users
    folder = Path(tempfile.mkdtemp(prefix="paretoderm-pg-", dir="/tmp"))
    (folder / "password").write_text("s3cret")
    if user is not None:
        shutil.chown(folder, user)
        shutil.chown(folder / "password", user)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def run(*command: str) -> None:
        with (folder.parent / f"{folder.name}.log").open("ab") as log:
            subprocess.run(
                [binaries / command[0], *command[1:]],
                user=user, cwd=folder, stdout=log, stderr=log, check=True, timeout=120,
                env={**os.environ, "LC_ALL": "C"},
            )  # fmt: skip

    data = str(folder / "data")
    name = user or getpass.getuser()
    try:
        run(
            "initdb",
            "-D",
            data,
            "-U",
            name,
            "-A",
            "scram-sha-256",
            "--pwfile",
            str(folder / "password"),
            "-N",
        )
        options = f"-p {port} -h 127.0.0.1 -k {folder} -F"
        run("pg_ctl", "-D", data, "-o", options, "-w", "-t", "60", "start")
        try:
            yield f"postgresql://{name}:s3cret@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        (folder.parent / f"{folder.name}.log").unlink(missing_ok=True)


@pytest.fixture
def fresh_postgres(postgres_url: str) -> str:
    """URL of a new, empty database on the session's server."""
    psycopg = pytest.importorskip("psycopg")
    name = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"{postgres_url.rpartition('/')[0]}/{name}"
