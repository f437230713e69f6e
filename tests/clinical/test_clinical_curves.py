"""Curves: their points are reached by the thresholds beside them, their area is the one that is told."""

import numpy as np
import pytest
from clinical_cases import made_up
from sklearn.metrics import auc

from src.metrics import curves
from src.metrics import curves as ranks
from src.metrics.bootstrap import bootstrap_statistics, gather


def test_the_area_below_the_points_is_the_auroc() -> None:
    given = gather(made_up(4))
    points = curves.roc(given)
    for name in given.classes:
        areas = bootstrap_statistics(given, ranks.statistics(given, name, {"auroc": ranks.area}))[
            :, 0
        ]
        for seed, area in enumerate(areas):
            rows = points[(points["class"] == name) & (points["seed"] == seed)]
            assert auc(rows["false_positive_rate"], rows["sensitivity"]) == pytest.approx(area)


def test_each_point_is_what_its_threshold_gives() -> None:
    tables = made_up(4, images=60)
    given = gather(tables)
    own = (tables[1]["label"] == "mel").to_numpy()
    score = tables[1]["p/mel"].to_numpy()
    for row in curves.roc(given).query("`class` == 'mel' and seed == 1").itertuples():
        positive = score >= row.threshold
        assert (row.false_positive_rate, row.sensitivity) == pytest.approx(
            (positive[~own].mean(), positive[own].mean())
        )
    for row in curves.precision_recall(given).query("`class` == 'mel' and seed == 1").itertuples():
        positive = score >= row.threshold
        assert row.recall == pytest.approx(positive[own].mean())
        assert row.precision == pytest.approx(own[positive].mean() if positive.any() else 1)


def test_a_class_without_images_has_no_curve() -> None:
    tables = [table[table["label"] != "nv"] for table in made_up(4)]
    given = gather(tables)
    assert set(curves.roc(given)["class"]) == {"bkl", "mel"}
    alone = gather([table[table["label"] == "mel"] for table in tables])
    assert curves.roc(alone).empty
    assert list(curves.precision_recall(alone)) == curves.PRECISION_RECALL_COLUMNS
    assert np.isinf(curves.precision_recall(given)["threshold"]).sum() == 4
