"""What a compression cost: the origin beside the compressed net, on the same images."""

from collections.abc import Sequence

import pandas as pd

from src.analysis.comparison import LOST, MELANOMA
from src.analysis.paired import paired_difference


def lost(origin: Sequence[pd.DataFrame], compressed: Sequence[pd.DataFrame]) -> dict[str, float]:
    """By how much the origin is better, with its 95% interval by lesion or patient (and by seed).

    Args:
        origin: Predictions of the origins, a frame a seed.
        compressed: Those of the nets that were made from them, in the same order, of the same images.

    Returns:
        `compression/lost/<metric>`, and the same with `/low` and `/high`, for accuracy, balanced accuracy and the
        melanoma class's recall; positive: the compressed net is worse. Without a class called so, there is none.
    """
    classes = [str(name).removeprefix("p/") for name in origin[0] if str(name).startswith("p/")]
    looked_for = next((name for name in classes if name.lower() in MELANOMA), None)
    metrics = ["accuracy", "balanced_accuracy", *([f"recall/{looked_for}"] if looked_for else [])]
    found: dict[str, float] = {}
    for metric in metrics:
        names = ("the origin", "the compressed net")
        value, low, high, _ = paired_difference(origin, compressed, metric, names=names, made_from=True)
        found |= {f"{LOST}/{metric}": value, f"{LOST}/{metric}/low": low, f"{LOST}/{metric}/high": high}
    return found
