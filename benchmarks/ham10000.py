"""Prints docs/ham10000/README.md from the CSV files beside it: every figure of the page.

    python -m benchmarks.ham10000                     prints the page; needs no run
    python -m benchmarks.ham10000 --reports reports   reads the reports on both studies first

The second form replaces the CSV files, the pictures and the page. It needs the run record and
`python -m src.report study=ham10000` and `study=ham10000_paper`, both with publish=false.
"""

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path

import jinja2
import pandas as pd

from src.core.files import atomic_file
from src.metrics.paired import paired_difference
from src.tracking import read
from src.tracking.store import Store

FOLDER = Path("docs/ham10000")
TEMPLATE = Path(__file__).with_suffix(".md.j2")
STUDIES = ("ham10000", "ham10000_paper")
QUALITY, RECALL = "balanced_accuracy", "recall/mel"
PICTURES = ("front", "curves", "effects", "recalls", "progress")
TRIALS = ["study", "trial", "label", "state", "rank", "knee", "chosen", "reached/epochs"]
TRIALS += [f"reached/val/{QUALITY}", f"best/val/{QUALITY}", "quality_low", "quality_high"]
TRIALS += [f"best/val/{RECALL}", f"test/{QUALITY}", f"spread/test/{QUALITY}", f"test/{RECALL}"]
TRIALS += ["efficiency/flops", "efficiency/params", "efficiency/latency_ratio", "commit"]
TRIALS += ["overrides"]


def extract(reports: Path, folder: Path) -> None:
    """Replace the CSV files and pictures by those of the reports, without run ids."""
    tables = {}
    for name in ("table", "intervals", "pairs", "drops"):  # one model on the front has no pairs
        files = {study: reports / study / f"{name}.csv" for study in STUDIES}
        frames = [pd.read_csv(f).assign(study=study) for study, f in files.items() if f.exists()]
        tables[name] = pd.concat(frames)
    store = Store(None).open(create=False)
    runs = read.cached_runs(store).set_index("run_id").copy()
    trials = tables["table"]
    commits = runs["tags.git_commit"].str[:7]
    trials = trials.assign(commit=trials["run_id"].map(commits).to_numpy())
    tables["trials"] = trials.reindex(columns=TRIALS)
    tables["differences"] = pd.DataFrame(differences(store, trials, runs))
    del tables["table"]
    for name, table in tables.items():
        table = table.drop(columns=["run_id", "run_a", "run_b"], errors="ignore")
        with atomic_file(folder / f"{name}.csv", "the table") as draft:
            table.to_csv(draft, index=False, float_format="%.6g")
    for name in PICTURES:
        shutil.copy(reports / STUDIES[0] / "figures" / f"{name}.png", folder / f"{name}.png")


def differences(store: Store, trials: pd.DataFrame, runs: pd.DataFrame) -> list[dict[str, object]]:
    """The small network minus the paper's with each loss, on test, paired by image."""
    small = trials[(trials["study"] == STUDIES[0]) & cheap(trials)].iloc[0]

    def predictions(run_id: str) -> list[pd.DataFrame]:
        seeds = runs.index[(runs["parent_id"] == run_id) & (runs["status"] == "FINISHED")]
        tested = [seed for seed in seeds if read.has_predictions(store, seed, "test")]
        return [read.predictions(store, seed, "test") for seed in tested]

    rows = []
    for _, paper in trials[trials["study"] == STUDIES[1]].iterrows():
        frames = predictions(small["run_id"]), predictions(paper["run_id"])
        if not frames[1]:  # only members of the front are tested
            continue
        result = paired_difference(*frames, QUALITY)
        row = {"minuend": small["label"], "subtrahend": paper["label"]}
        row |= {"difference": result.difference, "low": result.low, "high": result.high}
        rows.append(row | {"p": result.p_bootstrap, "overrides": paper["overrides"]})
    return rows


def cheap(trials: pd.DataFrame) -> pd.Series:
    """Marks the report's choice: the cheapest that is about as good as the best."""
    return trials["chosen"].fillna("").str.contains("cheapest within")


def render(tables: Mapping[str, pd.DataFrame]) -> str:
    """The page from its tables."""
    environment = jinja2.Environment(  # noqa: S701  the output is Markdown
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(TEMPLATE.read_text()).render(tables) + "\n"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--reports", type=Path)
    typed = parser.parse_args()
    if typed.reports:
        extract(typed.reports, FOLDER)
    page = render({path.stem: pd.read_csv(path) for path in FOLDER.glob("*.csv")})
    if typed.reports:
        with atomic_file(FOLDER / "README.md", "the page") as draft:
            draft.write_text(page)
    print(page)


if __name__ == "__main__":
    main()
