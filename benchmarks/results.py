"""docs/results.md: every figure is computed from the recorded predictions in docs/results/.

    python -m benchmarks.results          write the page; needs no run
    python -m benchmarks.results verify   fail unless the page is the one that they give
    python -m benchmarks.results record [--folder mlruns] [--uri URI]
                                          take the studies from a run store, then write the page

Trains nothing. The sections and their studies are in results.yaml. `record` replaces the runs of
the studies that the store has and keeps all others.
"""

import argparse
import itertools
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from benchmarks.results_record import ASIDE, COSTS, Record, portable
from src.core.errors import UserError
from src.core.files import atomic_file
from src.core.tables import Table, escape_markdown
from src.metrics.bootstrap import gather, intervals
from src.metrics.decision_rules import with_decisions
from src.metrics.paired import paired_difference
from src.metrics.registry import melanoma_of, parse_limits, short_label
from src.tracking.read import texts
from src.tracking.store import Store

SETTINGS = Path(__file__).with_suffix(".yaml")
PAGE, FOLDER = Path("docs/results.md"), Path("docs/results")
# Parameters that a column of the table shows.
SHOWN = ("data.split", "data.siblings", "data.image_size")
ROUNDING = 1e-7  # one more image of 10,000 changes any metric by more
SIDE_BY_SIDE = 1.03  # factor between the drawn costs of candidates that cost about the same
NOTES = """
- A figure is the mean over the seeds on the test split, which chose nothing. It is computed from
  the predictions in `docs/results/` (half precision): `python -m benchmarks.results verify`.
- ±: standard deviation over the seeds.
- [low, high]: {level:.0%} interval from {samples} bootstrap samples that draw whole lesions or
  patients, with the seeds' share by Student's t; of a recall, specificity or accuracy with fewer
  than 10 lesions right or wrong, and a balanced accuracy or AUROC with fewer of a class, the wider
  of it and the exact one.
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
    frames: list[pd.DataFrame]  # predictions on test
    val: list[pd.DataFrame]
    problem: str
    decisions: dict[str, list[pd.DataFrame]] = field(init=False, default_factory=dict)

    def tag(self, name: str) -> str:
        """A tag of the runs, "a and b" where they differ, "" without."""
        return " and ".join(sorted(set(texts(self.runs, f"tags.{name}")) - {""}))

    def mean(self, metric: str) -> float:
        """Mean of a recorded metric over the seeds; NaN where one lacks it."""
        name = f"metrics.{metric}"
        return float(self.runs[name].mean(skipna=False)) if name in self.runs else np.nan

    def decided(self, rule: str) -> list[pd.DataFrame]:
        """The predictions on test with the decisions of a rule that is fitted on validation."""
        if rule not in self.decisions:
            pairs = zip(self.frames, self.val, strict=True)
            decided = [with_decisions(test, rule, val) if rule else test for test, val in pairs]
            self.decisions[rule] = decided
        return self.decisions[rule]

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


def read_cells(record: Record, study: str, seeds: int) -> list[Cell]:
    """The configurations of a study, in order of their first run's start."""
    of_study = (texts(record.runs, "tags.study") == study) & (record.runs["tags.kind"] == "run")
    runs = record.runs[of_study]
    keys = [str(name).removeprefix("params.") for name in runs if str(name).startswith("params.")]
    keys = [key for key in keys if not f"{key}.".startswith(tuple(f"{part}." for part in ASIDE))]
    # null is like absent: a key that is newer than some runs makes no other configuration.
    values = pd.DataFrame({key: texts(runs, f"params.{key}").replace("null", "") for key in keys})
    groups = values.assign(preset=texts(runs, "tags.preset")).agg("\x1f".join, axis=1)
    parts = runs.groupby(groups, sort=False) if len(runs) else ()
    cells = [read_cell(record, study, part, values.loc[part.index[0]], seeds) for _, part in parts]
    named = []
    for cell in cells:  # with the settings in its name in which it differs from its namesakes
        twins = [other.settings for other in cells if other.name == cell.name]
        differing = [key for key in keys if len({settings[key] for settings in twins}) > 1]
        extra = [f"{key}={cell.settings[key] or 'null'}" for key in differing if key not in SHOWN]
        named.append(replace(cell, name=", ".join([cell.name, *extra[:3]])))
    return named


def read_cell(
    record: Record, study: str, members: pd.DataFrame, settings: pd.Series, seeds: int
) -> Cell:
    """One configuration with its newest tested run of each seed."""
    tested = (members["status"] == "FINISHED") & (texts(members, "metrics.test/accuracy") != "")
    runs = members[tested].drop_duplicates("tags.seed", keep="last").sort_values("tags.seed")
    problem, frames, val = f"{len(runs)} of {seeds} seeds" * (len(runs) < seeds), [], []
    for tag in ("split_fingerprint", "weights"):
        if texts(runs, f"tags.{tag}").nunique() > 1:
            problem = f"its seeds differ in the tag {tag}"
    if not problem:
        try:
            frames = [record.predictions[run_id, "test"] for run_id in runs["run_id"]]
            val = [record.predictions[run_id, "val"] for run_id in runs["run_id"]]
            gather(frames, [f"seed {seed}" for seed in runs["tags.seed"]])
        except UserError as error:
            problem = f"its seeds are not pooled: {error}"
    preset, model = (texts(members, f"tags.{tag}").iloc[0] for tag in ("preset", "model"))
    size = settings.get("data.image_size", "")
    name = (preset.rpartition("/")[2] or model) + (f", {size} px" if size else "")
    runs = runs if len(runs) else members
    return Cell(study, preset, name, dict(settings), runs, frames, val, problem)


def column(metric: str) -> str:
    """The head of a metric's column, with its decision rule: "<metric>@<rule>"."""
    name, _, rule = metric.partition("@")
    return short_label(name) + f", decision={rule}" * bool(rule)


def recorded(metric: str, frame: pd.DataFrame) -> str | None:
    """The metric's name in these predictions, if they have it: melanoma has several names."""
    metric = metric.partition("@")[0]
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
    names = {metric: recorded(metric, cell.frames[0]) for metric in section["metrics"]}
    values: dict[str, np.ndarray] = {}
    for rule in {metric.partition("@")[2] for metric in names}:  # drawn once for its metrics
        of_rule = {m: name for m, name in names.items() if name and m.partition("@")[2] == rule}
        if of_rule:
            table = intervals(cell.decided(rule), list(of_rule.values()), *bootstrap)
            columns = table[["estimate", "low", "high", "seed_sd"]].to_numpy(dtype=float)
            values |= dict(zip(of_rule, columns, strict=True))
    for metric in section["metrics"]:
        value, low, high, spread = values.get(metric, np.full(4, np.nan))
        text = "-" if np.isnan(value) else f"{value:.3f}"
        text += f" ± {spread:.3f}" * (not np.isnan(spread))
        row[column(metric)] = text + f" [{low:.3f}, {high:.3f}]" * (not np.isnan(low))
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
    rule, titles = metric.partition("@")[2], (pair.first.name, pair.second.name)
    frames = pair.first.decided(rule), pair.second.decided(rule)
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
        row[column(metric)] = difference(pair, metric, bootstrap)
    for metric in COSTS:
        costs = (pair.first.mean(metric), pair.second.mean(metric))
        row[f"{short_label(metric)} ratio"] = (
            f"{costs[0] / costs[1]:.2g}" if all(c > 0 for c in costs) else "-"
        )
    return row


def select_pairs(
    record: Record, section: Mapping[str, Any], named_pairs: Any, cells: list[Cell]
) -> Iterator[Pair]:
    """The comparisons of a section; `named_pairs`: pairs of presets."""
    kind = section["kind"]
    if kind == "compressed":  # each net minus the net that it was made from
        for cell in cells:
            ids = list(texts(cell.runs, "tags.origin"))
            frames, val = ([record.predictions[i, split] for i in ids] for split in ("test", "val"))
            origins = record.runs.set_index("run_id").loc[ids].reset_index()
            parts = [texts(origins, f"tags.{tag}").iloc[0] for tag in ("model", "compression")]
            name = " after ".join(part for part in parts if part) + f" ({ids[0][:8]})"
            second = Cell(cell.study, "", name, cell.settings, origins, frames, val, "")
            yield Pair(cell, second, made_from=True)
    elif kind == "better":  # the best candidate minus the systems, the others minus it
        yield from pairs_of_candidates(section, cells)
    elif kind == "leakage":
        for a in (cell for cell in cells if cell.settings["data.siblings"] == "in"):
            same = {**a.settings, "data.siblings": "out"}
            for b in (cell for cell in cells if (cell.settings, cell.study) == (same, a.study)):
                yield from pairs_by_siblings(a, b)
    else:
        for a, b in itertools.product(cells, cells):
            if (a.preset, b.preset) in named_pairs and a.tag("split") == b.tag("split"):
                yield Pair(a, b)


def pairs_of_candidates(section: Mapping[str, Any], cells: list[Cell]) -> Iterator[Pair]:
    """The best candidate minus each system, and the other candidates minus the best one."""
    systems = [cell for cell in cells if system_of(section, cell) is not None]
    candidates = [cell for cell in cells if system_of(section, cell) is None]
    for best in candidates[:1]:
        for a, b in [(best, cell) for cell in systems] + [(c, best) for c in candidates[1:]]:
            if a.tag("split") == b.tag("split"):
                yield Pair(a, b)


def pairs_by_siblings(a: Cell, b: Cell) -> Iterator[Pair]:
    """Arm "in" minus arm "out": on all test images, those with siblings in training, the others."""
    trained = [cell.mean("data/images/train") for cell in (a, b)]
    if trained[0] != trained[1]:
        raise UserError(f"{a.name}: the arms have {trained} training images")
    a, b = replace(a, name=f"{a.name}: in"), replace(b, name="out")
    yield Pair(a, b)
    for label, value in (("with siblings", True), ("without", False)):
        parts = [[f[f["has_sibling"].eq(value)] for f in cell.frames] for cell in (a, b)]
        first, second = replace(a, frames=parts[0]), replace(b, frames=parts[1])
        if images := len(parts[0][0]):
            yield Pair(first, second, f"{label} ({images:,})")


def system_of(section: Mapping[str, Any], cell: Cell) -> int | None:
    """Place of the section's system that a configuration is; None: a candidate."""
    for position, system in enumerate(section.get("systems", [])):
        if (system["preset"], system.get("study", cell.study)) == (cell.preset, cell.study):
            return position
    return None


def select(section: Mapping[str, Any], cells: list[Cell]) -> list[Cell]:
    """The configurations that a section shows: systems in their order, candidates by validation."""
    is_leakage = section["kind"] == "leakage"
    cells = [cell for cell in cells if bool(cell.settings.get("data.siblings")) == is_leakage]
    cells = [c for c in cells if c.tag("split").startswith(section.get("split", ""))]
    systems = [cell for cell in cells if system_of(section, cell) is not None]
    systems.sort(key=lambda cell: system_of(section, cell) or 0)
    candidates = [cell for cell in cells if system_of(section, cell) is None]
    if section["kind"] != "better":
        return systems + candidates
    quality = f"best/val/{section['metrics'][0]}"
    candidates = [c for c in candidates if c.study in section["studies"] and c.mean(quality) >= 0]
    for limit in parse_limits(section):
        candidates = [cell for cell in candidates if limit.holds(cell.mean(limit.metric))]
    ranked = sorted(candidates, key=lambda cell: -cell.mean(quality))
    return ranked[: section.get("candidates", 3)] + systems


def origin(record: Record, cells: Sequence[Cell]) -> list[str]:
    """Commands, commits, data, devices and dates of the runs of some cells."""
    lines = []
    for study in dict.fromkeys(cell.study for cell in cells):
        of_study = texts(record.runs, "tags.study") == study
        parents = record.runs[of_study & (record.runs["tags.kind"] == "study")]
        runs = pd.concat([cell.runs for cell in cells if cell.study == study])
        commands = list(texts(runs, "tags.overrides").unique())
        if len(parents):
            tags = [texts(parents, f"tags.{tag}").iloc[-1] for tag in ("sweeps", "fixed_overrides")]
            name = f"sweeps={tags[0]}" if tags[0] else f"hydra.sweeper.study_name={study}"
            commands = [f"-m {name} {tags[1]}"]
        alike: dict[str, list[str]] = {}  # that differ in the seed alone
        for text in map(portable, commands):
            alike.setdefault(re.sub(r"(?<!\S)seed=\d+", "", text), []).append(text)
        for first, *more in alike.values():
            also = [f", {seed}" for text in more for seed in re.findall(r"(?<!\S)seed=\d+", text)]
            lines.append(f"Command: `python -m src.train {first}`{''.join(also)}")
    runs = pd.concat([cell.runs for cell in cells]).drop_duplicates("run_id")
    dirty = texts(runs, "tags.git_dirty").str.lower().map({"true": " (changed)"}).fillna("")
    columns = {"Data": texts(runs, "tags.data_share")}
    columns |= {"Image size, px": texts(runs, "params.data.image_size")}
    columns |= {"Chosen by": texts(runs, "tags.chosen_by"), "Device": texts(runs, "tags.device")}
    columns |= {"Commit": texts(runs, "tags.git_commit").str[:7] + dirty}
    for head, values in columns.items():
        counts = values.replace("", "not recorded").value_counts(sort=False).items()
        listed = "; ".join(f"{value} ({number} runs)" for value, number in counts)
        lines.append(f"{head}: {escape_markdown(listed)}")
    dates = f"{runs['start_time'].min():%Y-%m-%d} to {runs['end_time'].max():%Y-%m-%d}"
    return [*lines, f"Recorded: {dates}, {len(runs)} runs"]


def all_cells(
    record: Record, section: Mapping[str, Any], settings: Mapping[str, Any]
) -> list[Cell]:
    """The recorded configurations of all studies that a section names, by its labels."""
    others = (system.get("study") for system in section.get("systems", []))
    studies = dict.fromkeys([*section["studies"], *filter(None, others)])
    seeds = section.get("seeds", settings["seeds"])
    labels = section.get("labels", {})
    cells = []
    for cell in (cell for study in studies for cell in read_cells(record, study, seeds)):
        ids = [str(run_id)[:8] for run_id in cell.runs["run_id"]]
        name = next((labels[run_id] for run_id in ids if run_id in labels), cell.name)
        for source, prefix in section.get("images", {"": ""}).items():
            frames = [frame[frame["image_id"].str.startswith(prefix)] for frame in cell.frames]
            cells.append(replace(cell, name=f"{name}{source}", frames=frames))
    return cells


def render(record: Record, section: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """A section of the page; empty without figures."""
    bootstrap = [settings[key] for key in ("samples", "seed", "level")]
    systems = section.get("systems", [])
    recorded_cells = all_cells(record, section, settings)
    cells = select(section, recorded_cells)
    ready = [cell for cell in cells if not cell.problem]
    if not ready:
        return ""
    parts = [f"## {section['title']}", " ".join(section.get("about", "").split())]
    rows, notes = [], []
    named_pairs = {(first, second) for first, second in section.get("differences", [])}
    try:
        pairs = list(select_pairs(record, section, named_pairs, ready))
    except UserError as error:
        pairs, notes = [], [f"No differences: {error}"]
    for pair in pairs:
        try:
            rows.append(pair_row(pair, section, bootstrap))
        except UserError as error:
            notes.append(f"{pair.first.name} minus {pair.second.name}: {error}")
    origins = {pair.second.name: pair.second for pair in pairs if pair.made_from}
    table_rows = [cell_row(cell, section, bootstrap) for cell in (*origins.values(), *ready)]
    parts += [Table(pd.DataFrame(table)).to_markdown() for table in (table_rows, rows) if table]
    commands = section["studies"]
    notes += [f"{c.name}, {c.tag('split')}: {c.problem}" for c in cells if c.problem]
    recorded_studies = {cell.study for cell in recorded_cells}
    for study in (name for name in commands if name not in recorded_studies):
        notes.append(f"{study}: no run; record it by {commands[study]}")
    for system in systems:
        if not any(cell.is_system(system) for cell in ready):
            command = system.get("command", next(iter(commands.values())))
            notes.append(f"{system['preset']}: no figure; record it by {command}")
    lines = [*(f"Missing: {escape_markdown(note)}" for note in notes), *origin(record, ready)]
    return "\n\n".join(part for part in [*parts, "\n".join(f"- {line}" for line in lines)] if part)


def page(record: Record, settings: Mapping[str, Any]) -> str:
    """The page of a record; its first line says how it is made."""
    head = "# Results\n\nWritten by `python -m benchmarks.results`; not by hand."
    sections = [render(record, section, settings) for section in settings["sections"].values()]
    parts = [
        head,
        NOTES.format(**settings).strip(),
        settings["top"].strip(),
        *filter(None, sections),
    ]
    return "\n\n".join(parts) + "\n"


def picture(record: Record, settings: Mapping[str, Any], file: Path) -> None:
    """Accuracy on test against multiply-adds: what the paper prints, and what is recorded here.

    Candidates have one colour, the first on validation another; references carry their names.
    Candidates of about one cost are drawn side by side.
    """
    import matplotlib.pyplot as plt

    from src.reporting.style import CYCLE

    axes = plt.figure(figsize=(6, 4.2), layout="constrained").gca()
    printed, n_candidates = {}, 0
    for name, metric in settings["picture"].items():
        section = settings["sections"][name]
        cells = select(section, all_cells(record, section, settings))
        for cell in (cell for cell in cells if not cell.problem):
            bootstrap = [settings[key] for key in ("samples", "seed", "level")]
            table = intervals(cell.decided(metric.partition("@")[2]), ["accuracy"], *bootstrap)
            value, low, high = table[["estimate", "low", "high"]].to_numpy(dtype=float)[0]
            at, errors = cell.mean("efficiency/flops"), [[value - low], [high - value]]
            if system_of(section, cell) is None:
                at *= SIDE_BY_SIDE ** ((n_candidates + 1) // 2 * (-1) ** n_candidates)
                group = min(n_candidates, 1)
                label = ("candidate that is best on validation", "other candidate", None)
                style: dict[str, Any] = {"label": label[min(n_candidates, 2)], "fmt": "o"}
                n_candidates += 1
            else:
                group, style = 2, {"fmt": "s"}
                text: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8}
                axes.annotate(
                    f"{cell.name}, {cell.tag('split')}", (at, value), xytext=(7, -3), **text
                )
            style |= {"color": CYCLE[group], "zorder": 4 - group}
            axes.errorbar([at], [value], errors, markersize=5, elinewidth=1, **style)
        for system in section.get("systems", []):
            if {"accuracy", "efficiency/flops"} <= set(values := system.get("printed", {})):
                printed[values["efficiency/flops"], values["accuracy"]] = system["preset"]
    points = np.array(list(printed))
    axes.plot(*points.T, "kx", label="printed by Mamun et al., split not described")
    axes.set(xscale="log", xlabel="multiply-adds (fewer are better)")
    axes.set_ylabel("accuracy on test (more is better)")
    axes.legend(
        fontsize=8,
        loc="upper center",
        title="bars: 95% intervals; similar costs side by side",
        title_fontsize=8,
    )
    axes.grid(visible=True, alpha=0.3)
    with atomic_file(file, "the picture") as draft:
        axes.figure.savefig(draft, format="png", dpi=150)  # type: ignore[union-attr]
    plt.close("all")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("action", nargs="?", choices=("write", "verify", "record"), default="write")
    parser.add_argument("--docs", type=Path, default=PAGE.parent, help="folder of the page")
    parser.add_argument("--folder", default="mlruns")
    parser.add_argument("--uri")
    typed = parser.parse_args(arguments)
    settings, folder = yaml.safe_load(SETTINGS.read_text()), typed.docs / FOLDER.name
    sections = settings["sections"].values()
    studies = {study for section in sections for study in section["studies"]}
    studies |= {
        s["study"] for section in sections for s in section.get("systems", []) if "study" in s
    }
    try:
        if typed.action == "record":
            newer = Record.of_store(
                Store(typed.uri, folder=typed.folder).open(create=False), studies
            )
            if newer.runs.empty:
                raise UserError(
                    f"{typed.uri or typed.folder} has no run of {', '.join(sorted(studies))}"
                )
            has_record = (folder / "runs.parquet").is_file()
            (Record.of_files(folder).joined(newer) if has_record else newer).save(folder)
        text, file = page(Record.of_files(folder), settings), typed.docs / PAGE.name
    except (UserError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    if typed.action == "verify":
        sys.exit(None if file.read_text() == text else f"{file} is not what {folder} gives")
    with atomic_file(file, "the page", make_folder=True) as draft:
        draft.write_text(text)
    if settings.get("picture"):
        picture(Record.of_files(folder), settings, folder / "front.png")
    print(f"look: {file}")


if __name__ == "__main__":
    main()
