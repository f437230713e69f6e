"""A trial that failed and is made again as another one: what it takes over, and which ones it stands for."""

from collections.abc import Callable, Iterator
from typing import Any

from optuna.trial import FrozenTrial

_KEPT_FOLDERS = 5  # of earlier tries, in which a trial that is started again looks for a state to go on from


def inherited(trial: FrozenTrial, attempt: int) -> dict[str, Any]:
    """User attributes of the trial that is made in another one's place.

    Args:
        trial: The one that failed.
        attempt: How many of the retries that the policy allows are used up then.
    """
    attributes: dict[str, Any] = {"retry_of": trial.number, "attempt": attempt}
    for name, value in trial.user_attrs.items():
        if name in ("cell", "warm_from") or name.startswith("repeat"):  # the latter: seeds that are done
            attributes[name] = value
    folders = [trial.user_attrs.get("folder"), *trial.user_attrs.get("continues", [])]
    attributes["continues"] = [folder for folder in folders if folder][:_KEPT_FOLDERS]
    return attributes


def earlier_tries(trial: FrozenTrial, by_number: Callable[[int], FrozenTrial]) -> Iterator[FrozenTrial]:
    """The trials that this one was made in place of, the newest first, back to the one that was drawn.

    Args:
        trial: Any trial.
        by_number: Gives a trial of the same study by its number.
    """
    while "retry_of" in trial.user_attrs:
        trial = by_number(int(trial.user_attrs["retry_of"]))
        yield trial
