import numpy as np
import pytest

from src.core.errors import DataError
from src.data import cache
from src.data.medmnist import MedMNIST


def change(root, **arrays) -> None:
    """Replace arrays of the file; None removes one."""
    with np.load(root / "dermamnist.npz") as stored:
        merged = {**stored, **arrays}
    kept = {name: array for name, array in merged.items() if array is not None}
    np.savez(root / "dermamnist.npz", **kept)


def test_split_and_pictures_are_those_of_the_file(layout, tmp_path):
    source, root = layout("medmnist")
    manifest = source.manifest()
    arrays = dict(np.load(root / "dermamnist.npz"))
    assert manifest.source == "dermamnist"
    assert manifest.classes == ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
    assert manifest.frame["split"].value_counts().to_dict() == {"train": 28, "test": 21, "val": 14}
    stored = cache.load(source, manifest, 28, "squash", tmp_path / "cache")
    for row, image in enumerate(stored.images):
        side, position = stored.frame.loc[row, ["split", "position"]]
        assert np.array_equal(image, arrays[f"{side}_images"][position])
        assert stored.frame["label"][row] == arrays[f"{side}_labels"][position, 0]


def test_each_size_has_its_file(layout):
    _, root = layout("medmnist")
    path = (root / "dermamnist.npz").rename(root / "dermamnist_64.npz")
    assert len(MedMNIST(root, size=64).manifest().frame) == 63
    expected = r"dermamnist\.npz: this file is missing.*data\.root=.*name=dermamnist"
    with pytest.raises(DataError, match=expected):
        MedMNIST(root).manifest()
    (root / "dermamnist.npz").write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match="dermamnist.npz: cannot be read"):
        MedMNIST(root).manifest()


def test_class_names_are_those_of_the_owners():
    medmnist = pytest.importorskip("medmnist", reason="the extra `fetch` is not installed")
    owners = medmnist.INFO["dermamnist"]["label"]
    starts = ("actinic", "basal", "benign keratosis", "dermatofibroma", "melanoma")
    for label, start in enumerate((*starts, "melanocytic nevi", "vascular")):
        assert owners[str(label)].startswith(start)


def test_grey_binary_file(tmp_path):
    random = np.random.default_rng(0)
    arrays = {}
    for side in ("train", "val", "test"):
        arrays[f"{side}_images"] = random.integers(0, 256, (4, 28, 28), dtype=np.uint8)
        arrays[f"{side}_labels"] = np.array([0, 1, 0, 1])
    np.savez(tmp_path / "any.npz", **arrays)
    source = MedMNIST(tmp_path / "any.npz", flag="any")
    manifest = source.manifest()
    assert manifest.classes == ("class_0", "class_1")
    row = int(manifest.frame.index[manifest.frame["image_id"] == "val_000002"][0])
    pixels = np.asarray(source.picture(manifest, row))
    assert np.array_equal(pixels, np.repeat(arrays["val_images"][2][..., None], 3, axis=2))


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({"val_labels": None}, "has no array 'val_labels', only .*train_images"),
        (
            {"train_labels": np.zeros((28, 14), np.uint8)},
            r"train_labels must be one whole number .* uint8 \(28, 14\)",
        ),
        ({"train_labels": np.full((28, 1), 7)}, "unknown label 7; dermamnist has labels 0 to 6"),
        ({"train_labels": np.full((28, 1), -1)}, "train_labels must be one whole number from 0"),
        ({"train_labels": np.array([{}] * 28)}, "cannot be read as an .npz file of plain arrays"),
        (
            {f"{side}_labels": np.full((n, 1), 2) for side, n in (("val", 14), ("test", 21))}
            | {"train_labels": np.repeat([0, 1, 2, 4, 5, 6, 6], 4)},
            "no image of class df",
        ),
        *(
            (
                {"train_images": np.zeros(shape, np.uint8)},
                "train_images must be uint8 .* with N = 28",
            )
            for shape in ((28, 28, 28, 28), (3, 28, 28, 3))
        ),
    ],
)
def test_invalid_arrays(layout, tmp_path, arrays, problem):
    source, root = layout("medmnist")
    change(root, **arrays)
    with pytest.raises(DataError, match=f"dermamnist.npz: .*{problem}"):
        cache.load(source, source.manifest(), 28, "squash", tmp_path / "cache")
