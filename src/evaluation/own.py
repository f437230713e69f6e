"""The data that a run was trained on, where they are on this machine."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from omegaconf import DictConfig

from src.config import instantiate
from src.data.module import DataModule
from src.data.source import Manifest, Source
from src.errors import ConfigError, UserError
from src.trained.runs import Evaluated

HASHED_SIZE = 64  # px, of pictures that are compared, where the net's own are cropped, padded or smaller


@dataclass(frozen=True)
class OwnPictures:
    """A run's own images.

    Attributes:
        frame: Manifest rows with their `split` (train, val, test); empty where it is not that of the run's record.
        images: Whole frames squashed, uint8 (N, S, S, 3).
        same_split: Whether images, labels and split are those of the run's record.
    """

    frame: pd.DataFrame
    images: npt.NDArray[np.uint8]
    same_split: bool


def listed(evaluated: Evaluated, root: str | None) -> tuple[Source, Manifest]:
    """The source and its list of images, metadata included.

    Args:
        evaluated: The run.
        root: Where the data lie; None: where they were.

    Raises:
        UserError: They are not here.
    """
    source: Source = instantiate(_data_config(evaluated, root).source, "data.source")
    return source, source.manifest()


def pictures(evaluated: Evaluated, root: str | None, cache_dir: str) -> OwnPictures:
    """All own images, to be compared with others.

    Args:
        evaluated: The run.
        root: Where the data lie; None: where they were.
        cache_dir: Where decoded pictures are kept.

    Raises:
        UserError: They are not here.
    """
    config = _data_config(evaluated, root)
    config.image_size, config.geometry = hashed_size(config.image_size, config.geometry), "squash"
    config.cache_dir = cache_dir
    data: DataModule = instantiate(config, "data", ("root",))
    data.prepare()
    same = data.split_fingerprint == evaluated.split_fingerprint
    return OwnPictures(data.frame.assign(split=data.side if same else ""), data.cache.images, same)


def refuse_root(evaluated: Evaluated, root: str | None) -> None:
    """Raise if a folder is named for data that lie in none, such as synthetic ones.

    Raises:
        ConfigError: It is named for nothing.
    """
    if root is not None and "root" not in evaluated.config.data.source:
        raise ConfigError("own_root", f"the run's own data ({evaluated.data}) lie in no folder; leave it out")


def hashed_size(image_size: int, geometry: str) -> int:
    """At which size pictures are compared: the net's own, decoded already, where those are whole and large enough."""
    return image_size if geometry == "squash" and image_size >= HASHED_SIZE else HASHED_SIZE


def metadata(evaluated: Evaluated, root: str | None) -> tuple[pd.DataFrame | None, str]:
    """What is known of the images beside their labels, or None and why it is not to be had."""
    try:
        return listed(evaluated, root)[1].frame, ""
    except UserError as error:
        return None, f"No metadata (age, sex, site): the run's own data are not here ({error}); say own_root=<folder>."


def _data_config(evaluated: Evaluated, root: str | None) -> DictConfig:
    config: DictConfig = evaluated.config.data.copy()
    if root is not None:
        config.root = config.source.root = root
    return config
