"""What recording a run costs: `python -m benchmarks.logging_cost`.

A run of 60 parameters, 40 epochs of 40 metrics and 4 artifacts is recorded three ways into one
SQLite store, in turns: as `src.tracking.run.Run` does for a short run (metrics in batches at the
end), as it does at its most frequent (a batch an epoch), and with one MLflow call for each
parameter and metric. Each figure is the median of the rounds; the store exists before.

Must hold: a run costs less than 1 s in all.
"""

import statistics
import tempfile
import time
from pathlib import Path

from src.tracking.run import Run
from src.tracking.store import Store

PARAMS, EPOCHS, METRICS = 60, 40, 40
ROUNDS = 3


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(uri=f"sqlite:///{folder}/mlflow.db").open()
        artifact = Path(folder) / "predictions.csv"
        artifact.write_text("image,label,probability\n" + "ISIC_0000000,nv,0.123456\n" * 2000)
        ways = {
            "batches at the end": lambda: buffered(store, artifact, live=False),
            "a batch an epoch": lambda: buffered(store, artifact, live=True),
            "a call a value": lambda: single_calls(store, artifact),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                began = time.perf_counter()
                way()
                seconds[name].append(time.perf_counter() - began)
    slowest = statistics.median(seconds["a call a value"])
    print(
        f"{PARAMS} parameters, {EPOCHS} epochs x {METRICS} metrics, 4 artifacts "
        f"(median of {ROUNDS})"
    )
    for name, values in seconds.items():
        median = statistics.median(values)
        print(
            f"{name:20s} {median:7.3f} s   {slowest / median:6.1f} times as fast as a call a value"
        )


def buffered(store: Store, artifact: Path, live: bool) -> None:
    with Run.start(store, "buffered", tags={"model": "custom"}, params=params()) as run:
        for epoch in range(EPOCHS):
            run.log(metrics(epoch), step=epoch)
            if live:
                run.flush()
        for number in range(4):
            run.artifact(artifact, f"folder_{number}")


def single_calls(store: Store, artifact: Path) -> None:
    client = store.client
    run_id = client.create_run(store.experiment_id, run_name="single").info.run_id
    for key, value in params().items():
        client.log_param(run_id, key, value)
    for epoch in range(EPOCHS):
        for name, value in metrics(epoch).items():
            client.log_metric(run_id, name, value, step=epoch)
    for number in range(4):
        client.log_artifact(run_id, str(artifact), f"folder_{number}")
    client.set_terminated(run_id)


def params() -> dict[str, float]:
    return {f"group.parameter_{number}": number / 7 for number in range(PARAMS)}


def metrics(epoch: int) -> dict[str, float]:
    return {f"val/metric_{number}": epoch / (number + 1) for number in range(METRICS)}


if __name__ == "__main__":
    main()
