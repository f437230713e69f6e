import pytest
from small_world import Place

from src.core.errors import UserError
from src.deployment import trained as runs
from src.tracking.run import Run


def test_the_start_of_an_id_is_enough(trained: Place) -> None:
    found = runs.find(trained.store, trained.single[:12])
    assert (found.run_id, found.repeated, found.model, found.data) == (
        trained.single,
        False,
        "custom",
        "ham10000",
    )
    assert [net.seed for net in found.nets] == ["0"]
    assert found.config.data.image_size == 32
    assert found.title == f"custom ({trained.single[:8]})"


def test_a_trial_is_its_finished_seeds(trained: Place) -> None:
    found = runs.find(trained.store, trained.trial)
    assert found.repeated
    assert [net.seed for net in found.nets] == ["0", "1"]
    assert [net.run_id for net in found.nets] == [trained.single, trained.untested]
    assert [len(frames) for frames in (found.predictions(trained.store, "val"), found.nets)] == [
        2,
        2,
    ]
    assert found.predictions(trained.store, "test") == []  # only the first has been looked at
    assert [found.predicted(trained.store, split) for split in ("val", "test")] == [2, 1]


def test_predictions_that_cannot_be_read_are_not_taken_for_none(place: Place) -> None:
    found = runs.find(place.store, place.single)
    (
        place.folder
        / "mlruns"
        / "artifacts"
        / place.single
        / "artifacts"
        / "predictions"
        / "test.csv"
    ).write_text("")
    with pytest.raises(UserError, match=r"artifact 'predictions/test.csv' of run .* is no table"):
        found.predictions(place.store, "test")


def test_no_such_run(trained: Place) -> None:
    with pytest.raises(UserError, match="run=zzz: no such run"):
        runs.find(trained.store, "zzz")


def test_several_runs_that_start_so(trained: Place) -> None:
    with pytest.raises(UserError, match="run=: several runs start so: .*name more of the id"):
        runs.find(trained.store, "")


def test_runs_without_a_net_are_told(place: Place) -> None:
    store = place.store.open()
    with Run.start(store, "a", {"kind": "run"}) as pruned:
        pruned.ends_early("pruned", "behind at epoch 3")
    with (
        pytest.raises(ValueError, match="broken"),
        Run.start(store, "b", {"kind": "run"}) as failed,
    ):
        raise ValueError("broken")
    with Run.start(store, "c", {"kind": "run"}) as bare:
        pass
    with Run.start(store, "d", {"kind": "study"}) as study:
        pass
    with Run.start(store, "e", {"kind": "trial"}) as empty:
        pass
    with Run.start(store, "f", {"kind": "evaluation", "evaluated_run": "abc"}) as evaluation:
        pass
    unfinished = Run.start(store, "g", {"kind": "run"})
    for run, message in {
        pruned: "it was ended early: behind at epoch 3",
        failed: "it is FAILED: ValueError: broken",
        bare: "has no artifact 'checkpoint'",
        study: "is a study, not a trained run",
        empty: "it has no seeds",
        evaluation: "is an evaluation of run abc, not a trained run",
        unfinished: "it is RUNNING",
    }.items():
        with pytest.raises(UserError, match=message):
            runs.find(store, run.id)


def test_a_config_that_names_other_code_is_refused(place: Place) -> None:
    store = place.store.open()
    path = place.folder / "mlruns" / "artifacts" / place.single / "artifacts" / "config.yaml"
    path.write_text(path.read_text().replace("src.training.classifier.Classifier", "os.system"))
    with pytest.raises(UserError, match="must be a part of"):
        runs.find(store, place.single)
