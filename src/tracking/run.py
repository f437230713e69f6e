"""The only writer of MLflow runs, and MLflow's limits."""

import contextlib
import functools
import getpass
import hashlib
import json
import logging
import posixpath
import re
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from src.core.errors import ConfigError
from src.tracking.store import Store, TrackingError, brief_http, owner_tags

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities import Metric, Param, RunTag

PARAM_LENGTH = 6000
TAG_LENGTH = 8000
NAME_LENGTH = 250
PARAMS_PER_BATCH = 100
METRICS_PER_BATCH = 1000
# Metric with the time (seconds since the epoch) of the last write to a run that had ended: MLflow
# keeps no time of change, and its search can compare only metrics by size.
UPDATED = "record/updated"
_SHARE = 0.01  # of a run's time may be spent on writing metrics while it runs
_REASON_LENGTH = 500
_TRACEBACK = "traceback.txt"
_INPUT_TAGS = ("split", "grouped_by", "data_fingerprint", "split_fingerprint", "weights", "device")
_logger = logging.getLogger(__name__)
T = TypeVar("T")


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested configuration as flat parameters.

    Args:
        config: Nested mappings; every other value, lists too, is a leaf.
        prefix: Start of the keys, such as "model.".

    Returns:
        Dotted, recordable keys -> values as `text` writes them, cut to MLflow's limit. An empty
        mapping is a leaf.

    Raises:
        ConfigError: Two keys that MLflow can only record as one.
    """
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            leaves = flatten(value, f"{prefix}{key}.")
        else:
            leaves = {recordable(f"{prefix}{key}"): cut(text(value), PARAM_LENGTH)}
        if twins := flat.keys() & leaves.keys():
            message = f"would be recorded as {twins.pop()!r}, like another key: rename it"
            raise ConfigError(f"{prefix}{key}", message)
        flat |= leaves
    return flat


def text(value: object) -> str:
    """A value as typed in an override: plain strings, `null`, `true`, `0.001`, `[32, 64]`."""
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def cut(value: str, limit: int) -> str:
    """The value, or its start with its full length and hash, so that long values stay distinct."""
    if len(value) <= limit:
        return value
    digest = hashlib.sha256(value.encode()).hexdigest()[:16]
    note = f"... [cut from {len(value)} characters, sha256 {digest}]"
    return value[: limit - len(note)] + note


def masked(text: str) -> str:
    """The text without the passwords of its URLs, which must not be recorded."""
    return re.sub(r"(://[^:/@\s]*):[^@\s]*@", r"\1:***@", text)


def recordable(name: str) -> str:
    """A metric or parameter name that MLflow accepts: other characters become `_`, `a//b` `a/b`."""
    clean = posixpath.normpath(re.sub(r"[^/\w.\- :]", "_", name)).strip("/")
    while clean.startswith(".."):
        clean = f"__{clean[2:]}"
    if clean in ("", "."):
        clean = "_"
    if len(clean) > NAME_LENGTH:
        clean = f"{clean[: NAME_LENGTH - 17]}_{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return clean


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items in lists of at most `size`, in order."""
    listed = list(items)
    for start in range(0, len(listed), size):
        yield listed[start : start + size]


class Run:
    """A run that is being written; create one with `Run.start` and use it as a context manager.

    Leaving the context ends the run: FINISHED; FAILED after an exception; KILLED after
    KeyboardInterrupt and SystemExit. The tag `trial_state` becomes `complete` or `fail`, the tag
    `failure` the reason in one line; the artifact named by the tag `failure_log` holds the
    traceback. The exception propagates, also when recording it fails.

    Attributes:
        id: MLflow's id of the run.
        name: The name shown to people.
        store: Where the run is kept.
        seconds: Time spent on tracking so far, in seconds.
        latest: The last value of each metric that was logged through this object.
    """

    def __init__(self, store: Store, run_id: str, name: str) -> None:
        self.id = run_id
        self.name = name
        self.store = store
        self.seconds = 0.0
        self.latest: dict[str, float] = {}
        self._started = time.monotonic()
        self._metric_seconds = 0.0
        self._buffer: list[tuple[str, float, int, int]] = []  # name, value, timestamp in ms, step
        self._names: dict[str, str] = {}  # recorded name -> name as logged
        self._newest: dict[str, int] = {}  # recorded name -> its last timestamp
        self._final_tags = {"trial_state": "complete"}  # of a run that ends without an exception
        self._had_ended = False

    @classmethod
    def start(
        cls,
        store: Store,
        name: str,
        tags: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        parent_id: str | None = None,
    ) -> "Run":
        """Create a run in the store.

        Args:
            store: Opened if it is not yet.
            name: The name shown to people.
            tags: In addition to those that identify the program, its user and its process. Long
                values are cut.
            params: A flat or nested configuration; recorded under dotted keys.
            parent_id: Id of the run under which this one is shown.

        Returns:
            The run, RUNNING until its context is left.

        Raises:
            TrackingError: The store cannot be used.
        """
        began = time.perf_counter()
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a container whose user id has no name
            user = "unknown"
        # What MLflow's own entry points write about the program; its UI shows it.
        source = {"name": sys.argv[0] or "python", "type": "LOCAL"}
        recorded = {f"mlflow.source.{key}": value for key, value in source.items()}
        recorded |= {"mlflow.user": user, **owner_tags()}
        recorded |= {"mlflow.parentRunId": parent_id} if parent_id else {}
        recorded |= {key: cut(text(value), TAG_LENGTH) for key, value in (tags or {}).items()}
        created = store.client.create_run(store.experiment_id, tags=recorded, run_name=name)
        run = cls(store, created.info.run_id, name)
        try:
            run.params(params or {})
        except BaseException as error:
            run._end("FAILED", error)
            raise
        run.seconds = run._metric_seconds = time.perf_counter() - began
        return run

    @classmethod
    def attach(cls, store: Store, run_id: str) -> "Run":
        """A recorded run, to add to its record.

        Its status does not change, unless the context is entered and left. Metrics that are logged
        outside a context need a `flush`. Writes to a run that has ended set the metric
        `record/updated`, by which `src.tracking.read` finds them.

        Raises:
            TrackingError: The store has no such run.
        """
        from mlflow.exceptions import MlflowException

        try:
            info = store.client.get_run(run_id).info
        except MlflowException as error:
            raise TrackingError(f"run {run_id}: {' '.join(str(error).split())}") from error
        run = cls(store, run_id, info.run_name)
        run._had_ended = info.status not in ("RUNNING", "SCHEDULED")
        return run

    @classmethod
    def reopen(cls, store: Store, run_id: str) -> "Run":
        """A run that had ended and continues in this process; it is RUNNING again.

        Raises:
            TrackingError: The store has no such run.
        """
        run = cls.attach(store, run_id)
        store.client.update_run(run_id, status="RUNNING")
        run._had_ended = False
        run.tag(**owner_tags())
        for tag in ("failure", "failure_log"):
            if tag in store.client.get_run(run_id).data.tags:
                store.client.delete_tag(run_id, tag)
        return run

    def move_below(self, parent: "Run") -> None:
        """Show this run below another one, which gets the tags of its data and weights."""
        tags = self.store.client.get_run(self.id).data.tags
        if tags.get("mlflow.parentRunId") != parent.id:
            self.tag(**{"mlflow.parentRunId": parent.id})
        parent.tag(**{name: tags[name] for name in _INPUT_TAGS if name in tags})

    def ends_early(self, state: str, reason: str) -> None:
        """Let the run end as FINISHED with another `trial_state` than `complete`.

        Args:
            state: pruned, or over_limit.
            reason: One line; the tag `ended_early`.
        """
        self._final_tags = {"trial_state": state, "ended_early": reason}

    def params(self, params: Mapping[str, Any]) -> None:
        """Record parameters, nested or flat. A recorded one cannot change its value."""
        from mlflow.entities import Param

        flat = [Param(key, value) for key, value in flatten(params).items()]
        with self._clock():
            for batch in batches(flat, PARAMS_PER_BATCH):
                self._write(params=batch)

    def log(
        self, metrics: Mapping[str, float], step: int = 0, timestamp: float | None = None
    ) -> None:
        """Record metrics; writing them takes at most a hundredth of the run's time.

        Args:
            metrics: Names to values; NaN and infinity are kept. Characters that MLflow refuses in a
                name become `_`.
            step: Position on the horizontal axis, such as the number of optimizer steps.
            timestamp: Seconds since the epoch; now, if None.

        Raises:
            TrackingError: Two different names that MLflow can only record as one.
        """
        with self._clock():
            for logged, value in metrics.items():
                name = recordable(logged)
                if self._names.setdefault(name, logged) != logged:
                    twins = f"{self._names[name]!r} and {logged!r}"
                    message = f"the metrics {twins} would both be {name!r}: rename one"
                    raise TrackingError(message)
                # Of the values of one step and millisecond MLflow shows the highest; the last one
                # has to be later.
                now = int((time.time() if timestamp is None else timestamp) * 1000)
                if timestamp is None:
                    now = max(now, self._newest.get(name, -1) + 1)
                self._newest[name] = now
                self._buffer.append((name, float(value), now, int(step)))
                self.latest[logged] = float(value)
        if self._metric_seconds < _SHARE * (time.monotonic() - self._started):
            try:
                self.flush()
            except Exception as error:
                # The values are still in the buffer; the next flush tries again.
                reason = _one_line(error)
                _logger.warning("metrics of run %s are not written yet: %s", self.id, reason)

    def flush(self) -> None:
        """Write all logged metrics. What could not be written stays in the buffer."""
        from mlflow.entities import Metric

        began = time.perf_counter()
        try:
            with self._clock():
                while self._buffer:
                    batch = self._buffer[: METRICS_PER_BATCH - 1]  # `_write` may add UPDATED
                    self._write(metrics=[Metric(*entry) for entry in batch])
                    del self._buffer[: len(batch)]
        finally:
            self._metric_seconds += time.perf_counter() - began

    def tag(self, **tags: Any) -> None:
        """Set tags; existing ones are overwritten."""
        from mlflow.entities import RunTag

        entries = [RunTag(key, cut(text(value), TAG_LENGTH)) for key, value in tags.items()]
        with self._clock():
            for batch in batches(entries, PARAMS_PER_BATCH):
                self._write(tags=batch)

    def untag(self, name: str) -> None:
        """Remove a tag, if the run has it."""
        with self._clock():
            if name in self.store.client.get_run(self.id).data.tags:
                self.store.client.delete_tag(self.id, name)
                self._write()

    def artifact(self, path: Path | str, folder: str | None = None) -> None:
        """Copy a file, or the content of a folder, to the run.

        Args:
            path: The file or folder.
            folder: Folder within the run's artifacts; their root, if None.

        Raises:
            FileNotFoundError: There is nothing at `path`.
        """
        if not Path(path).exists():
            raise FileNotFoundError(path)
        client = self.store.client
        log = client.log_artifacts if Path(path).is_dir() else client.log_artifact
        with self._clock():
            log(self.id, str(path), folder)

    def text(self, content: str, name: str) -> None:
        """Write a text artifact; `name` may have folders, such as "config/overrides.yaml"."""
        with self._clock():
            self.store.client.log_text(self.id, content, name)

    def table(self, frame: "pd.DataFrame", name: str) -> None:
        """Write a table as a CSV artifact, without its index."""
        self.text(frame.to_csv(index=False), name)

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        killed = isinstance(error, KeyboardInterrupt | SystemExit)
        self._end("FINISHED" if error is None else "KILLED" if killed else "FAILED", error)

    def _end(self, status: str, error: BaseException | None = None) -> None:
        """Write the rest and close the run; raises only if no other exception is propagating."""
        problems: list[Exception] = []
        if error is None:
            steps = [self.flush, functools.partial(self.tag, **self._final_tags)]
        else:
            trace = "".join(traceback.format_exception(error))
            # Lightning turns Ctrl+C into SystemExit(1): its cause is the reason.
            exit_ = isinstance(error, SystemExit) and error.__context__ is not None
            reason = _one_line((exit_ and error.__context__) or error)
            tags = {"trial_state": "fail", "failure": reason, "failure_log": _TRACEBACK}
            steps = [self.flush, functools.partial(self.tag, **tags)]
            steps.append(functools.partial(self.text, trace, _TRACEBACK))

        def attempt(step: Any) -> None:
            # A server that did not answer once is not waited for again and again.
            with brief_http() if problems else contextlib.nullcontext():
                try:
                    step()
                except Exception as problem:
                    problems.append(problem)

        try:
            for step in steps:
                attempt(step)
            if problems and error is None:
                status = "FAILED"
                failure = f"the record is incomplete: {_one_line(problems[0])}"
                attempt(functools.partial(self.tag, trial_state="fail", failure=failure))
        finally:
            # In `finally`: a second Ctrl+C during the steps must not leave the run RUNNING.
            attempt(functools.partial(self.store.client.set_terminated, self.id, status))
            self._had_ended = True
        if problems:
            reasons = "; ".join(map(_one_line, problems))
            message = f"run {self.id}: the record is incomplete ({reasons})"
            if error is None:
                message += f": check that {self.store.uri} can be written"
                raise TrackingError(message) from problems[0]
            error.add_note(message)
            _logger.warning(message)

    def _write(
        self,
        metrics: "Sequence[Metric]" = (),
        params: "Sequence[Param]" = (),
        tags: "Sequence[RunTag]" = (),
    ) -> None:
        from mlflow.entities import Metric

        now = time.time()
        date = [Metric(UPDATED, now, int(now * 1000), 0)] if self._had_ended else []
        self.store.client.log_batch(self.id, [*metrics, *date], params, tags)

    @contextlib.contextmanager
    def _clock(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - began


def _one_line(error: BaseException) -> str:
    message = " ".join(str(error).split())
    name = type(error).__name__
    return cut(f"{name}: {message}" if message else name, _REASON_LENGTH)
