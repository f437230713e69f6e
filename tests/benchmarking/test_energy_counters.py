"""Energy from a made-up powercap, and no energy where there is no counter."""

from pathlib import Path

import pytest

from src.deployment.benchmark.measure import POWERCAP, Rapl


def domain(folder: Path, name: str, called: str, energy: int, whole: int = 1_000_000) -> Path:
    made = folder / name
    made.mkdir(parents=True)
    (made / "name").write_text(f"{called}\n")
    (made / "energy_uj").write_text(f"{energy}\n")
    (made / "max_energy_range_uj").write_text(f"{whole}\n")
    return made


def test_packages_are_added_and_their_parts_are_not(tmp_path: Path) -> None:
    first = domain(tmp_path, "intel-rapl:0", "package-0", 100)
    core = domain(tmp_path, "intel-rapl:0:0", "core", 50)
    second = domain(tmp_path, "intel-rapl:1", "package-1", 0)
    domain(tmp_path, "intel-rapl:2", "psys", 0)
    rapl = Rapl(tmp_path)
    assert rapl.absent == ""
    assert rapl.joules() == 0
    (first / "energy_uj").write_text("300100")
    (second / "energy_uj").write_text("200000")
    (core / "energy_uj").write_text("900000")
    assert rapl.joules() == pytest.approx(0.5)


def test_a_counter_that_starts_anew_goes_on(tmp_path: Path) -> None:
    package = domain(tmp_path, "intel-rapl:0", "package-0", 900_000)
    rapl = Rapl(tmp_path)
    (package / "energy_uj").write_text("100000")
    assert rapl.joules() == pytest.approx(0.2)


def test_without_a_counter_the_reason_is_told(tmp_path: Path) -> None:
    assert "no RAPL counter on this machine" in Rapl(tmp_path).absent


def test_a_counter_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    package = domain(tmp_path, "intel-rapl:0", "package-0", 0)
    (package / "energy_uj").unlink()
    (package / "energy_uj").mkdir()
    assert "not readable" in Rapl(tmp_path).absent


def test_no_permission_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    domain(tmp_path, "intel-rapl:0", "package-0", 0)
    read = Path.read_text

    def refused(path: Path, *arguments: str) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read(path, *arguments)

    monkeypatch.setattr(Path, "read_text", refused)  # the test may run as root
    assert "not readable: permission" in Rapl(tmp_path).absent


def test_this_machine_says_whether_it_has_one() -> None:
    assert bool(Rapl().absent) or POWERCAP.exists()
