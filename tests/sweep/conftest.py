"""A real PostgreSQL server for the tests of this folder, started once a session and thrown away."""

import functools
import getpass
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


def server_binaries() -> Path | None:
    """Folder of initdb and pg_ctl, which are often not on the PATH."""
    folders = []
    if shutil.which("pg_config"):
        options = {"capture_output": True, "text": True, "check": True}
        folders.append(subprocess.run(["pg_config", "--bindir"], **options).stdout.strip())
    folders += [Path(shutil.which("initdb") or "/nowhere").parent]
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)  # of Debian
    return next((Path(path) for path in folders if (Path(path) / "initdb").exists()), None)


@dataclass(frozen=True)
class Server:
    """A running server: URL of its database `postgres`, and what calls pg_ctl."""

    url: str
    run: Callable[..., None]

    def stop(self) -> None:
        """Break all connections, as by a crash."""
        self.run("-m", "immediate", "stop")

    def start(self) -> None:
        self.run("-w", "-t", "60", "start")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """A real server with a password that counts."""
    binaries = server_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server is installed (pg_config --bindir has no initdb)")
    user = None
    if os.geteuid() == 0:  # initdb refuses root
        users = {entry.pw_name for entry in pwd.getpwall()}
        user = next((name for name in ("postgres", "nobody") if name in users), None)
        if user is None:
            pytest.skip("PostgreSQL refuses to run as root: no user postgres or nobody")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Not below tmp_path: its folders are closed to other users.
    with tempfile.TemporaryDirectory(
        prefix="paretoderm-pg-", dir="/tmp", ignore_cleanup_errors=True
    ) as name:
        folder, role = Path(name), user or getpass.getuser()
        data, password = str(folder / "data"), folder / "password"
        password.write_text("s3cret")
        for path in (folder, password) if user else ():
            shutil.chown(path, user)

        def run(*command: str) -> None:
            options = {"cwd": folder, "env": {**os.environ, "LC_ALL": "C"}, "timeout": 120}
            with tempfile.TemporaryFile() as log:
                command = (str(binaries / command[0]), *command[1:])
                subprocess.run(command, user=user, stdout=log, stderr=log, check=True, **options)

        accounts = ("-U", role, "-A", "scram-sha-256", "--pwfile", str(password))
        run("initdb", "-D", data, *accounts, "-N")
        options = f"-p {port} -h 127.0.0.1 -k {folder} -F"
        url = f"postgresql://{role}:s3cret@127.0.0.1:{port}/postgres"
        server = Server(url, functools.partial(run, "pg_ctl", "-D", data, "-o", options))
        server.start()
        yield server
        server.stop()


@pytest.fixture(scope="session")
def postgres_url(postgres_server: Server) -> str:
    """URL of a real server's database `postgres`."""
    return postgres_server.url


@pytest.fixture
def fresh_postgres(postgres_url: str) -> str:
    """URL of a new, empty database on the session's server."""
    psycopg = pytest.importorskip("psycopg")
    name = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"{postgres_url.rpartition('/')[0]}/{name}"
