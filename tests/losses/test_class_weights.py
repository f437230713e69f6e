import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from src.core.errors import ConfigError
from src.losses.class_weights import ClassWeightedLoss


@given(st.lists(st.integers(1, 200), min_size=2, max_size=9))
def test_balanced_of_scikit_learn(counts: list[int]) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    expected = compute_class_weight("balanced", classes=np.arange(len(counts)), y=labels)
    weight = ClassWeightedLoss(counts, weighted=True).weight
    np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("counts", [[0, 3], [5, 0, 0], []])
def test_empty_class_is_refused(counts: list[int]) -> None:
    with pytest.raises(ConfigError, match="^class_counts: "):
        ClassWeightedLoss(counts, weighted=True)
    assert ClassWeightedLoss(counts, weighted=False).weight is None
