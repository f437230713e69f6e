"""Made-up predictions for the tests of the clinical audit."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from hypothesis import strategies as st


def frame(
    probability: np.ndarray,
    target: np.ndarray,
    names: Sequence[str],
    group: np.ndarray | None = None,
) -> pd.DataFrame:
    """Recorded predictions; without `group` every image is a separate lesion."""
    number = np.arange(len(target))
    table = pd.DataFrame({"image_id": [f"i{image:04d}" for image in number]})
    table["group"] = [f"g{name}" for name in (number if group is None else group)]
    table["label"] = [names[label] for label in target]
    for column, name in enumerate(names):
        table[f"p/{name}"] = probability[:, column].astype(np.float32)
    return table


def answers(right: np.ndarray, group: Sequence[object] | None = None) -> pd.DataFrame:
    """Classes nv and mel in turn; each image is predicted right or wrong, with probability 0.9."""
    target = np.arange(len(right)) % 2
    sure = np.eye(2)[np.where(right, target, 1 - target)] * 0.8 + 0.1
    return frame(sure, target, ("nv", "mel"), None if group is None else np.array(group))


def made_up(
    seed: int,
    images: int = 240,
    names: Sequence[str] = ("bkl", "mel", "nv"),
    skill: float = 1.5,
    nets: int = 2,
) -> list[pd.DataFrame]:
    """The same images by several nets, two images a lesion; the labels of each lesion are alike."""
    rng = np.random.default_rng(seed)
    group = np.arange(images) // 2
    target = rng.integers(len(names), size=images // 2 + 1)[group]
    tables = []
    for _ in range(nets):
        logits = rng.normal(size=(images, len(names))) + skill * np.eye(len(names))[target]
        odds = np.exp(logits)
        tables.append(frame(odds / odds.sum(axis=1, keepdims=True), target, names, group))
    return tables


def people(table: pd.DataFrame, number: int | None = None) -> pd.DataFrame:
    """Metadata of the first `number` images, with text that Markdown or a spreadsheet would run."""
    at = np.arange(len(table))
    columns = {
        "image_id": table["image_id"],
        "sex": np.where(at % 2, "male", "=1+1"),
        "localization": np.where(at % 5, "back", "a | b <i>"),
    }
    return pd.DataFrame(columns)[:number]


@st.composite
def scored(draw: st.DrawFn, both: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Scores and whether an image is of the class; few different scores, so that there are ties."""
    images = draw(st.integers(2, 40))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    score = rng.integers(draw(st.integers(1, 30)), size=images) / 32
    positive = rng.random(images) < draw(st.sampled_from([0.1, 0.5, 0.9]))
    if both:
        positive[:2] = [True, False]
    return score, positive
