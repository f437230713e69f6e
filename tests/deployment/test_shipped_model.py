"""The model of docs/model/ answers at once, and as its recorded predictions say."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import results
from benchmarks.results_record import Record
from src import predict
from src.data.ham10000 import HAM10000

MODEL = "docs/model/lite0_blocks10_int8.onnx"
IMAGES = 20


@pytest.fixture(scope="module")
def recorded(root: Path) -> pd.DataFrame:
    """The first predictions of the model on test."""
    record = Record.of_files(root / results.FOLDER)
    run_id = record.runs.loc[record.runs["tags.study"] == "shipped", "run_id"].iloc[-1]
    return record.predictions[run_id, "test"].head(IMAGES)


def test_the_file_is_small_and_predicts_as_recorded(
    root: Path,
    shared_data: Path,
    recorded: pd.DataFrame,
    tmp_path: Path,
    run_entry: Callable[..., tuple[int, str]],
) -> None:
    assert (root / MODEL).stat().st_size < 0.75e6
    source = HAM10000(shared_data / "ham10000")
    frame = source.manifest().frame.set_index("image_id")
    paths = [frame.loc[name, "path"] for name in recorded["image_id"]]
    listed = tmp_path / "pictures.csv"
    pd.DataFrame({"path": paths}).to_csv(listed, index=False)
    arguments = (f"model={root / MODEL}", f"input={listed}", f"out={tmp_path}/out.csv")
    status, output = run_entry(predict.main, *arguments)
    assert status == 0, output
    table = pd.read_csv(tmp_path / "out.csv")
    classes = [column for column in recorded if column.startswith("p/")]
    np.testing.assert_allclose(
        table[[c for c in table if c.startswith("p/")]].to_numpy(),
        recorded[classes].to_numpy(),
        atol=0.01,  # int8 kernels differ between processors; the record has half precision
    )
