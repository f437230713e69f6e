"""Made-up reports of several sizes, and a browser to look at their pages."""

import shutil

import pytest
from made_up import make_report, one_run

from src.reporting.record import Report

# WebGL without a graphics card, for parallel coordinates and for thousands of points
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--enable-unsafe-swiftshader",
    "--use-angle=swiftshader",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


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


@pytest.fixture(scope="session")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no browser: the program chromium is not on the path")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield running
        running.close()
