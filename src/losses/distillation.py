"""Knowledge distillation: a small net learns from the answers of larger ones as well as from the labels."""

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Interval
from torch import Tensor, nn

from src.losses.class_weights import balanced
from src.losses.focal import focal
from src.metrics.classification import one_per_class


def divergence(logits: Tensor, answers: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean divergence of a student from soft answers, times the temperature squared, in nats.

    The factor keeps the gradients of the same size at every temperature (Hinton, Vinyals & Dean,
    Distilling the knowledge in a neural network, 2015, section 2).

    Args:
        logits: The student's, (N, K), or (N, 1) for two classes.
        answers: The teachers' probabilities at this temperature, (N, K), K = 2 for logits (N, 1).
        temperature: By which the student's logits are divided.
    """
    log_probability = F.log_softmax(one_per_class(logits) / temperature, dim=1)
    return F.kl_div(log_probability, answers, reduction="batchmean") * temperature**2


class Distillation(nn.Module):
    """`divergence` from the mean of the teachers' softened answers beside a loss with the labels.

    The teachers see the very images that the student is fed, augmented as they are: a consistent
    teacher (Beyer et al., Knowledge distillation: a good teacher is patient and consistent, CVPR
    2022). On images that are evaluated there is no teaching: the loss is then that with the labels
    alone, cross-entropy or focal loss.

    Args:
        class_counts: Training images of each class, in label order.
        teachers: Batches of images (N, 3, S, S), uint8 or in [0, 1] -> logits; given by the
            training code. They are no part of this module's state.
        teacher: In a config: the id of their run, or a list of ids; for the training code.
        temperature: That softens both sides' answers.
        share: Of the divergence in the whole; the rest is that of the loss with the labels.
        weighted: Whether that one's classes are weighted inversely to their counts.
        gamma: How much it plays down well-classified images, see `focal`; 0 is cross-entropy.

    Raises:
        ConfigError: `weighted`, and a class without training images.
    """

    config_only = ("teacher",)
    weight: Tensor | None

    def __init__(
        self,
        class_counts: Sequence[int],
        teachers: Sequence[nn.Module] = (),
        temperature: Annotated[float, Gt(0)] = 2.0,
        share: Annotated[float, Interval(ge=0, le=1)] = 0.5,
        weighted: bool = False,
        gamma: Annotated[float, Ge(0)] = 0.0,
    ) -> None:
        super().__init__()
        self._teachers = tuple(
            teachers
        )  # a tuple: as submodules they would be in every checkpoint of the student
        self.temperature = temperature
        self.share = share
        self.gamma = gamma
        self.register_buffer(
            "weight", balanced(class_counts) if weighted else None, persistent=False
        )

    def forward(self, logits: Tensor, target: Tensor, images: Tensor | None = None) -> Tensor:
        """Logits (N, K) or (N, 1), labels (N,) and, while training, what the student was fed (N, 3, S, S) -> scalar."""
        hard = focal(logits, target, self.gamma, self.weight)
        if images is None or not self._teachers:
            return hard
        return (1 - self.share) * hard + self.share * divergence(
            logits, self._answers(images), self.temperature
        )

    @torch.no_grad()
    def _answers(self, images: Tensor) -> Tensor:
        softened = [
            torch.softmax(
                one_per_class(teacher.to(images.device)(images)).float() / self.temperature, dim=1
            )
            for teacher in self._teachers
        ]
        return torch.stack(softened).mean(dim=0)
