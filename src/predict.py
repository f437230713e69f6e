"""ENTRY: pictures in, probabilities and a decision out, by a trained run, a registered model or an exported file.

python -m src.predict model=<run id, registry name or exported file> input=<image|folder|CSV>
"""

import sys

from omegaconf import DictConfig

from src.core import cli
from src.core.cli import QUOTES, quoted

EXAMPLES = """
Paretoderm: what a trained model says about pictures. This is research and no medical device.

  python -m src.predict model=3f2a9c input=lesion.jpg                     a run, or a trial: the mean of its seeds
  python -m src.predict model=skin@champion input=pictures/               a registered model; skin/3: version 3
  python -m src.predict model=custom.onnx input=list.csv out=said.csv     an exported file; pictures of a CSV
  python -m src.predict model=3f2a9c input=pictures/ unsure_below=0.6     say where it is unsure
  python -m src.predict model=3f2a9c input=lesion.jpg gradcam=true        and draw where it looks

Status 0: all pictures were read; 1: some could not be, and are listed; 2: nothing could be done.
"""
TEXTS = (
    "input",
    "out",
)  # values that are paths, in which Hydra's grammar would see commas, brackets and signs


def main() -> None:
    """Run the command line. Status 1 if some pictures could not be read."""

    def job(config: DictConfig) -> None:
        from src.deployment import (
            predict as make,  # torch and MLflow take seconds to import: not before --help
        )

        make.make(config)

    sys.argv[1:] = [as_hydra_reads(argument) for argument in sys.argv[1:]]
    cli.run_command(job, "predict", EXAMPLES)
    if cli.failures:
        sys.exit(1)


def as_hydra_reads(argument: str) -> str:
    """An argument as it is typed, as Hydra's grammar wants it.

    To Hydra 12e4 is a number and no start of an id, a path with blanks or commas is no value, and
    `model` is the folder conf/model, whose architectures are not what is named here.
    """
    key, sign, value = argument.partition("=")
    if not sign or key not in ("model", *TEXTS):
        return argument
    plain = value in ("", "null") or value.startswith(QUOTES)
    text = value if plain else quoted(value)
    return f"{'named' if key == 'model' else key}={text}"


if __name__ == "__main__":
    main()
