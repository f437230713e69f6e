"""ENTRY: one config -> one trained, measured, logged run; a multirun ends with a comparison of its runs.

python -m src.train model=custom data=ham10000
python -m src.train -m model=custom,resnet50
"""

import sys
from typing import Any

from omegaconf import DictConfig

from src import entry, multirun

EXAMPLES = """
Paretoderm: train skin-lesion classifiers, measure what each costs, record it in MLflow, compare.

  python -m src.train                                         one run on the embedded data
  python -m src.train -m model=custom,resnet50                the main job: a run per architecture, compared
  python -m src.train model=custom data=ham10000 data.root=/path/to/HAM10000 trainer.max_epochs=40
"""


def job(config: DictConfig) -> None:
    """Hydra's task: one run."""
    from src import jobs  # torch and MLflow take seconds to import: not before --help is answered

    jobs.one_run(config)


def main() -> None:
    """Run the command line."""
    failed: list[str] = []

    def finish(record: dict[str, Any], error: BaseException | None) -> None:
        from src import jobs

        failed.extend(jobs.finish_multirun(record, error))

    with multirun.compared(finish):
        entry.run(job, "train", EXAMPLES)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
