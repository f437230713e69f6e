"""ENTRY: clinical audit of a trained run on its validation and test splits, or on other data.

python -m src.evaluate run=<id>
python -m src.evaluate run=<id> data=isic2019 data.root=<folder>
"""

from src.core.cli import Command

COMMAND = Command(
    "command/evaluate",
    "src.reporting.clinical.evaluate:evaluate_run",
    """
Paretoderm: clinical audit of a trained run, on its own splits and on other data.

  python -m src.evaluate run=3f2a9c                  its validation and test splits, as recorded
  python -m src.evaluate run=3f2a9c test=true        evaluate the test split, if not done yet
  python -m src.evaluate run=3f2a9c data=isic2019 data.root=<folder>    other data, classes by name
  python -m src.evaluate run=3f2a9c data=siim2020 labels=siim2020_to_ham10000   by conf/labels/
  python -m src.evaluate run=3f2a9c data=folder data.root=<folder> labels=mine.yaml unknown=list
  python -m src.evaluate run=3f2a9c data=isic2019 overlap=keep          keep the training images
  python -m src.evaluate run=3f2a9c clinical.goal=0.9 clinical.sensitivity=0.95

  --help data, --help labels       the choices
""",
    renamed={"labels": "mapping"},
    texts=("run",),
)
main = COMMAND.run

if __name__ == "__main__":
    main()
