"""One run or one trial: train or compress, measure, log to MLflow (read second)."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from src.core.cli import ROOT
from src.core.config import WITHOUT_EFFECT, check, compose_trial, instantiate, resolve
from src.core.environment import config_hash, environment, git_state, package_versions
from src.core.errors import ConfigError, UserError
from src.data.module import DataModule
from src.deployment.compression import origin
from src.deployment.compression import origin as compression
from src.efficiency.profile import static_cost
from src.metrics.registry import parse_limits, parse_objectives
from src.reporting import comparison
from src.sweep.records import STATE, EndedEarly, copy_latest_state, discard_states, seed_folder
from src.sweep.repeats import aggregate
from src.sweep.trial import TrialContext
from src.tracking.run import Run, masked
from src.tracking.store import Store, reap
from src.training import figures, loop
from src.training.classifier import as_float

SHEET_IMAGES = 6  # pictures a class on the contact sheet


def record(
    config: DictConfig,
    folder: Path,
    overrides: list[str],
    run: Run,
    context: TrialContext | None = None,
) -> None:
    """Make the run that a config asks for.

    Args:
        config: A composed `conf/train.yaml`; of a compression, with all that its origin says.
        folder: The run's own.
        overrides: That it was composed with, for the record.
        run: Where to write.
        context: Of the trial, in a study.
    """
    if origin.is_compression(config):
        _compressed(config, folder, overrides, run, context)
    else:
        _trained(config, folder, overrides, run, context)


def public(plain: Mapping[str, Any]) -> dict[str, Any]:
    """What may be recorded of plain values: without the password of a tracking server."""
    if not plain:
        return {}
    tracking = dict(plain["tracking"])
    if tracking.get("uri"):
        tracking["uri"] = masked(str(tracking["uri"]))
    return {**plain, "tracking": tracking}


def _trained(
    config: DictConfig,
    folder: Path,
    overrides: list[str],
    run: Run,
    context: TrialContext | None = None,
) -> None:
    """Train, measure and evaluate one config into its run."""
    parts = loop.build(config)
    cost = static_cost(parts.classifier.net, parts.classifier.image_size)
    if context is not None:
        context.known_cost(cost)
    describe_inputs(_public_config(config), [*map(masked, overrides)], parts, cost, run, folder)
    run.tag(split=_split_label(parts.data))
    checkpoint = loop.train(
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
    loop.measure(config, parts.classifier, run)
    for split in _evaluated_splits(config, parts.data, context is not None):
        loop.evaluate(config, parts, split, run, folder)
    run.log({"time/tracking_s": run.seconds})


def _compressed(
    config: DictConfig,
    folder: Path,
    overrides: list[str],
    run: Run,
    context: TrialContext | None = None,
) -> None:
    """Compress a trained net, measure and evaluate what comes of it into a run of its own."""
    parts = compression.origin_parts(config, run.store)
    describe_inputs(_public_config(config), [*map(masked, overrides)], parts, {}, run, folder)
    run.tag(
        split=_split_label(parts.data), weights=origin.initial_weights(run.store, config.origin)
    )
    found = compression.compress(config, parts, run.store, run, folder)
    cost = compression.compressed_cost(found)
    if context is not None:
        context.known_cost({name: value for name, value in cost.items() if value is not None})
    loop.measure(config, parts.classifier, run, cost)
    for split in _evaluated_splits(config, parts.data, context is not None):
        loop.evaluate(config, parts, split, run, folder)
    compression.record_degradation(run.store, run, [(config.origin, run.id)])
    run.log({"time/tracking_s": run.seconds})


def describe_inputs(
    config: DictConfig,
    overrides: list[str],
    parts: loop.RunParts,
    cost: Mapping[str, float],
    run: Run,
    folder: Path,
) -> None:
    """Record what goes in, before anything is trained: config, environment, data, static cost, contact sheet."""
    run.text(OmegaConf.to_yaml(config, resolve=True), "config.yaml")
    run.text("\n".join(overrides) + "\n", "overrides.txt")
    run.text(json.dumps(environment(), indent=2), "environment.json")
    data = parts.data
    run.log({key: float(value) for key, value in data.record().items()}, step=0)
    run.log(cost, step=0)
    run.tag(
        data_fingerprint=data.cache.fingerprint,
        split_fingerprint=data.split_fingerprint,
        grouped_by=data.grouped_by,
        weights=getattr(parts.classifier.net, "loaded_weights", "random"),
    )
    sheet = folder / "contact_sheet.png"
    draw_contact_sheet(data).save(sheet, compress_level=1)  # packing it tightly costs a trial 40 ms
    run.artifact(sheet, "figures")
    if data.cache.unreadable:
        run.table(pd.DataFrame(data.cache.unreadable, columns=["path", "reason"]), "unreadable.csv")


def draw_contact_sheet(data: DataModule) -> Any:
    """A picture of what the net is fed: some training images of each class, before and after augmentation."""
    before, after = {}, {}
    rows = data.rows("train")
    for label, name in enumerate(data.classes):
        chosen = rows[data.labels[rows] == label][:SHEET_IMAGES]
        images = torch.from_numpy(data.cache.images[chosen])
        fed = as_float(images.permute(0, 3, 1, 2))
        if data.augment is not None:
            fed = data.augment(fed)
        before[f"{name} ({data.class_counts[label]})"] = images.numpy()
        after[f"{name} ({data.class_counts[label]})"] = (
            fed.mul(255).round().byte().permute(0, 2, 3, 1).numpy()
        )
    return figures.draw(before, after)


def _public_config(config: DictConfig) -> DictConfig:
    """What may be recorded of a config: without the password of a tracking server."""
    found = OmegaConf.merge(config, {"tracking": public({"tracking": config.tracking})["tracking"]})
    assert isinstance(found, DictConfig)
    return found


def _teller(config: DictConfig, context: TrialContext | None) -> Any:
    if context is None:
        return None
    return lambda epoch, metrics: context.epoch(epoch, config.trainer.max_epochs, metrics)


def _evaluated_splits(config: DictConfig, data: DataModule, in_study: bool) -> list[str]:
    """Validation always; test if the config says so, or where no choice between runs can come after it."""
    chosen_later = in_study and data.has("val")
    tested = config.test is True or (config.test == "auto" and not chosen_later)
    return [name for name, wanted in (("val", True), ("test", tested)) if wanted and data.has(name)]


def _split_label(data: DataModule) -> str:
    leaks = data.record()["data/groups_on_two_sides"] > 0
    return f"{data.split_mode} (leaking)" if leaks else data.split_mode


log = logging.getLogger(__name__)
PER_EPOCH = ("val/", "train/", "data/")  # of these the study needs no copy
NOT_FOR_ALL = ("efficiency/flops",)  # what some models have none of, see src.efficiency.profile


@dataclass(frozen=True)
class RunContext:
    """Where in a study a run stands.

    Attributes:
        study: The study's name; empty for a run of its own.
        git: Commit and whether files differ from it, as the study's owner found them; None: to be
            looked up.
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
    compressed = origin.is_compression(config)
    if not loop.writes_record():
        if compressed:
            raise ConfigError(
                "trainer.devices", "a compression runs in one process: start it without torchrun"
            )
        loop.train(config, loop.build(config), None, folder)
        return
    store: Store = instantiate(config.tracking, "tracking")
    store.open()
    for run_id in reap(store):
        log.warning("run %s had been left by a process that is gone: marked FAILED", run_id)
    if compressed:
        config = origin.compressed_run_config(config, overrides, store)
        check(plain := resolve(config))
    with _start(
        store, config, plain, overrides, RunContext(config.study or "", parent=config.get("origin"))
    ) as run:
        record(config, folder, overrides, run)
    discard_states([folder])
    comparison.show_single(store, run.id, objectives, limits)


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
        raise UserError(
            f"{store.uri}: not on this machine: let tracking.uri name a server that all machines reach"
        )
    commit, dirty = payload.get("git") or git_state(ROOT)
    place = RunContext(
        context.task.study, (commit, dirty), payload["study_run"], context.task.number
    )
    if payload["repeats"] == 1:
        copy_latest_state(context.resume, context.folder)
        metrics = _trial_run(config, store, place, context, context.folder)[1]
    else:
        for seed in range(config.seed, config.seed + payload["repeats"]):
            copy_latest_state(
                [seed_folder(each, seed) for each in context.resume],
                seed_folder(context.folder, seed),
            )
        metrics = _repeated(config, store, place, context)
    discard_states(
        [context.folder, *context.resume]
    )  # not before the outcome is committed; a failure may be tried again
    return metrics


def _repeated(
    config: DictConfig, store: Store, place: RunContext, context: TrialContext
) -> dict[str, float]:
    """The same configuration under several seeds; what an interrupted trial had finished is not trained again."""
    own, plain, problem = _checked(config, context.payload["overrides"], store)
    tags = _tags(own, plain, place) | {
        "kind": "trial",
        "overrides": " ".join(context.payload["cell"]),
    }
    if problem is None and origin.is_compression(config):
        tags["origin"] = origin.origin_trial(store, config)
    done: list[dict[str, float]] = []
    pairs: list[tuple[str, str]] = []  # of a compression: origin and compressed run of each seed
    with Run.start(
        store, str(own.model.get("name", "trial")), tags, public(plain), place.parent
    ) as trial:
        context.started(trial.id)
        if problem is not None:
            raise problem
        try:
            for repeat in range(context.payload["repeats"]):
                seed = int(config.seed) + repeat
                below = replace(place, parent=trial.id, repeat=repeat)
                run_id, metrics = context.repeat_done(seed) or _one_seed(
                    config, store, below, seed, context
                )
                Run.attach(store, run_id).move_below(trial)
                if origin.is_compression(config):
                    pairs.append((origin.origin_of(store, run_id), run_id))
                done.append(metrics)
                context.repeat_ended(seed, run_id, metrics)
                discard_states([seed_folder(each, seed) for each in (context.folder, *context.resume)])
        except EndedEarly as early:
            trial.ends_early(early.state, str(early))
            context.give_up(early.state, "", str(early))
            return {}
        means, spreads = aggregate(done)
        trial.log(means | {f"spread/{name}": value for name, value in spreads.items()})
        if pairs:
            compression.record_degradation(store, trial, pairs)
        trial.flush()
        _commit(context, means)
    return means


def _one_seed(
    config: DictConfig, store: Store, place: RunContext, seed: int, context: TrialContext
) -> tuple[str, dict[str, float]]:
    own = config.copy()
    own.seed = seed
    context.pruning = (
        place.repeat == 0
    )  # a configuration that has passed its rungs once is not judged by them again
    return _trial_run(own, store, place, context, seed_folder(context.folder, seed))


def _trial_run(
    config: DictConfig, store: Store, place: RunContext, context: TrialContext, folder: Path
) -> tuple[str, dict[str, float]]:
    """One run of a trial: its id and its final metrics."""
    folder.mkdir(parents=True, exist_ok=True)
    alone = context.payload["repeats"] == 1
    config, plain, problem = _checked(config, context.payload["overrides"], store)
    with _start(store, config, plain, context.payload["cell"], place) as run:
        if alone:
            context.started(run.id)
        if problem is not None:
            raise problem
        _refuse_several_devices(config)
        try:
            record(config, folder, context.payload["cell"], run, context)
        except EndedEarly as early:
            run.ends_early(early.state, str(early))
            if not alone:
                raise
            run.flush()
            context.give_up(early.state, "", str(early))
            return run.id, {}
        metrics = {
            name: value for name, value in run.latest.items() if not name.startswith(PER_EPOCH)
        }
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


def _checked(
    config: DictConfig, overrides: Sequence[str], store: Store
) -> tuple[DictConfig, dict[str, Any], UserError | None]:
    """The run's own config (of a compression mostly its origin's), its plain values, and what is wrong with them."""
    plain: dict[str, Any] = {}
    try:
        check(plain := resolve(config))
        if origin.is_compression(config):
            config = origin.compressed_run_config(config, overrides, store)
            check(plain := resolve(config))
    except UserError as error:
        return config, plain, error
    return config, plain, None


def _refuse_several_devices(config: DictConfig) -> None:
    """Lightning would start the other ranks by this process's command line: the whole sweep again."""
    devices = config.trainer.get("devices", 1)
    several = devices not in (1, "1", "auto", -1, "-1") and not (
        isinstance(devices, ListConfig) and len(devices) == 1
    )
    several |= (
        devices in ("auto", -1, "-1")
        and config.trainer.accelerator != "cpu"
        and torch.cuda.device_count() > 1
    )
    if (
        several
        or "ddp" in str(config.trainer.get("strategy", "auto"))
        or config.trainer.get("num_nodes", 1) != 1
    ):
        raise ConfigError(
            "trainer.devices",
            "a trial of a study trains on one device, but this asks for several: take trainer=gpu, and "
            "hydra.sweeper.n_jobs for as many trials side by side",
        )


def _start(
    store: Store, config: DictConfig, plain: dict[str, Any], overrides: list[str], place: RunContext
) -> Run:
    tags = _tags(config, plain, place) | {"overrides": masked(" ".join(overrides))}
    return Run.start(store, str(config.model.get("name", "run")), tags, public(plain), place.parent)


def _tags(config: DictConfig, plain: dict[str, Any], place: RunContext) -> dict[str, Any]:
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
        **_origin_tags(config),
    }


def _origin_tags(config: DictConfig) -> dict[str, str]:
    return (
        {"origin": config.origin, "compression": config.compression.name}
        if origin.is_compression(config)
        else {}
    )
