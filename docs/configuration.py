"""Write docs/reference/configuration.md from conf/: `python docs/configuration.py`."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "docs" / "reference" / "configuration.md"
INTRODUCTION = """# Configuration

Generated from the files of `conf/`. A run is composed of groups: choose a file by `group=choice`
and set a value by `group.key=value`. `python -m src.train --help <group>` shows the same on the
terminal.
"""


def header(file: Path) -> str:
    """The comment that a config file starts with, without the package directive."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if "@package" not in line:
            lines.append(line.lstrip("# ").rstrip())
    return " ".join(lines).removeprefix(f"{file.stem}: ")


def section(folder: Path) -> list[str]:
    """One table of the choices of a group, and the body of each file."""
    group = str(folder.relative_to(ROOT / "conf"))
    files = sorted(file for file in folder.glob("*.yaml"))
    choices = [file for file in files if not file.stem.startswith("_")]
    if not files:
        return []
    lines = [f"## {group}", "", "| Choice | Meaning |", "|---|---|"]
    for file in choices:
        meaning = header(file).replace("|", r"\|")
        lines.append(f"| `{group}={file.stem}` | {meaning} |")
    for file in files:
        text = file.read_text(encoding="utf-8").strip()
        lines += ["", f'??? note "{group}/{file.name}"', "    ```yaml"]
        lines += [f"    {line}".rstrip() for line in text.splitlines()]
        lines += ["    ```"]
    return [*lines, ""]


def main() -> None:
    """Write the page."""
    folders = [path for path in sorted((ROOT / "conf").rglob("*")) if path.is_dir()]
    parts = [INTRODUCTION]
    parts.append("## train\n\n```yaml\n" + (ROOT / "conf" / "train.yaml").read_text() + "```\n")
    parts += ["\n".join(section(folder)) for folder in folders if "__pycache__" not in folder.parts]
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text("\n".join(part for part in parts if part), encoding="utf-8")


if __name__ == "__main__":
    main()
