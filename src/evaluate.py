"""ENTRY: clinical audit of a trained run, on its own splits or on other data.

python -m src.evaluate run=3f2a9c                its validation and test splits
python -m src.evaluate run=3f2a9c test=true      evaluate test, if not done yet
python -m src.evaluate run=3f2a9c verbose=true   all tables and notes
python -m src.evaluate run=3f2a9c data=isic2019 data.root=<folder>
python -m src.evaluate run=3f2a9c data=siim2020 labels=siim2020_to_ham10000
python -m src.evaluate run=3f2a9c data=folder data.root=. labels=mine.yaml
python -m src.evaluate run=3f2a9c data=isic2019 overlap=keep
python -m src.evaluate run=3f2a9c clinical.goal=0.9 clinical.sensitivity=0.95

--help data, --help labels       the choices
"""

from src.core.cli import Command

COMMAND = Command(
    "command/evaluate",
    "src.reporting.clinical.evaluate:evaluate_run",
    __doc__,
    renamed={"labels": "mapping"},
    texts=("run",),
)
main = COMMAND.run

if __name__ == "__main__":
    main()
