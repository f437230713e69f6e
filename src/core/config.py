"""Config -> checked values, settings and objects; digests of configs."""

import functools
import hashlib
import importlib
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal, TypeVar

import hydra.utils
import pydantic
import yaml
from annotated_types import Ge, Gt, Le, Lt
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.utils import _locate
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from src.core.environment import config_hash
from src.core.errors import ConfigError, DecisionRule, UserError, closest, config_problem
from src.core.files import CONF, ROOT

Settings = TypeVar("Settings")

ROOT_VALUES: dict[str, Any] = {
    "seed": Annotated[int, Ge(0)],
    "study": str | None,
    "preset": str | None,
    "decision": DecisionRule,
    "test": bool | Literal["auto"],
    "threads": Annotated[int, Ge(1), Le(1024)] | None,
    "repeats": Annotated[int, Ge(1)] | Literal["auto"],
    "dry_run": bool,
    "reuse": bool,
    "origin": str | None,
}
# Nodes of a training config from which an object is built.
_PARTS = ("data", "augment", "loss", "optimizer", "scheduler", "trainer", "tracking")
_BESIDE: dict[str, Any] = {"trainer.compile": bool | Literal["auto"]}  # no arguments of these parts
_BATCHES = Annotated[float, Gt(0)] | None  # their number, or a share of an epoch
_BOUNDS: dict[str, Any] = {  # of arguments whose impossible values PyTorch or Lightning accept
    "optimizer.lr": Annotated[float, Gt(0)],
    "optimizer.momentum": Annotated[float, Ge(0), Lt(1)],
    "trainer.gradient_clip_val": Annotated[float, Ge(0)] | None,
    "trainer.accumulate_grad_batches": Annotated[int, Ge(1)],
    "trainer.check_val_every_n_epoch": Annotated[int, Ge(1)] | None,
    **dict.fromkeys(("trainer.limit_train_batches", "trainer.limit_val_batches"), _BATCHES),
    "trainer.val_check_interval": _BATCHES,
    "trainer.max_steps": Literal[-1] | Annotated[int, Ge(1)],
}
# Keys that do not change what a trial computes.
WITHOUT_EFFECT: tuple[str, ...] = ("tracking", "study", "preset", "objective", "test")
WITHOUT_EFFECT += ("data.cache_dir", "threads", "repeats", "dry_run", "reuse", "efficiency.trials")
# Packages whose classes a record may name although no file in conf/ does.
_RECORDED_PACKAGES = ("src.models.", "src.losses.", "src.data.")
_ROOT_MARK = "<root>"  # of the project's folder, which is another one on another machine
_SEARCH_PATH = ("pkg://hydra.conf", "file://<root>/conf", "studies://<root>", "structured://")
_HYDRA_KEYS = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")


def resolve(config: DictConfig, without: Sequence[str] = ()) -> dict[str, Any]:
    """The config as plain values, with all interpolations resolved.

    Keys at its top in `without` are omitted and not resolved.

    Raises:
        ConfigError: An interpolation cannot be resolved, or a mandatory value (`???`) is missing.
    """
    try:
        values = {str(key): config[key] for key in config if key not in without}
        return {
            key: OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
            if OmegaConf.is_config(value)
            else value
            for key, value in values.items()
        }
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        for name in () if key else flatten(config):
            try:
                OmegaConf.select(config, name)
            except OmegaConfBaseException:
                key = key or str(config._get_full_key(name))
        key, problem = key or "config", config_problem(error)
        if isinstance(error, MissingMandatoryValue):
            problem = f"has no default: give it one, {key}=... (--help {key.partition('.')[0]})"
        raise ConfigError(key, problem) from error


def load_settings(
    config: DictConfig, schema: Callable[..., Settings], path: str = "", without: Sequence[str] = ()
) -> Settings:
    """Turn a config, or the node at the key `path`, into a settings dataclass.

    Every value is checked against its annotation; the dataclass's own checks (`__post_init__`) may
    raise ConfigError. Keys in `without` are no fields, such as "tracking".

    Raises:
        ConfigError: An unknown key or a wrong value; the message names the key.
    """
    values = resolve(config, without)
    check_arguments(schema, values, path)
    try:
        return schema(**values)
    except ConfigError as error:
        raise (error.under(path) if path else error) from error


def check(config: Mapping[str, Any], path: str = "") -> None:
    """Check every value that is passed to a constructor against the constructor's annotations.

    `config` is resolved, or the part of one at the key `path`.

    Raises:
        ConfigError: An unknown key, a wrong type or a value out of range; it names the key.
    """
    if "_target_" in config:
        name = config["_target_"]
        try:
            target = _locate(name)
        except Exception as error:
            problem = f"cannot import {name}: {str(error).splitlines()[0]}"
            raise ConfigError(f"{path}._target_", problem) from error
        check_arguments(target, config, path)
    elif not path:
        for key in sorted(config.keys() - _root_keys()):
            file = "its file must begin with # @package _global_ and must not be a list"
            problem = "unknown key" + closest(key, sorted(_root_keys()))
            raise ConfigError(key, file if key in ("experiment", "sweeps") else problem)
        _check_root(config)
    for key, value in config.items():
        if isinstance(value, Mapping):
            check(value, f"{path}.{key}" if path else key)


def _check_root(config: Mapping[str, Any]) -> None:
    """Check the values at the top of a training config, and that its parts can be built."""
    for key in ROOT_VALUES.keys() & config.keys():
        _check_value(config[key], ROOT_VALUES[key], key)
    parts = {name: config[name] for name in _PARTS if name in config}
    if isinstance(config.get("model"), Mapping):
        parts["model.net"] = config["model"].get("net")
    for name in ("model", "callbacks", "objective", "efficiency", "compression"):
        # `callbacks=[]` chooses no file of a group: its key is missing
        is_optional = name == "compression" or not {"model", "trainer"} <= config.keys()
        value = config.get(name, {} if is_optional else None)
        if not isinstance(value, Mapping):
            raise ConfigError(name, f"must have keys and values, but is {value!r}")
    for name, part in parts.items():
        if not isinstance(part, Mapping) or "_target_" not in part:
            raise ConfigError(name, f"must have a _target_ and its arguments, but is {part!r}")


@functools.cache
def _root_keys() -> frozenset[str]:
    """The keys at the top of a training config; the groups that set other keys have none."""
    train = yaml.safe_load((CONF / "train.yaml").read_text())
    groups = {name for entry in train["defaults"] if isinstance(entry, dict) for name in entry}
    return frozenset(train) | groups - {"experiment", "sweeps"}


def check_arguments(target: Callable[..., Any], values: Mapping[str, Any], path: str = "") -> None:
    """Check keyword arguments against the signature and the annotations of a class or function.

    Hydra's own keys such as `_target_` and those in the target's attribute `config_only`, which are
    for readers, are ignored.

    Raises:
        ConfigError: An unknown key, a wrong type or a value out of range.
    """
    function = target.__init__ if inspect.isclass(target) else target
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError) as error:  # of no function or class, or of one written in C
        raise ConfigError(f"{path}._target_", f"cannot be configured: {error}") from error
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    hints: dict[str, Any] = {}
    for name, annotation in getattr(function, "__annotations__", {}).items():
        # of a library's annotations only a type checker can read some
        with suppress(NameError, TypeError):
            holder = SimpleNamespace(__annotations__={name: annotation})
            scope = getattr(inspect.unwrap(function), "__globals__", {})
            hints |= typing.get_type_hints(holder, scope, include_extras=True)
    for key, value in values.items():
        where = f"{path}.{key}".lstrip(".")
        if where in _BESIDE or where in _BOUNDS:
            _check_value(value, (_BESIDE | _BOUNDS)[where], where)
        if where in _BESIDE or key in (*_HYDRA_KEYS, *getattr(target, "config_only", ())):
            continue
        if key not in parameters and not open_ended:
            names = [name for name in parameters if name != "self"]
            raise ConfigError(where, f"unknown key{closest(key, names, count=3)}")
        if key in hints and not (isinstance(value, Mapping) and "_target_" in value):
            _check_value(value, hints[key], where)


def _check_value(value: Any, hint: Any, where: str) -> None:
    try:
        adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(
            hint, config=pydantic.ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
        )
    except (pydantic.PydanticUserError, pydantic.errors.PydanticSchemaGenerationError):
        return
    try:
        # Strict: the value is passed on as it is, and the text "no" must not count as False.
        adapter.validate_python(value, strict=not isinstance(value, Mapping | list))
    except pydantic.ValidationError as error:
        problems, texts = error.errors(), list[str]()
        for problem in problems:
            text = problem["msg"].removeprefix("Input should be ")
            texts += re.split(", | or ", text) if problem["type"] == "literal_error" else [text]
        *first, last = dict.fromkeys(text[:1].lower() + text[1:] for text in texts)
        listed = f"{', '.join(first)} or {last}" if first else last
        start = "input should be " * problems[0]["msg"].startswith("Input should be ")
        hint = closest(str(value), [text.strip("'") for text in texts if text.startswith("'")])
        raise ConfigError(where, f"{start}{listed}, but got {value!r}{hint}") from None


def read_recorded(path: Path) -> DictConfig:
    """The resolved config of a recorded run, with all its `_target_`s checked.

    Raises:
        ConfigError: See `check_recorded`.
        UserError: The file is not a config, or lacks a part.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if "*" in text and any(isinstance(one, yaml.AliasToken) for one in yaml.scan(text)):
            raise ValueError("it has an alias (*name), which no record has and which could expand")
        config = OmegaConf.create(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read as a config: {reason}") from error
    values: Any = OmegaConf.to_container(config, resolve=False)
    check_recorded(values)
    if not isinstance(config, DictConfig) or not {"model", "data"} <= values.keys():
        raise UserError(f"{path}: not the config of a run")
    try:
        _check_root(values)
    except ConfigError as error:
        raise UserError(f"{path}: {error}") from error
    return config


def check_recorded(value: Any, path: str = "") -> None:
    """Refuse a recorded config that could have code executed.

    Whoever can write to a run store, a checkpoint or an exported file chooses its `_target_`s. One
    is allowed if conf/ names it, or if it is a class of `_RECORDED_PACKAGES` under its own name.
    Recorded configs are resolved: an interpolation could hide a target from this check, and so
    could a list of pairs, `[[_target_, ...]]`, from which `dict` makes a mapping.

    Raises:
        ConfigError: Another target, an interpolation, or "_target_" that is no key; the message
            names its key.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            where = f"{path}.{key}".lstrip(".")
            if key != "_target_":
                check_recorded(key, where)
            elif not _is_allowed(item):
                message = f"{item} is named by no file in conf/: add one for a part of your own"
                raise ConfigError(where, message)
            check_recorded(item, where)
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            check_recorded(item, f"{path}[{number}]")
    elif isinstance(value, str) and ("${" in value or value == "_target_"):
        raise ConfigError(path, f"must be neither an interpolation nor a target, but is {value}")


@functools.cache
def _conf_targets() -> frozenset[str]:
    texts = "\n".join(file.read_text() for file in _config_files())
    return frozenset(re.findall(r"_target_: *[\"']?([\w.]+)", texts))


def _is_allowed(target: Any) -> bool:
    if not isinstance(target, str):
        return False
    if target in _conf_targets():
        return True
    module, _, name = target.rpartition(".")
    if not module.startswith(_RECORDED_PACKAGES):
        return False
    try:
        part = getattr(importlib.import_module(module), name, None)
    except ImportError:
        return False
    return inspect.isclass(part) and f"{part.__module__}.{part.__qualname__}" == target


def instantiate(
    config: DictConfig, path: str, without: Sequence[str] = (), kind: type = object, **objects: Any
) -> Any:
    """Build what `_target_` of the node at the key `path` names, an instance of `kind`.

    Keys in `without` are not passed on; `objects` are arguments that are not in the config, such as
    built parts and counts.

    Raises:
        ConfigError: The constructor refused a value, or what it builds is of another kind.
    """
    if not OmegaConf.is_dict(config) or "_target_" not in config:
        raise ConfigError(path, f"must have a _target_ and its arguments, but is {config!r}")
    check_recorded(objects, path)  # Hydra would evaluate texts, such as class names of a data set
    node = OmegaConf.create(resolve(config, without))
    try:
        part = hydra.utils.instantiate(node, _convert_="all", **objects)
        if not isinstance(part, kind):
            problem = f"must be a {kind.__name__}, but {node._target_} makes {type(part).__name__}"
            raise ConfigError(f"{path}._target_", problem)
        return part
    except InstantiationException as error:
        cause = error.__cause__
        inner = str(error).rpartition("full_key: ")[2].strip() if "full_key: " in str(error) else ""
        where = f"{path}.{inner}" if inner else path
        if isinstance(cause, ConfigError):
            raise cause.under(where) from error
        if isinstance(cause, UserError):
            raise cause from error
        if isinstance(cause, ValueError | TypeError | ImportError):
            first = (str(cause).splitlines() or [type(cause).__name__])[0]
            problem = re.sub(r"^\S+ missing \d+ required .*arguments?: ", "lacks ", first)
            raise ConfigError(where, problem) from error
        raise
    except HydraException as error:
        raise ConfigError(path, str(error).splitlines()[0]) from error


def flatten(config: DictConfig | Mapping[str, Any], without: Iterable[str] = ()) -> dict[str, Any]:
    """Dotted key -> value of every leaf; interpolations stay as they are written.

    Dotted keys in `without` are omitted, with everything below them.
    """
    plain = OmegaConf.to_container(config, resolve=False) if OmegaConf.is_config(config) else config
    leaves: dict[str, Any] = {}
    for key, value in typing.cast("Mapping[str, Any]", plain).items():
        if isinstance(value, Mapping) and value:
            leaves |= {f"{key}.{inner}": leaf for inner, leaf in flatten(value).items()}
        else:
            leaves[str(key)] = value
    skipped = tuple(f"{name}." for name in without)
    return {key: leaf for key, leaf in leaves.items() if not f"{key}.".startswith(skipped)}


def shared_config_digest(config: DictConfig) -> str:
    """A digest of what all trials of a study share; it changes when the files in conf/ do."""
    plain = typing.cast("dict[str, Any]", OmegaConf.to_container(config, resolve=False))
    return config_hash({key: plain[key] for key in plain if key not in ("hydra", *WITHOUT_EFFECT)})


def _config_files() -> list[Path]:
    return [file for folder in (CONF, ROOT / "sweeps") for file in sorted(folder.rglob("*.yaml"))]


def conf_digest() -> str:
    """A digest of the current files in conf/ and sweeps/."""
    contents = b"".join(file.read_bytes() for file in _config_files())
    return hashlib.sha256(contents).hexdigest()[:16]


def search_path(node: Any) -> list[str]:
    """Where Hydra found the files of a config, by its node `hydra`; for `compose_trial`."""
    paths = [f"{source.schema}://{source.path}" for source in node.runtime.config_sources]
    return [path.replace(str(ROOT), _ROOT_MARK) for path in paths]


def is_own(config_name: str, paths: Sequence[str]) -> bool:
    """Whether a config was composed from files that are not this project's."""
    return config_name != "train" or bool(set(paths) - set(_SEARCH_PATH))


def compose_trial(payload: Mapping[str, Any]) -> DictConfig:
    """Compose the config of a trial as the command line of its study composes a run.

    The payload holds `overrides`, `fixed`, the digests of the start of the study and, if they are
    not those of src.train, `config_name` and `search_path`.

    Raises:
        UserError: The files in conf/ have changed since, and so has what all trials share.
    """
    Plugins.instance()
    paths, sources = payload.get("search_path", _SEARCH_PATH), ConfigSearchPathImpl()
    for path in paths:
        provider = "schema" if path == _SEARCH_PATH[-1] else "study"
        sources.append(provider, path.replace(_ROOT_MARK, str(ROOT)))
    loader = ConfigLoaderImpl(sources)

    def composed(overrides: Sequence[str]) -> DictConfig:
        name = payload.get("config_name", "train")
        config = loader.load_configuration(name, list(overrides), RunMode.RUN)
        return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])

    is_unchanged = payload.get("conf_digest") in (None, conf_digest())
    if not is_unchanged or is_own("train", paths):  # the digest is of conf/ and sweeps/
        shared = shared_config_digest(composed(payload["fixed"]))
        if shared != payload["shared_digest"]:
            raise UserError(
                "conf/ or sweeps/ has changed since this study was started, so that its trials "
                "would not be comparable: undo the change, or stop and start another study"
            )
    return composed(payload["overrides"])


def flat_settings(config: DictConfig) -> list[str]:
    """The settings that all trials of a study share and that have an effect, as `key=value`."""
    ignored = [name for name in (*WITHOUT_EFFECT, "data.root", "hydra") if name != "repeats"]
    return [f"{key}={value}" for key, value in flatten(config, ignored).items()]
