"""One study: command line -> space, sampler, executor, scheduler, comparison (read third)."""

import copy
import hashlib
import logging
import re
import shlex
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from annotated_types import Ge, Gt, Le
from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, OmegaConf, flag_override
from optuna.pruners import BasePruner
from tqdm import tqdm

from src import dry_run
from src.core.cli import ROOT, console, say
from src.core.config import (
    check,
    check_arguments,
    conf_digest,
    flat_settings,
    instantiate,
    search_path,
    shared_config_digest,
)
from src.core.environment import git_state
from src.core.errors import ConfigError
from src.deployment.compression import origin
from src.metrics.registry import Limit, Objective, parse_limits, parse_objectives
from src.reporting import comparison
from src.run import open_store, record_changes
from src.sweep import space as spaces
from src.sweep import study as studies
from src.sweep.display import LiveView
from src.sweep.executors.base import Executor
from src.sweep.pruners import make_pruner, pruner_spec
from src.sweep.records import needed
from src.sweep.samplers import GRID, make_sampler
from src.sweep.scheduler import RunPolicy, Scheduler, StudyRecorder
from src.sweep.storage import KEY, default_url, open_storage, ownership, resolve_url
from src.tracking import read
from src.tracking.retry import Retry
from src.tracking.store import Store

log = logging.getLogger(__name__)
TRIAL_BODY = "src.run:run_trial"
FEW = 20  # trials, all of which are timed with efficiency.trials=auto
FOR_TRIALS = ("drop_p", "keep_state_s", "storage_wait_s")  # settings that a trial reads


@dataclass(frozen=True, kw_only=True)
class SweepSettings(RunPolicy):
    """The config node `hydra.sweeper`; conf/hydra/sweeper/study.yaml explains each value."""

    sampler: dict[str, Any]
    pruner: dict[str, Any]
    executor: dict[str, Any]
    study_name: str | None = None
    storage: str | None = None
    storage_wait_s: Annotated[float, Ge(0)] = 300
    warm_start: str | None = None
    params: dict[str, Any] = field(default_factory=dict)
    teachers: dict[str, Any] = field(default_factory=dict)
    conditions: dict[str, dict[str, Any]] = field(default_factory=dict)
    zip: list[dict[str, list[Any]]] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)
    n_jobs: Annotated[int, Ge(1)] | None = None
    keep_state_s: Annotated[float, Ge(0)] | None = 20
    max_repeats: Annotated[int, Ge(2)] = 5
    drop_p: Annotated[float, Gt(0), Le(0.5)] = 0.01


@dataclass(frozen=True)
class StudyPlan:
    """A study as the command line defines it."""

    config: DictConfig  # that all trials share
    settings: SweepSettings
    name: str
    space: spaces.Space
    overrides: list[str]  # of all trials
    objectives: list[Objective]
    limits: list[Limit]
    folder: Path

    @property
    def is_grid(self) -> bool:
        """Whether the cells are run in order."""
        return self.settings.n_trials is None or self.settings.sampler.get("name") == GRID

    @property
    def total(self) -> int:
        """Trials that the study shall reach."""
        counts = (self.settings.n_trials, self.space.n_cells)
        return min(count for count in counts if count is not None)

    @property
    def repeats(self) -> int:
        """Most seeds of a trial; with `repeats=auto` not all trials get them."""
        return self.settings.max_repeats if self.config.repeats == "auto" else self.config.repeats

    def times_front_only(self, is_local: bool) -> bool:
        """Whether trials measure only times that are objectives or limits, and the front the rest.

        Trials on other machines measure all times: at the end theirs would be those of this one.
        """
        trials = self.config.efficiency.get("trials", "all")
        return bool(is_local and (trials == "front" or (trials == "auto" and self.total > FEW)))


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
    check_arguments(SweepSettings, plain, "hydra.sweeper")
    chosen = SweepSettings(**plain)
    check({"repeats": config.repeats, "dry_run": config.dry_run, "seed": config.seed})
    space, fixed = spaces.parse(
        arguments, chosen.params, chosen.conditions, chosen.zip, chosen.exclude
    )
    file = config.hydra.runtime.choices.get("sweeps")
    name = str(chosen.study_name or config.study or file or "")
    if not name:  # from the swept parameters, and a digest of all arguments
        pairs = [argument.partition("=") for argument in arguments if argument not in fixed]
        words = "-".join(f"{key.rpartition('.')[2]}-{value}" for key, _, value in pairs)
        readable = re.sub(r"[^\w.+-]+", "_", words)[:48].strip("-_.") or "defaults"
        digest = hashlib.sha256("\n".join(sorted(arguments)).encode()).hexdigest()
        name = f"{readable}-{digest[:6]}"
    folder = Path(config.hydra.sweep.dir).absolute() / re.sub(r"^\.+|[^\w.=,+-]", "_", name)
    objective = _plain(config.objective)
    objectives, limits = parse_objectives(objective), parse_limits(objective)
    plan = StudyPlan(config, chosen, name, space, fixed, objectives, limits, folder)
    if space.n_cells is None and plan.is_grid:
        if chosen.n_trials is not None:
            problem = "a grid needs cells, but an interval has none: use tpe"
            raise ConfigError("hydra/sweeper/sampler", problem)
        space.cells()  # raises, and names the parameter that has no cells
    keys = {key for parameter in space.parameters for key in parameter.keys}
    if config.repeats == "auto" and (config.origin is not None or "origin" in keys):
        problem = "auto is for trainings: give the number of the origin's seeds to compress"
        raise ConfigError("repeats", problem)
    if plan.repeats > 1 and "seed" in keys:
        problem = "trains under several seeds itself: do not sweep over seed as well"
        raise ConfigError("repeats", problem)
    return plan


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def sweep(
    config: DictConfig, loader: ConfigLoader, settings: Mapping[str, Any], arguments: list[str]
) -> bool:
    """Run the study of `make_plan`, or resume it; `loader` composes a trial's config.

    Returns:
        Whether every trial ended well.

    Raises:
        UserError: Bad input, another owner, a study with another definition, or trials that all
            fail in the same way.
    """
    plan = make_plan(config, settings, arguments)
    if plan.settings.teachers:
        taught = _with_teachers(plan, loader, settings)
        if taught is None:
            say(f"{plan.name}: its trials can be estimated once their teachers are trained")
            return True
        plan = taught
    probed = dry_run.probe(plan.space, loader, config, plan.overrides, not config.dry_run)
    if config.dry_run:
        return _show_estimate(plan, loader)
    store = open_store(config)
    if probed is not None and origin.is_compression(probed[0]):
        # without the study's own overrides of hydra.*, which exist only beside its file
        shared = copy.deepcopy(config)
        with flag_override(shared, ["struct", "readonly"], False):
            shared.hydra.overrides.hydra = []
        default = dry_run.composer(loader, shared, origin.free_overrides(plan.overrides))(())
        origin.check_study(probed[0], default, probed[1], store)
    folder = store.database.parent if store.database else store.folder
    url = resolve_url(plan.settings.storage or default_url(folder))
    store.retry.seconds = plan.settings.storage_wait_s
    retry = Retry(KEY, url, plan.settings.storage_wait_s)
    with ownership(url, plan.name, retry) as is_owner:
        return _run(plan, store, url, retry, is_owner)


def _with_teachers(
    plan: StudyPlan, loader: ConfigLoader, settings: Mapping[str, Any]
) -> StudyPlan | None:
    """Train the teachers as a study of their own, and add their run ids to the overrides.

    A dry run estimates the teachers and returns None.

    Raises:
        UserError: A mistake in all trials, before a teacher is trained, or a teacher that failed.
    """
    dry_run.probe(plan.space, loader, plan.config, [*plan.overrides, "loss.teacher=[]"])
    name, shared = f"{plan.name}_teachers", copy.deepcopy(plan.config)
    with flag_override(shared, ["struct", "readonly"], False):
        shared.repeats = 1
    changed = {"study_name": name, "params": plan.settings.teachers, "n_trials": None}
    none: dict[str, Any] = {"teachers": {}, "conditions": {}, "zip": [], "exclude": []}
    say(f"{plan.name}: its teachers come first, as the study {name}")
    is_complete = sweep(shared, loader, {**settings, **changed, **none}, plan.overrides)
    if plan.config.dry_run:
        return None
    if not is_complete:
        problem = f"study {name} is not complete; the same command continues it"
        raise ConfigError("hydra.sweeper.teachers", problem)
    runs = read.cached_runs(open_store(plan.config))
    of_study = (read.texts(runs, "tags.study") == name) & (read.texts(runs, "tags.kind") == "run")
    ids = sorted(runs["run_id"][of_study & (runs["status"] == "FINISHED")])
    return replace(plan, overrides=[*plan.overrides, f"loss.teacher=[{','.join(ids)}]"])


def _show_estimate(plan: StudyPlan, loader: ConfigLoader) -> bool:
    """Print time and memory of some cells and of the study; returns whether any cell can run."""
    if plan.config.origin is not None:
        raise ConfigError("dry_run", "estimates trainings, not compressions: omit it")
    sampled = list(dry_run.sample_cells(plan.space, min(dry_run.SAMPLED, plan.total)))
    compose, measured = dry_run.composer(loader, plan.config, plan.overrides), dict[str, Any]()
    bar = tqdm(sampled, "dry run", unit="cell", leave=False, disable=None)
    rows = [dry_run.estimate(cell, compose, plan.limits, measured) for cell in bar]
    cells = pd.DataFrame(rows, columns=dry_run.COLUMNS)
    title = f"{plan.name}: {len(cells)} of {plan.total} trials, not trained"
    console.print(dry_run.table(title, cells).to_rich())
    for line in dry_run.totals(cells, plan.total, plan.repeats, plan.settings.n_jobs or 1):
        say(line)
    if plan.config.repeats == "auto":
        say("repeats=auto: time and disk are upper bounds, for all seeds of every trial")
    return bool((cells["problem"] == "").any())


def _run(
    plan: StudyPlan, store: Store, url: str, retry: Retry, is_owner: Callable[[], bool]
) -> bool:
    config, settings = plan.config, plan.settings
    pruner = make_pruner(settings.pruner, len(plan.objectives), config.trainer.max_epochs)
    with ExitStack() as stack:
        check(settings.executor, "hydra.sweeper.executor")
        node = OmegaConf.create(settings.executor)
        if settings.n_jobs is not None:
            node.n_jobs = settings.n_jobs
        executor: Executor = instantiate(node, "hydra.sweeper.executor")
        stack.callback(executor.close, settings.grace_s)
        executor.warm_up()  # imports in the background, while the study is opened
        study = _open_study(plan, pruner, url, retry)
        tags = {
            "objectives": "; ".join(map(str, plan.objectives)),
            "limits": "; ".join(map(str, plan.limits)),
            "sweeps": str(config.hydra.runtime.choices.get("sweeps") or ""),
            "fixed_overrides": shlex.join(plan.overrides),
        }
        recorder = StudyRecorder(store, plan.name, study.user_attrs.get("study_run"), **tags)
        study.set_user_attr("study_run", recorder.parent.id)
        git = git_state(ROOT)
        if git[1]:
            record_changes(recorder.parent)
        # on another machine the code may be another
        payload = _payload(plan, store, recorder.parent.id, None if executor.queues else git)
        if time_front := plan.times_front_only(not executor.queues):
            payload["timed"] = needed(plan.objectives, plan.limits)
        with recorder.parent:
            view = LiveView(plan.name)
            parts = (study, url, executor, settings, plan.is_grid, recorder, plan.folder)
            scheduler = Scheduler(*parts, TRIAL_BODY, payload, view.show, is_owner)
            try:
                with view:
                    status = scheduler.run()
            except (KeyboardInterrupt, SystemExit):
                status = scheduler.status
                done = f"{status.counted} of {status.total} trials are done"
                say(f"stopped: {done}; the same command resumes the study")
                if status.counted:
                    say(f"report so far: {store.report_command(plan.name)}", wrap=False)
                raise
            at_end = ["test"] * (config.test == "auto") + ["time"] * time_front
            compared = comparison.summarise_study(
                store, recorder.parent, plan.objectives, plan.limits, *at_end
            )
            notes = comparison.chosen_notes(compared, plan.objectives, plan.limits)
            studies.save_notes(study, notes)
    is_complete = status.total <= status.counted and status.counts["fail"] == 0
    return is_complete and bool((compared["status"] == "FINISHED").any())


def _open_study(
    plan: StudyPlan, pruner: Any, url: str, retry: Retry | None = None
) -> studies.OwnedStudy:
    settings, seed = plan.settings, int(plan.config.seed)
    objectives, limits, space = plan.objectives, plan.limits, plan.space
    fixed, storage = flat_settings(plan.config), open_storage(url, retry)
    optuna_pruner = pruner if isinstance(pruner, BasePruner) else None
    first = make_sampler(settings.sampler, seed, len(objectives), 0).sampler
    study = studies.open_study(
        storage, plan.name, objectives, limits, space, fixed, first, optuna_pruner
    )
    trials = study.get_trials(deepcopy=False)
    n_finished = sum(trial.state.is_finished() for trial in trials)
    # interrupted trials are counted as well: their proposals must not be drawn again
    sampler = make_sampler(settings.sampler, seed, len(objectives), len(trials))
    study.sampler, study.learns_from_pruned = sampler.sampler, sampler.learns_from_pruned
    if sampler.name == "cmaes" and not url.startswith("sqlite:"):
        problem = "cmaes keeps its state as a pickle, which is not read from a server"
        raise ConfigError("hydra.sweeper.sampler", problem)
    if sampler.name == "brute_force" and space.n_cells is None:
        problem = "brute_force needs cells, but an interval has none: use tpe"
        raise ConfigError("hydra.sweeper.sampler", problem)
    if settings.warm_start:
        count = studies.warm_start(study, settings.warm_start)
        log.warning("%d trials of study %s are taken over", count, settings.warm_start)
    if n_finished:
        way = "for a new one: hydra.sweeper.study_name=..."
        log.warning(
            "study %s has %d trials already and is resumed (%s)", plan.name, n_finished, way
        )
    return study


def _payload(
    plan: StudyPlan, store: Store, study_run: str, git: tuple[str | None, bool | None] | None
) -> dict[str, Any]:
    """What every trial needs, as plain values."""
    return {
        "overrides": plan.overrides,
        "objectives": [vars(objective) for objective in plan.objectives],
        "limits": [f"{limit.metric} {limit.operator} {limit.value!r}" for limit in plan.limits],
        "tracking": {"uri": store.uri, "experiment": store.experiment, "folder": str(store.folder)},
        "study_run": study_run,
        "git": git,
        "tell_begun": git is None,
        "fixed": plan.overrides,
        "config_name": plan.config.hydra.job.config_name,
        "search_path": search_path(plan.config.hydra),
        "conf_digest": conf_digest(),
        "shared_digest": shared_config_digest(plan.config),
        "repeats": plan.repeats,
        "is_race": plan.config.repeats == "auto",
        "pruner": pruner_spec(plan.settings.pruner, plan.config.trainer.max_epochs),
        **{key: getattr(plan.settings, key) for key in FOR_TRIALS},
    }
