"""Other data: labels, overlap, loss of quality and sizes, by hand and by independent libraries."""

from pathlib import Path

import imagehash
import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
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
from src.data.synthetic import Synthetic
from src.metrics.settings import AuditSettings
from src.reporting.clinical.external import (
    MAPPINGS,
    OVERLAP_COLUMNS,
    Labels,
    choose_labels,
    dark_corners,
    domain_shift,
    find_overlap,
    image_sizes,
    newcombe,
    picture_notes,
    recall_by_original_label,
    refuse_unknown,
)

from .small_world import Place, encoded_anew, lesion

FOLDER = MAPPINGS


def test_isic2019_for_a_net_of_ham10000() -> None:
    found = choose_labels("auto", ISIC, HAM, FOLDER)
    assert found.name == "isic2019_to_ham10000"
    assert found.classes == HAM
    names = [found.to[name] for name in ("ak", "scc", "mel", "vasc")]
    assert names == ["akiec", "akiec", "mel", "vasc"]


def test_classes_that_the_net_has_go_by_name() -> None:
    found = choose_labels("auto", ("mel", "nv"), HAM, FOLDER)
    assert (found.name, found.classes) == ("identity", HAM)
    assert found.to == {"mel": "mel", "nv": "nv"}


def test_a_set_of_melanoma_or_not_asks_one_class_of_several() -> None:
    found = choose_labels("auto", SIIM, HAM, FOLDER)
    assert found.classes == ("rest", "mel")
    assert found.to == {"malignant": "mel", "benign": "rest"}


@pytest.mark.parametrize("names", [HAM, ISIC])
def test_several_classes_for_a_net_of_melanoma_or_not(names: tuple[str, ...]) -> None:
    found = choose_labels("auto", names, SIIM, FOLDER)
    assert found.classes == SIIM
    assert {name: found.to[name] for name in names if found.to[name] == "malignant"} == {
        "mel": "malignant"
    }


def test_the_rest_gets_the_sum_of_what_is_not_asked_for() -> None:
    table = pd.DataFrame({"image_id": ["a", "b"], "group": ["a", "b"], "label": ["mel", "nv"]})
    table = table.assign(**{"p/bcc": [0.1, 0.2], "p/mel": [0.6, 0.3], "p/nv": [0.3, 0.5]})
    told = Labels("x", {"m": "mel", "b": "rest"}, ("rest", "mel")).merged(table)
    assert [column for column in told if column.startswith("p/")] == ["p/rest", "p/mel"]
    assert told["label"].tolist() == ["mel", "rest"]
    assert told["p/rest"].tolist() == pytest.approx([0.4, 0.7])
    assert told["p/mel"].tolist() == [0.6, 0.3]


@settings(max_examples=30)
@given(
    asked=st.sets(st.sampled_from(HAM), min_size=1, max_size=6),
    weights=st.lists(st.lists(st.floats(0.01, 1), min_size=7, max_size=7), min_size=1, max_size=5),
)
def test_nothing_of_a_probability_is_lost(asked: set[str], weights: list[list[float]]) -> None:
    probability = np.array(weights) / np.sum(weights, axis=1, keepdims=True)
    table = pd.DataFrame(probability, columns=[f"p/{name}" for name in HAM]).assign(label=HAM[0])
    classes = ("rest", *(name for name in HAM if name in asked))
    told = Labels("x", {}, classes).merged(table)
    assert {column for column in told if column.startswith("p/")} == {
        f"p/{name}" for name in classes
    }
    np.testing.assert_allclose(told.filter(like="p/").sum(axis=1), 1)
    assert (told["label"] == (HAM[0] if HAM[0] in asked else "rest")).all()
    for name in asked:
        np.testing.assert_array_equal(told[f"p/{name}"], table[f"p/{name}"])


def test_without_a_rest_predictions_stay_as_they_are() -> None:
    table = pd.DataFrame({"label": ["mel"], "p/mel": [1.0], "p/nv": [0.0]})
    assert choose_labels("auto", ("mel",), ("mel", "nv"), FOLDER).merged(table) is table


def test_an_unknown_class_is_refused_with_all_of_them_listed() -> None:
    with pytest.raises(
        ConfigError,
        match="labels: no mapping for wart: the data have mel, wart, the net akiec, bcc",
    ):
        choose_labels("auto", ("mel", "wart"), HAM, FOLDER)
    found = choose_labels("auto", ("mel", "wart"), HAM, FOLDER, unknown="list")
    names = pd.Series(["mel", "wart", "wart"])
    assert names.map(dict(found.to)).isna().tolist() == [False, True, True]
    with pytest.raises(
        ConfigError, match=r"labels: identity does not know wart \(2 images\); add to the mapping"
    ):
        refuse_unknown(found, names)
    refuse_unknown(found, names.iloc[:1])


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("melanoma: mel\nother: rest\n")
    found = choose_labels(str(tmp_path / "mine.yaml"), ("melanoma", "other"), HAM, FOLDER)
    assert found.classes == ("rest", "mel")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: strange\n", "speaks of strange, which the net does not have; it has akiec"),
        ("a: rest\n", "must name a class of the net beside rest"),
        ("- a\n", "must have lines like"),
        ("a: [\n", "cannot be read"),
        (
            "yes: mel\nno: rest\n",
            "has True, False where a class is named; put names like yes and no in quotes",
        ),
        ("a: no\n", "has False where a class is named"),
        ("a:\n", "has None where a class is named"),
    ],
)
def test_a_file_that_cannot_be_is_told(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        choose_labels(str(tmp_path / "bad.yaml"), ("a",), HAM, FOLDER)


def test_quoted_names_and_numbers_are_names(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("'yes': mel\n0: rest\n")
    assert choose_labels(str(tmp_path / "mine.yaml"), ("yes", "0"), HAM, FOLDER).to == {
        "yes": "mel",
        "0": "rest",
    }


def test_a_mapping_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(
        ConfigError, match="labels: nosuch: no such mapping; there are auto, isic2019_to_ham10000"
    ):
        choose_labels("nosuch", ISIC, HAM, FOLDER)


def test_two_files_that_fit_must_be_told_apart(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text("lentigo: bkl\n")
    with pytest.raises(ConfigError, match="labels: one and two both fit; name one"):
        choose_labels("auto", ("lentigo",), HAM, tmp_path)


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_files_speak_of_classes_that_there_are(file: Path) -> None:
    to = yaml.safe_load(file.read_text())
    assert set(to) <= {*HAM, *ISIC, *SIIM}
    assert set(to.values()) <= {*HAM, "rest"} or set(to.values()) <= set(SIIM)


def manifest(ids: list[str], groups: list[str] | None = None) -> pd.DataFrame:
    return pd.DataFrame(
        {"image_id": ids, "group": groups or [f"x{name}" for name in ids], "split": "train"}
    )


def squares(images: list[Image.Image]) -> np.ndarray:
    return np.stack([square(image, 64, "squash") for image in images])


PICTURES = [lesion(seed, 0) for seed in range(12)]
OTHERS = [lesion(seed, 0) for seed in range(100, 112)]


def test_copies_are_found_whatever_they_are_called() -> None:
    external = [
        encoded_anew(PICTURES[3]),
        *OTHERS,
        PICTURES[7].point(lambda value: min(255, round(1.1 * value))),
    ]
    names = [f"e{number}" for number in range(len(external))]
    found = find_overlap(
        manifest(names),
        manifest([f"o{n}" for n in range(12)]),
        squares(external),
        squares(PICTURES),
    )
    assert found[["image_id", "own_image_id", "why"]].to_numpy().tolist() == [
        ["e0", "o3", "same picture"],
        ["e13", "o7", "same picture"],
    ]
    assert (found["correlation"] >= 0.98).all()
    assert (found["hash_bits"] <= 10).all()
    assert found["own_split"].tolist() == ["train", "train"]


def test_bits_that_differ_are_those_of_the_package() -> None:
    theirs, ours = squares([encoded_anew(image) for image in PICTURES]), squares(PICTURES)
    found = find_overlap(
        manifest([f"e{n:02d}" for n in range(12)]),
        manifest([f"o{n:02d}" for n in range(12)]),
        theirs,
        ours,
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
    found = find_overlap(
        manifest([external_id], [external_group]),
        manifest([own_id], [own_group]),
        squares(OTHERS[:1]),
        squares(PICTURES[:1]),
    )
    assert found["why"].tolist() == ([why] if why else [])
    assert found["own_image_id"].tolist() == ([own_id] if why else [])


def test_an_image_counts_once_by_the_first_reason() -> None:
    found = find_overlap(
        manifest(["ISIC_0000001"], ["HAM_1"]),
        manifest(["ISIC_0000002", "ISIC_0000001"], ["HAM_1", "HAM_1"]),
        squares(PICTURES[:1]),
        squares([PICTURES[0], OTHERS[0]]),
    )
    assert found[["why", "own_image_id"]].to_numpy().tolist() == [["same image id", "ISIC_0000001"]]


def test_what_lies_beside_a_known_image_goes_with_it() -> None:
    """E1 is own picture 2; the patient's other image e2, of its own, tells the net nothing new."""
    external = manifest(["e1", "e2", "e3"], ["IP_0000009", "IP_0000009", "IP_0000010"])
    found = find_overlap(
        external,
        manifest(["o2"]),
        squares([encoded_anew(PICTURES[2]), *OTHERS[:2]]),
        squares([PICTURES[2]]),
    )
    assert found[["image_id", "why", "own_image_id", "own_split"]].to_numpy().tolist() == [
        ["e1", "same picture", "o2", "train"],
        ["e2", "lesion or patient of such an image", "o2", "train"],
    ]
    assert found["hash_bits"].isna().tolist() == [False, True]


def test_images_that_are_only_listed_are_known_by_id_and_group() -> None:
    external = manifest(
        ["ISIC_0000001", "ISIC_0000002", "ISIC_0000003"], ["x1", "HAM_0000007", "x3"]
    )
    recorded = manifest(["ISIC_0000001", "ISIC_0000009"], ["HAM_0000005", "HAM_0000007"]).assign(
        split="test"
    )
    none = manifest([])
    found = find_overlap(external, none, squares(OTHERS[:3]), squares(OTHERS[:1])[:0], recorded)
    assert found[["image_id", "why", "own_split"]].to_numpy().tolist() == [
        ["ISIC_0000001", "same image id", "test"],
        ["ISIC_0000002", "same lesion or patient", "test"],
    ]


def test_plain_pictures_are_no_error() -> None:
    plain = np.zeros((3, 64, 64, 3), dtype=np.uint8)
    found = find_overlap(manifest(["a", "b", "c"]), manifest(["d"]), plain, squares(PICTURES[:1]))
    assert found.empty
    assert list(found.columns) == OVERLAP_COLUMNS


def test_on_real_images(shared_data: Path) -> None:
    ham = HAM10000(shared_data / "ham10000", limit=150).manifest().frame
    bcn = ISIC2019(shared_data / "isic2019_bcn", limit=150).manifest().frame
    own = [Image.open(path).convert("RGB") for path in ham["path"]]
    others = [Image.open(path).convert("RGB") for path in bcn["path"]]
    copies = [encoded_anew(image) for image in own[:40]]
    names = [f"copy{n:03d}" for n in range(40)] + bcn["image_id"].tolist()
    found = find_overlap(
        manifest(names), manifest(ham["image_id"].tolist()), squares(copies + others), squares(own)
    )
    assert found["image_id"].tolist() == names[:40]
    assert found["own_image_id"].tolist() == ham["image_id"].tolist()[:40]


FEW = AuditSettings(samples=200)


def predictions(cases: list[tuple[str, str, float]], prefix: str = "i") -> pd.DataFrame:
    """Rows of label, group and probability of mel; the rest of it goes to nv."""
    frame = pd.DataFrame(cases, columns=["label", "group", "p/mel"])
    frame.insert(0, "image_id", [f"{prefix}{number:03d}" for number in range(len(frame))])
    return frame.assign(**{"p/nv": 1 - frame["p/mel"]})


OWN = predictions(
    [("mel", f"g{n}", 0.9) for n in range(8)] + [("nv", f"h{n}", 0.1) for n in range(12)]
)
# of 10 melanomas 4 above one half; of 10 naevi 1
EXTERNAL = predictions(
    [("mel", f"a{n}", 0.8 if n < 4 else 0.3) for n in range(10)]
    + [("nv", f"b{n}", 0.7 if n < 1 else 0.2) for n in range(10)],
    "e",
)


def shift(own, external, val=(), positive="mel", settings=FEW) -> pd.DataFrame:
    return domain_shift(own, external, val, positive, settings).set_index("metric")


def test_figures_and_differences_by_hand() -> None:
    found = shift([OWN], [EXTERNAL])
    assert found.loc["recall/mel", ["own", "external", "difference"]].tolist() == pytest.approx(
        [1.0, 0.4, -0.6]
    )
    assert found.loc["recall/nv", ["own", "external", "difference"]].tolist() == pytest.approx(
        [1.0, 0.9, -0.1]
    )
    assert found.loc["balanced_accuracy", "external"] == pytest.approx(0.65)
    assert found.loc["accuracy", "external"] == pytest.approx(13 / 20)
    area = roc_auc_score(EXTERNAL["label"] == "mel", EXTERNAL["p/mel"])
    assert found.loc["auroc/mel", "external"] == pytest.approx(area)
    sizes = ["own_images", "own_groups", "external_images", "external_groups"]
    assert found.loc["recall/mel", sizes].tolist() == [8, 8, 10, 10]


def test_an_own_test_without_errors_has_a_spread_all_the_same() -> None:
    row = shift([OWN], [EXTERNAL]).loc["recall/mel"]
    assert row["own_low"] == pytest.approx(
        0.6306, abs=1e-4
    )  # Clopper-Pearson, 8 of 8: 0.025 ** (1 / 8)
    assert row["own_high"] == 1
    low, high = binomtest(4, 10).proportion_ci(method="exact")
    assert row["external_low"] <= low + 1e-9  # the wider of this and resampling's
    assert row["external_high"] >= high - 1e-9
    # Newcombe: external - own = 0.4 - 1; own has no room above 1, and 1 - 0.6306 below
    assert row["low"] == pytest.approx(-0.6 - (0.4 - row["external_low"]))
    assert row["high"] == pytest.approx(
        -0.6 + np.hypot(row["external_high"] - 0.4, 1 - 0.025 ** (1 / 8))
    )


def test_no_errors_on_either_side_leave_both_in_doubt() -> None:
    perfect = shift([OWN], [OWN]).loc["recall/mel"]
    doubt = 1 - 0.025 ** (1 / 8)
    assert perfect[["difference", "low", "high"]].tolist() == pytest.approx([0.0, -doubt, doubt])


def test_the_published_example() -> None:
    """Newcombe 1998, table II: 56/70 - 48/80 by method 10, with Wilson's intervals of each."""
    first, second = (
        binomtest(k, n).proportion_ci(method="wilson") for k, n in ((56, 70), (48, 80))
    )
    found = newcombe((56 / 70, *first), (48 / 80, *second))
    assert found == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_a_mean_without_an_interval_on_one_side_has_none_of_the_difference() -> None:
    row = shift([OWN], [EXTERNAL]).loc["balanced_accuracy"]
    assert row[["own", "external"]].tolist() == pytest.approx([1.0, 0.65])
    assert row[["own_low", "low", "high"]].isna().all()


def test_the_threshold_is_the_one_of_own_validation() -> None:
    # 5 melanomas on val; 4 of them have to be found: from 0.3 on
    val = predictions(
        [("mel", f"v{n}", p) for n, p in enumerate([0.9, 0.6, 0.4, 0.3, 0.05])]
        + [("nv", "w1", 0.2), ("nv", "w2", 0.1)]
    )
    found = shift([OWN], [EXTERNAL], [val])
    assert found.loc["chosen/sensitivity/mel", "external"] == 1.0  # 0.3 counts as found
    assert found.loc["chosen/specificity/mel", "external"] == pytest.approx(0.9)
    strict = shift(
        [OWN], [EXTERNAL], [val], settings=AuditSettings(samples=200, sensitivity=0.5)
    )  # 3 of 5: from 0.4 on
    assert strict.loc["chosen/sensitivity/mel", "external"] == pytest.approx(0.4)


def test_every_net_has_a_threshold_of_its_own() -> None:
    low, high = OWN.assign(**{"p/mel": OWN["p/mel"] / 10}), OWN
    low["p/nv"] = 1 - low["p/mel"]
    found = shift([high, low], [high, low], [high, low])
    assert found.loc["chosen/sensitivity/mel", ["own", "external"]].tolist() == [1.0, 1.0]
    assert found.loc["chosen/specificity/mel", ["own", "external"]].tolist() == [1.0, 1.0]
    assert found.loc["recall/mel", "own"] == pytest.approx(0.5)  # the second net never says mel


def test_classes_that_only_one_side_has_are_left_out_of_the_means() -> None:
    extra = predictions([("mel", "x1", 0.2), ("mel", "x2", 0.2)], "z").assign(label="bcc")
    own = pd.concat([OWN, extra], ignore_index=True).assign(**{"p/bcc": 0.0})
    found = shift([own], [EXTERNAL.assign(**{"p/bcc": 0.0})])
    assert "recall/bcc" not in found.index
    assert found.loc["balanced_accuracy", "own"] == 1.0  # with bcc it would be 2/3


def test_seeds_that_differ_alike_on_both_sides_cancel_out() -> None:
    """A net that is worse on both sides by as much adds nothing to the spread of the difference."""
    good, bad = (
        predictions(
            [("mel", f"g{n}", 0.9 if n < found else 0.1) for n in range(100)] + [("nv", "h", 0.1)]
        )
        for found in (95, 5)
    )
    row = shift([good, bad], [good, bad]).loc["recall/mel"]
    assert row["own_low"] < 0.1  # both drawn nets may be the bad one, or the good one
    assert row["own_high"] > 0.9
    assert row["difference"] == 0
    assert (
        row["high"] - row["low"] < 0.2
    )  # of 100 melanomas, 5 or 95 found: standard deviation sqrt(2 * 0.05 * 0.95) / 10


def test_without_the_class_that_is_looked_for() -> None:
    assert list(shift([OWN], [EXTERNAL], positive=None).index) == [
        "balanced_accuracy",
        "accuracy",
        "recall/mel",
        "recall/nv",
    ]


def test_validation_without_the_class_gives_no_threshold() -> None:
    val = predictions([("nv", "w1", 0.2), ("nv", "w2", 0.1)])
    assert not [
        name for name in shift([OWN], [EXTERNAL], [val]).index if name.startswith("chosen/")
    ]


def test_the_same_seed_gives_the_same_intervals() -> None:
    pd.testing.assert_frame_equal(shift([OWN], [EXTERNAL]), shift([OWN], [EXTERNAL]))
    assert not np.array_equal(
        shift([OWN], [EXTERNAL]),
        shift([OWN], [EXTERNAL], settings=AuditSettings(samples=200, seed=9)),
    )


def test_original_labels_apart() -> None:
    names = ["ak"] * 4 + ["scc"] * 6 + ["nv"] * 10
    found = recall_by_original_label([EXTERNAL.assign(original_label=names)], FEW).set_index(
        "original_label"
    )
    assert found["counts_as"].to_dict() == {"ak": "mel", "scc": "mel", "nv": "nv"}
    assert found["recall"].to_dict() == pytest.approx({"ak": 1.0, "scc": 0.0, "nv": 0.9})
    assert found["images"].to_dict() == {"ak": 4, "scc": 6, "nv": 10}
    assert found.loc["ak", "low"] == pytest.approx(0.025**0.25)  # Clopper-Pearson, 4 of 4
    assert found.loc["scc", "high"] == pytest.approx(1 - 0.025 ** (1 / 6))


def folder_of(root: Path, sizes: list[tuple[int, int]]) -> ClassFolders:
    for number, size in enumerate(sizes):
        for name in ("a", "b"):
            (root / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size).save(root / name / f"{number}.png")
    return ClassFolders(root)


def test_one_size(trained: Place) -> None:
    source = HAM10000(trained.folder / "ham")
    found = image_sizes(source, source.manifest())
    assert found is not None
    assert (found.text, found.shape, found.shortest) == (
        "80x60 px (all of 84)",
        pytest.approx(4 / 3),
        60,
    )


def test_several_sizes(tmp_path: Path) -> None:
    source = folder_of(tmp_path, [(40, 30), (40, 30), (100, 50), (20, 20)])
    found = image_sizes(source, source.manifest())
    assert found is not None
    assert found.table.to_numpy().tolist()[0] == [40, 30, 4]
    assert found.shortest == 20
    assert found.text.startswith(
        "20x20 to 100x50 px, most often 40x30 (50%; all of 8), median width/height 1.33"
    )


def test_pictures_that_are_no_files() -> None:
    source = Synthetic(lesions=120, max_views=1, native_size=48, ambiguity=0.0, seed=0)
    found = image_sizes(source, source.manifest())
    assert found is not None
    assert found.text.startswith("48x48 px (50 looked at of 120)")


def test_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    source = folder_of(tmp_path, [(40, 30), (40, 30)])
    manifest = source.manifest()
    (tmp_path / "a" / "0.png").write_text("no image")
    found = image_sizes(source, manifest)
    assert found is not None
    assert found.read == 3
    for path in tmp_path.rglob("*.png"):
        path.unlink()
    assert image_sizes(source, manifest) is None


def test_what_is_told(tmp_path: Path) -> None:
    own, external = (
        image_sizes(source, source.manifest())
        for source in (
            folder_of(tmp_path / "own", [(200, 150)]),
            folder_of(tmp_path / "external", [(84, 84)]),
        )
    )
    lines = picture_notes(own, external, 128, "squash", "pad")
    assert lines[0] == "Trained at 128 px, geometry squash, on pictures 200x150 px (all of 2)."
    assert lines[1] == "Shown here at 128 px, geometry pad, pictures 84x84 px (all of 2)."
    assert [line.split(":")[0] for line in lines[2:4]] == [
        "The geometry differs from the training's (pad here, squash there).",
        "The shapes differ",
    ]
    assert "smaller than 128 px are enlarged" in lines[4]
    assert len(picture_notes(own, own, 64, "squash", "squash")) == 2
    assert "of unknown sizes" in picture_notes(None, external, 64, "squash", "squash")[0]


def test_dark_corners() -> None:
    images = np.full((4, 64, 64, 3), 200, dtype=np.uint8)
    for rows in (slice(None, 8), slice(-8, None)):
        images[0, rows, :8] = images[0, rows, -8:] = 0  # all four
    images[1, :8] = 0  # two of them
    assert dark_corners(images) == 0.25
