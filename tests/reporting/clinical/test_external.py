"""Other data: labels, overlap, domain shift and sizes, by hand and by independent libraries."""

from pathlib import Path

import imagehash
import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from src.core.errors import ConfigError
from src.data.cache import square
from src.data.folder import ClassFolders
from src.data.ham10000 import CLASSES as HAM
from src.data.ham10000 import HAM10000
from src.data.isic2019 import CLASSES as ISIC
from src.data.isic2019 import ISIC2019
from src.data.siim2020 import CLASSES as SIIM
from src.data.source import Source, size_summary
from src.data.synthetic import Synthetic
from src.metrics.settings import AuditSettings
from src.reporting.clinical.audit import (
    SHIFT_COLUMNS,
    domain_shift,
    newcombe,
    recall_by_original_label,
)
from src.reporting.clinical.evaluate import dark_corners, image_sizes
from src.reporting.clinical.external import (
    MAPPINGS,
    OVERLAP_COLUMNS,
    Labels,
    choose_labels,
    find_overlap,
)
from src.reporting.clinical.results import sentences

from .small_world import SmallStore, encoded_anew, lesion

# ---- labels


@pytest.mark.parametrize(
    ("data", "net", "name", "classes", "expected"),
    [
        (ISIC, HAM, "isic2019_to_ham10000", HAM, {"ak": "akiec", "scc": "akiec", "mel": "mel"}),
        (("mel", "nv"), HAM, "identity", HAM, {"mel": "mel", "nv": "nv"}),
        (SIIM, HAM, None, ("rest", "mel"), {"malignant": "mel", "benign": "rest"}),
        (HAM, SIIM, None, SIIM, {"mel": "malignant", "nv": "benign"}),
        (ISIC, SIIM, None, SIIM, {"mel": "malignant", "scc": "benign"}),
    ],
)
def test_auto_takes_the_mapping_that_fits(data, net, name, classes, expected) -> None:
    labels = choose_labels("auto", data, net)
    assert name in (None, labels.name)
    assert labels.classes == classes
    assert {key: labels.to[key] for key in expected} == expected
    if classes == SIIM:
        assert [key for key in data if labels.to[key] == "malignant"] == ["mel"]


def test_the_rest_gets_the_sum_of_the_other_classes() -> None:
    table = pd.DataFrame({"image_id": ["a", "b"], "group": ["a", "b"], "label": ["mel", "nv"]})
    table = table.assign(**{"p/bcc": [0.1, 0.2], "p/mel": [0.6, 0.3], "p/nv": [0.3, 0.5]})
    merged = Labels("x", {"m": "mel", "b": "rest"}, ("rest", "mel")).merge(table)
    assert [column for column in merged if column.startswith("p/")] == ["p/rest", "p/mel"]
    assert merged["label"].tolist() == ["mel", "rest"]
    assert merged["p/rest"].tolist() == pytest.approx([0.4, 0.7])
    assert merged["p/mel"].tolist() == [0.6, 0.3]
    assert Labels("x", {"m": "mel"}, ("bcc", "mel", "nv")).merge(table) is table  # no rest


def test_an_unknown_class_is_refused_or_unmapped() -> None:
    message = "labels: no mapping for wart: the data have mel, wart, the net akiec, bcc"
    with pytest.raises(ConfigError, match=message):
        choose_labels("auto", ("mel", "wart"), HAM)
    labels = choose_labels("auto", ("mel", "wart"), HAM, unknown="list")
    assert (labels.name, labels.to) == ("identity", {"mel": "mel"})


@pytest.mark.parametrize(
    ("content", "to"),
    [
        ("melanoma: mel\nother: rest\n", {"melanoma": "mel", "other": "rest"}),
        ("'yes': mel\n0: rest\n", {"yes": "mel", "0": "rest"}),
        ("yes: mel\nno: rest\n010: rest\n", {"yes": "mel", "no": "rest", "010": "rest"}),
    ],
)
def test_a_mapping_file(tmp_path: Path, content: str, to: dict[str, str]) -> None:
    (tmp_path / "mine.yaml").write_text(content)
    labels = choose_labels(str(tmp_path / "mine.yaml"), tuple(to), HAM)
    assert (labels.classes, labels.to) == (("rest", "mel"), to)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: other\n", "speaks of other, which the net does not have; it has akiec"),
        ("a: rest\n", "must name a class of the net beside rest"),
        ("- a\n", "must have lines like"),
        ("a: [\n", "cannot be read"),
        ("", "must have lines like"),
        ("a: no\n", "speaks of no, which the net does not have; it has akiec"),
        ("a:\n", "must have lines like"),
        ("a: {b: mel}\n", "must have lines like"),
    ],
)
def test_a_bad_mapping_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        choose_labels(str(tmp_path / "bad.yaml"), ("a",), HAM)


def test_a_missing_or_ambiguous_mapping_is_refused(tmp_path: Path) -> None:
    message = "labels: nosuch: no such mapping; there are auto, isic2019_to_ham10000"
    with pytest.raises(ConfigError, match=message):
        choose_labels("nosuch", ISIC, HAM)
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text("lentigo: bkl\n")
    with pytest.raises(ConfigError, match="labels: one and two both fit; name one"):
        choose_labels("auto", ("lentigo",), HAM, tmp_path)


@pytest.mark.parametrize("file", sorted(MAPPINGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_mapping_files_name_existing_classes(file: Path) -> None:
    to = yaml.safe_load(file.read_text())
    assert set(to) <= {*HAM, *ISIC, *SIIM}
    assert set(to.values()) <= {*HAM, "rest"} or set(to.values()) <= set(SIIM)


# ---- overlap

PICTURES = [lesion(seed, 0) for seed in range(12)]
OTHERS = [lesion(seed, 0) for seed in range(100, 112)]


def manifest(ids: list[str], groups: list[str] | None = None) -> pd.DataFrame:
    groups = groups or [f"x{name}" for name in ids]
    return pd.DataFrame({"image_id": ids, "group": groups, "split": "train"})


def squares(images: list[Image.Image]) -> np.ndarray:
    return np.stack([square(image, 64, "squash") for image in images])


def names(prefix: str, number: int) -> list[str]:
    return [f"{prefix}{n:02d}" for n in range(number)]


def test_copies_are_recognised_by_their_pixels() -> None:
    brighter = PICTURES[7].point(lambda value: min(255, round(1.1 * value)))
    external = squares([encoded_anew(PICTURES[3]), *OTHERS, brighter])
    members = manifest(names("o", 12))
    overlap = find_overlap(manifest(names("e", 14)), members, external, squares(PICTURES))
    assert overlap[["image_id", "own_image_id", "why"]].to_numpy().tolist() == [
        ["e00", "o03", "same picture"],
        ["e13", "o07", "same picture"],
    ]
    assert (overlap["correlation"] >= 0.98).all()
    assert (overlap["hash_bits"] <= 10).all()
    assert overlap["own_split"].tolist() == ["train", "train"]


def test_bits_that_differ_are_those_of_imagehash() -> None:
    sides = [squares([encoded_anew(image) for image in PICTURES]), squares(PICTURES)]
    overlap = find_overlap(manifest(names("e", 12)), manifest(names("o", 12)), *sides)
    assert overlap["own_image_id"].tolist() == names("o", 12)
    hashes = [[imagehash.phash(Image.fromarray(image)) for image in side] for side in sides]
    assert overlap["hash_bits"].tolist() == [a - b for a, b in zip(*hashes, strict=True)]


@pytest.mark.parametrize(
    ("external_id", "source_id", "external_group", "source_group", "why"),
    [
        ("ISIC_0012345", "ISIC_0012345", "a", "b", "same image id"),
        ("ISIC_0012345_downsampled", "ISIC_0012345", "a", "b", "same image id"),
        ("ISIC_0012345", "ISIC_0012346", "HAM_0000001", "HAM_0000001", "same lesion or patient"),
        ("ISIC_0012345", "ISIC_0012346", "IP_0000001", "IP_0000001", "same lesion or patient"),
        ("IMG_0001", "IMG_0001", "G_001", "G_001", None),  # two owners may use the same names
        ("ISIC_0012345", "ISIC_0012346", "BCN_0000001", "BCN_0000002", None),
    ],
)
def test_ids_of_the_archive_mean_the_same_everywhere(
    external_id: str, source_id: str, external_group: str, source_group: str, why: str | None
) -> None:
    overlap = find_overlap(
        manifest([external_id], [external_group]),
        manifest([source_id], [source_group]),
        squares(OTHERS[:1]),
        squares(PICTURES[:1]),
    )
    assert overlap["why"].tolist() == ([why] if why else [])
    assert overlap["own_image_id"].tolist() == ([source_id] if why else [])


def test_an_image_counts_for_its_first_reason() -> None:
    overlap = find_overlap(
        manifest(["ISIC_0000001"], ["HAM_1"]),
        manifest(["ISIC_0000002", "ISIC_0000001"], ["HAM_1", "HAM_1"]),
        squares(PICTURES[:1]),
        squares([PICTURES[0], OTHERS[0]]),
    )
    expected = [["same image id", "ISIC_0000001"]]
    assert overlap[["why", "own_image_id"]].to_numpy().tolist() == expected


def test_other_images_of_an_overlapping_patient_overlap() -> None:
    """E1 is picture 2 of the run; e2 shows the same patient."""
    overlap = find_overlap(
        manifest(["e1", "e2", "e3"], ["IP_0000009", "IP_0000009", "IP_0000010"]),
        manifest(["o2"]),
        squares([encoded_anew(PICTURES[2]), *OTHERS[:2]]),
        squares([PICTURES[2]]),
    )
    assert overlap[["image_id", "why", "own_image_id", "own_split"]].to_numpy().tolist() == [
        ["e1", "same picture", "o2", "train"],
        ["e2", "lesion or patient of such an image", "o2", "train"],
    ]
    assert overlap["hash_bits"].isna().tolist() == [False, True]


def test_listed_images_are_compared_by_id_and_group() -> None:
    external = manifest(names("ISIC_00000", 3), ["x1", "HAM_0000007", "x3"])
    listed = manifest(["ISIC_0000000", "ISIC_0000009"], ["HAM_0000005", "HAM_0000007"])
    pictures = squares(OTHERS[:3])
    overlap = find_overlap(
        external, manifest([]), pictures, pictures[:0], listed.assign(split="test")
    )
    assert overlap[["image_id", "why", "own_split"]].to_numpy().tolist() == [
        ["ISIC_0000000", "same image id", "test"],
        ["ISIC_0000001", "same lesion or patient", "test"],
    ]


def test_plain_pictures_do_not_overlap() -> None:
    plain = np.zeros((3, 64, 64, 3), dtype=np.uint8)
    overlap = find_overlap(manifest(names("e", 3)), manifest(["o"]), plain, squares(PICTURES[:1]))
    assert overlap.empty
    assert list(overlap) == OVERLAP_COLUMNS


def test_overlap_of_real_images(shared_data: Path) -> None:
    ham = HAM10000(shared_data / "ham10000", limit=100).manifest().frame
    bcn = ISIC2019(shared_data / "isic2019_bcn", limit=100).manifest().frame
    source, others = (
        [Image.open(path).convert("RGB") for path in frame["path"]] for frame in (ham, bcn)
    )
    external = [*(encoded_anew(image) for image in source[:30]), *others]
    ids, copies = ham["image_id"].tolist(), names("copy", 30)
    members = manifest([*copies, *bcn["image_id"]])
    overlap = find_overlap(members, manifest(ids), squares(external), squares(source))
    assert overlap["image_id"].tolist() == copies
    assert overlap["own_image_id"].tolist() == ids[:30]


# ---- domain shift

FEW = AuditSettings(samples=200)
BOTH = ["own", "external"]
DOUBT = 1 - 0.025 ** (1 / 8)  # Clopper-Pearson, 8 of 8


def predictions(cases: list[tuple[str, str, float]], prefix: str = "i") -> pd.DataFrame:
    """Rows of label, group and probability of mel; the rest of it goes to nv."""
    frame = pd.DataFrame(cases, columns=["label", "group", "p/mel"])
    frame.insert(0, "image_id", [f"{prefix}{number:03d}" for number in range(len(frame))])
    return frame.assign(**{"p/nv": 1 - frame["p/mel"]})


INTERNAL = predictions(
    [("mel", f"g{n}", 0.9) for n in range(8)] + [("nv", f"h{n}", 0.1) for n in range(12)]
)
# of 10 melanomas 4 above one half; of 10 naevi 1
EXTERNAL = predictions(
    [("mel", f"a{n}", 0.8 if n < 4 else 0.3) for n in range(10)]
    + [("nv", f"b{n}", 0.7 if n < 1 else 0.2) for n in range(10)],
    "e",
)


def shift(internal, external, val=(), positive="mel", settings=FEW) -> pd.DataFrame:
    return domain_shift(internal, external, val, positive, settings).set_index("metric")


@pytest.fixture(scope="module")
def shifted() -> pd.DataFrame:
    return shift([INTERNAL], [EXTERNAL])


def test_figures_and_differences_by_hand(shifted: pd.DataFrame) -> None:
    differences = shifted[[*BOTH, "difference"]]
    assert differences.loc["recall/mel"].tolist() == pytest.approx([1.0, 0.4, -0.6])
    assert differences.loc["recall/nv"].tolist() == pytest.approx([1.0, 0.9, -0.1])
    assert shifted.loc["accuracy", "external"] == pytest.approx(13 / 20)
    area = roc_auc_score(EXTERNAL["label"] == "mel", EXTERNAL["p/mel"])
    assert shifted.loc["auroc/mel", "external"] == pytest.approx(area)
    assert shifted.loc["recall/mel", SHIFT_COLUMNS[-4:]].tolist() == [8, 8, 10, 10]
    # all of 8 lesions are separated, which is no proof for others
    areas, doubt = shifted.loc["auroc/mel"], 1 - 0.025 ** (1 / 8)
    assert areas["own_low"] == pytest.approx(1 - doubt)
    assert areas["high"] == pytest.approx(area - 1 + np.hypot(areas["external_high"] - area, doubt))
    assert areas["low"] == pytest.approx(area - 1 - (area - areas["external_low"]))
    # recalls of 8 and 12 lesions without an error, exactly: the mean is as sure as both
    mean = shifted.loc["balanced_accuracy"]
    assert mean[BOTH].tolist() == pytest.approx([1.0, 0.65])
    doubt = np.hypot(1 - 0.025 ** (1 / 8), 1 - 0.025 ** (1 / 12)) / 2
    assert mean["own_low"] == pytest.approx(1 - doubt)
    assert mean["high"] == pytest.approx(-0.35 + np.hypot(mean["external_high"] - 0.65, doubt))
    assert mean["low"] == pytest.approx(-0.35 - (0.65 - mean["external_low"]))


def test_a_side_without_errors_has_an_exact_interval(shifted: pd.DataFrame) -> None:
    row = shifted.loc["recall/mel"]
    assert row[["own_low", "own_high"]].tolist() == pytest.approx([1 - DOUBT, 1])
    low, high = binomtest(4, 10).proportion_ci(method="exact")
    assert row["external_low"] <= low + 1e-9  # the wider of this and resampling's
    assert row["external_high"] >= high - 1e-9
    # Newcombe: external - own = 0.4 - 1; own has no room above 1, and 1 - DOUBT below
    assert row["low"] == pytest.approx(-0.6 - (0.4 - row["external_low"]))
    assert row["high"] == pytest.approx(-0.6 + np.hypot(row["external_high"] - 0.4, DOUBT))
    perfect = shift([INTERNAL], [INTERNAL]).loc["recall/mel"]
    assert perfect[["difference", "low", "high"]].tolist() == pytest.approx([0.0, -DOUBT, DOUBT])


def test_newcombe_by_the_published_example() -> None:
    """Newcombe 1998, table II: 56/70 - 48/80 by method 10, with Wilson's intervals of each."""
    first, second = (
        (k / n, *binomtest(k, n).proportion_ci(method="wilson")) for k, n in ((56, 70), (48, 80))
    )
    assert newcombe(first, second) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_the_threshold_is_chosen_on_validation() -> None:
    # 5 melanomas on val; 4 of them have to be recognised: from 0.3 on
    val = predictions(
        [("mel", f"v{n}", p) for n, p in enumerate([0.9, 0.6, 0.4, 0.3, 0.05])]
        + [("nv", "w1", 0.2), ("nv", "w2", 0.1)]
    )
    rates = shift([INTERNAL], [EXTERNAL], [val])["external"]
    assert rates["chosen/sensitivity/mel"] == 1.0  # 0.3 counts as positive
    assert rates["chosen/specificity/mel"] == pytest.approx(0.9)
    # 3 of 5: from 0.4 on
    strict = shift(
        [INTERNAL], [EXTERNAL], [val], settings=AuditSettings(samples=200, sensitivity=0.5)
    )
    assert strict.loc["chosen/sensitivity/mel", "external"] == pytest.approx(0.4)
    without_melanoma = shift([INTERNAL], [EXTERNAL], [val.iloc[5:]])
    assert not any(name.startswith("chosen/") for name in without_melanoma.index)


def test_every_net_has_its_threshold() -> None:
    low = INTERNAL.assign(**{"p/mel": INTERNAL["p/mel"] / 10, "p/nv": 1 - INTERNAL["p/mel"] / 10})
    nets = [INTERNAL, low]
    rates = shift(nets, nets, nets)
    for rate in ("sensitivity", "specificity"):
        assert rates.loc[f"chosen/{rate}/mel", BOTH].tolist() == [1.0, 1.0]
    assert rates.loc["recall/mel", "own"] == pytest.approx(0.5)  # the second net never says mel


def test_means_are_over_the_classes_of_both_sides() -> None:
    extra = predictions([("mel", "x1", 0.2), ("mel", "x2", 0.2)], "z").assign(label="bcc")
    internal = pd.concat([INTERNAL, extra], ignore_index=True).assign(**{"p/bcc": 0.0})
    rates = shift([internal], [EXTERNAL.assign(**{"p/bcc": 0.0})], positive=None)
    assert list(rates.index) == ["balanced_accuracy", "accuracy", "recall/mel", "recall/nv"]
    assert rates.loc["balanced_accuracy", "own"] == 1.0  # with bcc it would be 2/3


def test_seeds_that_differ_alike_on_both_sides_cancel_out() -> None:
    """A net that is worse on both sides by as much adds nothing to the spread of the difference."""
    nets = [
        predictions([("mel", f"g{n}", 0.9 if n < hits else 0.1) for n in range(100)])
        for hits in (95, 5)
    ]
    nets = [pd.concat([net, predictions([("nv", "h", 0.1)], "n")]) for net in nets]
    row = shift(nets, nets).loc["recall/mel"]
    assert row["own_low"] < 0.1  # both drawn nets may be the bad one, or the good one
    assert row["own_high"] > 0.9
    assert row["difference"] == 0
    # of 100 melanomas, 5 or 95 recognised: standard deviation sqrt(2 * 0.05 * 0.95) / 10
    assert row["high"] - row["low"] < 0.2


def test_the_seed_decides_the_intervals(shifted: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(shifted, shift([INTERNAL], [EXTERNAL]))
    other = shift([INTERNAL], [EXTERNAL], settings=AuditSettings(samples=200, seed=9))
    assert not np.array_equal(shifted, other)


def test_recall_by_original_label() -> None:
    original = ["ak"] * 4 + ["scc"] * 6 + ["nv"] * 10
    table = recall_by_original_label([EXTERNAL.assign(original_label=original)], FEW)
    table = table.set_index("original_label")
    assert table["counts_as"].to_dict() == {"ak": "mel", "scc": "mel", "nv": "nv"}
    assert table["recall"].to_dict() == pytest.approx({"ak": 1.0, "scc": 0.0, "nv": 0.9})
    assert table["images"].to_dict() == {"ak": 4, "scc": 6, "nv": 10}
    assert table.loc["ak", "low"] == pytest.approx(0.025**0.25)  # Clopper-Pearson, 4 of 4
    assert table.loc["scc", "high"] == pytest.approx(1 - 0.025 ** (1 / 6))


# ---- pictures


def sizes_of(source: Source) -> pd.DataFrame:
    return image_sizes(source, source.manifest())


def picture_notes(
    source: pd.DataFrame, external: pd.DataFrame, size: int, trained_with: str, now: str
) -> list[str]:
    sides = {"source": size_summary(source), "external": size_summary(external)}
    how = {"size": size, "trained_with": trained_with, "now": now}
    return sentences("pictures", **how, **sides, corners=0.254, corners_there=None)


def sizes_text(sizes: pd.DataFrame) -> str:
    """The sizes as the second note names them."""
    note = picture_notes(sizes.iloc[:0], sizes, 1, "squash", "squash")[1]
    return note.removeprefix("Shown here at 1 px, geometry squash, pictures ").removesuffix(".")


def folder_of(root: Path, sizes: list[tuple[int, int]]) -> ClassFolders:
    for number, size in enumerate(sizes):
        for name in ("a", "b"):
            (root / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size).save(root / name / f"{number}.png")
    return ClassFolders(root)


def test_sizes_of_pictures(trained: SmallStore, tmp_path: Path) -> None:
    assert sizes_text(sizes_of(HAM10000(trained.folder / "ham"))) == "80x60 px (all of 84)"
    several = folder_of(tmp_path, [(40, 30), (40, 30), (100, 50), (20, 20)])
    assert sizes_text(sizes_of(several)) == (
        "20x20 to 100x50 px, most often 40x30 (50%; all of 8), median width/height 1.33"
    )
    drawn = Synthetic(lesions=120, max_views=1, native_size=48, ambiguity=0.0, seed=0)
    assert sizes_text(sizes_of(drawn)) == "48x48 px (50 looked at of 120)"


def test_unreadable_pictures_have_no_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = folder_of(tmp_path, [(40, 30), (40, 30)])
    listed = source.manifest()
    (tmp_path / "a" / "0.png").write_text("no image")
    assert len(image_sizes(source, listed).dropna()) == 3
    with monkeypatch.context() as patch:  # 1,200 pixels are a bomb now
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
        assert sizes_text(image_sizes(source, listed)) == "of unknown sizes"
    for path in tmp_path.rglob("*.png"):
        path.unlink()
    assert sizes_text(image_sizes(source, listed)) == "of unknown sizes"


def test_notes_name_the_differences_of_pictures(tmp_path: Path) -> None:
    source = sizes_of(folder_of(tmp_path / "source", [(200, 150)]))
    external = sizes_of(folder_of(tmp_path / "external", [(84, 84)]))
    lines = picture_notes(source, external, 128, "squash", "pad")
    assert lines[0] == "Trained at 128 px, geometry squash, on pictures 200x150 px (all of 2)."
    assert lines[1] == "Shown here at 128 px, geometry pad, pictures 84x84 px (all of 2)."
    assert [line.split(":")[0] for line in lines[2:4]] == [
        "The geometry differs from the training's (pad here, squash there).",
        "The shapes differ",
    ]
    assert "smaller than 128 px are enlarged" in lines[4]
    corners = "Black in all four corners, as round dermatoscopes leave it: 25% here."
    assert picture_notes(source, source, 64, "squash", "squash")[2:] == [corners]
    unknown = picture_notes(source.iloc[:0], external, 64, "squash", "squash")
    assert len(unknown) == 3
    assert "of unknown sizes" in unknown[0]


def test_dark_corners() -> None:
    images = np.full((4, 64, 64, 3), 200, dtype=np.uint8)
    for rows in (slice(None, 8), slice(-8, None)):
        images[0, rows, :8] = images[0, rows, -8:] = 0  # all four
    images[1, :8] = 0  # two of them
    assert dark_corners(images) == 0.25
