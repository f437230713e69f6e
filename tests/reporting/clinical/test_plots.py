"""Figures of the clinical audit: which there are, what they name, and what they survive."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from clinical_cases import made_up
from matplotlib.figure import Figure

from src.metrics.settings import AuditSettings
from src.reporting.clinical import plots, presentation
from src.reporting.clinical.audit import audit
from src.reporting.clinical.results import ClinicalAudit


@pytest.fixture(scope="module")
def result() -> ClinicalAudit:
    test = made_up(11)
    sex = np.where(np.arange(len(test[0])) % 2, "male", "female")
    metadata = pd.DataFrame({"image_id": test[0]["image_id"], "sex": sex})
    return audit(test, made_up(12), metadata, AuditSettings(samples=100))


def test_subgroups_name_the_rule_of_their_recall(result: ClinicalAudit) -> None:
    labels = [axes.get_xlabel() for axes in plots.subgroups(result).axes]
    assert labels[0].startswith("recall of mel by\nthe most probable class")
    assert labels[1].startswith("recall of mel by\nval's threshold")


@pytest.mark.parametrize(("low", "high"), [(np.nan, np.nan), (0.6, 0.7)])
def test_a_mean_without_or_outside_its_interval_is_drawn(
    result: ClinicalAudit, low: float, high: float
) -> None:
    table = result.subgroups.assign(estimate=0.5, low=low, high=high, note="")
    changed = replace(result, subgroups=table)
    assert isinstance(plots.subgroups(changed), Figure)
    text = " ".join(presentation.summary(changed))
    assert "nan" not in text
    assert ("0.500 (no interval)" in text) == bool(np.isnan(low))


def test_figures_without_data_are_left_out(result: ClinicalAudit) -> None:
    bare = replace(result, roc=result.roc.iloc[:0], subgroups=pd.DataFrame(), temperatures=())
    assert plots.titles(bare) == {"reliability": "Reliability"}
