"""Kinds of failures, and the training states that tries of a trial leave and take over."""

import errno
from pathlib import Path

import pytest

from src.core.errors import DivergedError
from src.sweep.records import STATE, classify, copy_latest_state, discard_states, seed_folder

MEMORY = "DefaultCPUAllocator: not enough memory: you tried to allocate"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), "out_of_memory"),
        (RuntimeError(MEMORY), "out_of_memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out_of_memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "full_disk"),
        (DivergedError("train/loss is nan"), "diverged"),
        (RuntimeError("shapes differ"), "error"),
    ],
)
def test_kinds_of_errors(error: Exception, kind: str) -> None:
    assert classify(error)[0] == kind


def write_state(folder: Path, text: str) -> Path:
    (folder / STATE).parent.mkdir(parents=True)
    (folder / STATE).write_text(text)
    return folder


def test_the_newest_state_is_inherited_and_the_earlier_ones_stay(tmp_path: Path) -> None:
    older = [write_state(tmp_path / "0002", "new"), write_state(tmp_path / "0001", "old")]
    newest, target = tmp_path / "0003", tmp_path / "0004"
    (newest / "checkpoint").mkdir(parents=True)  # broken off before it had a state
    copy_latest_state([newest, tmp_path / "nowhere"], target)
    assert not target.exists()
    copy_latest_state([newest, *older], target)
    assert (target / STATE).read_text() == "new"
    (target / STATE).write_text("gone on")
    assert [(folder / STATE).read_text() for folder in older] == ["new", "old"]
    assert [file.name for file in (target / "checkpoint").iterdir()] == ["last.ckpt"]


def test_every_state_of_a_trial_is_discarded_and_nothing_else(tmp_path: Path) -> None:
    trial = write_state(tmp_path / "0001", "a trial's")
    other = write_state(tmp_path / "0002", "another trial's")
    for seed in (0, 11):
        write_state(seed_folder(trial, seed), "a seed's")
    (trial / "checkpoint" / "last.part").write_text("killed while writing")
    (trial / "checkpoint" / "best.ckpt").write_text("best")
    discard_states([trial, tmp_path / "nowhere"])
    files = {file for file in tmp_path.rglob("*") if file.is_file()}
    assert files == {trial / "checkpoint" / "best.ckpt", other / STATE}
