"""Cost of a network: all measures of this package by their names in the run record."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from src.core.environment import device_name, energy_meter
from src.core.errors import ConfigError
from src.efficiency import flops, latency
from src.efficiency.flops import count_parameters, count_trainable, size_mb
from src.efficiency.memory import peak_memory_mb

Timed = Callable[[str], bool]
PERCENTILES = (50, 90, 99)
_COARSE = 8  # cells per side of the smooth images for networks that work outside torch


@dataclass(frozen=True)
class Profile:
    """The cost of a network by the names of the run record, and how it was measured.

    The details are ready for JSON: `device`, `uncounted_operators`, `threads`, `repeats`, `methods`
    (how times were measured: "latency" or "ratio" -> text) ...
    """

    metrics: dict[str, float]
    details: dict[str, Any]
    layers: list[dict[str, Any]]  # from `src.efficiency.flops.layers`


def static_cost(net: nn.Module, image_size: int) -> dict[str, float]:
    """Costs that are known before training: multiply-adds, parameters, size. Takes a second.

    The net takes images (1, 3, S, S) and is not changed. The costs are by their names in the run
    record; empty if the network has a false attribute `fitted`: its size depends on the data.
    """
    return _static(net, _count(net, image_size)) if getattr(net, "fitted", True) else {}


@dataclass
class Profiler:
    """Measures networks beside a reference network.

    Latency is for consecutive calls on the wall clock, in milliseconds per batch; throughput is
    that of the largest batch. `efficiency/latency_ratio` is measured separately at batch 1, see
    `src.efficiency.latency`. Energy is that of a call at batch 1, where the device has a counter.
    Measurements on one machine wait for each other.

    Args:
        reference: The network whose time is 1, by definition: the measured ratio of the same
            network at the same size is a detail. Ratios to different references do not compare.
        reference_size: Side of its input, px.
        threads: CPU threads of torch while timing.
        batch_sizes: Images per call; must contain 1.
        warm_up_seconds: Untimed calls of each network at each batch size; at least one call.
        seconds: Timed work at each batch size.
        min_repeats: Fewest timed calls at batch 1, in the alternation with the reference too.
        min_batch_repeats: Fewest timed calls of larger batches. Upper percentiles of few calls are
            uncertain: see `details["repeats"]`.
        ratio_seconds: Timed work in the alternation with the reference, both networks together.
        channels_last: Memory layout of both networks and inputs; False is torch's default layout.
        trials: Whose times a study measures, see conf/efficiency/default.yaml.

    Raises:
        ConfigError: `batch_sizes` does not contain 1.
    """

    reference: nn.Module
    reference_size: Annotated[int, Ge(1)] = 64
    threads: Annotated[int, Ge(1), Le(1024)] = 1
    batch_sizes: Sequence[Annotated[int, Ge(1)]] = (1, 64)
    warm_up_seconds: Annotated[float, Ge(0)] = 0.2
    seconds: Annotated[float, Gt(0)] = 0.8
    min_repeats: Annotated[int, Ge(1)] = 30
    min_batch_repeats: Annotated[int, Ge(1)] = 5
    ratio_seconds: Annotated[float, Gt(0)] = 2.5
    channels_last: bool = True
    trials: Literal["auto", "all", "front"] = "auto"

    def __post_init__(self) -> None:
        if 1 not in self.batch_sizes:
            raise ConfigError("batch_sizes", f"must contain 1, but got {list(self.batch_sizes)}")
        self.batch_sizes = sorted(set(self.batch_sizes))
        self.layout = torch.channels_last if self.channels_last else torch.contiguous_format

    def profile(
        self,
        net: nn.Module,
        image_size: int,
        device: torch.device | str = "cpu",
        timed: Timed = lambda name: True,
    ) -> Profile:
        """Measure on copies; torch's random state is restored.

        Times and energy are measured only if `timed` is true of their name in the run record.

        A network with a true attribute `outside_torch` works on the CPU in any case: it is timed
        there, beside the reference on the CPU, and has no multiply-adds, because the counter sees
        only torch's operators.
        """
        device = torch.device("cpu" if getattr(net, "outside_torch", False) else device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            counted = _count(net, image_size)
            copies = [deepcopy(module).to(device) for module in (net, self.reference)]
            for module in copies:
                module.to(memory_format=self.layout).eval()  # type: ignore[call-overload]
            times, details = self._time(copies, image_size, device, timed)
            memory = peak_memory_mb(copies[0], image_size, 1, device)
        metrics = _static(net, counted) | times | {"efficiency/peak_memory_mb": memory}
        not_counted = "not counted: the work is not done by torch's operators"
        conditions = {
            "device": device_name(device),
            "device_type": device.type,
            "torch": torch.__version__,
            "threads": self.threads,
            "channels_last": self.channels_last,
            "flop_convention": flops.CONVENTION if counted else not_counted,
            "uncounted_operators": counted.uncounted if counted else {},
            "missing_operators": counted.missing if counted else {},
            "latency_clock": "wall",
            "timed_on": "noise" if counted else "smooth pictures in [0, 1]",
            "reference": type(self.reference).__name__,
            "reference_params": count_parameters(self.reference),
            "reference_size": self.reference_size,
        }
        return Profile(metrics, conditions | details, flops.layers(net, counted) if counted else [])

    def _time(
        self, nets: list[nn.Module], image_size: int, device: torch.device, timed: Timed
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Metrics and details of latency, throughput and ratio."""
        (net, reference), metrics = nets, dict[str, float]()
        repeats: dict[str, int] = {}
        methods: dict[str, str] = {}
        details: dict[str, Any] = {"repeats": repeats, "methods": methods}
        smooth, largest = getattr(net, "outside_torch", False), self.batch_sizes[-1]
        conditions = f"{self.threads} thread{'s' * (self.threads > 1)}"
        image = self._images(1, image_size, device, smooth)
        by_batch, is_ratio = dict[int, list[str]](), timed("efficiency/latency_ratio")
        for batch in self.batch_sizes:
            names = [f"efficiency/latency_ms/b{batch}/p{tail}" for tail in PERCENTILES]
            more = ["efficiency/energy_mj"] if batch == 1 and energy_meter(device) else []
            more += ["efficiency/throughput"] if batch == largest else []
            if any(map(timed, names + more)):
                by_batch[batch] = names
        lock = latency.alone(latency.shared_lock()) if by_batch or is_ratio else nullcontext()
        with lock, latency.timing_conditions(self.threads):
            for batch, names in by_batch.items():
                images = self._images(batch, image_size, device, smooth)
                latency.warm_up(net, images, self.warm_up_seconds)
                fewest = self.min_repeats if batch == 1 else self.min_batch_repeats
                joules = energy_meter(device) if batch == 1 else None
                times = latency.latencies_ms(net, images, self.seconds, fewest)
                if joules:
                    with suppress(OSError):  # the counter disappeared
                        metrics["efficiency/energy_mj"] = 1e3 * joules() / len(times)
                repeats[f"b{batch}"] = len(times)
                metrics |= zip(names, np.percentile(times, PERCENTILES).tolist(), strict=True)
                if batch == largest:
                    metrics["efficiency/throughput"] = 1e3 * batch / metrics[names[0]]
                methods["latency"] = f"{self.seconds:g} s per batch size, {conditions}"
            if not is_ratio:
                latency.warm_up(net, image, 0)  # for the measurement of memory
                return metrics, details
            reference_image = self._images(1, self.reference_size, device)
            for module, its_image in ((net, image), (reference, reference_image)):
                latency.warm_up(module, its_image, self.warm_up_seconds)
            ratio = latency.latency_ratio(
                net, image, reference, reference_image, self.ratio_seconds, self.min_repeats
            )
        # a net beside itself: what differs from 1 is the noise of the measurement
        is_same_net = _structure(net) == _structure(reference)
        is_reference = is_same_net and image_size == self.reference_size
        metrics["efficiency/latency_ratio"] = 1.0 if is_reference else ratio.value
        repeats["ratio"] = ratio.pairs
        beside = f"{type(reference).__name__} at {self.reference_size} px"
        methods["ratio"] = f"{self.ratio_seconds:g} s beside {beside}, {conditions}"
        details["ratio_measured"] = ratio.value
        details |= {f"ratio_{name}": getattr(ratio, name) for name in ratio._fields[2:]}
        return metrics, details | {"ratio_estimator": latency.ESTIMATOR}

    def _images(
        self, batch: int, image_size: int, device: torch.device, smooth: bool = False
    ) -> Tensor:
        """Input to time: noise, or smooth images in [0, 1] if the time depends on the content."""
        # Random, not zeros: zeros and denormal numbers may take other times.
        generator = torch.Generator().manual_seed(0)
        if smooth:
            coarse = torch.rand(batch, 3, _COARSE, _COARSE, generator=generator)
            images = F.interpolate(coarse, size=(image_size, image_size), mode="bilinear")
        else:
            images = torch.randn(batch, 3, image_size, image_size, generator=generator)
        return images.to(device).contiguous(memory_format=self.layout)


def _structure(net: nn.Module) -> tuple[str, list[torch.dtype]]:
    return str(net), [parameter.dtype for parameter in net.parameters()]


def _count(net: nn.Module, image_size: int) -> flops.Flops | None:
    return None if getattr(net, "outside_torch", False) else flops.count_flops(net, image_size)


def _static(net: nn.Module, counted: flops.Flops | None) -> dict[str, float]:
    return {
        **({"efficiency/flops": float(counted.total)} if counted else {}),
        "efficiency/params": float(count_parameters(net)),
        "efficiency/trainable_params": float(count_trainable(net)),
        "efficiency/size_mb": size_mb(net),
    }
