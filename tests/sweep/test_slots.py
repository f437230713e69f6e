from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.core.errors import ConfigError
from src.sweep.executors.base import (
    chosen_devices,
    cores_of_quota,
    local_slots,
    make_slots,
    usable_cores,
    visible_devices,
)
from src.sweep.records import Slot


def test_cpu_only_is_one_slot_with_all_cores() -> None:
    assert make_slots(None, [], 1, "auto", cores=8) == [Slot(0, None, 8)]


def test_cores_are_shared_out() -> None:
    assert make_slots(3, [], 1, "auto", cores=8) == [
        Slot(0, None, 2),
        Slot(1, None, 2),
        Slot(2, None, 2),
    ]


def test_two_trials_a_gpu_spread_over_the_gpus_first() -> None:
    slots = make_slots(None, ["2", "5"], 2, "auto", cores=16)
    assert [(slot.device, slot.threads) for slot in slots] == [
        ("2", 4),
        ("5", 4),
        ("2", 4),
        ("5", 4),
    ]


def test_who_must_not_see_a_gpu_is_shown_none() -> None:
    assert make_slots(2, None, 1, None, cores=4) == [Slot(0, "", None), Slot(1, "", None)]


@given(
    n_jobs=st.integers(1, 40),
    gpus=st.integers(0, 8),
    per_gpu=st.integers(1, 5),
    cores=st.integers(1, 128),
)
def test_slots_fit_the_machine(n_jobs: int, gpus: int, per_gpu: int, cores: int) -> None:
    devices = [str(number) for number in range(gpus)]
    if gpus and n_jobs > gpus * per_gpu:
        with pytest.raises(ConfigError, match=f"n_jobs: must be at most {gpus * per_gpu} "):
            make_slots(n_jobs, devices, per_gpu, "auto", cores)
        return
    slots = make_slots(n_jobs, devices, per_gpu, "auto", cores)
    assert [slot.number for slot in slots] == list(range(n_jobs))
    assert sum(slot.threads or 0 for slot in slots) <= max(cores, n_jobs)
    used = Counter(slot.device for slot in slots)
    assert max(used.values()) <= (per_gpu if gpus else n_jobs)
    assert not gpus or len(used) == min(gpus, n_jobs)


@pytest.mark.parametrize(
    ("variable", "count", "ids"),
    [
        (None, 3, ["0", "1", "2"]),
        (None, 0, []),
        ("", 0, []),
        ("-1", 0, []),
        ("3,1", 2, ["3", "1"]),
        ("3, 1,99", 2, ["3", "1"]),
        ("GPU-8932f937-d72c,MIG-4", 2, ["GPU-8932f937-d72c", "MIG-4"]),
    ],
)
def test_visible_devices(variable: str | None, count: int, ids: list[str]) -> None:
    assert visible_devices(variable, count) == ids


def test_asked_for_devices() -> None:
    assert chosen_devices("auto", ["0", "1"]) == ["0", "1"]
    assert chosen_devices("auto", []) == []
    assert chosen_devices(None, ["0"]) is None
    assert chosen_devices([], ["0"]) is None
    assert chosen_devices([1], ["0", "1"]) == ["1"]


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ([2], "devices: GPU 2 cannot be used here, visible are 0, 1"),
        ([1, "1"], "devices: names a GPU twice: 1, 1"),
        ("gpu", "devices: must be auto, null or a list"),
    ],
)
def test_refused_devices(devices, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        chosen_devices(devices, ["0", "1"])


@pytest.mark.parametrize("key", ["n_jobs", "trials_per_device", "threads"])
def test_refused_numbers(key: str) -> None:
    arguments = {"n_jobs": 1, "trials_per_device": 1, "threads": 1, key: 0}
    with pytest.raises(ConfigError, match=f"{key}: must be at least 1, but got 0"):
        local_slots(arguments["n_jobs"], None, arguments["trials_per_device"], arguments["threads"])


@pytest.mark.parametrize(
    ("text", "cores"),
    [("max 100000\n", None), ("200000 100000\n", 2.0), ("50000 100000", 0.5), ("", None)],
)
def test_quota_of_a_container(text: str, cores: float | None) -> None:
    assert cores_of_quota(text) == cores


def test_this_machine_has_a_slot() -> None:
    assert usable_cores() >= 1
    assert local_slots(None, "auto", 1, "auto")
