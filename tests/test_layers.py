"""Imports go downwards only, and each heavy library has one door (DESIGN.md, "Where things are")."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "src").rglob("*.py"))
NAMES = [str(file.relative_to(ROOT)) for file in FILES]

LAYERS = [
    {
        "train",
        "worker",
        "report",
        "reporting",
        "audit",
        "auditing",
        "evaluate",
        "evaluation",
        "results",
        "headline",
        "launch",
        "recording",
        "compression",
        "deployment",
        "trained",
        "export",
        "exporting",
        "benchmark",
        "benchmarking",
        "predict",
        "predicting",
        "card",
        "carding",
        "plan",
        "jobs",
        "shared_config",
        "summary",
        "dry_run",
        "training",
        "teachers",
        "radiomics",
        "entry",
        "progress",
        "checkpoint",
        "averaging",
        "last_state",
    },
    {"classifier", "data", "sweep", "tracking", "analysis", "clinical"},
    {"models", "losses", "metrics", "efficiency", "objectives", "reproducibility", "schedules", "config"},
    {"allocator", "errors", "garbage", "paths", "spreadsheets", "torchvision_operators", "whole"},
]
DOORS = {
    "mlflow": ("src/tracking/",),
    "optuna": ("src/sweep/", "src/analysis/", "src/launch.py", "src/dry_run.py"),
    "fvcore": ("src/efficiency/flops.py",),
    "timm": ("src/models/backbone.py",),
    "onnx": ("src/deployment/", "src/compression/"),
    "onnxruntime": ("src/deployment/", "src/compression/"),
    "executorch": ("src/deployment/", "src/compression/"),
    "torchao": ("src/deployment/", "src/compression/"),
    "litert_torch": ("src/deployment/", "src/compression/"),
    "ai_edge_litert": ("src/deployment/", "src/compression/"),
    "ai_edge_quantizer": ("src/compression/",),
    "torch_pruning": ("src/compression/prune.py",),
    "captum": ("src/predicting/gradcam.py",),
    "mahotas": ("src/radiomics/features.py",),
    "hydra": (
        "src/headline/presets.py",
        "src/train.py",
        "src/jobs.py",
        "src/launch.py",
        "src/plan.py",
        "src/dry_run.py",
        "src/shared_config.py",
        "src/entry.py",
        "src/config.py",
        "src/training.py",
        "src/sweep/",
    ),
}


def imports(file: Path) -> set[str]:
    """Dotted names that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def layer(part: str) -> int:
    """0 for the entries, more for what lies below; a part that is not listed fails here."""
    return next(number for number, parts in enumerate(LAYERS) if part in parts)


@pytest.mark.parametrize("name", NAMES)
def test_imports_go_down_or_stay_in_their_part(name: str) -> None:
    file = ROOT / name
    own = file.relative_to(ROOT / "src").parts[0].removesuffix(".py")
    if own == "__init__":
        return
    used = {dotted.split(".")[1] for dotted in imports(file) if dotted.startswith("src.")}
    for part in used - {own}:
        assert layer(part) >= layer(own), f"{name} imports src.{part}, which lies above it"


@pytest.mark.parametrize("name", NAMES)
def test_heavy_libraries_have_one_door(name: str) -> None:
    used = {dotted.split(".")[0] for dotted in imports(ROOT / name)}
    for library in used & set(DOORS):
        assert name.startswith(DOORS[library]), f"{name} imports {library}; it belongs in {DOORS[library]}"


def test_no_cycle_within_a_layer() -> None:
    edges: dict[str, set[str]] = {}
    for file in FILES:
        own = file.relative_to(ROOT / "src").parts[0].removesuffix(".py")
        used = {dotted.split(".")[1] for dotted in imports(file) if dotted.startswith("src.")}
        edges.setdefault(own, set()).update(used - {own})

    def reach(part: str, path: tuple[str, ...]) -> None:
        assert part not in path, f"import cycle: {' -> '.join((*path, part))}"
        for other in edges.get(part, set()):
            reach(other, (*path, part))

    for part in edges:
        reach(part, ())
