"""ENTRY: a trained run, judged for clinical use: on its own val and test, or on other data.

python -m src.evaluate run=<id>
python -m src.evaluate run=<id> data=isic2019 data.root=<folder>
"""

import sys

from omegaconf import DictConfig

from src.core import cli

EXAMPLES = """
Paretoderm: how a trained run would fare in a clinic, on what it was held back from and on other data.

  python -m src.evaluate run=3f2a9c                          its own val and test, from what MLflow recorded
  python -m src.evaluate run=3f2a9c test=true                and look at the test split, if nobody has yet: once
  python -m src.evaluate run=3f2a9c data=isic2019 data.root=<folder>     other data, classes mapped by name
  python -m src.evaluate run=3f2a9c data=siim2020 labels=siim2020_to_ham10000     classes mapped by conf/labels/
  python -m src.evaluate run=3f2a9c data=folder data.root=<folder> labels=mine.yaml unknown=list
  python -m src.evaluate run=3f2a9c data=isic2019 overlap=keep           with the images that it was trained on
  python -m src.evaluate run=3f2a9c clinical.goal=0.9 clinical.sensitivity=0.95

  --help data, --help labels       what each choice is
"""


def main() -> None:
    """Run the command line."""

    def job(config: DictConfig) -> None:
        from src.reporting.clinical import (
            evaluate as make,  # torch and MLflow take seconds to import: not before --help
        )

        make.make(config)

    sys.argv[1:] = [as_hydra_reads(argument) for argument in sys.argv[1:]]
    cli.run_command(job, "evaluate", EXAMPLES)


def as_hydra_reads(argument: str) -> str:
    """An argument as it is typed, as Hydra's grammar wants it.

    To Hydra 12e4 is a number and no start of an id, and `labels` is the folder conf/labels, whose
    mappings are no parts of a config.
    """
    key, sign, value = argument.partition("=")
    if key == "run" and value.isalnum() and value != "null":
        return f"run='{value}'"
    return f"mapping={value}" if key == "labels" and sign else argument


if __name__ == "__main__":
    main()
