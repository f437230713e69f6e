import math

import pandas as pd
import pytest

from src.tracking import store as store_module
from src.tracking.read import artifact, children, runs
from src.tracking.run import Run
from src.tracking.store import TrackingError


def test_what_was_written_is_read(store, tmp_path):
    table = pd.DataFrame({"model": ["custom", "a,b"], "auroc": [0.1 + 0.2, math.nan]})
    with Run.start(store, "parent", tags={"study": "s"}) as parent:
        for number, name in enumerate(("custom", "resnet50")):
            params = {"model": {"net": {"width": [number, 64]}}, "seed": number}
            with Run.start(store, name, {"model": name}, params, parent.id) as child:
                child.log(
                    {
                        "val/loss": 0.1 + 0.2 + number,
                        "nan": math.nan,
                        "inf": math.inf,
                        "-inf": -math.inf,
                    },
                    step=3,
                )
                child.table(table, "tables/per_class.csv")
    found = children(store, parent.id).set_index("name").loc[["custom", "resnet50"]]
    assert found.parent_id.tolist() == [parent.id] * 2
    assert found.status.tolist() == ["FINISHED"] * 2
    assert found["tags.model"].tolist() == ["custom", "resnet50"]
    assert found["params.model.net.width"].tolist() == ["[0, 64]", "[1, 64]"]
    assert found["metrics.val/loss"].tolist() == [0.1 + 0.2, 0.1 + 0.2 + 1]
    assert found["metrics.nan"].isna().all()
    assert found["metrics.inf"].tolist() == [math.inf] * 2
    assert found["metrics.-inf"].tolist() == [-math.inf] * 2
    assert (found.end_time >= found.start_time).all()
    assert str(found.start_time.dt.tz) == "UTC"
    pd.testing.assert_frame_equal(
        pd.read_csv(artifact(store, found.run_id["custom"], "tables/per_class.csv")), table
    )
    assert artifact(store, found.run_id["custom"], "tables").is_dir()
    assert runs(store, "tags.study = 's'").run_id.tolist() == [parent.id]
    assert runs(store, "metrics.`val/loss` > 1").name.tolist() == ["resnet50"]


def test_all_pages_are_read(store, monkeypatch):
    monkeypatch.setattr(store_module, "_PAGE", 10)
    expected = {store.client.create_run(store.experiment_id).info.run_id for _ in range(25)}
    found = runs(store)
    assert len(found) == 25
    assert set(found.run_id) == expected
    assert found.end_time.isna().all()


def test_no_runs_are_an_empty_table(store):
    found = runs(store)
    assert found.columns.tolist() == [
        "run_id",
        "parent_id",
        "status",
        "name",
        "start_time",
        "end_time",
    ]
    assert found.empty


def test_what_is_not_there_is_named(store):
    with Run.start(store, "run") as run:
        run.text("x", "here.txt")
    with pytest.raises(TrackingError, match=r"no artifact 'gone.txt'; it has: here.txt"):
        artifact(store, run.id, "gone.txt")
    with pytest.raises(TrackingError, match="no_such_run"):
        artifact(store, "no_such_run", "x")
    with pytest.raises(TrackingError, match="study === 3"):
        runs(store, "study === 3")
