"""Several sources as one data set, some of them for training only."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from PIL import Image

from src.core.errors import ConfigError
from src.data.source import Manifest, Source

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Joined(Source):
    """Sources with the same classes, or with classes that are mapped to those of the first.

    Ids and groups get the name of their source, "ham10000/ISIC_0024306"; the metadata column
    `source` holds that name. An image whose id an earlier source has is left out of the later one:
    ISIC 2019 contains HAM10000.

    Attributes:
        sources: By name; the first one defines the classes and their order.
        only_train: Names of sources whose images are in training only. The split, with its
            fractions, is of the images of all others.
        labels: Source -> its class -> class of the first source; null leaves its images out.
            Classes that are not named keep their name.
    """

    sources: Mapping[str, Any]
    only_train: Sequence[str] = ()
    labels: Mapping[str, Mapping[str, str | None]] | None = None

    name = "joined"

    def __post_init__(self) -> None:
        self._mapped = self.labels or {}
        for key, names in {"only_train": self.only_train, "labels": self._mapped}.items():
            if unknown := sorted(set(names) - set(self.sources)):
                listed = ", ".join(self.sources)
                raise ConfigError(key, f"must name sources ({listed}), but got {unknown[0]}")
        if len(self.sources) < 2 or set(self.only_train) == set(self.sources):
            raise ConfigError("sources", "must be two or more, one of them not in only_train")
        self.licence = " | ".join(f"{n}: {s.licence}" for n, s in self.sources.items() if s.licence)
        if all(source.published for source in self.sources.values()):
            published: Counter[str] = Counter()
            for name, source in self.sources.items():
                for label, count in source.published.items():
                    published[str(self._mapped.get(name, {}).get(label, label))] += count
            self.published = published

    def manifest(self) -> Manifest:
        """Join the lists of all sources; their metadata columns are kept."""
        self._lists = {name: source.manifest() for name, source in self.sources.items()}
        classes = next(iter(self._lists.values())).classes
        frames, ids = [], set[str]()
        for name, part in self._lists.items():
            label = self._labels(name, part.classes, classes)
            repeated = part.frame["image_id"].isin(ids)
            if repeated.any():
                log.warning("%s: %d images of an earlier source are left out", name, repeated.sum())
            ids |= set(part.frame["image_id"])
            frame = part.frame.assign(label=label.loc[part.frame["label"]].to_numpy())
            frame = frame.assign(source=name, source_row=range(len(frame)))
            frame["only_train"] = name in self.only_train
            for column in ("image_id", "group"):
                frame[column] = f"{name}/" + frame[column]
            frames.append(frame[~repeated & frame["label"].notna()].astype({"label": "int64"}))
        grouped = {part.grouped_by for part in self._lists.values()}
        return Manifest(
            "+".join(self.sources),
            classes,
            pd.concat(frames).sort_values("image_id", kind="stable", ignore_index=True),
            grouped.pop() if len(grouped) == 1 else "group",
        )

    def _labels(self, name: str, native: Sequence[str], classes: Sequence[str]) -> pd.Series:
        """The label of each native class of a source; missing for a class that is left out."""
        names = [self._mapped.get(name, {}).get(label, label) for label in native]
        if unknown := [label for label in names if label not in (*classes, None)]:
            way = f"map it by 'data.source.labels={{{name}: {{{unknown[0]}: <class>}}}}', "
            way += "to null to leave its images out"
            listed = ", ".join(classes)
            raise ConfigError("labels", f"{name} has {unknown[0]}, none of {listed}; {way}")
        return pd.Series([None if n is None else classes.index(n) for n in names], dtype="Int64")

    def picture(self, manifest: Manifest, row: int) -> Image.Image:
        """Decode one image as its source does."""
        name = str(manifest.frame.at[row, "source"])
        number = int(manifest.frame["source_row"].iloc[row])
        picture: Image.Image = self.sources[name].picture(self._lists[name], number)
        return picture

    def stamps(self, manifest: Manifest) -> list[str]:
        """The stamps of all sources."""
        stamps = {name: self.sources[name].stamps(part) for name, part in self._lists.items()}
        pairs = zip(manifest.frame["source"], manifest.frame["source_row"], strict=True)
        return [stamps[name][row] for name, row in pairs]
