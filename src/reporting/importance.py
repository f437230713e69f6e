"""Computes which parameters decide whether a trial is among the best, by Optuna's PED-ANOVA."""

import math
import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd

from src.metrics.pareto import as_losses
from src.metrics.registry import Objective, describe
from src.sweep.overrides import is_log, is_numeric

COLUMNS = ["parameter", "objective", "importance"]
_MIN_TRIALS = 10
_FEW_TRIALS = 50  # with fewer, the five best are more than a tenth
_MAX_TRIALS = 2000  # more trials take seconds and change the second decimal at most
_BEST = 0.1  # share of the trials that are called the best ...
_MIN_BEST = 5  # ... but at least this number, as Optuna advises


def importance(
    table: pd.DataFrame, parameters: pd.DataFrame, objectives: Sequence[Objective]
) -> tuple[pd.DataFrame, list[str]]:
    """Importance of each parameter for being among the best tenth of trials (at least five).

    The density of a parameter's values among the best trials is compared with that among all
    trials; a parameter matters if they differ. Finished trials with a finite value count, also
    infeasible ones; of more than 2,000 trials every n-th by rank. A parameter that some trials do
    not have is compared among the trials that have it, weighted by their shares of all and of the
    best trials. Text is categorical; numbers are logarithmic if they span a factor of ten. A value
    that a sampler soon stopped drawing counts little, because both densities are of drawn trials.

    Source: Watanabe, Bansal and Hutter, PED-ANOVA: Efficiently Quantifying Hyperparameter
    Importance in Arbitrary Subspaces, IJCAI 2023; for conditional parameters Conditional PED-ANOVA,
    arXiv 2601.20800; both by Optuna's evaluator.

    Args:
        table: From `src.reporting.comparison.compare`.
        parameters: From `src.sweep.overrides.parameters`.
        objectives: Read at the chosen epoch.

    Returns:
        Columns parameter, objective, importance (in [0, 1], sum one per objective, the most
        important first); and at most one warning per objective: why it has no rows, or on how few
        trials they rest.
    """
    finished = table[table["status"] == "FINISHED"].set_index("run_id")
    rows: list[tuple[str, str, float]] = []
    notes: list[str] = []
    for objective in objectives:
        label = describe(objective.metric).label
        values = finished.reindex(columns=[objective.metric]).astype(float)
        losses = pd.Series(as_losses(values.to_numpy(), [objective])[:, 0], values.index)
        losses = losses[np.isfinite(losses)].sort_values()
        if len(losses) > _MAX_TRIALS:
            losses = losses.iloc[np.linspace(0, len(losses) - 1, _MAX_TRIALS).round().astype(int)]
        swept = parameters.reindex(losses.index)
        swept = swept.loc[:, swept.nunique() > 1]
        n_best = max(math.ceil(_BEST * len(losses)), _MIN_BEST)
        best = losses <= losses.iloc[:n_best].max()  # with those that tie with the last of them
        few = f"{len(losses)} finished trials with a value, fewer than {_MIN_TRIALS}"
        problems = {
            few: len(losses) < _MIN_TRIALS,
            "no parameter differs among the trials": swept.columns.empty,
            "all trials have the same value": losses.min() == losses.max(),
            "too many trials share the worst value": best.all(),
        }
        if problem := next((text for text, holds in problems.items() if holds), ""):
            notes.append(f"No parameter importance for {label}: {problem}.")
            continue
        if len(losses) < _FEW_TRIALS:
            notes.append(
                f"Parameter importance for {label} rests on the best {best.sum()} of {len(losses)} "
                "trials; the sampler drew the settings of the others."
            )
        # Optuna rounds the number of best trials up: half a trial less is never rounded to one more
        shares = _ped_anova(losses, swept, (n_best - 0.5) / len(losses))
        order = sorted(shares, key=lambda name: -shares[name])
        rows += [(name, objective.metric, shares[name]) for name in order]
    return pd.DataFrame(rows, columns=COLUMNS), notes


def _ped_anova(losses: pd.Series, swept: pd.DataFrame, quantile: float) -> dict[str, float]:
    """Shares by parameter; Optuna neither logs nor warns.

    Less is a better loss. At least two values in every column of `swept`, which has the same runs.
    `quantile` is the share of the best trials.
    """
    import optuna
    from optuna import distributions as kinds

    distributions: dict[str, kinds.BaseDistribution] = {}
    for name, column in swept.items():
        values, log = column.dropna(), is_log(column)
        if not is_numeric(column):
            distributions[str(name)] = kinds.CategoricalDistribution(sorted(values.unique()))
            continue
        low, high = float(values.min()), float(values.max())
        if (values == values.round()).all():
            distributions[str(name)] = kinds.IntDistribution(int(low), int(high), log=log)
        else:
            distributions[str(name)] = kinds.FloatDistribution(low, high, log=log)
    trials = []
    columns = [swept[name].tolist() for name in swept]
    for loss, *row in zip(losses.tolist(), *columns, strict=True):
        cell = dict(zip(distributions, row, strict=True))
        cell = {name: value for name, value in cell.items() if not pd.isna(value)}
        of_cell = {name: distributions[name] for name in cell}
        trials.append(optuna.trial.create_trial(value=loss, params=cell, distributions=of_cell))
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            study = optuna.create_study(storage=optuna.storages.InMemoryStorage())
            study.add_trials(trials)
            evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=quantile)
            return optuna.importance.get_param_importances(study, evaluator=evaluator)
    finally:
        optuna.logging.set_verbosity(verbosity)
