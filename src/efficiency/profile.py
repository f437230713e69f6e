"""What a net costs: every measure of this folder under its name in the run record."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor, nn

from src.core.environment import device_name
from src.core.errors import ConfigError
from src.efficiency import flops, latency
from src.efficiency.flops import count_parameters, count_trainable, size_mb
from src.efficiency.memory import peak_memory_mb

PERCENTILES = (50, 90, 99)
COARSE = 8  # cells a side of the smooth pictures that nets outside torch are timed on


@dataclass(frozen=True)
class Profile:
    """What a net costs.

    Attributes:
        metrics: By their names in the run record, `efficiency/...`; units in
            `src.metrics.registry`.
        details: How they were measured, ready for JSON: `device`, `uncounted_operators`, `threads`,
            `repeats` ...
    """

    metrics: dict[str, float]
    details: dict[str, Any]


def static_cost(net: nn.Module, image_size: int) -> dict[str, float]:
    """What is known before training: multiply-adds, parameters, trainable parameters, size. Takes about a second.

    Args:
        net: Images (1, 3, S, S) -> anything. Left as it is.
        image_size: S, px.

    Returns:
        By their names in the run record; empty for a net that has an attribute `fitted` and is not:
        what it will hold depends on the data.
    """
    return _static(net, _counted(net, image_size)) if getattr(net, "fitted", True) else {}


class Profiler:
    """Measures nets beside a reference net.

    Latency is that of calls that follow each other, on the wall clock, in milliseconds a batch;
    throughput is that of the largest batch. `efficiency/latency_ratio` comes from a measurement of
    its own at batch 1, see `src.efficiency.latency`. Two measurements on one machine wait for each
    other.

    Args:
        reference: The net whose time is 1; always the same one, or ratios cannot be compared.
        reference_size: Side of its input, px.
        threads: CPU threads that torch may use while timing.
        batch_sizes: Images a call; must contain 1.
        warm_up_seconds: Untimed calls of each net at each batch size before its timed ones; one
            call at least.
        seconds: Timed work at each batch size.
        min_repeats: Timed calls at batch 1 at the least, in the alternation with the reference too.
        min_batch_repeats: Timed calls of larger batches at the least. The tails of few calls say
            little: see `details["repeats"]`.
        ratio_seconds: Timed work in the alternation with the reference, both nets together.
        channels_last: Memory layout of both nets and their inputs; False is torch's default layout.

    Raises:
        ConfigError: `batch_sizes` lacks 1.
    """

    def __init__(
        self,
        reference: nn.Module,
        reference_size: Annotated[int, Ge(1)] = 64,
        threads: Annotated[int, Ge(1)] = 1,
        batch_sizes: Sequence[Annotated[int, Ge(1)]] = (1, 64),
        warm_up_seconds: Annotated[float, Ge(0)] = 0.2,
        seconds: Annotated[float, Gt(0)] = 0.8,
        min_repeats: Annotated[int, Ge(1)] = 30,
        min_batch_repeats: Annotated[int, Ge(1)] = 5,
        ratio_seconds: Annotated[float, Gt(0)] = 2.5,
        channels_last: bool = True,
    ) -> None:
        if 1 not in batch_sizes:
            raise ConfigError("batch_sizes", f"must contain 1, but got {list(batch_sizes)}")
        self.reference = reference
        self.reference_size = reference_size
        self.threads = threads
        self.batch_sizes = sorted(set(batch_sizes))
        self.warm_up_seconds = warm_up_seconds
        self.seconds = seconds
        self.min_repeats = min_repeats
        self.min_batch_repeats = min_batch_repeats
        self.ratio_seconds = ratio_seconds
        self.layout = torch.channels_last if channels_last else torch.contiguous_format

    def profile(
        self, net: nn.Module, image_size: int, device: torch.device | str = "cpu"
    ) -> Profile:
        """Measure everything. The net itself, its device and mode and torch's random numbers are left as they are.

        Args:
            net: Images (B, 3, S, S) -> anything. One with a true attribute `outside_torch` works on
                the CPU whatever it is given; it is timed there, beside the reference net on the
                CPU, and has no multiply-adds: the counter sees only torch's operators.
            image_size: S, px.
            device: Where to run; "cpu" or a CUDA device.
        """
        device = torch.device("cpu" if _outside_torch(net) else device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            counted = _counted(net, image_size)
            copies = [self._ready(module, device) for module in (net, self.reference)]
            timed, details = self._timed(copies[0], image_size, copies[1], device)
            memory = peak_memory_mb(copies[0], image_size, 1, device)
        metrics = _static(net, counted) | timed | {"efficiency/peak_memory_mb": memory}
        return Profile(metrics, self._conditions(counted, device) | details)

    def _ready(self, net: nn.Module, device: torch.device) -> nn.Module:
        """A copy that can be timed."""
        return deepcopy(net).to(device).to(memory_format=self.layout).eval()  # type: ignore[call-overload]

    def _timed(
        self, net: nn.Module, image_size: int, reference: nn.Module, device: torch.device
    ) -> tuple[dict[str, float], dict[str, Any]]:
        metrics: dict[str, float] = {}
        repeats: dict[str, int] = {}
        with latency.alone(latency.shared_lock()), latency.timing_conditions(self.threads):
            for batch_size in self.batch_sizes:
                images = self._images(
                    batch_size, image_size, device, picture_like=_outside_torch(net)
                )
                latency.warm_up(net, images, self.warm_up_seconds)
                at_least = self.min_repeats if batch_size == 1 else self.min_batch_repeats
                times = latency.latencies_ms(net, images, self.seconds, at_least)
                repeats[f"b{batch_size}"] = len(times)
                for percentile, value in zip(
                    PERCENTILES, np.percentile(times, PERCENTILES), strict=True
                ):
                    metrics[f"efficiency/latency_ms/b{batch_size}/p{percentile}"] = float(value)
            inputs = (
                self._images(1, image_size, device, _outside_torch(net)),
                self._images(1, self.reference_size, device),
            )
            latency.warm_up(reference, inputs[1], self.warm_up_seconds)
            ratio = latency.latency_ratio(
                net, inputs[0], reference, inputs[1], self.ratio_seconds, self.min_repeats
            )
        largest = self.batch_sizes[-1]
        metrics["efficiency/throughput"] = (
            1e3 * largest / metrics[f"efficiency/latency_ms/b{largest}/p50"]
        )
        metrics["efficiency/latency_ratio"] = ratio.value
        details = {
            "repeats": repeats | {"ratio": ratio.pairs},
            "ratio_estimator": latency.ESTIMATOR,
            "ratio_clock": ratio.clock,
            "ratio_net_ms": ratio.net_ms,
            "ratio_reference_ms": ratio.reference_ms,
        }
        return metrics, details

    def _conditions(self, counted: flops.Flops | None, device: torch.device) -> dict[str, Any]:
        return {
            "device": device_name(device),
            "device_type": device.type,
            "torch": torch.__version__,
            "threads": self.threads,
            "channels_last": self.layout is torch.channels_last,
            "flop_convention": flops.CONVENTION
            if counted
            else "not counted: the work is not done by torch's operators",
            "uncounted_operators": counted.uncounted if counted else {},
            "latency_clock": "wall",
            "timed_on": "noise" if counted else "smooth pictures in [0, 1]",
            "reference": type(self.reference).__name__,
            "reference_params": count_parameters(self.reference),
            "reference_size": self.reference_size,
        }

    def _images(
        self, batch_size: int, image_size: int, device: torch.device, picture_like: bool = False
    ) -> Tensor:
        """What is timed: noise, or smooth pictures in [0, 1] for nets whose time depends on what they see."""
        # random, not zeros: denormal and zero inputs can take other times
        generator = torch.Generator().manual_seed(0)
        if picture_like:
            coarse = torch.rand(batch_size, 3, COARSE, COARSE, generator=generator)
            images = F.interpolate(coarse, size=(image_size, image_size), mode="bilinear")
        else:
            images = torch.randn(batch_size, 3, image_size, image_size, generator=generator)
        return images.to(device).contiguous(memory_format=self.layout)


def _outside_torch(net: nn.Module) -> bool:
    return bool(getattr(net, "outside_torch", False))


def _counted(net: nn.Module, image_size: int) -> flops.Flops | None:
    return None if _outside_torch(net) else flops.count_flops(net, image_size)


def _static(net: nn.Module, counted: flops.Flops | None) -> dict[str, float]:
    return {
        **({"efficiency/flops": float(counted.total)} if counted else {}),
        "efficiency/params": float(count_parameters(net)),
        "efficiency/trainable_params": float(count_trainable(net)),
        "efficiency/size_mb": size_mb(net),
    }
