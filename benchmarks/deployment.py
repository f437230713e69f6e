"""Speed of exports and int8: `custom` and ResNet50 in every runtime, relative to eager PyTorch.

    python -m benchmarks.deployment [seconds a model] [run ids]

One thread, batch 1, each model in a process of its own, all in turns (see
`src.deployment.benchmark`). Without ids the nets have random weights and int8 is calibrated on
drawn lesions: time depends on neither. With ids those runs are measured in every runtime, a
compressed one in its own. Takes about eight minutes on two quiet cores.
"""

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from omegaconf import DictConfig

from benchmarks.composing import composed
from src.core.errors import UserError
from src.deployment.benchmark.measure import measure
from src.deployment.benchmark.models import (
    SECONDS,
    BenchmarkModel,
    BenchmarkSettings,
    of_file,
    of_net,
    of_runs,
)
from src.deployment.benchmark.result import BenchmarkRow
from src.deployment.benchmark.worker import encoded
from src.deployment.compression.base import CompressionContext
from src.deployment.compression.onnx import OnnxStaticInt8
from src.deployment.description import Description
from src.deployment.runtimes.eager import CameraNet
from src.deployment.runtimes.formats import FORMATS, RuntimeName
from src.models.weights import save_weights
from src.tracking.store import Store
from src.training import loop

FASTER, INT8_FASTER, INT8_SIZE = 2.0, 1.5, 0.30
BESIDE = ("eager", "onnx")  # runtimes of ResNet50


def made(folder: Path) -> Iterator[BenchmarkModel]:
    """`custom` with random weights in every runtime and in int8, ResNet50 in two."""
    for model in ("custom", "resnet50"):
        config = composed(
            [f"model={model}", "model.net.weights=random"]
            if model == "resnet50"
            else [f"model={model}"]
        )
        parts = loop.build(config, pretrained=False)
        run_folder = folder / model
        save_weights(parts.classifier, run_folder / "best.ckpt")
        runtimes = get_args(RuntimeName) if model == "custom" else BESIDE
        yield from (_in_runtime(runtime, config, parts, run_folder) for runtime in runtimes)
        if model == "custom":
            context = CompressionContext(
                parts.classifier,
                parts.data,
                _describe(config, parts),
                _no_tuning,
                lambda ids: [],
                run_folder,
            )
            int8 = OnnxStaticInt8().compress(context)
            yield of_file(int8.file or run_folder / "model.onnx", f"{model} int8")


def _in_runtime(
    runtime: RuntimeName, config: DictConfig, parts: loop.RunParts, folder: Path
) -> BenchmarkModel:
    description, label = _describe(config, parts), str(config.model.name)
    if runtime not in FORMATS:
        model = of_net(config, description, folder / "best.ckpt", runtime)
        return replace(model, label=label)
    path = folder / f"{label}{FORMATS[runtime].suffix}"
    try:
        FORMATS[runtime].write(CameraNet.of(parts.classifier), description, path)
    except UserError as error:
        return BenchmarkModel(label, runtime, reason=str(error))
    return of_file(path, label)


def _describe(config: DictConfig, parts: loop.RunParts) -> Description:
    data, classes = config.data, tuple(parts.data.classes)
    return Description(
        "",
        config.model.name,
        classes,
        data.image_size,
        data.geometry,
        "synthetic",
        "grouped",
        "none applies",
    )


def _no_tuning(*_: object) -> None:
    raise AssertionError("nothing is fine-tuned here")


def tell(rows: Sequence[BenchmarkRow]) -> None:
    """A line a row: its speed beside the reference's, and what else a device feels."""
    for row in rows:
        if row.reason or "ratio_low" not in row.figures:
            print(f"{row.label:16} {row.runtime:10} not measured: {row.reason or 'too few turns'}")
            continue
        figures = row.figures
        low, high = 1 / figures["ratio_high"], 1 / figures["ratio_low"]
        print(
            f"{row.label:16} {row.runtime:10} p50 {figures['p50_ms']:.3f} ms, "
            f"{1 / figures['ratio']:.3f} times as fast "
            f"[{low:.3f}, {high:.3f}], {figures['size_mb']:.2f} MB, "
            f"peak {figures['peak_memory_mb']:.0f} MB, "
            f"cold start {figures['cold_start_s']:.2f} s{_from_jpeg(figures)}",
            flush=True,
        )


def _from_jpeg(figures: Mapping[str, float]) -> str:
    return f", from a JPEG {figures['jpeg_p50_ms']:.2f} ms" if "jpeg_p50_ms" in figures else ""


def tell_fastest(rows: Sequence[BenchmarkRow]) -> None:
    """The fastest export of the first row's net, weights unchanged, relative to eager PyTorch."""
    exports = [
        row
        for row in rows
        if row.label == rows[0].label and row.runtime in FORMATS and not row.reason
    ]
    if exports and rows[0].runtime == "eager" and not rows[0].reason:
        best = min(exports, key=lambda row: row.figures["ratio"])
        faster = 1 / best.figures["ratio"]
        print(
            f"fastest export: {best.label} in {best.runtime}, {faster:.2f} times "
            f"(required: at least {FASTER})"
        )


def tell_int8(
    rows: Sequence[BenchmarkRow], models: Sequence[BenchmarkModel], settings: BenchmarkSettings
) -> None:
    """Int8 beside float32 in ONNX Runtime, the two measured anew side by side."""
    measured = [index for index, row in enumerate(rows) if row.runtime == "onnx" and not row.reason]
    plain = [index for index in measured if rows[index].precision == "float32"][:1]
    names = {rows[index].model for index in plain}
    small = [
        index
        for index in measured
        if rows[index].precision == "int8" and rows[index].model in names
    ]
    if not small:
        return
    print(
        f"int8 relative to float32 in ONNX Runtime (required: {INT8_FASTER} times as fast, "
        f"{INT8_SIZE:.0%} of the size)"
    )
    quick = replace(settings, cold_starts=1, jpeg_queries=0)  # those two were measured above
    again, _ = measure([models[index] for index in (*plain, *small)], quick, encoded(None)[0])
    tell(again)
    for row in [] if again[0].reason else [row for row in again[1:] if not row.reason]:
        share = row.figures["size_mb"] / again[0].figures["size_mb"]
        print(f"{row.label}: {1 / row.figures['ratio']:.2f} times as fast, {share:.0%} of the size")


def main() -> None:
    """Print all, then the ratios that are wanted."""
    seconds, ids = float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS, sys.argv[2:]
    settings = BenchmarkSettings(run=ids, runtime=list(get_args(RuntimeName)), seconds=seconds)
    with tempfile.TemporaryDirectory() as folder:
        run_folder = Path(folder)
        print("exporting", file=sys.stderr, flush=True)
        store = Store().open(create=False) if ids else None
        models = of_runs(store, settings, run_folder) if store else list(made(run_folder))
        print(
            f"measuring {len(models)} in turns, {settings.cold_starts} cold starts each",
            file=sys.stderr,
            flush=True,
        )
        rows, measured_against = measure(models, settings, encoded(None)[0])
        print(
            f"relative to {measured_against}, at least {settings.queries} calls "
            f"and {seconds:g} s of each:"
        )
        tell(rows)
        tell_fastest(rows)
        tell_int8(rows, models, settings)


if __name__ == "__main__":
    main()
