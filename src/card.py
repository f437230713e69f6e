"""ENTRY: the model card of a trained model, from its recorded run, as Markdown and in MLflow.

python -m src.card model=3f2a9c          a run, or a trial with all its seeds
python -m src.card model=derm            a registered model, its newest version
python -m src.card model=derm@champion   the version with that alias, or derm/3
python -m src.card model=custom.onnx     an exported file: the run that it names
python -m src.card model=3f2a9c own_root=<folder>   results by age, sex and site
"""

from src.core.cli import Command

COMMAND = Command(
    "command/card",
    "src.reporting.card:make",
    __doc__,
    renamed={"model": "subject"},
    texts=("model",),
)
main = COMMAND.run

if __name__ == "__main__":
    main()
