"""The run that is compressed; the job."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

from src.core.config import check_targets, instantiate, resolve
from src.core.errors import ConfigError, UserError
from src.data.module import DataModule
from src.deployment import trained
from src.deployment.compression.base import CompressedModel, Compression, Tune
from src.deployment.description import Description
from src.deployment.runtimes.eager import as_classifier
from src.deployment.runtimes.files import open_file
from src.deployment.trained import DEPLOYED, describe, restore, single
from src.efficiency.profile import static_cost
from src.metrics import paired
from src.models.precision import KIND
from src.tracking import read
from src.tracking import read as history
from src.tracking.run import Run
from src.tracking.store import Store
from src.training import loop
from src.training.checkpoint import save_weights
from src.training.classifier import Classifier

# what the command line decides; all else is the origin's
OWN = (
    "compression",
    "origin",
    "tracking",
    "study",
    "repeats",
    "dry_run",
    "test",
    "threads",
    "objective",
)
ALSO = (
    "efficiency",
    "data.root",
    "data.cache_dir",
    "trainer.accelerator",
)  # only if they are typed
PASSED = ("hydra", "sweeps", "seed")  # no part of a run's config, or told by the origin


def is_compression(config: DictConfig) -> bool:
    """Whether a config asks for a compression.

    Raises:
        ConfigError: It names a compression without an origin, or the reverse.
    """
    asked = config.get("compression") is not None and "_target_" in config.compression
    origin = config.get("origin") is not None
    if asked and not origin:
        raise ConfigError(
            "origin",
            f"compression={config.compression.name} needs the run to compress: origin=<run id>",
        )
    if origin and not asked:
        raise ConfigError(
            "compression", "origin= is compressed: say how, such as compression=onnx_int8_static"
        )
    return asked


def compressed_run_config(config: DictConfig, overrides: Sequence[str], store: Store) -> DictConfig:
    """The config of a compressed run: its origin's, with the compression, and where it is recorded, from `config`.

    Args:
        config: A composed `conf/train.yaml` that names a compression and its origin. Of an origin
            of several seeds, `config.seed` says which; of a single run the seed is taken over.
        overrides: That it was composed with.
        store: That holds the origin.

    Returns:
        `origin` is then the id of the run itself, a single one.

    Raises:
        UserError: No such origin, or one without a trained net; an override of what is the origin's
            to say.
    """
    refuse_fixed_overrides(overrides)
    run_id = _run_id(config, config.seed, store)
    typed = [_key(override) for override in overrides]
    found = OmegaConf.load(read.artifact(store, run_id, "config.yaml"))
    assert isinstance(found, DictConfig)
    check_targets(found)
    if found.model.get("_target_") != "src.training.classifier.Classifier":
        raise ConfigError(
            "origin", f"{found.model.get('name')} is no network: there is nothing to compress"
        )
    _refuse_compressed(found, run_id, store)
    with open_dict(found):
        for key in OWN:
            found[key] = config.get(key)
        for key in ALSO:
            if any(each.startswith(key) for each in typed):
                OmegaConf.update(found, key, OmegaConf.select(config, key), merge=False)
        if "data.root" in typed and "root" in found.data.source:
            found.data.source.root = config.data.root
        found.origin = run_id
        found.preset = None  # a system of a paper it is no more
    return found


def refuse_fixed_overrides(overrides: Sequence[str]) -> None:
    """Refuse overrides of what is the origin's to say.

    Args:
        overrides: Of a compression, swept ones too.

    Raises:
        ConfigError: The first of them.
    """
    for key in map(_key, overrides):
        if key.partition(".")[0] not in (*OWN, *PASSED) and not key.startswith(ALSO):
            raise ConfigError(
                key, f"is the origin's: leave it out beside origin= ({', '.join(ALSO)} can be set)"
            )


def free_overrides(overrides: Sequence[str]) -> list[str]:
    """Those of a compression's overrides that are neither the origin's to say nor of the compression itself."""
    return [each for each in overrides if _key(each).startswith(ALSO)]


def check_study(
    config: DictConfig, default: DictConfig, overrides: Sequence[str], store: Store
) -> None:
    """Refuse at once what every trial of a study would be refused for, and what each would pass over.

    Args:
        config: Of one of its trials.
        default: Composed with nothing but `free_overrides(overrides)`.
        overrides: Of that trial.
        store: That holds the origin.

    Raises:
        UserError: As `compressed_run_config`, for any of the seeds; or the study's file sets what is the origin's.
    """
    refuse_fixed_overrides(overrides)
    own, plain = resolve(config), resolve(default)
    for key in sorted(plain.keys() - {*OWN, *PASSED}):
        if own[key] != plain[key]:
            raise ConfigError(
                "sweeps",
                f"the study's file sets {key}, which is the origin's; take one that compresses",
            )
    for seed in range(config.seed, config.seed + config.repeats):
        _run_id(config, seed, store)


def origin_of(store: Store, run_id: str) -> str:
    """Id of the run that a compressed run was made from."""
    return str(store.client.get_run(run_id).data.tags["origin"])


def initial_weights(store: Store, run_id: str) -> str:
    """The weights that a run's training began with: its tag."""
    return str(store.client.get_run(run_id).data.tags.get("weights", ""))


def origin_trial(store: Store, config: DictConfig) -> str:
    """Id of the trial whose seeds a config compresses."""
    return trained.find(store, str(config.origin)).run_id


def _run_id(config: DictConfig, seed: int, store: Store) -> str:
    """Of the run to compress: the origin, or that of its seeds which is asked for."""
    given = str(config.origin)
    try:
        evaluated = trained.find(store, given)
    except UserError as error:
        raise ConfigError("origin", str(error).removeprefix("run=")) from error
    by_seed = {net.seed: net.run_id for net in evaluated.nets}
    if not evaluated.repeated:
        if config.repeats > 1:
            raise ConfigError(
                "repeats",
                f"must be 1: origin={given} is a run of one seed, {evaluated.nets[0].seed}",
            )
        return evaluated.nets[0].run_id
    if config.repeats == 1:
        ids = ", ".join(by_seed.values())
        all_of_them = f", or all by -m and repeats={len(by_seed)}" if len(by_seed) > 1 else ""
        raise ConfigError(
            "origin", f"{given} is a trial of several seeds: name one of {ids}{all_of_them}"
        )
    if str(seed) not in by_seed:
        problem = f"{given} has no finished run of seed {seed}, only of {', '.join(by_seed)}: set seed and repeats"
        raise ConfigError("origin", problem)
    return by_seed[str(seed)]


def _refuse_compressed(config: DictConfig, run_id: str, store: Store) -> None:
    """A net that is not torch's own in full precision any more cannot be compressed further; a pruned one can."""
    kind = str((config.get("compression") or {}).get("name", "none"))
    if kind == KIND or store.client.list_artifacts(run_id, DEPLOYED):
        raise ConfigError(
            "origin",
            f"{run_id} is compressed already ({kind}); take its origin, {config.get('origin')}",
        )


def _key(override: str) -> str:
    return (
        Path(override.partition("=")[0].lstrip("+~").partition("@")[0]).as_posix().replace("/", ".")
    )


log = logging.getLogger(__name__)
REPORTED = "lost_on"  # tag: the split on which `compression/lost/...` is measured


def origin_parts(config: DictConfig, store: Store) -> loop.RunParts:
    """The origin's data and its trained classifier.

    Args:
        config: From `src.deployment.compression.origin.compressed_run_config`.
        store: That holds the origin.

    Raises:
        UserError: The data are not those that the origin was trained on: its test images could come
            into training.
    """
    as_the_origin = config.copy()
    as_the_origin.compression = None
    parts = loop.build(as_the_origin, pretrained=False)
    _same_split(parts.data, store, config.origin)
    parts.classifier = restore(parts.classifier, store, config.origin).eval()
    return parts


def _same_split(data: DataModule, store: Store, origin: str) -> None:
    recorded = store.client.get_run(origin).data.tags.get(
        "split_fingerprint", data.split_fingerprint
    )
    if recorded != data.split_fingerprint:
        raise ConfigError(
            "origin",
            f"images, labels or split of {data.name} are not those that run {origin} was trained on (split "
            f"{data.split_fingerprint}, there {recorded}): its test images could be trained on; give the right folder "
            "as data.root=",
        )


def compress(
    config: DictConfig, parts: loop.RunParts, store: Store, run: Run, folder: Path
) -> CompressedModel:
    """Compress the origin's classifier, and save what comes of it in the run.

    Args:
        config: From `compressed_run_config`.
        parts: From `origin_parts`; its classifier becomes the compressed one, as it is evaluated.
        store: That holds the origin.
        run: Of the compressed net.
        folder: The run's own.
    """
    method: Compression = instantiate(config.compression, "compression", ("name",))
    (target := folder / DEPLOYED).mkdir(parents=True, exist_ok=True)
    description = _description(store, config.origin, run.id)
    found = method.compress(
        parts.classifier, parts.data, description, _tuner(config, parts, run, folder), target
    )
    run.tag(precision=found.precision)
    run.tag(
        **{
            f"compression.{name}": value
            for name, value in found.facts.items()
            if isinstance(value, str)
        }
    )
    numbers = {
        f"compression/{name}": value
        for name, value in found.facts.items()
        if not isinstance(value, str)
    }
    run.log(numbers, step=0)
    if found.file is None:
        checkpoint = folder / "checkpoint" / "best.ckpt"
        save_weights(found.classifier, checkpoint)
        run.artifact(checkpoint, "checkpoint")
        parts.classifier = found.classifier
    else:
        run.artifact(found.file, DEPLOYED)
        threads = int(config.efficiency.get("threads", 1))  # as the reference net is timed
        parts.classifier = as_classifier(open_file(found.file, threads), found.classifier)
    return found


def _description(store: Store, origin: str, run_id: str) -> Description:
    """Of the compressed net's file, which is written before the net is evaluated: the origin's decision, said so."""
    found = describe(store, single(store, origin))
    decision = found.decision
    inherited = decision and replace(
        decision, aim=f"{decision.aim}, for the net that this one was made from"
    )
    return replace(found, run_id=run_id, decision=inherited)


def compressed_cost(found: CompressedModel) -> dict[str, float | None]:
    """What is counted of a compressed net, whose file no counter reads.

    Multiply-adds and parameters are those of the net in the file, whatever they are stored as; the
    size is the file's. Peak memory of a runtime outside torch is not seen from within: it is left
    out (see `src.benchmark`).
    """
    cost: dict[str, float | None] = dict(
        static_cost(found.classifier.net, found.classifier.image_size)
    )
    if found.file is None:
        return cost
    return {
        **cost,
        "efficiency/size_mb": found.file.stat().st_size / 1e6,
        "efficiency/peak_memory_mb": None,
    }


def record_degradation(store: Store, run: Run, pairs: list[tuple[str, str]]) -> None:
    """Record what a compression cost, on test where origin and compressed net are both evaluated on it, else on val.

    Args:
        store: That holds the runs.
        run: Whose metrics these are: the compressed run's, or the trial's above those of several
            seeds.
        pairs: Ids of origin and compressed run, a pair a seed.
    """
    for split in ("test", "val"):
        if all(history.has_predictions(store, run_id, split) for pair in pairs for run_id in pair):
            before, after = zip(*pairs, strict=True)
            frames = [
                [history.predictions(store, each, split) for each in side]
                for side in (before, after)
            ]
            run.log(paired.degradation(*frames), step=0)
            run.tag(**{REPORTED: split})
            return
    log.warning(
        "run %s: its origin has no recorded predictions, so that nothing is known of what was lost",
        run.id,
    )


def _tuner(config: DictConfig, parts: loop.RunParts, run: Run, folder: Path) -> Tune:
    def tune(classifier: Classifier, epochs: int, lr: float) -> None:
        own = config.copy()
        own.trainer.max_epochs, own.optimizer.lr = epochs, lr
        if "teacher" in own.loss:  # none was needed so far
            classifier.loss = loop.build_loss(own, parts.data)
        classifier.train_with(
            instantiate(own.optimizer, "optimizer"), instantiate(own.scheduler, "scheduler")
        )
        classifier.train()  # Lightning leaves modules in the mode that it finds
        loop.train(own, loop.RunParts(parts.data, classifier), run, folder / "tuning")
        classifier.eval()

    return tune
