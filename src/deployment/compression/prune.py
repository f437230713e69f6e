"""Structured pruning: remove the least important channels and fine-tune the rest."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn
from tqdm import tqdm

from src.core.errors import ConfigError, UserError
from src.deployment.compression.base import CompressedModel, CompressionContext
from src.deployment.runtimes.base import needs
from src.efficiency.flops import count_flops, count_parameters
from src.models import structure

Scope = Literal["global", "layer"]
Share = Annotated[float, Gt(0), Lt(1)]
# Torch-Pruning's class and its arguments.
IMPORTANCE: dict[str, tuple[str, dict[str, int]]] = {
    "l1": ("GroupMagnitudeImportance", {"p": 1}),
    "l2": ("GroupMagnitudeImportance", {"p": 2}),
    "taylor": ("GroupTaylorImportance", {}),
    "bn_scale": ("BNScaleImportance", {}),
    "random": ("RandomImportance", {}),
}
SHOWN = 3  # layers in a message
HALVINGS = 12  # of the search for a ratio
CLOSE_ENOUGH = 0.995  # the search ends at this share of the allowed multiply-adds
_ROUNDING = 1e-9  # 10 * (1 - 0.9) is less than 1


@dataclass(frozen=True)
class ChannelGroup:
    """Layers that must lose a channel together, and the importance of each channel."""

    root: str  # name of the first layer
    # Importance of each channel, (N,), comparable between groups. A channel of a grouped
    # convolution stands for its counterparts in all groups.
    scores: Tensor
    blocks: int  # groups of a grouped convolution; else 1
    original: int  # N before any pruning


@dataclass
class Prune:
    """Remove the least important channels and fine-tune the rest.

    Torch-Pruning finds the layers that must lose a channel together, and scores a channel by all
    their weights (Fang et al., DepGraph: Towards any structural pruning, CVPR 2023). Scores are
    divided by their mean, so that layers can be compared. The channels are chosen here, because
    Torch-Pruning skips a layer that would lose all of them. The output layer keeps its neurons.

    The arguments are explained in conf/compression/prune.yaml. Importance: "taylor" is Molchanov et
    al., Importance estimation for neural network pruning, CVPR 2019; "bn_scale" the factors of
    batch normalisation, Liu et al., Learning efficient convolutional networks through network
    slimming, ICCV 2017. With `flops_share` the smallest sufficient ratio is searched for.

    Raises:
        ConfigError: Not exactly one of `ratio` and `flops_share` is set, or the ratio exceeds
            `layer_limit`.
    """

    ratio: Share | None = None
    flops_share: Share | None = None
    scope: Scope = "layer"
    importance: Literal["l1", "l2", "taylor", "bn_scale", "random"] = "taylor"
    round_to: Annotated[int, Ge(1)] = 1
    layer_limit: Share = 0.9
    steps: Annotated[int, Ge(1)] = 1
    epochs: Annotated[int, Ge(0)] = 10
    lr: Annotated[float, Gt(0)] = 1e-3
    images: Annotated[int, Ge(1)] = 1024

    config_only = ("name",)

    def __post_init__(self) -> None:
        if (self.ratio is None) == (self.flops_share is None):
            problem = f"but got {self.ratio} and {self.flops_share}"
            raise ConfigError("ratio", f"set one of ratio and flops_share, {problem}")
        if self.ratio is not None and self.ratio > self.layer_limit:
            limit = f"must be at most layer_limit, {self.layer_limit}"
            raise ConfigError("ratio", f"{limit}, but got {self.ratio}")

    def compress(self, context: CompressionContext) -> CompressedModel:
        """Prune and fine-tune the net in place."""
        classifier, net = context.classifier, context.classifier.net
        size = classifier.image_size
        unfit = [
            f"{name or 'the net'} ({type(layer).__name__})"
            for name, layer in net.named_modules()
            if list(layer.parameters(recurse=False)) and not isinstance(layer, structure.RESIZABLE)
        ]
        if unfit:
            kinds = "only convolutions, dense layers and batch normalisation can be"
            problem = f"{kinds}, but it has {_shorten(unfit)}"
            raise UserError(f"{classifier.name} cannot be pruned: {problem}")
        if not any(isinstance(layer, nn.Linear) for layer in net.modules()):
            raise UserError(f"{classifier.name} cannot be pruned: its output is no dense layer")
        widths, parameters = _widths(net), count_parameters(net)
        flops = count_flops(net, size).total
        original: dict[str, int] = {}
        for step in range(1, self.steps + 1):
            groups = self._score(context, original, step)
            original = {group.root: group.original for group in groups}
            chosen = self._choose(net, size, groups, flops, step / self.steps)
            remove(net, size, chosen)
            if self.epochs and chosen:
                context.tune(classifier, self.epochs, self.lr)
        remaining = _widths(net)
        if remaining == widths:
            raise UserError(
                f"{self._goal} with round_to={self.round_to} removes no channel of "
                f"{classifier.name}: its layers have {_shorten(widths.items())}"
            )
        structure.mark_pruned(net)
        channels = [f"{name} {remaining[name]}/{width}" for name, width in widths.items()]
        facts: dict[str, float | str] = {
            "flops_share": count_flops(net, size).total / flops,
            "params_share": count_parameters(net) / parameters,
            "channels": ", ".join(channels),
        }
        return CompressedModel(classifier, facts=facts)

    @property
    def _goal(self) -> str:
        name = "ratio" if self.flops_share is None else "flops_share"
        return f"{name}={getattr(self, name)}"

    def _score(
        self, context: CompressionContext, original: Mapping[str, int], step: int
    ) -> list[ChannelGroup]:
        """The channel groups of all layers but the output, scored."""
        with needs("prune"):
            import torch_pruning as tp
        classifier, data = context.classifier, context.data
        net, groups = classifier.net, []
        names = {layer: name for name, layer in net.named_modules()}
        kind, arguments = IMPORTANCE[self.importance]
        rate = getattr(tp.importance, kind)(**arguments)
        with torch.random.fork_rng(devices=[]), _differentiable(net):
            torch.manual_seed(data.seed + step)  # for "random"
            if self.importance == "taylor":
                rows = context.training_rows(self.images, data.seed)
                for start in range(0, len(rows), data.batch_size):
                    batch = rows[start : start + data.batch_size]
                    images = torch.from_numpy(data.cache.images[batch]).permute(0, 3, 1, 2)
                    labels = torch.from_numpy(data.labels[batch])
                    classifier.loss(classifier(images), labels).backward()
            for group in _dependencies(net, classifier.image_size).get_all_groups(
                ignored_layers=[_output(net)], root_module_types=[nn.Conv2d, nn.Linear]
            ):
                scores = rate(group)
                if scores is not None:
                    name = names[group[0].dep.target.module]
                    blocks = max(_blocks(dependency.target.module) for dependency, _ in group)
                    scores = scores.float().view(blocks, -1).mean(0)
                    count = original.get(name, len(scores))
                    groups.append(ChannelGroup(name, scores, blocks, count))
            classifier.zero_grad()
        if not groups:
            missing = "convolution or dense layer before its output"
            if self.importance == "bn_scale":
                missing = "batch normalisation to score channels by; take importance=l2"
            raise UserError(f"{classifier.name} cannot be pruned: it has no {missing}")
        return groups

    def _choose(
        self, net: nn.Module, size: int, groups: Sequence[ChannelGroup], flops: int, progress: float
    ) -> dict[str, list[int]]:
        """The channels to remove for a share of the goal; bisection if that is multiply-adds."""
        rules = (self.scope, self.layer_limit, self.round_to)
        if self.flops_share is None:
            assert self.ratio is not None
            return choose(groups, self.ratio * progress, *rules)

        def flops_at(ratio: float) -> int:
            pruned = deepcopy(net)
            remove(pruned, size, choose(groups, ratio, *rules))
            return count_flops(pruned, size).total

        goal = flops * (1 - (1 - self.flops_share) * progress)
        low, high = 0.0, self.layer_limit
        if (least := flops_at(high)) > goal:
            raise UserError(
                f"{self._goal} cannot be reached with layer_limit={self.layer_limit} and "
                f"round_to={self.round_to}: {least / flops:.3f} of the multiply-adds would be "
                f"left; the layers have {_shorten(_widths(net).items())}"
            )
        for _ in tqdm(range(HALVINGS), "pruning: ratio", leave=False, disable=None):
            middle = (low + high) / 2
            remaining = flops_at(middle)
            low, high = (low, middle) if remaining <= goal else (middle, high)
            if CLOSE_ENOUGH * goal <= remaining <= goal:
                break
        return choose(groups, high, *rules)


def choose(
    groups: Sequence[ChannelGroup], ratio: float, scope: Scope, layer_limit: float, round_to: int
) -> dict[str, list[int]]:
    """Choose the channels to remove: a share `ratio` of all original channels, in [0, 1).

    The other rules are those of `Prune`.

    Returns:
        Root name -> channel numbers; groups that lose none are absent.
    """
    fewest = []
    for group in groups:
        # With one channel per group a grouped convolution would become a depthwise one.
        least = math.ceil(group.original * (1 - layer_limit) - _ROUNDING)
        least = max(1 if group.blocks == 1 else 2, least)
        fewest.append(min(len(group.scores), round_to * math.ceil(least / round_to)))
    if scope == "layer":
        remaining = [math.floor(group.original * (1 - ratio) + _ROUNDING) for group in groups]
    else:
        total = math.floor(sum(group.original for group in groups) * (1 - ratio) + _ROUNDING)
        removed = max(0, sum(len(group.scores) for group in groups) - total)
        removable = [
            (score, n)
            for n, (group, least) in enumerate(zip(groups, fewest, strict=True))
            for score in sorted(group.scores.tolist())[: len(group.scores) - least]
        ]
        lost = Counter(n for _, n in sorted(removable)[:removed])
        remaining = [len(group.scores) - lost[n] for n, group in enumerate(groups)]
    chosen = {}
    for group, count, least in zip(groups, remaining, fewest, strict=True):
        rounded = round_to * math.floor(count / round_to + 0.5)
        removed = len(group.scores) - max(least, rounded)
        if removed > 0:
            weakest = torch.argsort(group.scores, stable=True)[:removed]
            starts = torch.arange(group.blocks) * len(group.scores)
            chosen[group.root] = (weakest[:, None] + starts).flatten().sort().values.tolist()
    return chosen


def remove(net: nn.Module, image_size: int, chosen: Mapping[str, Sequence[int]]) -> None:
    """Remove channels (layer name -> numbers) in place, and what depends on them.

    Raises:
        UserError: The net does not run any more: Torch-Pruning does not follow its computation.
    """
    layers = dict(net.named_modules())
    with _differentiable(net):
        graph = _dependencies(net, image_size)
        for name, channels in chosen.items():
            cut = graph.get_pruner_of_module(layers[name]).prune_out_channels
            graph.get_pruning_group(layers[name], cut, list(channels)).prune()
        try:
            net(torch.zeros(1, 3, image_size, image_size))
        except RuntimeError as error:
            raise UserError(
                f"{type(net).__name__} cannot be pruned: its layers do not fit together without "
                f"channels of {_shorten(chosen)} ({str(error).splitlines()[0]})"
            ) from error
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub


def _dependencies(net: nn.Module, image_size: int) -> Any:
    """The layers that must lose a channel together."""
    with needs("prune"):
        import torch_pruning as tp
    # As a list: of a bare batch with one image Torch-Pruning tries the image first.
    example = [torch.zeros(1, 3, image_size, image_size)]
    return tp.DependencyGraph().build_dependency(net, example, verbose=False)


@contextmanager
def _differentiable(net: nn.Module) -> Iterator[None]:
    """Gradients for all parameters, by which layers are found; new parameters stay frozen."""
    trainable = {name: parameter.requires_grad for name, parameter in net.named_parameters()}
    training = net.training
    try:
        with torch.enable_grad():
            net.requires_grad_(True).eval()
            yield
    finally:
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(trainable[name])
        net.train(training)


def _blocks(layer: Any) -> int:
    """Groups of a grouped convolution; 1 for other layers, depthwise convolutions too."""
    grouped = isinstance(layer, nn.Conv2d) and layer.groups != layer.out_channels
    return layer.groups if grouped else 1


def _output(net: nn.Module) -> nn.Module:
    """The last dense layer."""
    return [layer for layer in net.modules() if isinstance(layer, nn.Linear)][-1]


def _widths(net: nn.Module) -> dict[str, int]:
    """Output channels of convolutions (not depthwise) and hidden dense layers, by name."""
    return {
        name: len(layer.weight)
        for name, layer in net.named_modules()
        if (isinstance(layer, nn.Conv2d) and (layer.groups == 1 or _blocks(layer) > 1))
        or (isinstance(layer, nn.Linear) and layer is not _output(net))
    }


def _shorten(names: Any) -> str:
    """The first names, and the number of the others."""
    texts = [name if isinstance(name, str) else f"{name[0]} {name[1]}" for name in names]
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return ", ".join(texts[:SHOWN]) + more
