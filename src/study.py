"""One study: command line -> space, sampler, executor, scheduler, comparison (read third)."""

import copy
import hashlib
import logging
import re
import shlex
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import optuna
from annotated_types import Ge, Gt, Le
from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, OmegaConf, flag_override

from src import dry_run
from src.core.cli import ROOT
from src.core.config import (
    check,
    check_arguments,
    conf_digest,
    flat_settings,
    instantiate,
    shared_config_digest,
)
from src.core.environment import git_state
from src.core.errors import ConfigError
from src.deployment.compression import origin
from src.metrics.registry import Limit, Objective, parse_limits, parse_objectives
from src.reporting import comparison
from src.run import open_store
from src.sweep import space as spaces
from src.sweep import study as studies
from src.sweep.display import LiveView
from src.sweep.executors.base import Executor
from src.sweep.pruners import make_pruner, pruner_spec
from src.sweep.records import Kind
from src.sweep.samplers import SamplerChoice, make_sampler
from src.sweep.scheduler import RunPolicy, Scheduler, StudyRecorder
from src.sweep.storage import Ownership, default_url, open_storage, resolve_url
from src.sweep.study import warm_start
from src.tracking.run import masked
from src.tracking.store import Store

log = logging.getLogger(__name__)
TRIAL_BODY = "src.run:run_trial"


@dataclass
class SweepSettings:
    """The config node `hydra.sweeper`; conf/hydra/sweeper/study.yaml explains each value."""

    sampler: Any
    pruner: Any
    executor: Any
    study_name: str | None = None
    n_trials: Annotated[int, Ge(1)] | None = None
    storage: str | None = None
    warm_start: str | None = None
    params: dict[str, Any] = field(default_factory=dict)
    conditions: dict[str, dict[str, Any]] = field(default_factory=dict)
    zip: list[dict[str, list[Any]]] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)
    n_jobs: Annotated[int, Ge(1)] | None = None
    time_limit_s: Annotated[float, Gt(0)] | None = None
    retries: Annotated[int, Ge(0)] = 1
    retried: list[Kind] = field(default_factory=lambda: ["killed", "out_of_memory"])
    retry_failed: bool = False
    stop_after: Annotated[int, Ge(0)] = 3
    grace_s: Annotated[float, Ge(0)] = 10
    keep_state_s: Annotated[float, Ge(0)] | None = 20
    drop_p: Annotated[float, Gt(0), Le(0.5)] = 0.1


@dataclass(frozen=True)
class StudyPlan:
    """A study as the command line defines it.

    Attributes:
        config: The config that all trials share.
        settings: How the study is run.
        name: Name of the study.
        space: The search space.
        overrides: Overrides of all trials.
        objectives: The objectives.
        limits: The constraints.
        folder: The folder of the study.
    """

    config: DictConfig
    settings: SweepSettings
    name: str
    space: spaces.Space
    overrides: list[str]
    objectives: list[Objective]
    limits: list[Limit]
    folder: Path

    @property
    def is_grid(self) -> bool:
        """Whether the cells are run in order."""
        return self.settings.n_trials is None or self.settings.sampler.get("name") == "grid"


def make_plan(config: DictConfig, settings: Mapping[str, Any], arguments: list[str]) -> StudyPlan:
    """Read and check the definition of a study.

    Args:
        config: `conf/train.yaml`, composed with what all trials share.
        settings: The node `hydra.sweeper`.
        arguments: The overrides of the command line, except those of `hydra.*`.

    Raises:
        ConfigError: An impossible value; the message names the key.
    """
    plain = {key: _plain(settings[key]) for key in settings if not key.startswith("_")}
    built_later = ("sampler", "pruner", "executor")  # and checked then
    checked = {key: value for key, value in plain.items() if key not in built_later}
    check_arguments(SweepSettings, checked, "hydra.sweeper")
    sweep_settings = SweepSettings(**plain)
    check({"repeats": config.repeats, "dry_run": config.dry_run, "seed": config.seed})
    parsed = spaces.parse(
        arguments,
        sweep_settings.params,
        sweep_settings.conditions,
        sweep_settings.zip,
        sweep_settings.exclude,
    )
    file = config.hydra.runtime.choices.get("sweeps")
    name = str(
        sweep_settings.study_name or config.study or file or _make_name(arguments, parsed.fixed)
    )
    folder = Path(config.hydra.sweep.dir).absolute() / re.sub(r"[^\w.=,+-]", "_", name)
    objective = _plain(config.objective)
    plan = StudyPlan(
        config,
        sweep_settings,
        name,
        parsed.space,
        list(parsed.fixed),
        parse_objectives(objective),
        parse_limits(objective),
        folder,
    )
    if plan.space.n_cells is None and plan.is_grid:
        if sweep_settings.n_trials is not None:
            problem = "a grid needs cells, but an interval has none: use tpe"
            raise ConfigError("hydra/sweeper/sampler", problem)
        next(iter(plan.space.cells()))  # raises, and names the parameter that has no cells
    swept = {key for parameter in plan.space.parameters for key in parameter.keys}
    if config.repeats > 1 and "seed" in swept:
        problem = "trains under several seeds itself: do not sweep over seed as well"
        raise ConfigError("repeats", problem)
    return plan


def _make_name(arguments: list[str], fixed: list[str]) -> str:
    """A name from the swept parameters, and a digest of all arguments."""
    swept = [argument.partition("=") for argument in arguments if argument not in fixed]
    words = "-".join(f"{key.rpartition('.')[2]}-{value}" for key, _, value in swept)
    readable = re.sub(r"[^\w,.+-]+", "_", words)[:48].strip("-_,.") or "defaults"
    digest = hashlib.sha256("\n".join(sorted(arguments)).encode()).hexdigest()
    return f"{readable}-{digest[:6]}"


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def sweep(
    config: DictConfig, loader: ConfigLoader, settings: Mapping[str, Any], arguments: list[str]
) -> bool:
    """Run a study, or resume it.

    Args:
        config: `conf/train.yaml`, composed with what all trials share.
        loader: Composes a trial's config.
        settings: The node `hydra.sweeper`.
        arguments: The overrides of the command line, except those of `hydra.*`.

    Returns:
        Whether every trial ended well.

    Raises:
        UserError: Bad input, another owner, a study with another definition, or trials that all
            fail in the same way.
    """
    plan = make_plan(config, settings, arguments)
    probed = dry_run.probe(plan.space, loader, config, plan.overrides)
    if config.dry_run:
        if config.origin is not None:
            raise ConfigError("dry_run", "estimates trainings, not compressions: omit it")
        n_trials, n_jobs = plan.settings.n_trials, plan.settings.n_jobs or 1
        estimates = dry_run.show(
            plan.name, plan.space, loader, config, plan.overrides, plan.limits, n_trials, n_jobs
        )
        return any(not estimate.problem for estimate in estimates)
    store = open_store(config)
    if probed is not None and origin.is_compression(probed[0]):
        # without the study's own overrides of hydra.*, which exist only beside its file
        shared = copy.deepcopy(config)
        with flag_override(shared, ["struct", "readonly"], False):
            shared.hydra.overrides.hydra = []
        default = dry_run.compose_cell(loader, shared, origin.free_overrides(plan.overrides))
        origin.check_study(probed[0], default, probed[1], store)
    folder = store.database.parent if store.database else store.folder
    url = resolve_url(plan.settings.storage or default_url(folder))
    with Ownership(url, plan.name) as ownership:
        return _run(plan, store, url, ownership)


def _run(plan: StudyPlan, store: Store, url: str, ownership: Ownership) -> bool:
    settings = plan.settings
    make_pruner(settings.pruner, len(plan.objectives), plan.config.trainer.max_epochs)
    with ExitStack() as stack:
        executor = _make_executor(plan)
        stack.callback(executor.close, settings.grace_s)
        executor.warm_up()  # imports in the background, while the study is opened
        study, sampler = _open_study(plan, open_storage(url), url)
        tags = {
            "objectives": "; ".join(map(str, plan.objectives)),
            "limits": "; ".join(map(str, plan.limits)),
            "sweeps": str(plan.config.hydra.runtime.choices.get("sweeps") or ""),
            "fixed_overrides": masked(shlex.join(plan.overrides)),
        }
        recorder = StudyRecorder(store, plan.name, study.user_attrs.get("study_run"), tags)
        study.set_user_attr("study_run", recorder.parent.id)
        policy = RunPolicy(
            n_trials=settings.n_trials,
            is_grid=plan.is_grid or sampler.is_grid,
            retries=settings.retries,
            retried=tuple(settings.retried),
            time_limit_s=settings.time_limit_s,
            stop_after=settings.stop_after,
            retry_failed=settings.retry_failed,
            grace_s=settings.grace_s,
            learns_from_pruned=sampler.learns_from_pruned,
        )
        payload = _payload(plan, store, recorder, not executor.queues)
        with recorder.parent:
            with LiveView(plan.name, plan.objectives) as view:
                scheduler = Scheduler(
                    study,
                    url,
                    plan.space,
                    plan.objectives,
                    plan.limits,
                    executor,
                    policy,
                    recorder,
                    plan.folder,
                    TRIAL_BODY,
                    payload,
                    view.show,
                    ownership.is_held,
                )
                try:
                    status = scheduler.run()
                except (KeyboardInterrupt, SystemExit):
                    status = scheduler.status
                    view.say(
                        f"stopped: {status.counted} of {status.total} trials are done; "
                        "the same command resumes the study"
                    )
                    raise
            compared = comparison.summarise_study(
                store,
                recorder.parent,
                plan.objectives,
                plan.limits,
                test_front=plan.config.test == "auto",
            )
    is_complete = status.total <= status.counted and status.counts["fail"] == 0
    return is_complete and bool((compared["status"] == "FINISHED").any())


def _open_study(
    plan: StudyPlan, storage: optuna.storages.BaseStorage, url: str
) -> tuple[studies.OwnedStudy, SamplerChoice]:
    settings, n_objectives, seed = plan.settings, len(plan.objectives), int(plan.config.seed)
    definition = studies.Definition(
        plan.name, plan.objectives, plan.limits, plan.space.describe(), flat_settings(plan.config)
    )
    made = make_pruner(settings.pruner, n_objectives, plan.config.trainer.max_epochs)
    pruner = made if isinstance(made, optuna.pruners.BasePruner) else None
    first = make_sampler(settings.sampler, seed, n_objectives, 0)
    study = studies.open_study(storage, definition, first.sampler, pruner)
    trials = study.get_trials(deepcopy=False)
    n_finished = len(studies.finished(trials))
    # interrupted trials are counted as well: their proposals must not be drawn again
    sampler = make_sampler(settings.sampler, seed, n_objectives, len(trials))
    study.sampler = sampler.sampler
    if sampler.name == "cmaes" and not url.startswith("sqlite:"):
        problem = "cmaes keeps its state as a pickle, which is not read from a server"
        raise ConfigError("hydra.sweeper.sampler", problem)
    if sampler.name == "brute_force" and plan.space.n_cells is None:
        problem = "brute_force needs cells, but an interval has none: use tpe"
        raise ConfigError("hydra.sweeper.sampler", problem)
    if settings.warm_start:
        count = warm_start(
            study,
            storage,
            settings.warm_start,
            plan.objectives,
            plan.limits,
            plan.space,
        )
        log.warning("%d trials of study %s are taken over", count, settings.warm_start)
    if n_finished:
        log.warning(
            "study %s has %d trials already and is resumed (for a new one: "
            "hydra.sweeper.study_name=...)",
            plan.name,
            n_finished,
        )
    return study, sampler


def _make_executor(plan: StudyPlan) -> Executor:
    node = plan.settings.executor
    arguments: dict[str, Any] = {}
    if plan.settings.n_jobs is not None:
        arguments["n_jobs"] = plan.settings.n_jobs
    check(node, "hydra.sweeper.executor")
    executor: Executor = instantiate(OmegaConf.create(node), "hydra.sweeper.executor", **arguments)
    return executor


def _payload(
    plan: StudyPlan, store: Store, recorder: StudyRecorder, is_local: bool
) -> dict[str, Any]:
    """What every trial needs, as plain values."""
    return {
        "overrides": plan.overrides,
        "objectives": [
            {"metric": objective.metric, "direction": objective.direction}
            for objective in plan.objectives
        ],
        "limits": [f"{limit.metric} {limit.operator} {limit.value!r}" for limit in plan.limits],
        "tracking": {"uri": store.uri, "experiment": store.experiment, "folder": str(store.folder)},
        "study_run": recorder.parent.id,
        # on another machine the code may be another
        "git": list(git_state(ROOT)) if is_local else None,
        "tell_begun": not is_local,
        "fixed": plan.overrides,
        "conf_digest": conf_digest(),
        "shared_digest": shared_config_digest(plan.config),
        "repeats": plan.config.repeats,
        "pruner": pruner_spec(plan.settings.pruner, plan.config.trainer.max_epochs),
        "drop_p": plan.settings.drop_p,
        "keep_state_s": plan.settings.keep_state_s,
    }
