"""A finished run teaches another one, unless it may have learned from its test images."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_store import CONFIG, write_run
from torch import nn

from src import api, train
from src.core.errors import ConfigError
from src.models.custom import CustomCNN
from src.tracking import read
from src.tracking.run import Run
from src.tracking.store import Store
from src.training import loop, teachers
from src.training.classifier import Classifier
from src.training.teachers import Teacher


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
    run_entry: Callable[..., tuple[int, str]], store: Store, tmp_path: Path
) -> None:
    teacher = write_run(store, tmp_path, seed=0)
    common = [*CONFIG, f"data.cache_dir={tmp_path}/cache", f"tracking.uri={store.uri}"]
    common += ["trainer.max_epochs=1", "efficiency=fast", f"hydra.run.dir={tmp_path}/run"]
    common += ["loss=distillation", f"tracking.folder={tmp_path}"]
    status, output = run_entry(train.main, *common, f"loss.teacher={teacher}")
    assert status == 0, output
    student = read.runs(store).iloc[0]
    assert student["params.loss.teacher"] == teacher
    checkpoint = read.artifact(store, student["run_id"], "checkpoint/best.ckpt")
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(name.startswith("net.") for name in weights)
    status, output = run_entry(train.main, *common, f"loss.teacher={teacher}", "data.split_seed=1")
    assert status == 2
    assert f"loss.teacher: run {teacher} was trained on another split" in output
    assert "Traceback" not in output

    data = loop.build(api.compose([*common[:-3], "loss=cross_entropy"])).data
    assert len(teachers.load(store, [teacher, student["run_id"]], data)) == 2
    Run.attach(store, teacher).tag(weights="file:other.pt")
    store.client.set_terminated(student["run_id"], "FAILED")
    finished = f"must be the id of a finished run in {store.uri}, but got "
    for run_ids, problem in {
        teacher: f"run {teacher} started from a file of weights",
        student["run_id"]: f"{finished}{student['run_id']}: it is FAILED",
        "0123abcd": f"{finished}0123abcd: there is no such run",
        (): "must be the id of a finished run, or a list of ids, but is empty",
    }.items():
        with pytest.raises(ConfigError, match=f"^loss.teacher: {re.escape(problem)}"):
            teachers.load(store, run_ids, data)
