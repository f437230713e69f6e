"""The classes of one data set in the words of a net that was trained on another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
import yaml

from src.errors import ConfigError

REST = "rest"  # in a mapping: none of the classes that the mapping's other lines name
AUTO = "auto"
Unknown = Literal["refuse", "list"]


@dataclass(frozen=True)
class Labels:
    """What each class of a data set is to a net.

    Attributes:
        name: Of the file in conf/labels, its path, or "identity".
        to: Class of the data set -> class of the net, or `REST`. Those that are missing are unknown.
        classes: Between which the evaluation decides, in label order: the net's, or `REST` and the classes that the
            mapping asks for, where it has a `REST`.
    """

    name: str
    to: Mapping[str, str]
    classes: tuple[str, ...]

    def named(self, labels: pd.Series) -> pd.Series:
        """Labels in the evaluation's words; missing where the class is unknown."""
        return labels.map(dict(self.to))

    def told(self, predictions: pd.DataFrame) -> pd.DataFrame:
        """Predictions of the net over its own classes, as predictions over `classes`.

        Args:
            predictions: With `label` (of the net's classes, or already of `classes`) and p/<class> columns. The rest's
                probability is the sum over the classes that are not asked for.
        """
        if REST not in self.classes:
            return predictions
        others = predictions.drop(columns=[f"p/{name}" for name in self.classes if f"p/{name}" in predictions])
        others = others[[column for column in others if str(column).startswith("p/")]]
        found = predictions.drop(columns=others.columns)
        found["label"] = found["label"].where(found["label"].isin(self.classes), REST)
        found.insert(list(found).index("label") + 1, f"p/{REST}", others.sum(axis=1))
        return found


def choose(wanted: str, given: Sequence[str], own: Sequence[str], folder: Path, unknown: Unknown = "refuse") -> Labels:
    """The mapping from the classes of a data set to those of a net.

    Args:
        wanted: Name of a file in `folder`, a path that ends in .yaml, or "auto": by name where the net has all of the
            classes, else the one file that knows all of them and speaks of the net's.
        given: Classes of the data set.
        own: Classes of the net.
        folder: Of the mappings.
        unknown: "list": "auto" goes by name also where the net has only some of the classes.

    Raises:
        ConfigError: No such mapping, or none or several that fit.
    """
    if wanted != AUTO:
        return _of(wanted, _read(wanted, folder), own)
    if set(given) <= set(own):
        return Labels("identity", {name: name for name in given}, tuple(own))
    known = {path.stem: _read(path.stem, folder) for path in sorted(folder.glob("*.yaml"))}
    able = [name for name, to in known.items() if set(given) <= set(to) and set(to.values()) <= {*own, REST}]
    exact = [name for name in able if set(given) == set(known[name])] or able
    if len(exact) == 1:
        return _of(exact[0], known[exact[0]], own)
    if not exact and unknown == "list" and set(given) & set(own):
        return Labels("identity", {name: name for name in given if name in own}, tuple(own))
    told = f"the data have {', '.join(given)}, the net {', '.join(own)}"
    if exact:
        raise ConfigError("labels", f"{' and '.join(exact)} both fit; name one ({told})")
    strange = ", ".join(name for name in given if name not in own)
    raise ConfigError(
        "labels",
        f"no mapping for {strange}: {told}; write one as conf/labels/<name>.yaml and name it, or leave those images "
        "out with unknown=list",
    )


def refuse_unknown(labels: Labels, names: pd.Series) -> None:
    """Raise if images have a class that the mapping does not know.

    Args:
        labels: The mapping.
        names: Class of each image in the data set's words.

    Raises:
        ConfigError: The message lists the classes with their numbers of images.
    """
    counts = names[~names.isin(list(labels.to))].value_counts()
    if len(counts):
        listed = ", ".join(f"{name} ({number:,} images)" for name, number in counts.items())
        raise ConfigError(
            "labels", f"{labels.name} does not know {listed}; add to the mapping, or leave them out with unknown=list"
        )


def _of(name: str, to: dict[str, str], own: Sequence[str]) -> Labels:
    strange = sorted(set(to.values()) - {*own, REST})
    if strange:
        raise ConfigError(
            "labels", f"{name} speaks of {', '.join(strange)}, which the net does not have; it has {', '.join(own)}"
        )
    if REST not in to.values():
        return Labels(name, to, tuple(own))
    asked = tuple(each for each in own if each in to.values())
    if not asked or REST in own:
        raise ConfigError("labels", f"{name} must name a class of the net beside {REST}, and the net have no {REST}")
    return Labels(name, to, (REST, *asked))


def _read(name: str, folder: Path) -> dict[str, str]:
    path = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        known = ", ".join([AUTO, *sorted(each.stem for each in folder.glob("*.yaml"))])
        raise ConfigError("labels", f"{name}: no such mapping; there are {known}, or name a .yaml file") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError("labels", f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not content:
        raise ConfigError("labels", f"{path} must have lines like `ak: akiec`: the data's class and the net's")
    strange = [each for each in (*content, *content.values()) if not _is_name(each)]
    if strange:
        listed = ", ".join(dict.fromkeys(map(repr, strange)))
        raise ConfigError("labels", f"{path} has {listed} where a class is named; put names like yes and no in quotes")
    return {str(given): str(own) for given, own in content.items()}


def _is_name(value: object) -> bool:
    """Text or a number; to YAML a bare yes or no is neither."""
    return isinstance(value, str | int | float) and not isinstance(value, bool)
