"""bfloat16: torch's own numbers of half the size, with float32's range."""

from pathlib import Path

from src.classifier import Classifier
from src.compression.record import Compressed, Tune
from src.compression.unfit import refuse_fitted
from src.data.module import DataModule
from src.deployment.description import Description
from src.models.bfloat16 import cast


class Bfloat16:
    """The net in bfloat16; it stays one of torch's, and its checkpoint is half as large."""

    config_only = ("name",)

    def compress(
        self, classifier: Classifier, data: DataModule, description: Description, tune: Tune, folder: Path
    ) -> Compressed:
        """Cast in place, see `src.models.bfloat16` and `src.compression.record`."""
        refuse_fitted(classifier)
        cast(classifier.net)
        return Compressed(classifier, precision="bfloat16")
