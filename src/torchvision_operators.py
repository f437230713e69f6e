"""Let a torchvision built for CUDA be imported beside a CPU-only torch.

The registry's torchvision is built for CUDA. With a CPU-only torch its compiled operators do not load, and its Python
side then stops at "operator torchvision::nms does not exist", which takes timm, torchmetrics and
pytorch_lightning down with it. Declaring the missing operators (schemas only: detection stays unusable, nobody here
needs it) lets the import go through. Where torchvision loads its own operators this does nothing.

Torch takes seconds to import, so nothing is declared until somebody asks for torchvision.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_libraries: list[Any] = []  # a torch.library.Library un-declares its operators when it is collected


class _BeforeTorchvision(importlib.abc.MetaPathFinder):
    """Finder that finds nothing: it only notices that torchvision is about to be imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            _declare_missing_operators()
        return None


def install() -> None:
    """Declare the missing operators just before the first `import torchvision` of this process."""
    if "torchvision" not in sys.modules:
        sys.meta_path.insert(0, _BeforeTorchvision())


def _declare_missing_operators() -> None:
    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or _compiled_operators_load(Path(spec.origin).parent):
        return
    library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS.values():
        library.define(schema)
    _libraries.append(library)


def _compiled_operators_load(package: Path) -> bool:
    """Whether torchvision's own shared library loads into this torch, and so registers its operators itself."""
    import torch

    for library in sorted(package.glob("_C.*")):
        if library.suffix in (".so", ".pyd"):
            try:
                torch.ops.load_library(library)
            except OSError:
                return False
            return True
    return False
