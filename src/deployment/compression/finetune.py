"""Later stages of a training: batch normalisation folded and fine-tuned, weights averaged."""

from dataclasses import dataclass, field
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch.optim.swa_utils import AveragedModel, update_bn

from src.core.environment import seed_everything
from src.core.errors import ConfigError, UserError
from src.deployment.compression.base import CompressedModel, CompressionContext
from src.models.structure import fold

_TOLERANCE = 1e-3  # of folding, as a share of the largest output: rounding in float32 is far less


def recalibrate(context: CompressionContext, images: int) -> None:
    """Set the running statistics of batch normalisation to those of training images."""
    if images:
        data = context.data
        pictures = torch.from_numpy(context.calibration_images(images, data.seed))
        batches = pictures.permute(0, 3, 1, 2).split(data.batch_size)
        update_bn([batch for batch in batches if len(batch) > 1], context.classifier)


@dataclass
class Fold:
    """Fold the batch normalisation into the convolutions, then fine-tune.

    A folded net trains faster, as normalisation takes a large share of a step on a CPU, and its
    weights can be averaged. A net without batch normalisation is fine-tuned as it is. The arguments
    are explained in conf/compression/fold.yaml.
    """

    images: Annotated[int, Ge(0)] = 2048
    epochs: Annotated[int, Ge(0)] = 10
    lr: Annotated[float, Gt(0)] = 1e-3
    seed: Annotated[int, Ge(0)] = 0

    config_only = ("name",)

    def compress(self, context: CompressionContext) -> CompressedModel:
        """Fold and fine-tune the net in place; UserError if it cannot be folded."""
        classifier, net = context.classifier, context.network()
        recalibrate(context, self.images)
        picture = torch.from_numpy(context.calibration_images(8, context.data.seed))
        picture = picture.permute(0, 3, 1, 2)
        with torch.no_grad():
            before = classifier.eval()(picture)
            layers = fold(net)
            error = float((classifier(picture) - before).abs().max())
        if not error <= _TOLERANCE * max(1.0, float(before.abs().max())):
            problem = f"its output would change by {error:.2g}"
            raise UserError(f"{classifier.name} cannot be folded: {problem}")
        if self.epochs:
            seed_everything(self.seed)
            context.tune(classifier, self.epochs, self.lr)
        return CompressedModel(classifier, facts={"layers": layers})


@dataclass
class Average:
    """The mean of the origin's weights and those of other runs of the same network.

    Source: Wortsman et al., Model soups, ICML 2022: the mean of several fine-tunes of one net is
    often better than each of them, at the cost of one. The arguments are explained in
    conf/compression/average.yaml.
    """

    runs: list[str] = field(default_factory=list)
    images: Annotated[int, Ge(0)] = 2048

    config_only = ("name",)

    def compress(self, context: CompressionContext) -> CompressedModel:
        """Average the weights into the origin's net.

        Raises:
            ConfigError: A run cannot be loaded, or is of another network.
        """
        net = context.network()
        mean = AveragedModel(net, use_buffers=True)
        mean.update_parameters(net)
        shapes = {name: tensor.shape for name, tensor in net.state_dict().items()}
        for run_id, other in zip(self.runs, context.load(self.runs), strict=True):
            if shapes != {name: tensor.shape for name, tensor in other.net.state_dict().items()}:
                raise ConfigError("compression.runs", f"{run_id} is of another network than origin")
            mean.update_parameters(other.net)
        net.load_state_dict(mean.module.state_dict())
        recalibrate(context, self.images)
        facts: dict[str, float | str] = {"nets": 1 + len(self.runs), "runs": ", ".join(self.runs)}
        return CompressedModel(context.classifier, facts=facts)
