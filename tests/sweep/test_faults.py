"""Trials and owners are killed at random: nothing is lost or double, both stores agree."""

from pathlib import Path

from benchmarks.sweep import faults


def test_a_study_whose_processes_are_killed_ends_with_every_cell_once(tmp_path: Path) -> None:
    """The small version of `python -m benchmarks.sweep.faults`."""
    chaos = faults.Chaos(
        tmp_path / "study",
        ("a=range(6)", "b=range(5)"),
        3,
        share=0.15,
        owner_kills=2,
        seconds=0.15,
    )
    killer = faults.torment(chaos)
    assert killer.owners == 2
    assert killer.killed > 0
    assert faults.problems(chaos) == []
