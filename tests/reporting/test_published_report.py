"""What a report leaves in MLflow: in the store, and as a browser shows it to a person."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from src.reporting.record import Report
from src.reporting.report import make
from src.tracking import read
from src.tracking.run import Run
from src.tracking.store import Store

CONF = Path(__file__).resolve().parents[2] / "conf"

pytestmark = pytest.mark.slow

STUDY = "widths"
CLASSES = ("bcc", "mel", "nv")
IMAGES = 20  # of each class
EPOCHS = 3
TAGS = {"study": STUDY, "kind": "study", "sweeps": "", "limits": "efficiency/params <= 692000.0"}
TAGS |= {"objectives": "maximize val/balanced_accuracy; minimize efficiency/flops"}
TAGS |= {"fixed_overrides": "model=custom data=synthetic"}


@dataclass(frozen=True)
class Trial:
    """A trained net: how many images of each class it gets right, and what it costs."""

    number: int
    right: int
    flops: float
    params: float = 100e3


FRONT = [Trial(0, 10, 1e6), Trial(1, 17, 2e6), Trial(2, 18, 64e6)]
KNEE = FRONT[1]  # the other two are the ends of the chord
BEHIND = [Trial(3, 12, 4e6), Trial(4, 16, 32e6)]
OVER_LIMIT = Trial(5, 19, 1e6, params=1e6)
BETTER = Trial(6, 18, 32e6)  # than the last member of the front


def predictions(right: int) -> pd.DataFrame:
    """`right` images of each class are correct, the others the next class; two per lesion."""
    label = np.repeat(np.arange(len(CLASSES)), IMAGES)
    number = np.tile(np.arange(IMAGES), len(CLASSES))
    predicted = np.where(number < right, label, (label + 1) % len(CLASSES))
    probability = np.where(predicted[:, None] == np.arange(len(CLASSES)), 0.8, 0.1)
    frame = pd.DataFrame(probability, columns=[f"p/{name}" for name in CLASSES])
    frame.insert(0, "image_id", [f"image_{n:03d}" for n in range(len(label))])
    frame.insert(1, "group", [f"lesion_{n // 2:03d}" for n in range(len(label))])
    frame.insert(2, "label", np.array(CLASSES)[label])
    return frame


def write_trial(store: Store, parent_id: str, trial: Trial, tested: bool) -> str:
    tags = {"study": STUDY, "kind": "run", "trial": trial.number, "model": "custom", "seed": 0}
    tags |= {"overrides": f"model.net.width={4 * (trial.number + 1)}", "split": "grouped"}
    tags |= {"grouped_by": "lesion", "data_fingerprint": "d", "split_fingerprint": "s"}
    share = trial.right / IMAGES
    qualities = ("balanced_accuracy", "accuracy")
    costs = {"efficiency/flops": trial.flops, "efficiency/params": trial.params}
    with Run.start(store, f"trial {trial.number}", tags, parent_id=parent_id) as run:
        for epoch in range(EPOCHS):
            run.log({"val/balanced_accuracy": share * (epoch + 1) / EPOCHS}, epoch)
        run.log({f"best/val/{name}": share for name in (*qualities, "recall/mel")})
        run.log({"best/val/loss": 1 - share, **costs})
        run.table(predictions(trial.right), "predictions/val.csv")
        if tested:
            run.log({f"test/{name}": share - 1 / IMAGES for name in qualities})
            run.table(predictions(trial.right - 1), "predictions/test.csv")
    return run.id


def reported(store: Store, *overrides: str) -> Report:
    """The report of `python -m src.report study=widths ...`, with its files beside the store."""
    GlobalHydra.instance().clear()
    typed = [f"study={STUDY}", "test=false", "samples=200", f"tracking.folder={store.folder}"]
    typed += [f"folder={store.folder.parent / 'reports'}", *overrides]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("command/report", overrides=typed)
    return make(config)


def tagged(store: Store, tag: str, value: str = "true") -> set[str]:
    """Which trials have a tag, by their numbers."""
    runs = read.runs(store, f"tags.{tag} = '{value}'")
    return set(runs["tags.trial"]) if len(runs) else set()


def numbers(*trials: Trial) -> set[str]:
    return {str(trial.number) for trial in trials}


@pytest.fixture(scope="module", autouse=True)
def no_other_store_and_no_figures(module_patch: pytest.MonkeyPatch) -> None:
    """Files of figures take most of the time, and test_report.py has them."""
    module_patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    module_patch.setattr("src.reporting.plots_static.write", lambda charts, folder: [])


@pytest.fixture(scope="module")
def published(served_database: Path) -> Store:
    """A store with the study and its report."""
    store = Store(folder=served_database.parent)
    with Run.start(store, STUDY, TAGS) as parent:
        for trial in (*FRONT, *BEHIND, OVER_LIMIT):
            write_trial(store, parent.id, trial, tested=trial in FRONT)
    reported(store)
    return store


def study_run(store: Store) -> pd.Series:
    return read.runs(store, "tags.kind = 'study'").iloc[0]


def test_learning_curves_are_of_the_quality_whatever_objective_comes_first(
    published: Store,
) -> None:
    others = "[{metric:val/loss,direction:minimize},val/balanced_accuracy,efficiency/flops]"
    curves = reported(published, f"objectives={others}", "publish=false").curves
    for trial in (*FRONT, *BEHIND):
        rows = curves[curves["label"] == f"custom #{trial.number}"]
        assert rows["epoch"].tolist() == [1, 2, 3]
        assert rows["value"].tolist() == pytest.approx(
            [trial.right / IMAGES * part / EPOCHS for part in (1, 2, 3)]
        )


@pytest.fixture(scope="module")
def page(browser: Any, server: str) -> Iterator[Any]:
    """A page that asks nothing of others than the server."""
    page = browser.new_page(viewport={"width": 1600, "height": 1000})
    page.set_default_timeout(60_000)
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    yield page
    page.close()
    assert [url for url in urls if not url.startswith((server, "data:", "blob:"))] == []


@pytest.fixture(scope="module")
def runs(server: str, published: Store) -> str:
    """The address of the list of runs."""
    return f"{server}/#/experiments/{published.experiment_id}/runs"


@pytest.fixture(scope="module")
def frame(page: Any, runs: str, published: Store) -> Any:
    """The page in a frame like that of MLflow's viewer: it may run scripts and nothing else.

    Its tests stand together: others take the page elsewhere.
    """
    page.goto(f"{runs}/{study_run(published)['run_id']}")
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("report", exact=True).click()
    page.get_by_text("report.html", exact=True).click()
    viewer = page.frame_locator("iframe[sandbox=allow-scripts]")
    viewer.locator("body[data-drawn]").wait_for()
    return viewer


def test_a_browser_shows_the_description_and_the_headline_figures(
    page: Any, runs: str, published: Store
) -> None:
    run = study_run(published)
    page.goto(f"{runs}/{run['run_id']}")
    page.get_by_role("tab", name="Overview").click()
    figure = page.get_by_role("row").filter(
        has=page.get_by_role("link", name="report/hypervolume", exact=True)
    )
    figure.wait_for()
    assert str(run["metrics.report/hypervolume"]) in figure.inner_text()
    page.get_by_text("Show more", exact=True).click()
    # as a heading, not as text that begins with a hash
    assert page.get_by_role("heading", name=f"{STUDY}: which model to take").is_visible()
    assert page.get_by_text("6 trials: 3 front, 2 dominated, 1 over limit").is_visible()
    question = "Which model has the best balanced accuracy, whatever it costs?"
    assert page.get_by_text(question).is_visible()
    # the front is a table
    cells = page.get_by_role("cell", name=re.compile(r"^custom #\d")).all_text_contents()
    names = [f"custom #{trial.number}{' (knee)' if trial is KNEE else ''}" for trial in FRONT]
    assert cells == names


def test_the_page_opens_and_draws_in_mlflow_s_viewer(frame: Any) -> None:
    assert frame.get_by_role("heading", name=f"{STUDY}: which model to take").is_visible()
    front = frame.locator("#front .picture")
    front.scroll_into_view_if_needed()
    assert front.locator(".main-svg").first.is_visible()
    # of the study's front, of those behind it, over a limit: as they were written
    legend = " ".join(front.locator(".legendtext").all_text_contents())
    for part in ("front (3)", "dominated (2)", "over limit (1)"):
        assert part in legend
    for section in ("recalls", "roc", "effects", "parallel", "curves", "progress"):
        assert frame.locator(f"#{section} .picture .main-svg").count() > 0
    frame.get_by_role("button", name="parameters", exact=True).click()
    front.locator(".xtitle", has_text=re.compile("^parameters")).wait_for()


def test_links_within_the_page_work_in_mlflow_s_viewer(frame: Any) -> None:
    frame.get_by_role("navigation").get_by_role("link", name="How it was measured").click()
    method = frame.locator("#method")
    method.page.wait_for_timeout(500)  # a jump or none: nothing else tells
    top = method.evaluate("one => [one.getBoundingClientRect().top, innerHeight]")
    assert 0 <= top[0] < top[1]


def test_the_list_of_runs_can_be_filtered_by_the_tags(page: Any, runs: str) -> None:
    page.goto(f"{runs}?workflowType=machine_learning")
    row = page.get_by_role("gridcell").filter(has=page.get_by_role("link", name=STUDY, exact=True))
    row.get_by_role("button").first.click()  # the trials hide behind their study's expander
    shown = page.get_by_role("gridcell").get_by_role("link", name=re.compile(r"^trial \d"))
    shown.nth(5).wait_for()
    for tag, trials in {"front": FRONT, "knee": [KNEE]}.items():
        search = page.get_by_placeholder("metrics.rmse")
        search.fill(f"tags.{tag} = 'true'")
        search.press("Enter")
        # the study's run is shown above them
        page.get_by_text(f"{len(trials) + 1} matching runs").wait_for()
        shown.first.wait_for()
        assert sorted(shown.all_text_contents()) == [f"trial {trial.number}" for trial in trials]


def test_a_front_over_other_objectives_leaves_the_tags_and_a_better_trial_moves_them(
    published: Store,
) -> None:
    """The last test of this file: it changes the store."""
    store = published
    before = study_run(store)
    assert tagged(store, "front") == numbers(*FRONT)
    assert tagged(store, "knee") == numbers(KNEE)
    others = {
        "limits=[]": OVER_LIMIT,
        "objectives=[val/balanced_accuracy,efficiency/params]": FRONT[-1],
    }
    for typed, member in others.items():
        report = reported(store, typed)
        assert set(report.table.loc[report.table["front"], "trial"]) == numbers(member)
        assert study_run(store)["metrics.report/front"] == len(FRONT)
        for path, members in (("report", len(FRONT)), (f"report/{STUDY}", 1)):
            table = pd.read_csv(read.artifact(store, before["run_id"], f"{path}/table.csv"))
            assert (table["state"] == "front").sum() == members
        assert tagged(store, "front") == numbers(*FRONT)
        assert tagged(store, "knee") == numbers(KNEE)
        assert tagged(store, "front", "false") == tagged(store, "knee", "false") == set()
    write_trial(store, before["run_id"], BETTER, tested=True)
    reported(store)
    assert tagged(store, "front") == numbers(*FRONT[:-1], BETTER)
    assert tagged(store, "front", "false") == numbers(FRONT[-1])
    assert tagged(store, "knee") == numbers(KNEE)
    after = study_run(store)
    assert before["metrics.report/best/efficiency/flops"] == FRONT[-1].flops
    assert after["metrics.report/best/efficiency/flops"] == BETTER.flops
    assert "7 trials: 3 front, 3 dominated" in after["tags.mlflow.note.content"]
    assert len(pd.read_csv(read.artifact(store, after["run_id"], "report/table.csv"))) == 7
