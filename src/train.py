"""ENTRY: train, measure and log one run; with -m or sweeps=, run a study and compare its trials.

python -m src.train                            one run on the embedded data
python -m src.train -m model=custom,resnet50   the main job: a run per model
python -m src.train -m sweeps=smoke            a study from sweeps/: two minutes
python -m src.train model=custom data=ham10000 data.root=/path/to/HAM10000
"""

from src.core.cli import Command

COMMAND = Command("train", "src.run:single_run", __doc__, texts=("origin",))
main = COMMAND.run

if __name__ == "__main__":
    main()
