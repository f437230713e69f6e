"""ENTRY: write the model card of a run, a registered model or an exported file.

python -m src.card model=<run id>
python -m src.card model=derm@champion
"""

from src.core.cli import Command

COMMAND = Command(
    "command/card",
    "src.reporting.card:make",
    """
Paretoderm: the model card of a trained model, from its recorded run, as Markdown and in MLflow.

  python -m src.card model=3f2a9c                    a run, or a trial with all its seeds
  python -m src.card model=derm                      the newest version of a registered model
  python -m src.card model=derm@champion             the version with that alias, or model=derm/3
  python -m src.card model=custom.onnx               an exported file, by the run that it names
  python -m src.card model=3f2a9c own_root=<folder>  its data, for results by age, sex and site
""",
    renamed={"model": "subject"},
    texts=("model",),
)
main = COMMAND.run

if __name__ == "__main__":
    main()
