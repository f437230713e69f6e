"""Effect of each parameter."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from src.core.errors import ConfigError
from src.metrics.formatting import engineering, is_cost
from src.metrics.pareto import as_losses
from src.metrics.registry import Objective, describe, recorded_name
from src.sweep.overrides import BINS, has_order, is_numeric, levels

CONFIDENCE = 0.95
MIN_FREE = 10  # residual degrees of freedom of a model that is to be believed
MISSING = "(missing)"  # the level of a trial that does not have the parameter
Adjusted = dict[str, tuple[float, float, float]]  # value -> mean, low, high


def additive_means(groups: dict[str, pd.DataFrame], trials: pd.DataFrame) -> dict[str, Adjusted]:
    """Adjusted mean and its interval of each value of each parameter; NaN where the trials cannot tell.

    Source: Searle, Speed and Milliken, Population marginal means in the linear model, 1980.

    Args:
        groups: By parameter its levels (`src.sweep.overrides.levels`), indexed by run.
        trials: Indexed by run: result, seed_spread, seeds, and log (whether results are modelled by
            their logarithm).

    Returns:
        By parameter; empty where two or more parameters differ and the residual degrees of freedom
        are fewer than ten or than what is fitted, unless the grid is balanced.
    """
    if trials.empty or not groups:
        return {}
    y, noise, log = trials["result"].to_numpy(), trials["seed_spread"], bool(trials["log"].all())
    if log:
        y, noise = np.log(y), noise / y
    values = {
        name: group["value"].reindex(trials.index).astype(object).fillna(MISSING)
        for name, group in groups.items()
    }
    dummies = {name: pd.get_dummies(column, dtype=float) for name, column in values.items()}
    design = np.concatenate([block.to_numpy() for block in dummies.values()], axis=1)
    left, scale, right = np.linalg.svd(design, full_matrices=False)
    rank = int((scale > scale[0] * max(design.shape) * np.finfo(float).eps).sum())
    left, scale, right = left[:, :rank], scale[:rank], right[:rank]
    coefficients = right.T @ (left.T @ y / scale)
    free = float(len(y) - rank)
    if free < max(MIN_FREE, rank) and not _simple(pd.DataFrame(values)):
        # nearly as many unknowns as trials: the residuals are small whatever the noise is
        return {}
    variance = ((y - design @ coefficients) ** 2).sum() / max(free, 1)
    if free == 0:  # a trial for each unknown: only the seeds, pooled, tell what is noise
        free, variance = (
            (trials["seeds"] - 1).sum(skipna=False),
            (noise**2 / trials["seeds"]).mean(),
        )
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, free) * math.sqrt(variance) if free > 0 else math.nan
    found: dict[str, Adjusted] = {name: {} for name in dummies}
    end = 0
    for name, block in dummies.items():
        end += block.shape[1]
        has = block.get(MISSING, pd.Series(0, block.index)).to_numpy() == 0
        for at, value in enumerate(block if has.any() else []):
            point = design[has].mean(axis=0)
            point[end - block.shape[1] : end] = np.eye(block.shape[1])[at]
            seen = right @ point
            # a sum of coefficients can be told from the trials if it lies in the space that they
            # span
            known = np.linalg.norm(point - right.T @ seen) < 1e-8 * np.linalg.norm(point)
            half = reach * np.linalg.norm(seen / scale)
            three = (
                point @ coefficients + np.array([0.0, -half, half])
                if known
                else np.full(3, math.nan)
            )
            found[name][str(value)] = tuple(np.exp(three) if log else three)
    return found


def _simple(values: pd.DataFrame) -> bool:
    """Whether one parameter at most differs, or each combination of the values occurs equally often."""
    values = values.loc[:, values.nunique() > 1]
    if values.shape[1] < 2:
        return True
    cells = values.value_counts()
    return len(cells) == math.prod(values.nunique().tolist()) and cells.nunique() == 1


COLUMNS = [
    "parameter",
    "value",
    "position",
    "objective",
    "mean",
    "low",
    "high",
    "n",
    "best",
    "best_run",
]
COLUMNS += ["adjusted", "adjusted_low", "adjusted_high", "spread", "ordered", "log"]
MAX_LEVELS = 50  # texts with more values than this, such as file names, are no ablation
CLEAR, UNCLEAR, NONE, FEW = range(4)  # what a parameter tells
SENTENCES = {
    UNCLEAR: "Nothing can be told of the effect on {label} of {names}: the intervals of all values overlap.",
    NONE: "No difference in {label}: {names}.",
    FEW: "Nothing can be told of the effect on {label} of {names}: not two values have several trials or seeds.",
}


def effects(
    table: pd.DataFrame, parameters: pd.DataFrame, objectives: Sequence[Objective], bins: int = BINS
) -> pd.DataFrame:
    """The effect of each value of each parameter on each objective, over the finished trials, those over a limit too.

    The raw mean of a value averages over whatever else its trials had. Where trials were not drawn
    evenly (TPE draws good regions more often) it mixes the effects of several parameters. The
    adjusted mean does not: it is the mean of an additive model (least squares, a constant for each
    value of each parameter, "does not have it" being a value too) over the trials that have the
    parameter, with this value put in place of theirs. It assumes that effects add up, and that
    nothing changes within a group of a continuous parameter. It is missing where the trials cannot
    tell parameters apart, and where they are too few: of two or more parameters there must be at
    least ten residual degrees of freedom and as many as fitted parameters, but for a balanced grid
    (each combination of the values equally often, and at least once), in which it is the raw mean.

    Costs (`src.metrics.formatting.is_cost`) whose values are all positive are looked at on the
    logarithmic scale, raw and adjusted: effects multiply, means are geometric, intervals stay above
    zero. FLOPs, parameters and size are exact for a setting: their intervals hold the spread of the
    other settings alone.

    Source of the adjusted means: Searle, Speed and Milliken, Population marginal means in the
    linear model, 1980.

    Args:
        table: From `src.reporting.comparison.compare`. `spread/<metric>` and `repeats` (seeds of a
            trial) are used if they are there.
        parameters: From `src.sweep.overrides.parameters`.
        objectives: Their values are read at the chosen epoch; one that no trial has gets no rows.
        bins: Groups of a continuous parameter.

    Returns:
        Sorted by parameter, objective, position. Columns parameter, value (text; of a continuous
        parameter the range of one of up to `bins` quantile groups), position (for sorting and
        axes), objective (the metric), mean, low, high (95% t interval of that mean over trials; of
        a single trial over its seeds, if `repeats` says how many; else missing), n (trials), best
        (value of the best trial that has this one) and best_run, adjusted, adjusted_low,
        adjusted_high (of the model; of one parameter with a trial a value by the deviation over
        seeds, pooled), spread (deviation over seeds, root mean square over trials; missing without
        repeats), ordered (whether the parameter's values have an order), log (whether effects on
        the objective multiply).
    """
    finished = table[table["status"] == "FINISHED"].set_index("run_id")
    groups: dict[str, pd.DataFrame] = {}
    for name in parameters:
        column = parameters[name].reindex(finished.index)
        if is_numeric(column) or column.nunique() <= MAX_LEVELS:
            groups[str(name)] = levels(column, bins).assign(ordered=has_order(column.dropna()))
    trials = {objective: _measured(finished, objective) for objective in objectives}
    adjusted = {objective: additive_means(groups, found) for objective, found in trials.items()}
    rows = [
        {"parameter": name, "objective": objective.metric} | row
        for name, group in groups.items()
        for objective in objectives
        for row in _by_value(
            trials[objective].join(group, how="inner"), objective, adjusted[objective].get(name, {})
        )
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def knee_of(
    effects: pd.DataFrame, parameter: str, objective: Objective, tolerance: float | None = None
) -> tuple[str, str]:
    """The smallest value of an ordered parameter that loses no more than a tolerance against the best one.

    Values are compared by their adjusted means if all have one with an interval, else by their
    means.

    Args:
        effects: From `effects`.
        parameter: One whose values are numbers or lists of numbers.
        objective: One of those in `effects`.
        tolerance: In the objective's unit. None: the deviation over seeds, root mean square over
            the values; without repeats half the width of the best value's interval; zero without
            both.

    Returns:
        The value as text, and a paragraph that says where quality falls.

    Raises:
        ConfigError: There are no figures for this parameter and objective, or its values have no
            order.
    """
    rows = effects.query("parameter == @parameter and objective == @objective.metric").reset_index(
        drop=True
    )
    if rows.empty:
        known = ", ".join(effects["parameter"].unique()) or "none"
        raise ConfigError(
            "parameter", f"must be one with {objective.metric}, out of {known}; but got {parameter}"
        )
    if not rows["ordered"].all():
        raise ConfigError(
            "parameter", f"must have values with an order to have a knee, but got {parameter}"
        )
    shown, by_model = _estimates(rows)
    means, which = shown["mean"], "adjusted mean" if by_model else "mean"
    losses = as_losses(means.to_numpy()[:, None], [objective])[:, 0]
    lost = losses - losses.min()
    best = int(lost.argmin())
    tolerance, source = (
        (tolerance, "the given tolerance") if tolerance is not None else _noise(shown, best)
    )
    within = lost <= tolerance * (
        1 + 1e-9
    )  # a loss of just the tolerance is within it, whatever the rounding
    knee = int(np.flatnonzero(within)[0])
    values = rows["value"].tolist()
    than, label = f"{source} ({_figure(tolerance)})", describe(objective.metric).label
    others = _others(rows, by_model, _looked_at(effects, [objective]))
    top = f"{_figure(means[best])}, {which} of n={rows['n'][best]}{others}"
    said = [f"{parameter}: {label} is best at {values[best]} ({top})."]
    if knee != best:
        lower = f"Down to {values[knee]} ({_figure(means[knee])})"
        said.append(f"{lower} it loses {_figure(lost[knee])}, not more than {than}.")
    if knee == 0:
        said.append("That is the smallest value tried: where it falls lies below, if anywhere.")
    else:
        lower = f"At {values[knee - 1]}, the next smaller value, it loses {_figure(lost[knee - 1])}, more than {than}"
        said.append(f"{lower}: {label} falls below {values[knee]}.")
    if not within[knee:].all():
        dips = ", ".join(np.array(values)[knee:][~within[knee:]])
        said.append(f"But it is no steady curve: {dips}, though larger, loses more than that.")
    return values[knee], " ".join(said)


def say_effects(effects: pd.DataFrame, objectives: Sequence[Objective]) -> list[str]:
    """What the effects tell: a sentence or two a parameter, and one for all those that tell nothing.

    A parameter tells something if the 95% intervals of two of its values do not overlap (for one
    pair that is a level of about 0.006, uncorrected); the two furthest apart are named. Adjusted
    means count if all its values have one; of raw means of trials that were not drawn evenly it is
    said that other parameters differ too.

    Args:
        effects: From `effects`.
        objectives: The most important first.

    Returns:
        By objective: clear findings, the greatest difference first; then what nothing can be told
        of, and why. Last how many parameters were looked at, if more than one.
    """
    said: list[str] = []
    parameters = _looked_at(effects, objectives)
    for objective in objectives:
        label = describe(objective.metric).label
        rows = effects[effects["objective"] == objective.metric]
        several = [
            (str(name), some)
            for name, some in rows.groupby("parameter", sort=False)
            if len(some) > 1
        ]
        found = [
            _finding(some.reset_index(drop=True), name, label, len(several))
            for name, some in several
        ]
        said += [
            text for kind, _, text in sorted(found, key=lambda each: -each[1]) if kind == CLEAR
        ]
        for unclear, sentence in SENTENCES.items():
            names = ", ".join(text for kind, _, text in found if kind == unclear)
            said += [sentence.format(label=label, names=names)] if names else []
    if parameters > 1:
        said.append(f"{parameters} parameters were looked at; no correction for that was made.")
    return said


def ablation_table(
    effects: pd.DataFrame, objectives: Sequence[Objective], parameters: Sequence[str] | None = None
) -> pd.DataFrame:
    """Mean, interval and number of trials, for people.

    Args:
        effects: From `effects`.
        objectives: A column each.
        parameters: Which ones; None for all.

    Returns:
        A row a value: parameter, value, then for each objective a column such as "balanced accuracy
        (validation), higher is better", its cells "0.612 [0.580, 0.644] (n=6)", without brackets
        where no interval is known and "-" where there is no figure.
    """
    chosen = effects if parameters is None else effects[effects["parameter"].isin(list(parameters))]
    table = chosen[["parameter", "value"]].drop_duplicates().reset_index(drop=True)
    for objective in objectives:
        rows = chosen[chosen["objective"] == objective.metric]
        cells = {(row["parameter"], row["value"]): _cell(row) for _, row in rows.iterrows()}
        better = "higher" if objective.direction == "maximize" else "lower"
        column = [
            cells.get((name, value), "-")
            for name, value in table[["parameter", "value"]].to_numpy()
        ]
        table[f"{describe(objective.metric).axis}, {better} is better"] = column
    return table


def _measured(finished: pd.DataFrame, objective: Objective) -> pd.DataFrame:
    """Result, deviation over seeds and number of seeds of the trials that have a result."""
    metric = recorded_name(objective.metric)
    columns = {"result": metric, "seed_spread": f"spread/{metric}", "seeds": "repeats"}
    found = finished.reindex(columns=list(columns.values())).set_axis(list(columns), axis=1)
    found = found.astype(float).replace([math.inf, -math.inf], math.nan).dropna(subset="result")
    return found.assign(log=is_cost(objective.metric) and bool((found["result"] > 0).all()))


def _by_value(
    trials: pd.DataFrame, objective: Objective, adjusted: Adjusted
) -> Iterator[dict[str, Any]]:
    for (position, value), some in trials.groupby(["position", "value"], sort=True):
        results = some["result"].to_numpy()
        best = int(as_losses(results[:, None], [objective])[:, 0].argmin())
        row = {"value": value, "position": position} | dict(
            zip(("mean", "low", "high"), _raw(some), strict=True)
        )
        row |= {"n": len(results), "best": results[best], "best_run": some.index[best]}
        model = adjusted.get(str(value), (math.nan,) * 3)
        row |= dict(zip(("adjusted", "adjusted_low", "adjusted_high"), model, strict=True))
        row |= {name: bool(some[name].all()) for name in ("ordered", "log")}
        yield row | {"spread": math.sqrt((some["seed_spread"] ** 2).mean())}


def _raw(some: pd.DataFrame) -> np.ndarray:
    """Mean, low and high over trials; of a single trial over its seeds, as far as they are known."""
    log, results, spread = (
        bool(some["log"].all()),
        some["result"].to_numpy(),
        some["seed_spread"].iloc[0],
    )
    unit = results[0] if log else 1.0  # equal costs give just that cost, without rounding
    if log:
        results, spread = np.log(results / unit), spread / unit
    n, deviation = (
        (len(results), results.std(ddof=1)) if len(results) > 1 else (some["seeds"].iloc[0], spread)
    )
    # nor is NaN more than 1
    half = (
        stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * deviation / math.sqrt(n) if n > 1 else math.nan
    )
    three = results.mean() + np.array([0.0, -half, half])
    return unit * np.exp(three) if log else three


def _looked_at(effects: pd.DataFrame, objectives: Sequence[Objective]) -> int:
    """How many parameters have two or more values."""
    rows = effects[effects["objective"].isin([objective.metric for objective in objectives])]
    return int((rows.groupby("parameter")["value"].nunique() > 1).sum())


def _others(rows: pd.DataFrame, by_model: bool, parameters: int) -> str:
    """What the other parameters do where this one's values are compared."""
    if parameters < 2:
        return ""
    if np.allclose(rows["adjusted"], rows["mean"]):
        return ", others averaged out"
    return ", other parameters held equal" if by_model else "; other parameters differ too"


def _estimates(rows: pd.DataFrame) -> tuple[pd.DataFrame, bool]:
    """Figures with `mean`, `low` and `high` of the additive model, if all values have them, else as they are."""
    names = {"adjusted": "mean", "adjusted_low": "low", "adjusted_high": "high"}
    if rows[list(names)].isna().any(axis=None) or np.allclose(rows["adjusted_low"], rows["low"]):
        return rows, False
    return rows.drop(columns=list(names.values())).rename(columns=names), True


def _noise(rows: pd.DataFrame, best: int) -> tuple[float, str]:
    if rows["spread"].notna().any():
        return math.sqrt((rows["spread"] ** 2).mean()), "the deviation over seeds"
    half = (rows["high"][best] - rows["low"][best]) / 2
    return (
        (0.0, "the tolerance")
        if math.isnan(half)
        else (half, "half the width of the best value's 95% interval")
    )


def _finding(
    rows: pd.DataFrame, parameter: str, label: str, parameters: int
) -> tuple[int, float, str]:
    """What is found (CLEAR, ...), the size of the difference, and a text about it."""
    shown, by_model = _estimates(rows)
    shown = shown.dropna(subset=["mean", "low", "high"]).sort_values(
        "mean", kind="stable", ignore_index=True
    )
    if len(shown) < 2:
        return FEW, 0.0, parameter
    mean, low, high = (shown[name].to_numpy(dtype=float) for name in ("mean", "low", "high"))
    if mean[-1] - mean[0] <= 1e-9 * abs(mean).max():  # rounding
        return NONE, 0.0, parameter
    apart = (
        low[None, :] - high[:, None]
    )  # by how much the interval of column j lies above that of row i
    if not (apart > 0).any():
        return UNCLEAR, 0.0, f"{parameter} ({_figure(mean[0])} to {_figure(mean[-1])})"
    gaps = np.where(apart > 0, mean[None, :] - mean[:, None], 0.0)
    less, more = (shown.iloc[at] for at in np.unravel_index(gaps.argmax(), gaps.shape))
    ratio, gap = more["mean"] / less["mean"], more["mean"] - less["mean"]
    size = f"factor of {ratio:.3g}" if less["log"] else f"difference of {_figure(gap)}"
    values = f"{_cell(less)} at {less['value']}, {_cell(more)} at {more['value']}"
    text = (
        f"{parameter} goes with a {size} in {label}: {values}{_others(rows, by_model, parameters)}."
    )
    raw = rows.set_index("value")["mean"]
    raw_gap = raw[more["value"]] - raw[less["value"]]
    if by_model and not less["log"] and abs(raw_gap - gap) > gap / 4:
        text += f" The raw means differ by {_figure(raw_gap)}, for the other parameters were not drawn evenly."
    return CLEAR, math.log(ratio) if less["log"] else gap, text


def _cell(row: pd.Series) -> str:
    interval = "" if math.isnan(row["low"]) else f" [{_figure(row['low'])}, {_figure(row['high'])}]"
    return f"{_figure(row['mean'])}{interval} (n={row['n']})"


def _figure(value: float) -> str:
    if abs(value) >= 1000:
        return ("-" if value < 0 else "") + engineering(
            float(f"{abs(value):.3g}")
        )  # 999,999.9 is 1M, not 1000k
    return f"{value:.3f}" if abs(value) >= 0.001 or value == 0 else f"{value:.1e}"
