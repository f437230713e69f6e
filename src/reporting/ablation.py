"""Computes the effect of each parameter's values on each objective, and which parameters matter."""

import math
import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import stdtrit  # scipy.stats takes seconds to import

from src.core.errors import ConfigError
from src.metrics.formatting import engineering, interval, is_cost
from src.metrics.pareto import as_losses
from src.metrics.registry import Objective, describe
from src.sweep.overrides import BINS, has_order, is_log, is_numeric, levels

COLUMNS = ["parameter", "value", "position", "objective", "mean", "low", "high", "n"]
COLUMNS += ["best", "best_run", "adjusted", "adjusted_low", "adjusted_high", "spread"]
COLUMNS += ["ordered", "log"]
_QUANTILE = 0.975  # of Student's t: intervals of 95%
_MIN_FREE = 10  # least residual degrees of freedom of the additive model
_MISSING = "(missing)"  # the value of a trial without the parameter
_MAX_LEVELS = 50  # texts with more values, such as file names, are not compared
_ADJUSTED = {"adjusted": "mean", "adjusted_low": "low", "adjusted_high": "high"}
_CONTRASTS = ["parameter", "objective", "verdict", "low_value", "low", "high_value", "high"]
_CONTRASTS += ["difference", "factor", "raw_difference", "basis"]
_ROUNDING = 1e-9  # relative


def effects(
    table: pd.DataFrame, parameters: pd.DataFrame, objectives: Sequence[Objective]
) -> pd.DataFrame:
    """The effect of each value of each parameter over finished trials, also infeasible ones.

    The raw mean of a value averages over all other settings of its trials. If trials were not drawn
    evenly (TPE draws good regions more often), it mixes the effects of several parameters. The
    adjusted mean does not: it is the mean of an additive model (least squares, one constant per
    value of each parameter, "missing" being a value) over the trials that have the parameter, with
    this value in place of theirs. It assumes that effects add up, and that nothing changes within a
    group of a continuous parameter. It is missing if the trials cannot distinguish the parameters,
    or are too few: two or more parameters need at least ten residual degrees of freedom and at
    least as many as fitted parameters, except in a balanced grid (every combination equally often),
    in which it is the raw mean.

    Costs (`src.metrics.formatting.is_cost`) with positive values only are averaged on the
    logarithmic scale: effects multiply, means are geometric, intervals stay above zero. FLOPs,
    parameters and size are exact: their intervals hold the spread of the other settings only.

    Source of the adjusted means: Searle, Speed and Milliken, Population marginal means in the
    linear model, 1980.

    Args:
        table: From `src.reporting.comparison.compare`. `spread/<metric>` and `repeats` (number of
            seeds) are used if they are there.
        parameters: From `src.sweep.overrides.parameters`.
        objectives: Read at the chosen epoch; an objective that no trial has gets no rows.

    Returns:
        Sorted by parameter, objective, position. Columns parameter, value (text; of a continuous
        parameter the range of one of up to `BINS` quantile groups), position, objective, mean, low,
        high (95% t interval over trials; of a single trial over its seeds, if `repeats` is known;
        else missing), n (trials), best (of all trials with this value), best_run, adjusted,
        adjusted_low, adjusted_high (of one parameter with a trial per value by the pooled deviation
        over seeds), spread (root mean square of the deviations over seeds), ordered (whether the
        values have an order), log (whether effects multiply).
    """
    finished = table[table["status"] == "FINISHED"].set_index("run_id")
    groups: dict[str, pd.DataFrame] = {}
    for name in parameters:
        column = parameters[name].reindex(finished.index)
        if is_numeric(column) or column.nunique() <= _MAX_LEVELS:
            groups[str(name)] = levels(column, BINS).assign(ordered=has_order(column.dropna()))
    trials, adjusted = {}, {}
    for objective in objectives:
        columns = [objective.metric, f"spread/{objective.metric}", "repeats"]
        results = finished.reindex(columns=columns).astype(float)
        results.columns = pd.Index(["result", "seed_spread", "seeds"])
        results = results.replace([math.inf, -math.inf], math.nan).dropna(subset="result")
        log = is_cost(objective.metric) and bool((results["result"] > 0).all())
        trials[objective] = results.assign(log=log)
        adjusted[objective] = _additive_means(groups, trials[objective])
    rows = []
    for name, group in groups.items():
        for objective in objectives:
            some = trials[objective].join(group, how="inner")
            for (position, value), same in some.groupby(["position", "value"], sort=True):
                losses = as_losses(same["result"].to_numpy()[:, None], [objective])
                best = int(losses.argmin())
                row = (name, value, position, objective.metric, *_mean(same), len(same))
                row += (same["result"].iloc[best], same.index[best])
                row += adjusted[objective].get((name, str(value)), (math.nan,) * 3)
                spread = math.sqrt((same["seed_spread"] ** 2).mean())
                rows.append((*row, spread, bool(same["ordered"].all()), bool(same["log"].all())))
    return pd.DataFrame(rows, columns=COLUMNS)


def _additive_means(
    groups: dict[str, pd.DataFrame], trials: pd.DataFrame
) -> dict[tuple[str, str], tuple[float, float, float]]:
    """Adjusted mean and interval by parameter and value; see `effects`.

    NaN where the trials cannot distinguish the parameters; empty if they are too few.

    Args:
        groups: Values (`src.sweep.overrides.levels`) by parameter, indexed by run.
        trials: Indexed by run: result, seed_spread, seeds, log.
    """
    if trials.empty or not groups:
        return {}
    y, noise, log = trials["result"].to_numpy(), trials["seed_spread"], bool(trials["log"].all())
    if log:
        y, noise = np.log(y), noise / y
    columns = {name: group["value"].astype(object) for name, group in groups.items()}
    values = pd.DataFrame(columns).reindex(trials.index).fillna(_MISSING)
    dummies = {name: pd.get_dummies(values[name], dtype=float) for name in groups}
    design = np.concatenate([block.to_numpy() for block in dummies.values()], axis=1)
    inverse = np.linalg.pinv(design, rcond=max(design.shape) * np.finfo(float).eps)
    coefficients, rank = inverse @ y, int(np.linalg.matrix_rank(design))
    free = float(len(y) - rank)
    varying = values.loc[:, values.nunique() > 1]
    if free < max(_MIN_FREE, rank) and varying.shape[1] > 1:
        # nearly as many unknowns as trials: residuals are small whatever the noise is
        cells = varying.value_counts()
        if len(cells) < math.prod(varying.nunique().tolist()) or cells.nunique() > 1:
            return {}
    variance = ((y - design @ coefficients) ** 2).sum() / max(free, 1)
    if free == 0:  # one trial per unknown: only the pooled seeds show the noise
        free = (trials["seeds"] - 1).sum(skipna=False)
        variance = (noise**2 / trials["seeds"]).mean()
    reach = stdtrit(free, _QUANTILE) * math.sqrt(variance) if free > 0 else math.nan
    means: dict[tuple[str, str], tuple[float, float, float]] = {}
    end = 0
    for name, block in dummies.items():
        start, end = end, end + block.shape[1]
        has = block.get(_MISSING, pd.Series(0, block.index)).to_numpy() == 0
        for position, value in enumerate(block if has.any() else []):
            point = design[has].mean(axis=0)
            point[start:end] = np.eye(block.shape[1])[position]
            weights = point @ inverse  # of the trials
            # estimable only within the space that the trials span
            outside = np.linalg.norm(point - weights @ design)
            half = reach * np.linalg.norm(weights)
            ends = point @ coefficients + np.array([0.0, -half, half])
            if outside >= 1e-8 * np.linalg.norm(point):
                ends = np.full(3, math.nan)
            means[name, str(value)] = tuple(np.exp(ends) if log else ends)
    return means


def contrasts(table: pd.DataFrame, objectives: Sequence[Objective]) -> pd.DataFrame:
    """The clearest difference between two values of each parameter in `effects`.

    A difference is clear if the 95% intervals of two values do not overlap (for one pair a level of
    about 0.006, without correction for the number of parameters). Adjusted means are compared if
    all values have one. `basis` says what other parameters do.

    Returns:
        By objective, clear differences first, the largest first. Columns parameter, objective,
        verdict (clear; unclear: all intervals overlap; none; too few: fewer than two values have an
        interval), low_value and low (the smaller mean), high_value and high, difference, factor
        (of costs, whose effects multiply), raw_difference, basis.
    """
    rows = []
    for number, objective in enumerate(objectives):
        effects = table[table["objective"] == objective.metric]
        several = [group for _, group in effects.groupby("parameter", sort=False) if len(group) > 1]
        for group in several:
            compared, basis = _comparable(group, len(several))
            means = compared.dropna(subset=["mean", "low", "high"])
            means = means.sort_values("mean", kind="stable")
            row = {"parameter": group["parameter"].iloc[0], "objective": objective.metric}
            row |= {"verdict": "too few", "basis": basis, "number": number}
            if len(means) > 1:
                mean, low, high = means[["mean", "low", "high"]].to_numpy().T
                apart = low[None, :] > high[:, None]
                gaps = np.where(apart | ~apart.any(), mean[None, :] - mean[:, None], 0.0)
                less, more = (means.iloc[at] for at in np.unravel_index(gaps.argmax(), gaps.shape))
                equal = mean[-1] - mean[0] <= _ROUNDING * abs(mean).max()
                row["verdict"] = "none" if equal else "clear" if apart.any() else "unclear"
                raw = group.set_index("value")["mean"]
                row |= {"low_value": less["value"], "low": less["mean"]}
                row |= {"high_value": more["value"], "high": more["mean"]}
                row["difference"] = more["mean"] - less["mean"]
                row["factor"] = more["mean"] / less["mean"] if less["log"] else math.nan
                row["raw_difference"] = raw[more["value"]] - raw[less["value"]]
            rows.append(row)
    frame = pd.DataFrame(rows, columns=[*_CONTRASTS, "number"])
    size = frame["factor"].astype(float).fillna(frame["difference"].astype(float))
    frame = frame.assign(order=frame["verdict"] != "clear", size=-size)
    frame = frame.sort_values(["number", "order", "size"], kind="stable", ignore_index=True)
    return frame[_CONTRASTS]


def knee_of(table: pd.DataFrame, parameter: str, objective: Objective) -> dict[str, object]:
    """The smallest value of an ordered parameter that loses no more than a tolerance.

    Values are numbers or lists of numbers. They are compared by adjusted means if all have one with
    an interval, else by raw means. The tolerance is the deviation over seeds (root mean square over
    the values); without repeats half of the best value's interval; else zero.

    Returns:
        parameter, objective, best_value and its mean, smallest (the value within the tolerance)
        and its loss, next_smaller and its loss (missing if the smallest value tried is within the
        tolerance), tolerance and its source, exceptions (larger values that lose more), basis.

    Raises:
        ConfigError: No such parameter or objective, or the values have no order.
    """
    effects = table[table["objective"] == objective.metric]
    rows = effects[effects["parameter"] == parameter].reset_index(drop=True)
    if rows.empty:
        names = ", ".join(table["parameter"].unique()) or "none"
        problem = f"must be one with {objective.metric}, out of {names}; but got {parameter}"
        raise ConfigError("parameter", problem)
    if not rows["ordered"].all():
        problem = f"must have values with an order to have a knee, but got {parameter}"
        raise ConfigError("parameter", problem)
    several = int((effects.groupby("parameter")["value"].nunique() > 1).sum())
    means, basis = _comparable(rows, several)
    losses = as_losses(means["mean"].to_numpy()[:, None], [objective])[:, 0]
    losses = losses - losses.min()
    best = int(losses.argmin())
    tolerance, source = math.sqrt((means["spread"] ** 2).mean()), "deviation over seeds"
    if math.isnan(tolerance):
        tolerance = (means["high"][best] - means["low"][best]) / 2
        source = "half the width of the best value's interval"
    if math.isnan(tolerance):
        tolerance, source = 0.0, "none known"
    within = losses <= tolerance * (1 + _ROUNDING)
    knee = int(np.flatnonzero(within)[0])
    values = rows["value"]
    return {
        "parameter": parameter,
        "objective": objective.metric,
        "best_value": values[best],
        "best_mean": float(means["mean"][best]),
        "smallest": values[knee],
        "smallest_loss": float(losses[knee]),
        "next_smaller": values[knee - 1] if knee else None,
        "next_loss": float(losses[knee - 1]) if knee else math.nan,
        "tolerance": float(tolerance),
        "source": source,
        "exceptions": ", ".join(values[~within & (values.index > knee)]),
        "basis": basis,
    }


def ablation_table(
    table: pd.DataFrame, objectives: Sequence[Objective], parameter: str
) -> pd.DataFrame:
    """Mean, interval and number of trials as text, one row per value of a parameter in `effects`.

    Returns:
        Columns value, and per objective one such as "balanced accuracy (validation), higher is
        better" with cells "0.612 [0.580, 0.644] (n=6)", without brackets if no interval is known,
        and "-" without a figure.
    """
    rows = table[table["parameter"] == parameter]
    columns = (rows[name] for name in ("mean", "low", "high", "n"))
    texts = [
        f"{_figure(mean)}{interval(low, high, _figure)} (n={n})"
        for mean, low, high, n in zip(*columns, strict=True)
    ]
    wide = rows.assign(text=texts).pivot(index="value", columns="objective", values="text")
    wide = wide.reindex(rows["value"].unique(), columns=[item.metric for item in objectives])
    better = {"maximize": "higher is better", "minimize": "lower is better"}
    titles = [f"{describe(item.metric).axis}, {better[item.direction]}" for item in objectives]
    return wide.set_axis(titles, axis="columns").fillna("-").rename_axis("value").reset_index()


def _comparable(rows: pd.DataFrame, parameters: int) -> tuple[pd.DataFrame, str]:
    """The effects of a parameter by adjusted means, if all values have them, else unchanged.

    The text is the basis: what other parameters do where the values of this one are compared.
    `parameters` is the number of parameters with several values.
    """
    by_model = not (
        rows[list(_ADJUSTED)].isna().any(axis=None)
        or np.allclose(rows["adjusted_low"], rows["low"])
    )
    basis = "others held equal" if by_model else "others differ, too"
    if parameters < 2:
        basis = "one parameter"
    elif np.allclose(rows["adjusted"], rows["mean"]):
        basis = "others averaged out"
    if by_model:
        rows = rows.drop(columns=list(_ADJUSTED.values())).rename(columns=_ADJUSTED)
    return rows, basis


def _mean(trials: pd.DataFrame) -> np.ndarray:
    """Mean, low and high over trials; of a single trial over its seeds."""
    log, results = bool(trials["log"].all()), trials["result"].to_numpy()
    spread, n = trials["seed_spread"].iloc[0], len(results)
    unit = results[0] if log else 1.0  # equal costs give exactly that cost, without rounding
    if log:
        results, spread = np.log(results / unit), spread / unit
    deviation = results.std(ddof=1) if n > 1 else spread
    n = n if n > 1 else trials["seeds"].iloc[0]
    half = math.nan
    if n > 1 and (log or deviation > 0):  # ties do not say how much a quality varies
        half = stdtrit(n - 1, _QUANTILE) * deviation / math.sqrt(n)
    ends = results.mean() + np.array([0.0, -half, half])
    return unit * np.exp(ends) if log else ends


def _figure(value: float) -> str:
    if abs(value) >= 1000:  # 999,999.9 is 1M, not 1000k
        return ("-" if value < 0 else "") + engineering(float(f"{abs(value):.3g}"))
    return f"{value:.3f}" if abs(value) >= 0.001 or value == 0 else f"{value:.1e}"


IMPORTANCE = ["parameter", "objective", "importance"]
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
    return pd.DataFrame(rows, columns=IMPORTANCE), notes


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
