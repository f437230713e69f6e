"""ENTRY: probabilities and a decision for pictures. Research software, no medical device.

  python -m src.predict model=3f2a9c input=lesion.jpg         a run, or a trial
  python -m src.predict model=skin@champion input=pictures/   or model=skin/3
  python -m src.predict model=custom.onnx input=list.csv out=out.csv
  python -m src.predict model=3f2a9c input=pictures/ unsure_below=0.6
  python -m src.predict model=3f2a9c input=lesion.jpg gradcam=true

Exit status 0: all pictures were read; 1: some were not, and are listed; 2: no
prediction could be made.
"""

from src.core.cli import Command

COMMAND = Command(
    "command/predict",
    "src.deployment.predict:make",
    __doc__,
    renamed={"model": "named"},
    texts=("model", "input", "out"),
)
main = COMMAND.run

if __name__ == "__main__":
    main()
