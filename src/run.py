"""One run or one trial: train or compress, evaluate, measure, log to MLflow (read second)."""

import contextlib
import hashlib
import json
import logging
import os
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from src.core.cli import CONF, ROOT, say
from src.core.config import (
    WITHOUT_EFFECT,
    check,
    compose_trial,
    instantiate,
    is_own,
    resolve,
    search_path,
)
from src.core.environment import (
    config_hash,
    environment,
    git_state,
    package_versions,
    uncommitted_changes,
)
from src.core.errors import ConfigError, UserError
from src.data.source import SPLITS
from src.deployment import trained
from src.deployment.compression import origin
from src.efficiency.profile import static_cost
from src.metrics.registry import parse_limits, parse_objectives
from src.models.weights import load_weights
from src.reporting import comparison, style
from src.sweep.records import STATE, EndedEarly, copy_latest_state, discard_states, seed_folder
from src.sweep.repeats import aggregate
from src.sweep.trial import TrialContext
from src.tracking import read, views
from src.tracking.run import Run
from src.tracking.store import Store, reap
from src.training import figures, loop
from src.training.classifier import Classifier

log = logging.getLogger(__name__)
PER_EPOCH = ("val/", "train/", "data/")  # the study needs no copy of these
TRAINING_TAGS = ("chosen_by", "features", "teachers")
GREY = {views.COLOUR: style.PALE}  # of a trial in MLflow, until it is on the front
NOT_FOR_ALL = ("efficiency/flops",)  # some models have none, see src.efficiency.profile


@dataclass(frozen=True)
class RunContext:
    """The position of a run in a study: trial, seed within it, and id of the parent run in MLflow.

    `study` is empty for a single run. `git` is the commit and whether files differ from it; None:
    looked up.
    """

    study: str = ""
    git: tuple[str | None, bool | None] | None = None
    parent: str | None = None
    trial: int = 0
    repeat: int = 0
    own_config: bool = False  # composed from files that are not this project's


def single_run(
    config: DictConfig, folder: Path | None = None, overrides: Sequence[str] | None = None
) -> str | None:
    """Train or compress one run, log it, and print its metrics.

    The default `folder` for temporary files and the default overrides, for the record, are Hydra's.

    Returns:
        The run's id in MLflow; None on ranks of a distributed run that do not log.

    Raises:
        UserError: Bad input. If the run had started, it is logged as failed.
    """
    if config.repeats != 1 or config.dry_run:
        key = "repeats" if config.repeats != 1 else "dry_run"
        raise ConfigError(key, "belongs to a study: add -m")
    folder = folder or Path(HydraConfig.get().runtime.output_dir)
    if overrides is None:  # as typed: the list of Hydra would resolve interpolations in it
        typed = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
        overrides = cast("list[str]", typed)
    plain = resolve(config)
    check(plain)
    refuse_devices(config, is_trial=False)
    objectives, limits = parse_objectives(plain["objective"]), parse_limits(plain["objective"])
    compressed = origin.is_compression(config)
    ranks = {os.environ.get(name, "0") for name in ("LOCAL_RANK", "NODE_RANK")}
    if ranks != {"0"}:  # of a distributed run, the first rank logs
        if compressed:
            problem = "a compression runs in one process: start it without torchrun"
            raise ConfigError("trainer.devices", problem)
        loop.train(config, loop.build(config), None, folder)
        return None
    store = open_store(config)
    if compressed:
        config = origin.compressed_run_config(config, overrides, store)
        check(plain := resolve(config))
    context = RunContext(config.study or "", parent=config.get("origin"))
    if HydraConfig.initialized():
        composed = HydraConfig.get()
        is_own_config = is_own(str(composed.job.config_name), search_path(composed))
        context = replace(context, own_config=is_own_config)
        store.retry.seconds = float(composed.sweeper.get("storage_wait_s", 0))
    nodes = [config.model, config.data] + [config.compression] * compressed
    name = " ".join(str(node.get("name", "")) for node in nodes)
    with _start(store, config, plain, overrides, context, name) as run:
        try:
            record(config, folder, overrides, run)
        except (KeyboardInterrupt, SystemExit):
            say(f"stopped: run {run.id} is KILLED; the same command starts another")
            raise
    discard_states([folder])
    comparison.show_single(store, run.id, objectives, limits)
    return run.id


def open_store(config: DictConfig) -> Store:
    """Open the run store of a config; runs of processes that have died are marked as failed."""
    store: Store = instantiate(config.tracking, "tracking")
    store.open()
    for run_id in reap(store):
        log.warning("run %s was not closed by its process: marked FAILED", run_id)
    return store


def record(
    config: DictConfig,
    folder: Path,
    overrides: Sequence[str],
    run: Run,
    context: TrialContext | None = None,
) -> None:
    """Train or compress as the config says, and log everything to a run.

    The config of a compression has the origin's settings. `folder` is for temporary files, the
    overrides are for the record, and `context` is that of the trial, in a study.
    """
    compressed, static = origin.is_compression(config), dict[str, float]()
    cost: dict[str, float | None] = {}
    if compressed:
        parts = origin.origin_parts(config, run.store)
        describe_inputs(config, overrides, parts, run, folder)
        cost = origin.compress(config, parts, run, folder)
        if context is not None:
            context.known_cost({name: value for name, value in cost.items() if value is not None})
    else:
        parts = loop.build(config, shared=context.shared if context else None)
        static = static_cost(parts.classifier.net, parts.classifier.image_size)
        if context is not None:
            context.known_cost(static)
        run.log(static, step=0)
        describe_inputs(config, overrides, parts, run, folder)
        options: dict[str, Any] = {}
        if context is not None:
            report, epochs = context.epoch, config.trainer.max_epochs
            options["on_epoch"] = lambda epoch, metrics: report(epoch, epochs, metrics)
            options["on_resume"] = context.resumed
            options["keep_state_s"] = context.payload.get("keep_state_s")
        finished = equal_run(run) if config.get("reuse") else None
        if finished is not None:
            take_over(finished, run, parts.classifier, options.get("on_epoch"))
        else:
            state = folder / STATE
            options["resume"] = state if state.exists() else None
            run.artifact(loop.train(config, parts, run, folder, **options), "checkpoint")
    timed = context.payload.get("timed") if context and not compressed else None
    profile = parts.profile or loop.measure(config, parts.classifier, cost, timed)
    loop.log_cost(run, profile)
    if context is not None:
        # a net without a cost before its training has another one with another seed
        context.shared = (parts.data, profile) if static else None
    # the test split is used only if no choice between runs can follow
    is_chosen_later = context is not None and parts.data.has("val")
    test = config.test is True or (config.test == "auto" and not is_chosen_later)
    for split in ("val", "test") if test else ("val",):
        if parts.data.has(split):
            loop.evaluate(config, parts, split, run, folder)
    if compressed:
        origin.record_degradation(run.store, run, [(config.origin, run.id)])
    run.log({"system/tracking_s": run.seconds})


def equal_run(run: Run) -> str | None:
    """Id of a finished training with the configuration, seed, data and commit of this run.

    None also where the code has uncommitted changes: that of the other run may differ.
    """
    tags = run.store.client.get_run(run.id).data.tags
    if tags["git_dirty"] != "false":
        log.warning("reuse=true: the code has uncommitted changes, so that no training is reused")
        return None
    names = ("config_hash", "git_commit", "git_dirty", "data_fingerprint", "split_fingerprint")
    equal = [f"tags.{name} = '{tags[name]}'" for name in names]
    equal += ["attributes.status = 'FINISHED'", "tags.trial_state = 'complete'"]
    for other in run.store.search(" and ".join(equal)):
        files = read.artifacts(run.store, other.info.run_id, "checkpoint")
        # a net that is fitted without epochs, or was compressed, has no epoch
        if trained.CHECKPOINT in files and "best/epoch" in other.data.metrics:
            return str(other.info.run_id)
    return None


def take_over(
    finished: str,
    run: Run,
    classifier: Classifier,
    on_epoch: Callable[[int, dict[str, float]], None] | None,
) -> None:
    """Load the weights of a finished training, and log its curves, times and files to `run`.

    Its epochs are reported to the study, so that the pruner compares other trials with them. This
    trial is not stopped early: its result exists. Nothing of the test split is taken over.
    """
    store = run.store
    recorded, epochs = store.client.get_run(finished).data, dict[int, dict[str, float]]()
    for name in recorded.metrics:
        if name.startswith((*PER_EPOCH[:2], "time/", "best/epoch")) and name != "time/test_s":
            for point in store.client.get_metric_history(finished, name):
                run.log({name: point.value}, point.step)
                epochs.setdefault(point.step, {})[name] = point.value
    if on_epoch is not None:
        steps = [step for step in sorted(epochs) if "val/loss" in epochs[step]]
        for epoch, step in enumerate(steps, 1):
            with contextlib.suppress(EndedEarly):
                on_epoch(epoch, epochs[step])
    for name in (trained.CHECKPOINT, "figures/learning_curves.png"):
        run.artifact(read.artifact(store, finished, name), name.partition("/")[0])
    load_weights(classifier, read.artifact(store, finished, trained.CHECKPOINT))
    tags = {name: recorded.tags[name] for name in TRAINING_TAGS if name in recorded.tags}
    run.tag(**tags, reused_from=recorded.tags.get("reused_from", finished))
    log.info("reuse=true: the training of run %s is taken over", finished)


def describe_inputs(
    config: DictConfig, overrides: Sequence[str], parts: loop.RunParts, run: Run, folder: Path
) -> None:
    """Log the inputs before anything is trained: config, environment, data, sheets of images."""
    run.text(OmegaConf.to_yaml(resolve(config)), "config.yaml")
    run.text("\n".join(overrides) + "\n", "overrides.txt")
    run.text(json.dumps(environment(), indent=2), "environment.json")
    data, split_fingerprint = parts.data, parts.data.split_fingerprint
    about = {key: float(value) for key, value in data.record().items()}
    run.log(about, step=0)
    leaks = about["data/groups_on_two_sides"] > 0
    run.tag(
        split=f"{data.split_mode} (leaking)" if leaks else data.split_mode,
        data_fingerprint=data.cache.fingerprint,
        split_fingerprint=split_fingerprint,
        grouped_by=data.grouped_by,
        data_share=data.share,
        weights=getattr(parts.classifier.net, "loaded_weights", "random"),
    )
    counts = {split: data.counts(split) for split in SPLITS if data.has(split)}
    source = str(config.data.get("root") or config.data.source["_target_"])
    run.inputs(data.name, source, f"{data.cache.fingerprint} {split_fingerprint}", counts)
    sheets = (figures.contact_sheet, figures.augmentation_sheet)
    for draw in sheets if parts.profile is None else ():  # else another seed has drawn them
        sheet = folder / f"{draw.__name__}.png"
        draw(data).save(sheet, compress_level=1)  # a higher level takes 40 ms
        run.artifact(sheet, "figures")
    if data.cache.unreadable:
        run.table(pd.DataFrame(data.cache.unreadable, columns=["path", "reason"]), "unreadable.csv")


def prepare_process() -> None:
    """Do once, before trials are forked, what each would repeat; starts no thread and no CUDA."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train")
    check(resolve(config))
    package_versions()


def run_trial(context: TrialContext) -> dict[str, float]:
    """Run a trial of a study in its own process: one run, or one for each of several seeds.

    Returns the final metrics by their recorded names; of several seeds, their means.
    """
    payload = context.payload
    config = compose_trial(payload)
    with open_dict(config):
        config.tracking = {**config.tracking, **payload["tracking"]}
        config.study = context.task.study
        config.threads = config.threads or context.task.slot.threads
    store: Store = instantiate(config.tracking, "tracking")
    store.retry.seconds = float(payload.get("storage_wait_s", 0))
    if store.database is not None and not store.database.exists():
        problem = "not on this machine: set tracking.uri to a server that all machines reach"
        raise UserError(f"{store.uri}: {problem}")
    git = payload.get("git") or git_state(ROOT)
    own_config = is_own(payload.get("config_name", "train"), payload.get("search_path", ()))
    study, number = context.task.study, context.task.number
    position = RunContext(study, git, payload["study_run"], number, own_config=own_config)
    if payload["repeats"] == 1:
        copy_latest_state(context.resume, context.folder)
        metrics = _trial_run(config, store, position, context, context.folder)[1]
    else:
        metrics = _repeated(config, store, position, context)
    # after the outcome is committed: a failed trial may be retried from its state
    discard_states([context.folder, *context.resume])
    return metrics


def _repeated(
    config: DictConfig, store: Store, position: RunContext, context: TrialContext
) -> dict[str, float]:
    """Run several seeds of one configuration; seeds that an interrupted trial finished are kept."""
    seeds = range(int(config.seed), int(config.seed) + context.payload["repeats"])
    for seed in seeds:
        earlier = [seed_folder(folder, seed) for folder in context.resume]
        copy_latest_state(earlier, seed_folder(context.folder, seed))
    adopted, plain, problem = _checked(config, context.payload["overrides"], store)
    compressed = problem is None and origin.is_compression(config)
    tags = {"origin": trained.find(store, str(config.origin)).run_id} if compressed else {}
    cell = context.payload["cell"]
    metrics: list[dict[str, float]] = []
    pairs: list[tuple[str, str]] = []  # origin and compressed run of each seed
    name = trial_name(adopted, cell, position.trial)
    with _start(store, adopted, plain, cell, position, name, "trial", **tags | GREY) as trial:
        context.started(trial.id)
        if problem is not None:
            raise problem
        are_alike, needs_more = seeds_are_alike(config), True
        try:
            for repeat, seed in enumerate(seeds):
                if not needs_more and context.repeat_done(seed) is None:
                    break
                context.pruning = repeat == 0  # rungs judge a configuration only once
                below = replace(position, parent=trial.id, repeat=repeat)
                seeded = config.copy()
                seeded.seed = seed
                run_id, values = context.repeat_done(seed) or _trial_run(
                    seeded, store, below, context, seed_folder(context.folder, seed)
                )
                context.shared = context.shared if are_alike else None
                Run.attach(store, run_id).move_below(trial)
                if compressed:
                    pairs.append((store.client.get_run(run_id).data.tags["origin"], run_id))
                metrics.append(values)
                needs_more = context.repeat_ended(seed, run_id, values)
                folders = (context.folder, *context.resume)
                discard_states([seed_folder(folder, seed) for folder in folders])
        except EndedEarly as early:
            trial.ends_early(early.state, str(early))
            trial.log(context.reached)
            context.give_up(early.state, "", str(early))
            return {}
        means, spreads = aggregate(metrics)
        if context.shared is not None:  # measured with one seed
            spreads = {n: v for n, v in spreads.items() if n not in context.shared[1].metrics}
        trial.log(means | {f"spread/{name}": value for name, value in spreads.items()})
        if pairs:
            origin.record_degradation(store, trial, pairs)
        trial.flush()
        _commit(context, means)
    return means


def seeds_are_alike(config: DictConfig) -> bool:
    """Whether the seeds of a trial differ in nothing else, and so share data and cost."""
    other = config.copy()
    other.seed = config.seed + 1
    return resolve(config, ("seed",)) == resolve(other, ("seed",))


def _trial_run(
    config: DictConfig, store: Store, position: RunContext, context: TrialContext, folder: Path
) -> tuple[str, dict[str, float]]:
    """One run of a trial: its id and its final metrics."""
    folder.mkdir(parents=True, exist_ok=True)
    has_one_seed = context.payload["repeats"] == 1
    cell = context.payload["cell"]
    config, plain, problem = _checked(config, context.payload["overrides"], store)
    seed = f"#{position.trial} seed {config.seed}"
    name = trial_name(config, cell, position.trial) if has_one_seed else seed
    with _start(store, config, plain, cell, position, name, **GREY) as run:
        if has_one_seed:
            context.started(run.id)
        if problem is not None:
            raise problem
        refuse_devices(config, is_trial=True)
        try:
            record(config, folder, cell, run, context)
        except EndedEarly as early:
            run.ends_early(early.state, str(early))
            run.log(context.reached)
            if not has_one_seed:
                raise
            run.flush()
            context.give_up(early.state, "", str(early))
            return run.id, {}
        metrics = {k: v for k, v in run.latest.items() if not k.startswith(PER_EPOCH)}
        if has_one_seed:
            run.flush()
            _commit(context, metrics)
    return run.id, metrics


def _commit(context: TrialContext, metrics: dict[str, float]) -> None:
    """Commit the outcome; a trial whose model lacks an objective does not count in the search."""
    needed = {item.metric for item in context.objectives} | {item.metric for item in context.limits}
    missing = sorted(needed.intersection(NOT_FOR_ALL) - metrics.keys())
    if missing:
        reason = f"this model has no {missing[0]}; it is in the comparison, but not on the front"
        context.give_up("pruned", "", reason)
    else:
        context.commit(metrics)


def _checked(
    config: DictConfig, overrides: Sequence[str], store: Store
) -> tuple[DictConfig, dict[str, Any], UserError | None]:
    """The config (of a compression mostly its origin's), its plain values, and what is wrong."""
    plain: dict[str, Any] = {}
    try:
        check(plain := resolve(config))
        if origin.is_compression(config):
            config = origin.compressed_run_config(config, overrides, store)
            check(plain := resolve(config))
    except UserError as error:
        return config, plain, error
    return config, plain, None


def refuse_devices(config: DictConfig, is_trial: bool) -> None:
    """Refuse more devices than there are, and of a trial several: ranks would start the study."""
    trainer, devices = config.trainer, config.trainer.get("devices", 1)
    n_gpus = 0 if trainer.accelerator == "cpu" else torch.cuda.device_count()
    available = n_gpus or os.cpu_count() or 1
    count = len(devices) if isinstance(devices, ListConfig) else devices
    if count in ("auto", -1, "-1"):
        count = max(n_gpus, 1)
    count = int(count) if str(count).isdecimal() else 1  # Lightning refuses other texts
    if count > available:
        problem = f"must be at most {available} on this machine, but got {devices}"
        raise ConfigError("trainer.devices", problem)
    is_distributed = "ddp" in str(trainer.get("strategy")) or trainer.get("num_nodes", 1) != 1
    if is_trial and (count > 1 or is_distributed):
        problem = "a trial of a study trains on one device, but this asks for several: use "
        problem += "trainer=gpu, and hydra.sweeper.n_jobs for parallel trials"
        raise ConfigError("trainer.devices", problem)


def trial_name(config: DictConfig, overrides: Sequence[str], number: int) -> str:
    """Such as "#12 custom width=32 lr=0.00145": number, model, and what was swept, shortened."""
    swept = [text for text in overrides if not text.startswith("model=")]
    words = [re.sub(r"^\+*(~?)(?:[^=]*\.)?", r"\1", text) for text in swept]
    name = " ".join([f"#{number}", str(config.model.get("name", "")), *words])
    name = re.sub(r"\d+\.\d{4,}(e-?\d+)?", lambda value: f"{float(value[0]):.3g}", name)
    return textwrap.shorten(name, 120, placeholder=" ...")


def _start(
    store: Store,
    config: DictConfig,
    plain: dict[str, Any],
    overrides: Sequence[str],
    position: RunContext,
    name: str,
    kind: str = "run",
    **more: str,
) -> Run:
    commit, dirty = position.git or git_state(ROOT)
    tags = {
        "kind": kind,
        "overrides": " ".join(overrides),
        "study": position.study,
        "preset": config.preset or "",
        "trial": position.trial,
        "repeat": position.repeat,
        "seed": config.seed,
        "model": config.model.get("name", ""),
        "data": config.data.get("name", ""),
        "split": config.data.get("split", ""),
        "git_commit": commit or "unknown",
        "git_dirty": dirty,
        "config_hash": config_hash(plain, WITHOUT_EFFECT),
    }
    if position.own_config:
        tags["own_config"] = True
    if origin.is_compression(config):
        tags |= {"origin": config.origin, "compression": config.compression.name}
    run = Run.start(store, name, tags | more, plain, position.parent)
    if dirty and not position.git:
        try:
            record_changes(run)
        except BaseException as error:  # nobody has entered the run yet, who would end it
            run.__exit__(type(error), error, error.__traceback__)
            raise
    return run


def record_changes(run: Run) -> None:
    """Log the uncommitted changes of the sources; a resumed study may have several such files."""
    patch = uncommitted_changes(ROOT)
    run.text(patch, f"uncommitted-{hashlib.sha256(patch.encode()).hexdigest()[:8]}.patch")
