"""ENTRY: Optuna's dashboard on this machine."""

import sys
from contextlib import suppress
from pathlib import Path
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from src.core.cli import fail
from src.core.errors import UserError, require
from src.sweep.storage import default_url, open_storage, resolve_url
from src.tracking.store import Store
from src.tracking.ui import HOST, options

_USAGE = "python -m src.sweep.dashboard [port=8080] [folder=mlruns] [storage=postgresql://...]"


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Nothing: no line for each request."""


def main(arguments: list[str]) -> None:
    """Serve the studies of a storage, by default that beside the run store, until Ctrl+C.

    Raises:
        UserError: A bad argument, a package that is not installed, or no such storage.
    """
    chosen = options(arguments, str(__doc__), _USAGE, port="8080", folder="mlruns", storage="")
    require("dashboard", "optuna_dashboard")
    from optuna_dashboard import wsgi

    store = Store(folder=chosen["folder"])
    beside = store.database.parent if store.database else store.folder
    url = resolve_url(chosen["storage"] or default_url(beside))
    if url.startswith("sqlite:") and not Path(url.removeprefix("sqlite:///")).exists():
        problem = "no such storage: run a study first, or name another one as storage=..."
        raise UserError(f"{url}: {problem}")
    app, port = wsgi(open_storage(url)), int(chosen["port"])
    print(f"Optuna's dashboard (Ctrl+C ends it): http://{HOST}:{port}/dashboard", flush=True)
    with suppress(KeyboardInterrupt), make_server(HOST, port, app, _Server, _Handler) as server:
        server.serve_forever()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        fail(str(error))
