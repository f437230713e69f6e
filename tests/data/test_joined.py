"""Several sources as one: labels, copies, and sources for training only."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_data import Made, prepared

from src.core.errors import ConfigError
from src.data import splits
from src.data.joined import Joined
from src.data.module import DataModule
from src.data.source import Source

CLASSES = ("mel", "nv")


def drawn(prefix: str, classes: Sequence[str] = CLASSES, base: int = 0, groups: int = 10) -> Made:
    """Grey pictures, the value says which: groups of two images of each class."""
    numbers = np.arange(2 * groups * len(classes))

    def paint(row: int) -> np.ndarray:
        value = row + base
        pixels = np.full((8, 8, 3), (value, 255 - value, 7), dtype=np.uint8)
        pixels[: 1 + value % 7, : 1 + value % 5] = 255 - value
        return pixels

    return Made(paint, numbers // (2 * groups), numbers // 2, base, prefix, classes)


def data_of(source: Source, folder: Path, **changes: object) -> DataModule:
    return prepared(source, folder, batch_size=8, **changes)


def x_and_y(base: int = 100) -> Joined:
    """Pictures to validate and test on, and others to train on only."""
    return Joined({"x": drawn("x"), "y": drawn("y", base=base)}, ["y"])


def test_pictures_labels_and_groups_stay_those_of_their_source(tmp_path: Path) -> None:
    sources = {"b": drawn("x"), "a": drawn("y", ("nv", "mel"), base=100)}
    joined = Joined(sources)
    manifest = joined.manifest()
    frame = manifest.frame
    assert (manifest.source, manifest.classes, manifest.grouped_by) == ("b+a", CLASSES, "lesion")
    assert frame["image_id"].is_monotonic_increasing
    assert len(frame) == 80
    assert frame["group"].nunique() == 40  # equal names in two sources are two groups
    stamps = joined.stamps(manifest)
    for row in (0, 25, 41, 79):
        name, number = frame.at[row, "image_id"].split("/")
        part = sources[name].manifest()
        part_row = int(np.flatnonzero(part.frame["image_id"] == number)[0])
        expected = sources[name].picture(part, part_row)
        assert np.array_equal(joined.picture(manifest, row), expected)
        assert CLASSES[frame.at[row, "label"]] == part.classes[part.frame.at[part_row, "label"]]
        assert stamps[row] == sources[name].stamps(part)[part_row]


def test_only_the_other_sources_are_validated_and_tested(tmp_path: Path) -> None:
    alone = data_of(drawn("x"), tmp_path / "alone")
    data = data_of(x_and_y(), tmp_path / "joined")
    for side in ("val", "test"):
        ids = data.frame["image_id"].iloc[data.rows(side)]
        assert sorted(ids) == sorted("x/" + alone.frame["image_id"].iloc[alone.rows(side)])
    assert data.record()["data/images/train"] == alone.record()["data/images/train"] + 40
    assert data.record()["data/groups_on_two_sides"] == 0
    # a source can be held out completely
    data = data_of(x_and_y(), tmp_path / "joined", fractions=[0, 0.5, 0.5])
    assert set(data.frame["source"].iloc[data.rows("train")]) == {"y"}
    assert len(data.rows("val")) == len(data.rows("test")) == 20


def test_copies_of_held_out_pictures_are_not_trained_on(tmp_path: Path) -> None:
    # the pictures of y are those of x under other ids: identical pictures are one group
    data = data_of(x_and_y(base=0), tmp_path)
    unused = data.frame["image_id"][data.side == splits.UNUSED]
    held_out = np.concatenate([data.rows("val"), data.rows("test")])
    copies = "y/y" + data.frame["image_id"].iloc[held_out].str.removeprefix("x/x")
    assert sorted(unused) == sorted(copies)
    assert data.record()["data/images/unused"] == len(held_out)
    assert data.record()["data/groups_on_two_sides"] == 0


def test_equal_ids_are_one_image_and_unmapped_classes_are_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    labels = {"z": {"scc": "mel", "other": None}}
    more, longer = (drawn("x", ("mel", "scc", "other"), groups=groups) for groups in (10, 20))
    frame = Joined({"x": drawn("x"), "z": more}, [], labels).manifest().frame
    assert len(frame) == 40  # x000 to x039; x040 to x059 of z are of no class
    assert "z: 40 images of an earlier source are left out" in caplog.text
    frame = Joined({"x": drawn("x"), "z": longer}, [], labels).manifest().frame
    assert (frame["source"] == "z").sum() == 40  # "scc" has x040 to x079
    assert set(frame["label"][frame["source"] == "z"]) == {CLASSES.index("mel")}


def test_an_epoch_has_the_share_of_each_source(tmp_path: Path) -> None:
    # x has 24 of 64 training images: 60% of them, 40% are not trained on; y has 40
    data = data_of(x_and_y(), tmp_path, shares={"x": 0.75, "y": 0.25})
    assert data.record()["data/images/train"] == 64
    visits = pd.Series(data._batches("train", train=True).order()).value_counts()
    of_source = visits.groupby(data.frame["source"].iloc[visits.index].to_numpy())
    assert of_source.sum().to_dict() == {"x": 48, "y": 16}
    assert (of_source.min()["x"], of_source.max()["x"], of_source.max()["y"]) == (2, 2, 1)
    assert np.sum(data.source_counts, axis=1).tolist() == [48, 16]
    assert np.sum(data.source_counts, axis=0).tolist() == data.seen_counts
    batch = next(iter(data.loader("train", train=True)))
    sources = data.frame["source"].iloc[batch["row"].numpy()].tolist()
    assert [data.source_names[number] for number in batch["source"]] == sources


def test_impossible_shares_are_refused(tmp_path: Path) -> None:
    for shares in ({"x": 1.0}, {"x": 0.5, "y": 0.6}, {"x": 0.0, "y": 1.0}):
        with pytest.raises(ConfigError, match="shares: must"):
            data_of(x_and_y(), tmp_path, shares=shares)
    with pytest.raises(ConfigError, match="shares: needs several sources: data=joined"):
        data_of(drawn("x"), tmp_path, shares={"x": 1.0})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Joined({"x": drawn("x")}), "sources: must be two or more"),
        (lambda: Joined({"x": drawn("x"), "y": drawn("y")}, ["x", "y"]), "one of them not in"),
        (lambda: Joined({"x": drawn("x"), "y": drawn("y")}, ["z"]), r"only_train: .*\(x, y\).* z"),
        (
            lambda: Joined({"x": drawn("x"), "y": drawn("y", ("mel", "df"))}).manifest(),
            "labels: y has df, none of mel, nv; map it by 'data.source.labels={y: {df: <class>}}'",
        ),
    ],
)
def test_impossible_joins_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
