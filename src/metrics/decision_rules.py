"""Decision rules: offsets on the log-probabilities that are fitted on validation for an aim.

A rule decides for the class with the largest log-probability plus offset. Without offsets that is
the most probable class, "argmax". "balanced" and "accuracy" correct the class priors: offsets with
the highest likelihood of the labels, each class or each image with the same weight, and a ridge.
Balanced accuracy itself is not maximised: that over-fits. "recall_floor" has one offset, of
melanoma, which reaches the floor of its recall.

Source: Menon et al., Long-tail learning via logit adjustment, ICLR 2021, arXiv 2007.07314, section
    4.1. There the offsets are known priors; here they are fitted, since losses and samplers change
    what the priors of a net are.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy.special import log_softmax

from src.core.errors import RULES, ConfigError, UserError
from src.metrics import registry
from src.metrics.bootstrap import ARGMAX, DECISION, classes_of, gather
from src.metrics.calibration import log_probability
from src.metrics.settings import AuditSettings
from src.metrics.thresholds import TargetRate, choose

FOLDS = 5
FLOOR = TargetRate("sensitivity", AuditSettings.sensitivity)  # of "recall_floor" on validation


def fit(
    rule: str, probability: np.ndarray, target: np.ndarray, positive: int | None = None
) -> np.ndarray:
    """The offsets of a rule, float (K,), from probabilities (N, K) and labels (N,).

    The ridge is a normal prior of each offset with a deviation of 1 nat. The likelihood counts as
    Kish's effective number of images, which the weights of rare classes make small. Offsets sum to
    0; a class without images has the offset 0, and so have all where nothing can be fitted.
    `positive` is the label that "recall_floor" looks for.

    Raises:
        UserError: A probability that is not finite.
    """
    offsets = np.zeros(probability.shape[1])
    if broken := int((~np.isfinite(probability)).any(axis=1).sum()):
        problem = f"{broken} of {len(target)} predictions of validation are not finite"
        raise UserError(f"decision={rule}: {problem}; train the run again")
    if rule == ARGMAX or not len(target):
        return offsets
    logits = log_probability(probability)
    if rule == "recall_floor":
        if positive is None:
            raise ConfigError("decision", f"{rule} needs the class that is looked for")
        margin = logits[:, positive] - np.delete(logits, positive, axis=1).max(axis=1)
        chosen = choose(margin, target == positive, FLOOR)
        if not chosen.problem:  # between two images, so that rounding moves none
            offsets[positive] = -(chosen.value + margin[margin < chosen.value].max()) / 2
        return offsets
    from scipy.optimize import minimize  # not needed to decide

    counts = np.bincount(target, minlength=len(offsets))
    present, rows = np.flatnonzero(counts), np.arange(len(target))
    weights = 1 / counts[target] if rule == "balanced" else np.ones(len(target))
    weights /= weights.sum()
    logits, labels = logits[:, present], np.searchsorted(present, target)
    size = 1 / (weights @ weights)

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        scores = log_softmax(logits + values, axis=1)
        surplus = weights @ np.exp(scores) - np.bincount(labels, weights)
        likelihood = size * (weights @ scores[rows, labels])
        return values @ values / 2 - likelihood, values + size * surplus

    offsets[present] = minimize(loss, np.zeros(len(present)), jac=True).x
    return offsets


def decide(probability: np.ndarray, offsets: Sequence[float] | np.ndarray) -> np.ndarray:
    """Decided labels (...), of equals the first, from probabilities (..., K) and any offsets."""
    scores = log_probability(probability)
    return np.asarray((scores + np.asarray(offsets) if len(offsets) else scores).argmax(axis=-1))


def rules(classes: Sequence[str]) -> list[str]:
    """The rules that can be fitted for these classes; "recall_floor" needs one that is melanoma."""
    return [rule for rule in RULES[1:] if rule != "recall_floor" or registry.melanoma_of(classes)]


def check(rule: str, classes: Sequence[str], has_validation: bool) -> None:
    """Raise ConfigError if a rule cannot be fitted for data with these classes."""
    if rule != ARGMAX and not has_validation:
        raise ConfigError("decision", f"{rule} is fitted on validation, which is empty")
    if rule not in (ARGMAX, *rules(classes)):
        names = f"{', '.join(registry.MELANOMA)}, but these are {', '.join(classes)}"
        raise ConfigError("decision", f"{rule} needs a class that is called one of {names}")


def offsets_by_rule(val: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Rule -> class -> offset, from recorded predictions of validation."""
    classes, (probability, target, _, positive) = classes_of(val), _arrays(val)
    fitted = {rule: fit(rule, probability, target, positive) for rule in rules(classes)}
    return {rule: dict(zip(classes, map(float, of), strict=True)) for rule, of in fitted.items()}


def with_decisions(frame: pd.DataFrame, rule: str, val: pd.DataFrame | None = None) -> pd.DataFrame:
    """Recorded predictions with the column `decision/<rule>`, which replaces that of another rule.

    "argmax" has no column. `val` are the predictions of validation by the same net, on which the
    rule is fitted. None: `frame` is of validation, and each image is decided by offsets that are
    fitted on the lesions or patients of other folds.
    """
    undecided = frame.drop(columns=frame.filter(regex=f"^{DECISION}").columns)
    if rule == ARGMAX:
        return undecided
    probability, _, _, positive = _arrays(frame)
    offsets = _fitted(frame, val, lambda p, labels: fit(rule, p, labels, positive))
    names = np.array(classes_of(frame), dtype=object)
    return undecided.assign(**{f"{DECISION}{rule}": names[decide(probability, offsets)]})


def confusion(frame: pd.DataFrame) -> np.ndarray:
    """Counts (K, K) of recorded predictions by their predicted class; rows are true classes."""
    predictions, classes = gather([frame]), len(classes_of(frame))
    cells = predictions.target * classes + predictions.predicted[0]
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def evaluate(
    frame: pd.DataFrame, rule: str, val: pd.DataFrame | None = None
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Predictions with the decisions of a rule, and metrics, named without the split.

    The metrics are those by every rule and by melanoma's threshold, and by the rule itself all that
    an epoch records, unless it is "argmax". Undefined ones are left out. Arguments as for
    `with_decisions`.
    """
    classes = classes_of(frame)
    melanoma, values = registry.melanoma_of(classes), dict[str, np.ndarray]()
    names = registry.default_quality_metrics(classes)
    names += [f"specificity/{melanoma}"] if melanoma else []
    for fitted in rules(classes):
        measured = registry.count_metrics(confusion(with_decisions(frame, fitted, val)), classes)
        values |= measured if fitted == rule else {}
        values |= {f"decision/{fitted}/{name}": measured[name] for name in names}
    if melanoma:
        probability, target, _, label = _arrays(frame)
        threshold = _fitted(
            frame, val, lambda p, t: np.array(choose(p[:, label], t == label, FLOOR).value)
        )
        cells = 2 * (target == label) + (probability[:, label] >= threshold)
        measured = registry.count_metrics(np.bincount(cells, minlength=4).reshape(2, 2), "-+")
        rates = {"sensitivity": "recall/+", "specificity": "specificity/+"}
        rates |= {"ppv": "precision/+", "npv": "precision/-"}
        if not np.isnan(threshold).any():
            values |= {f"chosen/{rate}/{melanoma}": measured[name] for rate, name in rates.items()}
    defined = {name: float(value) for name, value in values.items() if np.isfinite(value)}
    return with_decisions(frame, rule, val), defined


def _fitted(
    frame: pd.DataFrame,
    val: pd.DataFrame | None,
    fit_on: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """What is fitted on `val`, (...); without it for each image on the other folds, (N, ...)."""
    if val is not None:
        return fit_on(*_arrays(val)[:2])
    probability, target, group, _ = _arrays(frame)
    fold = np.random.default_rng(0).permutation(group.max() + 1)[group] % FOLDS
    fit_folds = [fold != number for number in range(FOLDS)]
    return np.stack([fit_on(probability[rows], target[rows]) for rows in fit_folds])[fold]


def _arrays(frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray, int | None]:
    """Probabilities (N, K) as they were computed, labels, groups (N,), label of melanoma."""
    classes = classes_of(frame)
    probability = frame[[f"p/{name}" for name in classes]].to_numpy(np.float32).astype(float)
    target = pd.Index(classes).get_indexer(pd.Index(frame["label"].astype(str)))
    group = pd.factorize(frame["group"].where(frame["group"].notna(), frame["image_id"]))[0]
    melanoma = registry.melanoma_of(classes)
    return probability, target, group, None if melanoma is None else classes.index(melanoma)
