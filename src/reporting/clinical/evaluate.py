"""`python -m src.evaluate` from end to end: a trained run on its own splits or on other data."""

import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from src.core.config import load_settings, resolve
from src.core.errors import ConfigError, UserError
from src.core.files import refuse_unwritable
from src.deployment import trained
from src.deployment.trained import RecordedModel
from src.metrics.settings import AuditSettings
from src.reporting.clinical import external, presentation
from src.reporting.clinical.audit import audit
from src.reporting.clinical.external import REST, ExternalData, SourceData
from src.reporting.clinical.results import ClinicalAudit, EvaluateSettings, Evaluation
from src.tracking.run import Run, recordable
from src.tracking.store import Store, existing

DESCRIPTION = "mlflow.note.content"  # the tag that MLflow's UI shows as a run's description
RECORDED = {"val": "best/val"}  # name of a split's metrics in the run record at the kept epoch
TESTED_FOR = "for a clinical audit"
CHOSE_EPOCH = "Validation chose the epoch: its figures are too good."
console = Console(width=100)


def evaluate_run(config: DictConfig) -> Evaluation:
    """Evaluate the run that a composed conf/command/evaluate.yaml names; write, record and print.

    Raises:
        UserError: Bad input; the message names the culprit.
    """
    parts = ("data", "clinical", "tracking")
    settings = load_settings(config, EvaluateSettings, without=parts)
    clinical = load_settings(config.clinical, AuditSettings, "clinical")
    run_id = settings.run_id  # checked before the store is opened
    store = existing(config)
    evaluated = trained.find(store, run_id)
    external.refuse_root(evaluated, settings.own_root)
    refuse_unwritable(Path(settings.folder) / "evaluation", "the evaluation")
    if "_target_" in config.data:
        result = other_data(config.data, evaluated, settings, clinical, store)
    else:
        result = own_splits(evaluated, settings, clinical, store)
    folder = Path(settings.folder) / result.folder
    presentation.write_evaluation(result, folder)
    if settings.publish:
        publish(result, folder, store, config)
    for part in presentation.render_evaluation(result):
        console.print(part)
    look = f"look: {folder / presentation.EVALUATION_PAGE}"
    console.print(look, markup=False, highlight=False, soft_wrap=True)
    return result


def own_splits(
    evaluated: RecordedModel, settings: EvaluateSettings, clinical: AuditSettings, store: Store
) -> Evaluation:
    """Audit a run on its own validation and test splits, from its recorded predictions.

    Nothing is predicted, except the test split with `settings.test` if that was not done yet.

    Args:
        evaluated: The run.
        settings: Whether the test split is used, and where the run's own data are.
        clinical: Of the audit.
        store: Holds the run.
    """
    val, test = evaluated.predictions(store, "val"), evaluated.predictions(store, "test")
    if not test and settings.test:
        test = _test_once(evaluated, store)
    if not val and not test:
        raise UserError(f"run={evaluated.run_id}: has no recorded predictions; train it again")
    metadata, absent = external.own_metadata(evaluated, settings.own_root)
    notes, warnings, audits = [absent] if absent else [], _leak_warnings(evaluated), {}
    if test:
        audits["test"] = _audit(test, val, metadata, clinical, "test", warnings)
    else:
        untested = _untested(evaluated, store)
        notes.append(f"{untested}: this is validation alone. test=true uses it, once.")
    if val:
        on_val = [CHOSE_EPOCH, *warnings]
        audits["val"] = _audit(val, [], metadata, clinical, "val", on_val)
    else:
        seeds = evaluated.count_predicted(store, "val")
        some = f"Only {seeds} of {len(evaluated.nets)} seeds have predictions for validation"
        reason = some if seeds else "The run has no validation split"
        notes.append(f"{reason}: no threshold was chosen, and no temperature fitted.")
    return Evaluation(evaluated, "", audits, tuple(notes))


def other_data(
    config: DictConfig,
    evaluated: RecordedModel,
    settings: EvaluateSettings,
    clinical: AuditSettings,
    store: Store,
) -> Evaluation:
    """Predict other data with a run's nets, audit that, and compare it with the own test split.

    Args:
        config: The `data` part of a composed conf/command/evaluate.yaml.
        evaluated: The run.
        settings: Mapping, part, overlap.
        clinical: Of the audit.
        store: Holds the run.
    """
    val, test = evaluated.predictions(store, "val"), evaluated.predictions(store, "test")
    if not val and not test:
        message = "has no recorded predictions, which tell its classes; train it again"
        raise UserError(f"run={evaluated.run_id}: {message}")
    columns = map(str, (val or test)[0])
    classes = [name.removeprefix("p/") for name in columns if name.startswith("p/")]
    data = external.open_data(config, evaluated, classes, settings)
    own, own_warnings = external.find_source_data(data, evaluated, settings)
    frames, images = external.whole_frames(data), len(data.rows)
    overlap = _find_overlap(data, frames, own, {"val": val, "test": test})
    overlap_note, overlap_warnings = _overlap_texts(overlap, images, own, settings)
    warnings = [*own_warnings, *overlap_warnings, *_leak_warnings(evaluated)]
    notes = [*_picture_notes(data, evaluated, frames, own), overlap_note]
    shown = {} if own is None else external.examples(data, frames, own, classes)
    if len(overlap) and settings.overlap == "exclude":
        data = external.exclude(data, overlap)
    predictions = external.predict(data, evaluated, classes, store)
    notes += [*_label_notes(data), *trained.precision_warnings(evaluated.config)]
    if not test:
        untested = _untested(evaluated, store)
        notes.append(f"{untested}; the drop is from validation, whose figures are too good.")
    # it names files and metrics
    name = re.sub(r"[^\w.+-]+", "_", str(data.data.name)).strip("_.") or "data"
    val, compared = ([data.labels.merged(f) for f in side] for side in (val, test or val))
    if REST in data.labels.classes and len(data.labels.classes) == 2 and not clinical.positive:
        clinical = replace(clinical, positive=data.labels.classes[1])
    metadata = data.frame.drop(columns=["label", "original_label"])
    result = _audit(predictions, val, metadata, clinical, name, warnings)
    mapping = data.frame[["original_label", "label"]].fillna({"label": ""})
    mapping = mapping.value_counts(sort=False).rename("images").reset_index()
    geometry, choices = data.data.geometry, settings.choices
    if geometry != evaluated.config.data.geometry:
        choices += (f"geometry={geometry}",)
    tags = {
        "kind": trained.EVALUATION,
        "evaluated_run": evaluated.run_id,
        "model": evaluated.model,
        "data": name,
        "part": settings.part,
        "data_fingerprint": data.cache.fingerprint,
        "labels": data.labels.name,
        "overlap": settings.overlap,
        "image_size": str(data.data.image_size),
        "geometry": geometry,
    }
    seeds = [net.seed for net in evaluated.nets]
    return Evaluation(
        evaluated,
        name,
        {name: result},
        tuple(notes),
        drop=external.domain_shift(compared, predictions, val, result.positive, clinical),
        compared_with="test" if test else "val",
        by_original_label=external.recall_by_original_label(predictions, clinical),
        overlap=overlap,
        mapping=mapping.rename(columns={"label": "counts_as"}),
        predictions=dict(zip(seeds, predictions, strict=True)),
        tags=tags,
        examples=shown,
        choices=choices,
    )


def publish(result: Evaluation, folder: Path, store: Store, config: DictConfig) -> str:
    """Record an evaluation: own splits in the run itself, other data as a run of its own.

    Args:
        result: The evaluation.
        folder: Holds its files.
        store: Opened if it is not yet.
        config: A composed conf/command/evaluate.yaml, recorded with an evaluation of other data.

    Returns:
        Id of the run that holds it.
    """
    if not result.data:
        run = Run.attach(store, result.evaluated.run_id)
        run.artifact(folder / presentation.CLINICAL, presentation.CLINICAL)
        run.artifact(folder / presentation.EVALUATION_PAGE)
        for split, audit_ in result.audits.items():
            prefix = RECORDED.get(split, split)
            names = {k: f"{prefix}/{k.removeprefix(f'{split}/')}" for k in audit_.metrics}
            run.log({names[key]: value for key, value in audit_.metrics.items()})
        run.flush()
        return run.id
    [(name, result_)] = result.audits.items()
    metrics = dict(result_.metrics)
    for row in result_.overall.to_dict("records"):
        metrics[f"{name}/{row['metric']}"] = row["estimate"]
    for row in result_.per_class.to_dict("records"):
        metrics[f"{name}/{row['measure']}/{row['class']}"] = row["estimate"]
    for row in result.drop.to_dict("records"):
        metrics[f"{name}/change/{row['metric']}"] = row["difference"]
    metrics |= {f"{name}/images": float(result_.images)}
    metrics |= {f"{name}/overlap": float(len(result.overlap))}
    title = " ".join([result.evaluated.model, "on", result.data, *result.choices])
    tags = {**result.tags, DESCRIPTION: presentation.evaluation_markdown(result)}
    values = resolve(config, without=("tracking",))
    with Run.start(store, title, tags, {"evaluation": values}) as run:
        run.log({recordable(key): float(v) for key, v in metrics.items() if v == v})
        run.artifact(folder)
        run.text(OmegaConf.to_yaml(OmegaConf.create(values)), "evaluation.yaml")
    return run.id


def _audit(
    predictions: list[pd.DataFrame],
    val: list[pd.DataFrame],
    metadata: pd.DataFrame | None,
    clinical: AuditSettings,
    split: str,
    warnings: list[str],
) -> ClinicalAudit:
    """The clinical audit; a refused value is named by its key on the command line."""
    try:
        return audit(predictions, val, metadata, clinical, split, warnings)
    except ConfigError as error:
        raise error.under("clinical") from error


def _test_once(evaluated: RecordedModel, store: Store) -> list[pd.DataFrame]:
    """Evaluate the nets on their test split, for the first time; it is tagged."""
    from src.reporting import comparison

    kind = "trial" if evaluated.repeated else "run"
    runs = pd.DataFrame({"run_id": [evaluated.run_id], "kind": [kind]})
    comparison.test_once(store, runs, TESTED_FOR)
    predictions = evaluated.predictions(store, "test")
    if not predictions:
        message = "could not be evaluated on a test split; leave out test=true"
        raise UserError(f"run={evaluated.run_id}: {message}")
    return predictions


def _find_overlap(
    data: ExternalData,
    frames: external.Images,
    own: SourceData | None,
    recorded: dict[str, list[pd.DataFrame]],
) -> pd.DataFrame:
    """External images that the run has had; those with recorded predictions are always known."""
    listed = pd.concat(
        [nets[0][["image_id", "group"]].assign(split=s) for s, nets in recorded.items() if nets],
        ignore_index=True,
    )
    known, images = (listed.iloc[:0], frames[:0]) if own is None else (own.frame, own.images)
    rows = data.cache.frame.iloc[data.rows]
    return external.find_overlap(rows, known, frames, images, listed)


def _overlap_texts(
    overlap: pd.DataFrame, images: int, own: SourceData | None, settings: EvaluateSettings
) -> tuple[str, list[str]]:
    """A note on the overlap, and warnings."""
    if overlap.empty:
        how = "by id, by picture (hash) and by lesion"
        how = "by id and lesion of its val and test" if own is None else how
        return f"Overlap with the run's own images: none of {images:,}, {how}.", []
    counts = ", ".join(f"{n:,} {why}" for why, n in overlap["why"].value_counts().items())
    sides = overlap["own_split"].value_counts().items()
    if own is not None and own.same_split:
        counts += "; " + ", ".join(f"{number:,} of {side}" for side, number in sides)
    note = f"Overlap with the run's own images: {len(overlap):,} of {images:,} ({counts})"
    if settings.overlap == "exclude":
        return f"{note}, left out.", []
    taken = "take the own and these images for independent, which they are not"
    kept = f"{len(overlap):,} of these {images:,} images the run has had, and they were KEPT"
    return (
        f"{note}, kept. The intervals of the differences {taken}.",
        [f"{kept}: the figures are too good."],
    )


def _picture_notes(
    data: ExternalData, evaluated: RecordedModel, frames: external.Images, own: SourceData | None
) -> list[str]:
    theirs = external.image_sizes(data.data.source, data.manifest)
    notes = external.picture_notes(
        None if own is None else own.sizes,
        theirs,
        data.data.image_size,
        str(evaluated.config.data.geometry),
        data.data.geometry,
    )
    training = "" if own is None else f", {external.dark_corners(own.images):.0%} in training"
    corners = "Black in all four corners, as round dermatoscopes leave it"
    return [*notes, f"{corners}: {external.dark_corners(frames):.0%} here{training}."]


def _label_notes(data: ExternalData) -> list[str]:
    frame, notes = data.frame, [f"Labels: {data.labels.name}."]
    left_out = frame.loc[frame["label"].isna(), "original_label"].value_counts()
    if REST in data.labels.classes:
        names = " or ".join(name for name in data.labels.classes if name != REST)
        notes.append(
            f"The question is {names} or not. The rest's probability is the sum of the other "
            f"classes', so that {names} must outweigh all of them to be the most probable class."
        )
    if len(left_out):
        listed = ", ".join(f"{name} ({number:,})" for name, number in left_out.items())
        notes.append(f"Left out, of classes that the mapping does not know: {listed}.")
    return notes


def _leak_warnings(evaluated: RecordedModel) -> list[str]:
    leaks = "images of one lesion or patient are on both sides of the run's own split"
    leaking = "leaking" in evaluated.split
    return [f"LEAKS: {leaks}: figures on it are too good."] if leaking else []


def _untested(evaluated: RecordedModel, store: Store) -> str:
    seeds, nets = evaluated.count_predicted(store, "test"), len(evaluated.nets)
    if seeds:
        return f"Only {seeds} of {nets} seeds have been evaluated on the own test split"
    return "The own test split has not been evaluated yet"
