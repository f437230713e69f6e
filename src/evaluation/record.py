"""What an evaluation found: pages, pictures and MLflow only show it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd

from src.clinical.record import ClinicalAudit
from src.trained.runs import Evaluated

Images = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of a run.

    Attributes:
        evaluated: The run.
        data: Name of the external data; empty: it is of the run's own splits.
        audits: Clinical audits by what was predicted, the most important first.
        notes: Plain sentences that a reader needs: data, overlap, geometry, what is absent. What speaks against a
            verdict is among the warnings of its audit.
        drop: From the own test (or, where there is none, validation) to the external data, see `drop.compared`.
        compared_with: Which own split that is.
        by_original_label: See `drop.by_original_label`.
        overlap: See `overlap.find`.
        mapping: Original classes and what they count as: original_label, counts_as (empty: left out), images.
        predictions: Of the external images, a frame a net, by its seed.
        tags: Of the external evaluation's run.
        examples: By class, some own and some external images, uint8 (n, S, S, 3).
        choices: What is not as by default, such as "part=val".
    """

    evaluated: Evaluated
    data: str
    audits: Mapping[str, ClinicalAudit]
    notes: tuple[str, ...]
    drop: pd.DataFrame = field(default_factory=pd.DataFrame)
    compared_with: str = ""
    by_original_label: pd.DataFrame = field(default_factory=pd.DataFrame)
    overlap: pd.DataFrame = field(default_factory=pd.DataFrame)
    mapping: pd.DataFrame = field(default_factory=pd.DataFrame)
    predictions: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    examples: Mapping[str, tuple[Images, Images]] = field(default_factory=dict)
    choices: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """One line for people."""
        chosen = f" ({', '.join(self.choices)})" if self.choices else ""
        return f"{self.evaluated.title} on {self.data or 'its own ' + self.evaluated.data}{chosen}"

    @property
    def folder(self) -> str:
        """Name of its folder: other choices, another folder."""
        chosen = (each.replace("=", "-") for each in self.choices)
        return "_".join(["evaluation", self.evaluated.run_id[:8], self.data or "own", *chosen])

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """Tables that have rows, by the names of their files."""
        found = {
            "drop": self.drop,
            "by_original_label": self.by_original_label,
            "labels": self.mapping,
            "overlap": self.overlap,
        }
        return {name: table for name, table in found.items() if len(table)}
