"""ENTRY: MLflow's user interface on this machine."""

import itertools
import os
import socket
import sys

from src.core.cli import fail, say
from src.core.errors import ConfigError, UserError
from src.tracking.store import Store, reap
from src.tracking.views import page, pages

HOST = "127.0.0.1"
_STUDIES = "tags.kind = 'study' and attributes.status = 'FINISHED'"  # they have saved views
_USAGE = "python -m src.tracking.ui [port=5000] [folder=mlruns] [uri=sqlite:///runs.db]"


def options(arguments: list[str], about: str, usage: str, **defaults: str) -> dict[str, str]:
    """The arguments `key=value` of a command that serves on a port of this machine.

    Args:
        arguments: As typed.
        about: Shown with the usage by --help, which ends the process.
        usage: Of the command.
        **defaults: All keys with their values; one is "port".

    Raises:
        UserError: An unknown argument, or a port that is not free.
    """
    if {"--help", "-h"} & set(arguments):
        print(f"{about.removeprefix('ENTRY: ')}\n\n  {usage}")
        raise SystemExit
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key not in defaults or not value:
            raise UserError(f"{argument}: not an argument of {usage}")
        defaults[key] = value
    port = defaults["port"]
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError("port", f"must be a number from 1 to 65535, but got {port}")
    with socket.socket() as probe:
        # A server that ended just now does not block the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, int(port)))
        except OSError as error:
            message = f"{port} is not free ({error.strerror}): try port={int(port) + 1}"
            raise ConfigError("port", message) from error
    return defaults


def main(arguments: list[str]) -> None:
    """Replace this process by the server; returns only if the store is a server.

    Raises:
        UserError: A bad argument, or a store that cannot be used.
    """
    defaults = {"port": "5000", "folder": "mlruns", "uri": ""}
    port, folder, uri = options(arguments, str(__doc__), _USAGE, **defaults).values()
    store = Store(uri=uri or None, folder=folder)
    if store.is_server:
        say(f"the runs are on a tracking server: open {store.uri}", wrap=False)
        return
    store.open()
    reap(store)
    address = f"http://{HOST}:{port}"
    say(f"MLflow's user interface (Ctrl+C ends it): {address}{page(store)}", wrap=False)
    for study in itertools.islice(store.search(_STUDIES), 1):
        for view, path in pages(store, study.info.run_id).items():
            say(f"{study.info.run_name}, {view}: {address}{path}", wrap=False)
    os.environ["PYTHONWARNINGS"] = "ignore"
    # MLflow would start eight more processes for jobs on prompts and traces.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    server = f"-m mlflow server --host {HOST} --port {port} --workers 1 --uvicorn-opts".split()
    # Every user of the machine sees the arguments of a process: a URL may have a password.
    os.environ["MLFLOW_BACKEND_STORE_URI"] = os.environ["MLFLOW_REGISTRY_STORE_URI"] = store.uri
    server += ["--log-level warning", "--artifacts-destination", str(store.artifacts)]
    os.execv(sys.executable, [sys.executable, *server])


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        fail(str(error))
