import subprocess
import sys

from src.core.cli import ROOT


def output(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_torchvision_and_what_builds_on_it_can_be_imported() -> None:
    assert (
        output("import src, torchvision, timm, torchmetrics, pytorch_lightning; print('imported')")
        == "imported"
    )


def test_operators_exist_once_torchvision_is_imported_and_the_hook_is_gone() -> None:
    code = (
        "import sys, src; hooks = len(sys.meta_path); import torch, torchvision; "
        "print(hasattr(torch.ops.torchvision, 'nms'), hooks - len(sys.meta_path))"
    )
    assert output(code) == "True 1"
