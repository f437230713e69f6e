"""Start-up time of `import src` and `--help`, relative to an interpreter that imports Hydra.

python -m benchmarks.startup
"""

import statistics
import subprocess
import sys
import time

ROUNDS = 5
WANTED_S = 2.0
COMMANDS = {
    "import hydra": ["-c", "import hydra"],
    "import src": ["-c", "import src"],
    "--help": ["-m", "src.train", "--help"],
}


def seconds(arguments: list[str]) -> float:
    """Wall time of one process."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    """Print medians, and ratios to the rival."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, arguments in COMMANDS.items():
            times[name].append(seconds(arguments))
    rival = statistics.median(times["import hydra"])
    for name, measured in times.items():
        median = statistics.median(measured)
        print(
            f"{name}: {median:.2f} s, {median / rival:.2f} x import hydra "
            f"(required: under {WANTED_S:.0f} s)"
        )


if __name__ == "__main__":
    main()
