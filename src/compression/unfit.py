"""What no quantiser takes."""

from src.classifier import Classifier
from src.errors import UserError
from src.radiomics.once import FittedOnce


def refuse_fitted(classifier: Classifier) -> None:
    """Let only networks pass.

    Raises:
        UserError: It is a model without layers, such as an SVM.
    """
    if isinstance(classifier.net, FittedOnce):
        raise UserError(f"{classifier.name} is no network: it has no layers that could be quantised")
