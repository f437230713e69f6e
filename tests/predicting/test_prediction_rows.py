"""The CSV of predictions: whole or not at all."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from src.core.errors import UserError
from src.deployment import predict
from src.deployment.predict import whole_csv

COLUMNS = ("image", "p/mel", "problem")


def some(number: int) -> pd.DataFrame:
    return pd.DataFrame({"problem": [""], "p/mel": [1 / (number + 2)], "image": [f"{number}.png"]})


def test_rows_come_in_batches_and_the_file_appears_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "new" / "said.csv"
    with whole_csv(path, COLUMNS) as rows:
        for number in range(3):
            rows.add(some(number))
            assert not path.exists()
    read = pd.read_csv(path)
    assert tuple(read) == COLUMNS
    assert read["image"].tolist() == ["0.png", "1.png", "2.png"]
    np.testing.assert_allclose(read["p/mel"], [1 / 2, 1 / 3, 1 / 4], rtol=1e-8)
    assert [each.name for each in path.parent.iterdir()] == ["said.csv"]


def test_a_name_is_no_formula_of_a_spreadsheet(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"image": ["=1+1.png", "a=1.png"], "p/mel": [-1.0, 0.5], "problem": ["", "@absent"]}
    )
    with whole_csv(tmp_path / "said.csv", COLUMNS) as rows:
        rows.add(frame)
    assert (
        tmp_path / "said.csv"
    ).read_text() == "image,p/mel,problem\n'=1+1.png,-1,\na=1.png,0.5,'@absent\n"


def test_single_precision_is_written_without_loss(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random(200).astype(np.float32)
    with whole_csv(tmp_path / "said.csv", COLUMNS) as rows:
        rows.add(pd.DataFrame({"image": "a", "p/mel": values.astype(float), "problem": ""}))
    assert (pd.read_csv(tmp_path / "said.csv")["p/mel"].to_numpy(np.float32) == values).all()


def test_what_breaks_off_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "said.csv"
    path.write_text("of yesterday")

    def stopped() -> None:
        with whole_csv(path, COLUMNS) as rows:
            rows.add(some(0))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert path.read_text() == "of yesterday"
    assert [each.name for each in tmp_path.iterdir()] == ["said.csv"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict.os, "getpid", lambda: 7)
    (tmp_path / ".said.csv.7.part").symlink_to("/dev/full")  # what the draft is written to
    said = r"out=.*said\.csv: cannot be written there \(No space left on device\)"
    with pytest.raises(UserError, match=said), whole_csv(tmp_path / "said.csv", COLUMNS):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match="cannot be written there"),
        whole_csv(tmp_path / "file" / "said.csv", COLUMNS),
    ):
        pass
