"""ENTRY: the runs of a study -> the Pareto front, decisions, how sure they are: HTML, PNG, CSV, into MLflow too.

python -m src.report study=dense_size
python -m src.report 'study=[width,dense_size]'
"""

from omegaconf import DictConfig

from src import entry

EXAMPLES = """
Paretoderm: which model to take, and how sure that is, from what MLflow recorded.

  python -m src.report study=dense_size                       a study: front, decisions, intervals, pictures
  python -m src.report 'study=[width,dense_size]'             several side by side
  python -m src.report study=pareto before=2026-11-21T12:00   what is new since then
  python -m src.report study=pareto register=derm             and register the chosen model
  python -m src.report "filter=tags.data = 'ham10000'"        any runs
  python -m src.report experiment=paretoderm                  all runs of an MLflow experiment
"""


def main() -> None:
    """Run the command line."""

    def job(config: DictConfig) -> None:
        from src.reporting import (
            make,
        )  # pandas, MLflow and plotly take seconds to import: not before --help is answered

        make.make(config)

    entry.run(job, "report", EXAMPLES)


if __name__ == "__main__":
    main()
