"""Seeds, versions, commit, config digests; settings of the process."""

import gc
import importlib.metadata
import json
import os
import platform
import random
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.core.environment import (
    COLLECTOR_THRESHOLD,
    MAX_FILE,
    MAX_PATCH,
    POWERCAP,
    Rapl,
    collect_less_often,
    config_hash,
    energy_meter,
    environment,
    git_state,
    seed_everything,
    uncommitted_changes,
)
from src.core.errors import ConfigError
from src.core.files import ROOT

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)
CONFIGS = st.dictionaries(st.text(max_size=4), PLAIN, max_size=4)


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), torch.rand(()).item()


def test_seed_reaches_every_generator() -> None:
    seed_everything(3)
    first = draws()
    assert draws() != first
    seed_everything(3)
    assert draws() == first
    seed_everything(4)
    other = draws()
    assert all(a != b for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seed_out_of_range_is_refused(seed: int) -> None:
    problem = rf"^seed: must be within 0 and 4294967295, but got {seed}$"
    with pytest.raises(ConfigError, match=problem):
        seed_everything(seed)
    seed_everything(2**32 - 1)


def test_environment_is_json_and_correct() -> None:
    values = environment()
    assert json.loads(json.dumps(values)) == values
    assert values["packages"]["torch"] == torch.__version__
    assert values["packages"]["numpy"] == importlib.metadata.version("numpy")
    assert values["python"] == ".".join(map(str, sys.version_info[:3]))
    assert 1 <= values["cores"] <= (os.cpu_count() or 1)
    assert values["torch_threads"] == torch.get_num_threads()
    assert len(values["gpus"]) == torch.cuda.device_count()
    assert values["ram_gb"] > 0
    assert values["cpu"]


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_git_state_and_the_patch_of_uncommitted_changes(tmp_path: Path) -> None:
    folder, copy = tmp_path / "project", tmp_path / "copy"
    folder.mkdir()
    assert git_state(folder) == (None, None)
    git(folder, "init", "-q")
    assert git_state(folder) == (None, None)  # no commit yet
    (folder / "a.py").write_text("a = 1\n")
    git(folder, "add", "a.py")
    git(folder, "commit", "-qm", "a")
    commit = git(folder, "rev-parse", "HEAD")
    assert git_state(folder) == (commit, False)
    assert uncommitted_changes(folder) == ""
    # data, results and links are no sources
    (folder / "predictions.csv").touch()
    (folder / ".venv").symlink_to(tmp_path)
    assert git_state(folder) == (commit, False)
    (folder / "a.py").write_text("a = 2\n")
    assert git_state(str(folder)) == (commit, True)
    (folder / "conf").mkdir()
    (folder / "conf" / "größe 1.yaml").write_text("size: 1")
    git(tmp_path, "clone", "-q", str(folder), str(copy))
    patch = tmp_path / "uncommitted.patch"
    patch.write_text(uncommitted_changes(folder))
    git(copy, "apply", str(patch))
    for name in ("a.py", "conf/größe 1.yaml"):
        assert (copy / name).read_bytes() == (folder / name).read_bytes()
    git(folder, "checkout", "-q", "a.py")
    assert git_state(folder) == (commit, True)
    (folder / "long.py").write_text("#" * MAX_PATCH)
    assert len(uncommitted_changes(folder)) < MAX_PATCH + 100
    assert "cut here" in uncommitted_changes(folder).splitlines()[-1]
    # files that are not even read: a changed one and an untracked one
    (folder / "long.py").write_text("#" * MAX_FILE)
    git(folder, "add", "long.py")
    git(folder, "commit", "-qm", "b")
    for name in ("long.py", "huge.py"):
        (folder / name).write_text(f"password = 'a'  #{'#' * MAX_FILE}")
    text = uncommitted_changes(folder)
    assert text.splitlines()[-1] == "(left out, over 2,000,000 bytes: long.py, huge.py)"
    assert "#" not in text
    patch.write_text(text)
    git(copy, "checkout", "-q", ".")
    (copy / "conf" / "größe 1.yaml").unlink()
    git(copy, "apply", str(patch))


def test_the_patch_has_no_secrets(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("a = 1\n")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-qm", "a")
    code = (
        "API_KEY = 'geheim'; token: str = next(tokens)\n"
        'headers = {"x": 1, "access_token": "geheim"}  # password: see the wiki\n'
        "def login(password: str) -> None: ...\n"
    )
    (tmp_path / "a.py").write_text(code)
    config = "uri: http://x\npassword: geheim\napi_key: 'geheim'  # mine\nsecret: ${oc.env:S}\n"
    (tmp_path / "größe.yaml").write_text(config)
    patch = uncommitted_changes(tmp_path)
    assert "geheim" not in patch
    for line in (
        "+API_KEY = '***'; token: str = next(tokens)",
        '+headers = {"x": 1, "access_token": "***"}  # password: see the wiki',
        "+def login(password: str) -> None: ...",
        "+uri: http://x",
        "+password: ***",
        "+secret: ${oc.env:S}",
    ):
        assert line in patch.splitlines()


def test_git_state_without_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert git_state(tmp_path / "absent") == (None, None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(Path.cwd()) == (None, None)


@given(CONFIGS, CONFIGS)
def test_hash_depends_on_the_content_and_not_on_its_order(
    one: dict[str, Any], two: dict[str, Any]
) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(two, sort_keys=True)
    assert (config_hash(one) == config_hash(two)) == same
    assert config_hash(one) == config_hash(dict(reversed(one.items())))
    assert config_hash(one) == config_hash(json.loads(json.dumps(one)))


def test_keys_without_effect_do_not_count() -> None:
    one = {"seed": 1, "tracking": {"uri": "a"}, "trainer": {"max_epochs": 2, "progress": True}}
    two = {"seed": 1, "tracking": {"uri": "b"}, "trainer": {"max_epochs": 2, "progress": False}}
    without = ["tracking", "trainer.progress"]
    assert config_hash(one) != config_hash(two)
    assert config_hash(one, without) == config_hash(two, without)
    three = {**two, "trainer": {"max_epochs": 3, "progress": False}}
    assert config_hash(two, without) != config_hash(three, without)
    # a key is its whole path: "progress" at the top is another one
    assert config_hash({"progress": 1}, without) != config_hash({"progress": 2}, without)
    # sha256 of {"a":[1,2.5,null],"b":{"c":"x"}}, by sha256sum: stable between versions
    assert config_hash({"b": {"c": "x"}, "a": [1, 2.5, None]}) == "5e0c41a7e1b7"


def output(code: str) -> str:
    """What Python prints when it runs some code in a new process."""
    line = [sys.executable, "-c", code]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


IMPORTS = """
import sys, src
from torchmetrics.functional.classification import binary_auroc
hidden = ("matplotlib", "scipy", "torchvision", "transformers")
assert not sys.modules.keys() & set(hidden), sys.modules.keys() & set(hidden)
import torch
assert binary_auroc(torch.tensor([0.1, 0.9]), torch.tensor([0, 1])) == 1
hooks = len(sys.meta_path)
import torchvision
print(hasattr(torch.ops.torchvision, "nms"), hooks - len(sys.meta_path))
import timm, pytorch_lightning
from lightning_utilities.core.imports import RequirementCache, package_available
assert all(package_available(name) and RequirementCache(name) for name in hidden[:3])
"""


def test_torchmetrics_imports_no_other_package_and_torchvision_a_cpu_build_of_torch() -> None:
    assert output(IMPORTS) == "True 1"


def test_importing_the_package_is_light() -> None:
    heavy = ("torch", "numpy", "psutil", "mlflow", "pytorch_lightning")
    code = f"import sys, src; print([name for name in {heavy} if name in sys.modules])"
    assert output(code) == "[]"


@pytest.fixture
def thresholds() -> Iterator[tuple[int, int, int]]:
    before = gc.get_threshold()
    yield before
    gc.set_threshold(*before)


@pytest.mark.parametrize(
    ("young", "expected"),
    [(700, COLLECTOR_THRESHOLD), (0, 0), (COLLECTOR_THRESHOLD + 1, COLLECTOR_THRESHOLD + 1)],
    ids=["default", "off", "more"],
)
def test_a_higher_or_disabled_threshold_is_kept(
    young: int, expected: int, thresholds: tuple[int, int, int]
) -> None:
    assert thresholds[0] >= COLLECTOR_THRESHOLD  # importing src has set it
    gc.set_threshold(young, 11, 13)
    collect_less_often()
    assert gc.get_threshold()[:2] == (expected, 11)


@pytest.mark.usefixtures("thresholds")
def test_cycles_are_still_collected() -> None:
    class Node:
        itself: "Node"

    gc.collect()  # so that the collector does not run just while the cycle is made
    node = Node()
    node.itself = node
    cycle = weakref.ref(node)
    del node
    objects = [[number] for number in range(2 * COLLECTOR_THRESHOLD)]  # they start the collector
    assert cycle() is None
    del objects


CODE = """
import resource
import torch
from src.core.environment import keep_freed_memory
def step():
    return torch.ones(40_000_000 // 4).sum()  # more than the 32 MB that glibc keeps by itself
def faults():
    for _ in range(25):  # the heap has been seen to grow until the twelfth step
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults(), keep_freed_memory(), faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_repeated_large_blocks_are_faulted_in_once() -> None:
    block = 40_000_000 / 4096  # pages
    default, set_up, kept = output(CODE).split()
    assert int(default) > 19 * block
    assert set_up == "True"
    assert int(kept) < 2 * block


def counter(folder: Path, name: str, title: str, energy: int) -> Path:
    """A counter of a powercap folder."""
    path = folder / name
    path.mkdir(parents=True)
    for file, content in {"name": title, "energy_uj": energy, "max_energy_range_uj": 10**6}.items():
        (path / file).write_text(f"{content}\n")
    return path


def test_energies_of_packages_are_added_and_those_of_their_parts_are_not(tmp_path: Path) -> None:
    first = counter(tmp_path, "intel-rapl:0", "package-0", 100)
    core = counter(tmp_path, "intel-rapl:0:0", "core", 50)
    second = counter(tmp_path, "intel-rapl:1", "package-1", 900_000)
    counter(tmp_path, "intel-rapl:2", "psys", 0)
    rapl = Rapl(tmp_path)
    assert rapl.absent == ""
    assert rapl.joules() == 0
    (first / "energy_uj").write_text("300100")
    (second / "energy_uj").write_text("100000")  # it reached its range and restarted
    (core / "energy_uj").write_text("900000")
    assert rapl.joules() == pytest.approx(0.5)


def test_an_absent_counter_has_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no RAPL counter on this machine" in Rapl(tmp_path).absent
    assert bool(Rapl().absent) or POWERCAP.exists()
    package = counter(tmp_path, "intel-rapl:0", "package-0", 0)
    (package / "energy_uj").unlink()
    (package / "energy_uj").mkdir()
    assert "not readable" in Rapl(tmp_path).absent
    read = Path.read_text

    def refuse(path: Path, *arguments: str) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read(path, *arguments)

    monkeypatch.setattr(Path, "read_text", refuse)  # the test may run as root
    assert "not readable: permission" in Rapl(tmp_path).absent


def test_a_graphics_card_s_energy_is_its_power_times_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    milliwatts, times = iter([0, 200_000, 300_000]), iter([10.0, 10.5, 12.5])
    monkeypatch.setattr(torch.cuda, "power_draw", lambda device: next(milliwatts))
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    joules = energy_meter(torch.device("cuda"))
    assert joules is not None
    assert [joules(), joules()] == [200 * 0.5, 200 * 0.5 + 300 * 2]


def test_a_graphics_card_without_a_reading_has_no_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(device: torch.device) -> int:
        raise ModuleNotFoundError("pynvml does not seem to be installed")

    monkeypatch.setattr(torch.cuda, "power_draw", refuse)
    assert energy_meter(torch.device("cuda")) is None
