"""What runs have set otherwise than the preset that they are tagged with: the tag survives every override."""

import functools
from collections.abc import Mapping
from contextlib import nullcontext

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from src.core.cli import ROOT
from src.core.config import WITHOUT_EFFECT, resolve
from src.tracking.run import flatten

# of the parameters: what makes no other cell
ASIDE = ("seed", "origin", "data.root", "data.source.root", *WITHOUT_EFFECT)
_TOLD_ELSEWHERE = (  # as split, image size, weights; or of the measurement alone
    "data.split",
    "data.siblings",
    "data.image_size",
    "model.image_size",
    "model.net.image_size",
    "model.net.weights",
    "efficiency",
)
_SAME_SYSTEM = ("trainer.max_epochs", "trainer.precision", "trainer.accelerator", "trainer.devices")
_TARGET = "._target_"
# a value that a preset leaves to whoever uses it, such as a teacher: none is a deviation
_OPEN = "(to be given)"


def deviations(preset: str, settings: Mapping[str, str]) -> dict[str, str]:
    """The parameters that are not the preset's, as its file in conf/experiment/ has them now.

    Args:
        preset: Name below conf/experiment/.
        settings: Recorded parameters; an empty text is one that was not recorded.

    Returns:
        Key -> recorded value; empty too where there is no such preset. A key that was not recorded
        may be newer than the run and is no deviation, unless a whole part is absent, which is
        "none".
    """
    expected = _composed(preset)
    found: dict[str, str] = {}
    for key in dict.fromkeys([*settings, *expected]) if expected else ():
        if (
            any(is_below(key, aside) for aside in (*ASIDE, *_TOLD_ELSEWHERE))
            or expected.get(key) == _OPEN
        ):
            continue
        recorded = settings.get(key, "")
        if recorded and recorded != expected.get(key, "null"):
            found[key] = recorded
        elif not recorded and key in expected and key.endswith(_TARGET):
            found[key] = "none"
    return found


def other_system(key: str) -> bool:
    """Whether a deviation makes another system, not the same one trained for longer or in another precision."""
    return key not in _SAME_SYSTEM


def said(key: str, value: str) -> str:
    """A setting in short, such as "net.width=8", "loss=Focal"."""
    if key.endswith(_TARGET):
        return f"{_short(key.removesuffix(_TARGET))}={value.rpartition('.')[2]}"
    return f"{_short(key)}={rounded(value)}"


def rounded(value: str) -> str:
    """A number drawn from a range with three figures."""
    try:
        short = f"{float(value):.3g}"
    except ValueError:
        return value
    return short if len(short) < len(value) else value


def is_below(key: str, whole: str) -> bool:
    """Whether a dotted key is `whole` or a part of it."""
    return key == whole or key.startswith(f"{whole}.")


def _short(key: str) -> str:
    return ".".join(key.split(".")[-2:])


@functools.cache
def _composed(preset: str) -> dict[str, str]:
    """The preset's parameters as a run of it would record them; empty if there is none of that name."""
    folder = ROOT / "conf" / "experiment"
    file = (folder / f"{preset}.yaml").resolve()
    if not preset or not file.is_relative_to(folder) or not file.is_file():
        return {}
    # an entry has Hydra at work on the same folder; a second one beside it is refused
    begun = GlobalHydra.instance().is_initialized()
    with nullcontext() if begun else initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", [f"experiment={preset}"])
    for key in OmegaConf.missing_keys(config):
        OmegaConf.update(config, key, _OPEN)
    return flatten(resolve(config))
