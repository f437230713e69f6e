"""Made-up reports of several sizes."""

import pytest
from made_up import make_report, one_run

from src.reporting.record import Report


@pytest.fixture(scope="session")
def report() -> Report:
    return make_report(80)


@pytest.fixture(scope="session")
def small() -> Report:
    return make_report(12, seed=3)


@pytest.fixture(scope="session")
def large() -> Report:
    return make_report(10_000, seed=1)


@pytest.fixture(scope="session")
def two_studies() -> Report:
    return make_report(40, seed=2, studies=("dense_size", "frontier"))


@pytest.fixture(scope="session")
def bare() -> Report:
    return one_run()
