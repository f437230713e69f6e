"""Cross-entropy: plain, class-weighted, smoothed, focal, with class priors; base of all losses."""

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Interval
from torch import Tensor, nn

from src.core.errors import ConfigError
from src.metrics.classification import one_per_class


class CrossEntropy(nn.Module):
    """Mean cross-entropy in nats as torch defines it; two classes may share one column.

    docs/extending.md has the contract of a loss; it need not inherit from this class.

    Args:
        class_counts: Training images of each class, in label order.
        weighted: Whether classes are weighted inversely to their counts. The sum is then divided by
            the sum of the targets' weights, not by N: the scale of the loss is kept.
        label_smoothing: Share of the target's mass that is spread evenly over all classes.
        gamma: The loss is multiplied by (1 - p)^gamma, p: probability of the class, so that
            well-classified images count less (focal loss; Lin et al., arXiv 1708.02002).
        prior: Factor on the log of the classes' shares in training, which is added to the logits.
            With 1 the net learns logits that favour no class, and its plain softmax is evaluated
            (balanced softmax; Ren et al., NeurIPS 2020, arXiv 2007.10740, equation 4); others are
            the logit adjustment of Menon et al. (ICLR 2021, equation 10).
        per_source: Whether an image of joined data gets the classes' shares of its source. A class
            that a source does not have counts as half an image.
        source_counts: Training images of each class in each source, (S, K); for `per_source`.

    Attributes:
        weight: Weights n / (K * n_c), float32 (K,): "balanced" of scikit-learn (King & Zeng 2001).
            Their mean over the training images is 1. None without `weighted`. Like the priors, they
            are not part of the state dict.

    Raises:
        ConfigError: A class has no training image, so its weight would be infinite.
    """

    weight: Tensor | None
    log_prior: Tensor | None
    soft_labels = True

    def __init__(
        self,
        class_counts: Sequence[int],
        weighted: bool = False,
        label_smoothing: Annotated[float, Interval(ge=0, lt=1)] = 0.0,
        gamma: Annotated[float, Ge(0)] = 0.0,
        prior: Annotated[float, Ge(0)] = 0.0,
        per_source: bool = False,
        source_counts: Sequence[Sequence[int]] = (),
    ) -> None:
        super().__init__()
        self.per_source = per_source
        self.label_smoothing = label_smoothing
        self.gamma = gamma
        weight = log_prior = None
        if weighted or prior:
            empty = [str(label) for label, count in enumerate(class_counts) if count <= 0]
            if empty or not class_counts:
                raise ConfigError(
                    "class_counts",
                    "must be at least 1 for every class with class weights or priors, but got "
                    f"{list(class_counts)} (no training image of class {', '.join(empty) or 'any'})"
                    "; take a loss without them or another split",
                )
            counts = torch.as_tensor(list(class_counts), dtype=torch.float64)
            weight = (counts.sum() / (len(counts) * counts)).float() if weighted else None
            if per_source:
                counts = torch.as_tensor(source_counts, dtype=torch.float64).clamp(min=0.5)
            shares = counts / counts.sum(dim=-1, keepdim=True)
            log_prior = (prior * shares.log()).float() if prior else None
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("log_prior", log_prior, persistent=False)

    def forward(self, logits: Tensor, target: Tensor, source: Tensor | None = None) -> Tensor:
        """Logits (N, K) or (N, 1) and labels, int64 (N,), or shares of them (N, K) -> scalar.

        `source`: number of each image's source, int64 (N,); for `per_source`.
        """
        logits, smoothing = one_per_class(logits), self.label_smoothing
        if self.log_prior is not None:
            logits = logits + (self.log_prior if source is None else self.log_prior[source])
        if not self.gamma and target.ndim == 1:
            return F.cross_entropy(logits, target, self.weight, label_smoothing=smoothing)
        log_p = F.log_softmax(logits, dim=1)
        classes = log_p.shape[1]
        shares = target if target.ndim == 2 else F.one_hot(target, classes).to(log_p)
        weight = torch.ones(()) if self.weight is None else self.weight
        total = (shares * weight.to(log_p)).sum()
        shares = (1 - smoothing) * shares + smoothing / classes
        # Kept off zero: for gamma < 1 the gradient of the power is infinite there, and infinity
        # times log(1) is NaN.
        miss = (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).eps)
        return -(shares * weight.to(log_p) * miss**self.gamma * log_p).sum() / total
