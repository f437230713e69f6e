import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from src.core.errors import ConfigError
from src.efficiency.profile import Profiler, static_cost

FAST = {
    "warm_up_seconds": 0.0,
    "seconds": 0.001,
    "min_repeats": 3,
    "min_batch_repeats": 2,
    "ratio_seconds": 0.001,
}
STATIC = {
    "efficiency/flops",
    "efficiency/params",
    "efficiency/trainable_params",
    "efficiency/size_mb",
}


def tiny(outputs: int = 4) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.Dropout(0.5),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(6 * 64, outputs),
    )


def profiler(**changes: Any) -> Profiler:
    return Profiler(reference=tiny(), **{"reference_size": 10, **FAST, **changes})


def test_keys_are_those_of_the_run_record() -> None:
    metrics = profiler(batch_sizes=[1, 4]).profile(tiny(), 10).metrics
    latencies = {
        f"efficiency/latency_ms/b{batch}/p{tail}" for batch in (1, 4) for tail in (50, 90, 99)
    }
    others = {"efficiency/latency_ratio", "efficiency/throughput", "efficiency/peak_memory_mb"}
    assert set(metrics) == STATIC | latencies | others
    assert all(isinstance(value, float) and value > 0 for value in metrics.values())


def test_figures_agree_with_each_other() -> None:
    metrics = profiler(batch_sizes=[4, 1]).profile(tiny(), 10).metrics
    assert metrics["efficiency/flops"] == 8 * 8 * 6 * 27 + 2 * 6 * 64 + 6 * 64 * 4
    assert metrics["efficiency/params"] == 28 * 6 + 12 + (6 * 64 + 1) * 4
    assert metrics["efficiency/throughput"] == pytest.approx(
        4000 / metrics["efficiency/latency_ms/b4/p50"]
    )
    for batch in (1, 4):
        p50, p90, p99 = (
            metrics[f"efficiency/latency_ms/b{batch}/p{tail}"] for tail in (50, 90, 99)
        )
        assert p50 <= p90 <= p99


def test_details_say_how_it_was_measured() -> None:
    details = json.loads(json.dumps(profiler().profile(tiny(), 10).details))
    assert details["threads"] == 1
    assert details["uncounted_operators"] == {"aten::silu": 1}
    assert "multiply-add" in details["flop_convention"]
    assert details["reference"] == "Sequential"
    assert details["reference_params"] == 28 * 6 + 12 + (6 * 64 + 1) * 4
    assert details["repeats"]["b1"] >= 3
    assert details["repeats"]["b64"] >= 2
    assert details["repeats"]["ratio"] >= 3
    assert details["ratio_clock"] == "thread CPU time"
    assert details["device"]
    assert details["torch"] == torch.__version__


def snapshot(net: nn.Module) -> list[Any]:
    return [
        [(name, module.training) for name, module in net.named_modules()],
        [
            (name, p.requires_grad, p.device, p.stride(), p.grad)
            for name, p in net.named_parameters()
        ],
        [(name, tensor.tolist()) for name, tensor in net.state_dict().items()],
        [len(module._forward_hooks) for module in net.modules()],
        torch.get_num_threads(),
        torch.get_rng_state().tolist(),
    ]


@pytest.mark.parametrize("measure", [profiler().profile, static_cost])
def test_everything_is_left_as_it_was(measure: Callable[[nn.Module, int], object]) -> None:
    net = tiny()
    net[0].requires_grad_(False)
    net[3].eval()
    before = snapshot(net)
    measure(net, 10)
    assert snapshot(net) == before


def test_layout_is_a_choice() -> None:
    class Layout(nn.Module):
        seen: list[bool] = []  # noqa: RUF012 shared by the copies on purpose

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.seen.append(
                images.is_contiguous(memory_format=torch.channels_last)
                and not images.is_contiguous()
            )
            return images

    for channels_last in (True, False):
        Layout.seen.clear()
        profiler(channels_last=channels_last).profile(Layout(), 10)
        assert Layout.seen[-2] is channels_last


def test_static_cost_is_what_the_profile_says() -> None:
    net = tiny()
    cost = static_cost(net, 10)
    assert set(cost) == STATIC
    metrics = profiler().profile(net, 10).metrics
    assert {name: metrics[name] for name in STATIC} == cost


def test_batch_of_one_is_needed() -> None:
    with pytest.raises(ConfigError, match=r"^batch_sizes: must contain 1, but got \[2, 64\]$"):
        profiler(batch_sizes=[2, 64])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu() -> None:
    net = tiny()
    profile = profiler().profile(net, 10, "cuda")
    assert next(net.parameters()).device.type == "cpu"
    assert profile.details["device_type"] == "cuda"
    assert profile.details["ratio_clock"] == "wall"
    # weights, input, and the widest two maps at the least
    floats = profile.metrics["efficiency/params"] + 3 * 100 + 2 * 6 * 64
    assert profile.metrics["efficiency/peak_memory_mb"] > floats * 4 / 1e6


class Numpy(nn.Module):
    """Leaves torch: an array of 8 MB on the way."""

    outside_torch = True

    def __init__(self, fitted: bool = True) -> None:
        super().__init__()
        self.fitted = fitted
        self.weight = nn.Parameter(torch.zeros(250, dtype=torch.float64), requires_grad=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.new_full((len(images), 1), float(np.ones(1_000_000).sum()))


def test_net_outside_torch_has_no_flops_and_all_other_costs() -> None:
    profile = profiler(batch_sizes=[1, 4]).profile(Numpy(), 10, "cpu")
    assert "efficiency/flops" not in profile.metrics
    assert profile.metrics["efficiency/params"] == 250
    assert profile.metrics["efficiency/trainable_params"] == 0
    assert profile.metrics["efficiency/size_mb"] == 250 * 8 / 1e6
    assert profile.metrics["efficiency/latency_ms/b4/p50"] > 0
    assert profile.metrics["efficiency/latency_ratio"] > 0
    assert profile.metrics["efficiency/peak_memory_mb"] == pytest.approx(
        (250 * 8 + 300 * 4 + 8e6) / 1e6, rel=0.01
    )
    assert "not counted" in profile.details["flop_convention"]
    assert json.dumps(profile.details)


def test_net_outside_torch_is_timed_on_the_cpu_whatever_is_asked() -> None:
    assert profiler(batch_sizes=[1]).profile(Numpy(), 10, "cuda").details["device_type"] == "cpu"


def test_net_outside_torch_is_timed_on_pictures() -> None:
    seen: list[torch.Tensor] = []

    class Recording(Numpy):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images)
            return super().forward(images)

    profile = profiler(batch_sizes=[1]).profile(Recording(), 64, "cpu")
    timed = seen[
        :-1
    ]  # the last call is that of the memory measurement, whose input is zeros or noise
    assert profile.details["timed_on"].startswith("smooth pictures")
    assert all(0 <= float(images.min()) < float(images.max()) <= 1 for images in timed)
    steps = torch.stack([(images[..., 1:] - images[..., :-1]).abs().max() for images in timed])
    assert float(steps.max()) < 0.2  # no pixel jumps far from its neighbour: 8 cells over 64 px


def test_what_a_fit_decides_is_not_known_before_it() -> None:
    assert static_cost(Numpy(fitted=False), 10) == {}
    assert static_cost(Numpy(), 10) == {
        "efficiency/params": 250,
        "efficiency/trainable_params": 0,
        "efficiency/size_mb": 0.002,
    }
