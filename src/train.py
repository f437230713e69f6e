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


def main() -> None:
    """Run the command line. Status 0 only if every run ended well."""
    failed = False

    def job(config: DictConfig) -> None:
        nonlocal failed
        from src import jobs  # torch and MLflow take seconds to import: not before --help is answered

        failed |= not jobs.one_run(config)

    def finish(record: dict[str, Any], error: BaseException | None) -> None:
        nonlocal failed
        from src import jobs

        failed |= bool(jobs.finish_multirun(record, error))

    with entry.one_line_errors(), multirun.compared(finish):
        entry.run(job, "train", EXAMPLES)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
