import numpy as np
import pytest

from src.data import cache
from src.data.medmnist import MedMNIST
from src.core.errors import DataError


def arrays_of(path):
    with np.load(path) as arrays:
        return dict(arrays)


def test_split_and_pictures_are_the_files(layout, tmp_path):
    source, root = layout("medmnist")
    manifest = source.manifest()
    arrays = arrays_of(root / "dermamnist.npz")
    assert manifest.source == "dermamnist"
    assert manifest.classes == ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
    assert manifest.frame["split"].value_counts().to_dict() == {"train": 28, "test": 21, "val": 14}
    stored = cache.load(source, manifest, 28, "squash", tmp_path / "cache")
    for row, image in enumerate(stored.images):
        side, position = stored.frame.loc[row, ["split", "position"]]
        assert np.array_equal(image, arrays[f"{side}_images"][position])
        assert stored.frame["label"][row] == arrays[f"{side}_labels"][position, 0]


def test_names_of_the_known_set_are_those_of_its_owners():
    medmnist = pytest.importorskip("medmnist", reason="no medmnist: the extra `fetch` is not installed")
    owners = medmnist.INFO["dermamnist"]["label"]
    beginnings = {"akiec": "actinic", "bcc": "basal", "bkl": "benign keratosis", "df": "dermatofibroma",
                  "mel": "melanoma", "nv": "melanocytic nevi", "vasc": "vascular"}  # fmt: skip
    for label, beginning in enumerate(beginnings.values()):
        assert owners[str(label)].startswith(beginning)


def test_other_sizes_have_their_file(layout):
    _, root = layout("medmnist")
    (root / "dermamnist.npz").rename(root / "dermamnist_64.npz")
    assert len(MedMNIST(root, size=64).manifest().frame) == 63
    with pytest.raises(DataError, match=r"dermamnist\.npz: this file is missing.*data\.root=.*name=dermamnist"):
        MedMNIST(root).manifest()


def test_a_file_of_ones_own_grey_and_binary(tmp_path):
    random = np.random.default_rng(0)
    arrays = {}
    for side in ("train", "val", "test"):
        arrays[f"{side}_images"] = random.integers(0, 256, (4, 28, 28), dtype=np.uint8)
        arrays[f"{side}_labels"] = np.array([0, 1, 0, 1])
    np.savez(tmp_path / "mine.npz", **arrays)
    source = MedMNIST(tmp_path / "mine.npz", flag="mine")
    manifest = source.manifest()
    assert manifest.classes == ("class_0", "class_1")
    assert manifest.positive == "class_1"
    row = int(manifest.frame.index[manifest.frame["image_id"] == "val_000002"][0])
    pixels = np.asarray(source.picture(manifest, row))
    assert np.array_equal(pixels, np.repeat(arrays["val_images"][2][..., None], 3, axis=2))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"val_labels": None}, "has no array 'val_labels', only .*train_images"),
        ({"train_labels": np.zeros((28, 14), np.uint8)}, r"train_labels must be one whole number .* uint8 \(28, 14\)"),
        ({"train_labels": np.full((28, 1), 7)}, "unknown label 7; dermamnist has labels 0 to 6"),
        ({"train_labels": np.full((28, 1), -1)}, "train_labels must be one whole number from 0"),
        ({"train_labels": np.array([{}] * 28)}, "cannot be read as an .npz file of plain arrays"),
    ],
)
def test_bad_labels(layout, change, problem):
    source, root = layout("medmnist")
    arrays = arrays_of(root / "dermamnist.npz") | change
    np.savez(root / "dermamnist.npz", **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(DataError, match=f"dermamnist.npz: .*{problem}"):
        source.manifest()


@pytest.mark.parametrize("images", [np.zeros((28, 28, 28, 28), np.uint8), np.zeros((3, 28, 28, 3), np.uint8)])
def test_bad_images(layout, tmp_path, images):
    source, root = layout("medmnist")
    np.savez(root / "dermamnist.npz", **(arrays_of(root / "dermamnist.npz") | {"train_images": images}))
    with pytest.raises(DataError, match=r"dermamnist.npz: train_images must be uint8 .* with N = 28"):
        cache.load(source, source.manifest(), 28, "squash", tmp_path / "cache")


def test_class_without_images(layout):
    source, root = layout("medmnist")
    arrays = arrays_of(root / "dermamnist.npz")
    for side in ("train", "val", "test"):
        arrays[f"{side}_labels"][arrays[f"{side}_labels"] == 3] = 2
    np.savez(root / "dermamnist.npz", **arrays)
    with pytest.raises(DataError, match="no image of class df"):
        source.manifest()


def test_truncated_file(layout):
    source, root = layout("medmnist")
    path = root / "dermamnist.npz"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match="dermamnist.npz: cannot be read"):
        source.manifest()
