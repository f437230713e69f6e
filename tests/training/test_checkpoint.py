import pickle
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from quiet_trainer import quiet_trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from src.core.errors import ConfigError, DivergedError, UserError
from src.models import structure
from src.models.weights import load_weights, save_weights
from src.training.checkpoint import BestEpoch, LastState, StopEarly


class Counter(LightningModule):
    """Its one weight counts the epochs; its validation metric is fixed beforehand."""

    def __init__(self, values: Sequence[float] = (), losses: Sequence[float] = ()) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.values = values
        self.losses = losses or [1.0] * len(values)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.log("train/loss", self.losses[self.current_epoch], on_step=False, on_epoch=True)
        return -self.weight.sum()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        value = self.values[self.current_epoch]
        self.log_dict({"val/auroc": value, "val/loss": -value})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


def fit(
    folder: Path,
    values: list[float],
    metric: str = "val/auroc",
    has_validation: bool = True,
    losses: Sequence[float] = (),
    more: Sequence[Callback] = (),
    kind: type[Counter] = Counter,
) -> BestEpoch:
    best = BestEpoch(metric, folder, has_validation)
    loader = DataLoader(TensorDataset(torch.zeros(1, 1)))
    trainer = quiet_trainer(len(values), callbacks=[best, *more])
    trainer.fit(kind(values, losses), loader, loader if has_validation else None)
    return best


@pytest.mark.parametrize(
    ("metric", "has_validation", "epoch"),
    [("val/auroc", True, 1), ("val/loss", True, 1), ("val/auroc", False, 2)],
)
def test_best_epoch_is_kept_in_either_direction_and_the_last_one_without_validation(
    tmp_path: Path, metric: str, has_validation: bool, epoch: int
) -> None:
    best = fit(tmp_path, [0.5, 0.9, 0.7], metric, has_validation)
    assert best.epoch == epoch
    assert best.chosen_by == (metric if has_validation else "last epoch")
    assert [file.name for file in tmp_path.iterdir()] == ["best.ckpt"]
    module = Counter()
    load_weights(module, best.best_model_path)
    assert module.weight.item() == epoch + 1
    if has_validation:
        assert [row["val/auroc"] for row in best.history] == pytest.approx([0.5, 0.9, 0.7])


def test_divergence_ends_training_with_its_epoch_and_a_way_out(tmp_path: Path) -> None:
    nan = float("nan")
    with pytest.raises(DivergedError, match=r"train/loss is nan in epoch 2: .*lower optimizer\.lr"):
        fit(tmp_path, [0.5, 0.5, 0.5], losses=[1.0, nan, 1.0])
    with pytest.raises(DivergedError, match=r"val/(auroc|loss) is nan in epoch 3: "):
        fit(tmp_path, [0.5, 0.5, nan])


@pytest.mark.parametrize("kind", [BestEpoch, StopEarly])
def test_epochs_are_chosen_by_validation_metrics_only(kind: type) -> None:
    for metric in ("test/auroc", "train/loss", "val/decision/balanced/accuracy"):
        with pytest.raises(ConfigError, match="must be of the validation split"):
            kind(metric)
    with pytest.raises(ConfigError, match="val/balanced_acuracy"):
        kind("val/balanced_acuracy")
    assert [kind(metric).mode for metric in ("val/loss", "val/auroc")] == ["min", "max"]


def test_bad_checkpoints_are_named_and_never_executed(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "executed",))  # type: ignore[return-value]

    (tmp_path / "bad.ckpt").write_bytes(pickle.dumps(Malicious()))
    torch.save({"state_dict": {"other": torch.zeros(1)}}, tmp_path / "other.ckpt")
    for name, problem in {
        "nowhere": "no such checkpoint",
        "bad": "not a checkpoint: holds more than tensors$",  # torch advises to execute it
        "other": "not a checkpoint of this network",
    }.items():
        with pytest.raises(UserError, match=rf"{name}\.ckpt: {problem}"):
            load_weights(Counter(), tmp_path / f"{name}.ckpt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(("seconds", "written"), [(0, [1, 2, 3, 4]), (1e9, [4]), (None, [])])
def test_state_is_written_as_often_as_asked_and_after_the_last_epoch(
    tmp_path: Path, seconds: float | None, written: list[int]
) -> None:
    last = LastState(tmp_path, "any", seconds)
    seen = []

    class Watch(Checkpoint):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if last.path.exists():
                content = torch.load(last.path, weights_only=True)
                seen.append(content["state_dict"]["weight"].item())
                last.path.unlink()

    fit(tmp_path, [0.5] * 4, more=[last, Watch()])
    assert seen == written
    assert [file.name for file in tmp_path.iterdir()] == ["best.ckpt"]


class Sometimes(Counter):
    """A metric that is undefined after the first epoch."""

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        if self.current_epoch == 0:
            self.log("val/precision/mel", 0.5)


def test_state_that_early_stopping_makes_the_last_one_is_written(tmp_path: Path) -> None:
    last = LastState(tmp_path, "any", 1e9)
    stop = StopEarly("val/auroc", patience=1)
    best = fit(tmp_path, [0.9, 0.5, 0.4, 0.3], more=[last, stop], kind=Sometimes)
    assert ["val/precision/mel" in row for row in best.history] == [True, False]
    assert torch.load(last.path, weights_only=True)["state_dict"]["weight"].item() == 2


class AllLayers(nn.Module):
    """A net of every kind of layer that can be made smaller."""

    def __init__(
        self, width: int = 6, inner: int = 8, outputs: int = 3, kernel: int = 3, groups: int = 2
    ) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, width, kernel, padding=kernel // 2),
            nn.BatchNorm2d(width),
            nn.Conv2d(width, width, 3, groups=width, bias=False),
            nn.Conv2d(width, inner, 3, groups=groups),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(inner, inner),
            nn.BatchNorm1d(inner, affine=False),
            nn.Linear(inner, outputs),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)


def written(folder: Path, module: nn.Module, pruned: bool) -> Path:
    if pruned:
        structure.mark_pruned(module.net)  # type: ignore[arg-type]  # torch's stub
    save_weights(module, folder / "made" / "best.ckpt")
    assert [file.name for file in (folder / "made").iterdir()] == ["best.ckpt"]
    return folder / "made" / "best.ckpt"


def test_smaller_net_is_opened_by_its_checkpoint(tmp_path: Path) -> None:
    smaller, images = AllLayers(4, 6).eval(), torch.rand(2, 3, 8, 8)
    path = written(tmp_path, smaller, pruned=False)
    load_weights(AllLayers(4, 6), path)
    with pytest.raises(UserError, match=r"best\.ckpt: not a checkpoint of this network"):
        load_weights(AllLayers(), path)
    path = written(tmp_path, smaller, pruned=True)
    opened = AllLayers().eval()
    opened.net[0].requires_grad_(False)
    load_weights(opened, path)
    assert torch.equal(opened(images), smaller(images))
    for one, other in zip(opened.modules(), smaller.modules(), strict=True):
        assert one.extra_repr() == other.extra_repr()  # channels, features and groups
    trained = [parameter.requires_grad for parameter in opened.parameters()]
    assert trained == [False] * 2 + [True] * 9
    save_weights(opened, path)  # for example after fine-tuning: it is still a pruned one
    load_weights(AllLayers(), path)


class Scaled(AllLayers):
    """A net with a weight that no layer of a known kind has."""

    def __init__(self, width: int = 6) -> None:
        super().__init__(width)
        self.scale = nn.Parameter(torch.ones(width))


@pytest.mark.parametrize(
    ("smaller", "full", "why"),
    [
        (AllLayers(8), AllLayers(), r"net\.0\.weight is \(8, 3, 3, 3\), which is no part of"),
        (AllLayers(4, kernel=1), AllLayers(), r"no part of \(6, 3, 3, 3\)"),
        (
            AllLayers(4, outputs=2),
            AllLayers(),
            r"inputs and outputs must be \(3, 3\) .* but are \(3, 2\)",
        ),
        (AllLayers(3, 9, groups=3), AllLayers(6, 12), r"net\.3: 9 channels cannot be in 2 groups"),
        (AllLayers(4).net, AllLayers(), r"Error\(s\) in loading"),
        (Scaled(4), Scaled(), r"Error\(s\) in loading"),
        (Counter(), AllLayers(), r"Error\(s\) in loading"),
        (
            AllLayers(4).state_dict() | {"net.1.bias": torch.zeros(3)},
            AllLayers(),
            r"net\.1: its tensors have different numbers of channels, \[3, 4\]",
        ),
    ],
)
def test_a_checkpoint_that_is_no_pruned_part_of_the_net_is_refused(
    smaller: nn.Module | dict[str, Tensor], full: nn.Module, why: str, tmp_path: Path
) -> None:
    if isinstance(smaller, dict):
        torch.save({"state_dict": smaller, "pruned": True}, tmp_path / "best.ckpt")
    else:
        structure.mark_pruned(getattr(smaller, "net", smaller))
        save_weights(smaller, tmp_path / "best.ckpt")
    message = rf"best\.ckpt: not a checkpoint of this network: .*{why}"
    with pytest.raises(UserError, match=message) as caught:
        load_weights(full, tmp_path / "best.ckpt")
    assert "\n" not in str(caught.value)


def test_checkpoint_that_cannot_be_written_leaves_nothing_and_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, Counter(), pruned=False)
    content = path.read_bytes()

    def full(part: Path, packed: memoryview) -> None:
        with part.open("wb") as file:
            file.write(packed[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    message = r"best\.ckpt: the checkpoint cannot be written there .*No space left"
    with pytest.raises(UserError, match=message):
        save_weights(Counter(), path)
    assert [file.name for file in path.parent.iterdir()] == ["best.ckpt"]
    assert path.read_bytes() == content
    with pytest.raises(UserError, match="cannot be written there"):
        save_weights(Counter(), path / "below" / "best.ckpt")
