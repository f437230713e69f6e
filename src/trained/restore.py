"""A run's trained net as it was saved: as torch's weights, smaller ones too, or as a deployed file."""

from src.checkpoint import load_weights
from src.classifier import Classifier
from src.deployment.files import open_file
from src.deployment.module import as_classifier
from src.tracking import read
from src.tracking.store import Store

DEPLOYED = "deployed"  # of the artifacts of a run whose model is a file of its own
CHECKPOINT = "checkpoint/best.ckpt"


def restore(classifier: Classifier, store: Store, run_id: str) -> Classifier:
    """The classifier with the run's trained net.

    Args:
        classifier: Freshly built from the run's config; torch's weights are put into it.
        store: That holds the run.
        run_id: The run.

    Returns:
        `classifier`, or another one around the run's deployed file.

    Raises:
        UserError: No checkpoint, one of another network, or a runtime that is not installed.
    """
    files = [item.path for item in store.client.list_artifacts(run_id, DEPLOYED)]
    if files:
        return as_classifier(open_file(read.artifact(store, run_id, files[0])), classifier)
    load_weights(classifier, read.artifact(store, run_id, CHECKPOINT))
    return classifier
