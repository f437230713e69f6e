"""The layers of LAYOUT: imports go down, no circles, shared names only where they are allowed."""

import ast
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "src").rglob("*.py"))
NAMES = [str(file.relative_to(ROOT)) for file in FILES]
RUNS = {"run", "study", "dry_run", "api"}
LEVELS = [
    {"core"},
    {"data", "metrics", "tracking", "efficiency"},
    {"losses", "models", "sweep"},
    {"training"},
    {"deployment"},
    {"reporting"},
    RUNS,
    {"train", "report", "evaluate", "predict", "export", "benchmark", "card", "audit"},
]
LIBRARIES = {  # a heavy library -> the only places that import it
    "mlflow": ("src/tracking/",),
    "optuna": ("src/sweep/", "src/reporting/", "src/study.py", "src/dry_run.py"),
    "fvcore": ("src/efficiency/flops.py",),
    "timm": ("src/models/backbone.py",),
    "onnx": ("src/deployment/",),
    "onnxruntime": ("src/deployment/",),
    "executorch": ("src/deployment/",),
    "torchao": ("src/deployment/",),
    "litert_torch": ("src/deployment/",),
    "ai_edge_litert": ("src/deployment/",),
    "ai_edge_quantizer": ("src/deployment/compression/",),
    "torch_pruning": ("src/deployment/compression/prune.py",),
    "captum": ("src/deployment/gradcam.py",),
    "mahotas": ("src/models/radiomics.py",),
    "hydra": ("src/core/", "src/sweep/", "src/training/", "src/run.py", "src/study.py")
    + ("src/dry_run.py", "src/api.py"),
}
# An entry and the module behind it, and parallel families, may share a file name.
FAMILIES = ("__init__.py", "base.py", "onnx.py", "litert.py", "executorch.py")


def imported(file: Path) -> set[str]:
    """Dotted names that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def level(part: str) -> int:
    """The level of a package or top-level file; a part that is not listed fails here."""
    return next(number for number, parts in enumerate(LEVELS) if part in parts)


def imported_modules(file: Path) -> set[str]:
    """Files of src/ that a file imports when it is imported itself, as dotted module names."""
    modules = {name.removesuffix(".py").replace("/", ".") for name in NAMES}
    tree = ast.parse(file.read_text())
    names = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names & modules


@pytest.mark.parametrize("name", NAMES)
def test_imports_go_down(name: str) -> None:
    part = Path(name).relative_to("src").parts[0].removesuffix(".py")
    if part == "__init__":
        return
    for other in {dotted.split(".")[1] for dotted in imported(ROOT / name) if "src." in dotted[:4]}:
        # the root files of one run and one study count as one part
        same = other == part or {other, part} <= RUNS
        assert same or level(other) < level(part), f"{name} imports src.{other}"


@pytest.mark.parametrize("name", NAMES)
def test_a_heavy_library_is_imported_in_one_place(name: str) -> None:
    for library in {dotted.split(".")[0] for dotted in imported(ROOT / name)} & set(LIBRARIES):
        assert name.startswith(LIBRARIES[library]), f"{name} imports {library}"


def test_no_import_circle() -> None:
    graph = {
        name.removesuffix(".py").replace("/", "."): imported_modules(ROOT / name) for name in NAMES
    }
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert len(order) >= len(NAMES)


def test_sizes_of_the_tree() -> None:
    packages = {file.parent for file in FILES if file.parent.parent == ROOT / "src"}
    assert len(packages) == 11
    assert len(FILES) <= 140
    # The target is 23,000 lines; with the capabilities of later issues, 25,000. Lower this bound
    # with every reduction. It was 28,700 before faults of data, databases and input were mended,
    # 29,070 before MLflow's views, the report's first screen and the terminal were worked on, and
    # 29,620 before decision rules, joined sources, cached features, mixup and later stages, and
    # 31,090 before races over seeds, rungs that adapt, and the widths of a terminal's columns.
    assert sum(file.read_text().count("\n") for file in FILES) <= 31_317


def test_no_public_class_name_is_used_twice() -> None:
    classes = Counter(
        node.name
        for file in FILES
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert {name: count for name, count in classes.items() if count > 1} == {}


def test_file_names_are_shared_only_by_families() -> None:
    entries = {file.name for file in FILES if file.parent == ROOT / "src"}
    counts = Counter(file.name for file in FILES if file.parent != ROOT / "src")
    for name, count in counts.items():
        allowed = name in FAMILIES or (name in entries and count == 1)
        assert count == 1 or allowed, f"{count} files are called {name}"
