"""Knowledge distillation: a network learns from the answers of trained networks and the labels."""

from collections.abc import Sequence
from typing import Annotated

import torch.nn.functional as F
from annotated_types import Ge, Gt, Interval
from torch import Tensor, nn

from src.losses.cross_entropy import CrossEntropy
from src.metrics.classification import one_per_class


class Distillation(CrossEntropy):
    """Mix of the divergence from the mean of the teachers' softened answers and a label loss.

    The divergence is the mean Kullback-Leibler divergence in nats times temperature squared, which
    keeps the gradients of the same size at every temperature (Hinton, Vinyals & Dean, Distilling
    the knowledge in a neural network, 2015, section 2). The teachers see the same augmented images
    as the student (Beyer et al., Knowledge distillation: a good teacher is patient and consistent,
    CVPR 2022). In evaluation the loss is the label loss alone: cross-entropy or focal loss.

    Args:
        teachers: Networks: images (N, 3, S, S), uint8 or in [0, 1] -> logits. The framework loads
            them from the runs that the config key `teacher` names, and calls them while training.
            They are not part of the state.
        temperature: Softens the answers of both sides.
        share: Share of the divergence in the loss; the rest is the label loss.
        weighted: Whether classes are weighted inversely to their counts in the label loss.
        gamma: Above 0 the label loss is the focal loss, see `CrossEntropy`.
    """

    config_only = ("teacher",)

    def __init__(
        self,
        class_counts: Sequence[int],
        teachers: Sequence[nn.Module] = (),
        temperature: Annotated[float, Gt(0)] = 2.0,
        share: Annotated[float, Interval(ge=0, le=1)] = 0.5,
        weighted: bool = False,
        gamma: Annotated[float, Ge(0)] = 0.0,
    ) -> None:
        super().__init__(class_counts, weighted, gamma=gamma)
        # A tuple: as submodules they would be in every checkpoint of the student.
        self.teachers = tuple(teachers)
        self.temperature = temperature
        self.share = share

    def forward(
        self, logits: Tensor, target: Tensor, teacher_logits: Tensor | None = None
    ) -> Tensor:
        """Logits, labels as of `CrossEntropy`, and the teachers' logits (N, T, K) -> scalar."""
        hard = super().forward(logits, target)
        if teacher_logits is None:
            return hard
        temperature = self.temperature
        answers = one_per_class(teacher_logits.flatten(0, 1)).unflatten(0, teacher_logits.shape[:2])
        softened = F.softmax(answers.float() / temperature, dim=2).mean(dim=1)
        student = F.log_softmax(one_per_class(logits) / temperature, dim=1)
        soft = F.kl_div(student, softened, reduction="batchmean")
        return (1 - self.share) * hard + self.share * (soft * temperature**2)
