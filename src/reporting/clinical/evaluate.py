"""`python -m src.evaluate` from end to end: a trained run on its own splits or on other data."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf

from src.core.cli import console, say
from src.core.config import instantiate, load_settings, resolve
from src.core.errors import ConfigError, UserError
from src.core.files import refuse_unwritable, slug
from src.data.decoding import DECODING_ERRORS
from src.data.source import Manifest, Source, evenly, file_sizes, size_summary
from src.deployment import trained
from src.deployment.trained import RecordedModel
from src.metrics.bootstrap import ARGMAX
from src.metrics.decision_rules import with_decisions
from src.metrics.registry import RECORDED
from src.metrics.settings import AuditSettings
from src.reporting.clinical import external, presentation, subgroups
from src.reporting.clinical.audit import audit, domain_shift, recall_by_original_label
from src.reporting.clinical.external import REST, ExternalData
from src.reporting.clinical.results import EvaluateSettings, Evaluation, Images, sentences
from src.tracking.run import Run, recordable
from src.tracking.store import Store, existing

if TYPE_CHECKING:
    from src.data.module import DataModule

DESCRIPTION = "mlflow.note.content"  # the tag that MLflow's UI shows as a run's description
TESTED_FOR = "for a clinical audit"
CHOSE_EPOCH = "Validation chose the epoch: its figures are too good."
MOST = 2000  # files whose size is read
MOST_DRAWN = 50  # pictures that are created to read their size, if they are no files
BLACK = 40  # mean brightness of a corner, of 255, that counts as black
EXAMPLES = 8  # images of each class and set that are shown
LEAKS = (
    "LEAKS: images of one lesion or patient are on both sides of the run's split: "
    "figures on it are too good."
)


def evaluate_run(config: DictConfig) -> None:
    """Evaluate the run that a composed conf/command/evaluate.yaml names; write, record and print.

    Raises:
        UserError: Bad input; the message names the culprit.
    """
    parts = ("data", "clinical", "tracking")
    settings = load_settings(config, EvaluateSettings, without=parts)
    clinical = load_settings(config.clinical, AuditSettings, "clinical")
    run_id = settings.run_id  # checked before the store is opened
    if "_target_" not in config.data and settings.mapping != external.AUTO:
        raise ConfigError("labels", "maps the classes of other data: add data=, or leave it out")
    store = existing(config)
    evaluated = trained.find(store, run_id)
    trained.data_config(evaluated, settings.own_root)  # refuses a folder of data without one
    refuse_unwritable(Path(settings.folder) / "evaluation", "the evaluation")
    if "_target_" in config.data:
        result = other_data(config.data, evaluated, settings, clinical, store)
    else:
        result = recorded_splits(evaluated, settings, clinical, store)
    folder = Path(settings.folder) / result.folder
    presentation.write_evaluation(result, folder)
    if settings.publish:
        _publish(result, folder, store, config, settings)
    for part in presentation.render_evaluation(result, console, settings.verbose):
        console.print(part)
    say(f"look: {folder / presentation.EVALUATION_PAGE}", wrap=False)


def recorded_splits(
    evaluated: RecordedModel, settings: EvaluateSettings, clinical: AuditSettings, store: Store
) -> Evaluation:
    """Audit a run on its own validation and test splits, from its recorded predictions.

    Nothing is predicted, except the test split with `settings.test` if that was not done yet.
    """
    val, test = evaluated.predictions(store, "val"), evaluated.predictions(store, "test")
    if settings.test and not test:
        from src.reporting import comparison

        kind = "trial" if evaluated.repeated else "run"
        runs = pd.DataFrame({"run_id": [evaluated.run_id], "kind": [kind]})
        comparison.test_once(store, runs, TESTED_FOR)
        test = evaluated.predictions(store, "test")
        if not test:
            message = "could not be evaluated on a test split; leave out test=true"
            raise UserError(f"run={evaluated.run_id}: {message}")
    if settings.decision is not None:
        val, test = _decided(settings.decision, val, test)
    if not val and not test:
        raise UserError(f"run={evaluated.run_id}: has no recorded predictions; train it again")
    metadata, missing, warnings = None, "", [LEAKS] if "leaking" in evaluated.split else []
    try:
        config = trained.data_config(evaluated, settings.own_root)
        source: Source = instantiate(config.source, "data.source")
        metadata = subgroups.map_columns(source.manifest().frame, settings.columns)
    except UserError as error:
        missing = str(error)
    audits = {}
    if test:
        audits["test"] = audit(test, val, metadata, clinical, "test", warnings)
    if val:
        audits["val"] = audit(val, [], metadata, clinical, "val", [CHOSE_EPOCH, *warnings])
    unknown = [] if metadata is None else subgroups.unknown_columns(metadata)
    values = {"missing": missing, "unknown": unknown, "audits": audits}
    notes = sentences("own", evaluated=evaluated, store=store, **values)
    return Evaluation(evaluated, "", audits, tuple(notes))


def _decided(
    rule: str, val: Sequence[pd.DataFrame], others: Sequence[pd.DataFrame]
) -> tuple[list[pd.DataFrame], list[pd.DataFrame]]:
    """Predictions of validation and of other images, a frame for each net, by a decision rule."""
    if rule != ARGMAX and not val:
        problem = (
            f"{rule} is fitted on validation, of which the run has no predictions: take argmax"
        )
        raise ConfigError("decision", problem)
    fitted_on: Sequence[pd.DataFrame | None] = val or [None] * len(others)
    pairs = zip(others, fitted_on, strict=True)
    decided = [with_decisions(frame, rule, on_val) for frame, on_val in pairs]
    return [with_decisions(frame, rule) for frame in val], decided


def other_data(
    config: DictConfig,
    evaluated: RecordedModel,
    settings: EvaluateSettings,
    clinical: AuditSettings,
    store: Store,
) -> Evaluation:
    """Predict other data with a run's nets, audit that, and compare it with the run's test split.

    `config` is the `data` part of a composed conf/command/evaluate.yaml.
    """
    classes = trained.class_names(store, evaluated)
    recorded = {split: evaluated.predictions(store, split) for split in ("val", "test")}
    if settings.decision is not None:
        recorded = dict(zip(recorded, _decided(settings.decision, *recorded.values()), strict=True))
    data = external.open_data(config, evaluated, classes, settings)
    source, source_warnings = external.source_data(data, evaluated, settings)
    frames = external.full_frames(data)
    overlap, overlap_note, overlap_warnings = _overlap(
        data, frames, evaluated, source, recorded, settings
    )
    leaks = [LEAKS] if "leaking" in evaluated.split else []
    warnings = [*source_warnings, *overlap_warnings, *leaks]
    notes = _picture_notes(data, evaluated, frames, source) + overlap_note
    shown = {} if source is None else examples(data, frames, source, classes)
    if len(overlap) and settings.overlap == "exclude":
        data = external.exclude(data, overlap)
    predictions = external.predict(data, evaluated, classes, store)
    rule = settings.decision or evaluated.config.get("decision", ARGMAX)
    predictions = _decided(rule, recorded["val"], predictions)[1]
    predictions = [data.labels.merge(net) for net in predictions]
    original = data.frame.loc[data.frame["label"].isna(), "original_label"]
    unmapped = original.value_counts().to_dict()
    compared_with = "test" if recorded["test"] else "val"
    metadata = data.frame.drop(columns=["label", "original_label"])
    metadata = subgroups.map_columns(metadata, settings.columns)
    unknown = subgroups.unknown_columns(metadata)
    values = {"labels": data.labels, "rest": REST, "unmapped": unmapped, "unknown": unknown}
    seen = {"compared_with": compared_with, "evaluated": evaluated, "store": store}
    notes += sentences("other", **values, **seen)
    notes += trained.precision_warnings(evaluated.config)
    # it names files and metrics
    name = slug(str(data.data.name), "data")
    merged = {split: [data.labels.merge(net) for net in nets] for split, nets in recorded.items()}
    if REST in data.labels.classes and len(data.labels.classes) == 2 and not clinical.positive:
        clinical = replace(clinical, positive=data.labels.classes[1])
    result = audit(predictions, merged["val"], metadata, clinical, name, warnings)
    geometry = data.data.geometry
    differs = geometry != evaluated.config.data.geometry
    drop_from = merged[compared_with]
    return Evaluation(
        evaluated,
        name,
        {name: result},
        tuple(notes),
        external=data,
        drop=domain_shift(drop_from, predictions, merged["val"], result.positive, clinical),
        compared_with=compared_with,
        by_original_label=recall_by_original_label(predictions, clinical),
        overlap=overlap,
        predictions=dict(zip((net.seed for net in evaluated.nets), predictions, strict=True)),
        examples=shown,
        choices=(*settings.choices, *([f"geometry={geometry}"] if differs else [])),
    )


def _publish(
    result: Evaluation, folder: Path, store: Store, config: DictConfig, settings: EvaluateSettings
) -> None:
    """Record an evaluation: own splits in the run itself, other data as a run of its own."""
    if result.external is None:
        run = Run.attach(store, result.evaluated.run_id)
        run.artifact(folder / presentation.CLINICAL, presentation.CLINICAL)
        run.artifact(folder / presentation.EVALUATION_PAGE)
        for split, part in result.audits.items():
            prefix = RECORDED.get(split, split)
            run.log({f"{prefix}{key.removeprefix(split)}": v for key, v in part.metrics.items()})
        run.flush()
        return
    [(name, part)] = result.audits.items()
    metrics = dict(part.metrics)
    metrics |= _values(part.overall, f"{name}/{{metric}}", "estimate")
    metrics |= _values(part.per_class, f"{name}/{{measure}}/{{class}}", "estimate")
    metrics |= _values(result.drop, f"{name}/change/{{metric}}", "difference")
    metrics |= {f"{name}/images": part.images, f"{name}/overlap": len(result.overlap)}
    title = " ".join([result.evaluated.model, "on", result.data, *result.choices])
    data, values = result.external, resolve(config, without=("tracking",))
    tags = {
        "kind": trained.EVALUATION,
        "evaluated_run": result.evaluated.run_id,
        "model": result.evaluated.model,
        "data": name,
        "part": settings.part,
        "data_fingerprint": data.cache.fingerprint,
        "labels": data.labels.name,
        "overlap": settings.overlap,
        "image_size": str(data.data.image_size),
        "geometry": data.data.geometry,
        DESCRIPTION: presentation.evaluation_markdown(result),
    }
    with Run.start(store, title, tags, {"evaluation": values}) as run:
        run.log({recordable(key): float(v) for key, v in metrics.items() if v == v})
        run.artifact(folder)
        run.text(OmegaConf.to_yaml(OmegaConf.create(values)), "evaluation.yaml")


def _values(table: pd.DataFrame, name: str, column: str) -> dict[str, float]:
    """A column by names that are formatted from the other columns."""
    return {name.format_map(row): row[column] for row in table.to_dict("records")}


def _overlap(
    data: ExternalData,
    frames: Images,
    evaluated: RecordedModel,
    source: "DataModule | None",
    recorded: Mapping[str, Sequence[pd.DataFrame]],
    settings: EvaluateSettings,
) -> tuple[pd.DataFrame, list[str], list[str]]:
    """External images that the run has had, a note and warnings.

    Images with recorded predictions are compared by id and group even without the run's data.
    """
    listed = pd.concat(
        [nets[0][["image_id", "group"]].assign(split=s) for s, nets in recorded.items() if nets],
        ignore_index=True,
    )
    members, pictures, same_split = listed.iloc[:0], frames[:0], False
    if source is not None:
        same_split = source.split_fingerprint == evaluated.split_fingerprint
        members = source.frame.assign(split=source.side if same_split else "")
        pictures = source.cache.images
    rows, images = data.cache.frame.iloc[data.rows], len(data.rows)
    overlap = external.find_overlap(rows, members, frames, pictures, listed)
    is_kept = settings.overlap == "keep"
    note = sentences(
        "overlap",
        images=images,
        number=len(overlap),
        reasons=overlap["why"].value_counts().to_dict(),
        sides=overlap["own_split"].value_counts().to_dict() if same_split else {},
        pictures_compared=source is not None,
        kept=is_kept,
    )
    warning = f"{len(overlap):,} of these {images:,} images the run has had, and they were KEPT"
    warnings = [f"{warning}: the figures are too good."] if is_kept and len(overlap) else []
    return overlap, note, warnings


def _picture_notes(
    data: ExternalData, evaluated: RecordedModel, frames: Images, source: "DataModule | None"
) -> list[str]:
    """What the net was trained on, what it gets here, and how the pictures differ."""
    training: dict[str, Any] = {"source": {}, "corners_there": None}
    if source is not None:
        sizes = image_sizes(source.source, source.source.manifest())
        corners = dark_corners(source.cache.images)
        training = {"source": size_summary(sizes), "corners_there": corners}
    return sentences(
        "pictures",
        size=data.data.image_size,
        trained_with=evaluated.config.data.geometry,
        now=data.data.geometry,
        external=size_summary(image_sizes(data.data.source, data.manifest)),
        corners=dark_corners(frames),
        **training,
    )


def image_sizes(source: Source, manifest: Manifest) -> pd.DataFrame:
    """Sizes of a set's pictures as they are stored; `source` creates them, if they are no files.

    Returns:
        A row for each image: width and height, px; missing if unreadable. At most `MOST` images
        (`MOST_DRAWN` that are no files), evenly over the set, are looked at; others are missing.
    """
    paths = manifest.frame["path"]
    if paths.nunique() == len(paths):
        return file_sizes(paths, MOST)
    sizes = np.full((len(paths), 2), np.nan)
    for row in evenly(len(paths), MOST_DRAWN):
        with contextlib.suppress(*DECODING_ERRORS):  # the cache reports unreadable pictures
            sizes[row] = source.picture(manifest, int(row)).size
    return pd.DataFrame(sizes, columns=["width", "height"])


def dark_corners(images: Images) -> float:
    """Share of full frames, uint8 (N, S, S, 3), that are black in all four corners, in [0, 1]."""
    side = max(1, images.shape[1] // 8)
    ends = (slice(None, side), slice(-side, None))
    corners = [images[:, rows, columns].mean(axis=(1, 2, 3)) for rows in ends for columns in ends]
    return float((np.max(corners, axis=0) < BLACK).mean())


def examples(
    external: ExternalData, frames: Images, source: "DataModule", classes: Sequence[str]
) -> dict[str, tuple[Images, Images]]:
    """By class of the evaluation, images of the run and external ones, evenly over each set."""
    names, labels = external.labels.classes, external.frame["label"]
    of_run = source.frame["label"].map(dict(enumerate(classes)))
    of_run = of_run.where(of_run.isin(names), REST)

    def some(images: Images, chosen: pd.Series) -> Images:
        rows = np.flatnonzero(chosen)
        return images[rows[evenly(len(rows), EXAMPLES)]]

    images = source.cache.images
    return {name: (some(images, of_run == name), some(frames, labels == name)) for name in names}
