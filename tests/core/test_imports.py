"""What `import src` changes for later imports."""

import subprocess
import sys

from src.core.cli import ROOT

PROGRAM = """
import sys, src
from torchmetrics.functional.classification import binary_auroc
hidden = ("matplotlib", "scipy", "torchvision", "transformers")
assert not sys.modules.keys() & set(hidden), sys.modules.keys() & set(hidden)
import torch
assert binary_auroc(torch.tensor([0.1, 0.9]), torch.tensor([0, 1])) == 1
import pytorch_lightning
from lightning_utilities.core.imports import RequirementCache, package_available
assert all(package_available(name) and RequirementCache(name) for name in hidden[:3])
"""


def test_torchmetrics_is_imported_without_packages_of_other_metrics() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, check=True)
