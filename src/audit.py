"""ENTRY: check a paper's claims against arithmetic, counted networks and recorded runs.

python -m src.audit paper=mamun2025
"""

from src.core.cli import Command

COMMAND = Command(
    "command/audit",
    "src.reporting.claims:audit_paper",
    """
Paretoderm: a paper's claims beside what is counted, computed and measured here. Trains nothing.

  python -m src.audit paper=mamun2025                Mamun et al. 2025: 692K parameters or ResNet50
  python -m src.audit paper=sun2023                  Sun & Sun 2023: Table 2
  python -m src.audit paper=sun2023 study=sun2023    only with the runs of that study
  python -m src.audit paper=mamun2025 publish=false  files only, nothing into MLflow
  python -m src.audit --help paper                   the papers
""",
)
main = COMMAND.run

if __name__ == "__main__":
    main()
