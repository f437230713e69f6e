"""The run store that programs read which come after a training."""

from omegaconf import DictConfig, OmegaConf

from src.config import check, instantiate, resolve
from src.tracking.store import Store


def existing(config: DictConfig, experiment: str | None = None) -> Store:
    """The store that a program's config names, opened.

    Args:
        config: Whole, with `tracking`.
        experiment: Instead of the one that it names.

    Raises:
        ConfigError: A value of `tracking` that cannot be.
        TrackingError: There is no such store, or it cannot be read.
    """
    node = OmegaConf.merge(config.tracking, {"experiment": experiment}) if experiment else config.tracking
    assert isinstance(node, DictConfig)
    check(resolve(node), "tracking")
    store: Store = instantiate(node, "tracking")
    return store.open(create=False)
