"""The trained run that a compression starts from, and the config that the compressed run inherits from it."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

from src.config import check_targets, resolve
from src.errors import ConfigError, UserError
from src.models.bfloat16 import KIND
from src.tracking import read
from src.tracking.store import Store
from src.trained import runs
from src.trained.restore import DEPLOYED

# what the command line decides; all else is the origin's
OWN = ("compression", "origin", "tracking", "study", "repeats", "dry_run", "test", "threads", "objective")
ALSO = ("efficiency", "data.root", "data.cache_dir", "trainer.accelerator")  # only if they are typed
PASSED = ("hydra", "sweeps", "seed")  # no part of a run's config, or told by the origin


def wanted(config: DictConfig) -> bool:
    """Whether a config asks for a compression.

    Raises:
        ConfigError: It names a compression without an origin, or the reverse.
    """
    asked = config.get("compression") is not None and "_target_" in config.compression
    origin = config.get("origin") is not None
    if asked and not origin:
        raise ConfigError("origin", f"compression={config.compression.name} needs the run to compress: origin=<run id>")
    if origin and not asked:
        raise ConfigError("compression", "origin= is compressed: say how, such as compression=onnx_int8_static")
    return asked


def adopt(config: DictConfig, overrides: Sequence[str], store: Store) -> DictConfig:
    """The config of a compressed run: its origin's, with the compression, and where it is recorded, from `config`.

    Args:
        config: A composed `conf/train.yaml` that names a compression and its origin. Of an origin of several seeds,
            `config.seed` says which; of a single run the seed is taken over.
        overrides: That it was composed with.
        store: That holds the origin.

    Returns:
        `origin` is then the id of the run itself, a single one.

    Raises:
        UserError: No such origin, or one without a trained net; an override of what is the origin's to say.
    """
    check(overrides)
    run_id = _run_id(config, config.seed, store)
    typed = [_key(override) for override in overrides]
    found = OmegaConf.load(read.artifact(store, run_id, "config.yaml"))
    assert isinstance(found, DictConfig)
    check_targets(found)
    if found.model.get("_target_") != "src.classifier.Classifier":
        raise ConfigError("origin", f"{found.model.get('name')} is no network: there is nothing to compress")
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


def check(overrides: Sequence[str]) -> None:
    """Refuse overrides of what is the origin's to say.

    Args:
        overrides: Of a compression, swept ones too.

    Raises:
        ConfigError: The first of them.
    """
    for key in map(_key, overrides):
        if key.partition(".")[0] not in (*OWN, *PASSED) and not key.startswith(ALSO):
            raise ConfigError(key, f"is the origin's: leave it out beside origin= ({', '.join(ALSO)} can be set)")


def typed_beside(overrides: Sequence[str]) -> list[str]:
    """Those of a compression's overrides that are neither the origin's to say nor of the compression itself."""
    return [each for each in overrides if _key(each).startswith(ALSO)]


def check_study(config: DictConfig, default: DictConfig, overrides: Sequence[str], store: Store) -> None:
    """Refuse at once what every trial of a study would be refused for, and what each would pass over.

    Args:
        config: Of one of its trials.
        default: Composed with nothing but `typed_beside(overrides)`.
        overrides: Of that trial.
        store: That holds the origin.

    Raises:
        UserError: As `adopt`, for any of the seeds; or the study's file sets what is the origin's.
    """
    check(overrides)
    own, plain = resolve(config), resolve(default)
    for key in sorted(plain.keys() - {*OWN, *PASSED}):
        if own[key] != plain[key]:
            raise ConfigError("sweeps", f"the study's file sets {key}, which is the origin's; take one that compresses")
    for seed in range(config.seed, config.seed + config.repeats):
        _run_id(config, seed, store)


def of(store: Store, run_id: str) -> str:
    """Id of the run that a compressed run was made from."""
    return str(store.client.get_run(run_id).data.tags["origin"])


def began_with(store: Store, run_id: str) -> str:
    """The weights that a run's training began with: its tag."""
    return str(store.client.get_run(run_id).data.tags.get("weights", ""))


def trial(store: Store, config: DictConfig) -> str:
    """Id of the trial whose seeds a config compresses."""
    return runs.find(store, str(config.origin)).run_id


def _run_id(config: DictConfig, seed: int, store: Store) -> str:
    """Of the run to compress: the origin, or that of its seeds which is asked for."""
    given = str(config.origin)
    try:
        evaluated = runs.find(store, given)
    except UserError as error:
        raise ConfigError("origin", str(error).removeprefix("run=")) from error
    by_seed = {net.seed: net.run_id for net in evaluated.nets}
    if not evaluated.repeated:
        if config.repeats > 1:
            raise ConfigError("repeats", f"must be 1: origin={given} is a run of one seed, {evaluated.nets[0].seed}")
        return evaluated.nets[0].run_id
    if config.repeats == 1:
        ids = ", ".join(by_seed.values())
        all_of_them = f", or all by -m and repeats={len(by_seed)}" if len(by_seed) > 1 else ""
        raise ConfigError("origin", f"{given} is a trial of several seeds: name one of {ids}{all_of_them}")
    if str(seed) not in by_seed:
        problem = f"{given} has no finished run of seed {seed}, only of {', '.join(by_seed)}: set seed and repeats"
        raise ConfigError("origin", problem)
    return by_seed[str(seed)]


def _refuse_compressed(config: DictConfig, run_id: str, store: Store) -> None:
    """A net that is not torch's own in full precision any more cannot be compressed further; a pruned one can."""
    kind = str((config.get("compression") or {}).get("name", "none"))
    if kind == KIND or store.client.list_artifacts(run_id, DEPLOYED):
        raise ConfigError("origin", f"{run_id} is compressed already ({kind}); take its origin, {config.get('origin')}")


def _key(override: str) -> str:
    return Path(override.partition("=")[0].lstrip("+~").partition("@")[0]).as_posix().replace("/", ".")
