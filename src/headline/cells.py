"""Runs that differ in nothing but their seed, put together: the cells that a headline figure is a mean over."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from src.core.errors import UserError
from src.headline.presets import ASIDE, deviations, is_below, other_system, rounded, said
from src.metrics.bootstrap import DifferentImagesError, gather
from src.metrics.formatting import count
from src.sweep.overrides import scan
from src.tracking import read
from src.tracking import read as history
from src.tracking.store import Store

SPLIT = "test"  # what is reported
RANDOM = "RANDOM, not pretrained"  # weights of a backbone
IMAGE_SIZE = "data.image_size"
ARM = "data.siblings"  # the parameter of src.data.splits
_AT_MOST = 3  # settings that a name tells beside the overrides
_TOLD_ELSEWHERE = (
    "experiment",
    "data",
    "data.split",
    "model",
    "model.image_size",
)  # of the overrides


@dataclass(frozen=True)
class ResultCell:
    """One configuration of a study, under all its seeds.

    Attributes:
        study: Its study's name.
        preset: Which system of a paper it is; empty if none.
        name: For people, such as "custom, 64 px".
        settings: The parameters that make it another cell than others, by key.
        split: As the runs are tagged, such as "image (leaking)".
        runs: Its finished runs in order of their seeds, as `src.tracking.read.runs` gives them; one
            a seed.
        frames: What each of them predicted on the test split; empty unless all did.
        problem: Why it is no headline figure; empty if it is one.
        changed: What it has set otherwise than its preset, beyond epochs and precision: it is
            another system.
        notes: What a reader must know of it.
    """

    study: str
    preset: str
    name: str
    settings: dict[str, str]
    split: str
    runs: pd.DataFrame
    frames: list[pd.DataFrame]
    problem: str
    changed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def seeds(self) -> list[int]:
        """Of the finished runs."""
        return [int(float(seed)) for seed in self.runs["tags.seed"]]

    @property
    def weights(self) -> str:
        """What the networks began with; said loudly where pretrained weights could have been meant."""
        names = sorted(set(texts(self.runs, "tags.weights")) - {""})
        backbone = texts(self.runs, "params.model.net.weights").ne("").any()
        return " and ".join(RANDOM if name == "random" and backbone else name for name in names)

    @property
    def split_mode(self) -> str:
        """The split without what is said of it: "image", "grouped"."""
        return self.split.split(" ")[0].rstrip(",")

    @property
    def arm(self) -> str:
        """Which arm of a measurement of leakage it is, "in" or "out"; empty for what is no such training."""
        value = self.settings.get(ARM, "")
        return "" if value == "null" else value

    def unmet(self, px: int | None, weights: str | None) -> list[str]:
        """What it is instead where another image size or pretrained weights were asked for, such as "64 px".

        Args:
            px: Image size; None: any.
            weights: "imagenet"; None: any.
        """
        size = self.settings.get(IMAGE_SIZE, "")
        began = ["random weights"] if weights and "random" in self.weights.lower() else []
        return began + ([f"{size or 'unknown'} px"] if px is not None and size != str(px) else [])

    def mean(self, metric: str) -> float:
        """Mean of a recorded metric over the seeds; NaN where one lacks it."""
        name = f"metrics.{metric}"
        return (
            float(self.runs[name].mean(skipna=False))
            if name in self.runs and len(self.runs)
            else float("nan")
        )


def cells(store: Store, studies: Sequence[str], needed: int) -> list[ResultCell]:
    """The configurations of studies, in order of their first run's start.

    Args:
        store: To read from.
        studies: Their names; one that does not exist has no cells.
        needed: Seeds that make a headline figure.
    """
    return [cell for study in studies for cell in _of_study(store, study, needed)]


def texts(frame: pd.DataFrame, column: str) -> pd.Series:
    """A column as text, empty where it is missing."""
    return (
        frame[column].fillna("").astype(str)
        if column in frame
        else pd.Series("", index=frame.index, dtype=str)
    )


def _of_study(store: Store, study: str, needed: int) -> Iterator[ResultCell]:
    found = read.runs(store, f"tags.study = '{study}' and tags.kind = 'run'").sort_values(
        "start_time", kind="stable"
    )
    if found.empty:
        return
    recorded = [
        str(name).removeprefix("params.") for name in found if str(name).startswith("params.")
    ]
    keys = [key for key in recorded if not any(is_below(key, aside) for aside in ASIDE)]
    columns = ["tags.preset", *(f"params.{key}" for key in keys)]
    # null as if it were not there: a key that is newer than some of the runs makes no other cell
    alike = pd.concat([texts(found, name).replace("null", "") for name in columns], axis=1)
    groups = found.groupby(alike.agg("\x1f".join, axis=1), sort=False)
    yield from _told_apart([_cell(store, study, members, keys, needed) for _, members in groups])


def _told_apart(found: Sequence[ResultCell]) -> Iterator[ResultCell]:
    """The cells of a study; those of one name and split get the settings in which they differ added to it."""
    for cell in found:
        others = [
            each
            for each in found
            if (each.name, each.split) == (cell.name, cell.split) and each is not cell
        ]
        keys = [
            key
            for key in cell.settings
            if any(_value(each, key) != _value(cell, key) for each in others)
        ]
        own = {key: cell.settings[key] or "not recorded" for key in keys}
        yield replace(cell, name=", ".join([cell.name, *_few(own)]))


def _value(cell: ResultCell, key: str) -> str:
    value = cell.settings[key]
    return "" if value == "null" else value


def _few(settings: dict[str, str]) -> list[str]:
    told = [said(key, value) for key, value in settings.items()]
    more = len(told) - _AT_MOST
    return [*told[:_AT_MOST], *([f"{count(more, 'setting')} more"] if more > 0 else [])]


def _cell(
    store: Store, study: str, members: pd.DataFrame, keys: Sequence[str], needed: int
) -> ResultCell:
    done = members[members["status"] == "FINISHED"]
    tested = (
        done[done["metrics.test/accuracy"].notna()] if "metrics.test/accuracy" in done else done[:0]
    )
    kept = tested[~tested["tags.seed"].duplicated(keep="last")]
    kept = kept.loc[pd.to_numeric(kept["tags.seed"]).sort_values().index] if len(kept) else kept
    problem = _too_few(members, kept, needed) or _not_alike(kept)
    frames: list[pd.DataFrame] = []
    if not problem:
        frames, problem = _predictions(store, kept)
    preset = texts(members, "tags.preset").iloc[0]
    settings = {key: texts(members, f"params.{key}").iloc[0] for key in keys}
    split = texts(kept if len(kept) else members, "tags.split").iloc[0]
    departing = deviations(preset, settings)
    changed = tuple(said(key, value) for key, value in departing.items() if other_system(key))
    name = _name(members, preset, departing)
    notes = _notes(members, tested, kept) if not problem else ()
    return ResultCell(study, preset, name, settings, split, kept, frames, problem, changed, notes)


def _notes(members: pd.DataFrame, tested: pd.DataFrame, kept: pd.DataFrame) -> tuple[str, ...]:
    lacking = _lacking(members, kept)
    further = sum(lacking.values())
    notes = []
    if further:
        have = "has" if further == 1 else "have"
        notes.append(f"{count(further, 'further seed')} {have} no test figure ({_listed(lacking)})")
    if len(kept) < len(tested):
        notes.append(
            f"{count(len(tested) - len(kept), 'run')} of a seed that was trained again left out"
        )
    if texts(kept, "tags.data_fingerprint").nunique() > 1:
        notes.append(
            "its seeds read copies of the data that differ in date, size or geometry; the images are the same"
        )
    return tuple(notes)


def _lacking(members: pd.DataFrame, kept: pd.DataFrame) -> dict[str, int]:
    """How many seeds have no test figure, by what became of their last run."""
    last = members[
        ~members["tags.seed"].duplicated(keep="last")
        & ~members["tags.seed"].isin(kept["tags.seed"])
    ]
    states = last["status"].str.lower().replace("finished", "not evaluated on the test split")
    return {str(state): int(number) for state, number in states.value_counts().sort_index().items()}


def _listed(lacking: dict[str, int]) -> str:
    return ", ".join(f"{number} {state}" for state, number in lacking.items())


def _too_few(members: pd.DataFrame, kept: pd.DataFrame, needed: int) -> str:
    if len(kept) >= needed:
        return ""
    lacking = _lacking(members, kept)
    return f"{len(kept)} of {needed} seeds" + (f" ({_listed(lacking)})" if lacking else "")


def _not_alike(kept: pd.DataFrame) -> str:
    if texts(kept, "tags.split_fingerprint").nunique() > 1:
        return (
            "its seeds saw different images or splits (tag split_fingerprint): they are not pooled"
        )
    if texts(kept, "tags.weights").nunique() > 1:
        return "its seeds began with different weights (tag weights): they are not pooled"
    return ""


def _predictions(store: Store, kept: pd.DataFrame) -> tuple[list[pd.DataFrame], str]:
    """What the runs predicted, and why they cannot be used together."""
    try:
        frames = [history.predictions(store, run_id, SPLIT) for run_id in kept["run_id"]]
        gather(frames, [f"seed {seed}" for seed in kept["tags.seed"]])
    except DifferentImagesError as error:
        return [], f"its seeds are not pooled: {error}"
    except UserError as error:
        return [], f"its test predictions cannot be read: {error}"
    return frames, ""


def _name(members: pd.DataFrame, preset: str, departing: dict[str, str]) -> str:
    """The preset's or the model's name, image size, and what else was set for this configuration."""
    first = members.iloc[0]
    parts = [preset.rpartition("/")[2] or str(first.get("tags.model", "") or "run")]
    size = texts(members, f"params.{IMAGE_SIZE}").iloc[0]
    parts += [f"{size} px"] if size else []
    typed = {
        key: value
        for key, value in scan(texts(members, "tags.overrides").iloc[0]).items()
        if key not in _TOLD_ELSEWHERE and not any(is_below(key, aside) for aside in ASIDE)
    }
    parts += [f"{key.rpartition('.')[2]}={rounded(value)}" for key, value in typed.items()]
    # what the whole study shares stands in no run's overrides
    parts += _few(
        {
            key: value
            for key, value in departing.items()
            if not any(is_below(key, each) for each in typed)
        }
    )
    return ", ".join(parts)
