"""From a model's probabilities to answers."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from src.clinical import calibration
from src.deployment.description import Decision
from src.deployment.runtime import Probabilities

NO_NUMBER = "the model gives no number for it"


def columns(classes: Sequence[str], decision: Decision | None) -> list[str]:
    """Of the table that is written: the same whatever the pictures are."""
    calibrated = decision is not None and decision.temperature is not None
    return [
        "image",
        *(f"p/{name}" for name in classes),
        *(f"calibrated/{name}" for name in classes if calibrated),
        *("top", "confidence", "decision", "unsure", "problem"),
    ]


def answers(
    probability: Probabilities, classes: Sequence[str], decision: Decision | None, unsure_below: float | None
) -> pd.DataFrame:
    """What is said of pictures.

    Args:
        probability: As the model gives it, (N, K).
        classes: K names.
        decision: The stored threshold and temperature; None: no decision, and nothing calibrated.
        unsure_below: Confidence from which a picture is not called unsure, in [0, 1]; None: none is.

    Returns:
        A row a picture: p/<class>, in [0, 1]; calibrated/<class>, where there is a temperature T: softmax(log p / T);
        top: the most probable class, the first of equals; confidence: its probability, calibrated where it can be;
        decision: the class that is looked for, from the threshold on of its p/<class> (not of the calibrated one), or
        "not <class>", missing without a threshold; unsure: bool, missing where it is not asked for; problem: where the
        model gave no number, and empty elsewhere. All else is missing then.
    """
    own = probability.astype(float)
    found = pd.DataFrame(own, columns=[f"p/{name}" for name in classes])
    trusted = own
    if decision is not None and decision.temperature is not None:
        trusted = calibration.scale(own, decision.temperature)
        found[[f"calibrated/{name}" for name in classes]] = trusted
    top = own.argmax(axis=1)
    found["top"] = np.array(classes, dtype=object)[top]
    found["confidence"] = trusted[np.arange(len(own)), top]
    found["decision"] = None if decision is None else _decided(own, classes, decision)
    found["unsure"] = None if unsure_below is None else found["confidence"] < unsure_below
    known = np.isfinite(own).all(axis=1)
    found = found.astype({"decision": object, "unsure": object})
    found.loc[~known] = None
    found["problem"] = np.where(known, "", NO_NUMBER)
    return found


def _decided(own: np.ndarray, classes: Sequence[str], decision: Decision) -> np.ndarray:
    positive = own[:, list(classes).index(decision.positive)] >= decision.threshold
    return np.where(positive, decision.positive, f"not {decision.positive}").astype(object)
