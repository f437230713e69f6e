"""Quality of three presets on HAM10000 at 64 px, relative to a bare training loop (one seed).

    python -m benchmarks.quality [HAM10000 folder]

Takes about 15 minutes on two quiet cores. The runs are recorded like any others, their figures read
from the record.
"""

import subprocess
import sys

from src.tracking import read
from src.tracking.store import Store

WANTED = {  # accuracy and balanced accuracy on test, not below
    "ham10000_image": (0.785, 0.54),
    "ham10000_grouped": (0.78, 0.52),
    "ham10000_lite0": (0.81, 0.60),
}


def main() -> None:
    """Train the presets and print what they reached."""
    root = sys.argv[1] if len(sys.argv) > 1 else "../shared/data/ham10000"
    for preset, (accuracy, balanced) in WANTED.items():
        line = [
            sys.executable,
            "-m",
            "src.train",
            f"experiment={preset}",
            f"data.root={root}",
            f"study=quality/{preset}",
        ]
        subprocess.run(line, check=True)
        run = read.runs(Store(), f"tags.study = 'quality/{preset}'").iloc[0]
        reached = run["metrics.test/accuracy"], run["metrics.test/balanced_accuracy"]
        print(
            f"{preset}: accuracy {reached[0]:.3f} (required {accuracy}), "
            f"balanced accuracy {reached[1]:.3f} "
            f"(required {balanced}), "
            f"melanoma recall {run['metrics.test/recall/mel']:.3f}, run {run['run_id']}",
            flush=True,
        )


if __name__ == "__main__":
    main()
