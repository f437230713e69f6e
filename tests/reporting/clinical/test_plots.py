"""Figures of the clinical audit: which there are, what they name, and what they survive."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from src.reporting.clinical import plots, presentation
from src.reporting.clinical.results import ClinicalAudit


def test_subgroups_name_the_rule_of_their_recall(audited: ClinicalAudit) -> None:
    labels = [axes.get_xlabel() for axes in plots.subgroups(audited).axes]
    assert labels[0].startswith("recall of mel by\nthe most probable class")
    assert labels[1].startswith("recall of mel by\nval's threshold")


@pytest.mark.parametrize(("low", "high"), [(np.nan, np.nan), (0.6, 0.7)])
def test_a_mean_without_or_outside_its_interval_is_drawn(
    audited: ClinicalAudit, low: float, high: float
) -> None:
    table = audited.subgroups.assign(estimate=0.5, low=low, high=high, note="")
    changed = replace(audited, subgroups=table)
    assert isinstance(plots.subgroups(changed), Figure)
    text = " ".join(presentation.summary(changed))
    assert "nan" not in text
    assert ("0.500 (no interval)" in text) == bool(np.isnan(low))


def test_figures_without_data_are_omitted(audited: ClinicalAudit) -> None:
    bare = replace(audited, roc=audited.roc.iloc[:0], subgroups=pd.DataFrame(), temperatures=())
    assert presentation.figure_titles(bare) == {"reliability": "Reliability"}
