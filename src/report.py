"""ENTRY: compute the Pareto front of a study, with intervals and decisions: HTML, PNG, CSV, MLflow.

python -m src.report study=dense_size
python -m src.report 'study=[width,dense_size]'
"""

from omegaconf import DictConfig

from src.core.cli import Command

COMMAND = Command(
    "command/report",
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


def main() -> None:
    """Run the command line."""

    def job(config: DictConfig) -> None:
        from src.reporting import report

        report.make(config)
        if config.register:
            from src.reporting.card import attach

            attach(config)

    COMMAND.run(job)


if __name__ == "__main__":
    main()
