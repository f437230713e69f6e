import logging
import math
import warnings

import numpy as np
import optuna
import pandas as pd
import pytest

from src.metrics.registry import Direction, Objective
from src.reporting.ablation import IMPORTANCE, importance

ACCURACY = "best/val/balanced_accuracy"
OBJECTIVE = Objective(ACCURACY, "maximize")
SWEPT = pd.DataFrame(
    {
        "lr": 10 ** np.random.default_rng(0).uniform(-4, -1, 200),
        "width": np.random.default_rng(1).integers(4, 49, 200),
        "loss": np.random.default_rng(2).choice(["focal", "plain", "smooth"], 200).astype(object),
    },
    index=pd.Index([f"run{number}" for number in range(200)], name="run_id"),
)


def table_of(values: np.ndarray | pd.Series, **columns: object) -> pd.DataFrame:
    """A table with these accuracies, of the first runs of `SWEPT`."""
    values = np.asarray(values, dtype=float)
    columns = {"run_id": SWEPT.index[: len(values)], "status": "FINISHED"} | columns
    return pd.DataFrame({**columns, ACCURACY: values})


def ranking(
    values: np.ndarray | pd.Series, swept: pd.DataFrame = SWEPT, direction: Direction = "maximize"
) -> tuple[pd.DataFrame, list[str]]:
    return importance(table_of(values), swept, [Objective(ACCURACY, direction)])


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_the_one_parameter_that_counts_comes_first(direction: Direction) -> None:
    noise = np.random.default_rng(1).normal(0, 1e-3, len(SWEPT))
    signals = {
        "lr": np.log10(SWEPT["lr"]),
        "width": SWEPT["width"],
        "loss": SWEPT["loss"] == "focal",
    }
    for parameter, signal in signals.items():
        shares, notes = ranking(signal.astype(float) + noise, direction=direction)
        assert notes == []
        assert list(shares) == IMPORTANCE
        assert shares["parameter"].iloc[0] == parameter
        assert shares["importance"].iloc[0] > 0.5
        assert shares["importance"].sum() == pytest.approx(1)
        assert shares["importance"].is_monotonic_decreasing
        assert set(shares["parameter"]) == set(SWEPT)
        assert set(shares["objective"]) == {ACCURACY}


def test_objectives_have_separate_shares() -> None:
    table = table_of(
        np.log10(SWEPT["lr"]), **{"efficiency/flops": SWEPT["width"].to_numpy() ** 2.0}
    )
    flops = Objective("efficiency/flops", "minimize")
    shares, _ = importance(table, SWEPT, [OBJECTIVE, flops])
    groups = shares.groupby("objective", sort=False)
    assert groups["importance"].sum().tolist() == pytest.approx([1, 1])
    assert groups["parameter"].first().tolist() == ["lr", "width"]


def test_shares_are_those_of_an_optuna_study() -> None:
    """The same trials in a study that Optuna has made, without conversions from a table."""
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))

    def objective(trial: optuna.Trial) -> float:
        kind = trial.suggest_categorical("kind", ["a", "b"])
        return trial.suggest_float("x", 0.0, 1.0) + 0.2 * (kind == "b")

    for x, kind in ((0.0, "a"), (1.0, "b")):  # so that the range is the one that was drawn
        study.enqueue_trial({"x": x, "kind": kind})
    study.optimize(objective, n_trials=100)
    swept = pd.DataFrame([trial.params for trial in study.trials], SWEPT.index[:100])
    shares, _ = ranking(np.array([trial.value for trial in study.trials]), swept)
    expected = optuna.importance.get_param_importances(study)
    assert shares.set_index("parameter")["importance"].to_dict() == pytest.approx(expected)


def test_a_conditional_parameter_counts_among_the_trials_that_have_it() -> None:
    has = np.arange(200) % 2 == 0
    swept = SWEPT.assign(units=SWEPT["width"].where(has)).drop(columns="width")
    shares, _ = ranking((SWEPT["width"] / 100 + 0.5).where(has, SWEPT["lr"]), swept)
    assert shares["parameter"].iloc[0] == "units"
    assert shares["importance"].notna().all()


def test_only_finished_trials_with_a_finite_value_count() -> None:
    good = table_of(np.log10(SWEPT["lr"][:60]))
    clean, _ = importance(good, SWEPT, [OBJECTIVE])
    bad = pd.DataFrame({"run_id": SWEPT.index[60:120], "status": "FINISHED", ACCURACY: 99.0})
    bad.loc[:19, "status"] = "PRUNED"
    bad.loc[20:39, ACCURACY] = math.nan
    bad.loc[40:, ACCURACY] = math.inf
    shares, _ = importance(pd.concat([bad, good]), SWEPT, [OBJECTIVE])
    pd.testing.assert_frame_equal(shares, clean)


@pytest.mark.parametrize(
    ("values", "columns", "reason"),
    [
        (np.arange(9.0), ["lr"], "9 finished trials with a value, fewer than 10"),
        (np.full(20, math.nan), ["lr"], "0 finished trials"),
        (np.full(20, 0.5), ["lr"], "the same value"),
        (np.r_[1.0, 1.0, np.zeros(18)], ["lr"], "share the worst value"),
        (np.arange(20.0), [], "no parameter differs"),
        (np.arange(20.0), ["constant"], "no parameter differs"),
    ],
)
def test_the_reason_without_shares(values: np.ndarray, columns: list[str], reason: str) -> None:
    shares, [note] = ranking(values, SWEPT.assign(constant=1)[columns])
    assert shares.empty
    assert list(shares) == IMPORTANCE
    assert "balanced accuracy (validation)" in note
    assert reason in note


@pytest.mark.parametrize(
    ("values", "basis"),
    [
        (np.arange(10.0), "the best 5 of 10 trials"),
        (np.arange(49.0), "the best 5 of 49 trials"),
        (np.r_[np.full(7, 50.0), np.arange(33.0)], "the best 7 of 40 trials"),  # seven tie
        (np.arange(50.0), None),
    ],
)
def test_below_fifty_trials_there_is_a_caveat(values: np.ndarray, basis: str | None) -> None:
    shares, notes = ranking(values)
    assert shares["importance"].sum() == pytest.approx(1)
    sentence = f"Parameter importance for balanced accuracy (validation) rests on {basis};"
    sentence += " the sampler drew the settings of the others."
    assert notes == ([sentence] if basis else [])


def test_optuna_stays_silent(capfd: pytest.CaptureFixture[str]) -> None:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ranking(np.arange(12.0))
        assert optuna.logging.get_verbosity() == logging.INFO
    finally:
        optuna.logging.set_verbosity(before)
    assert capfd.readouterr() == ("", "")


def test_ten_thousand_trials_are_thinned_evenly() -> None:
    swept = pd.DataFrame(np.random.default_rng(2).random((10_000, 3)), columns=list("abc"))
    values = {ACCURACY: swept["c"] + swept["a"] / 2}
    table = pd.DataFrame({"run_id": swept.index, "status": "FINISHED", **values})
    shares, _ = importance(table, swept, [OBJECTIVE])
    assert shares["parameter"].tolist()[:2] == ["c", "a"]
    assert shares["importance"].iloc[:2].sum() > 0.9
