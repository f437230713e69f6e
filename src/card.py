"""ENTRY: a model card: what a model is, what it was trained on, how good it is and for whom, what it costs, its limits.

python -m src.card model=<run id>
python -m src.card model=derm@champion
"""

import sys

from omegaconf import DictConfig

from src.core import cli
from src.core.cli import QUOTES, quoted

EXAMPLES = """
Paretoderm: a model's card, filled from its record alone, as Markdown and in MLflow.

  python -m src.card model=3f2a9c                    a run, or a trial with all its seeds; the start of the id is enough
  python -m src.card model=derm                      the newest version of a registered model; its description, too
  python -m src.card model=derm@champion             the version with that alias, or model=derm/3
  python -m src.card model=custom.onnx               an exported file, by the run that it names
  python -m src.card model=3f2a9c own_root=<folder>  where its data lie, for the figures by age, sex and site
"""


def main() -> None:
    """Run the command line."""

    def job(config: DictConfig) -> None:
        from src.carding import make  # torch and MLflow take seconds to import: not before --help

        make.make(config)

    sys.argv[1:] = [as_hydra_reads(argument) for argument in sys.argv[1:]]
    cli.run_command(job, "card", EXAMPLES)


def as_hydra_reads(argument: str) -> str:
    """An argument as it is typed, as Hydra's grammar wants it.

    To Hydra `model` is the folder conf/model, whose architectures are no trained models; 12e4 is a
    number and no start of an id, and an @ needs quotes.
    """
    key, sign, value = argument.partition("=")
    if key != "model" or not sign:
        return argument
    plain = value == "null" or value.startswith(QUOTES)
    return f"subject={value if plain else quoted(value)}"


if __name__ == "__main__":
    main()
