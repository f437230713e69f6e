"""The pictures on which an export is checked: the run's own validation images, as its net saw them."""

from dataclasses import dataclass

import numpy as np

from src.config import instantiate
from src.data.module import DataModule
from src.deployment.runtime import Pictures
from src.errors import ConfigError, UserError
from src.trained.runs import Evaluated


@dataclass(frozen=True)
class Images:
    """Real images of a run.

    Attributes:
        pictures: uint8 (N, S, S, 3).
        ids: Of the images, (N,).
        split: Whose they are: val, or train where there is no validation split.
        own: Whether images, labels and split are those of the run's record.
    """

    pictures: Pictures
    ids: np.ndarray
    split: str
    own: bool


def load(run: Evaluated, number: int | None, root: str | None, cache_dir: str) -> Images:
    """Images of a run's validation split, evenly over it.

    Args:
        run: A single one.
        number: How many; None, or more than there are: all.
        root: Where its data lie; None: where they were.
        cache_dir: Where decoded pictures are kept.

    Raises:
        UserError: The data are not here, or not as they should be.
    """
    config = run.config.data.copy()
    config.cache_dir = cache_dir
    if root is not None:
        if "root" not in config.source:
            raise ConfigError("data.root", f"the run's data ({run.data}) lie in no folder; leave it out")
        config.root = config.source.root = root
    try:
        data: DataModule = instantiate(config, "data", ("root",))
        data.prepare()
    except UserError as error:
        raise UserError(f"the export is checked on the run's own images: {error}") from error
    split = "val" if data.has("val") else "train"
    rows = data.rows(split)
    if number is not None and number < len(rows):
        rows = rows[np.linspace(0, len(rows) - 1, number).round().astype(int)]
    ids = data.frame["image_id"].to_numpy(dtype=str)[rows]
    return Images(data.cache.images[rows], ids, split, data.split_fingerprint == run.split_fingerprint)
