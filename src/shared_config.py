"""What all trials of a study share: as the owner records it, and as each trial finds it in the files again."""

import hashlib
from collections.abc import Mapping
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from src.entry import ROOT
from src.errors import UserError
from src.reproducibility import config_hash

WITHOUT_EFFECT = ("tracking", "study", "preset", "objective", "test", "data.cache_dir", "threads", "repeats", "dry_run")


def shared_config_digest(config: DictConfig) -> str:
    """Of what all trials of a study share: the same in the owner and in a trial, unless files changed in between."""
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    return config_hash({str(key): value for key, value in plain.items() if key not in ("hydra", *WITHOUT_EFFECT)})


def conf_digest() -> str:
    """Of the files in conf/ and sweeps/, as they are now."""
    files = [file for folder in ("conf", "sweeps") for file in sorted((ROOT / folder).rglob("*.yaml"))]
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
        found += _flat(value, f"{where}.") if isinstance(value, Mapping) and value else [(where, value)]
    return found
