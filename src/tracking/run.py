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
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from src.core import config
from src.core.errors import ConfigError, UserError, full_disk, masked
from src.tracking import store as tracking
from src.tracking.store import Store, TrackingError

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities import RunInfo

_PARAM_LENGTH = 6000
_TAG_LENGTH = 8000
_NAME_LENGTH = 250
_PARAMS_PER_BATCH = 100
_METRICS_PER_BATCH = 1000
# Metric with the time (seconds since the epoch) of the last write to a run that had ended: MLflow
# keeps no time of change, and its search can compare only metrics by size. Its interface shows
# `system/...` apart from the other metrics.
UPDATED = "system/record_updated"
_SHARE = 0.01  # of a run's time may be spent on writing metrics while it runs
_REASON_LENGTH = 500
_TRACEBACK = "traceback.txt"
_INPUT_TAGS = ["split", "grouped_by", "data_fingerprint", "split_fingerprint"]
_INPUT_TAGS += ["weights", "device", "flops_missing", "latency_method", "ratio_method"]
_logger = logging.getLogger(__name__)
T = TypeVar("T")


def flatten(params: Mapping[str, Any]) -> dict[str, str]:
    """A nested configuration as flat parameters: dotted, recordable keys -> text, cut to a limit.

    Raises:
        ConfigError: Two keys that MLflow can only record as one.
    """
    flat: dict[str, str] = {}
    for key, value in config.flatten(params).items():
        name = recordable(key)
        if name in flat:
            raise ConfigError(key, f"would be recorded as {name!r}, like another key: rename it")
        flat[name] = cut(masked(text(value)), _PARAM_LENGTH)
    return flat


def text(value: object) -> str:
    """A value as typed in an override: plain strings, `null`, `true`, `0.001`, `[32, 64]`."""
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def cut(value: str, limit: int) -> str:
    """The value, or its start with its full length and hash, so that long values stay distinct."""
    if len(value) <= limit:
        return value
    note = f"... [cut from {len(value)} characters, sha256 {_digest(value)}]"
    return value[: limit - len(note)] + note


def recordable(name: str) -> str:
    """A metric or parameter name that MLflow accepts: other characters become `_`, `a//b` `a/b`."""
    clean = posixpath.normpath(re.sub(r"[^/\w.\- :]", "_", name)).strip("/")
    while clean.startswith(".."):
        clean = f"__{clean[2:]}"
    clean = "_" if clean in ("", ".") else clean
    if len(clean) <= _NAME_LENGTH:
        return clean
    return f"{clean[: _NAME_LENGTH - 17]}_{_digest(name)}"


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
        seconds: Time spent on tracking so far.
        latest: The last value of each metric that was logged through this object.
    """

    def __init__(self, store: Store, info: "RunInfo") -> None:
        self.id = info.run_id
        self.name = info.run_name
        self.store = store
        self.seconds = 0.0
        self.latest: dict[str, float] = {}
        self._started = time.monotonic()
        self._start_ms = info.start_time
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
        """Create a run in the store; it is RUNNING until its context is left.

        Args:
            store: Opened if it is not yet.
            name: Shown to people.
            tags: In addition to those that identify the program, its user and its process.
            params: A flat or nested configuration; recorded under dotted keys for good.
            parent_id: The run under which this one is shown.

        Raises:
            TrackingError: The store cannot be used.
        """
        from mlflow.entities import Param

        began = time.perf_counter()
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a container whose user id has no name
            user = "unknown"
        # What MLflow's own entry points write about the program; its UI shows it.
        recorded = {"mlflow.source.name": sys.argv[0] or "python", "mlflow.source.type": "LOCAL"}
        recorded |= {"mlflow.user": user, **tracking.owner_tags()}
        recorded |= {"mlflow.parentRunId": parent_id} if parent_id else {}
        recorded |= {k: cut(masked(text(v)), _TAG_LENGTH) for k, v in (tags or {}).items()}
        created = store.client.create_run(store.experiment_id, tags=recorded, run_name=name)
        run = cls(store, created.info)
        try:
            entries = [Param(key, value) for key, value in flatten(params or {}).items()]
            for batch in batches(entries, _PARAMS_PER_BATCH):
                run._write(params=batch)
        except BaseException as error:
            run._end(error)
            raise
        run.seconds = run._metric_seconds = time.perf_counter() - began
        return run

    @classmethod
    def attach(cls, store: Store, run_id: str) -> "Run":
        """A recorded run, to add to its record.

        Its status does not change, unless the context is entered and left. Metrics that are logged
        outside a context need a `flush`. Writes to a run that has ended set the metric `UPDATED`.

        Raises:
            TrackingError: The store has no such run.
        """
        client = store.client
        with tracking.mlflow_errors(f"run {run_id}"):
            info = client.get_run(run_id).info
        run = cls(store, info)
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
        run.tag(**tracking.owner_tags())
        run.untag("failure", "failure_log")
        return run

    def move_below(self, parent: "Run") -> None:
        """Show this run below another one, which gets the tags of its data and weights."""
        tags = self.store.client.get_run(self.id).data.tags
        if tags.get("mlflow.parentRunId") != parent.id:
            self.tag(**{"mlflow.parentRunId": parent.id})
        parent.tag(**{name: tags[name] for name in _INPUT_TAGS if name in tags})

    def ends_early(self, state: str, reason: str) -> None:
        """Let the run end as FINISHED with the `trial_state` pruned or over_limit.

        `reason` is one line, the tag `ended_early`.
        """
        self._final_tags = {"trial_state": state, "ended_early": reason}

    def log(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Record metrics; writing them takes at most a hundredth of the run's time.

        Args:
            metrics: NaN and infinity are kept. Characters that MLflow refuses in a name become `_`.
            step: Position on the horizontal axis, such as the number of optimizer steps.

        Raises:
            TrackingError: Two different names that MLflow can only record as one.
        """
        for logged, value in metrics.items():
            name = recordable(logged)
            if self._names.setdefault(name, logged) != logged:
                twins = f"{self._names[name]!r} and {logged!r}"
                raise TrackingError(f"the metrics {twins} would both be {name!r}: rename one")
            # Of the values of one step and millisecond MLflow shows the highest.
            now = max(int(time.time() * 1000), self._newest.get(name, -1) + 1)
            self._newest[name] = now
            self._buffer.append((name, float(value), now, int(step)))
            self.latest[logged] = float(value)
        if self._metric_seconds < _SHARE * (time.monotonic() - self._started):
            try:
                self.flush()
            except Exception as error:
                # The values are still in the buffer; the next flush tries again.
                reason = _reason(error)
                _logger.warning("metrics of run %s are not written yet: %s", self.id, reason)

    def flush(self) -> None:
        """Write all logged metrics. What could not be written stays in the buffer."""
        from mlflow.entities import Metric

        began = time.perf_counter()
        try:
            while self._buffer:
                batch = self._buffer[: _METRICS_PER_BATCH - 1]  # `_write` may add UPDATED
                self._write(metrics=[Metric(*entry) for entry in batch])
                del self._buffer[: len(batch)]
        finally:
            self._metric_seconds += time.perf_counter() - began

    def tag(self, **tags: Any) -> None:
        """Set tags; existing ones are overwritten."""
        from mlflow.entities import RunTag

        entries = [RunTag(k, cut(masked(text(value)), _TAG_LENGTH)) for k, value in tags.items()]
        for batch in batches(entries, _PARAMS_PER_BATCH):
            self._write(tags=batch)

    def untag(self, *names: str) -> None:
        """Remove tags, those that the run has."""
        from mlflow.exceptions import MlflowException

        with self._clock():
            for name in names:
                try:
                    self.store.client.delete_tag(self.id, name)
                except MlflowException as error:  # a repeated attempt finds none
                    if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                        raise
        self._write()

    def inputs(
        self, name: str, source: str, fingerprint: str, counts: Mapping[str, Mapping[str, int]]
    ) -> None:
        """Record a data set as inputs of the run, one for each split.

        Args:
            name: Of the data set.
            source: Where it comes from: a folder, or what draws it.
            fingerprint: Equal for runs with equal pictures and splits.
            counts: Of each split the images of each class.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag
        from mlflow.exceptions import MlflowException

        inputs = []
        for split, classes in counts.items():
            profile = json.dumps({"num_rows": sum(classes.values()), "classes": classes})
            digest, uri = _digest(f"{fingerprint} {split}")[:8], json.dumps({"uri": source})
            dataset = Dataset(name, digest, "local", uri, profile=profile)
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", split)]))
        with self._clock():
            try:
                self.store.client.log_inputs(self.id, inputs)
            except MlflowException:  # another trial has created the data set at the same time
                self.store.client.log_inputs(self.id, inputs)

    def artifact(self, path: Path | str, folder: str | None = None) -> None:
        """Copy a file, or the content of a folder, to the run or to a folder of its artifacts.

        Raises:
            FileNotFoundError: There is nothing at `path`.
        """
        if not Path(path).exists():
            raise FileNotFoundError(path)
        client = self.store.client
        log = client.log_artifacts if Path(path).is_dir() else client.log_artifact
        with self._clock(), self._artifact_errors(Path(path).name):
            log(self.id, str(path), folder)

    def text(self, content: str, name: str) -> None:
        """Write a text artifact; `name` may have folders, such as "config/overrides.yaml"."""
        with self._clock(), self._artifact_errors(name):
            self.store.client.log_text(self.id, masked(content), name)

    def table(self, frame: "pd.DataFrame", name: str) -> None:
        """Write a table as a CSV artifact, without its index."""
        self.text(frame.to_csv(index=False), name)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._end(error)

    def _end(self, error: BaseException | None) -> None:
        """Write the rest and close the run; raises only if no other exception is propagating."""
        status, tags, problems = "FINISHED", self._final_tags, list[Exception]()
        steps: list[Callable[[], None]] = [self.flush]
        if error is not None:
            status = "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED"
            # Lightning turns Ctrl+C into SystemExit(1): its cause is the reason.
            cause = (isinstance(error, SystemExit) and error.__context__) or error
            tags = {"trial_state": "fail", "failure": _reason(cause), "failure_log": _TRACEBACK}
        steps.append(functools.partial(self.tag, **tags))
        if error is not None:
            trace = "".join(traceback.format_exception(error))
            steps.append(functools.partial(self.text, trace, _TRACEBACK))

        def attempt(step: Callable[[], None]) -> None:
            # A server that did not answer once is not waited for again and again.
            with tracking.brief_http() if problems else contextlib.nullcontext():
                try:
                    step()
                except Exception as problem:
                    problems.append(problem)

        try:
            for step in steps:
                attempt(step)
            if problems and error is None:
                status = "FAILED"
                failure = f"the record is incomplete: {_reason(problems[0])}"
                attempt(functools.partial(self.tag, trial_state="fail", failure=failure))
        finally:
            # In `finally`: a second Ctrl+C during the steps must not leave the run RUNNING.
            elapsed = time.monotonic() - self._started  # the clock may have been set back
            end = int(1000 * max(time.time(), self._start_ms / 1000 + elapsed))
            attempt(functools.partial(self.store.client.set_terminated, self.id, status, end))
            self._had_ended = True
        if problems:
            reasons = "; ".join(dict.fromkeys(map(_reason, problems)))
            message = f"run {self.id}: the record is incomplete ({reasons})"
            if error is None:
                message += f": check that {self.store.uri} can be written"
                raise TrackingError(message) from problems[0]
            error.add_note(message)
            if full_disk(error) is None:  # which says enough
                _logger.warning(message)

    def _write(self, **entries: Any) -> None:
        """Write a batch of metrics, params or tags, as entities of MLflow."""
        from mlflow.entities import Metric

        if self._had_ended:
            now = time.time()
            entries.setdefault("metrics", []).append(Metric(UPDATED, now, int(now * 1000), 0))
        with self._clock():
            self.store.client.log_batch(self.id, **entries)

    @contextlib.contextmanager
    def _artifact_errors(self, name: str) -> Iterator[None]:
        """Name the artifact that a full disk leaves out."""
        try:
            yield
        except OSError as error:
            if full_disk(error) is None:
                raise
            problem = f"cannot be written below {self.store.artifacts}, the disk is full"
            raise TrackingError(f"{name}: {problem}: make space, then start it again") from error

    @contextlib.contextmanager
    def _clock(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - began


def _digest(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()[:16]


def _reason(error: BaseException) -> str:
    """The type and the message of an error in one line."""
    if not isinstance(error, UserError) and (problem := full_disk(error)):
        return problem
    message, name = tracking.one_line(error), type(error).__name__
    return cut(masked(f"{name}: {message}" if message else name), _REASON_LENGTH)
