from pathlib import Path

import numpy as np
import pytest
import torch

from compression.nets import SIZE, confident, context, prepared_data
from src.data.module import DataModule
from src.deployment.runtimes.base import ImageBatch, Probabilities


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataModule:
    return prepared_data(tmp_path_factory.mktemp("cache"), SIZE, 32)


@pytest.fixture(scope="session")
def pictures(data: DataModule) -> ImageBatch:
    return np.ascontiguousarray(data.cache.images[data.rows("val")])


@pytest.fixture(scope="session")
def expected(data: DataModule, pictures: ImageBatch) -> Probabilities:
    """Output of `confident` for the pictures."""
    with torch.inference_mode():
        camera = context(confident(), data, Path()).camera()
        probabilities: Probabilities = camera(torch.from_numpy(pictures)).numpy()
    assert probabilities.std(axis=0).max() > 0.1  # else a constant output would pass
    return probabilities
