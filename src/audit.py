"""ENTRY: check a paper's claims against arithmetic, counted networks and recorded runs.

python -m src.audit paper=mamun2025
"""

from omegaconf import DictConfig

from src.core.cli import Command

COMMAND = Command(
    "command/audit",
    """
Paretoderm: a paper's claims beside what is counted, computed and measured here. Trains nothing.

  python -m src.audit paper=mamun2025                Mamun et al. 2025: 692K parameters or ResNet50
  python -m src.audit paper=sun2023                  Sun & Sun 2023: Table 2
  python -m src.audit paper=sun2023 study=sun2023    only with the runs of that study
  python -m src.audit paper=mamun2025 publish=false  files only, nothing into MLflow
  python -m src.audit --help paper                   the papers
""",
)


def main() -> None:
    """Run the command line."""

    def job(config: DictConfig) -> None:
        from src.reporting.claims import audit_paper

        audit_paper(config)

    COMMAND.run(job)


if __name__ == "__main__":
    main()
