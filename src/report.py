"""ENTRY: compute the Pareto front of a study, with intervals and decisions: HTML, PNG, CSV, MLflow.

python -m src.report study=dense_size
python -m src.report 'study=[width,dense_size]'
"""

from omegaconf import DictConfig

from src.core.cli import Command

COMMAND = Command(
    "command/report",
    "src.report:make_report",
    """
Paretoderm: which model to choose, and how certain the choice is, from the runs in MLflow.

  python -m src.report study=dense_size                       a study: front, decisions, intervals
  python -m src.report 'study=[width,dense_size]'             several studies side by side
  python -m src.report study=pareto before=2026-11-21T12:00   what has changed since then
  python -m src.report study=pareto register=derm             and register the chosen model
  python -m src.report "filter=tags.data = 'ham10000'"        any runs
  python -m src.report experiment=paretoderm                  all runs of an MLflow experiment
""",
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
