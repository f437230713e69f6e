import logging
import math
import warnings

import numpy as np
import optuna
import pandas as pd
import pytest

from src.metrics.registry import Direction, Objective
from src.reporting.importance import COLUMNS, importance

ACCURACY = "val/balanced_accuracy"


def study(values: np.ndarray, **columns: object) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A random table and its parameters: lr (logarithmic), width (integer), loss (text)."""
    generator = np.random.default_rng(0)
    n = len(values)
    ids = [f"run{number}" for number in range(n)]
    table = pd.DataFrame({"run_id": ids, "status": "FINISHED", f"best/{ACCURACY}": values})
    swept = pd.DataFrame(
        {
            "lr": 10 ** generator.uniform(-4, -1, n),
            "width": generator.integers(4, 49, n),
            "loss": generator.choice(["focal", "plain", "smooth"], n).astype(object),
        },
        index=pd.Index(ids, name="run_id"),
    )
    return table.assign(**columns), swept


def drawn(n: int) -> pd.DataFrame:
    return study(np.zeros(n))[1]


def ranking(values: np.ndarray, direction: Direction = "maximize") -> pd.DataFrame:
    found, reasons = importance(*study(values), [Objective(ACCURACY, direction)])
    assert len(reasons) == (len(values) < 50)
    return found


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@pytest.mark.parametrize("parameter", ["lr", "width", "loss"])
def test_the_one_parameter_that_counts_comes_first(parameter: str, direction: Direction) -> None:
    column = drawn(200)[parameter]
    values = {"lr": np.log10, "width": lambda each: each, "loss": lambda each: each == "focal"}[
        parameter
    ](column)
    noise = np.random.default_rng(1).normal(0, 1e-3, len(column))
    found = ranking(values.to_numpy(dtype=float) + noise, direction)
    assert list(found) == COLUMNS
    assert found["parameter"].iloc[0] == parameter
    assert found["importance"].iloc[0] > 0.7
    assert found["importance"].sum() == pytest.approx(1)
    assert found["importance"].is_monotonic_decreasing
    assert set(found["parameter"]) == {"lr", "width", "loss"}
    assert set(found["objective"]) == {ACCURACY}


def test_each_objective_has_its_own_shares() -> None:
    swept = drawn(100)
    flops = swept["width"].to_numpy(dtype=float) ** 2
    table, swept = study(np.log10(swept["lr"].to_numpy()), **{"efficiency/flops": flops})
    both = [Objective(ACCURACY, "maximize"), Objective("efficiency/flops", "minimize")]
    found, _ = importance(table, swept, both)
    assert found.groupby("objective")["importance"].sum().tolist() == pytest.approx([1, 1])
    assert found.groupby("objective", sort=False)["parameter"].first().tolist() == ["lr", "width"]


def test_shares_are_those_of_an_optuna_study() -> None:
    """The same trials in a study of Optuna's own making, without conversions from a table."""
    own = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))

    def objective(trial: optuna.Trial) -> float:
        first, second = (
            trial.suggest_float("x", 0.0, 1.0),
            trial.suggest_categorical("kind", ["a", "b"]),
        )
        return first + 0.2 * (second == "b")

    for ends in (
        {"x": 0.0, "kind": "a"},
        {"x": 1.0, "kind": "b"},
    ):  # so that the range is the one that was drawn
        own.enqueue_trial(ends)
    own.optimize(objective, n_trials=100)
    expected = optuna.importance.get_param_importances(own)
    table = pd.DataFrame(
        {
            "run_id": range(100),
            "status": "FINISHED",
            f"best/{ACCURACY}": [t.value for t in own.trials],
        }
    )
    swept = pd.DataFrame([trial.params for trial in own.trials])
    found, _ = importance(table, swept, [Objective(ACCURACY, "maximize")])
    assert dict(zip(found["parameter"], found["importance"], strict=True)) == pytest.approx(
        expected
    )


def test_a_conditional_parameter_counts_among_the_trials_that_have_it() -> None:
    table, swept = study(np.zeros(200))
    has = np.arange(200) % 2 == 0
    swept["units"] = np.where(has, swept["width"], math.nan)
    table[f"best/{ACCURACY}"] = np.where(has, swept["width"] / 100 + 0.5, swept["lr"])
    found, _ = importance(table, swept.drop(columns="width"), [Objective(ACCURACY, "maximize")])
    assert found["parameter"].iloc[0] == "units"
    assert found["importance"].notna().all()


def test_only_finished_trials_with_a_finite_value_count() -> None:
    good = np.log10(drawn(60)["lr"].to_numpy())
    clean = ranking(good)
    table, swept = study(good)
    more = swept.set_axis([f"more{number}" for number in range(60)]).rename_axis("run_id")
    bad = pd.DataFrame({"run_id": more.index, "status": "FINISHED", f"best/{ACCURACY}": 99.0})
    bad.loc[:19, "status"] = "PRUNED"
    bad.loc[20:39, f"best/{ACCURACY}"] = math.nan
    bad.loc[40:, f"best/{ACCURACY}"] = math.inf
    found, _ = importance(
        pd.concat([bad, table]), pd.concat([more, swept]), [Objective(ACCURACY, "maximize")]
    )
    pd.testing.assert_frame_equal(found, clean)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.arange(9.0), "9 finished trials with a value, fewer than 10"),
        (np.full(20, 0.5), "the same value"),
        (np.r_[1.0, 1.0, np.zeros(18)], "share the worst value"),
    ],
)
def test_why_there_is_none(values: np.ndarray, reason: str) -> None:
    found, reasons = importance(*study(values), [Objective(ACCURACY, "maximize")])
    assert found.empty
    assert list(found) == COLUMNS
    assert len(reasons) == 1
    assert "balanced accuracy (validation)" in reasons[0]
    assert reason in reasons[0]


def test_no_such_objective_and_no_parameter() -> None:
    table, swept = study(np.arange(20.0))
    _, reasons = importance(table, swept, [Objective("val/auroc", "maximize")])
    assert "0 finished trials" in reasons[0]
    _, reasons = importance(table, swept[[]], [Objective(ACCURACY, "maximize")])
    assert "no parameter differs" in reasons[0]
    _, reasons = importance(
        table, swept.assign(width=1)[["width"]], [Objective(ACCURACY, "maximize")]
    )
    assert "no parameter differs" in reasons[0]


def test_ten_trials_are_enough_to_try() -> None:
    found = ranking(np.arange(10.0))
    assert found["importance"].sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.arange(12.0), "the best 5 of 12 trials"),
        (np.arange(49.0), "the best 5 of 49 trials"),
        (np.r_[np.full(7, 50.0), np.arange(33.0)], "the best 7 of 40 trials"),  # seven tie
        (np.arange(50.0), None),
    ],
)
def test_below_fifty_trials_there_is_a_caveat(values: np.ndarray, said: str | None) -> None:
    found, reasons = importance(*study(values), [Objective(ACCURACY, "maximize")])
    assert found["importance"].sum() == pytest.approx(1)
    sentence = f"Parameter importance for balanced accuracy (validation) rests on {said};"
    sentence += " the sampler drew the settings of the others."
    assert reasons == ([sentence] if said else [])


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
    generator = np.random.default_rng(2)
    swept = pd.DataFrame(generator.random((10_000, 8)), columns=list("abcdefgh"))
    table = pd.DataFrame(
        {
            "run_id": swept.index,
            "status": "FINISHED",
            f"best/{ACCURACY}": swept["c"] + swept["f"] / 2,
        }
    )
    found, _ = importance(table, swept, [Objective(ACCURACY, "maximize")])
    assert found["parameter"].tolist()[:2] == ["c", "f"]
    assert found["importance"].iloc[:2].sum() > 0.9
