"""ENTRY: the studies of the run record -> every headline figure with its interval: docs/results.md.

python -m src.results
"""

from omegaconf import DictConfig

from src.core import cli

EXAMPLES = """
Paretoderm: every headline figure over several seeds, with its interval, from what MLflow recorded. Trains nothing.

  python -m src.results                                 all sections of conf/results.yaml -> docs/results.md
  python -m src.results 'only=[leakage]' file=leak.md   one of them, into another file
  python -m src.results sections.mamun2025.studies=[ham10000_paper]   from another study
"""


def main() -> None:
    """Run the command line."""

    def job(config: DictConfig) -> None:
        from src.headline import make  # pandas and MLflow take seconds to import: not before --help

        make.make(config)

    cli.Command("results", EXAMPLES).run(job)


if __name__ == "__main__":
    main()
