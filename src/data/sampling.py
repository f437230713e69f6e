"""Which images an epoch visits, and which a smaller trial set keeps."""
from src.core.errors import ConfigError
import numpy as np
import numpy.typing as npt


# A subset keeps so many groups of every class (where there are as many): enough for five folds.
_GROUPS_KEPT = 5


def class_counts(labels: npt.ArrayLike, n_classes: int) -> npt.NDArray[np.int64]:
    """Images of each class.

    Args:
        labels: Labels, 0 to n_classes - 1, shape (N,).
        n_classes: Number of classes K.

    Returns:
        Shape (K,).
    """
    return np.bincount(np.asarray(labels, dtype=np.int64), minlength=n_classes)


def epoch_indices(labels: npt.ArrayLike, ratio: float | None, random: np.random.Generator) -> npt.NDArray[np.int64]:
    """Which training images an epoch visits: each once, or the small classes more often. Not shuffled.

    Oversampling repeats the images of every class that has fewer than `ratio` times those of the
    largest, up to that
    many: in a binary set a ratio of 0.5 makes the malignant images half of the benign ones, a third
        of all (Sun &
    Sun 2023, section 3.3). Every image of a class is repeated equally often, but for a remainder
    that is drawn at random. See Buda, Maki & Mazurowski, "A systematic study of the class imbalance
    problem in convolutional neural networks", Neural Networks 106, 2018, who find oversampling the
    best of the simple remedies.

    Args:
        labels: Labels of the training images, shape (N,).
        ratio: Wanted size of a small class as part of the largest, in (0, 1]; None leaves the
            classes as they are.
        random: Draws the remainder.

    Returns:
        Positions in `labels`, sorted; shape (M,) with M >= N.

    Raises:
        ConfigError: The ratio is not in (0, 1].
    """
    labels = np.asarray(labels, dtype=np.int64)
    if ratio is None:
        return np.arange(len(labels))
    if not 0 < ratio <= 1:
        raise ConfigError("oversample", f"must be above 0 and at most 1, or null, but got {ratio}")
    counts = np.bincount(labels)
    wanted = round(ratio * int(counts.max(initial=0)))
    repeats = np.ones(len(labels), dtype=np.int64)
    for label in np.flatnonzero((counts > 0) & (counts < wanted)):
        members = np.flatnonzero(labels == label)
        repeats[members], remainder = divmod(wanted, len(members))
        repeats[random.choice(members, remainder, replace=False)] += 1
    return np.repeat(np.arange(len(labels)), repeats)
