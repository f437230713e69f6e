"""Energy that the processor's own counter has counted, or why there is none. Nothing is estimated."""

from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
GPU_NOTE = "NVML counts graphics cards, and these models run on the CPU"


class Rapl:
    """RAPL, as Linux's powercap shows it: Intel's and AMD's counters of whole packages, whoever uses them.

    Args:
        folder: Linux's powercap; another one for tests.
    """

    def __init__(self, folder: Path = POWERCAP) -> None:
        self._packages = [each for each in sorted(folder.glob("intel-rapl:[0-9]*")) if each.name.count(":") == 1]
        self._packages = [each for each in self._packages if _text(each / "name").startswith("package")]
        self._ranges = [int(_text(each / "max_energy_range_uj") or 0) for each in self._packages]
        self._last = [0] * len(self._packages)
        self._joules = 0.0
        self.absent = self._why_absent()

    def joules(self) -> float:
        """Counted by all packages since the first call.

        Raises:
            OSError: The counter has gone.
        """
        now = [int((each / "energy_uj").read_text()) for each in self._packages]
        for after, before, whole in zip(now, self._last, self._ranges, strict=True):
            self._joules += (after - before if after >= before else after - before + whole) / 1e6  # it starts anew
        self._last = now
        return self._joules

    def _why_absent(self) -> str:
        if not self._packages:
            return f"no RAPL counter on this machine; {GPU_NOTE}"
        try:
            self._last = [int((each / "energy_uj").read_text()) for each in self._packages]
        except PermissionError:
            return f"RAPL counter not readable: permission ({self._packages[0]}/energy_uj); {GPU_NOTE}"
        except (OSError, ValueError) as error:
            return f"RAPL counter not readable: {error}; {GPU_NOTE}"
        return ""


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
