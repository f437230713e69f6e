import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from src.core import environment
from src.core.errors import ConfigError
from src.efficiency import latency
from src.efficiency.profile import Profile, Profiler, static_cost

FAST = {
    "warm_up_seconds": 0.0,
    "seconds": 0.001,
    "min_repeats": 3,
    "min_batch_repeats": 2,
    "ratio_seconds": 0.001,
}
STATIC = {f"efficiency/{name}" for name in ("flops", "params", "trainable_params", "size_mb")}


def tiny() -> nn.Sequential:
    features = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Dropout(0.5), nn.SiLU()
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(6 * 64, 4))


def profiler(**changes: Any) -> Profiler:
    return Profiler(reference=tiny(), **{"reference_size": 10, **FAST, **changes})


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    """On a machine without an energy counter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environment, "POWERCAP", tmp_path_factory.mktemp("powercap"))
        return profiler(batch_sizes=[4, 1]).profile(tiny(), 10)


def test_names_are_those_of_the_run_record(profile: Profile) -> None:
    tails = [f"b{batch}/p{tail}" for batch in (1, 4) for tail in (50, 90, 99)]
    expected = {f"efficiency/latency_ms/{tail}" for tail in tails}
    expected |= {f"efficiency/{name}" for name in ("latency_ratio", "throughput", "peak_memory_mb")}
    assert set(profile.metrics) == STATIC | expected
    assert all(isinstance(value, float) and value > 0 for value in profile.metrics.values())


@pytest.mark.parametrize(
    ("after", "microjoules", "batches"),
    [(950_000, 50_000, [4, 1]), (100_000, 200_000, [1])],
)
def test_energy_is_the_counter_s_difference_over_the_calls(
    after: int,
    microjoules: int,
    batches: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package = tmp_path / "intel-rapl:0"
    package.mkdir()
    files = {"name": "package-0", "energy_uj": 900_000, "max_energy_range_uj": 10**6}
    for name, content in files.items():
        (package / name).write_text(f"{content}\n")
    monkeypatch.setattr(environment, "POWERCAP", tmp_path)

    def ten_calls(net: object, images: torch.Tensor, *_: float) -> np.ndarray:
        if len(images) == 1:
            (package / "energy_uj").write_text(f"{after}\n")
        return np.full(10, 2.0)

    monkeypatch.setattr(latency, "latencies_ms", ten_calls)
    energy = "efficiency/energy_mj"  # is measured where it is all that is asked for
    metrics = profiler(batch_sizes=batches).profile(tiny(), 10, timed=energy.__eq__).metrics
    # of ten calls, in mJ; a counter that reached its range began again at zero
    assert metrics["efficiency/energy_mj"] == pytest.approx(microjoules / 10 / 1000)


def test_values_agree_with_each_other(profile: Profile) -> None:
    metrics = {name.removeprefix("efficiency/"): v for name, v in profile.metrics.items()}
    assert metrics["flops"] == 8 * 8 * 6 * 27 + 2 * 6 * 64 + 6 * 64 * 4
    assert metrics["params"] == 28 * 6 + 12 + (6 * 64 + 1) * 4
    assert metrics["throughput"] == pytest.approx(4000 / metrics["latency_ms/b4/p50"])
    for batch in (1, 4):
        p50, p90, p99 = (metrics[f"latency_ms/b{batch}/p{tail}"] for tail in (50, 90, 99))
        assert p50 <= p90 <= p99
    assert [row["layer"] for row in profile.layers] == ["0", "1", "5"]
    for name in ("flops", "params"):
        assert sum(row[name] for row in profile.layers) == metrics[name]
    cost = static_cost(tiny(), 10)
    assert set(cost) == STATIC
    assert {name: profile.metrics[name] for name in STATIC} == cost


def test_details_describe_the_measurement(profile: Profile) -> None:
    details = json.loads(json.dumps(profile.details))
    assert details["threads"] == 1
    assert details["uncounted_operators"] == {"aten::silu": 1}
    assert "multiply-add" in details["flop_convention"]
    assert details["reference"] == "Sequential"
    assert details["reference_params"] == 28 * 6 + 12 + (6 * 64 + 1) * 4
    assert details["repeats"]["b1"] >= 3
    assert details["repeats"]["b4"] >= 2
    assert details["repeats"]["ratio"] >= 3
    assert details["ratio_clock"] == "thread CPU time"
    assert details["device"]
    assert details["torch"] == torch.__version__


def test_the_reference_net_takes_exactly_as_long_as_itself(profile: Profile) -> None:
    for one, is_reference in (
        (profile, True),
        (profiler(batch_sizes=[1]).profile(nn.Sequential(*tiny(), nn.Identity()), 10), False),
    ):
        details = one.details
        measured = details["ratio_net_ms"] / details["ratio_reference_ms"]
        assert details["ratio_measured"] == pytest.approx(measured)
        ratio = one.metrics["efficiency/latency_ratio"]
        assert ratio == (1.0 if is_reference else details["ratio_measured"])


def snapshot(net: nn.Module) -> list[Any]:
    parameters = net.named_parameters()
    return [
        [(name, module.training) for name, module in net.named_modules()],
        [(name, p.requires_grad, p.device, p.stride(), p.grad) for name, p in parameters],
        [(name, tensor.tolist()) for name, tensor in net.state_dict().items()],
        [len(module._forward_hooks) for module in net.modules()],
        torch.get_num_threads(),
        torch.get_rng_state().tolist(),
    ]


@pytest.mark.parametrize("measure", [profiler(batch_sizes=[1, 4]).profile, static_cost])
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
            channels_last = images.is_contiguous(memory_format=torch.channels_last)
            self.seen.append(channels_last and not images.is_contiguous())
            return images

    for channels_last in (True, False):
        Layout.seen.clear()
        profiler(batch_sizes=[1], channels_last=channels_last).profile(Layout(), 10)
        assert Layout.seen[-2] is channels_last


def test_batch_of_one_is_needed() -> None:
    with pytest.raises(ConfigError, match=r"^batch_sizes: must contain 1, but got \[2, 64\]$"):
        profiler(batch_sizes=[2, 64])


@pytest.mark.parametrize(
    ("name", "measured", "methods"),
    [
        ("latency_ratio", {"latency_ratio"}, {"ratio"}),
        ("throughput", {"throughput", *(f"latency_ms/b4/p{tail}" for tail in (50, 90, 99))}, None),
        ("latency_ms/b1/p90", {f"latency_ms/b1/p{tail}" for tail in (50, 90, 99)}, None),
        ("flops", set(), set()),
    ],
)
def test_only_the_times_that_are_asked_for_are_measured(
    name: str,
    measured: set[str],
    methods: set[str] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(environment, "POWERCAP", tmp_path)
    if not measured:  # it waits for no other measurement
        monkeypatch.delattr(latency, "alone")
    asked = profiler(batch_sizes=[1, 4]).profile(
        tiny(), 10, "cpu", {f"efficiency/{name}"}.__contains__
    )
    expected = {f"efficiency/{item}" for item in {*measured, "peak_memory_mb"}}
    assert set(asked.metrics) == STATIC | expected
    assert asked.details["methods"].keys() == ({"latency"} if methods is None else methods)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu() -> None:
    net = tiny()
    profile = profiler().profile(net, 10, "cuda")
    assert next(net.parameters()).device.type == "cpu"
    assert profile.details["device_type"] == "cuda"
    assert profile.details["ratio_clock"] == "wall"
    # at least weights, input, and the two largest maps
    floats = profile.metrics["efficiency/params"] + 3 * 100 + 2 * 6 * 64
    assert profile.metrics["efficiency/peak_memory_mb"] > floats * 4 / 1e6


class Numpy(nn.Module):
    """Works outside torch: an array of 8 MB in between."""

    outside_torch = True

    def __init__(self, fitted: bool = True) -> None:
        super().__init__()
        self.fitted = fitted
        self.inputs: list[torch.Tensor] = []
        self.weight = nn.Parameter(torch.zeros(250, dtype=torch.float64), requires_grad=False)

    def __deepcopy__(self, memo: Any) -> "Numpy":
        return self  # so that the inputs of the copy are seen

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.inputs.append(images)
        return images.new_full((len(images), 1), float(np.ones(1_000_000).sum()))


def test_network_outside_torch_has_no_flops_and_all_other_costs() -> None:
    net = Numpy()
    profile = profiler(batch_sizes=[1, 4]).profile(net, 64, "cuda")
    metrics = {name.removeprefix("efficiency/"): v for name, v in profile.metrics.items()}
    assert profile.details["device_type"] == "cpu"
    assert "flops" not in metrics
    assert metrics["params"] == 250
    assert metrics["trainable_params"] == 0
    assert metrics["size_mb"] == 250 * 8 / 1e6
    assert metrics["latency_ms/b4/p50"] > 0
    assert metrics["latency_ratio"] > 0
    expected = (250 * 8 + 3 * 64 * 64 * 4 + 8e6) / 1e6
    assert metrics["peak_memory_mb"] == pytest.approx(expected, rel=0.01)
    assert "not counted" in profile.details["flop_convention"]
    assert json.dumps(profile.details)
    # It is timed on pictures; the last call measures memory, with other input.
    assert profile.details["timed_on"].startswith("smooth pictures")
    timed = [images for images in net.inputs[:-1] if len(images) == 1]
    assert all(0 <= float(images.min()) < float(images.max()) <= 1 for images in timed)
    steps = [(images[..., 1:] - images[..., :-1]).abs().max() for images in timed]
    assert max(steps) < 0.2  # neighbouring pixels are similar: 8 cells over 64 px


def test_size_of_an_unfitted_network_is_unknown() -> None:
    assert static_cost(Numpy(fitted=False), 10) == {}
    assert static_cost(Numpy(), 10) == {
        "efficiency/params": 250,
        "efficiency/trainable_params": 0,
        "efficiency/size_mb": 0.002,
    }
