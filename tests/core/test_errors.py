import errno

import pytest

from src.core.errors import causes, full_disk


@pytest.mark.timeout(10)
def test_a_circle_of_causes_ends() -> None:
    # OmegaConf raises its errors anew from ones that have them as their context
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__context__ = second, first
    assert list(causes(first)) == [first, second]
    assert full_disk(first) is None


def test_a_full_disk_is_found_among_the_causes() -> None:
    error = RuntimeError("not saved")
    error.__context__ = OSError(errno.ENOSPC, "No space left on device", "best.ckpt")
    assert full_disk(error) == (
        "best.ckpt cannot be written, the disk is full: make space, then start it again"
    )
