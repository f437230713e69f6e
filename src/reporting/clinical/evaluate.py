"""Python -m src.evaluate from end to end."""

import re
import tempfile
from dataclasses import replace
from pathlib import Path

import pandas as pd
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from src.core.config import check, resolve
from src.core.errors import ConfigError, UserError
from src.deployment import trained
from src.deployment.trained import RecordedModel
from src.metrics.settings import AuditSettings as Clinical
from src.reporting import comparison
from src.reporting.clinical import external, page
from src.reporting.clinical import external as drop
from src.reporting.clinical import external as labels
from src.reporting.clinical import external as own
from src.reporting.clinical.audit import audit
from src.reporting.clinical.external import ExternalData
from src.reporting.clinical.page import CLINICAL, EVALUATION_PAGE, evaluation_markdown
from src.reporting.clinical.record import ClinicalAudit, EvaluateSettings, Evaluation, clinical
from src.tracking.run import Run, recordable
from src.tracking.store import Store, existing

DESCRIPTION = "mlflow.note.content"  # the tag that MLflow's UI shows as a run's description
RECORDED = {
    "val": "best/val"
}  # under which name the run record holds a split's figures at the kept epoch


def publish_evaluation(found: Evaluation, folder: Path, store: Store, config: DictConfig) -> str:
    """Write files and headline figures.

    Args:
        found: The evaluation.
        folder: That holds its files.
        store: Opened if it is not yet.
        config: A composed `conf/command/evaluate.yaml`, recorded with an evaluation on other data.

    Returns:
        Id of the run that holds it.
    """
    if not found.data:
        run = Run.attach(store, found.evaluated.run_id)
        run.artifact(folder / CLINICAL, CLINICAL)
        run.artifact(folder / EVALUATION_PAGE)
        for split, audit in found.audits.items():
            run.log(_renamed(audit, RECORDED.get(split, split)))
        run.flush()
        return run.id
    name = " ".join([found.evaluated.model, "on", found.data, *found.choices])
    params = {
        "evaluation": {key: value for key, value in resolve(config).items() if key != "tracking"}
    }
    with Run.start(
        store, name, dict(found.tags) | {DESCRIPTION: evaluation_markdown(found)}, params
    ) as run:
        run.log(_headline(found))
        run.artifact(folder)
        run.text(OmegaConf.to_yaml(OmegaConf.create(params["evaluation"])), "evaluation.yaml")
    return run.id


def _renamed(audit: ClinicalAudit, split: str) -> dict[str, float]:
    return {
        f"{split}/{name.removeprefix(f'{audit.split}/')}": value
        for name, value in audit.metrics.items()
    }


def _headline(found: Evaluation) -> dict[str, float]:
    """Figures of the external data, the run record's own among them, and how far each fell."""
    [(name, audit)] = found.audits.items()
    values = dict(audit.metrics)
    for row in audit.overall.to_dict("records"):
        values[f"{name}/{row['metric']}"] = row["estimate"]
    for row in audit.per_class.to_dict("records"):
        values[f"{name}/{row['measure']}/{row['class']}"] = row["estimate"]
    for row in found.drop.to_dict("records"):
        values[f"{name}/change/{row['metric']}"] = row["difference"]
    values |= {f"{name}/images": float(audit.images), f"{name}/overlap": float(len(found.overlap))}
    return {recordable(key): float(value) for key, value in values.items() if value == value}


console = Console(width=100)
LOOKED_AT = "for a clinical audit"
CHOSE_EPOCH = "Validation chose the epoch: its figures are too good."


def make(config: DictConfig) -> Evaluation:
    """Make the evaluation that a config asks for.

    Args:
        config: A composed `conf/command/evaluate.yaml`.

    Returns:
        The evaluation, after it was written and published.

    Raises:
        UserError: Bad input; the message names the culprit.
    """
    settings, asked, store = _settings(config)
    evaluated = trained.find(store, settings.wanted)
    own.refuse_root(evaluated, settings.own_root)
    _refuse_unwritable(Path(settings.folder))
    if "_target_" in config.data:
        found = other_data(config.data, evaluated, settings, asked, store)
    else:
        found = own_splits(evaluated, settings, asked, store)
    folder = Path(settings.folder) / found.folder
    page.write_evaluation(found, folder)
    if settings.publish:
        publish_evaluation(found, folder, store, config)
    for part in page.render_evaluation(found):
        console.print(part)
    console.print(
        f"look: {folder / page.EVALUATION_PAGE}", markup=False, highlight=False, soft_wrap=True
    )
    return found


def _settings(config: DictConfig) -> tuple[EvaluateSettings, Clinical, Store]:
    parts = ("data", "clinical", "tracking")
    plain = {str(key): config[key] for key in config if key not in parts}
    check({"_target_": "src.reporting.clinical.record.EvaluateSettings", **plain})
    values = resolve(config.clinical)
    check({"_target_": "src.metrics.settings.AuditSettings", **values}, "clinical")
    settings = EvaluateSettings(**plain)
    settings.wanted  # noqa: B018  it is refused here, before the store is opened
    return settings, clinical(values), existing(config)


def own_splits(
    evaluated: RecordedModel, settings: EvaluateSettings, asked: Clinical, store: Store
) -> Evaluation:
    """Audit a run on its own val and test, from what was recorded; nothing is predicted, but for `settings.test`.

    Args:
        evaluated: The run.
        settings: Whether a test split that nobody has looked at is looked at, and where the run's
            own data are.
        asked: Of the clinical audit.
        store: That holds the run.
    """
    val = evaluated.predictions(store, "val")
    test = evaluated.predictions(store, "test")
    if not test and settings.test:
        test = _look_at_test(evaluated, store)
    if not val and not test:
        raise UserError(f"run={evaluated.run_id}: has no recorded predictions; train it again")
    metadata, absent = own.metadata(evaluated, settings.own_root)
    notes, beware, audits = [absent] if absent else [], _leaking(evaluated), {}
    if test:
        audits["test"] = _audit(test, val, metadata, asked, "test", beware)
    else:
        notes.append(
            f"{_untested(evaluated, store)}: this is validation alone. test=true looks at it, once."
        )
    if val:
        audits["val"] = _audit(val, [], metadata, asked, "val", [CHOSE_EPOCH, *beware])
    else:
        notes.append(_without_validation(evaluated, store))
    return Evaluation(evaluated, "", audits, tuple(notes))


def other_data(
    config: DictConfig,
    evaluated: RecordedModel,
    settings: EvaluateSettings,
    asked: Clinical,
    store: Store,
) -> Evaluation:
    """Predict other data with a run's nets, audit that, and compare it with the run's own test.

    Args:
        config: The `data` part of a composed `conf/command/evaluate.yaml`.
        evaluated: The run.
        settings: Mapping, part, overlap.
        asked: Of the clinical audit.
        store: That holds the run.
    """
    val, test = evaluated.predictions(store, "val"), evaluated.predictions(store, "test")
    if not val and not test:
        raise UserError(
            f"run={evaluated.run_id}: has no recorded predictions, which tell its classes; train it again"
        )
    classes = [
        str(name).removeprefix("p/") for name in (val or test)[0] if str(name).startswith("p/")
    ]
    data = external.open_data(config, evaluated, classes, settings)
    geometry = data.data.geometry
    mine, unsure = external.find_source_data(data, evaluated, settings)
    frames = external.whole_frames(data)
    notes = external.images_told(data, evaluated, settings, frames, mine)
    met = external.met_before(data, frames, mine, {"val": val, "test": test})
    told, beware = external.overlap_told(met, len(data.rows), mine, settings)
    examples = {} if mine is None else external.examples(data, frames, mine, classes)
    if len(met) and settings.overlap == "exclude":
        data = external.without(data, met)
    predictions = external.predictions(data, evaluated, classes, store)
    name = (
        re.sub(r"[^\w.+-]+", "_", str(data.data.name)).strip("_.") or "data"
    )  # it names files and metrics
    told_val, told_own = (
        [data.labels.told(frame) for frame in side] for side in (val, test or val)
    )
    asked = _looked_for(asked, data)
    beware = [*unsure, *beware, *_leaking(evaluated)]
    found = _audit(
        predictions,
        told_val,
        data.frame.drop(columns=["label", "original_label"]),
        asked,
        name,
        beware,
    )
    notes += [told, *_on_labels(data), *trained.precision_warnings(evaluated.config)]
    if not test:
        notes.append(
            f"{_untested(evaluated, store)}; the drop is from validation, whose figures are too good."
        )
    return Evaluation(
        evaluated,
        name,
        {name: found},
        tuple(notes),
        drop.compared(told_own, predictions, told_val, found.positive, asked),
        "test" if test else "val",
        drop.by_original_label(predictions, asked),
        met,
        _mapping(data),
        {net.seed: frame for net, frame in zip(evaluated.nets, predictions, strict=True)},
        _tags(evaluated, data, name, settings),
        examples,
        settings.choices
        + ((f"geometry={geometry}",) if geometry != evaluated.config.data.geometry else ()),
    )


def _tags(
    evaluated: RecordedModel, data: ExternalData, name: str, settings: EvaluateSettings
) -> dict[str, str]:
    return {
        "kind": trained.EVALUATION,
        "evaluated_run": evaluated.run_id,
        "model": evaluated.model,
        "data": name,
        "part": settings.part,
        "data_fingerprint": data.cache.fingerprint,
        "labels": data.labels.name,
        "overlap": settings.overlap,
        "image_size": str(data.data.image_size),
        "geometry": data.data.geometry,
    }


def _look_at_test(evaluated: RecordedModel, store: Store) -> list[pd.DataFrame]:
    """Evaluate the nets on their test split, for the first time; it is tagged."""
    kind = "trial" if evaluated.repeated else "run"
    comparison.test_once(
        store, pd.DataFrame({"run_id": [evaluated.run_id], "kind": [kind]}), LOOKED_AT
    )
    found = evaluated.predictions(store, "test")
    if not found:
        raise UserError(
            f"run={evaluated.run_id}: could not be evaluated on a test split; leave out test=true"
        )
    return found


def _audit(
    predictions: list[pd.DataFrame],
    val: list[pd.DataFrame],
    metadata: pd.DataFrame | None,
    asked: Clinical,
    split: str,
    beware: list[str],
) -> ClinicalAudit:
    """The clinical audit; of a value that it refuses, the key is told as it is typed."""
    try:
        return audit(predictions, val, metadata, asked, split, beware)
    except ConfigError as error:
        raise error.under("clinical") from error


def _looked_for(asked: Clinical, data: ExternalData) -> Clinical:
    """Where one class is held against the rest, it is the one that is looked for."""
    classes = data.labels.classes
    one = labels.REST in classes and len(classes) == 2
    return replace(asked, positive=classes[1]) if one and asked.positive is None else asked


def _on_labels(data: ExternalData) -> list[str]:
    frame = data.frame
    left_out = frame.loc[frame["label"].isna(), "original_label"].value_counts()
    lines = [f"Labels: {data.labels.name}."]
    if labels.REST in data.labels.classes:
        asked = " or ".join(name for name in data.labels.classes if name != labels.REST)
        lines.append(
            f"The question is {asked} or not. The rest's probability is the sum of the other classes', so that {asked} "
            "must outweigh all of them to be the most probable class."
        )
    if len(left_out):
        listed = ", ".join(f"{name} ({number:,})" for name, number in left_out.items())
        lines.append(f"Left out, of classes that the mapping does not know: {listed}.")
    return lines


def _mapping(data: ExternalData) -> pd.DataFrame:
    frame = data.frame[["original_label", "label"]].fillna({"label": ""})
    table = frame.value_counts(sort=False).rename("images").reset_index()
    return table.rename(columns={"label": "counts_as"})


def _leaking(evaluated: RecordedModel) -> list[str]:
    if "leaking" not in evaluated.split:
        return []
    return [
        "LEAKS: images of one lesion or patient are on both sides of the run's own split: figures on it flatter."
    ]


def _untested(evaluated: RecordedModel, store: Store) -> str:
    seeds = evaluated.count_predicted(store, "test")
    if seeds:
        return (
            f"Only {seeds} of {len(evaluated.nets)} seeds have been evaluated on the own test split"
        )
    return "The own test split has not been looked at yet"


def _without_validation(evaluated: RecordedModel, store: Store) -> str:
    seeds = evaluated.count_predicted(store, "val")
    some = (
        f"Only {seeds} of {len(evaluated.nets)} seeds have predictions for validation"
        if seeds
        else ""
    )
    return f"{some or 'The run has no validation split'}: no threshold was chosen, and no temperature fitted."


def _refuse_unwritable(folder: Path) -> None:
    """Before anything is computed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"folder={folder}: the evaluation cannot be written there ({error})"
        ) from error
