"""A benchmark into MLflow: its figures and its file on the runs whose models were measured."""

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from src.benchmarking.record import Result, Row
from src.errors import UserError

if TYPE_CHECKING:
    from src.tracking.store import Store

FOLDER = "benchmark"  # of a run's artifacts


def publish(result: Result, file: Path, store: "Store", only: Collection[str] | None = None) -> list[str]:
    """Add rows to the record.

    Args:
        result: The benchmark.
        file: That holds it as JSON.
        store: Opened if it is not yet.
        only: Ids of runs; None: all that the rows name.

    Returns:
        Ids of the runs that were added to.

    Raises:
        UserError: A run is not in the store, or two rows of one run would have the same names; nothing is then written.
    """
    from src.tracking.run import Run

    rows = [row for row in result.rows if row.run_id and (only is None or row.run_id in only)]
    if not rows:
        raise UserError(f"{file}: names no run to which it could be added")
    _refuse_twins(rows, file)
    runs = {run_id: Run.attach(store, run_id) for run_id in dict.fromkeys(row.run_id for row in rows)}
    for run_id, run in runs.items():
        for row in rows:
            if row.run_id == run_id and not row.reason:
                run.log(result.metrics(row))
                run.tag(**{f"{result.place(row)}/reference": result.reference})  # or nobody knows whose ratio it is
        run.flush()
        run.artifact(file, FOLDER)
    return list(runs)


def _refuse_twins(rows: list[Row], file: Path) -> None:
    counted = Counter((row.run_id, row.runtime) for row in rows if not row.reason)
    for (run_id, runtime), number in counted.items():
        if number > 1:
            raise UserError(
                f"{file}: has {number} models of run {run_id} in {runtime}, whose figures would have the same names; "
                "measure them one by one"
            )
