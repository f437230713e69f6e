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
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from src import dry_run
from src.core.cli import ROOT, one_line
from src.core.config import (
    check,
    check_arguments,
    conf_digest,
    flat_settings,
    instantiate,
    shared_config_digest,
)
from src.core.environment import git_state
from src.core.errors import ConfigError, UserError
from src.deployment.compression import origin
from src.metrics.registry import Limit, Objective, parse_limits, parse_objectives
from src.reporting import comparison
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
from src.tracking.store import Store, reap

PROBED = 3  # cells that are composed and checked before anything is started


@dataclass
class SweepSettings:
    """The config node `hydra.sweeper`; conf/hydra/sweeper/study.yaml says what each value means."""

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
    """A study as the command line asks for it.

    Attributes:
        config: The config that all trials share.
        settings: How it is run.
        name: Of the study.
        space: What is swept.
        overrides: What all trials are given.
        objectives: What is made better.
        limits: What has to be kept.
        folder: Of the study.
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
        """Whether the cells come in order."""
        return self.settings.n_trials is None or self.settings.sampler.get("name") == "grid"


def make_plan(config: DictConfig, settings: Mapping[str, Any], arguments: list[str]) -> StudyPlan:
    """Read and check what the command line asks for.

    Raises:
        ConfigError: A value that cannot be; the message names the key.
    """
    plain = {
        key: _plain(value)
        for key, value in settings.items()
        if key not in ("_target_", "_recursive_")
    }
    parts = ("sampler", "pruner", "executor")  # checked where they are built
    values = {key: value for key, value in plain.items() if key not in parts}
    check_arguments(SweepSettings, values, "hydra.sweeper")
    own = SweepSettings(**plain)
    check({"repeats": config.repeats, "dry_run": config.dry_run, "seed": config.seed})
    parsed = spaces.parse(arguments, own.params, own.conditions, own.zip, own.exclude)
    choice = config.hydra.runtime.choices.get("sweeps")
    made = choice or _made_name(arguments, parsed.fixed)
    name = str(own.study_name or config.study or made)
    if parsed.space.n_cells is None and (own.n_trials is None or own.sampler.get("name") == "grid"):
        if own.n_trials is not None:
            raise ConfigError(
                "hydra/sweeper/sampler", "a grid needs cells, but an interval has none: take tpe"
            )
        next(iter(parsed.space.cells()))  # raises, and names the parameter that has no cells
    if config.repeats > 1 and any(
        "seed" in parameter.keys for parameter in parsed.space.parameters
    ):
        raise ConfigError(
            "repeats", "trains under several seeds itself: do not sweep over seed as well"
        )
    objective = _plain(config.objective)
    return StudyPlan(
        config,
        own,
        name,
        parsed.space,
        list(parsed.fixed),
        parse_objectives(objective),
        parse_limits(objective),
        Path(config.hydra.sweep.dir).absolute() / re.sub(r"[^\w.=,+-]", "_", name),
    )


def probe(plan: StudyPlan, loader: ConfigLoader) -> tuple[DictConfig, list[str]] | None:
    """Compose and check some cells: a mistake that they all share is told at once, not trial by trial.

    Returns:
        The first that is as it should be, with its overrides; None where they have mistakes of
        their own.

    Raises:
        UserError: What is wrong with every one of them.
    """
    problems: dict[str, Exception] = {}
    for overrides in dry_run.sample(plan.space, PROBED, seed=0):
        every = [*plan.overrides, *overrides]
        try:
            return dry_run.compose_cell(loader, plan.config, every), every
        except (UserError, HydraException, OmegaConfBaseException) as error:
            problems[str(one_line(error))] = error
    if len(problems) == 1:
        raise next(iter(problems.values()))
    return None


def _made_name(arguments: list[str], fixed: list[str]) -> str:
    """A name for a study that was given none: it tells what is swept, and differs wherever the command does."""
    swept = [argument for argument in arguments if argument not in fixed]
    words = "-".join(
        argument.partition("=")[0].rpartition(".")[2] + "-" + argument.partition("=")[2]
        for argument in swept
    )
    readable = re.sub(r"[^\w,.+-]+", "_", words)[:48].strip("-_,.")
    return f"{readable or 'defaults'}-{hashlib.sha256(chr(10).join(sorted(arguments)).encode()).hexdigest()[:6]}"


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


log = logging.getLogger(__name__)
BODY = "src.run:run_trial"


def sweep(
    config: DictConfig, loader: ConfigLoader, settings: Mapping[str, Any], arguments: list[str]
) -> bool:
    """Run the study that the command line asks for, or go on with it.

    Args:
        config: `conf/train.yaml`, composed with what all trials share.
        loader: Composes a trial's config.
        settings: The node `hydra.sweeper`.
        arguments: The command line's overrides, but for Hydra's own.

    Returns:
        Whether every trial ended well.

    Raises:
        UserError: Bad input, another owner, a study that is defined otherwise, or trials that all
            fail alike.
    """
    plan = make_plan(config, settings, arguments)
    own = plan.settings
    probed = probe(plan, loader)
    if config.dry_run and config.origin is not None:
        raise ConfigError("dry_run", "estimates trainings, and a compression is none: leave it out")
    if config.dry_run:
        seen = dry_run.show(
            plan.name,
            plan.space,
            loader,
            config,
            plan.overrides,
            plan.limits,
            own.n_trials,
            own.n_jobs or 1,
        )
        return any(not each.problem for each in seen)
    store: Store = instantiate(config.tracking, "tracking")
    store.open()
    for run_id in reap(store):
        log.warning("run %s had been left by a process that is gone: marked FAILED", run_id)
    if probed is not None and origin.is_compression(cell := probed[0]):
        default = dry_run.compose_cell(
            loader, _without_hydras(config), origin.free_overrides(plan.overrides)
        )
        origin.check_study(cell, default, probed[1], store)
    url = resolve_url(
        plan.settings.storage
        or default_url(store.database.parent if store.database else store.folder)
    )
    with Ownership(url, plan.name) as ownership:
        return _run(plan, store, url, ownership)


def _without_hydras(config: DictConfig) -> DictConfig:
    """The config without the overrides of Hydra's own keys, which may be of what a study's file alone has."""
    plain = copy.deepcopy(config)
    with flag_override(plain, ["struct", "readonly"], False):
        plain.hydra.overrides.hydra = []
    return plain


def _run(plan: StudyPlan, store: Store, url: str, ownership: Ownership) -> bool:
    settings, n_objectives = plan.settings, len(plan.objectives)
    make_pruner(settings.pruner, n_objectives, plan.config.trainer.max_epochs)
    with ExitStack() as stack:
        executor = _executor(plan)
        stack.callback(executor.close, settings.grace_s)
        executor.warm_up()  # imports for seconds, while the study is opened
        storage = open_storage(url)
        study, sampler = _open_study(plan, storage, url)
        rows = StudyRecorder(store, plan.name, study.user_attrs.get("study_run"), _study_tags(plan))
        study.set_user_attr("study_run", rows.parent.id)
        with rows.parent:
            return _own(plan, store, url, study, sampler, executor, rows, ownership)


def _study_tags(plan: StudyPlan) -> dict[str, str]:
    """What a report needs to tell what the study was for, and to name the command that trains a trial again."""
    return {
        "objectives": "; ".join(map(str, plan.objectives)),
        "limits": "; ".join(map(str, plan.limits)),
        "sweeps": str(plan.config.hydra.runtime.choices.get("sweeps") or ""),
        "fixed_overrides": masked(shlex.join(plan.overrides)),
    }


def _own(
    plan: StudyPlan,
    store: Store,
    url: str,
    study: studies.OwnedStudy,
    sampler: SamplerChoice,
    executor: Executor,
    rows: StudyRecorder,
    ownership: Ownership,
) -> bool:
    settings = plan.settings
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
    with LiveView(plan.name, plan.objectives) as view:
        owner = Scheduler(
            study,
            url,
            plan.space,
            plan.objectives,
            plan.limits,
            executor,
            policy,
            rows,
            plan.folder,
            BODY,
            _payload(plan, store, rows, not executor.queues),
            view.show,
            ownership.is_held,
        )
        try:
            status = owner.run()
        except (KeyboardInterrupt, SystemExit):
            status = owner.status
            view.say(
                f"stopped: {status.counted} of {status.total} trials are done; the same command goes on with the rest"
            )
            raise
    test = plan.config.test == "auto"
    table = comparison.summarise_study(store, rows.parent, plan.objectives, plan.limits, test)
    left = status.total - status.counted
    finished = bool((table["status"] == "FINISHED").any())
    return finished and left <= 0 and status.counts["fail"] == 0


def _open_study(
    plan: StudyPlan, storage: optuna.storages.BaseStorage, url: str
) -> tuple[studies.OwnedStudy, SamplerChoice]:
    settings = plan.settings
    definition = studies.Definition(
        plan.name, plan.objectives, plan.limits, plan.space.describe(), flat_settings(plan.config)
    )
    made = make_pruner(settings.pruner, len(plan.objectives), plan.config.trainer.max_epochs)
    pruner = made if isinstance(made, optuna.pruners.BasePruner) else None
    seed = int(plan.config.seed)
    first = make_sampler(settings.sampler, seed, len(plan.objectives), 0)
    study = studies.open_study(storage, definition, first.sampler, pruner)
    n_finished = len(studies.finished(study.get_trials(deepcopy=False)))
    n_drawn = len(
        study.get_trials(deepcopy=False)
    )  # those that were broken off, too: they must not be drawn again
    sampler = make_sampler(settings.sampler, seed, len(plan.objectives), n_drawn)
    study.sampler = sampler.sampler
    if sampler.name == "cmaes" and not url.startswith("sqlite:"):
        raise ConfigError(
            "hydra.sweeper.sampler",
            "cmaes keeps its state as a pickle, which is not read from a server",
        )
    if sampler.name == "brute_force" and plan.space.n_cells is None:
        raise ConfigError(
            "hydra.sweeper.sampler", "brute_force needs cells, but an interval has none: take tpe"
        )
    if settings.warm_start:
        taken = warm_start(
            study,
            storage,
            settings.warm_start,
            plan.objectives,
            plan.limits,
            plan.space,
        )
        log.warning("%d trials of study %s are taken over as known", taken, settings.warm_start)
    if n_finished:
        log.warning(
            "study %s has %d trials already: going on with it (for a new one: hydra.sweeper.study_name=...)",
            plan.name,
            n_finished,
        )
    return study, sampler


def _executor(plan: StudyPlan) -> Executor:
    node = plan.settings.executor
    given: dict[str, Any] = {} if plan.settings.n_jobs is None else {"n_jobs": plan.settings.n_jobs}
    check(node, "hydra.sweeper.executor")
    executor: Executor = instantiate(OmegaConf.create(node), "hydra.sweeper.executor", **given)
    return executor


def _payload(plan: StudyPlan, store: Store, rows: StudyRecorder, local: bool) -> dict[str, Any]:
    """What every trial is given; plain values."""
    return {
        "overrides": plan.overrides,
        "objectives": [
            {"metric": each.metric, "direction": each.direction} for each in plan.objectives
        ],
        "limits": [f"{each.metric} {each.operator} {each.value!r}" for each in plan.limits],
        "tracking": {"uri": store.uri, "experiment": store.experiment, "folder": str(store.folder)},
        "study_run": rows.parent.id,
        "git": list(git_state(ROOT)) if local else None,  # elsewhere the code may be another
        "tell_begun": not local,
        "fixed": plan.overrides,
        "conf_digest": conf_digest(),
        "shared_digest": shared_config_digest(plan.config),
        "repeats": plan.config.repeats,
        "pruner": pruner_spec(plan.settings.pruner, plan.config.trainer.max_epochs),
        "drop_p": plan.settings.drop_p,
        "keep_state_s": plan.settings.keep_state_s,
    }
