import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from src.core.errors import ConfigError
from src.losses.class_weights import balanced


@given(st.lists(st.integers(1, 200), min_size=2, max_size=9))
def test_balanced_of_scikit_learn(counts: list[int]) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    expected = compute_class_weight("balanced", classes=np.arange(len(counts)), y=labels)
    np.testing.assert_allclose(balanced(counts).numpy(), expected, rtol=1e-6)


def test_ham10000_by_hand() -> None:
    counts = [327, 514, 1099, 115, 1113, 6705, 142]
    expected = torch.tensor([10015 / (7 * count) for count in counts])
    torch.testing.assert_close(balanced(counts), expected)


@pytest.mark.parametrize("counts", [[0, 3], [5, 0, 0], []])
def test_empty_class_is_refused(counts: list[int]) -> None:
    with pytest.raises(ConfigError, match="^class_counts: "):
        balanced(counts)
