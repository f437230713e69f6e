"""From the command line to a study: what is swept, by which sampler, in which processes, and what came of it."""

import copy
import logging
import shlex
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import optuna
from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, OmegaConf, flag_override

from src import dry_run, summary
from src.compression import origin
from src.config import check, instantiate
from src.entry import ROOT
from src.errors import ConfigError
from src.plan import Plan, make_plan, probe
from src.reproducibility import git_state
from src.shared_config import conf_digest, flat_settings, shared_config_digest
from src.sweep import space as spaces
from src.sweep import study as studies
from src.sweep.executors.base import Executor
from src.sweep.live import LiveView
from src.sweep.owner import Owner
from src.sweep.policy import Policy
from src.sweep.pruners import make_pruner, pruner_spec
from src.sweep.rows import Rows
from src.sweep.samplers import SamplerChoice, make_sampler
from src.sweep.storage import Ownership, default_url, open_storage, resolve_url
from src.sweep.warm_start import warm_start
from src.tracking.limits import masked
from src.tracking.orphans import reap
from src.tracking.store import Store

log = logging.getLogger(__name__)
BODY = "src.jobs:run_trial"


def sweep(config: DictConfig, loader: ConfigLoader, settings: Mapping[str, Any], arguments: list[str]) -> bool:
    """Run the study that the command line asks for, or go on with it.

    Args:
        config: `conf/train.yaml`, composed with what all trials share.
        loader: Composes a trial's config.
        settings: The node `hydra.sweeper`.
        arguments: The command line's overrides, but for Hydra's own.

    Returns:
        Whether every trial ended well.

    Raises:
        UserError: Bad input, another owner, a study that is defined otherwise, or trials that all fail alike.
    """
    plan = make_plan(config, settings, arguments)
    own = plan.settings
    probed = probe(plan, loader)
    if config.dry_run and config.origin is not None:
        raise ConfigError("dry_run", "estimates trainings, and a compression is none: leave it out")
    if config.dry_run:
        seen = dry_run.show(
            plan.name, plan.space, loader, config, plan.overrides, plan.limits, own.n_trials, own.n_jobs or 1
        )
        return any(not each.problem for each in seen)
    store: Store = instantiate(config.tracking, "tracking")
    store.open()
    for run_id in reap(store):
        log.warning("run %s had been left by a process that is gone: marked FAILED", run_id)
    if probed is not None and origin.wanted(cell := probed[0]):
        default = dry_run.compose_cell(loader, _without_hydras(config), origin.typed_beside(plan.overrides))
        origin.check_study(cell, default, probed[1], store)
    url = resolve_url(plan.settings.storage or default_url(store.database.parent if store.database else store.folder))
    with Ownership(url, plan.name) as ownership:
        return _run(plan, store, url, ownership)


def _without_hydras(config: DictConfig) -> DictConfig:
    """The config without the overrides of Hydra's own keys, which may be of what a study's file alone has."""
    plain = copy.deepcopy(config)
    with flag_override(plain, ["struct", "readonly"], False):
        plain.hydra.overrides.hydra = []
    return plain


def _run(plan: Plan, store: Store, url: str, ownership: Ownership) -> bool:
    settings, n_objectives = plan.settings, len(plan.objectives)
    make_pruner(settings.pruner, n_objectives, plan.config.trainer.max_epochs)
    with ExitStack() as stack:
        executor = _executor(plan, url)
        stack.callback(executor.close, settings.grace_s)
        executor.warm_up()  # imports for seconds, while the study is opened
        storage = open_storage(url)
        study, sampler = _open_study(plan, storage, url)
        rows = Rows(store, plan.name, study.user_attrs.get("study_run"), _study_tags(plan))
        study.set_user_attr("study_run", rows.parent.id)
        with rows.parent:
            return _own(plan, store, url, study, sampler, executor, rows, ownership)


def _study_tags(plan: Plan) -> dict[str, str]:
    """What a report needs to tell what the study was for, and to name the command that trains a trial again."""
    return {
        "objectives": "; ".join(map(str, plan.objectives)),
        "limits": "; ".join(map(str, plan.limits)),
        "sweeps": str(plan.config.hydra.runtime.choices.get("sweeps") or ""),
        "fixed_overrides": masked(shlex.join(plan.overrides)),
    }


def _own(
    plan: Plan,
    store: Store,
    url: str,
    study: studies.OwnedStudy,
    sampler: SamplerChoice,
    executor: Executor,
    rows: Rows,
    ownership: Ownership,
) -> bool:
    settings = plan.settings
    policy = Policy(
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
        owner = Owner(
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
            standing = owner.run()
        except (KeyboardInterrupt, SystemExit):
            done = owner.standing.counted
            view.say(f"stopped: {done} of {owner.total} trials are done; the same command goes on with the rest")
            raise
    test = plan.config.test == "auto"
    table = summary.summarise_study(store, rows.parent, plan.objectives, plan.limits, test)
    left = owner.total - standing.counted
    finished = bool((table["status"] == "FINISHED").any())
    return finished and left <= 0 and standing.counts["fail"] == 0


def _open_study(plan: Plan, storage: optuna.storages.BaseStorage, url: str) -> tuple[studies.OwnedStudy, SamplerChoice]:
    settings = plan.settings
    definition = studies.Definition(
        plan.name, plan.objectives, plan.limits, plan.space.describe(), flat_settings(plan.config)
    )
    made = make_pruner(settings.pruner, len(plan.objectives), plan.config.trainer.max_epochs)
    pruner = made if isinstance(made, optuna.pruners.BasePruner) else None
    seed = int(plan.config.seed)
    first = make_sampler(settings.sampler, seed, len(plan.objectives), 0)
    study = studies.open_study(storage, definition, first.sampler, pruner, spaces.Space.differences)
    n_finished = len(studies.finished(study.get_trials(deepcopy=False)))
    n_drawn = len(study.get_trials(deepcopy=False))  # those that were broken off, too: they must not be drawn again
    sampler = make_sampler(settings.sampler, seed, len(plan.objectives), n_drawn)
    study.sampler = sampler.sampler
    if sampler.name == "cmaes" and not url.startswith("sqlite:"):
        raise ConfigError("hydra.sweeper.sampler", "cmaes keeps its state as a pickle, which is not read from a server")
    if sampler.name == "brute_force" and plan.space.n_cells is None:
        raise ConfigError("hydra.sweeper.sampler", "brute_force needs cells, but an interval has none: take tpe")
    if settings.warm_start:
        taken = warm_start(
            study, storage, settings.warm_start, plan.objectives, plan.limits, plan.space.params_of, plan.space.suggest
        )
        log.warning("%d trials of study %s are taken over as known", taken, settings.warm_start)
    if n_finished:
        log.warning(
            "study %s has %d trials already: going on with it (for a new one: hydra.sweeper.study_name=...)",
            plan.name,
            n_finished,
        )
    return study, sampler


def _executor(plan: Plan, url: str) -> Executor:
    node = plan.settings.executor
    given: dict[str, Any] = {} if plan.settings.n_jobs is None else {"n_jobs": plan.settings.n_jobs}
    if "storage_url" in node:  # this executor works through the study's database
        given["storage_url"] = url
    check(node, "hydra.sweeper.executor")
    executor: Executor = instantiate(OmegaConf.create(node), "hydra.sweeper.executor", **given)
    return executor


def _payload(plan: Plan, store: Store, rows: Rows, local: bool) -> dict[str, Any]:
    """What every trial is given; plain values."""
    return {
        "overrides": plan.overrides,
        "objectives": [{"metric": each.metric, "direction": each.direction} for each in plan.objectives],
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
