"""The chosen model into the registry."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from src.core.config import check_targets
from src.core.errors import UserError
from src.deployment import trained
from src.metrics.classification import probabilities
from src.reporting.collect import PredictionReader
from src.reporting.record import Report, ReportSettings
from src.tracking import model_registry, read


class PyfuncModel(nn.Module):
    """Normalisation, net and softmax in one.

    Args:
        net: Normalised images (N, 3, S, S) -> logits (N, K), or (N, 1) for two classes.
        mean: Channel means that are taken off, in [0, 1] units, red first.
        std: Channel deviations that are divided by.
    """

    def __init__(self, net: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.net = net
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, S, S), float32 in [0, 1] -> probabilities (N, K)."""
        return probabilities(self.net((images - self.mean) / self.std))


def served(config_file: Path, checkpoint: Path, classes: Sequence[str]) -> tuple[PyfuncModel, int]:
    """The net of a run and the side of its input in px.

    Args:
        config_file: The run's recorded config.
        checkpoint: Its weights, of a pruned net too; nothing in the file is executed.
        classes: In label order.

    Raises:
        UserError: The checkpoint is damaged, or of another net.
    """
    config = OmegaConf.load(config_file)
    assert isinstance(config, DictConfig)
    check_targets(config.model)
    classifier = trained.load_checkpoint(config, classes, checkpoint)
    return PyfuncModel(
        classifier.net, list(config.model.mean), list(config.model.std)
    ).eval(), classifier.image_size


log = logging.getLogger(__name__)
RECOMMENDED = "cheapest within"


def register(report: Report, reader: PredictionReader, settings: ReportSettings) -> None:
    """Register the cheapest model within the margin of the best, or the best where there is no such answer.

    Of a trial of several seeds the net of the first seed is taken: to take the best of them would
    be another choice.

    Args:
        report: With its answers.
        reader: Of the same store.
        settings: `register` is the model's name, `alias` what points to it.

    Raises:
        UserError: No answer chose a model, or its files are not there.
    """
    answer = next(
        (each for each in report.answers if each.run_id and each.name.startswith(RECOMMENDED)),
        next((each for each in report.answers if each.run_id), None),
    )
    if answer is None:
        raise UserError(f"register={settings.register}: no model was chosen, see the report")
    row = report.table.set_index("run_id").loc[answer.run_id]
    net_run = reader.study_of(answer.run_id).runs_of(answer.run_id)[0]
    frames = reader.predictions(answer.run_id, "val") or reader.predictions(answer.run_id, "test")
    if not frames:
        raise UserError(
            f"register={settings.register}: run {net_run} has no predictions that name its classes"
        )
    classes = [
        str(name).removeprefix("p/") for name in frames[0].columns if str(name).startswith("p/")
    ]
    net, image_size = served(
        read.artifact(reader.store, net_run, "config.yaml"),
        read.artifact(reader.store, net_run, "checkpoint/best.ckpt"),
        classes,
    )
    version = model_registry.register(
        reader.store,
        net_run,
        str(settings.register),
        settings.alias,
        net,
        image_size,
        classes,
        {
            "study": row["study"],
            "trial": row["trial"],
            "split": row["split"],
            "answer": answer.name,
        },
        f"{answer.question}\n\n{answer.text}\n\nResearch software, no medical device.",
    )
    log.info(
        "registered %s as version %d of %s, alias %s",
        row["label"],
        version,
        settings.register,
        settings.alias,
    )
