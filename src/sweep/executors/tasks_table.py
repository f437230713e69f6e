"""The table through which the owner of a study and its workers on other machines hand tasks over.

It stands in the study's own database: who may write there decides what the workers run. Every
change is one statement, so that no two processes can take the same task. All times are the
database's: the machines' clocks need not agree.
"""

import json
import time
from dataclasses import asdict, dataclass
from typing import Any, Literal

import sqlalchemy as sql

from src.core.errors import DependencyError, UserError
from src.sweep.executors.base import task_from
from src.sweep.records import Task
from src.sweep.storage import resolve_url

_metadata = sql.MetaData()
_tasks = sql.Table(
    "paretoderm_tasks",
    _metadata,
    sql.Column("id", sql.Integer, primary_key=True),
    sql.Column("owner", sql.String(200), nullable=False, index=True),
    sql.Column("study", sql.Text, nullable=False),
    sql.Column("trial_id", sql.Integer, nullable=False),
    sql.Column("task", sql.Text, nullable=False),  # JSON
    sql.Column("state", sql.String(10), nullable=False),  # waiting, claimed, stop, ended
    sql.Column(
        "grace", sql.Float, nullable=False, default=0.0
    ),  # seconds between asking to end and killing
    sql.Column("worker", sql.String(200), nullable=False, default=""),
    sql.Column("exitcode", sql.Integer),
    sql.Column("note", sql.Text, nullable=False, default=""),
)
_members = sql.Table(
    "paretoderm_members",
    _metadata,
    sql.Column("name", sql.String(200), primary_key=True),
    sql.Column("kind", sql.String(10), nullable=False),  # owner, worker
    sql.Column("slots", sql.Integer, nullable=False),
    sql.Column("heartbeat", sql.Float, nullable=False),  # seconds, by the database's clock
)
_RUNNING = ("claimed", "stop")


@dataclass(frozen=True)
class TaskEnd:
    """How a task ended: `Ended` as a row."""

    id: int
    exitcode: int | None
    note: str


class TasksTable:
    """The tasks and the members (owners and workers) in one database; safe in several threads.

    Args:
        url: SQLite (processes of one machine) or PostgreSQL, as the study's storage.

    Raises:
        ConfigError: Another kind of URL.
        DependencyError: The database's driver is not installed.
        UserError: The database cannot be used.
    """

    def __init__(self, url: str) -> None:
        self.url = resolve_url(url)
        sqlite = self.url.startswith("sqlite:")
        options = {"timeout": 60} if sqlite else {"connect_timeout": 5, "client_encoding": "utf8"}
        try:
            self._engine = sql.create_engine(
                self.url, connect_args=options, pool_pre_ping=not sqlite
            )
        except ImportError as error:
            raise DependencyError(
                "PostgreSQL needs psycopg: pip install -e '.[postgres]'"
            ) from error
        if sqlite:
            self._now: sql.ColumnElement[float] = sql.func.julianday("now") * 86400.0
        else:
            self._now = sql.cast(sql.extract("epoch", sql.func.clock_timestamp()), sql.Float)
        self._create()

    @property
    def shown_url(self) -> str:
        """The URL without its password."""
        return sql.make_url(self.url).render_as_string(hide_password=True)

    def beat(self, name: str, kind: Literal["owner", "worker"], slots: int) -> None:
        """Say that a member is alive, and how many trials it can run or wants to."""
        with self._engine.begin() as connection:
            values: dict[str, Any] = {"kind": kind, "slots": slots, "heartbeat": self._now}
            known = connection.execute(
                sql.update(_members).where(_members.c.name == name).values(values)
            )
            if not known.rowcount:
                connection.execute(sql.insert(_members).values(name=name, **values))

    def leave(self, name: str) -> None:
        """Forget a member. A worker's unfinished tasks are lost then, an owner's are dropped."""
        with self._engine.begin() as connection:
            connection.execute(sql.delete(_members).where(_members.c.name == name))

    def workers(self, lost_after: float) -> int:
        """How many trials the living workers can run at once, all together."""
        query = sql.select(sql.func.coalesce(sql.func.sum(_members.c.slots), 0))
        with self._engine.connect() as connection:
            living = query.where(
                _members.c.kind == "worker", _members.c.heartbeat > self._now - lost_after
            )
            return int(connection.execute(living).scalar_one())

    def bury_lost(self, lost_after: float) -> None:
        """End the tasks whose worker has not been heard of for so many seconds; drop those of silent owners."""
        living = sql.select(_members.c.name).where(_members.c.heartbeat > self._now - lost_after)
        lost = _tasks.c.state.in_(_RUNNING) & _tasks.c.worker.not_in(living)
        note = sql.literal("worker ") + _tasks.c.worker + sql.literal(" was lost")
        silent = _members.c.heartbeat < self._now - 20 * lost_after
        with self._engine.begin() as connection:
            connection.execute(
                sql.update(_tasks).where(lost).values(state="ended", exitcode=None, note=note)
            )
            connection.execute(sql.delete(_tasks).where(_tasks.c.owner.not_in(living)))
            connection.execute(sql.delete(_members).where(silent))

    def add(self, owner: str, task: Task) -> int:
        """Offer a task to the workers.

        Returns:
            The id of its row.
        """
        fields = asdict(task)
        if fields["storage"] == self.url:
            fields["storage"] = ""  # a worker may know this database by another address
        values = {
            "owner": owner,
            "study": task.study,
            "trial_id": task.trial_id,
            "task": json.dumps(fields),
        }
        with self._engine.begin() as connection:
            row = connection.execute(sql.insert(_tasks).values(state="waiting", **values))
            assert row.inserted_primary_key is not None
            return int(row.inserted_primary_key[0])

    def claim(self, worker: str, study: str | None = None) -> tuple[int, Task] | None:
        """Take the task that has waited longest, if there is one; nobody else can have it then.

        Args:
            worker: Who takes it.
            study: Only of this study; None: of any.
        """
        waiting = (
            sql.select(_tasks.c.id)
            .where(_tasks.c.state == "waiting")
            .order_by(_tasks.c.id)
            .limit(1)
        )
        if study is not None:
            waiting = waiting.where(_tasks.c.study == study)
        # SQLite knows no rows that are locked: its one writer at a time has the whole file
        oldest = waiting.with_for_update(skip_locked=True).scalar_subquery()
        taken = (
            sql.update(_tasks).where(_tasks.c.id == oldest).values(state="claimed", worker=worker)
        )
        with self._engine.begin() as connection:
            row = connection.execute(taken.returning(_tasks.c.id, _tasks.c.task)).first()
        if row is None:
            return None
        fields = json.loads(row.task)
        fields["storage"] = fields["storage"] or self.url
        return int(row.id), task_from(fields)

    def ask_to_end(self, id: int, grace: float) -> None:
        """Let a task be stopped: by its worker, or at once if it has none yet."""
        mine = sql.update(_tasks).where(_tasks.c.id == id)
        with self._engine.begin() as connection:
            never = mine.where(_tasks.c.state == "waiting")
            connection.execute(
                never.values(state="ended", note="stopped before a worker had taken it")
            )
            connection.execute(
                mine.where(_tasks.c.state.in_(_RUNNING)).values(state="stop", grace=grace)
            )

    def wanted(self, worker: str) -> dict[int, float | None]:
        """The tasks that a worker shall go on with: id -> None, or the grace in seconds if it shall stop it."""
        query = sql.select(_tasks.c.id, _tasks.c.state, _tasks.c.grace)
        with self._engine.connect() as connection:
            rows = connection.execute(
                query.where(_tasks.c.worker == worker, _tasks.c.state.in_(_RUNNING))
            )
            return {int(row.id): float(row.grace) if row.state == "stop" else None for row in rows}

    def report(self, worker: str, end: TaskEnd) -> None:
        """Tell how a task ended; nothing happens if the worker had been given up meanwhile."""
        own = (_tasks.c.id == end.id) & (_tasks.c.worker == worker) & _tasks.c.state.in_(_RUNNING)
        with self._engine.begin() as connection:
            values = {"state": "ended", "exitcode": end.exitcode, "note": end.note}
            connection.execute(sql.update(_tasks).where(own).values(values))

    def collect(self, owner: str) -> list[TaskEnd]:
        """The owner's tasks that have ended; they are removed from the table."""
        ended = (_tasks.c.owner == owner) & (_tasks.c.state == "ended")
        columns = (_tasks.c.id, _tasks.c.exitcode, _tasks.c.note)
        with self._engine.connect() as connection:  # a look takes no lock
            if not connection.execute(sql.select(_tasks.c.id).where(ended).limit(1)).first():
                return []
        with self._engine.begin() as connection:
            rows = connection.execute(sql.delete(_tasks).where(ended).returning(*columns)).all()
        return [TaskEnd(int(row.id), row.exitcode, row.note) for row in rows]

    def known(self, owner: str) -> set[int]:
        """Ids of the owner's rows; others drop them if it was silent for too long."""
        with self._engine.connect() as connection:
            return set(
                connection.execute(sql.select(_tasks.c.id).where(_tasks.c.owner == owner)).scalars()
            )

    def drop(self, owner: str) -> None:
        """Remove all tasks of an owner."""
        with self._engine.begin() as connection:
            connection.execute(sql.delete(_tasks).where(_tasks.c.owner == owner))

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    def _create(self) -> None:
        """Make the tables. Another process may be at it: then ours fails, and theirs are there."""
        for attempt in range(5):
            try:
                _metadata.create_all(self._engine)
                return
            except sql.exc.DBAPIError as error:
                if attempt == 4:
                    reason = " ".join(str(error.orig).split())[:200]
                    raise UserError(
                        f"{self.shown_url}: the database cannot be used: {reason}"
                    ) from error
                time.sleep(0.2 * (attempt + 1))
