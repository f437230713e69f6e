import os
from pathlib import Path

import pytest

import src  # noqa: F401  first: it lets a CUDA torchvision be imported beside a CPU torch

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("PARETODERM_SHARED", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images beside the checkout."""
    if not (SHARED / "data" / "ham10000").is_dir():
        pytest.skip(f"no real images: {SHARED / 'data'} is not there")
    return SHARED / "data"


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT
