"""The record of docs/results.md: runs and their predictions, in two Parquet files."""

import re
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from src.core.config import WITHOUT_EFFECT
from src.core.files import atomic_file
from src.tracking import read
from src.tracking.read import texts
from src.tracking.store import Store

# Parameters that do not make another configuration.
ASIDE = ("seed", "origin", "data.root", "data.source.root", *WITHOUT_EFFECT)
LOCAL = ("tracking.", "hydra.run", "hydra.sweep.", "study=")
COSTS = ("efficiency/params", "efficiency/flops", "efficiency/size_mb", "efficiency/latency_ratio")
TAGS = (
    *("chosen_by", "compression", "data_share", "device", "fixed_overrides", "git_commit"),
    *("git_dirty", "kind", "model", "origin", "overrides", "preset", "seed", "split"),
    *("split_fingerprint", "study", "sweeps", "weights"),
)
SPLITS = ("val", "test")
LEAST = 1e-7  # probability; smaller ones are recorded as this one


@dataclass(frozen=True)
class Record:
    """Runs as `read.runs` returns them, and their predictions by run id and split."""

    runs: pd.DataFrame
    predictions: Mapping[tuple[str, str], pd.DataFrame]

    @classmethod
    def of_store(cls, store: Store, studies: Collection[str]) -> "Record":
        """The runs of some studies, and those that compressed ones were made from."""
        recorded = read.runs(store)
        ended = (recorded["status"] == "FINISHED") | (texts(recorded, "tags.kind") == "study")
        chosen = texts(recorded, "tags.study").isin(studies) & ended
        origins = texts(recorded[chosen], "tags.origin")
        runs = recorded[chosen | recorded["run_id"].isin(origins)]
        runs = runs.sort_values("start_time", kind="stable", ignore_index=True)
        tested = texts(runs, "metrics.test/accuracy") != ""
        ids = runs["run_id"][tested & (texts(runs, "tags.kind") == "run")]
        predictions = {
            (i, split): read.predictions(store, i, split) for i in ids for split in SPLITS
        }
        for tag in {"tags.overrides", "tags.fixed_overrides"} & set(runs):
            runs = runs.assign(**{tag: texts(runs, tag).map(portable)})
        columns = [*read.COLUMNS, *(f"tags.{tag}" for tag in TAGS)]
        columns += [f"metrics.{name}" for name in (*COSTS, "test/accuracy", "data/images/train")]
        more = (c for c in map(str, runs) if c.startswith(("params.", "metrics.best/val/")))
        columns += [c for c in more if not f"{c}.".startswith(tuple(f"params.{a}." for a in ASIDE))]
        runs = runs[[column for column in columns if column in runs]].dropna(axis=1, how="all")
        return cls(runs, predictions)

    @classmethod
    def of_files(cls, folder: Path) -> "Record":
        """What `save` has written."""
        runs, table = (pd.read_parquet(folder / f"{n}.parquet") for n in ("runs", "predictions"))
        predictions = {}
        for key, part in table.groupby(["run_id", "split"], observed=True):
            frame = part.drop(columns=["run_id", "split"]).dropna(axis=1, how="all")
            frame = frame.astype(dict.fromkeys(("image_id", "group", "label"), "str"))
            run_id, split = map(str, key)
            predictions[run_id, split] = decode(frame.reset_index(drop=True))
        return cls(runs, predictions)

    def rounded(self) -> "Record":
        """The record with probabilities whose logarithms have half precision, as in the file."""
        return replace(
            self, predictions={k: decode(encode(f)) for k, f in self.predictions.items()}
        )

    def joined(self, newer: "Record") -> "Record":
        """Both; of a study that both have, the newer runs only."""
        studies = set(texts(newer.runs, "tags.study"))
        older = self.runs[~texts(self.runs, "tags.study").isin(studies)]
        older = older[~older["run_id"].isin(newer.runs["run_id"])]
        old = {
            key: frame for key, frame in self.predictions.items() if key[0] in set(older["run_id"])
        }
        runs = pd.concat([older, newer.runs], ignore_index=True)
        return Record(runs, {**old, **newer.predictions})

    def save(self, folder: Path) -> None:
        """Write runs.parquet and predictions.parquet."""
        parts = [encode(f).assign(run_id=r, split=s) for (r, s), f in self.predictions.items()]
        table = pd.concat(parts, ignore_index=True)
        words = [*("run_id", "split", "image_id", "group", "label")]
        for name, frame in {"runs": self.runs, "predictions": table}.items():
            frame = frame.astype(dict.fromkeys(words, "category")) if name != "runs" else frame
            with atomic_file(folder / f"{name}.parquet", "the record", make_folder=True) as draft:
                frame.to_parquet(draft, compression="zstd", index=False)


def encode(frame: pd.DataFrame) -> pd.DataFrame:
    """Predictions with the logarithms of the probabilities in half precision."""
    logarithms = frame.filter(regex="^p/").clip(lower=LEAST).apply(np.log)
    return frame.assign(**logarithms.astype(np.float16))


def decode(frame: pd.DataFrame) -> pd.DataFrame:
    """The inverse of `encode`, in single precision; the probabilities of an image sum to 1."""
    probability = frame.filter(regex="^p/").astype(np.float32).apply(np.exp)
    return frame.assign(**probability.div(probability.sum(axis=1), axis=0))


def portable(overrides: str) -> str:
    """A recorded command line without what concerns one machine."""
    items = [item for item in shlex.split(overrides) if not item.startswith(LOCAL)]
    return shlex.join(re.sub("=/.*", "=...", item) for item in dict.fromkeys(items))
