"""CPU time of whole commands, as a multiple of `python -c "import torch"` in the same run.

The commands read a store with one study of two runs; an epoch is trained on 100 pictures.

python -m benchmarks.startup [ROUNDS]
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from src.core.cli import ROOT

BASE = "import torch"
PICTURES = 60
TRAINING = [
    "data.source.lesions=100",
    "data.source.max_views=1",
    "trainer.max_epochs=1",
    "test=true",
]
DRY_RUN = ["model.image_size=32,48,64,96", "model.net.width=8,16,32,48,64"]  # 20 cells
# Required multiples. 15 s for the dry run and 3 s for Hydra's help, of about 1.7 s for the import.
REQUIRED = {
    "report": 4.0,
    "card": 3.0,
    "predict, run": 3.0,
    "predict, ONNX file": 1.5,
    "evaluate": 4.0,
    "train, one epoch": 4.0,
    "train, dry run of 20 cells": 9.0,
    "train --hydra-help": 1.8,
}


def cpu_seconds(arguments: list[str], folder: Path) -> float:
    """CPU time of one process and its children, in `folder`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *arguments],
        check=True,
        stdout=subprocess.DEVNULL,
        cwd=folder,
        # With compiled sources, as a user has them: src/ would be compiled at each start.
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": ""},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def prepare(folder: Path) -> dict[str, list[str]]:
    """Record a study of two runs, export one, write pictures; the measured commands by name."""
    from src.tracking import read
    from src.tracking.store import Store

    study = ["-m", "src.train", "-m", "study=startup", "model=custom", "seed=0,1", *TRAINING]
    cpu_seconds(study, folder)
    runs = read.runs(Store(folder=folder / "mlruns"), "tags.kind = 'run'")
    run_id = str(runs["run_id"].iloc[0])
    cpu_seconds(["-m", "src.export", f"run={run_id}", "format=onnx", "folder=exports"], folder)
    model = next((folder / "exports").rglob("*.onnx"))
    rng = np.random.default_rng(0)
    (folder / "pictures").mkdir()
    for number in range(PICTURES):
        pixels = rng.integers(0, 256, (450, 600, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{number:02d}.jpg")
    predict = ["-m", "src.predict", "input=pictures"]
    return {
        BASE: ["-c", BASE],
        "report": ["-m", "src.report", "study=startup"],
        "card": ["-m", "src.card", f"model={run_id}"],
        "predict, run": [*predict, f"model={run_id}"],
        "predict, ONNX file": [*predict, f"model={model}"],
        "evaluate": ["-m", "src.evaluate", f"run={run_id}"],
        "train, one epoch": ["-m", "src.train", "model=custom", *TRAINING],
        "train, dry run of 20 cells": ["-m", "src.train", "-m", *DRY_RUN, "dry_run=true"],
        "train --hydra-help": ["-m", "src.train", "--hydra-help"],
    }


def main() -> None:
    """Print the median CPU time of each command, its multiple, and the required one."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with tempfile.TemporaryDirectory() as name:
        commands = prepare(Path(name))
        times: dict[str, list[float]] = {command: [] for command in commands}
        for _ in range(rounds):
            for command, arguments in commands.items():
                times[command].append(cpu_seconds(arguments, Path(name)))
    medians = {command: statistics.median(values) for command, values in times.items()}
    rows = {
        "CPU s": medians,
        "x import torch": {name: value / medians[BASE] for name, value in medians.items()},
        "required": REQUIRED,
    }
    print(pd.DataFrame(rows).loc[list(commands)].to_markdown(floatfmt=".2f"))


if __name__ == "__main__":
    main()
