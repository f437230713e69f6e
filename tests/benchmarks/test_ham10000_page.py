"""The page of the HAM10000 study shows the figures of its CSV files."""

import pandas as pd

from benchmarks import ham10000
from src.core.cli import ROOT

FOLDER = ROOT / ham10000.FOLDER


def test_the_page_is_the_one_that_its_tables_give() -> None:
    tables = {path.stem: pd.read_csv(path) for path in FOLDER.glob("*.csv")}
    assert ham10000.render(tables) == (FOLDER / "README.md").read_text()


def test_every_trial_is_listed_with_what_it_reached() -> None:
    trials = pd.read_csv(FOLDER / "trials.csv")
    study = trials[trials["study"] == ham10000.STUDIES[0]]
    assert len(study) == study["trial"].nunique() == 80
    reached = [f"reached/val/{ham10000.QUALITY}", "reached/epochs"]
    assert study.loc[study["state"] == "pruned", reached].notna().all(axis=None)
