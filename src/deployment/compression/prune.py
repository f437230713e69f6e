"""Structured pruning."""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn
from tqdm import tqdm

from src.core.errors import ConfigError, UserError
from src.data.module import DataModule
from src.deployment.compression.base import CompressedModel, Tune, stratified
from src.deployment.description import Description
from src.deployment.runtimes.base import needs
from src.efficiency.flops import count_flops, count_parameters
from src.models import pruned_layers
from src.training.classifier import Classifier

Scope = Literal["global", "layer"]
_ROUNDING = 1e-9  # 10 * (1 - 0.9) is less than 1


@dataclass(frozen=True)
class ChannelGroup:
    """Layers that must lose a channel together, and what each channel is worth.

    Attributes:
        root: Name of the layer that they are known by.
        scores: Of its channels, or of each channel and its counterparts in the other groups of a
            grouped convolution; (N,), higher is more important, comparable between layers.
        blocks: Groups of that convolution; else 1.
        whole: N before anything was taken out.
    """

    root: str
    scores: Tensor
    blocks: int
    whole: int


@dataclass(frozen=True)
class PruningRules:
    """What limits the choice.

    Attributes:
        scope: "layer" takes the same share of each layer, "global" the lowest scores wherever they
            are.
        layer_limit: Largest share of one layer's channels that goes, in (0, 1).
        round_to: The channels left in a layer that loses any are a multiple of this.
    """

    scope: Scope
    layer_limit: float
    round_to: int

    def fewest(self, layer: ChannelGroup) -> int:
        """Channels that must stay, a multiple of `round_to` unless the layer has no more than that.

        A grouped convolution keeps two a group: with one it would be a depthwise one, which is
        another kind of layer.
        """
        stay = max(
            1 if layer.blocks == 1 else 2,
            math.ceil(layer.whole * (1 - self.layer_limit) - _ROUNDING),
        )
        return min(len(layer.scores), self.round_to * math.ceil(stay / self.round_to))


def choose(
    layers: Sequence[ChannelGroup], ratio: float, rules: PruningRules
) -> dict[str, list[int]]:
    """Which channels go.

    Args:
        layers: Scored.
        ratio: Share that is to go, of all the channels that there were at first, in [0, 1).
        rules: That the choice keeps.

    Returns:
        Channel numbers by the root's name; layers that lose none are left out.
    """
    if rules.scope == "layer":
        left = [math.floor(each.whole * (1 - ratio) + _ROUNDING) for each in layers]
    else:
        left = _left_of_all(layers, [rules.fewest(each) for each in layers], ratio)
    chosen = {}
    for layer, count in zip(layers, left, strict=True):
        rounded = rules.round_to * math.floor(count / rules.round_to + 0.5)
        goes = len(layer.scores) - max(rules.fewest(layer), rounded)
        if goes > 0:
            weakest = torch.argsort(layer.scores, stable=True)[:goes].tolist()
            chosen[layer.root] = sorted(
                channel + block * len(layer.scores)
                for channel in weakest
                for block in range(layer.blocks)
            )
    return chosen


def _left_of_all(layers: Sequence[ChannelGroup], fewest: Sequence[int], ratio: float) -> list[int]:
    """Channels left in each layer if the least important ones of all go, but none of the few that must stay."""
    wanted = math.floor(sum(each.whole for each in layers) * (1 - ratio) + _ROUNDING)
    goes = sum(len(each.scores) for each in layers) - wanted
    may_go = [
        each.scores.sort().values[: len(each.scores) - least]
        for each, least in zip(layers, fewest, strict=True)
    ]
    weakest = torch.argsort(torch.cat(may_go), stable=True)[: max(0, goes)]
    owner = torch.cat([torch.full_like(scores, number) for number, scores in enumerate(may_go)])[
        weakest
    ]
    return [len(each.scores) - int((owner == number).sum()) for number, each in enumerate(layers)]


Importance = Literal["l1", "l2", "taylor", "bn_scale", "random"]
Share = Annotated[float, Gt(0), Lt(1)]
NAMED = 3  # layers in a message
HALVINGS = 12  # of the search for a ratio
CLOSE_ENOUGH = 0.995  # of the wanted multiply-adds: nearer is not searched for


class Prune:
    """Take out the channels that matter least, and fine-tune what is left.

    Torch-Pruning finds which layers must lose a channel together, and rates it by all their weights
    (Fang et al.,
    DepGraph: Towards any structural pruning, CVPR 2023); such scores are divided by their mean, so
        that layers can be
    compared. Which channels go is chosen here, as its own choice leaves a layer whole of which
    every channel would go. The output layer keeps its neurons.

    Args:
        ratio: Share of the channels (and hidden neurons) that are taken out.
        flops_share: Instead: share of the multiply-adds that may be left; the smallest ratio that
            does it is sought.
        scope: "layer" takes the same share of each layer, "global" the least important ones
            wherever they are.
        importance: "l1" and "l2", size of the weights; "taylor", weights times their gradients on
            training images (Molchanov et al., Importance estimation for neural network pruning,
            CVPR 2019); "bn_scale", the factors of batch normalisation (Liu et al., Learning
            efficient convolutional networks through network slimming, ICCV 2017); "random", the
            control.
        round_to: The channels left in a layer are a multiple of this (8: fast kernels); 1 is no
            rounding.
        layer_limit: Largest share of one layer's channels that is taken out.
        steps: In how many equal steps the goal is reached, each scored anew and with a fine-tuning
            of its own.
        epochs: Of fine-tuning after each step; 0 is none.
        lr: Its learning rate.
        images: Training images that "taylor" takes its gradients on.

    Raises:
        ConfigError: Not exactly one of `ratio` and `flops_share`; a ratio above `layer_limit`.
    """

    config_only = ("name",)

    def __init__(
        self,
        ratio: Share | None = None,
        flops_share: Share | None = None,
        scope: Scope = "layer",
        importance: Importance = "taylor",
        round_to: Annotated[int, Ge(1)] = 1,
        layer_limit: Share = 0.9,
        steps: Annotated[int, Ge(1)] = 1,
        epochs: Annotated[int, Ge(0)] = 10,
        lr: Annotated[float, Gt(0)] = 1e-3,
        images: Annotated[int, Ge(1)] = 1024,
    ) -> None:
        if (ratio is None) == (flops_share is None):
            raise ConfigError(
                "ratio", f"set one of ratio and flops_share, but got {ratio} and {flops_share}"
            )
        if ratio is not None and ratio > layer_limit:
            raise ConfigError(
                "ratio", f"must be at most layer_limit, {layer_limit}, but got {ratio}"
            )
        self.ratio = ratio
        self.flops_share = flops_share
        self.importance: Importance = importance
        self.rules = PruningRules(scope, layer_limit, round_to)
        self.steps = steps
        self.epochs = epochs
        self.lr = lr
        self.images = images

    def compress(
        self,
        classifier: Classifier,
        data: DataModule,
        description: Description,
        tune: Tune,
        folder: Path,
    ) -> CompressedModel:
        """Prune and fine-tune in place, see `src.deployment.compression.base`.

        Raises:
            UserError: Nothing can be taken out of this net, or not as much as is asked for.
        """
        net, size = classifier.net, classifier.image_size
        _refuse(classifier)
        widths, flops, parameters = (
            _widths(net),
            count_flops(net, size).total,
            count_parameters(net),
        )
        whole: dict[str, int] = {}
        for step in range(1, self.steps + 1):
            layers = self._scored(classifier, data, whole, step)
            whole = {each.root: each.whole for each in layers}
            ratio = self._ratio(net, size, layers, flops, step / self.steps)
            chosen = choose(layers, ratio, self.rules)
            remove(net, size, chosen)
            if self.epochs and chosen:
                tune(classifier, self.epochs, self.lr)
        left = _widths(net)
        if left == widths:
            raise UserError(
                f"{self._goal()} with round_to={self.rules.round_to} takes no channel out of {classifier.name}: its "
                f"layers have {_few(widths)}"
            )
        pruned_layers.mark(net)
        facts: dict[str, float | str] = {
            "flops_share": count_flops(net, size).total / flops,
            "params_share": count_parameters(net) / parameters,
            "channels": ", ".join(f"{name} {left[name]}/{width}" for name, width in widths.items()),
        }
        return CompressedModel(classifier, facts=facts)

    def _scored(
        self, classifier: Classifier, data: DataModule, whole: Mapping[str, int], step: int
    ) -> "list[ChannelGroup]":
        with torch.random.fork_rng(devices=[]), _differentiable(classifier.net):
            torch.manual_seed(data.seed + step)  # of scores that are drawn
            if self.importance == "taylor":
                _backward(classifier, data, self.images)
            layers = score(classifier.net, classifier.image_size, self.importance, whole)
            classifier.zero_grad()
        if not layers:
            lacks = "batch normalisation to score channels by; take importance=l2"
            what = (
                lacks
                if self.importance == "bn_scale"
                else "convolution or dense layer before its output"
            )
            raise UserError(f"{classifier.name} cannot be pruned: it has no {what}")
        return layers

    def _ratio(
        self, net: nn.Module, size: int, layers: Sequence[ChannelGroup], flops: int, part: float
    ) -> float:
        """The ratio that brings the net so far on its way to the goal, by halving where the goal is multiply-adds."""
        if self.flops_share is None:
            assert self.ratio is not None
            return self.ratio * part
        goal = flops * (1 - (1 - self.flops_share) * part)
        low, high = 0.0, self.rules.layer_limit
        least = self._flops_left(net, size, layers, high)
        if least > goal:
            raise UserError(
                f"{self._goal()} cannot be reached with layer_limit={self.rules.layer_limit} and "
                f"round_to={self.rules.round_to}: {least / flops:.3f} of the multiply-adds would be left; the layers "
                f"have {_few(_widths(net))}"
            )
        for _ in tqdm(
            range(HALVINGS), desc="pruning: ratio", file=sys.stderr, leave=False, disable=None
        ):
            middle = (low + high) / 2
            found = self._flops_left(net, size, layers, middle)
            low, high = (low, middle) if found <= goal else (middle, high)
            if CLOSE_ENOUGH * goal <= found <= goal:
                break
        return high

    def _flops_left(
        self, net: nn.Module, size: int, layers: Sequence[ChannelGroup], ratio: float
    ) -> int:
        tried = deepcopy(net)
        remove(tried, size, choose(layers, ratio, self.rules))
        return count_flops(tried, size).total

    def _goal(self) -> str:
        return (
            f"ratio={self.ratio}" if self.flops_share is None else f"flops_share={self.flops_share}"
        )


def score(
    net: nn.Module, image_size: int, importance: Importance, whole: Mapping[str, int]
) -> list[ChannelGroup]:
    """Rate the channels of all layers but the last.

    Args:
        net: On the CPU; for "taylor" with gradients.
        image_size: Side of its input, px.
        importance: See `Prune`.
        whole: Channels by the root's name before anything was taken out; where it is not named,
            those of now.

    Returns:
        Nothing for layers that have nothing to be rated by.
    """
    with needs("prune"):
        import torch_pruning as tp
    rate = {
        "l1": lambda: tp.importance.GroupMagnitudeImportance(p=1),
        "l2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
        "taylor": tp.importance.GroupTaylorImportance,
        "bn_scale": tp.importance.BNScaleImportance,
        "random": tp.importance.RandomImportance,
    }[importance]()
    graph, names = _graph(net, image_size), {layer: name for name, layer in net.named_modules()}
    found = []
    for group in graph.get_all_groups(
        ignored_layers=[_last(net)], root_module_types=[nn.Conv2d, nn.Linear]
    ):
        scores = rate(group)
        if scores is not None:
            blocks = max(map(_blocks, (dependency.target.module for dependency, _ in group)))
            name = names[group[0].dep.target.module]
            averaged = scores.float().view(blocks, -1).mean(0)
            found.append(ChannelGroup(name, averaged, blocks, whole.get(name, len(averaged))))
    return found


def remove(net: nn.Module, image_size: int, chosen: Mapping[str, Sequence[int]]) -> None:
    """Take channels out in place, and all that hangs together with them in other layers.

    Args:
        net: On the CPU.
        image_size: Side of its input, px.
        chosen: Numbers of the channels by the layer's name.

    Raises:
        UserError: The net does not work any more: it is of a kind that Torch-Pruning does not see
            through.
    """
    layers = dict(net.named_modules())
    with _differentiable(net):
        graph = _graph(net, image_size)
        for name, channels in chosen.items():
            cut = graph.get_pruner_of_module(layers[name]).prune_out_channels
            graph.get_pruning_group(layers[name], cut, list(channels)).prune()
        try:
            net(_blank(image_size))
        except RuntimeError as error:
            raise UserError(
                f"{type(net).__name__} cannot be pruned: its layers do not fit together without channels of "
                f"{_first(list(chosen))} ({str(error).splitlines()[0]})"
            ) from error
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub


def _graph(net: nn.Module, image_size: int) -> Any:
    """Which layers must lose a channel together."""
    with needs("prune"):
        import torch_pruning as tp
    # in a list: of a bare batch of one image it would try the image first
    return tp.DependencyGraph().build_dependency(net, [_blank(image_size)], verbose=False)


def _blank(image_size: int) -> Tensor:
    return torch.zeros(1, 3, image_size, image_size)


@contextmanager
def _differentiable(net: nn.Module) -> Iterator[nn.Module]:
    """Gradients for all parameters, frozen ones too: layers are found by them. Those put in for others stay frozen."""
    trained = {name: parameter.requires_grad for name, parameter in net.named_parameters()}
    training = net.training
    try:
        with torch.enable_grad():
            yield net.requires_grad_(True).eval()
    finally:
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(trained[name])
        net.train(training)


def _backward(classifier: Classifier, data: DataModule, images: int) -> None:
    """Gradients of the loss on some training images, every class with its share of them."""
    train = data.rows("train")
    rows = train[stratified(data.labels[train], images, np.random.default_rng(data.seed))]
    for start in range(0, len(rows), data.batch_size):
        batch = rows[start : start + data.batch_size]
        logits = classifier(torch.from_numpy(data.cache.images[batch]).permute(0, 3, 1, 2))
        classifier.loss(logits, torch.from_numpy(data.labels[batch])).backward()


def _refuse(classifier: Classifier) -> None:
    """End where the net's kind is not one that can be pruned and opened again."""
    if unfit := pruned_layers.unfit(classifier.net):
        raise UserError(
            f"{classifier.name} cannot be pruned: only convolutions, dense layers and batch normalisation can be, but "
            f"it has {_first(unfit)}"
        )
    if not any(isinstance(layer, nn.Linear) for layer in classifier.net.modules()):
        raise UserError(f"{classifier.name} cannot be pruned: its output is no dense layer")


def _blocks(layer: Any) -> int:
    """Groups of a grouped convolution, 1 for any other layer; depthwise ones follow their neighbours."""
    grouped = isinstance(layer, nn.Conv2d) and layer.groups != layer.out_channels
    return layer.groups if grouped else 1


def _last(net: nn.Module) -> nn.Module:
    """The output layer."""
    return [layer for layer in net.modules() if isinstance(layer, nn.Linear)][-1]


def _widths(net: nn.Module) -> dict[str, int]:
    """Channels that each convolution (but depthwise ones) and hidden dense layer gives, by its name."""
    return {
        name: len(layer.weight)
        for name, layer in net.named_modules()
        if (isinstance(layer, nn.Conv2d) and (layer.groups == 1 or _blocks(layer) > 1))
        or (isinstance(layer, nn.Linear) and layer is not _last(net))
    }


def _few(widths: Mapping[str, int]) -> str:
    return _first([f"{name} {width}" for name, width in widths.items()])


def _first(names: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    return ", ".join(names[:NAMED]) + (
        f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    )
