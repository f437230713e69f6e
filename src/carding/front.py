"""The head of a card in YAML, as Hugging Face reads it (huggingface.co/docs/hub/model-cards)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from src.carding.record import ABSENT
from src.carding.recorded import RunRecord
from src.deployment.description import Description
from src.reporting.clinical.record import ClinicalAudit

NAMES = {  # of the run record's metrics, as Hugging Face's library of metrics calls them
    "balanced_accuracy": "balanced_accuracy",
    "accuracy": "accuracy",
    "macro_f1": "f1",
    "auroc": "roc_auc",
}
TAGS = (
    "image-classification",
    "dermatology",
    "skin-lesions",
    "research-only",
    "not-a-medical-device",
)


def front(
    recorded: RunRecord, description: Description, audits: Mapping[str, ClinicalAudit]
) -> dict[str, Any]:
    """What search engines of models ask for.

    Args:
        recorded: Of the model.
        description: Of the model.
        audits: Of val and test, those that have been predicted; test's figures are the results.
    """
    evaluated = recorded.subject.evaluated
    compressed = recorded.tag("compression")
    tags = [
        *TAGS,
        evaluated.model,
        *([compressed] if compressed != ABSENT else []),
        description.precision,
    ]
    found: dict[str, Any] = {
        "license": "other",
        "license_name": "no-licence-stated",
        "library_name": "pytorch",
        "pipeline_tag": "image-classification",
        "tags": list(dict.fromkeys(tags)),
        "datasets": [evaluated.data],
        "metrics": list(NAMES.values()),
    }
    split = next((name for name in ("test", "val") if name in audits), None)
    if split is not None:
        found["model-index"] = [
            {"name": evaluated.model, "results": [_result(evaluated.data, split, audits[split])]},
        ]
    return found


def _result(data: str, split: str, audit: ClinicalAudit) -> dict[str, Any]:
    measured = {row["metric"]: float(row["estimate"]) for row in audit.overall.to_dict("records")}
    return {
        "task": {"type": "image-classification"},
        "dataset": {"name": data, "type": data, "split": split},
        "metrics": [
            {"type": told, "value": round(measured[name], 4)}
            for name, told in NAMES.items()
            if name in measured and np.isfinite(measured[name])
        ],
    }
