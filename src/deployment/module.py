"""A deployed model as a net of torch's, so that it is evaluated, timed and recorded as all others are."""

import torch
from torch import Tensor, nn

from src.classifier import Classifier
from src.deployment.runtime import Runtime, in_batches

SMALLEST = 1e-12  # probability whose logarithm is taken for that of 0


class RuntimeNet(nn.Module):
    """What a runtime answers, as logits.

    Args:
        runtime: A loaded model.
    """

    outside_torch = True  # it works on the CPU, and torch sees none of its operators

    def __init__(self, runtime: Runtime) -> None:
        super().__init__()
        self.runtime = runtime

    def __deepcopy__(self, memo: dict[int, object]) -> "RuntimeNet":
        """The runtimes' sessions cannot be copied, and have no state that a call changes."""
        return RuntimeNet(self.runtime)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, S, S) in [0, 1], as whole 255ths -> logits (N, K), or (N, 1) for two classes."""
        pictures = images.detach().mul(255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()
        log_probability = torch.from_numpy(in_batches(self.runtime, pictures)).clamp_min(SMALLEST).log()
        if log_probability.shape[1] == 2:
            log_probability = log_probability[:, 1:] - log_probability[:, :1]
        return log_probability.to(images.device)


def as_classifier(runtime: Runtime, like: Classifier) -> Classifier:
    """A classifier around a deployed model, whose normalisation is inside the model.

    Args:
        runtime: A loaded model.
        like: Of the same classes; its loss and name are taken over.
    """
    found = Classifier(
        name=like.name,
        net=RuntimeNet(runtime),
        loss=like.loss,
        classes=runtime.description.classes,
        optimizer=like._optimizer,
        scheduler=like._scheduler,
        image_size=like.image_size,
        mean=[0.0, 0.0, 0.0],
        std=[1.0, 1.0, 1.0],
    )
    return found.eval()
