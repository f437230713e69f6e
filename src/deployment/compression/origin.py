"""The origin of a compression: its config, data and net, and the loss of quality against it."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

from src.core.config import instantiate, resolve
from src.core.errors import ConfigError, DivergedError, UserError
from src.deployment import trained
from src.deployment.compression.base import Compression, CompressionContext
from src.deployment.runtimes.eager import as_classifier
from src.deployment.runtimes.formats import open_file
from src.efficiency.profile import static_cost
from src.metrics import decision_rules, paired
from src.metrics.bootstrap import ARGMAX, gather
from src.models.structure import KIND
from src.models.weights import save_weights
from src.tracking import read
from src.tracking.run import Run
from src.tracking.store import Store
from src.training import loop, teachers
from src.training.classifier import Classifier

log = logging.getLogger(__name__)
REPORTED = "lost_on"  # tag: the split on which `compression/lost/...` is measured
# Keys of a compressed run that come from the command line. All others come from the origin.
COMMAND_LINE = (
    *("compression", "origin", "tracking", "study", "repeats"),
    *("dry_run", "test", "threads", "objective"),
)
# These come from the command line only if they are typed.
OPTIONAL = (
    *("decision", "efficiency", "data.root", "data.cache_dir"),
    *("trainer.accelerator", "trainer.compile"),
)
IGNORED = ("hydra", "sweeps", "seed")  # not in a run's config, or chosen by the origin


def is_compression(config: DictConfig) -> bool:
    """Whether a config compresses a run; ConfigError if only one of method and origin is set."""
    compressed = config.get("compression") is not None and "_target_" in config.compression
    has_origin = config.get("origin") is not None
    if compressed and not has_origin:
        needed = f"compression={config.compression.name} needs the run to compress"
        raise ConfigError("origin", f"{needed}: origin=<run id>")
    if has_origin and not compressed:
        how = "say how, such as compression=onnx_int8_static"
        raise ConfigError("compression", f"origin= is compressed: {how}")
    return compressed


def compressed_run_config(config: DictConfig, overrides: Sequence[str], store: Store) -> DictConfig:
    """The config of a compressed run: that of its origin, with some keys from the command line.

    `config` is a composed `conf/train.yaml` with a compression and its origin. If the origin is a
    trial, `config.seed` selects one of its runs; otherwise the run's seed is used.

    Returns:
        The config; its key `origin` is the id of a single run.

    Raises:
        UserError: The origin does not exist or cannot be compressed, or an override changes what
            the origin defines.
    """
    refuse_fixed_overrides(overrides)
    run_id = _origin_run_id(config, config.seed, store)
    origin = trained.recorded_config(store, run_id)
    if origin.model.get("_target_") != trained.CLASSIFIER:
        problem = "is not a network: there is nothing to compress"
        raise ConfigError("origin", f"{origin.model.get('name')} {problem}")
    # A pruned net can be compressed further. One in bfloat16 or in a file cannot.
    kind = str((origin.get("compression") or {}).get("name", "none"))
    if kind == KIND or read.artifacts(store, run_id, trained.DEPLOYED):
        problem = f"{run_id} is compressed already ({kind})"
        raise ConfigError("origin", f"{problem}; take its origin, {origin.get('origin')}")
    typed = [_key(override) for override in overrides]
    with open_dict(origin):
        for key in COMMAND_LINE:
            origin[key] = config.get(key)
        for key in OPTIONAL:
            if any(name.startswith(key) for name in typed):
                OmegaConf.update(origin, key, OmegaConf.select(config, key), merge=False)
        if "data.root" in typed and "root" in origin.data.source:
            origin.data.source.root = config.data.root
        origin.origin = run_id
        origin.preset = None  # a compressed net is not the paper's system
    return origin


def refuse_fixed_overrides(overrides: Sequence[str]) -> None:
    """Raise ConfigError for the first override of what the origin defines."""
    for key in map(_key, overrides):
        fixed = key.partition(".")[0] not in (*COMMAND_LINE, *IGNORED)
        if fixed and not key.startswith(OPTIONAL):
            exceptions = f"{', '.join(OPTIONAL)} can be set"
            raise ConfigError(key, f"is the origin's: omit it beside origin= ({exceptions})")


def free_overrides(overrides: Sequence[str]) -> list[str]:
    """The overrides of a compression that replace a value of the origin."""
    return [override for override in overrides if _key(override).startswith(OPTIONAL)]


def check_study(
    config: DictConfig, default: DictConfig, overrides: Sequence[str], store: Store
) -> None:
    """Raise UserError, before any trial, if every trial of a study would fail or ignore settings.

    `config` and `overrides` are those of one trial; `default` is composed with
    `free_overrides(overrides)` only.
    """
    refuse_fixed_overrides(overrides)
    values, defaults = resolve(config), resolve(default)
    for key in sorted(defaults.keys() - {*COMMAND_LINE, *IGNORED}):
        if values[key] != defaults[key]:
            problem = f"the study's file sets {key}, which is the origin's"
            raise ConfigError("sweeps", f"{problem}; take one that compresses")
    for seed in range(config.seed, config.seed + config.repeats):
        _origin_run_id(config, seed, store)


def _origin_run_id(config: DictConfig, seed: int, store: Store) -> str:
    """Id of the run to compress: the origin, or the run of a seed if the origin is a trial."""
    name = str(config.origin)
    try:
        origin = trained.find(store, name)
    except UserError as error:
        raise ConfigError("origin", str(error).removeprefix("run=")) from error
    runs = {net.seed: net.run_id for net in origin.nets}
    if not origin.repeated and config.repeats > 1:
        only = origin.nets[0].seed
        raise ConfigError("repeats", f"must be 1: origin={name} is a run of one seed, {only}")
    if not origin.repeated:
        return origin.run_id
    if config.repeats == 1:
        choices = ", ".join(runs.values())
        choices += f", or all by -m and repeats={len(runs)}" if len(runs) > 1 else ""
        raise ConfigError("origin", f"{name} is a trial of several seeds: name one of {choices}")
    if str(seed) not in runs:
        problem = f"{name} has no finished run of seed {seed}, only of {', '.join(runs)}"
        raise ConfigError("origin", f"{problem}: set seed and repeats")
    return runs[str(seed)]


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~").partition("@")[0].replace("/", ".")


def origin_parts(config: DictConfig, store: Store) -> loop.RunParts:
    """The data and the trained classifier of the origin, for a `compressed_run_config`.

    Raises:
        UserError: The data are not those that the origin was trained on: its test images could be
            used for training.
    """
    config_of_origin = config.copy()
    config_of_origin.compression = None
    parts = loop.build(config_of_origin, pretrained=False)
    tags, fingerprint = store.client.get_run(config.origin).data.tags, parts.data.split_fingerprint
    recorded = tags.get("split_fingerprint", fingerprint)
    if recorded != fingerprint:
        raise ConfigError(
            "origin",
            f"images, labels or split of {parts.data.name} are not those that run {config.origin} "
            f"was trained on (split {fingerprint}, there {recorded}): its test images could be "
            "trained on; give the right folder as data.root=",
        )
    parts.classifier = trained.restore(parts.classifier, store, config.origin).eval()
    return parts


def compress(
    config: DictConfig, parts: loop.RunParts, run: Run, folder: Path
) -> dict[str, float | None]:
    """Compress the classifier of `origin_parts`, replace it there, and record the model.

    `config` is that of `compressed_run_config`; `run` is the compressed model's, with its folder.

    Returns:
        By record name: multiply-adds and parameters of the net; size of the checkpoint or file. The
        peak memory of a runtime outside torch is None: only `src.benchmark` measures it.
    """
    store = run.store

    def tune(classifier: Classifier, epochs: int, lr: float) -> None:
        tuning = config.copy()
        tuning.trainer.max_epochs, tuning.optimizer.lr = epochs, lr
        if "teacher" in tuning.loss:  # `origin_parts` does not load it
            classifier.loss = loop.build_loss(tuning, parts.data)
        classifier.train_with(
            instantiate(tuning.optimizer, "optimizer"), instantiate(tuning.scheduler, "scheduler")
        )
        classifier.train()  # Lightning does not change the mode of modules
        try:
            loop.train(tuning, loop.RunParts(parts.data, classifier), run, folder / "tuning")
        except DivergedError as error:
            raise DivergedError(f"{str(error).split(';')[0]}; lower compression.lr") from error
        classifier.eval()

    def load(run_ids: Sequence[str]) -> list[Classifier]:
        if len({config.origin, *run_ids}) <= len(run_ids):
            raise ConfigError("compression.runs", "names a run twice, or the origin")
        other_nets = teachers.load(store, run_ids, parts.data, "compression.runs")
        return [other.classifier for other in other_nets]

    method: Compression = instantiate(config.compression, "compression", ("name",))
    (target := folder / trained.DEPLOYED).mkdir(parents=True, exist_ok=True)
    # A file is written before the model is evaluated: it contains the origin's decision.
    origin = trained.single(store, config.origin)
    origin.config.decision = config.get("decision", "argmax")
    description = trained.describe(store, origin)
    decision = description.decision and replace(
        description.decision,
        aim=f"{description.decision.aim}, for the net that this one was made from",
    )
    description = replace(description, run_id=run.id, decision=decision)
    context = CompressionContext(parts.classifier, parts.data, description, tune, load, target)
    model = method.compress(context)
    # what the origin's training started from
    weights = store.client.get_run(config.origin).data.tags.get("weights", "")
    run.tag(precision=model.precision, weights=weights)
    for name, value in model.facts.items():
        if isinstance(value, str):
            run.tag(**{f"compression.{name}": value})
        else:
            run.log({f"compression/{name}": value}, step=0)
    net = model.classifier
    cost: dict[str, float | None] = dict(static_cost(net.net, net.image_size))
    if model.file is None:
        checkpoint = folder / "checkpoint" / "best.ckpt"
        save_weights(net, checkpoint)
        run.artifact(checkpoint, "checkpoint")
        parts.classifier = net
    else:
        run.artifact(model.file, trained.DEPLOYED)
        threads = int(config.efficiency.get("threads", 1))  # as the reference network is timed
        parts.classifier = as_classifier(open_file(model.file, threads), net)
        size_mb = model.file.stat().st_size / 1e6
        cost |= {"efficiency/size_mb": size_mb, "efficiency/peak_memory_mb": None}
    return cost


def record_degradation(store: Store, run: Run, pairs: Sequence[tuple[str, str]]) -> None:
    """Record the loss of quality, on test if all runs were evaluated on it, else on val.

    Both decide by the rule of the compressed run, so that the loss is not that of another rule.
    `run` is the compressed run, or the trial above several seeds; `pairs` has the ids of origin and
    compressed run, one pair per seed.
    """
    for split in ("test", "val"):
        if all(read.has_predictions(store, run_id, split) for pair in pairs for run_id in pair):
            before, after = [], []
            for origin, compressed in pairs:
                after.append(read.predictions(store, compressed, split))
                rule = gather(after[-1:]).rule
                fits = rule != ARGMAX and split == "test"
                val = read.predictions(store, origin, "val") if fits else None
                frame = read.predictions(store, origin, split)
                before.append(decision_rules.with_decisions(frame, rule, val))
            run.log(paired.degradation(before, after), step=0)
            run.tag(**{REPORTED: split})
            return
    log.warning(
        "run %s: its origin has no recorded predictions, so the loss of quality is unknown", run.id
    )
