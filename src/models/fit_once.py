"""Models that are fitted without epochs: their contract, and how such a fit is recorded.

Such a model is a network (`nn.Module`) with a property `fitted`: bool, and a method
`fit_once(data, seed)`: it gets the prepared `DataModule` and the seed of all draws, fits on the CPU
in full precision, puts everything that is learnt into the state of the module, and returns a
`FitOnceRecord`.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from torch import nn

from src.models.weights import save_weights

if TYPE_CHECKING:
    from src.data.module import DataModule
    from src.tracking.run import Run


class FitOnceRecord(NamedTuple):
    """What a fit adds to the run record."""

    rows: np.ndarray  # numbers of the images that were used
    tables: Mapping[str, pd.DataFrame]  # name of the artifact -> table
    chosen_by: str  # the criterion that chose the settings
    tags: Mapping[str, str]  # more tags of the run


def is_fit_once(net: nn.Module) -> bool:
    """Whether a network is fitted without epochs: it has a method `fit_once`."""
    return hasattr(net, "fit_once")


def train(
    module: nn.Module, net: Any, data: "DataModule", seed: int, run: "Run | None", folder: Path
) -> Path:
    """Fit `net`, a part of `module`, and record the fit in the run, if there is one.

    Returns:
        The path of the checkpoint in the folder of the run: the state dict of `module`.
    """
    start = time.monotonic()
    fit = net.fit_once(data, seed)
    seconds = time.monotonic() - start
    checkpoint = folder / "checkpoint" / "best.ckpt"
    save_weights(module, checkpoint)
    if run is not None:
        run.tag(chosen_by=fit.chosen_by, **fit.tags)
        sample = data.frame.iloc[fit.rows][["image_id", "group"]]
        for name, table in {**fit.tables, "search/sample.csv": sample}.items():
            run.table(table, name)
        speed, count = len(fit.rows) / seconds, len(fit.rows)
        costs = {"time/fit_s": seconds, "time/images_per_s": speed}
        run.log({**costs, "data/images/fitted": count})
    return checkpoint
