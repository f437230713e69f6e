"""What passes between the owner of a study and the processes that run its trials. Plain values only: it travels."""

from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["complete", "pruned", "over_limit", "fail"]
Kind = Literal[
    "", "error", "diverged", "out_of_memory", "killed", "time_limit", "wrong_return", "bad_config", "stopped"
]


@dataclass(frozen=True)
class Slot:
    """A place where one trial can run at a time.

    Attributes:
        number: From 0.
        device: Id of the GPU that the trial sees, such as "0"; None for the CPU, or where the executor chooses.
        threads: CPU threads that torch may use; None leaves torch's choice.
    """

    number: int
    device: str | None = None
    threads: int | None = None


@dataclass(frozen=True)
class Task:
    """One trial to be run, in a process of its own.

    Attributes:
        storage: URL of the study's Optuna storage.
        study: The study's name.
        trial_id: Optuna's id of the trial, by which the process attaches to it.
        number: The trial's number within the study.
        folder: Absolute path of the trial's own folder; its log is `trial.log` in it.
        body: What runs the trial, as "package.module:function"; called with a `src.sweep.trial.TrialContext`.
        payload: What else the body needs; JSON values.
        slot: Where it runs.
    """

    storage: str
    study: str
    trial_id: int
    number: int
    folder: str
    body: str
    payload: dict[str, Any]
    slot: Slot = field(default_factory=lambda: Slot(0))


@dataclass(frozen=True)
class Ended:
    """A trial's process is gone.

    Attributes:
        task: What it ran.
        exitcode: 0 for an end in order; negative: minus the signal's number; None if the executor cannot know.
        note: For people: "killed by signal 9 (SIGKILL)", "the node was lost"; empty for an end in order.
    """

    task: Task
    exitcode: int | None
    note: str = ""


@dataclass(frozen=True)
class Outcome:
    """What a trial came to; written into the study as the user attribute `outcome` before its process ends.

    It is the commit point: a trial with an outcome is finished, whatever becomes of its process or of the owner.

    Attributes:
        state: complete; pruned (stopped early: it was behind); over_limit (not trained: it costs too much); fail.
        kind: Of a failure; "" otherwise.
        reason: One line for people; "" when complete.
        metrics: By their names in the run record; of a trial that was not trained only its cost.
        run_id: The trial's MLflow run; None if it never got one.
        epoch: The last epoch that was really trained and validated, from 1; 0 if none.
    """

    state: State
    kind: Kind = ""
    reason: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    run_id: str | None = None
    epoch: int = 0
