"""Export of a trained run: write the files, compare them with the run's own output, record them."""

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import torch
from annotated_types import Ge, Gt, Le
from omegaconf import DictConfig

from src.core.cli import console, say
from src.core.config import DecisionRule, instantiate, load_settings
from src.core.errors import ConfigError, UserError
from src.core.files import atomic_file
from src.core.tables import Table
from src.data.module import DataModule
from src.data.source import evenly
from src.deployment import trained, web
from src.deployment.description import Description, sentences
from src.deployment.runtimes.base import Probabilities, in_batches
from src.deployment.runtimes.eager import EagerRuntime
from src.deployment.runtimes.formats import FORMATS, FormatName, format_of, open_file
from src.deployment.trained import RecordedModel
from src.metrics.bootstrap import ARGMAX
from src.metrics.decision_rules import decide
from src.tracking.run import Run
from src.tracking.store import Store, existing

FEWEST = 256  # images for a comparison
WRITERS = FORMATS | {web.NAME: FORMATS["onnx"]}  # by the values of `format`
RECORDED = ("max_difference", "agreement", "size_mb", "images")  # metrics export/<format>/...


@dataclass
class ExportSettings:
    """The keys of conf/command/export.yaml."""

    run: str | None = None
    format: FormatName | Literal["web"] | list[FormatName | Literal["web"]] = "onnx"
    folder: str = "exports"
    root: str | None = None
    cache_dir: str = "data/cache"
    images: Annotated[int, Ge(FEWEST)] | None = FEWEST
    tolerance: Annotated[float, Gt(0)] = 1e-4
    compressed_tolerance: Annotated[float, Gt(0)] = 0.02
    threads: Annotated[int, Ge(1), Le(1024)] = 1
    decision: DecisionRule | None = None
    publish: bool = True

    def __post_init__(self) -> None:
        trained.require_run_id(self.run)
        if not self.formats:
            raise ConfigError("format", f"name at least one of {', '.join(WRITERS)}")

    @property
    def formats(self) -> list[str]:
        """The formats without repeats."""
        names = self.format if isinstance(self.format, list) else [self.format]
        return list(dict.fromkeys(names))


def validation_rows(
    run: RecordedModel, number: int | None, root: str | None, cache_dir: str
) -> tuple[DataModule, str, np.ndarray]:
    """`number` images of a run's validation split, evenly spaced; None: all.

    `root` is the folder of the data, if it moved; `cache_dir` that of decoded pictures.

    Returns:
        The data; the split, "train" without a validation split; the rows, int (N,).

    Raises:
        UserError: The data are absent or damaged.
    """
    config = trained.data_config(run, root, "data.root")
    config.cache_dir = cache_dir
    try:
        data: DataModule = instantiate(config, "data", ("root",))
        data.prepare()
    except UserError as error:
        raise UserError(f"the export is checked on the run's own images: {error}") from error
    split = "val" if data.has("val") else "train"
    rows = data.rows(split)
    if number is not None:
        rows = rows[evenly(len(rows), number)]
    return data, split, rows


def compare(
    reference: Probabilities, output: Probabilities, about: Description
) -> dict[str, float]:
    """Compare the probabilities (N, K) of the same images by a model that decides as described.

    Returns:
        `images`: N; `max_difference`: largest absolute difference, NaN if an output is NaN;
        `same_class`: share of images with the same class by the offsets of the decision rule, if
        there are any, else the same most probable class, in [0, 1]; `same_side`:
        share on the same side of the threshold, NaN without one; `agreement`: share with both.
    """
    before, after, decision = reference.astype(float), output.astype(float), about.decision
    same_class = decide(before, about.offsets) == decide(after, about.offsets)
    same_side = np.full(len(after), True)
    if decision is not None:
        column = about.classes.index(decision.positive)
        positive = [values[:, column] >= decision.threshold for values in (before, after)]
        same_side = positive[0] == positive[1]
    return {
        "images": len(after),
        "max_difference": float(np.abs(before - after).max()),
        "same_class": float(same_class.mean()),
        "same_side": float(same_side.mean()) if decision else float("nan"),
        "agreement": float((same_class & same_side).mean()),
    }


def export_run(config: DictConfig) -> None:
    """Export a run as conf/command/export.yaml says; compare, show and record the files.

    The file of a net is compared with PyTorch. The file of a compressed run is compared with what
    was predicted when it was made, on the images that have such a prediction.

    Raises:
        UserError: Bad input, a run that cannot be exported in these formats, an extra that is not
            installed, or a file that failed its comparison; the other formats are exported
            nevertheless.
    """
    settings = load_settings(config, ExportSettings, without=("tracking", "web"))
    page_settings = load_settings(config.web, web.WebSettings, "web")
    store = existing(config)
    run = trained.single(store, trained.require_run_id(settings.run))
    file = trained.deployed_file(store, run.run_id)
    _check_settings(run, file, settings, page_settings)
    run.config.decision = settings.decision or run.config.get("decision", ARGMAX)
    camera = None if file else trained.load_network(store, run)
    data, split, rows = validation_rows(run, settings.images, settings.root, settings.cache_dir)
    about = trained.describe(store, run)
    if camera is not None:
        eager = EagerRuntime(camera, about, torch.get_num_threads())
        expected, source = in_batches(eager, data.cache.images[rows], title="PyTorch"), "PyTorch"
    else:
        rows, expected = _recorded_output(store, run, data, split, rows)
        source = "its recorded predictions"
    folder = Path(settings.folder) / f"{run.model}_{run.run_id[:8]}"
    float32 = about.precision == "float32"
    tolerance = settings.tolerance if float32 else settings.compressed_tolerance
    exports: list[dict[str, Any]] = []
    errors = []
    for name in settings.formats:
        print(f"{name}: writing and checking ...", file=sys.stderr, flush=True)
        is_page = name == web.NAME
        path = folder / (name if is_page else f"model{WRITERS[name].suffix}")
        page = web.atomic_page(path, about, page_settings)
        try:
            with page if is_page else atomic_file(path, "the export", True) as draft:
                if camera is not None:
                    WRITERS[name].write(camera, about, draft)
                else:
                    shutil.copyfile(str(file), draft)
                runtime = open_file(draft, settings.threads)
                output = in_batches(runtime, data.cache.images[rows], title=name)
                parity = compare(expected, output, about)
                if not parity["max_difference"] <= tolerance:  # NaN is too large as well
                    raise UserError(
                        f"format={name}: differs by {parity['max_difference']:.2g} from the run's "
                        f"own probabilities on {len(rows)} images, more than the tolerance of "
                        f"{tolerance:g}: the file was deleted"
                    )
        except UserError as error:
            errors.append(error)
        else:
            exports.append({"format": name, "path": path, "size_mb": web.folder_mb(path), **parity})
    if exports:
        title = f"{run.title}, compared with {source} on {len(rows):,} {split} images"
        _show(exports, title, about, data.split_fingerprint == run.split_fingerprint)
        if settings.publish:
            _record(exports, store, run)
    if errors:
        raise UserError("; ".join(map(str, errors))) from errors[0]


def _check_settings(
    run: RecordedModel, file: Path | None, settings: ExportSettings, page: web.WebSettings
) -> None:
    """Raise UserError if a run cannot be exported so, or what is needed is not installed."""
    if file is None:
        for name in settings.formats:
            WRITERS[name].check_installed()
    elif settings.decision is not None:
        problem = f"is in the file of run {run.run_id}: set it beside compression="
        raise ConfigError("decision", problem)
    elif any(WRITERS[name] is not format_of(file) for name in settings.formats):
        problem = f"was compressed into a {file.suffix} file; take format={format_of(file).name}"
        raise ConfigError("format", f"run {run.run_id} {problem}")
    if web.NAME in settings.formats:
        web.find_runtime(page.runtime)


def _recorded_output(
    store: Store, run: RecordedModel, data: DataModule, split: str, rows: np.ndarray
) -> tuple[np.ndarray, Probabilities]:
    """The rows with a recorded prediction, and the predictions (N, K)."""
    for frame in run.predictions(store, split):
        predictions = frame.set_index("image_id").filter(regex="^p/")
        ids = data.frame["image_id"].to_numpy(dtype=str)[rows]
        recorded = np.isin(ids, predictions.index.to_numpy(dtype=str))
        if recorded.any():
            return rows[recorded], predictions.loc[ids[recorded]].to_numpy(np.float32)
    raise UserError(
        f"run={run.run_id}: has no predictions of its {split} images, "
        "by which its file could be checked"
    )


def _show(
    exports: Sequence[Mapping[str, Any]], title: str, about: Description, as_recorded: bool
) -> None:
    """Print the comparison, the decision, the licence and the paths."""
    labels = {
        "format": "format",
        "size_mb": "size",
        "max_difference": "largest difference\nof a probability",
        "same_class": "same most\nprobable class" if about.rule == ARGMAX else "same\nclass",
        "same_side": "same side of\nthe threshold",
    }
    formats = {"size_mb": ".2f", "max_difference": ".1e", "same_class": ".2%", "same_side": ".2%"}
    frame = pd.DataFrame(exports)[list(labels)]
    table = Table(frame, title, labels=labels, units={"size_mb": "MB"}, formats=formats)
    console.print(table.to_rich())
    for line in sentences("export", about=about, as_recorded=as_recorded):
        say(line)
    for row in exports:
        serve = "python -m http.server --bind 127.0.0.1 --directory "
        say(f"{serve if row['format'] == web.NAME else ''}{row['path']}", wrap=False)


def _record(exports: Sequence[Mapping[str, Any]], store: Store, run: RecordedModel) -> None:
    record = Run.attach(store, run.run_id)
    try:
        for row in exports:
            prefix = f"export/{row['format']}"
            record.artifact(row["path"], prefix)
            record.log({f"{prefix}/{name}": row[name] for name in RECORDED})
        record.flush()
    except OSError as error:
        problem = f"the export is written, but cannot be recorded ({error})"
        raise UserError(f"run={run.run_id}: {problem}") from error
