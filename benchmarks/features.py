"""Training speed with and without cached outputs of nets that do not change, in turn, in one run.

    python -m benchmarks.features data.root=<HAM10000 folder> [override ...]

A frozen MobileNetV3-Small at 96 px with random weights (speed does not depend on them) and
`augment=flips`; synthetic lesions where the folder is absent. Printed are images/s of training
epochs, without validation, the median of their ratios, and the seconds in which the features of
all views are computed once. Then a student, the first 10 blocks of EfficientNet-Lite0 at 80 px,
learns from the whole net: without it, from its cached logits, and from the net itself (2,000
images). Overrides are those of `src.train`, such as `augment=none` or `data.batch_size=256`.

A study of 60 heads over one backbone, whose features the first trial computes:

    time python -m src.train -m model=mobilenetv3_small model.image_size=96 \
        model.net.frozen=true data=ham10000 data.root=<HAM10000 folder> efficiency=fast \
        'model.net.dense=[],[64],[128],[256],[128,64]' model.net.dropout=0,0.3 \
        optimizer.lr=1e-3,3e-3,1e-2 loss=cross_entropy,focal hydra.sweeper.n_jobs=2
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig
from torch import nn

from benchmarks.composing import composed
from src.losses.distillation import Distillation
from src.training import features, loop
from src.training.progress import quiet_lightning

PAIRS = 3
WANTED = 40


def images_per_s(config: DictConfig, teachers: Sequence[nn.Module] = ()) -> float:
    """Median over the epochs of a training by the project's loop."""
    parts = loop.build(config)
    if teachers:
        parts.classifier.loss = Distillation(parts.data.seen_counts, teachers)
    features.serve(config, parts.classifier, parts.data, loop.training_device(config))
    with tempfile.TemporaryDirectory() as folder:
        trainer, progress, _ = loop.prepare_fit(config, parts, None, Path(folder))
        with quiet_lightning():
            trainer.fit(parts.classifier, datamodule=parts.data)
    return progress.images_per_s


def distilled(overrides: list[str]) -> None:
    """Print the speed of a student relative to the same training without a teacher."""
    fixed = ["model=efficientnet_lite0", "model.net.weights=random", "model.image_size=80"]
    short = [*fixed, *overrides, "trainer.max_epochs=1", "efficiency=fast", "study=students"]
    teacher = loop.build(composed(short)).classifier.requires_grad_(False).eval()
    plain = composed([*short, "model.net.blocks=10"])
    live = composed([*short, "model.net.blocks=10", "data.feature_views=0"])
    images_per_s(plain, [teacher])  # computes the logits of all views
    ratios = []
    for _ in range(PAIRS):
        alone, cached, with_net = (
            images_per_s(config, nets)
            for config, nets in ((plain, ()), (plain, [teacher]), (live, [teacher]))
        )
        ratios.append((cached / alone, with_net / alone))
        print(f"student: {alone:.0f} images/s alone, {cached:.0f} from cached logits", flush=True)
    medians = [statistics.median(values) for values in zip(*ratios, strict=True)]
    print(
        f"of the images/s without a teacher: {medians[0]:.2f} cached, {medians[1]:.2f} with the net"
    )


def main() -> None:
    """Print both speeds and their ratio, pair by pair."""
    overrides = sys.argv[1:]
    root = next((text.partition("=")[2] for text in overrides if text.startswith("data.root=")), "")
    if not Path(root).is_dir() or not root:
        overrides = [text for text in overrides if not text.startswith("data.root=")]
        print("no folder of HAM10000 as data.root=: synthetic lesions", flush=True)
    data = "ham10000" if root and Path(root).is_dir() else "synthetic"
    few = ["data.source.limit=2000"] if data == "ham10000" else []
    distilled([f"data={data}", *few, *overrides])
    fixed = [f"data={data}", "model=mobilenetv3_small", "model.image_size=96"]
    fixed += ["model.net.weights=random", "model.net.frozen=true", "efficiency=fast"]
    images = composed([*fixed, *overrides, "data.feature_views=0", "trainer.max_epochs=1"])
    cached = composed([*fixed, *overrides, "trainer.max_epochs=10"])
    parts = loop.build(cached)
    began = time.perf_counter()
    served = features.serve(cached, parts.classifier, parts.data, loop.training_device(cached))
    seconds = time.perf_counter() - began
    print(f"features: {served.get('features')}, {seconds:.1f} s (0 if they were there)")
    ratios = []
    for pair in range(PAIRS):
        speeds = images_per_s(images), images_per_s(cached)
        ratios.append(speeds[1] / speeds[0])
        print(
            f"pair {pair + 1}: from images {speeds[0]:,.0f} images/s, from features "
            f"{speeds[1]:,.0f}, ratio {ratios[-1]:.1f}",
            flush=True,
        )
    median = statistics.median(ratios)
    print(f"ratio: median {median:.1f} of {PAIRS} pairs (required: at least {WANTED})")


if __name__ == "__main__":
    main()
