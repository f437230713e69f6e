"""MLflow's user interface on this project's runs: `python -m src.tracking.ui [port=5000]`, on this machine only."""

import os
import socket
import sys

from src.core.errors import ConfigError, UserError
from src.tracking.store import Store, reap

_HOST = "127.0.0.1"
_USAGE = "python -m src.tracking.ui [port=5000] [folder=mlruns] [uri=sqlite:///runs.db]"


def main(arguments: list[str]) -> None:
    """Become the server of MLflow's user interface; does not return unless the store is a server itself.

    Args:
        arguments: `port=`, `folder=` and `uri=`, each optional.

    Raises:
        UserError: An argument that is none of these, a port that is not free, or a store that
            cannot be used.
    """
    options = {"port": "5000", "folder": "mlruns", "uri": ""}
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key not in options or not value:
            raise UserError(f"{argument}: not an argument of {_USAGE}")
        options[key] = value
    port = _free_port(options["port"])
    store = Store(uri=options["uri"] or None, folder=options["folder"])
    if store.is_server:
        print(f"the runs are on a tracking server: open {store.uri}")
        return
    store.open()
    reap(store)
    page = f"http://{_HOST}:{port}/#/experiments/{store.experiment_id}/runs?workflowType=machine_learning"
    print(f"MLflow's user interface, up in some seconds (Ctrl+C ends it): {page}", flush=True)
    os.environ["PYTHONWARNINGS"] = "ignore"
    # MLflow would start eight more processes for jobs on prompts and traces, which there are none
    # of here
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    server = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        _HOST,
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    server += ["--backend-store-uri", store.uri, "--artifacts-destination", str(store.artifacts)]
    server += ["--registry-store-uri", store.uri, "--uvicorn-opts", "--log-level warning"]
    os.execv(sys.executable, server)


def _free_port(text: str) -> int:
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise ConfigError("port", f"must be a number from 1 to 65535, but got {text}")
    with socket.socket() as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # a server that ended just now is no hindrance
        try:
            probe.bind((_HOST, int(text)))
        except OSError as error:
            raise ConfigError(
                "port", f"{text} is not free ({error.strerror}): try port={int(text) + 1}"
            ) from error
    return int(text)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(str(error))
