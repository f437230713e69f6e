"""A finished run teaches another one, unless it may have learned from its test images."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from src import train
from src.models.custom import CustomCNN
from src.tracking import read
from src.tracking.run import Run
from src.tracking.store import Store
from src.training.classifier import Classifier
from src.training.teachers import Teacher

Typed = Callable[..., tuple[int, str]]


def test_a_teacher_normalises_resizes_and_has_no_gradients() -> None:
    net = CustomCNN(image_size=32, outputs=3, width=4, norm="batch")
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    classifier = Classifier("net", net, nn.Identity(), "abc", None, None, 32, mean, std)  # type: ignore[arg-type]
    teacher = Teacher(classifier)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    columns = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    normalised = (images / 255 - next(columns)) / next(columns)
    torch.testing.assert_close(teacher(images), net(normalised))
    torch.testing.assert_close(teacher(images), teacher(images / 255))
    flat = torch.full((1, 3, 48, 48), 0.7)
    torch.testing.assert_close(teacher(flat), teacher(flat[..., :32, :32]))
    assert not net.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_student_learns_from_a_run_of_the_same_split_only(
    run_entry: Typed, empty_database: Path, tmp_path: Path
) -> None:
    database = tmp_path / "mlflow.db"
    database.write_bytes(empty_database.read_bytes())
    common = [
        "experiment=smoke",
        f"tracking.uri=sqlite:///{database}",
        "tracking.experiment=template",
        f"data.cache_dir={tmp_path}/cache",
        f"hydra.run.dir={tmp_path}/run",
        "trainer.max_epochs=1",
        "model.net.width=8",
    ]
    assert run_entry(train.main, *common)[0] == 0
    store = Store(uri=f"sqlite:///{database}", experiment="template", folder=tmp_path)
    teacher = str(read.runs(store).at[0, "run_id"])

    def distil(run_id: str, *more: str) -> tuple[int, str]:
        return run_entry(train.main, *common, "loss=distillation", f"loss.teacher={run_id}", *more)

    status, output = distil(teacher)
    assert status == 0, output
    student = read.runs(store).iloc[0]
    assert student["params.loss.teacher"] == teacher
    checkpoint = read.artifact(store, student["run_id"], "checkpoint/best.ckpt")
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(name.startswith("net.") for name in weights)

    def assert_refused(result: tuple[int, str], problem: str) -> None:
        assert result[0] == 2
        assert f"loss.teacher: {problem}" in result[1]
        assert "Traceback" not in result[1]

    other_split = distil(teacher, "data.split_seed=1")
    assert_refused(other_split, f"run {teacher} was trained on another split")
    Run.attach(store, teacher).tag(weights="file:other.pt")
    assert_refused(distil(teacher), f"run {teacher} started from a file of weights")
    store.client.set_terminated(teacher, "FAILED")
    problem = f"must be the id of a finished run in {store.uri}, but got "
    assert_refused(distil(teacher), f"{problem}{teacher}: it is FAILED")
    assert_refused(distil("0123abcd"), f"{problem}0123abcd: there is no such run")
    assert_refused(distil("[]"), "must be the id of a finished run, or a list of ids, but is empty")
