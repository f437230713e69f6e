import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtimes.nets import SIDE
from src.data.synthetic import Synthetic
from src.deployment.runtimes.base import ImageBatch


@pytest.fixture(scope="session")
def pictures(root: Path) -> ImageBatch:
    """Real images if there are any, drawn ones otherwise."""
    shared = Path(os.environ.get("PARETODERM_SHARED", root.parent / "shared"))
    files = sorted((shared / "data" / "ham10000").glob("*_part_1/*.jpg"))[:12]
    if files:
        images = [Image.open(file) for file in files]
    else:
        source = Synthetic(lesions=14, native_size=48)
        manifest = source.manifest()
        images = [source.picture(manifest, row) for row in range(12)]
    return np.stack([np.asarray(image.convert("RGB").resize((SIDE, SIDE))) for image in images])
