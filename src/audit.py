"""ENTRY: a paper's claims -> what is counted, computed and measured here beside each, with a verdict.

python -m src.audit paper=mamun2025
"""

from omegaconf import DictConfig

from src.core import cli

EXAMPLES = """
Paretoderm: what a paper claims, and what is counted, computed and measured here. Nothing is trained.

  python -m src.audit paper=mamun2025                    Mamun et al. 2025: 692K parameters against ResNet50
  python -m src.audit paper=sun2023                      Sun & Sun 2023: Table 2
  python -m src.audit paper=sun2023 study=sun2023        only with the runs of that study
  python -m src.audit paper=mamun2025 publish=false      files only, nothing into MLflow
  python -m src.audit --help paper                       the papers there are
"""


def main() -> None:
    """Run the command line."""

    def job(config: DictConfig) -> None:
        from src.auditing import (
            make,  # torch, pandas and MLflow take seconds to import: not before --help
        )

        make.make(config)

    cli.run_command(job, "audit", EXAMPLES)


if __name__ == "__main__":
    main()
