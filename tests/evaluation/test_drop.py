"""Expected values by hand and by scikit-learn."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from src.metrics.settings import AuditSettings
from src.reporting.clinical import external as drop

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


def rows(own, external, val=(), positive="mel", settings=FEW) -> pd.DataFrame:
    return drop.compared(own, external, val, positive, settings).set_index("metric")


def test_figures_and_differences_by_hand() -> None:
    found = rows([OWN], [EXTERNAL])
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
    row = rows([OWN], [EXTERNAL]).loc["recall/mel"]
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
    perfect = rows([OWN], [OWN]).loc["recall/mel"]
    doubt = 1 - 0.025 ** (1 / 8)
    assert perfect[["difference", "low", "high"]].tolist() == pytest.approx([0.0, -doubt, doubt])


def test_the_published_example() -> None:
    """Newcombe 1998, table II: 56/70 - 48/80 by method 10 is 0.0524 to 0.3339, with Wilson's intervals of each."""
    first, second = (
        binomtest(k, n).proportion_ci(method="wilson") for k, n in ((56, 70), (48, 80))
    )
    found = drop.apart((56 / 70, *first), (48 / 80, *second))
    assert found == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_a_mean_without_an_interval_on_one_side_has_none_of_the_difference() -> None:
    row = rows([OWN], [EXTERNAL]).loc["balanced_accuracy"]
    assert row[["own", "external"]].tolist() == pytest.approx([1.0, 0.65])
    assert row[["own_low", "low", "high"]].isna().all()


def test_the_threshold_is_the_one_of_own_validation() -> None:
    # 5 melanomas on val; 4 of them have to be found: from 0.3 on
    val = predictions(
        [("mel", f"v{n}", p) for n, p in enumerate([0.9, 0.6, 0.4, 0.3, 0.05])]
        + [("nv", "w1", 0.2), ("nv", "w2", 0.1)]
    )
    found = rows([OWN], [EXTERNAL], [val])
    assert found.loc["chosen/sensitivity/mel", "external"] == 1.0  # 0.3 counts as found
    assert found.loc["chosen/specificity/mel", "external"] == pytest.approx(0.9)
    strict = rows(
        [OWN], [EXTERNAL], [val], settings=AuditSettings(samples=200, sensitivity=0.5)
    )  # 3 of 5: from 0.4 on
    assert strict.loc["chosen/sensitivity/mel", "external"] == pytest.approx(0.4)


def test_every_net_has_a_threshold_of_its_own() -> None:
    low, high = OWN.assign(**{"p/mel": OWN["p/mel"] / 10}), OWN
    low["p/nv"] = 1 - low["p/mel"]
    found = rows([high, low], [high, low], [high, low])
    assert found.loc["chosen/sensitivity/mel", ["own", "external"]].tolist() == [1.0, 1.0]
    assert found.loc["chosen/specificity/mel", ["own", "external"]].tolist() == [1.0, 1.0]
    assert found.loc["recall/mel", "own"] == pytest.approx(0.5)  # the second net never says mel


def test_classes_that_only_one_side_has_are_left_out_of_the_means() -> None:
    extra = predictions([("mel", "x1", 0.2), ("mel", "x2", 0.2)], "z").assign(label="bcc")
    own = pd.concat([OWN, extra], ignore_index=True).assign(**{"p/bcc": 0.0})
    found = rows([own], [EXTERNAL.assign(**{"p/bcc": 0.0})])
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
    row = rows([good, bad], [good, bad]).loc["recall/mel"]
    assert row["own_low"] < 0.1  # both drawn nets may be the bad one, or the good one
    assert row["own_high"] > 0.9
    assert row["difference"] == 0
    assert (
        row["high"] - row["low"] < 0.2
    )  # of 100 melanomas, 5 or 95 found: standard deviation sqrt(2 * 0.05 * 0.95) / 10


def test_without_the_class_that_is_looked_for() -> None:
    assert list(rows([OWN], [EXTERNAL], positive=None).index) == [
        "balanced_accuracy",
        "accuracy",
        "recall/mel",
        "recall/nv",
    ]


def test_validation_without_the_class_gives_no_threshold() -> None:
    val = predictions([("nv", "w1", 0.2), ("nv", "w2", 0.1)])
    assert not [name for name in rows([OWN], [EXTERNAL], [val]).index if name.startswith("chosen/")]


def test_the_same_seed_gives_the_same_intervals() -> None:
    pd.testing.assert_frame_equal(rows([OWN], [EXTERNAL]), rows([OWN], [EXTERNAL]))
    assert not np.array_equal(
        rows([OWN], [EXTERNAL]),
        rows([OWN], [EXTERNAL], settings=AuditSettings(samples=200, seed=9)),
    )


def test_original_labels_apart() -> None:
    names = ["ak"] * 4 + ["scc"] * 6 + ["nv"] * 10
    found = drop.by_original_label([EXTERNAL.assign(original_label=names)], FEW).set_index(
        "original_label"
    )
    assert found["counts_as"].to_dict() == {"ak": "mel", "scc": "mel", "nv": "nv"}
    assert found["recall"].to_dict() == pytest.approx({"ak": 1.0, "scc": 0.0, "nv": 0.9})
    assert found["images"].to_dict() == {"ak": 4, "scc": 6, "nv": 10}
    assert found.loc["ak", "low"] == pytest.approx(0.025**0.25)  # Clopper-Pearson, 4 of 4
    assert found.loc["scc", "high"] == pytest.approx(1 - 0.025 ** (1 / 6))
