"""The only writer of runs; MLflow limits; Lightning logger."""

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
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.loggers import Logger

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
T = TypeVar("T")


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested configuration as flat parameters.

    Args:
        config: Mappings within mappings; every other value, lists too, is a leaf.
        prefix: What the keys start with, such as "model.".

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
            raise ConfigError(
                f"{prefix}{key}",
                f"would be recorded as {twins.pop()!r}, like another key: rename it",
            )
        flat |= leaves
    return flat


def text(value: object) -> str:
    """A value the way a user types it in an override: strings as they are, `null`, `true`, `0.001`, `[32, 64]`."""
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def cut(value: str, limit: int) -> str:
    """The value, or its start with a note (full length and hash, so that two long values stay comparable)."""
    if len(value) <= limit:
        return value
    note = f"... [cut from {len(value)} characters, sha256 {hashlib.sha256(value.encode()).hexdigest()[:16]}]"
    return value[: limit - len(note)] + note


def masked(text: str) -> str:
    """Without the passwords of the URLs in it, which must not be recorded."""
    return re.sub(r"(://[^:/@\s]*):[^@\s]*@", r"\1:***@", text)


def recordable(name: str) -> str:
    """The name of a metric or parameter as MLflow takes it: characters it refuses become `_`, `a//b` becomes `a/b`."""
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
    whole = list(items)
    for start in range(0, len(whole), size):
        yield whole[start : start + size]


# seconds since the epoch of the last write to a run that had ended: MLflow itself keeps no time of
# change, and of what its search can compare by size only metrics can be added later
UPDATED = "record/updated"
_logger = logging.getLogger(__name__)
_SHARE = 0.01  # of a run's time may go into writing metrics while it runs
_REASON_LENGTH = 500
_TRACEBACK = "traceback.txt"
_INPUT_TAGS = ("split", "grouped_by", "data_fingerprint", "split_fingerprint", "weights", "device")


class Run:
    """A run that is being written; make one with `Run.start` and use it as a context manager.

    Leaving the context ends the run: FINISHED; FAILED when an exception goes through; KILLED for
    KeyboardInterrupt and SystemExit. The tag `trial_state` is then `complete` or `fail`, the tag
    `failure` the reason in one line, and the artifact that the tag `failure_log` names holds the
    traceback. The exception itself goes on, also when recording it fails.

    Attributes:
        id: MLflow's id of the run.
        name: The name a person sees.
        store: Where the run is kept.
        seconds: Time spent on tracking so far, in seconds.
        latest: The last value of each metric that was logged through this object.
    """

    def __init__(self, store: Store, run_id: str, name: str) -> None:
        self.id = run_id
        self.name = name
        self.store = store
        self.seconds = 0.0
        self._started = time.monotonic()
        self._metric_seconds = 0.0
        self._buffer: list[tuple[str, float, int, int]] = []  # name, value, timestamp in ms, step
        self._names: dict[str, str] = {}  # recorded name -> name as it was given
        self._newest: dict[str, int] = {}  # recorded name -> its last timestamp
        self.latest: dict[str, float] = {}
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
            name: The name a person sees.
            tags: Written beside those that name the program, its user and its process. Long values
                are cut.
            params: A flat or nested configuration; recorded under dotted keys, long values cut with
                their hash noted.
            parent_id: Id of the run under which this one is shown.

        Returns:
            The run, counted as RUNNING until its context is left.

        Raises:
            TrackingError: The store cannot be used.
        """
        began = time.perf_counter()
        every = {
            **_source_tags(),
            **owner_tags(),
            **({"mlflow.parentRunId": parent_id} if parent_id else {}),
        }
        every |= {key: cut(text(value), TAG_LENGTH) for key, value in (tags or {}).items()}
        created = store.client.create_run(store.experiment_id, tags=every, run_name=name)
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
        """A run that is there already, to add to its record.

        Its status stays as it is, unless the context is entered and left. Metrics that are logged
        outside a context need a `flush` at the end. Writes to a run that has ended are dated by the
        metric `record/updated`: by that `src.tracking.read` finds them.

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
        """A run that had ended and goes on in this process; it counts as RUNNING again.

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
        """Show this run below another one; the tags that say what it was fed go up, where that one lacks them."""
        tags = self.store.client.get_run(self.id).data.tags
        if tags.get("mlflow.parentRunId") != parent.id:
            self.tag(**{"mlflow.parentRunId": parent.id})
        parent.tag(**{name: tags[name] for name in _INPUT_TAGS if name in tags})

    def ends_early(self, state: str, reason: str) -> None:
        """Let the run, when its context is left, end as FINISHED with another `trial_state` than `complete`.

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
        """Record metrics; they show in the store within about a hundred times what writing them costs, or at the end.

        Args:
            metrics: Names to values; NaN and infinity are kept. Characters that MLflow refuses in a
                name become `_`.
            step: Position on the horizontal axis, such as the number of optimizer steps done.
            timestamp: Seconds since the epoch; now, if None.

        Raises:
            TrackingError: Two different names that MLflow can only record as one.
        """
        with self._clock():
            for given, value in metrics.items():
                name = self._recorded_name(given)
                # MLflow shows the highest of the values of one step and millisecond: the last one
                # has to be later
                now = int((time.time() if timestamp is None else timestamp) * 1000)
                if timestamp is None:
                    now = max(now, self._newest.get(name, -1) + 1)
                self._newest[name] = now
                self._buffer.append((name, float(value), now, int(step)))
                self.latest[given] = float(value)
        if self._metric_seconds < _SHARE * (time.monotonic() - self._started):
            try:
                self.flush()
            except Exception as error:
                # the values are still in the buffer: the next flush, at the latest the one at the
                # end, tries again
                _logger.warning(
                    "metrics of run %s are not written yet: %s", self.id, _one_line(error)
                )

    def flush(self) -> None:
        """Write all metrics that were logged so far. What could not be written stays in the buffer."""
        from mlflow.entities import Metric

        began = time.perf_counter()
        try:
            with self._clock():
                while self._buffer:
                    batch = self._buffer[: METRICS_PER_BATCH - 1]  # one more may come: UPDATED
                    self._write(metrics=[Metric(*entry) for entry in batch])
                    del self._buffer[: len(batch)]
        finally:
            self._metric_seconds += time.perf_counter() - began

    def tag(self, **tags: Any) -> None:
        """Set tags, new ones or over existing ones."""
        from mlflow.entities import RunTag

        entries = [RunTag(key, cut(text(value), TAG_LENGTH)) for key, value in tags.items()]
        with self._clock():
            for batch in batches(entries, PARAMS_PER_BATCH):
                self._write(tags=batch)

    def untag(self, name: str) -> None:
        """Take a tag away, if the run has it."""
        with self._clock():
            if name in self.store.client.get_run(self.id).data.tags:
                self.store.client.delete_tag(self.id, name)
                self._write()

    def artifact(self, path: Path | str, folder: str | None = None) -> None:
        """Copy a file, or all that is in a folder, to the run.

        Args:
            path: The file or folder.
            folder: Folder within the run's artifacts; their root, if None.

        Raises:
            FileNotFoundError: There is nothing at `path`.
        """
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(path)
        with self._clock():
            if path.is_dir():
                self.store.client.log_artifacts(self.id, str(path), folder)
            else:
                self.store.client.log_artifact(self.id, str(path), folder)

    def text(self, content: str, name: str) -> None:
        """Write a text artifact; `name` may hold folders, such as "config/overrides.yaml"."""
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
        if error is None:
            self._end("FINISHED")
        else:
            self._end(
                "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED", error
            )

    def _end(self, status: str, error: BaseException | None = None) -> None:
        """Write what is left and close the run; raises only if there is no other exception under way."""
        closing = self._closing(status, error)
        problems: list[Exception] = []
        try:
            for step in closing:
                # a server that did not answer once is not waited for again and again
                with brief_http() if problems else contextlib.nullcontext():
                    try:
                        step()
                    except Exception as problem:
                        problems.append(problem)
            if problems and error is None:
                status = "FAILED"
                self._try_to_tell(problems[0], problems)
        finally:
            # in `finally`: a second Ctrl+C while the rest is written must not leave the run RUNNING
            with brief_http() if problems else contextlib.nullcontext():
                try:
                    self.store.client.set_terminated(self.id, status)
                    self._had_ended = True
                except Exception as problem:
                    problems.append(problem)
        if problems:
            self._report(problems, error)

    def _closing(self, status: str, error: BaseException | None) -> list[Callable[[], None]]:
        if error is None:
            return [self.flush, functools.partial(self.tag, **self._final_tags)]
        trace = "".join(traceback.format_exception(error))
        reason = functools.partial(
            self.tag, trial_state="fail", failure=_reason(error), failure_log=_TRACEBACK
        )
        return [self.flush, reason, functools.partial(self.text, trace, _TRACEBACK)]

    def _try_to_tell(self, problem: Exception, problems: list[Exception]) -> None:
        with brief_http():
            try:
                self.tag(
                    trial_state="fail", failure=f"the record is incomplete: {_one_line(problem)}"
                )
            except Exception as another:
                problems.append(another)

    def _report(self, problems: list[Exception], error: BaseException | None) -> None:
        message = f"run {self.id}: the record is incomplete ({'; '.join(map(_one_line, problems))})"
        if error is None:
            raise TrackingError(
                f"{message}: see whether {self.store.uri} can be written"
            ) from problems[0]
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

    def _recorded_name(self, given: str) -> str:
        name = recordable(given)
        if self._names.setdefault(name, given) != given:
            raise TrackingError(
                f"the metrics {self._names[name]!r} and {given!r} would both be {name!r}: rename one"
            )
        return name

    @contextlib.contextmanager
    def _clock(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - began


def _source_tags() -> dict[str, str]:
    """What MLflow's own entry points write about the program; its UI shows them."""
    return {
        "mlflow.source.name": sys.argv[0] or "python",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": _user(),
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user id has no name
        return "unknown"


def _reason(error: BaseException) -> str:
    """One line that says why; Lightning turns Ctrl+C into SystemExit(1), so for that the cause is told."""
    if isinstance(error, SystemExit) and error.__context__ is not None:
        error = error.__context__
    return _one_line(error)


def _one_line(error: BaseException) -> str:
    message = " ".join(str(error).split())
    return cut(
        f"{type(error).__name__}: {message}" if message else type(error).__name__, _REASON_LENGTH
    )


class RunLogger(Logger):
    """Hands what `self.log` collects to a `Run`.

    Parameters are recorded and the run is ended by its owner, so `log_hyperparams` and `finalize`
    do nothing.

    Args:
        run: The run to write to; None in the processes of a distributed training that are not the
            first.
    """

    def __init__(self, run: Run | None) -> None:
        super().__init__()
        self._run = run

    @property
    def name(self) -> str | None:
        """The run's name."""
        return self._run.name if self._run else None

    @property
    def version(self) -> str | None:
        """The run's id."""
        return self._run.id if self._run else None

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Buffer metrics at a step; the epoch, which Lightning adds to every call, is left out."""
        if self._run is not None:
            self._run.log(
                {name: value for name, value in metrics.items() if name != "epoch"}, step or 0
            )

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Nothing: the run's owner has recorded the whole configuration."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Nothing: the run's owner ends it."""
