"""An evaluation into MLflow: of own splits on the run itself, of other data as a run of its own.

That run stands below no other one and belongs to no study: comparisons and reports are of what was trained.
"""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from src.clinical.record import ClinicalAudit
from src.config import resolve
from src.evaluation.pages import CLINICAL, PAGE, markdown
from src.evaluation.record import Evaluation
from src.tracking.limits import recordable
from src.tracking.run import Run
from src.tracking.store import Store

DESCRIPTION = "mlflow.note.content"  # the tag that MLflow's UI shows as a run's description
RECORDED = {"val": "best/val"}  # under which name the run record holds a split's figures at the kept epoch


def publish(found: Evaluation, folder: Path, store: Store, config: DictConfig) -> str:
    """Write files and headline figures.

    Args:
        found: The evaluation.
        folder: That holds its files.
        store: Opened if it is not yet.
        config: A composed `conf/evaluate.yaml`, recorded with an evaluation on other data.

    Returns:
        Id of the run that holds it.
    """
    if not found.data:
        run = Run.attach(store, found.evaluated.run_id)
        run.artifact(folder / CLINICAL, CLINICAL)
        run.artifact(folder / PAGE)
        for split, audit in found.audits.items():
            run.log(_renamed(audit, RECORDED.get(split, split)))
        run.flush()
        return run.id
    name = " ".join([found.evaluated.model, "on", found.data, *found.choices])
    params = {"evaluation": {key: value for key, value in resolve(config).items() if key != "tracking"}}
    with Run.start(store, name, dict(found.tags) | {DESCRIPTION: markdown(found)}, params) as run:
        run.log(_headline(found))
        run.artifact(folder)
        run.text(OmegaConf.to_yaml(OmegaConf.create(params["evaluation"])), "evaluation.yaml")
    return run.id


def _renamed(audit: ClinicalAudit, split: str) -> dict[str, float]:
    return {f"{split}/{name.removeprefix(f'{audit.split}/')}": value for name, value in audit.metrics.items()}


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
