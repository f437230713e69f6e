"""Writes docs/results.md: the reported figures over several seeds, read from the run record.

    python -m benchmarks.results [--only SECTION ...] [--file FILE] [--folder mlruns] [--uri URI]

Trains nothing. The sections and their studies are in results.yaml. A section without figures in the
store keeps the text that the page already has; if the store has no figures at all, the page is not
touched. A page with fewer figures in a section is written beside the old one, as <name>.new.md.
"""

import argparse
import itertools
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from src.core.config import WITHOUT_EFFECT
from src.core.errors import UserError
from src.core.files import atomic_file
from src.core.tables import Table, escape_markdown
from src.metrics.bootstrap import gather, intervals
from src.metrics.paired import paired_difference
from src.metrics.registry import melanoma_of, parse_limits, short_label
from src.tracking import read
from src.tracking.read import texts
from src.tracking.store import Store

SETTINGS = Path(__file__).with_suffix(".yaml")
# Parameters that do not make another configuration.
ASIDE = ("seed", "origin", "data.root", "data.source.root", *WITHOUT_EFFECT)
# Parameters that a column of the table shows.
SHOWN = ("data.split", "data.siblings", "data.image_size")
LOCAL = ("tracking.", "hydra.run", "hydra.sweep.", "study=")
COSTS = ("efficiency/params", "efficiency/flops", "efficiency/size_mb", "efficiency/latency_ratio")
ROUNDING = 1e-7  # one more image of 10,000 changes any metric by more
NOTES = """
- A figure is the mean over at least {seeds} seeds on the test split, which chose nothing.
- ±: standard deviation over the seeds.
- [low, high]: {level:.0%} interval from {samples} bootstrap samples that draw whole lesions or
  patients, with the seeds' share by Student's t.
- Differences are paired by image. "within chance": the interval includes zero. No interval is
  corrected for the number of comparisons.
- FLOPs are multiply-adds; x ref is the latency of one image relative to the 692K network.
- An image split is marked as leaking. Research only, no medical device.
"""


@dataclass(frozen=True)
class Cell:
    """One configuration of a study under all its seeds; `problem` says why it is no figure."""

    study: str
    preset: str
    name: str
    settings: dict[str, str]
    runs: pd.DataFrame
    frames: list[pd.DataFrame]
    problem: str

    def tag(self, name: str) -> str:
        """A tag of the runs, "a and b" where they differ, "" without."""
        return " and ".join(sorted(set(texts(self.runs, f"tags.{name}")) - {""}))

    def mean(self, metric: str) -> float:
        """Mean of a recorded metric over the seeds; NaN where one lacks it."""
        name = f"metrics.{metric}"
        return float(self.runs[name].mean(skipna=False)) if name in self.runs else np.nan

    def is_system(self, system: Mapping[str, Any]) -> bool:
        """Whether it has the system's preset, image size and weights."""
        size = self.settings.get("data.image_size", "")
        same = self.preset == system["preset"] and size in ("", str(system.get("px", size)))
        return same and not ("weights" in system and "random" in self.tag("weights"))


@dataclass(frozen=True)
class Pair:
    """Two configurations that predicted the same images; `made_from`: compressed and origin."""

    first: Cell
    second: Cell
    images: str = "all"
    made_from: bool = False


def read_cells(store: Store, study: str, seeds: int) -> list[Cell]:
    """The configurations of a study, in order of their first run's start."""
    runs = read.runs(store, f"tags.study = '{study}' and tags.kind = 'run'")
    runs = runs.sort_values("start_time", kind="stable")
    keys = [str(name).removeprefix("params.") for name in runs if str(name).startswith("params.")]
    keys = [key for key in keys if not f"{key}.".startswith(tuple(f"{part}." for part in ASIDE))]
    # null is like absent: a key that is newer than some runs makes no other configuration.
    values = pd.DataFrame({key: texts(runs, f"params.{key}").replace("null", "") for key in keys})
    groups = values.assign(preset=texts(runs, "tags.preset")).agg("\x1f".join, axis=1)
    parts = runs.groupby(groups, sort=False) if len(runs) else ()
    cells = [read_cell(store, study, part, values.loc[part.index[0]], seeds) for _, part in parts]
    named = []
    for cell in cells:  # with the settings in its name in which it differs from its namesakes
        twins = [other.settings for other in cells if other.name == cell.name]
        differing = [key for key in keys if len({settings[key] for settings in twins}) > 1]
        extra = [f"{key}={cell.settings[key] or 'null'}" for key in differing if key not in SHOWN]
        named.append(replace(cell, name=", ".join([cell.name, *extra[:3]])))
    return named


def read_cell(
    store: Store, study: str, members: pd.DataFrame, settings: pd.Series, seeds: int
) -> Cell:
    """One configuration with its newest tested run of each seed."""
    tested = (members["status"] == "FINISHED") & (texts(members, "metrics.test/accuracy") != "")
    runs = members[tested].drop_duplicates("tags.seed", keep="last").sort_values("tags.seed")
    problem, frames = f"{len(runs)} of {seeds} seeds" * (len(runs) < seeds), []
    for tag in ("split_fingerprint", "weights"):
        if texts(runs, f"tags.{tag}").nunique() > 1:
            problem = f"its seeds differ in the tag {tag}"
    if not problem:
        try:
            frames = [read.predictions(store, run_id, "test") for run_id in runs["run_id"]]
            gather(frames, [f"seed {seed}" for seed in runs["tags.seed"]])
        except UserError as error:
            problem = f"its seeds are not pooled: {error}"
    preset, model = (texts(members, f"tags.{tag}").iloc[0] for tag in ("preset", "model"))
    size = settings.get("data.image_size", "")
    name = (preset.rpartition("/")[2] or model) + (f", {size} px" if size else "")
    runs = runs if len(runs) else members
    return Cell(study, preset, name, dict(settings), runs, frames, problem)


def recorded(metric: str, frame: pd.DataFrame) -> str | None:
    """The metric's name in these predictions, if they have it: melanoma has several names."""
    measure, _, name = metric.partition("/")
    if not name:
        return metric
    classes = [str(column)[2:] for column in frame if str(column).startswith("p/")]
    label = melanoma_of(classes) if name == "melanoma" else name
    return f"{measure}/{label}" if label in classes else None


def cost_text(metric: str, value: float) -> str:
    """A cost in a cell: whole parameters, millions of multiply-adds, MB, ratios."""
    if np.isnan(value) or metric == "efficiency/params":
        return "-" if np.isnan(value) else f"{value:,.0f}"
    return f"{value / 1e6:,.2f}M" if metric == "efficiency/flops" else f"{value:.2f}"


def cell_row(cell: Cell, section: Mapping[str, Any], bootstrap: Sequence[Any]) -> dict[str, str]:
    """A row of the table of configurations, beside what a paper prints of that system."""
    row = {"model": cell.name, "split": cell.tag("split"), "weights": cell.tag("weights")}
    if row["weights"] == "random" and cell.settings.get("model.net.weights"):
        row["weights"] = "RANDOM, not pretrained"
    row |= {short_label(metric): cost_text(metric, cell.mean(metric)) for metric in COSTS}
    row["seeds"] = str(len(cell.runs))
    for metric in section["metrics"]:
        value, low, high, spread = np.nan, np.nan, np.nan, np.nan
        if name := recorded(metric, cell.frames[0]):
            table = intervals(cell.frames, [name], *bootstrap)
            columns = ["estimate", "low", "high", "seed_sd"]
            value, low, high, spread = table[columns].to_numpy(dtype=float)[0]
        text = "-" if np.isnan(value) else f"{value:.3f}"
        text += f" ± {spread:.3f}" * (not np.isnan(spread))
        row[short_label(metric)] = text + f" [{low:.3f}, {high:.3f}]" * (not np.isnan(low))
    leaking = cell.tag("split").startswith("image")
    for system in section.get("systems", []) if leaking else ():
        for word in ("printed", "corrected") if cell.is_system(system) else ():
            for metric, value in system.get(word, {}).items():
                text = cost_text(metric, value) if metric in COSTS else f"{value:g}"
                row[short_label(metric)] += f" ({word} {text})"
    return row


def difference(pair: Pair, metric: str, bootstrap: Sequence[Any]) -> str:
    """First minus second with its interval, and "better", "worse" or "within chance"."""
    name = recorded(metric, pair.first.frames[0])
    if name is None:
        return "not defined"
    frames, titles = (pair.first.frames, pair.second.frames), (pair.first.name, pair.second.name)
    samples, seed, level = bootstrap
    result = paired_difference(
        *frames, name, samples, seed, level, titles, made_from=pair.made_from
    )
    numbers = [value for value in result[:3] if abs(value) > ROUNDING]
    # As many digits as it takes that no other value reads as zero.
    digits = next((n for n in range(3, 7) if all(round(value, n) for value in numbers)), 7)
    value, low, high = (f"{value:+.{digits}f}" for value in result[:3])
    if np.isnan(result.low):
        return value
    worse = "worse" if result.high < -ROUNDING else "within chance"
    return f"{value} [{low}, {high}], {'better' if result.low > ROUNDING else worse}"


def pair_row(pair: Pair, section: Mapping[str, Any], bootstrap: Sequence[Any]) -> dict[str, str]:
    """A row of the table of differences, with the ratios of the costs."""
    row = {"model": pair.first.name, "minus": pair.second.name, "test images": pair.images}
    row |= {"split": pair.first.tag("split")}
    for metric in section["metrics"]:
        row[short_label(metric)] = difference(pair, metric, bootstrap)
    for metric in COSTS:
        costs = (pair.first.mean(metric), pair.second.mean(metric))
        row[f"{short_label(metric)} ratio"] = f"{costs[0] / costs[1]:.2g}" if costs[1] else "-"
    return row


def select_pairs(store: Store, kind: str, asked: Any, cells: list[Cell]) -> Iterator[Pair]:
    """The comparisons of a section of this kind; `asked`: pairs of presets."""
    if kind == "compressed":  # each net minus the net that it was made from
        for cell in cells:
            ids = list(texts(cell.runs, "tags.origin"))
            frames = [read.predictions(store, run_id, "test") for run_id in ids]
            runs = [read.runs(store, f"attributes.run_id = '{run_id}'") for run_id in ids]
            origins = pd.concat(runs, ignore_index=True)
            parts = [texts(origins, f"tags.{tag}").iloc[0] for tag in ("model", "compression")]
            name = " after ".join(part for part in parts if part) + f" ({ids[0][:8]})"
            second = Cell(cell.study, "", name, cell.settings, origins, frames, "")
            yield Pair(cell, second, made_from=True)
    elif kind == "leakage":
        for a in (cell for cell in cells if cell.settings["data.siblings"] == "in"):
            same = {**a.settings, "data.siblings": "out"}
            for b in (cell for cell in cells if (cell.settings, cell.study) == (same, a.study)):
                yield from pairs_by_siblings(a, b)
    else:
        for a, b in itertools.product(cells, cells):
            if (a.preset, b.preset) in asked and a.tag("split") == b.tag("split"):
                yield Pair(a, b)


def pairs_by_siblings(a: Cell, b: Cell) -> Iterator[Pair]:
    """Arm "in" minus arm "out": on all test images, those with siblings in training, the others."""
    trained = [cell.mean("data/images/train") for cell in (a, b)]
    if trained[0] != trained[1]:
        raise UserError(f"{a.name}: the arms have {trained} training images")
    a, b = replace(a, name=f"{a.name}: in"), replace(b, name="out")
    yield Pair(a, b)
    for label, value in (("with siblings", True), ("without", False)):
        parts = [[f[f["has_sibling"] == value] for f in cell.frames] for cell in (a, b)]
        first, second = replace(a, frames=parts[0]), replace(b, frames=parts[1])
        if images := len(parts[0][0]):
            yield Pair(first, second, f"{label} ({images:,})")


def select(section: Mapping[str, Any], cells: list[Cell]) -> list[Cell]:
    """The configurations that a section shows: systems in their order, candidates by validation."""
    is_leakage = section["kind"] == "leakage"
    order = [system["preset"] for system in section.get("systems", [])]
    cells = [cell for cell in cells if bool(cell.settings.get("data.siblings")) == is_leakage]
    cells = [c for c in cells if c.tag("split").startswith(section.get("split", ""))]
    systems = sorted((c for c in cells if c.preset in order), key=lambda c: order.index(c.preset))
    others = [cell for cell in cells if cell.preset not in order]
    if section["kind"] != "better":
        return systems + others
    quality = f"best/val/{section['metrics'][0]}"
    others = [c for c in others if c.study in section["studies"] and c.mean(quality) >= 0]
    for limit in parse_limits(section):
        others = [cell for cell in others if limit.holds(cell.mean(limit.metric))]
    return sorted(others, key=lambda cell: -cell.mean(quality))[:3] + systems


def origin(store: Store, cells: Sequence[Cell]) -> list[str]:
    """Commands, commits, devices and dates of the runs of some cells."""
    lines = []
    for study in dict.fromkeys(cell.study for cell in cells):
        parents = read.runs(store, f"tags.study = '{study}' and tags.kind = 'study'")
        runs = pd.concat([cell.runs for cell in cells if cell.study == study])
        commands = list(texts(runs, "tags.overrides").unique())
        if len(parents):
            tags = [texts(parents, f"tags.{tag}").iloc[-1] for tag in ("sweeps", "fixed_overrides")]
            name = f"sweeps={tags[0]}" if tags[0] else f"hydra.sweeper.study_name={study}"
            commands = [f"-m {name} {tags[1]}"]
        for command in commands:
            items = [item for item in shlex.split(command) if not item.startswith(LOCAL)]
            # Paths of this machine are of no use to a reader.
            items = [re.sub("=/.*", "=...", item) for item in dict.fromkeys(items)]
            lines.append(f"Command: `python -m src.train {shlex.join(items)}`")
    runs = pd.concat([cell.runs for cell in cells]).drop_duplicates("run_id")
    dirty = texts(runs, "tags.git_dirty").str.lower().map({"true": " (changed)"}).fillna("")
    columns = {"Commit": texts(runs, "tags.git_commit").str[:7] + dirty}
    columns |= {
        "Data": texts(runs, "tags.data_share"),
        "Image size, px": texts(runs, "params.data.image_size"),
    }
    columns |= {"Device": texts(runs, "tags.device"), "Chosen by": texts(runs, "tags.chosen_by")}
    for head, values in columns.items():
        counts = values.replace("", "not recorded").value_counts(sort=False).items()
        listed = "; ".join(f"{value} ({number} runs)" for value, number in counts)
        lines.append(f"{head}: {escape_markdown(listed)}")
    dates = f"{runs['start_time'].min():%Y-%m-%d} to {runs['end_time'].max():%Y-%m-%d}"
    return [*lines, f"Recorded: {dates}, {len(runs)} runs"]


def render(store: Store, section: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """A section of the page; empty without figures."""
    bootstrap = [settings[key] for key in ("samples", "seed", "level")]
    systems = section.get("systems", [])
    studies = [*section["studies"], *(s["study"] for s in systems if "study" in s)]
    recorded_cells = [
        c for s in dict.fromkeys(studies) for c in read_cells(store, s, settings["seeds"])
    ]
    cells = select(section, recorded_cells)
    ready = [cell for cell in cells if not cell.problem]
    if not ready:
        return ""
    parts = [f"## {section['title']}", " ".join(section.get("about", "").split())]
    rows, notes = [], []
    asked = {(first, second) for first, second in section.get("differences", [])}
    if section["kind"] == "better":  # candidates minus references, and minus the best candidate
        names = [cell.preset for cell in ready]
        references = [system["preset"] for system in systems]
        best = [name for name in names if name not in references][:1]
        asked = {(a, b) for a in set(names) - set(references) for b in references + best if a != b}
    try:
        pairs = list(select_pairs(store, section["kind"], asked, ready))
    except UserError as error:
        pairs, notes = [], [f"No differences: {error}"]
    for pair in pairs:
        try:
            rows.append(pair_row(pair, section, bootstrap))
        except UserError as error:
            notes.append(f"{pair.first.name} minus {pair.second.name}: {error}")
    origins = {pair.second.name: pair.second for pair in pairs if pair.made_from}
    shown = [cell_row(cell, section, bootstrap) for cell in (*origins.values(), *ready)]
    parts += [Table(pd.DataFrame(table)).to_markdown() for table in (shown, rows) if table]
    commands = section["studies"]
    notes += [f"{c.name}, {c.tag('split')}: {c.problem}" for c in cells if c.problem]
    for study in set(commands) - {cell.study for cell in recorded_cells}:
        notes.append(f"{study}: no run; record it by {commands[study]}")
    for system in systems:
        if not any(cell.is_system(system) for cell in ready):
            command = system.get("command", next(iter(commands.values())))
            notes.append(f"{system['preset']}: no figure; record it by {command}")
    lines = [*(f"Missing: {escape_markdown(note)}" for note in notes), *origin(store, ready)]
    return "\n\n".join(part for part in [*parts, "\n".join(f"- {line}" for line in lines)] if part)


def count_figures(text: str) -> int:
    """Number of cells of the tables in a text that are neither empty nor a dash."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return sum(bool(re.search(r"\w", cell)) for row in rows for cell in row.split("|"))


def write(store: Store, settings: Mapping[str, Any], names: Sequence[str], file: Path) -> Path:
    """Write the page and return its path; see the module for what is never lost.

    Raises:
        UserError: The store has no figure of these sections, or the file cannot be written.
    """
    text_before = file.read_text() if file.is_file() else ""
    top, *old = re.split(r"(?m)^(?=## )", text_before)
    former = {text.splitlines()[0].removeprefix("## "): text.strip() for text in old}
    sections, fewer, figures = [], count_figures(top) > 0, False
    for name, section in settings["sections"].items():
        text = render(store, section, settings) if name in names else ""
        kept = former.pop(section["title"], "")
        figures |= bool(text)
        fewer |= bool(text) and count_figures(text) < count_figures(kept)
        sections += [text or kept] if text or kept else []
    if not figures:
        raise UserError(f"{store.uri} has no figures of {', '.join(names)}: {file} is unchanged")
    target = file.with_name(f"{file.stem}.new{file.suffix}") if fewer else file
    date = f"{datetime.now(UTC):%Y-%m-%d}"
    head = f"# Results\n\nWritten by `python -m benchmarks.results` on {date}; not by hand."
    with atomic_file(target, "the page", make_folder=True) as draft:
        parts = [head, NOTES.format(**settings).strip(), *sections, *former.values()]
        draft.write_text("\n\n".join(parts) + "\n")
    return target


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    settings = yaml.safe_load(SETTINGS.read_text())
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=list(settings["sections"]))
    parser.add_argument("--file", type=Path, default=Path("docs/results.md"))
    parser.add_argument("--folder", default="mlruns")
    parser.add_argument("--uri")
    typed = parser.parse_args(arguments)
    try:
        store = Store(typed.uri, folder=typed.folder).open(create=False)
        target = write(store, settings, typed.only or list(settings["sections"]), typed.file)
    except UserError as error:
        sys.exit(f"error: {error}")
    if target != typed.file:
        sys.exit(f"{typed.file} has more figures and is unchanged: compare it with {target}")
    print(f"look: {target}")


if __name__ == "__main__":
    main()
