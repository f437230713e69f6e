"""ENTRY: a paper's claims beside what is counted, computed and measured here; trains nothing.

python -m src.audit paper=mamun2025                692K parameters or ResNet50
python -m src.audit paper=sun2023                  Sun & Sun 2023: Table 2
python -m src.audit paper=sun2023 study=sun2023    only with runs of that study
python -m src.audit paper=mamun2025 publish=false  files only, no MLflow
python -m src.audit --help paper                   the papers
"""

from src.core.cli import Command

COMMAND = Command("command/audit", "src.reporting.claims:audit_paper", __doc__)
main = COMMAND.run

if __name__ == "__main__":
    main()
