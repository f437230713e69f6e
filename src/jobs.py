"""The main job: one config trained, measured and recorded, alone or as a trial of a study."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from src import summary, training
from src.config import check, instantiate, resolve
from src.data.module import DataModule
from src.efficiency.profile import static_cost
from src.entry import ROOT
from src.errors import ConfigError, UserError
from src.objectives import parse_limits, parse_objectives
from src.reproducibility import config_hash, git_state, package_versions
from src.shared_config import WITHOUT_EFFECT, compose_trial
from src.sweep.failures import EndedEarly
from src.sweep.repeats import aggregate
from src.sweep.resumption import STATE, discard, inherit, seed_folder
from src.sweep.trial import TrialContext
from src.tracking.limits import masked
from src.tracking.orphans import reap
from src.tracking.run import Run
from src.tracking.store import Store

log = logging.getLogger(__name__)
PER_EPOCH = ("val/", "train/", "data/")  # of these the study needs no copy
NOT_FOR_ALL = ("efficiency/flops",)  # what some models have none of, see src.efficiency.profile


@dataclass(frozen=True)
class Place:
    """Where in a study a run stands.

    Attributes:
        study: The study's name; empty for a run of its own.
        git: Commit and whether files differ from it, as the study's owner found them; None: to be looked up.
        parent: Id of the run above it.
        trial: Its trial's number.
        repeat: Which of the trial's seeds it is, from 0.
    """

    study: str = ""
    git: tuple[str | None, bool | None] | None = None
    parent: str | None = None
    trial: int = 0
    repeat: int = 0


def single_run(config: DictConfig) -> None:
    """Hydra's task: one run by itself.

    Raises:
        UserError: Bad input; where the run had begun, it is recorded as its failure.
    """
    if config.repeats != 1 or config.dry_run:
        key = "repeats" if config.repeats != 1 else "dry_run"
        raise ConfigError(key, "belongs to a study: add -m")
    hydra = HydraConfig.get()
    folder, overrides = Path(hydra.runtime.output_dir), list(hydra.overrides.task)
    plain = resolve(config)
    check(plain)
    objectives, limits = parse_objectives(plain["objective"]), parse_limits(plain["objective"])
    if not training.writes_record():
        training.train(config, training.build(config), None, folder)
        return
    store: Store = instantiate(config.tracking, "tracking")
    store.open()
    for run_id in reap(store):
        log.warning("run %s had been left by a process that is gone: marked FAILED", run_id)
    with _start(store, config, plain, overrides, Place(config.study or "")) as run:
        _record(config, folder, overrides, run)
    discard([folder])
    summary.show_single(store, run.id, objectives, limits)


def prepare_process() -> None:
    """Do once, in the process that trials are forked from, what each would do again; starts no thread and no CUDA."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train")
    check(resolve(config))
    package_versions()


def run_trial(context: TrialContext) -> dict[str, float]:
    """A trial of a study, in a process of its own: one run, or one for each of several seeds below the trial's run.

    Args:
        context: Of the trial; its payload holds `overrides`, `tracking`, `study_run` and `repeats`.

    Returns:
        The final metrics by their recorded names; means over the seeds, if there are several.
    """
    payload = context.payload
    config = compose_trial(payload)
    with open_dict(config):
        config.tracking = {**config.tracking, **payload["tracking"]}
        config.study = context.task.study
        config.threads = config.threads or context.task.slot.threads
    store: Store = instantiate(config.tracking, "tracking")
    if store.database is not None and not store.database.exists():
        raise UserError(f"{store.uri}: not on this machine: let tracking.uri name a server that all machines reach")
    commit, dirty = payload.get("git") or git_state(ROOT)
    place = Place(context.task.study, (commit, dirty), payload["study_run"], context.task.number)
    if payload["repeats"] == 1:
        inherit(context.resume, context.folder)
        metrics = _trial_run(config, store, place, context, context.folder)[1]
    else:
        for seed in range(config.seed, config.seed + payload["repeats"]):
            inherit([seed_folder(each, seed) for each in context.resume], seed_folder(context.folder, seed))
        metrics = _repeated(config, store, place, context)
    discard([context.folder, *context.resume])  # not before the outcome is committed; a failure may be tried again
    return metrics


def _repeated(config: DictConfig, store: Store, place: Place, context: TrialContext) -> dict[str, float]:
    """The same configuration under several seeds; what an interrupted trial had finished is not trained again."""
    plain, problem = _checked(config)
    tags = _tags(config, plain, place) | {"kind": "trial", "overrides": " ".join(context.payload["cell"])}
    done: list[dict[str, float]] = []
    with Run.start(store, str(config.model.get("name", "trial")), tags, _public(plain), place.parent) as trial:
        context.started(trial.id)
        if problem is not None:
            raise problem
        try:
            for repeat in range(context.payload["repeats"]):
                seed = int(config.seed) + repeat
                below = replace(place, parent=trial.id, repeat=repeat)
                run_id, metrics = context.repeat_done(seed) or _one_seed(config, store, below, seed, context)
                Run.attach(store, run_id).move_below(trial)
                done.append(metrics)
                context.repeat_ended(seed, run_id, metrics)
                discard([seed_folder(each, seed) for each in (context.folder, *context.resume)])
        except EndedEarly as early:
            trial.ends_early(early.state, str(early))
            context.give_up(early.state, "", str(early))
            return {}
        means, spreads = aggregate(done)
        trial.log(means | {f"spread/{name}": value for name, value in spreads.items()})
        trial.flush()
        _commit(context, means)
    return means


def _one_seed(
    config: DictConfig, store: Store, place: Place, seed: int, context: TrialContext
) -> tuple[str, dict[str, float]]:
    own = config.copy()
    own.seed = seed
    context.pruning = place.repeat == 0  # a configuration that has passed its rungs once is not judged by them again
    return _trial_run(own, store, place, context, seed_folder(context.folder, seed))


def _trial_run(
    config: DictConfig, store: Store, place: Place, context: TrialContext, folder: Path
) -> tuple[str, dict[str, float]]:
    """One run of a trial: its id and its final metrics."""
    folder.mkdir(parents=True, exist_ok=True)
    alone = context.payload["repeats"] == 1
    plain, problem = _checked(config)
    with _start(store, config, plain, context.payload["cell"], place) as run:
        if alone:
            context.started(run.id)
        if problem is not None:
            raise problem
        _refuse_several_devices(config)
        try:
            _record(config, folder, context.payload["cell"], run, context)
        except EndedEarly as early:
            run.ends_early(early.state, str(early))
            if not alone:
                raise
            run.flush()
            context.give_up(early.state, "", str(early))
            return run.id, {}
        metrics = {name: value for name, value in run.latest.items() if not name.startswith(PER_EPOCH)}
        if alone:
            run.flush()
            _commit(context, metrics)
    return run.id, metrics


def _commit(context: TrialContext, metrics: dict[str, float]) -> None:
    """Tell the study; a trial without one of its measures has a row like any other, but no place in the search."""
    wanted = {each.metric for each in context.objectives} | {each.metric for each in context.limits}
    lacking = sorted(wanted.intersection(NOT_FOR_ALL) - metrics.keys())
    if lacking:
        reason = f"this model has no {lacking[0]}; its row is in the comparison, off the front"
        context.give_up("pruned", "", reason)
    else:
        context.commit(metrics)


def _record(
    config: DictConfig,
    folder: Path,
    overrides: list[str],
    run: Run,
    context: TrialContext | None = None,
) -> None:
    """Train, measure and evaluate one config into its run."""
    parts = training.build(config)
    cost = static_cost(parts.classifier.net, parts.classifier.image_size)
    if context is not None:
        context.known_cost(cost)
    public = OmegaConf.merge(config, {"tracking": _public({"tracking": config.tracking})["tracking"]})
    assert isinstance(public, DictConfig)
    training.describe_inputs(public, [*map(masked, overrides)], parts, cost, run, folder)
    run.tag(split=_split_label(parts.data))
    checkpoint = training.train(
        config,
        parts,
        run,
        folder,
        resume=state if (state := folder / STATE).exists() else None,
        on_epoch=_teller(config, context),
        on_resume=context.resumed if context else None,
        keep_state_s=context.payload.get("keep_state_s") if context else None,
    )
    run.artifact(checkpoint, "checkpoint")
    training.measure(config, parts.classifier, run)
    for split in _evaluated_splits(config, parts.data, context is not None):
        training.evaluate(config, parts, split, run, folder)
    run.log({"time/tracking_s": run.seconds})


def _teller(config: DictConfig, context: TrialContext | None) -> Any:
    if context is None:
        return None
    return lambda epoch, metrics: context.epoch(epoch, config.trainer.max_epochs, metrics)


def _checked(config: DictConfig) -> tuple[dict[str, Any], UserError | None]:
    """The plain values, and what is wrong with them."""
    plain: dict[str, Any] = {}
    try:
        plain = resolve(config)
        check(plain)
    except UserError as error:
        return plain, error
    return plain, None


def _refuse_several_devices(config: DictConfig) -> None:
    """Lightning would start the other ranks by this process's command line: the whole sweep again."""
    devices = config.trainer.get("devices", 1)
    several = devices not in (1, "1", "auto", -1, "-1") and not (isinstance(devices, ListConfig) and len(devices) == 1)
    several |= devices in ("auto", -1, "-1") and config.trainer.accelerator != "cpu" and torch.cuda.device_count() > 1
    if several or "ddp" in str(config.trainer.get("strategy", "auto")) or config.trainer.get("num_nodes", 1) != 1:
        raise ConfigError(
            "trainer.devices",
            "a trial of a study trains on one device, but this asks for several: take trainer=gpu, and "
            "hydra.sweeper.n_jobs for as many trials side by side",
        )


def _start(store: Store, config: DictConfig, plain: dict[str, Any], overrides: list[str], place: Place) -> Run:
    tags = _tags(config, plain, place) | {"overrides": masked(" ".join(overrides))}
    return Run.start(store, str(config.model.get("name", "run")), tags, _public(plain), place.parent)


def _public(plain: Mapping[str, Any]) -> dict[str, Any]:
    """What may be recorded: without the password of a tracking server."""
    if not plain:
        return {}
    tracking = dict(plain["tracking"])
    if tracking.get("uri"):
        tracking["uri"] = masked(str(tracking["uri"]))
    return {**plain, "tracking": tracking}


def _evaluated_splits(config: DictConfig, data: DataModule, in_study: bool) -> list[str]:
    """Validation always; test if the config says so, or where no choice between runs can come after it."""
    chosen_later = in_study and data.has("val")
    tested = config.test is True or (config.test == "auto" and not chosen_later)
    return [name for name, wanted in (("val", True), ("test", tested)) if wanted and data.has(name)]


def _tags(config: DictConfig, plain: dict[str, Any], place: Place) -> dict[str, Any]:
    commit, dirty = place.git or git_state(ROOT)
    return {
        "kind": "run",
        "study": place.study,
        "preset": config.preset or "",
        "trial": place.trial,
        "repeat": place.repeat,
        "seed": config.seed,
        "model": config.model.get("name", ""),
        "data": config.data.get("name", ""),
        "split": config.data.get("split", ""),
        "git_commit": commit or "unknown",
        "git_dirty": dirty,
        "config_hash": config_hash(plain, WITHOUT_EFFECT),
    }


def _split_label(data: DataModule) -> str:
    leaks = data.record()["data/groups_on_two_sides"] > 0
    return f"{data.split_mode} (leaking)" if leaks else data.split_mode
