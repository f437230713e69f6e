"""How many trials a study shall have, and what is done about those that fail."""

from dataclasses import dataclass

from src.sweep.task import Kind, Outcome


@dataclass(frozen=True)
class Policy:
    """How a study is run.

    Attributes:
        n_trials: Trials that the study shall reach, those of earlier sittings included; None: every cell of a grid.
        is_grid: Whether the cells come in order instead of from the sampler.
        retries: How often a trial is tried again after a failure of one of the kinds in `retried`.
        retried: Kinds of failures that another try may cure.
        time_limit_s: Seconds that a trial may take; None for no limit.
        stop_after: The sweep stops when its first so many trials all fail in the same way; 0 never.
        retry_failed: Whether trials that failed for good in earlier sittings are tried again.
        grace_s: Seconds that a trial has to close its record when it is stopped.
        learns_from_pruned: Whether the sampler learns from pruned trials that break a limit.
    """

    n_trials: int | None
    is_grid: bool
    retries: int = 1
    retried: tuple[Kind, ...] = ("killed", "out_of_memory")
    time_limit_s: float | None = None
    stop_after: int = 3
    retry_failed: bool = False
    grace_s: float = 10.0
    learns_from_pruned: bool = True

    def allows_another_try(self, outcome: Outcome, attempt: int) -> bool:
        """Whether a failed trial is tried again.

        Args:
            outcome: Of the trial; one that was stopped with its sweep always is.
            attempt: How many tries went before it.
        """
        return outcome.kind == "stopped" or (outcome.kind in self.retried and attempt < self.retries)
