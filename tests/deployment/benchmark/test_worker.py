"""The process of a benchmarked model, in this process where possible."""

import gc
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from src.core.cli import ROOT
from src.core.errors import UserError
from src.deployment import trained
from src.deployment.benchmark.models import BenchmarkSettings, of_net, of_runs
from src.deployment.benchmark.worker import Session
from src.deployment.description import Description
from src.models.weights import save_weights
from src.tracking.store import Store


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """A session switches the garbage collector of its process off."""
    yield
    gc.enable()


def session(spec: dict[str, Any], **more: Any) -> Session:
    return Session({"threads": 1, "batch": 1} | spec | more)


def test_a_session_answers_and_takes_a_batch(onnx_file: Path) -> None:
    spec = {"runtime": "onnx", "file": str(onnx_file)}
    model = session(spec, batch=3)
    assert "_pictures" not in vars(model)  # their time and memory would count as the model's
    times, cpu_ms = model.turn(untimed=2, timed=5)
    assert len(times) == 5
    assert (times > 0).all()
    assert cpu_ms > 0
    assert len(model.warm_up(0.0)) == 1
    assert model.hello["version"]
    with pytest.raises(UserError, match="does not fit: .* more than memory_mb=16"):
        session(spec, memory_mb=16)  # this process has more resident memory


def test_peak_memory_does_not_contain_the_parents() -> None:
    program = """
import numpy as np
from src.deployment.benchmark.worker import high_water_mb
before = high_water_mb()
array = np.ones(10_000_000)
del array
print(before, high_water_mb() - before)
"""
    parent = np.ones(20_000_000)  # 160 MB: ru_maxrss of a child on Linux would start with them
    output = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    before, more = map(float, output.stdout.split())
    assert before < parent.nbytes / 1e6
    assert more == pytest.approx(80, abs=8)


def test_a_torch_net_is_loaded_without_a_store_in_its_precision(
    study: tuple[Store, dict[str, str]],
    tmp_path: Path,
    describe: Callable[[str], Description],
) -> None:
    store, member = study[0], study[1]["member"]
    [model] = of_runs(store, BenchmarkSettings(run=member[:12]), tmp_path)
    assert model.label == f"custom {member[:8]}"
    loaded = session(model.spec, batch=2)
    assert loaded.hello["description"].run_id == member
    assert len(loaded.turn(untimed=0, timed=2)[0]) == 2
    recorded = trained.find(store, member).config
    config = OmegaConf.merge(recorded, {"compression": {"name": "bfloat16"}})
    assert isinstance(config, DictConfig)
    description = replace(describe(member), precision="bfloat16")
    net = nn.ModuleDict({"net": trained.build_net(config, description.classes)})
    save_weights(net, tmp_path / "bfloat16.ckpt")
    model = of_net(config, description, tmp_path / "bfloat16.ckpt", "eager")
    weights = session(model.spec)._runtime.camera.net.parameters()  # type: ignore[attr-defined]
    assert {weight.dtype for weight in weights} == {torch.bfloat16}


def test_the_worker_of_an_exported_model_imports_no_torch() -> None:
    """Otherwise the benchmark would measure the memory and start of torch."""
    names = ("torch", "mlflow", "pandas")
    program = f"import src.deployment.benchmark.worker, sys; print(*sys.modules.keys() & {names})"
    output = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == ""
