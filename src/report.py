"""ENTRY: which model to choose, how certain the choice is: HTML, PNG, CSV, and runs in MLflow.

python -m src.report study=dense_size            front, decisions, intervals
python -m src.report 'study=[width,dense_size]'  several studies side by side
python -m src.report study=pareto register=derm  and register the chosen model
python -m src.report study=pareto before=2026-11-21T12:00   what is new since
python -m src.report "filter=tags.data = 'ham10000'"        any runs
python -m src.report experiment=paretoderm       all runs of the experiment
"""

from omegaconf import DictConfig

from src.core.cli import Command

COMMAND = Command(
    "command/report",
    "src.report:make_report",
    __doc__,
    renamed={"experiment": "from_experiment"},
    texts=("filter",),
)


def make_report(config: DictConfig) -> None:
    """Make the report, and the card of the model that it registers."""
    from src.reporting import report

    report.make(config)
    if config.register:
        from src.reporting.card import attach

        attach(config)


main = COMMAND.run

if __name__ == "__main__":
    main()
