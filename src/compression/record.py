"""What a compression is given and what it gives back, whichever library does it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from src.classifier import Classifier
from src.data.module import DataModule
from src.deployment.description import Description

Tune = Callable[
    [Classifier, int, float], None
]  # fine-tunes in place: epochs, learning rate; keeps the epoch that val chose


@dataclass(frozen=True)
class Compressed:
    """A compressed net.

    Attributes:
        classifier: Whose net's multiply-adds and parameters are counted, and, without a file, what is evaluated.
        file: The model as it is deployed (.onnx, .pte, .tflite), which is then what is evaluated and timed; None where
            the net stays one of torch's, and its checkpoint is the model.
        precision: Of the weights: "float32", "float16", "bfloat16" or "int8".
        facts: What else the record shall say: numbers become metrics `compression/<name>`, text tags.
    """

    classifier: Classifier
    file: Path | None = None
    precision: str = "float32"
    facts: Mapping[str, float | str] = field(default_factory=dict)


class Compression(Protocol):
    """A way to make a trained net smaller; its settings are its constructor's arguments, from conf/compression/."""

    def compress(
        self, classifier: Classifier, data: DataModule, description: Description, tune: Tune, folder: Path
    ) -> Compressed:
        """Compress a trained classifier.

        Args:
            classifier: Trained, on the CPU, in evaluation mode; it may be changed.
            data: Ready; of train, images may be taken for calibration. Val and test are not to be touched.
            description: For the model's file, its precision still that of the origin.
            tune: Fine-tunes a classifier in place.
            folder: For the model's file.

        Raises:
            UserError: It cannot be done with this net; the message names the operator or layer.
        """
        ...
