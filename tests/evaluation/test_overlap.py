from pathlib import Path

import imagehash
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from small_world import encoded_anew, lesion

from src.data.cache import square
from src.data.ham10000 import HAM10000
from src.data.isic2019 import ISIC2019
from src.reporting.clinical import external as overlap


def rows(ids: list[str], groups: list[str] | None = None) -> pd.DataFrame:
    return pd.DataFrame(
        {"image_id": ids, "group": groups or [f"x{name}" for name in ids], "split": "train"}
    )


def squares(images: list[Image.Image]) -> np.ndarray:
    return np.stack([square(image, 64, "squash") for image in images])


OWN = [lesion(seed, 0) for seed in range(12)]
OTHERS = [lesion(seed, 0) for seed in range(100, 112)]


def test_copies_are_found_whatever_they_are_called() -> None:
    external = [
        encoded_anew(OWN[3]),
        *OTHERS,
        OWN[7].point(lambda value: min(255, round(1.1 * value))),
    ]
    names = [f"e{number}" for number in range(len(external))]
    found = overlap.find(
        rows(names), rows([f"o{n}" for n in range(12)]), squares(external), squares(OWN)
    )
    assert found[["image_id", "own_image_id", "why"]].to_numpy().tolist() == [
        ["e0", "o3", "same picture"],
        ["e13", "o7", "same picture"],
    ]
    assert (found["correlation"] >= 0.98).all()
    assert (found["hash_bits"] <= 10).all()
    assert found["own_split"].tolist() == ["train", "train"]


def test_bits_that_differ_are_those_of_the_package() -> None:
    theirs, ours = squares([encoded_anew(image) for image in OWN]), squares(OWN)
    found = overlap.find(
        rows([f"e{n:02d}" for n in range(12)]), rows([f"o{n:02d}" for n in range(12)]), theirs, ours
    )
    assert found["own_image_id"].tolist() == [f"o{n:02d}" for n in range(12)]
    hashes = [[imagehash.phash(Image.fromarray(each)) for each in side] for side in (theirs, ours)]
    assert found["hash_bits"].tolist() == [a - b for a, b in zip(*hashes, strict=True)]


@pytest.mark.parametrize(
    ("external_id", "own_id", "external_group", "own_group", "why"),
    [
        ("ISIC_0012345", "ISIC_0012345", "a", "b", "same image id"),
        ("ISIC_0012345_downsampled", "ISIC_0012345", "a", "b", "same image id"),
        ("ISIC_0012345", "ISIC_0012346", "HAM_0000001", "HAM_0000001", "same lesion or patient"),
        ("ISIC_0012345", "ISIC_0012346", "IP_0000001", "IP_0000001", "same lesion or patient"),
        (
            "IMG_0001",
            "IMG_0001",
            "G_001",
            "G_001",
            None,
        ),  # names that two owners may have given to different things
        ("ISIC_0012345", "ISIC_0012346", "BCN_0000001", "BCN_0000002", None),
    ],
)
def test_ids_of_the_archive_mean_the_same_everywhere(
    external_id: str, own_id: str, external_group: str, own_group: str, why: str | None
) -> None:
    found = overlap.find(
        rows([external_id], [external_group]),
        rows([own_id], [own_group]),
        squares(OTHERS[:1]),
        squares(OWN[:1]),
    )
    assert found["why"].tolist() == ([why] if why else [])
    assert found["own_image_id"].tolist() == ([own_id] if why else [])


def test_an_image_counts_once_by_the_first_reason() -> None:
    found = overlap.find(
        rows(["ISIC_0000001"], ["HAM_1"]),
        rows(["ISIC_0000002", "ISIC_0000001"], ["HAM_1", "HAM_1"]),
        squares(OWN[:1]),
        squares([OWN[0], OTHERS[0]]),
    )
    assert found[["why", "own_image_id"]].to_numpy().tolist() == [["same image id", "ISIC_0000001"]]


def test_what_lies_beside_a_known_image_goes_with_it() -> None:
    """E1 is own picture 2; the patient's other image e2, of its own, tells the net nothing new."""
    external = rows(["e1", "e2", "e3"], ["IP_0000009", "IP_0000009", "IP_0000010"])
    found = overlap.find(
        external, rows(["o2"]), squares([encoded_anew(OWN[2]), *OTHERS[:2]]), squares([OWN[2]])
    )
    assert found[["image_id", "why", "own_image_id", "own_split"]].to_numpy().tolist() == [
        ["e1", "same picture", "o2", "train"],
        ["e2", "lesion or patient of such an image", "o2", "train"],
    ]
    assert found["hash_bits"].isna().tolist() == [False, True]


def test_images_that_are_only_listed_are_known_by_id_and_group() -> None:
    external = rows(["ISIC_0000001", "ISIC_0000002", "ISIC_0000003"], ["x1", "HAM_0000007", "x3"])
    recorded = rows(["ISIC_0000001", "ISIC_0000009"], ["HAM_0000005", "HAM_0000007"]).assign(
        split="test"
    )
    none = rows([])
    found = overlap.find(external, none, squares(OTHERS[:3]), squares(OTHERS[:1])[:0], recorded)
    assert found[["image_id", "why", "own_split"]].to_numpy().tolist() == [
        ["ISIC_0000001", "same image id", "test"],
        ["ISIC_0000002", "same lesion or patient", "test"],
    ]


def test_plain_pictures_are_no_error() -> None:
    plain = np.zeros((3, 64, 64, 3), dtype=np.uint8)
    found = overlap.find(rows(["a", "b", "c"]), rows(["d"]), plain, squares(OWN[:1]))
    assert found.empty
    assert list(found.columns) == overlap.COLUMNS


def test_on_real_images(shared_data: Path) -> None:
    ham = HAM10000(shared_data / "ham10000", limit=150).manifest().frame
    bcn = ISIC2019(shared_data / "isic2019_bcn", limit=150).manifest().frame
    own = [Image.open(path).convert("RGB") for path in ham["path"]]
    others = [Image.open(path).convert("RGB") for path in bcn["path"]]
    copies = [encoded_anew(image) for image in own[:40]]
    names = [f"copy{n:03d}" for n in range(40)] + bcn["image_id"].tolist()
    found = overlap.find(
        rows(names), rows(ham["image_id"].tolist()), squares(copies + others), squares(own)
    )
    assert found["image_id"].tolist() == names[:40]
    assert found["own_image_id"].tolist() == ham["image_id"].tolist()[:40]
