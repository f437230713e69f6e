"""Config -> checked values and objects; ONE loader for every command's settings dataclass."""

import difflib
import hashlib
import inspect
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import hydra.utils
import pydantic
from annotated_types import Ge
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from src.core.cli import ROOT
from src.core.environment import config_hash
from src.core.errors import ConfigError, UserError

ROOT_VALUES: dict[str, Any] = {
    "seed": Annotated[int, Ge(0)],
    "study": str | None,
    "preset": str | None,
    "test": bool | Literal["auto"],
    "threads": Annotated[int, Ge(1)] | None,
    "repeats": Annotated[int, Ge(1)],
    "dry_run": bool,
    "origin": str | None,
}
_OWN_TARGETS = ("src.", "torch.nn.", "torch.optim.", "pytorch_lightning.", "kornia.")
_HYDRA_KEYS = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")


def resolve(config: DictConfig) -> dict[str, Any]:
    """The config as plain values, every interpolation followed.

    Raises:
        ConfigError: An interpolation leads nowhere, or a mandatory value (`???`) is missing.
    """
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = error.full_key or "config"
        raise ConfigError(
            key, f"has no default: give it one, {key}=... (--help {key.partition('.')[0]})"
        ) from error
    except OmegaConfBaseException as error:
        raise ConfigError(
            getattr(error, "full_key", None) or "config", str(error).splitlines()[0]
        ) from error
    return typing.cast("dict[str, Any]", plain)


def check(config: Mapping[str, Any], path: str = "") -> None:
    """Hold every value that goes to a constructor against that constructor's signature and annotations.

    Args:
        config: A resolved config, or a part of it.
        path: The key under which that part stands.

    Raises:
        ConfigError: An unknown key, a wrong type or a value out of its range; the message names the
            key.
    """
    if "_target_" in config:
        _check_call(config, path)
    elif not path:
        for key in ROOT_VALUES.keys() & config.keys():
            _check_value(config[key], ROOT_VALUES[key], key)
    for key, value in config.items():
        if isinstance(value, Mapping):
            check(value, f"{path}.{key}" if path else key)


def check_targets(config: Any, path: str = "") -> None:
    """Refuse a config from a run's record that names anything but this project's and its libraries' parts.

    Whoever can write to a store could else have any function of this machine called.

    Raises:
        ConfigError: A `_target_` elsewhere; the message names its key.
    """
    plain = OmegaConf.to_container(config, resolve=False) if OmegaConf.is_config(config) else config
    if isinstance(plain, Mapping):
        target = plain.get("_target_")
        if target is not None and not str(target).startswith(_OWN_TARGETS):
            raise ConfigError(
                f"{path}._target_".lstrip("."),
                f"must be a part of {', '.join(_OWN_TARGETS)}: {target}",
            )
        for key, value in plain.items():
            check_targets(value, f"{path}.{key!s}".lstrip("."))
    elif isinstance(plain, list):
        for number, value in enumerate(plain):
            check_targets(value, f"{path}[{number}]")


def instantiate(config: DictConfig, path: str, without: Sequence[str] = (), **given: Any) -> Any:
    """Build what `_target_` names, the objects in `given` passed along.

    Args:
        config: The node to build.
        path: The key under which it stands, for error messages.
        without: Keys that are for the reader or for other nodes and not passed on.
        **given: Arguments that are no config: built parts, counts.

    Raises:
        ConfigError: The constructor refused a value.
    """
    node = OmegaConf.create(
        {key: value for key, value in resolve(config).items() if key not in without}
    )
    try:
        return hydra.utils.instantiate(node, _convert_="all", **given)
    except InstantiationException as error:
        cause = error.__cause__
        inner = str(error).rpartition("full_key: ")[2].strip() if "full_key: " in str(error) else ""
        where = f"{path}.{inner}" if inner else path
        if isinstance(cause, ConfigError):
            raise cause.under(where) from error
        if isinstance(cause, UserError):
            raise cause from error
        if isinstance(cause, ValueError):
            raise ConfigError(where, str(cause).splitlines()[0]) from error
        raise
    except HydraException as error:
        raise ConfigError(path, str(error).splitlines()[0]) from error


def _check_call(config: Mapping[str, Any], path: str) -> None:
    name = config["_target_"]
    try:
        target = hydra.utils.get_object(name)
    except Exception as error:
        raise ConfigError(f"{path}._target_", f"cannot import {name}: {error}") from error
    function = target.__init__ if inspect.isclass(target) else target
    parameters = inspect.signature(target).parameters
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    hints = _type_hints(function)
    for key, value in config.items():
        if key in _HYDRA_KEYS or key in getattr(target, "config_only", ()):
            continue
        where = f"{path}.{key}".lstrip(".")
        if key not in parameters:
            if open_ended:
                continue
            raise ConfigError(where, f"unknown key{_closest(key, parameters)}")
        if key in hints and not (isinstance(value, Mapping) and "_target_" in value):
            _check_value(value, hints[key], where)


def _type_hints(function: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError):
        return {}  # a library's annotations that only its own type checker can read


def _check_value(value: Any, hint: Any, where: str) -> None:
    try:
        adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(
            hint, config=pydantic.ConfigDict(arbitrary_types_allowed=True)
        )
    except (pydantic.PydanticUserError, pydantic.errors.PydanticSchemaGenerationError):
        return
    try:
        # strict, for what is checked here is passed on as it is: a text "no" must not pass for
        # False
        adapter.validate_python(value, strict=not isinstance(value, Mapping | list))
    except pydantic.ValidationError as error:
        problems = {_lower_first(problem["msg"]) for problem in error.errors()}
        raise ConfigError(where, f"{' or '.join(sorted(problems))}, but got {value!r}") from None


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def _closest(key: str, known: typing.Iterable[str]) -> str:
    matches = difflib.get_close_matches(key, [name for name in known if name != "self"], n=3)
    return f"; did you mean {' or '.join(matches)}?" if matches else ""


WITHOUT_EFFECT = (
    "tracking",
    "study",
    "preset",
    "objective",
    "test",
    "data.cache_dir",
    "threads",
    "repeats",
    "dry_run",
)


def shared_config_digest(config: DictConfig) -> str:
    """Of what all trials of a study share: the same in the owner and in a trial, unless files changed in between."""
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    return config_hash(
        {str(key): value for key, value in plain.items() if key not in ("hydra", *WITHOUT_EFFECT)}
    )


def conf_digest() -> str:
    """Of the files in conf/ and sweeps/, as they are now."""
    files = [
        file for folder in ("conf", "sweeps") for file in sorted((ROOT / folder).rglob("*.yaml"))
    ]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def compose_trial(payload: Mapping[str, Any]) -> DictConfig:
    """The trial's config, from the files as the owner saw them.

    Raises:
        UserError: They have been changed, and in a way that changes what all trials share.
    """
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        if payload.get("conf_digest") not in (None, conf_digest()):
            shared = shared_config_digest(compose("train", payload["fixed"]))
            if shared != payload["shared_digest"]:
                raise UserError(
                    "conf/ or sweeps/ is not what it was when this sitting began, and the trials would not compare: "
                    "change it back, or stop the study and start another one"
                )
        return compose("train", payload["overrides"])


def flat_settings(config: DictConfig) -> list[str]:
    """What all trials share and what has an effect, flat; unresolved, so that what is swept does not show in it."""
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    return [f"{key}={value}" for key, value in _flat(plain) if not key.startswith("hydra.")]


def _flat(node: Mapping[Any, Any], path: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in node.items():
        where = f"{path}{key}"
        if where in (*WITHOUT_EFFECT, "data.root") and where != "repeats":
            continue
        found += (
            _flat(value, f"{where}.") if isinstance(value, Mapping) and value else [(where, value)]
        )
    return found
