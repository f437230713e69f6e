"""A trial that is killed after its training, and the retry that continues from its state."""

from pathlib import Path
from typing import Any

import optuna
import pytest

from src.sweep.records import STATE, Pruned, Task, TrialOutcome
from src.sweep.storage import open_storage
from src.sweep.trial import TERMINATED, TrialContext, main
from src.tracking.store import Store
from src.training import loop
from src.training.classifier import Classifier

optuna.logging.set_verbosity(optuna.logging.ERROR)


EPOCHS = 3
CELL = [
    "experiment=smoke",
    f"trainer.max_epochs={EPOCHS}",
    "trainer.accelerator=cpu",
    "threads=1",
    "efficiency=fast",
    "data.source.lesions=120",
    "data.batch_size=16",
    "model.image_size=32",
    "model.net.width=4",
]


class RealStudy:
    """A real study with real trials, run in this process."""

    def __init__(self, folder: Path) -> None:
        self.url = f"sqlite:///{folder}/optuna.db"
        self.study = optuna.create_study(
            storage=open_storage(self.url), study_name="s", direction="maximize"
        )
        store = Store(folder=folder / "mlruns")
        store.open()
        self.folder = folder
        self.payload = {
            "overrides": [*CELL, f"data.cache_dir={folder / 'cache'}"],
            "cell": [],
            "objectives": [{"metric": "val/balanced_accuracy"}],
            "limits": [],
            "tracking": {
                "uri": store.uri,
                "experiment": store.experiment,
                "folder": str(store.folder),
            },
            "study_run": None,
            "git": ["0", False],
            "drop_p": 0.1,
            "keep_state_s": 0,
        }

    def task(self, repeats: int, *continues: Path) -> Task:
        asked = self.study.ask()
        folder = self.folder / f"{asked.number:04d}"
        folder.mkdir()
        payload = self.payload | {
            "repeats": repeats,
            "continues": [str(each) for each in continues],
        }
        return Task(
            self.url, "s", asked._trial_id, asked.number, str(folder), "src.run:run_trial", payload
        )

    def attributes(self, task: Task) -> dict[str, Any]:
        return self.study.trials[task.number].user_attrs

    def outcome(self, task: Task) -> TrialOutcome:
        return TrialOutcome(**self.attributes(task)["outcome"])

    def states(self) -> list[str]:
        return sorted(str(file.relative_to(self.folder)) for file in self.folder.rglob("last.*"))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> RealStudy:
    return RealStudy(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def undisturbed(study: RealStudy) -> dict[str, float]:
    """What a trial comes to that nobody disturbs."""
    task = study.task(1)
    main(task)
    assert study.states() == []
    assert study.outcome(task).epoch == EPOCHS
    return of_the_net(study.outcome(task).metrics)


def of_the_net(metrics: dict[str, float]) -> dict[str, float]:
    """Those that no clock measures."""
    clocks = ("time/", "efficiency/latency", "efficiency/throughput", "efficiency/peak")
    return {name: value for name, value in metrics.items() if not name.startswith(clocks)}


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each batch that is trained."""
    done: list[int] = []
    train = Classifier.training_step

    def counted(classifier: Classifier, *batch: Any) -> Any:
        done.append(len(done))
        return train(classifier, *batch)

    monkeypatch.setattr(Classifier, "training_step", counted)
    return done


@pytest.mark.parametrize(("repeats", "step"), [(1, "measure"), (2, "evaluate")])
def test_a_trial_killed_between_its_training_and_its_outcome_trains_nothing_again(
    study: RealStudy,
    undisturbed: dict[str, float],
    steps: list[int],
    monkeypatch: pytest.MonkeyPatch,
    repeats: int,
    step: str,
) -> None:
    def terminated(*_: Any, **__: Any) -> Any:
        raise SystemExit(TERMINATED)

    first = study.task(repeats)
    with monkeypatch.context() as killed:
        killed.setattr(loop, step, terminated)
        with pytest.raises(SystemExit):
            main(first)
    trained = len(steps)
    assert trained > 0
    assert "outcome" not in study.attributes(first)
    assert study.states() == [f"{first.number:04d}/" + ("seed-0/" if repeats > 1 else "") + STATE]
    second = study.task(repeats, Path(first.folder))
    main(second)
    assert len(steps) == repeats * trained  # the other seed's, if there is one, and no more
    outcome = study.outcome(second)
    assert (outcome.state, outcome.epoch) == ("complete", EPOCHS)
    assert (
        of_the_net(outcome.metrics if repeats == 1 else study.attributes(second)["repeat:0"])
        == undisturbed
    )
    assert outcome.metrics["time/images_per_s"] > 0
    assert study.states() == []


def test_a_pruned_trial_leaves_no_state(study: RealStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def behind(context: TrialContext, epoch: int, *_: Any) -> None:
        seen.append(study.states())
        if epoch == 2:
            raise Pruned("behind")

    monkeypatch.setattr(TrialContext, "_note", behind)
    task = study.task(1)
    main(task)
    assert len(seen[1]) == 1  # there was one
    assert study.outcome(task).state == "pruned"
    assert study.states() == []
