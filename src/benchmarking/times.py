"""From the times of queries to percentiles, and to a ratio with its interval."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.float64]  # ms, of the queries of one turn
PERCENTILES = (50, 90, 99)
BLOCKS = 50  # of consecutive turns, which the bootstrap draws
FEWEST = 5  # blocks that an interval needs


class Ratio(NamedTuple):
    """A median relative to the reference's; 2.0 is twice as slow. NaN where there are too few turns for an interval."""

    value: float
    low: float
    high: float


def latencies(turns: Sequence[Times]) -> dict[str, float]:
    """Percentiles and mean over all queries, ms: `p50_ms`, `p90_ms`, `p99_ms`, `mean_ms`.

    Args:
        turns: At least one, each of at least one query.
    """
    every = np.concatenate(turns)
    found = {f"p{each}_ms": float(np.percentile(every, each)) for each in PERCENTILES}
    return found | {"mean_ms": float(every.mean())}


def ratio(turns: Sequence[Times], reference: Sequence[Times], samples: int, level: float, seed: int) -> Ratio:
    """The ratio of two medians, with a percentile interval.

    What disturbs a machine lasts for longer than a query, so queries are not drawn one by one: the turns are cut into
    up to `BLOCKS` blocks of consecutive ones, and whole blocks are drawn with replacement (Künsch, The jackknife and
    the bootstrap for general stationary observations, Annals of Statistics 17, 1989), the same ones of both models,
    which were measured side by side.

    Args:
        turns: Of the model, in order.
        reference: As many, the n-th measured beside the n-th of the model.
        samples: Of the bootstrap.
        level: Coverage, in (0, 1).
        seed: Of the random numbers.
    """
    value = float(np.median(np.concatenate(turns)) / np.median(np.concatenate(reference)))
    blocks = min(BLOCKS, len(turns))
    if blocks < FEWEST:
        return Ratio(value, np.nan, np.nan)
    rng = np.random.default_rng(seed)
    mine, other = _blocks(turns, blocks), _blocks(reference, blocks)
    drawn = [_median(mine, chosen) / _median(other, chosen) for chosen in rng.integers(blocks, size=(samples, blocks))]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Ratio(value, float(low), float(high))


def _blocks(turns: Sequence[Times], number: int) -> list[Times]:
    edges = np.linspace(0, len(turns), number + 1).round().astype(int)
    return [np.concatenate(turns[start:end]) for start, end in zip(edges[:-1], edges[1:], strict=True)]


def _median(blocks: Sequence[Times], chosen: npt.NDArray[np.int64]) -> float:
    return float(np.median(np.concatenate([blocks[each] for each in chosen])))
