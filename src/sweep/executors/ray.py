"""Trials as tasks of Ray, on this machine or a cluster; each in a fresh worker process."""

import importlib.util
import os
import secrets
import sys
import time
from collections.abc import Mapping
from typing import Annotated, Any

from annotated_types import Ge, Gt

from src.core.errors import ConfigError, DependencyError, UserError
from src.sweep.executors import base
from src.sweep.executors.base import ENTRY, Executor, plain_slots, usable_cores
from src.sweep.records import EndedTask, Task


class RayExecutor(Executor):
    """Runs each trial as a Ray task. Ray chooses the machine and the GPU.

    Args:
        address: Of a running cluster, such as "auto" or "ray://head:10001"; None starts Ray on this
            machine.
        n_jobs: Trials at once; None: as many as the machine or the cluster has room for when it is
            connected. On a cluster more are allowed: Ray queues them.
        cpus_per_trial: Cores that Ray reserves for a trial; also its torch threads.
        gpus_per_trial: GPUs that Ray reserves for a trial; 0.5 lets two share one.
        options: More arguments of `ray.init`, such as `object_store_memory`.
        entry: What runs a trial, "package.module:function"; called with the task.

    Raises:
        DependencyError: Ray is not installed.
        ConfigError: An impossible number.
    """

    queues = True

    def __init__(
        self,
        address: str | None = None,
        n_jobs: Annotated[int, Ge(1)] | None = None,
        cpus_per_trial: Annotated[float, Gt(0)] = 1,
        gpus_per_trial: Annotated[float, Ge(0)] = 0,
        options: Mapping[str, Any] | None = None,
        entry: str = ENTRY,
    ) -> None:
        super().__init__(plain_slots(n_jobs) if n_jobs is not None else [])
        if importlib.util.find_spec("ray") is None:
            way = "pip install -e '.[ray]'"
            raise DependencyError(f"executor=ray needs Ray, which is not installed: {way}")
        if cpus_per_trial <= 0:
            raise ConfigError("cpus_per_trial", f"must be above 0, but got {cpus_per_trial}")
        if gpus_per_trial < 0:
            raise ConfigError("gpus_per_trial", f"must be at least 0, but got {gpus_per_trial}")
        self._address = address
        self._n_jobs = n_jobs
        self._needs = {"CPU": float(cpus_per_trial), "GPU": float(gpus_per_trial)}
        self._options = dict(options or {})
        self._entry = entry
        self._connected = self._started_ray = False
        self._futures: dict[int, Any] = {}  # by slot number

    @property
    def slots(self) -> int:
        """How many trials can run at once."""
        self.warm_up()
        return super().slots

    def warm_up(self) -> None:
        """Start Ray, or connect to it (some seconds)."""
        if self._connected:
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
                n_cpus = (self._n_jobs or 1) * self._needs["CPU"]
                cores = max(usable_cores(), int(n_cpus + 0.999))
                arguments |= {"address": "local", "include_dashboard": False, "num_cpus": cores}
            else:
                arguments["address"] = self._address
            try:
                ray.init(**{**arguments, **self._options})
            except (ConnectionError, ValueError, RuntimeError) as error:
                reason = " ".join(str(error).split())[:200]
                where = self._address or "this machine"
                raise UserError(f"Ray at {where} cannot be used: {reason}") from error
            self._started_ray = True
        self._connected = True
        threads = max(1, int(self._needs["CPU"]))
        self._slots = plain_slots(self._n_jobs or self._room(ray.cluster_resources()), threads)

    def _room(self, resources: Mapping[str, float]) -> int:
        """How many trials fit into these resources."""
        room = min(int(resources.get(name, 0) / need) for name, need in self._needs.items() if need)
        if room < 1:
            cpus, gpus = resources.get("CPU", 0), resources.get("GPU", 0)
            key = "gpus_per_trial" if self._needs["GPU"] > gpus else "cpus_per_trial"
            raise ConfigError(key, f"must fit in what Ray has ({cpus:g} CPUs, {gpus:g} GPUs)")
        return room

    def _start(self, task: Task) -> None:
        import ray

        remote: Any = ray.remote
        needs = {"num_cpus": self._needs["CPU"], "num_gpus": self._needs["GPU"]}
        # max_calls: a new process for each trial; max_retries: the scheduler retries.
        function = remote(max_retries=0, max_calls=1, **needs)(base.launcher(task, self._entry))
        self._futures[task.slot.number] = function.options(name=f"trial {task.number}").remote()

    def _gone(self) -> list[EndedTask]:
        if not self._futures:
            return []
        import ray

        futures = list(self._futures.values())
        done, _ = ray.wait(futures, num_returns=len(futures), timeout=0, fetch_local=False)
        numbers = [number for number, future in self._futures.items() if future in done]
        return [self._ended(number, self._futures.pop(number)) for number in numbers]

    def _ended(self, number: int, future: Any) -> EndedTask:
        import ray
        from ray import exceptions

        task = self._running[number]
        try:
            code = ray.get(future)
        except exceptions.TaskCancelledError:
            return EndedTask(task, None, "stopped")
        except exceptions.OutOfMemoryError:
            return EndedTask(task, None, "killed by Ray: out of memory on its node")
        except exceptions.WorkerCrashedError:
            return EndedTask(task, None, "the Ray worker died (killed, or out of memory)")
        except exceptions.RayError as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            return EndedTask(task, None, f"lost by Ray: {lines[-1][:200]}")
        return EndedTask(task, code, base.ending(code))

    def _pause(self, seconds: float) -> None:
        if not self._futures:
            time.sleep(max(0.0, seconds))
            return
        import ray

        futures = list(self._futures.values())
        ray.wait(futures, num_returns=1, timeout=max(0.0, seconds), fetch_local=False)

    def _ask_to_end(self, task: Task, grace: float) -> None:
        self._cancel(task, force=False)  # a KeyboardInterrupt in the trial

    def _kill(self, task: Task) -> None:
        self._cancel(task, force=True)

    def _cancel(self, task: Task, force: bool) -> None:
        import ray

        if task.slot.number in self._futures:
            ray.cancel(self._futures[task.slot.number], force=force)

    def _release(self) -> None:
        if self._started_ray:
            import ray

            ray.shutdown()
            self._started_ray = self._connected = False
