import copy
import functools
import logging
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback, Trainer
from quiet_trainer import quiet_trainer
from sklearn.metrics import balanced_accuracy_score, log_loss
from torch import Tensor, nn

from src.core.config import check
from src.core.errors import ConfigError, DependencyError
from src.losses.cross_entropy import CrossEntropy
from src.training import schedules
from src.training.classifier import COMPILE_S, TIMED, Classifier, as_float


class Net(nn.Module):
    """A backbone and a head, so that learning-rate factors have something to act on."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, outputs)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images).mean(dim=(2, 3)))


def classifier(
    outputs: int = 3, classes: tuple[str, ...] = ("a", "b", "c"), **changes: object
) -> Classifier:
    torch.manual_seed(0)
    settings: dict[str, object] = {
        "name": "net",
        "net": Net(outputs),
        "loss": CrossEntropy(class_counts=[10] * len(classes)),
        "classes": classes,
        "optimizer": functools.partial(torch.optim.SGD, lr=0.1),
        "scheduler": schedules.constant,
        "image_size": 8,
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.4],
        **changes,
    }
    return Classifier(**settings)  # type: ignore[arg-type]


class Loader:
    """The loader that Lightning needs; it takes a bare list for several of them."""

    def __init__(self, batches: list[dict[str, Tensor]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (dict(batch) for batch in self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def batches(classes: int, sizes: tuple[int, ...] = (6, 6, 4)) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    made, row = [], 0
    for size in sizes:
        image = torch.randint(0, 256, (size, 3, 8, 8), dtype=torch.uint8, generator=generator)
        label = torch.randint(0, classes, (size,), generator=generator)
        made.append({"image": image, "label": label, "row": torch.arange(row, row + size)})
        row += size
    return made


def test_bytes_and_floats_are_normalised_alike() -> None:
    module = classifier()
    image = batches(3)[0]["image"]
    mean, std = (np.reshape(row, (1, 3, 1, 1)) for row in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]))
    expected = module.net(torch.from_numpy((image.numpy() / 255 - mean) / std).float())
    torch.testing.assert_close(module(image), expected)
    torch.testing.assert_close(module(image.float() / 255), expected)
    image = torch.zeros(2, 3, 4, 4, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    assert as_float(image).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("outputs", "classes"), [(3, ("a", "b", "c")), (1, ("benign", "malignant"))]
)
def test_evaluation_agrees_with_scikit_learn_and_training_with_evaluation(
    outputs: int, classes: tuple[str, ...]
) -> None:
    frozen = functools.partial(torch.optim.SGD, lr=0.0)
    module, data = classifier(outputs, classes, optimizer=frozen), batches(len(classes))
    logged = quiet_trainer().validate(module, Loader(data), verbose=False)[0]
    rows, probability = module.predictions()
    image, label = (torch.cat([batch[key] for batch in data]) for key in ("image", "label"))
    assert rows.tolist() == list(range(16))
    assert probability.shape == (16, len(classes))
    np.testing.assert_allclose(probability.sum(dim=1), 1, rtol=1e-5)
    expected = balanced_accuracy_score(label, probability.argmax(dim=1))
    assert logged["val/balanced_accuracy"] == pytest.approx(expected, abs=1e-6)
    expected = log_loss(label, probability, labels=range(len(classes)))
    assert logged["val/loss"] == pytest.approx(expected, abs=1e-5)

    fitter = quiet_trainer(epochs=2)
    fitter.fit(module, Loader(data), Loader(data))
    metrics = {name: float(value) for name, value in fitter.callback_metrics.items()}
    assert metrics["train/accuracy"] == pytest.approx(metrics["val/accuracy"], abs=1e-6)
    assert 0 < metrics["train/accuracy"] < 1
    with torch.no_grad():  # the mean over images, which validation does not disturb
        expected = float(module.loss(module(image), label))
    for name in ("train/loss", "val/loss"):
        assert metrics[name] == pytest.approx(expected, rel=1e-5)


def test_backbone_gets_its_learning_rate_factor_or_is_frozen() -> None:
    module = classifier(backbone_lr_factor=0.1)
    fitter = quiet_trainer()
    fitter.fit(module, Loader(batches(3)))
    head, backbone = fitter.optimizers[0].param_groups
    assert (head["lr"], backbone["lr"]) == (0.1, pytest.approx(0.01))
    for group, part in ((head, module.net.head), (backbone, module.net.backbone)):
        assert set(map(id, group["params"])) == set(map(id, part.parameters()))  # type: ignore[union-attr]
    net = Net(3)
    net.backbone.requires_grad_(False)
    fitter = quiet_trainer()
    fitter.fit(classifier(net=net), Loader(batches(3)))
    assert sum(len(group["params"]) for group in fitter.optimizers[0].param_groups) == 2
    with pytest.raises(ConfigError, match="three numbers"):
        classifier(mean=[0.5])


STEPS = 2 * TIMED + 4


class StepLosses(Callback):
    """The loss of each training step, and whether the net was compiled in it."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.compiled: list[bool] = []

    def on_train_batch_end(
        self, trainer: Trainer, module: Classifier, outputs: Any, *_: Any
    ) -> None:
        self.losses.append(float(outputs["loss"]))
        self.compiled.append(module._compiled is not None)


def trained(compiling: bool | str, **changes: object) -> tuple[Classifier, StepLosses]:
    module, record = classifier(**changes), StepLosses()
    module.compiling = compiling  # type: ignore[assignment]
    fitter = quiet_trainer(callbacks=[record], enable_checkpointing=False)
    fitter.fit(module, Loader(batches(3, (6,) * STEPS)), Loader(batches(3)))
    return module, record


def test_compiled_steps_give_the_eager_losses_and_an_equal_checkpoint() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3))
    eager, expected = trained(False, net=copy.deepcopy(net))
    module, record = trained(True, net=net)
    assert record.compiled == [False] * (TIMED + 1) + [True] * (TIMED + 3)
    torch.testing.assert_close(record.losses, expected.losses, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(module.state_dict(), eager.state_dict(), rtol=1e-3, atol=1e-5)
    assert set(module.compile_cost) == {"time/compile_s", "time/compile_speedup"}
    assert min(module.compile_cost.values()) > 0
    assert (eager.compile_cost, module._compiled) == ({}, None)


def no_compiler(forward: Callable[[Tensor], Tensor], **_: object) -> Callable[[Tensor], Tensor]:
    def fail(images: Tensor) -> Tensor:
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found in (None, 'g++')")

    return fail


def test_a_missing_compiler_is_one_line_and_auto_trains_without_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("src.training.classifier.COMPILE_S", 0.0)
    monkeypatch.setattr(torch, "compile", no_compiler)
    problem = "torch.compile needs a C[+][+] compiler, such as g[+][+]"
    with pytest.raises(DependencyError, match=f"^trainer.compile=true: {problem}$"):
        trained(True)
    with caplog.at_level(logging.WARNING, "src.training.classifier"):
        record = trained("auto")[1]
    assert record.losses == trained(False)[1].losses
    (line,) = [item.getMessage() for item in caplog.records if "classifier" in item.name]
    assert re.fullmatch(f"trainer.compile=auto: the training is not compiled: {problem}", line)


@pytest.mark.parametrize(
    ("compile_s", "pause_s"),
    [(COMPILE_S, 0.0), (0.0, 0.0), (0.0, 0.05)],
    ids=["a short training", "a long training", "a slower step"],
)
def test_auto_compiles_what_pays(
    monkeypatch: pytest.MonkeyPatch, compile_s: float, pause_s: float
) -> None:
    def slower(forward: Callable[[Tensor], Tensor], **_: object) -> Callable[[Tensor], Tensor]:
        def paused(images: Tensor) -> Tensor:
            time.sleep(pause_s)
            return forward(images)

        return paused

    monkeypatch.setattr("src.training.classifier.COMPILE_S", compile_s)
    monkeypatch.setattr(torch, "compile", slower)
    module, record = trained("auto")
    assert record.compiled[TIMED + 1] == (compile_s == 0.0) == bool(module.compile_cost)
    assert not (pause_s and record.compiled[-1])


def test_compile_is_checked_with_the_trainer() -> None:
    node = {"_target_": "pytorch_lightning.Trainer", "max_epochs": 1}
    for choice in (True, False, "auto"):
        check({**node, "compile": choice}, "trainer")
    with pytest.raises(ConfigError, match=r"^trainer.compile: .*but got 'fast'"):
        check({**node, "compile": "fast"}, "trainer")
    with pytest.raises(ConfigError, match="unknown key"):
        check({**node, "compile": True}, "callbacks.trainer")
