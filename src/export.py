"""ENTRY: a trained run as a file for a device, checked at once in its own runtime.

python -m src.export run=<id> format=onnx
python -m src.export run=<id> format=[onnx,executorch,litert]
"""

import sys

from omegaconf import DictConfig

from src.core import cli
from src.evaluate import as_hydra_reads as id_as_text

EXAMPLES = """
Paretoderm: a trained run as a file. It takes the camera's picture, uint8 RGB (N, S, S, 3), and gives probabilities
(N, K). Normalisation is inside; cutting a square and resizing it is not. Labels, geometry, threshold, licence and
the run's id are in the file.

  python -m src.export run=3f2a9c                            ONNX, for ONNX Runtime; a batch of any size
  python -m src.export run=3f2a9c format=executorch          .pte for ExecuTorch, one picture a call
  python -m src.export run=3f2a9c format=litert              .tflite for LiteRT, one picture a call
  python -m src.export run=3f2a9c format=onnx,litert         both
  python -m src.export run=3f2a9c data.root=<folder>         where the images lie, if not where it was trained
  python -m src.export run=3f2a9c images=null publish=false  all validation images; nothing is recorded

The libraries are optional: pip install -e '.[onnx]', '.[executorch]', '.[litert]'.
"""


def main() -> None:
    """Run the command line."""

    def job(config: DictConfig) -> None:
        from src.deployment import (
            export as make,  # torch and MLflow take seconds to import: not before --help
        )

        make.make(config)

    sys.argv[1:] = [as_hydra_reads(argument) for argument in sys.argv[1:]]
    cli.run_command(job, "export", EXAMPLES)


def as_hydra_reads(argument: str) -> str:
    """An argument as it is typed, as Hydra's grammar wants it: several formats are a list, not a sweep."""
    key, _, value = argument.partition("=")
    if key == "format" and "," in value and not value.startswith("["):
        return f"format=[{value}]"
    return f"root={value}" if key == "data.root" else id_as_text(argument)


if __name__ == "__main__":
    main()
