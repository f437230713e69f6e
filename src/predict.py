"""ENTRY: predict probabilities and a decision for pictures.

python -m src.predict model=<run id, registry name or exported file> input=<image|folder|CSV>
"""

from src.core.cli import Command

COMMAND = Command(
    "command/predict",
    "src.deployment.predict:make",
    """
Paretoderm: predictions of a trained model for pictures. Research software, no medical device.

  python -m src.predict model=3f2a9c input=lesion.jpg                  a run, or the mean of a trial
  python -m src.predict model=skin@champion input=pictures/            a registered model, or skin/3
  python -m src.predict model=custom.onnx input=list.csv out=out.csv   an exported file
  python -m src.predict model=3f2a9c input=pictures/ unsure_below=0.6  mark uncertain predictions
  python -m src.predict model=3f2a9c input=lesion.jpg gradcam=true     and draw Grad-CAM overlays

Exit status 0: all pictures were read; 1: some were not, and are listed; 2: nothing could be done.
""",
    renamed={"model": "named"},
    texts=("model", "input", "out"),
)
main = COMMAND.run

if __name__ == "__main__":
    main()
