"""Trials as tasks of Ray, on this machine or a cluster; each in a fresh worker process."""

import math
import os
import secrets
import sys
import time
from collections.abc import Mapping
from typing import Annotated, Any

import joblib
from annotated_types import Ge, Gt

from src.core.errors import ConfigError, UserError, require
from src.sweep.executors import base
from src.sweep.records import EndedTask, Task


class RayExecutor(base.Executor):
    """Runs each trial as a Ray task. Ray chooses the machine and the GPU.

    Args:
        address: Of a running cluster, such as "auto" or "ray://head:10001"; None starts Ray on this
            machine.
        n_jobs: Trials at once; None: as many as the machine or the cluster has room for when it is
            connected. On a cluster more are allowed: Ray queues them.
        cpus_per_trial: Cores that Ray reserves for a trial; also its torch threads.
        gpus_per_trial: GPUs that Ray reserves for a trial; 0.5 lets two share one.
        options: More arguments of `ray.init`, such as `object_store_memory`.

    Raises:
        DependencyError: Ray is not installed.
    """

    queues = True

    def __init__(
        self,
        address: str | None = None,
        n_jobs: Annotated[int, Ge(1)] | None = None,
        cpus_per_trial: Annotated[float, Gt(0)] = 1,
        gpus_per_trial: Annotated[float, Ge(0)] = 0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__([])
        require("ray", "ray")
        self._address = address
        self._n_jobs = n_jobs
        self._needs = {"CPU": float(cpus_per_trial), "GPU": float(gpus_per_trial)}
        self._options = dict(options or {})
        self._ray: Any = None  # the module, once connected
        self._started_ray = False

    @property
    def slots(self) -> int:
        """How many trials can run at once."""
        self.warm_up()
        return super().slots

    def warm_up(self) -> None:
        """Start Ray, or connect to it (some seconds).

        Raises:
            UserError: Ray cannot be used.
            ConfigError: A trial does not fit into what Ray has.
        """
        if self._ray is not None:
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if self._address is None and "ray" not in sys.modules:  # it reads these when imported
            # Ray listens on every interface: it admits only who has the token.
            os.environ.setdefault("RAY_AUTH_MODE", "token")
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        import ray

        if not ray.is_initialized():
            arguments: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
            if self._address is None:
                cores = max(joblib.cpu_count(), math.ceil((self._n_jobs or 1) * self._needs["CPU"]))
                arguments |= {"address": "local", "include_dashboard": False, "num_cpus": cores}
            else:
                arguments["address"] = self._address
            try:
                ray.init(**{**arguments, **self._options})
            except (ConnectionError, ValueError, RuntimeError) as error:
                reason = " ".join(str(error).split())[:200]
                machine = self._address or "this machine"
                raise UserError(f"Ray at {machine} cannot be used: {reason}") from error
            self._started_ray = True
        self._ray = ray
        resources = ray.cluster_resources()
        room = min(int(resources.get(name, 0) / need) for name, need in self._needs.items() if need)
        if self._n_jobs is None and room < 1:
            cpus, gpus = resources.get("CPU", 0), resources.get("GPU", 0)
            key = "gpus_per_trial" if self._needs["GPU"] > gpus else "cpus_per_trial"
            raise ConfigError(key, f"must fit in what Ray has ({cpus:g} CPUs, {gpus:g} GPUs)")
        self._slots = base.plain_slots(self._n_jobs or room, max(1, int(self._needs["CPU"])))

    def _start(self, task: Task) -> Any:
        needs = {"num_cpus": self._needs["CPU"], "num_gpus": self._needs["GPU"]}
        # max_calls: a new process for each trial; max_retries: the scheduler retries.
        remote = self._ray.remote(max_retries=0, max_calls=1, **needs)
        function = remote(base.launcher(base.packed(task)))
        return function.options(name=f"trial {task.number}").remote()

    def _ready(self, count: int, seconds: float) -> list[Any]:
        """The futures of tasks that have ended; waits until there are `count` of them."""
        futures = list(self._handles.values())
        options = {"num_returns": count, "timeout": seconds, "fetch_local": False}
        return list(self._ray.wait(futures, **options)[0]) if futures else []

    def _gone(self) -> list[EndedTask]:
        done = self._ready(len(self._handles), 0)
        numbers = [number for number, future in self._handles.items() if future in done]
        return [self._ended(self._running[number], self._handles[number]) for number in numbers]

    def _ended(self, task: Task, future: Any) -> EndedTask:
        errors = self._ray.exceptions
        try:
            code = self._ray.get(future)
        except errors.TaskCancelledError:
            return EndedTask(task, None, "stopped")
        except errors.OutOfMemoryError:
            return EndedTask(task, None, "killed by Ray: out of memory on its node")
        except errors.WorkerCrashedError:
            return EndedTask(task, None, "the Ray worker died (killed, or out of memory)")
        except errors.RayError as error:
            return EndedTask(task, None, f"lost by Ray: {base.last_line(error)}")
        return EndedTask(task, code, base.ending(code))

    def _pause(self, seconds: float) -> None:
        if self._handles:
            self._ready(1, seconds)
        else:
            time.sleep(seconds)

    def _ask_to_end(self, handle: Any) -> None:
        self._ray.cancel(handle, force=False)  # a KeyboardInterrupt in the trial

    def _kill(self, handle: Any) -> None:
        self._ray.cancel(handle, force=True)

    def _release(self) -> None:
        if self._started_ray:
            self._ray.shutdown()
            self._ray, self._started_ray = None, False
