"""Registers the chosen model in MLflow's model registry."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from src.core.config import read_recorded
from src.core.errors import UserError
from src.deployment import trained
from src.metrics.classification import probabilities
from src.reporting.collect import PredictionReader
from src.reporting.record import Report, ReportSettings
from src.tracking import model_registry, read

log = logging.getLogger(__name__)


class PyfuncModel(nn.Module):
    """Normalisation, net and softmax in one module.

    Args:
        net: Normalised images (N, 3, S, S) -> logits (N, K), or (N, 1) for two classes.
        mean: Channel means, for images in [0, 1], red first.
        std: Channel standard deviations.
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


def pyfunc_model(
    config_file: Path, checkpoint: Path, classes: Sequence[str]
) -> tuple[PyfuncModel, int]:
    """The net of a run with its preprocessing, and the side of its input in px.

    Args:
        config_file: The run's recorded config.
        checkpoint: Its weights, also of a pruned net; nothing in the file is executed.
        classes: In label order.

    Raises:
        UserError: The checkpoint is damaged, or of another net.
    """
    config = read_recorded(Path(config_file))
    net = trained.load_checkpoint(config, classes, checkpoint).net
    model = PyfuncModel(net, list(config.model.mean), list(config.model.std))
    return model.eval(), int(config.data.image_size)


def register(report: Report, reader: PredictionReader, settings: ReportSettings) -> None:
    """Register the cheapest model within the margin, or the best one without such an answer.

    Of a trial with several seeds the net of the first seed is registered: the best seed would be
    another choice.

    Raises:
        UserError: No answer chose a model, or its files are missing.
    """
    answers = [answer for answer in report.answers if answer.run_id]
    cheapest = [answer for answer in answers if answer.name.startswith("cheapest within")]
    if not answers:
        raise UserError(f"register={settings.register}: no model was chosen, see the report")
    answer = (cheapest or answers)[0]
    row = report.table.set_index("run_id").loc[answer.run_id]
    net_run = reader.study_of(answer.run_id).runs_of(answer.run_id)[0]
    frames = reader.predictions(answer.run_id, "val") or reader.predictions(answer.run_id, "test")
    if not frames:
        problem = f"run {net_run} has no predictions that name its classes"
        raise UserError(f"register={settings.register}: {problem}")
    columns = frames[0].filter(regex="^p/").columns
    classes = [str(name).removeprefix("p/") for name in columns]
    files = ("config.yaml", "checkpoint/best.ckpt")
    config, checkpoint = (read.artifact(reader.store, net_run, name) for name in files)
    net, image_size = pyfunc_model(config, checkpoint, classes)
    tags = {name: row[name] for name in ("study", "trial", "split")} | {"answer": answer.name}
    note = f"{answer.question}\n\n{answer.text}\n\nResearch software, no medical device."
    target = (str(settings.register), settings.alias)
    version = model_registry.register(
        reader.store, net_run, *target, net, image_size, classes, tags, note
    )
    log.info("registered %s as version %d of %s, alias %s", row["label"], version, *target)
