"""From a run's record to its card: everything is found here, nothing written."""

from collections.abc import Sequence

import numpy as np

from src.carding import costs, describing, external, limits, quality
from src.carding.find import CardSubject
from src.carding.front import front
from src.carding.licences import licence
from src.carding.record import ABSENT, Card
from src.carding.recorded import RunRecord
from src.deployment.description import Description
from src.deployment.runtimes.files import FORMATS, format_of
from src.deployment.trained import RecordedModel, deployed_file, describe, single
from src.metrics.settings import AuditSettings as Clinical
from src.reporting.clinical import evaluate
from src.reporting.clinical.record import ClinicalAudit
from src.reporting.clinical.record import EvaluateSettings as Evaluation
from src.tracking.store import Store

SPLITS = ("val", "test")
NO_METADATA = (
    "Age, sex and site are not told: the run's own data were not at hand when this card was made."
)


def build(
    store: Store, subject: CardSubject, clinical: Clinical, own_root: str | None = None
) -> Card:
    """Everything that a card says.

    Args:
        store: That holds the model's runs.
        subject: The model.
        clinical: What is asked of its predictions.
        own_root: Where its own data lie, if not where it was trained.

    Raises:
        UserError: A record that cannot be read, or no class that could be the one looked for.
    """
    recorded = RunRecord(store, subject)
    evaluated = subject.evaluated
    net = single(store, evaluated.nets[0].run_id)
    description = subject.description or describe(store, net)
    audits, notes = _audited(store, subject, clinical, own_root)
    return Card(
        title=f"{evaluated.model} on {evaluated.data}{_compressed(recorded)}",
        front=front(recorded, description, audits),
        beware=tuple(limits.beware(recorded)),
        short=_short(recorded, description, audits),
        model=describing.model(recorded, description),
        compression=describing.compression(recorded),
        data=describing.data(recorded, audits),
        training=describing.training(recorded),
        quality=quality.quality(audits, notes),
        subgroups=quality.subgroups(audits),
        external=external.external(recorded),
        cost=costs.cost(recorded),
        limits=limits.limits(recorded, audits),
        commands=_commands(
            subject, [] if describing.fitted_once(recorded) else [_format(store, net)]
        ),
        licence=licence(description),
    )


def _audited(
    store: Store, subject: CardSubject, clinical: Clinical, own_root: str | None
) -> tuple[dict[str, ClinicalAudit], tuple[str, ...]]:
    """The clinical audits of val and test, and what is to be said of what is absent; none without predictions."""
    evaluated = subject.evaluated
    if not any(evaluated.predictions(store, split) for split in SPLITS):
        return {}, ()
    found = evaluate.own_splits(evaluated, Evaluation(own_root=own_root), clinical, store)
    return dict(found.audits), tuple(
        NO_METADATA if note.startswith("No metadata") else note for note in found.notes
    )


def _compressed(recorded: RunRecord) -> str:
    return (
        f", compressed ({recorded.tag('compression')})"
        if recorded.own_tag("origin") != ABSENT
        else ""
    )


def _short(
    recorded: RunRecord, description: Description, audits: dict[str, ClinicalAudit]
) -> tuple[str, ...]:
    """The model in a few sentences: what it answers, what it weighs, how good it is."""
    evaluated = recorded.subject.evaluated
    first = audits.get("test") or audits.get("val")
    told = [
        f"It gives a picture of a skin lesion one of {len(description.classes)} classes "
        f"({', '.join(description.classes)}), with a probability for each.",
        f"Trained on {evaluated.data}, split {evaluated.split or 'not recorded'}.",
    ]
    if first is not None:
        row = first.overall.set_index("metric").loc["balanced_accuracy"]
        span = (
            f"[{row['low']:.3f}, {row['high']:.3f}]"
            if np.isfinite(row["low"])
            else "(too few images for an interval)"
        )
        told.append(
            f"Balanced accuracy on {first.split}: {row['estimate']:.3f} {span}, {first.images:,} images of "
            f"{first.lesions:,} lesions or patients."
        )
        told.append(first.verdicts[0].text)
    return tuple(told)


def _format(store: Store, net: RecordedModel) -> str:
    """In which a net can be exported: any of torch's, so an example; a file only as it is."""
    file = deployed_file(store, net.run_id)
    return FORMATS["onnx"].name if file is None else format_of(file).name


def _commands(subject: CardSubject, formats: Sequence[str]) -> tuple[str, ...]:
    """What to type; of a trial its first seed's net is the example. No export of what is no network."""
    run_id = subject.evaluated.nets[0].run_id
    named = subject.versions[0] if subject.versions else None
    model = (
        subject.file.name if subject.file else f"{named.name}/{named.number}" if named else run_id
    )
    return (
        f"python -m src.predict model={model} input=<picture, folder or CSV>",
        *(f"python -m src.export run={run_id} format={each}" for each in formats),
        f"python -m src.evaluate run={subject.evaluated.run_id}",
    )
