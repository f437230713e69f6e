"""ENTRY: one config -> one trained, measured, logged run; with -m or sweeps=, a study of many, compared at its end.

python -m src.train model=custom data=ham10000
python -m src.train -m model=custom,resnet50
python -m src.train -m sweeps=dense_size
"""

import sys

from omegaconf import DictConfig

from src.core import cli

EXAMPLES = """
Paretoderm: train skin-lesion classifiers, measure what each costs, record it in MLflow, compare.

  python -m src.train                                         one run on the embedded data
  python -m src.train -m model=custom,resnet50                the main job: a run per architecture, compared
  python -m src.train -m sweeps=smoke                         a study from sweeps/, two minutes
  python -m src.train model=custom data=ham10000 data.root=/path/to/HAM10000 trainer.max_epochs=40
"""


def main() -> None:
    """Run the command line. Status 0 only if every run ended well."""

    def job(config: DictConfig) -> None:
        from src import (
            run as jobs,  # torch and MLflow take seconds to import: not before --help is answered
        )

        jobs.single_run(config)

    cli.run_command(job, "train", EXAMPLES)
    if cli.failures:
        sys.exit(1)


if __name__ == "__main__":
    main()
