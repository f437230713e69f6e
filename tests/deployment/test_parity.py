import numpy as np

from src.deployment.description import Decision
from src.deployment.export import compare

REFERENCE = np.array([[0.6, 0.4], [0.45, 0.55], [0.9, 0.1], [0.75, 0.25]], np.float32)


def test_differences_and_decisions_are_counted() -> None:
    found = np.array(
        [[0.4, 0.6], [0.45, 0.55], [0.89, 0.11], [0.65, 0.35]], np.float32
    )  # 0: class, 3: threshold
    parity = compare(REFERENCE, found, ("nv", "mel"), Decision("mel", 0.3, "sensitivity"))
    assert parity.images == 4
    assert np.isclose(parity.difference, 0.2, atol=1e-6)
    assert parity.same_class == 3 / 4
    assert parity.same_side == 3 / 4
    assert parity.agreement == 2 / 4


def test_without_a_threshold_only_the_class_counts() -> None:
    parity = compare(REFERENCE, REFERENCE, ("a", "b"), None)
    assert (parity.difference, parity.same_class, parity.agreement) == (0, 1, 1)
    assert np.isnan(parity.same_side)


def test_what_is_no_number_is_no_small_difference() -> None:
    found = REFERENCE.copy()
    found[2, 0] = np.nan
    assert not compare(REFERENCE, found, ("a", "b"), None).difference <= 1
