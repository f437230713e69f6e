"""Real servers that can be stopped and started again: PostgreSQL and MLflow's."""

import contextlib
import functools
import getpass
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.core.cli import ROOT


class NotInstalledError(Exception):
    """There is no PostgreSQL server on this machine, or no user that could run it."""


@dataclass(frozen=True)
class Server:
    """A server at an address, and what stops and starts it."""

    url: str
    stop: Callable[[], None]  # breaks all connections, as a crash does
    start: Callable[[], None]  # returns when it answers


def free_port() -> int:
    """An unused port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _binaries() -> Path:
    """Folder of initdb and pg_ctl, which are often not on the PATH."""
    folders: list[Path | str] = []
    if shutil.which("pg_config"):
        options: dict[str, Any] = {"capture_output": True, "text": True, "check": True}
        folders.append(subprocess.run(["pg_config", "--bindir"], **options).stdout.strip())
    folders += [Path(shutil.which("initdb") or "/nowhere").parent]
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)  # of Debian
    for folder in map(Path, folders):
        if (folder / "initdb").exists():
            return folder
    problem = "no PostgreSQL server is installed (pg_config --bindir has no initdb)"
    raise NotInstalledError(problem)


@contextlib.contextmanager
def postgresql() -> Iterator[Server]:
    """A server with an empty database `postgres` and a password that counts, for a while.

    Raises:
        NotInstalledError: There is none.
    """
    binaries = _binaries()
    user: str | None = None
    if os.geteuid() == 0:  # initdb refuses root
        users = {entry.pw_name for entry in pwd.getpwall()}
        user = next((name for name in ("postgres", "nobody") if name in users), None)
        if user is None:
            problem = "PostgreSQL refuses to run as root: no user postgres or nobody"
            raise NotInstalledError(problem)
    port = free_port()
    # Not below a temporary folder of pytest, which is closed to other users.
    with tempfile.TemporaryDirectory(
        prefix="paretoderm-pg-", dir="/tmp", ignore_cleanup_errors=True
    ) as name:
        folder, role = Path(name), user or getpass.getuser()
        data, password = str(folder / "data"), folder / "password"
        password.write_text("s3cret")
        if user:
            shutil.chown(folder, user)
            shutil.chown(password, user)

        def run(*command: str) -> None:
            options: dict[str, Any] = {"cwd": folder, "timeout": 120, "user": user, "check": True}
            with tempfile.TemporaryFile() as log:
                options |= {"env": {**os.environ, "LC_ALL": "C"}, "stdout": log, "stderr": log}
                subprocess.run([str(binaries / command[0]), *command[1:]], **options)

        accounts = ("-U", role, "-A", "scram-sha-256", "--pwfile", str(password))
        run("initdb", "-D", data, *accounts, "-N")
        options = f"-p {port} -h 127.0.0.1 -k {folder} -F"
        control = functools.partial(run, "pg_ctl", "-D", data, "-o", options)
        server = Server(
            f"postgresql://{role}:s3cret@127.0.0.1:{port}/postgres",
            functools.partial(control, "-m", "immediate", "stop"),
            functools.partial(control, "-w", "-t", "60", "start"),
        )
        server.start()
        try:
            yield server
        finally:
            server.stop()


@contextlib.contextmanager
def mlflow(database: Path, log: Path) -> Iterator[Server]:
    """MLflow's server on a SQLite database, which is created if it is missing.

    Args:
        database: Of the runs; its artifacts lie beside it.
        log: Of the server.
    """
    port, running = free_port(), list[subprocess.Popen[bytes]]()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "src.tracking.ui", f"port={port}", f"uri=sqlite:///{database}"]

    def start() -> None:
        with log.open("ab") as output:
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True
            )
        running.append(process)
        for _ in range(480):
            with contextlib.suppress(urllib.error.URLError, TimeoutError, ConnectionError):
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                return
            if process.poll() is not None:
                break
            time.sleep(0.25)
        raise RuntimeError(f"{url} does not answer:\n{log.read_text()}")

    def stop() -> None:
        if running:
            process = running.pop()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)  # its workers as well
            process.wait()

    try:
        start()
        yield Server(url, stop, start)
    finally:
        stop()
