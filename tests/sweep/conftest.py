"""A real PostgreSQL server for the tests of this folder, started once a session and thrown away."""

import uuid
from collections.abc import Iterator

import pytest

from benchmarks.sweep import servers
from benchmarks.sweep.servers import Server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """A real server with a password that counts."""
    try:
        with servers.postgresql() as server:
            yield server
    except servers.NotInstalledError as error:
        pytest.skip(str(error))


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
