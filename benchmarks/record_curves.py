"""Records learning curves on HAM10000 (by lesion) for replays without training.

Each line of the table is one epoch of one run: what was drawn, what it costs, what validation said.
Runs are drawn at random from a fixed space, so any number of processes can record side by side
(`shard=0/2`, `shard=1/2`), and a run that stands in the table already is not made again.
`sizes=32,64` draws the image size, too (64 px without it); `seeds=5` trains each run under five
seeds, all runs with the first seed before any with the second; `epochs=` and `limit=` (of images)
make runs shorter, and `batch=32` gives them more steps.

command:  python -m benchmarks.record_curves root=/path/to/HAM10000 runs=120 shard=0/2
    out=curves-0.csv
hardware: one CPU core a process; the 102 runs in benchmarks/curves/ took 85 min on 2 cores that did
    other work, so
          their seconds an epoch are of a busy machine, and their order of magnitude is all that
          they are good for
"""

import itertools
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from hydra import compose, initialize_config_dir

from src.efficiency.profile import static_cost
from src.training import loop
from src.training.progress import quiet_lightning

CONF = Path(__file__).resolve().parent.parent / "conf"
EPOCHS = 18
SIZE = 64
RECORDED = ("val/balanced_accuracy", "val/recall/mel", "val/loss", "train/loss")


def draw(number: int, sizes: Sequence[int] = ()) -> dict[str, Any]:
    """Point of run `number` in the space; the same for every process and day."""
    size = {"size": random.Random(f"size {number}").choice(sizes)} if sizes else {}
    chance = random.Random(number)
    return size | {
        "width": round(4 * 6 ** chance.random()),  # 4 to 24, log
        "depth": chance.choice([2, 3, 4]),
        "head": chance.choice(["flatten", "gap"]),
        "dense": chance.choice([16, 32, 64, 128]),
        "dropout": round(chance.uniform(0, 0.5), 2),
        "loss": chance.choice(
            ["cross_entropy", "weighted_cross_entropy", "focal", "label_smoothing"]
        ),
        "lr": float(f"{10 ** chance.uniform(-3.3, -1.7):.2e}"),
    }


def record(number: int, seed: int, options: Mapping[str, str]) -> pd.DataFrame:
    """Train run `number`; one line an epoch."""
    point = draw(number, [int(size) for size in options.get("sizes", "").split(",") if size])
    epochs = int(options.get("epochs", EPOCHS))
    overrides = [
        "data=ham10000",
        f"data.root={options['root']}",
        f"data.source.limit={options.get('limit', 'null')}",
        f"data.batch_size={options.get('batch', 64)}",
        f"seed={seed}",
        f"model.image_size={point.get('size', SIZE)}",
        f"trainer.max_epochs={epochs}",
        f"model.net.width={point['width']}",
        f"model.net.depth={point['depth']}",
        f"model.net.head={point['head']}",
        f"model.net.dense=[{point['dense']}]",
        f"model.net.dropout={point['dropout']}",
        "model.net.padding=1",
        f"loss={point['loss']}",
        f"optimizer.lr={point['lr']}",
        # full speed from the start: early epochs tell more than under a warm-up
        "scheduler=cosine",
        "threads=1",
        "trainer.accelerator=cpu",
    ]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", overrides)
    parts = loop.build(config)
    cost = static_cost(parts.classifier.net, parts.classifier.image_size)
    with tempfile.TemporaryDirectory() as folder:
        trainer, _, best = loop.prepare_fit(config, parts, None, Path(folder))
        began = time.perf_counter()
        with quiet_lightning():
            trainer.fit(parts.classifier, datamodule=parts.data)
    seconds = (time.perf_counter() - began) / epochs
    rows = [
        {
            "run": number,
            **({"seed": seed} if "seeds" in options else {}),
            **point,
            "flops": int(cost["efficiency/flops"]),
            "params": int(cost["efficiency/params"]),
        }
        | {"epoch": epoch + 1, "seconds_per_epoch": round(seconds, 2)}
        | {name: round(figures[name], 4) for name in RECORDED}
        for epoch, figures in enumerate(best.history)
    ]
    return pd.DataFrame(rows)


def main() -> None:
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    shard, of = map(int, options.get("shard", "0/1").split("/"))
    out = Path(options["out"])
    table = pd.read_csv(out) if out.exists() else pd.DataFrame({"run": []})
    recorded = set(zip(table["run"], table.get("seed", 0 * table["run"]), strict=True))
    torch.set_num_threads(1)
    numbers = range(shard, int(options.get("runs", "120")), of)
    for seed, number in itertools.product(range(int(options.get("seeds", "1"))), numbers):
        if (number, seed) in recorded:
            continue
        frame = record(number, seed, options)
        frame.to_csv(out, mode="a", header=not out.exists(), index=False)
        last = frame.iloc[-1]
        print(
            f"run {number}, seed {seed}: {last['val/balanced_accuracy']:.3f}, "
            f"{last['seconds_per_epoch']} s per epoch",
            flush=True,
        )


if __name__ == "__main__":
    main()
