"""ENTRY: the runs of a study -> the Pareto front, decisions, how sure they are: HTML, PNG, CSV, into MLflow too.

python -m src.report study=dense_size
python -m src.report 'study=[width,dense_size]'
"""

import sys

from omegaconf import DictConfig

from src.core import cli

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
            report as make,  # pandas, MLflow and plotly take seconds to import: not before --help
        )

        make.make(config)
        if config.register:
            from src.carding.make import attach

            attach(config)

    sys.argv[1:] = [as_hydra_reads(argument) for argument in sys.argv[1:]]
    cli.run_command(job, "report", EXAMPLES)


def as_hydra_reads(argument: str) -> str:
    """An argument as it is typed, as Hydra's grammar wants it.

    To Hydra `experiment` is the folder conf/experiment, whose presets a report has no use for; and
    a filter in MLflow's language, with its spaces and quotes, has to stand in quotes of its own.
    """
    key, sign, value = argument.partition("=")
    if key == "experiment" and sign:
        return f"from_experiment={value}"
    if key == "filter" and value[:1] not in ("", "'", '"') and value != "null":
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'filter="{escaped}"'
    return argument


if __name__ == "__main__":
    main()
