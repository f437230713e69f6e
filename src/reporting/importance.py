"""Which parameters decide whether a trial is among the best: PED-ANOVA, for each objective alone."""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from src.metrics.pareto import as_losses
from src.metrics.registry import Objective, describe, recorded_name
from src.sweep.overrides import is_log, is_numeric

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


COLUMNS = ["parameter", "objective", "importance"]
MIN_TRIALS = 10
FEW_TRIALS = 50  # with fewer, the five best are more than a tenth
MAX_TRIALS = 2000  # more cost seconds and change the second decimal at most
BEST = 0.1  # share of the trials that is called the best ...
MIN_BEST = 5  # ... but at least so many; Optuna advises five


def importance(
    table: pd.DataFrame, parameters: pd.DataFrame, objectives: Sequence[Objective]
) -> tuple[pd.DataFrame, list[str]]:
    """How much each parameter decides whether a trial is among the best tenth (of few trials: among the best five).

    The densities of a parameter's values among the best trials and among all are compared; a
    parameter matters if they differ. Only finished trials with a finite value count, those over a
    limit too; of more than 2,000 every n-th by rank. A parameter that some trials do not have is
    compared among those that have it, weighted by their shares of all and of the best trials. Text
    is categorical; numbers count on a logarithmic scale where they span a factor of ten. What a
    sampler had soon stopped trying counts for little, as both densities are those of the trials
    drawn. With fewer than 50 trials the shares hang on a handful and on what the sampler drew: they
    come with a caveat.

    Source: Watanabe, Bansal and Hutter, PED-ANOVA: Efficiently Quantifying Hyperparameter
        Importance in Arbitrary
    Subspaces, IJCAI 2023, and for parameters that some trials lack Conditional PED-ANOVA, arXiv
    2601.20800, both by Optuna's evaluator.

    Args:
        table: From `src.reporting.comparison.compare`.
        parameters: From `src.sweep.overrides.parameters`.
        objectives: Their values are read at the chosen epoch.

    Returns:
        Columns parameter, objective (the metric), importance, in [0, 1], summing to one for an
        objective, the most important first; and at most a sentence for each objective, for the
        reader: why it has no rows, or of fewer than 50 trials on how few of them its shares rest.
    """
    finished = table[table["status"] == "FINISHED"].set_index("run_id")
    rows: list[dict[str, Any]] = []
    reasons: list[str] = []
    for objective in objectives:
        metric = recorded_name(objective.metric)
        values = finished[metric].astype(float) if metric in finished else pd.Series(dtype=float)
        values = values[np.isfinite(values)]
        losses = pd.Series(
            as_losses(values.to_numpy()[:, None], [objective])[:, 0], index=values.index
        ).sort_values()
        losses = losses.iloc[_evenly(len(losses))]
        swept = parameters.reindex(losses.index)
        swept = swept[[name for name in swept if swept[name].nunique() > 1]]
        reason = _unfit(losses, swept)
        if reason:
            reasons.append(
                f"No parameter importance for {describe(objective.metric).label}: {reason}."
            )
            continue
        if len(losses) < FEW_TRIALS:
            reasons.append(_caveat(losses, describe(objective.metric).label))
        found = _ped_anova(losses, swept)
        rows += [
            {"parameter": name, "objective": objective.metric, "importance": share}
            for name, share in found
        ]
    return pd.DataFrame(rows, columns=COLUMNS), reasons


def _evenly(n: int) -> np.ndarray:
    """Which of n ranks are looked at: all, or a number of them at equal distances, both ends included."""
    return (
        np.arange(n) if n <= MAX_TRIALS else np.linspace(0, n - 1, MAX_TRIALS).round().astype(int)
    )


def _n_best(n: int) -> int:
    return max(math.ceil(BEST * n), MIN_BEST)


def _unfit(losses: pd.Series, swept: pd.DataFrame) -> str:
    """Why nothing can be said; empty if something can."""
    if len(losses) < MIN_TRIALS:
        return f"{len(losses)} finished trials with a value, fewer than {MIN_TRIALS}"
    if swept.columns.empty:
        return "no parameter differs among its trials"
    if losses.min() == losses.max():
        return "all its trials have the same value"
    if (losses <= losses.iloc[_n_best(len(losses)) - 1]).all():
        return "too many of its trials share the worst value"
    return ""


def _caveat(losses: pd.Series, label: str) -> str:
    best = int(
        (losses <= losses.iloc[_n_best(len(losses)) - 1]).sum()
    )  # and those that tie with the last of them
    rests = f"Parameter importance for {label} rests on the best {best} of {len(losses)} trials"
    return f"{rests}; the others' settings were drawn by the sampler."


def _ped_anova(losses: pd.Series, swept: pd.DataFrame) -> list[tuple[str, float]]:
    """Shares by parameter, the greatest first.

    Args:
        losses: By run, less is better.
        swept: Parameters of the same runs; each has at least two values.
    """
    import optuna

    distributions = {str(name): _distribution(swept[name]) for name in swept}
    cells: list[dict[str, Any]] = [{} for _ in losses]  # by trial: only the parameters that it has
    for name in distributions:
        for cell, value, known in zip(
            cells, swept[name].tolist(), swept[name].notna(), strict=True
        ):
            if known:
                cell[name] = value
    trials = [
        optuna.trial.create_trial(
            value=loss, params=cell, distributions={name: distributions[name] for name in cell}
        )
        for loss, cell in zip(losses.tolist(), cells, strict=True)
    ]
    share = (_n_best(len(trials)) - 0.5) / len(
        trials
    )  # Optuna rounds up: by the half no rounding adds a trial
    with _silence():
        study = optuna.create_study(storage=optuna.storages.InMemoryStorage(), direction="minimize")
        study.add_trials(trials)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=share)
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return sorted(shares.items(), key=lambda item: -item[1])


def _distribution(column: pd.Series) -> "BaseDistribution":
    """What a parameter may have been drawn from, by what was drawn."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    known = column.dropna()
    if not is_numeric(column):
        return CategoricalDistribution(sorted(known.unique()))
    low, high, log = known.min(), known.max(), is_log(column)
    if (known == known.round()).all():
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(float(low), float(high), log=log)


@contextmanager
def _silence() -> Iterator[None]:
    """Optuna neither logs nor warns; how much it logs otherwise is put back."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)
