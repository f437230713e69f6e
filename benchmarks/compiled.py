"""Training speed with and without compiled steps, beside bare PyTorch loops, in turn, in one run.

    python -m benchmarks.compiled [data.root=<HAM10000 folder>] [rounds=3] [threads=2]

Trained are `custom` at 64 px and the first 10 blocks of EfficientNet-Lite0 at 80 px, with random
weights (speed does not depend on them), as they are and, for the latter, with batch normalisation
folded; synthetic lesions where the folder is absent. Each round trains two epochs in each way; the
bare loops, eager and compiled, are those of `benchmarks.training_loop`. Printed are medians of
images/s and their ratio to the bare eager loop of the same net, and the seconds of compiling with
and without code in torch's cache. Goals: 1.25 for the compiled `custom`, 1.8 for the Lite0 that is
folded and compiled, relative to the Lite0 as it is. Run it on a quiet machine.
"""

import functools
import os
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from benchmarks import training_loop
from benchmarks.composing import composed
from src.models.structure import fold
from src.training import loop
from src.training.progress import quiet_lightning

LITE0 = ["model=efficientnet_lite0", "model.net.weights=random", "model.net.blocks=10"]
NETS = {"custom": ["model.image_size=64"], "Lite0": [*LITE0, "model.image_size=80"]}


def bare(overrides: list[str], compiled: bool) -> tuple[float, float]:
    """Images/s of the bare loop, after an epoch that does not count."""
    config = composed(overrides)
    parts = loop.build(config)
    if compiled:
        torch._dynamo.reset()
        parts.classifier.net.compile(dynamic=False)
    training_loop.bare(config, parts)
    return training_loop.bare(config, parts), 0.0


def ours(overrides: list[str], folded: bool) -> tuple[float, float]:
    """Images/s of the last epoch of the project's training, and seconds of compiling."""
    config = composed(overrides)
    parts = loop.build(config)
    if folded:
        fold(parts.classifier)
    parts.classifier.compiling = config.trainer.compile
    with tempfile.TemporaryDirectory() as folder:
        trainer, progress, _ = loop.prepare_fit(config, parts, None, Path(folder))
        with quiet_lightning():
            trainer.fit(parts.classifier, datamodule=parts.data)
    return progress.speeds[-1], parts.classifier.compile_cost.get("time/compile_s", 0.0)


def main(arguments: list[str]) -> None:
    """Measure each way in turn and print a table."""
    typed = {"data.root": "", "rounds": "3", "threads": "2"}
    typed |= dict(argument.split("=", 1) for argument in arguments)
    root = typed["data.root"]
    data = ["data=ham10000", f"data.root={root}"] if root else ["data=synthetic"]
    base = [*data, f"threads={typed['threads']}", "trainer.max_epochs=2", "data.fractions=[1,0,0]"]
    torch.set_num_threads(int(typed["threads"]))
    speeds = defaultdict[tuple[str, str], list[float]](list)
    seconds = defaultdict[tuple[str, str], list[float]](list)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        for _ in range(int(typed["rounds"])):
            for net, more in NETS.items():
                plain, steps = [*base, *more], [*base, *more, "trainer.compile=true"]
                ways: dict[str, Callable[[], tuple[float, float]]] = {
                    "bare, eager": functools.partial(bare, plain, False),
                    "bare, compiled": functools.partial(bare, plain, True),
                    "paretoderm, eager": functools.partial(ours, plain, False),
                    "paretoderm, compiled": functools.partial(ours, steps, False),
                }
                if net == "Lite0":
                    ways["paretoderm, folded"] = functools.partial(ours, plain, True)
                    ways["paretoderm, folded, compiled"] = functools.partial(ours, steps, True)
                for way, measure in ways.items():
                    speed, compile_s = measure()
                    speeds[net, way].append(speed)
                    seconds[net, way].append(compile_s)
                    print(
                        f"{net}, {way}: {speed:.0f} images/s, compiled {compile_s:.0f} s",
                        flush=True,
                    )
    rows = [
        {
            "net": net,
            "training": way,
            "images/s": statistics.median(values),
            "of bare, eager": statistics.median(values)
            / statistics.median(speeds[net, "bare, eager"]),
            "compiling, s": seconds[net, way][0],
            "from the cache, s": seconds[net, way][-1],
        }
        for (net, way), values in speeds.items()
    ]
    print(pd.DataFrame(rows).to_markdown(index=False, floatfmt=",.2f"))


if __name__ == "__main__":
    main(sys.argv[1:])
