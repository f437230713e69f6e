"""The page of `python -m src.export format=web` in a browser, against Python."""

import dataclasses
import functools
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from small_store import SmallStore

from src import export
from src.core.errors import ConfigError, UserError
from src.data.cache import square
from src.data.decoding import Geometry, as_viewed
from src.data.synthetic import Synthetic
from src.deployment import web
from src.deployment.benchmark.benchmark import publish
from src.deployment.benchmark.result import read
from src.deployment.compression.onnx import OnnxStaticInt8
from src.deployment.description import RESEARCH, Decision, Description
from src.deployment.predict import predictions_frame
from src.deployment.runtimes.formats import open_file
from src.deployment.runtimes.onnx import OnnxRuntime

REAL = 50  # pictures on which the page and Python must agree
MAX_DIFFERENCE = 1e-3  # of a probability
READY = "#controls:enabled"
ANSWER = """() => ({
  shown: Object.fromEntries([...document.querySelectorAll('#classes tr')].map(
    (row) => [row.querySelector('th').textContent, row.querySelector('meter').value])),
  top: document.querySelector('tr.top th').textContent,
  decision: document.querySelector('#decision').textContent,
  unsure: !document.querySelector('#unsure').hidden,
})"""
SQUARE = """async ([url, size, geometry]) => {
  const { square } = await import('./page.js');
  const blob = await (await fetch(url)).blob();
  return Array.from(square(await createImageBitmap(blob), size, geometry));
}"""


@dataclasses.dataclass
class Pages:
    """Pages that a server of the folder shows."""

    folder: Path
    address: str
    model: Path

    @property
    def description(self) -> Description:
        return open_file(self.model).description

    @functools.cached_property
    def plain(self) -> str:
        """The address of the page of the model as it is."""
        return self.make("plain")

    def make(self, name: str, file: Path | None = None, **changes: Any) -> str:
        """Write the page of a model, whose description is changed; returns its address."""
        settings = web.WebSettings(unsure_below=changes.pop("unsure_below", None))
        about = dataclasses.replace(self.description, **changes)
        with web.atomic_page(self.folder / name, about, settings) as draft:
            shutil.copyfile(file or self.model, draft)
        return f"{self.address}/{name}/"


@pytest.fixture(scope="module")
def pages(recorded: SmallStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    try:
        web.find_runtime(None)
    except UserError as error:
        pytest.skip(f"no onnxruntime-web: {error}")
    folder = tmp_path_factory.mktemp("pages")
    handler = functools.partial(QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Pages(folder, f"http://127.0.0.1:{server.server_port}", recorded.onnx)
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files, as `python -m http.server` does."""

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def pictures(root: Path, tmp_path_factory: pytest.TempPathFactory, request: Any) -> list[Path]:
    """Real pictures if there are any, drawn ones otherwise."""
    try:
        data = request.getfixturevalue("shared_data")
        return sorted((data / "ham10000").glob("*_part_*/*.jpg"))[:REAL]
    except pytest.skip.Exception:
        folder = tmp_path_factory.mktemp("drawn")
        source = Synthetic(lesions=40, native_size=96)
        manifest = source.manifest()
        for row in range(REAL):
            source.picture(manifest, row).save(folder / f"{row:03}.jpg", quality=95)
        return sorted(folder.iterdir())


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Any]]:
    """`opened(address, width)`: a page that is ready, with `errors` and `requests`."""
    contexts = []

    def open_page(address: str, width: int = 1280, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        contexts.append(context)
        page = context.new_page()
        page.errors, page.requests = [], []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("console", lambda line: page.errors.append(line.text))
        context.on("request", lambda request: page.requests.append(request.url))
        page.goto(address)
        page.locator(READY).wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()


def classify(page: Any, picture: Path) -> dict[str, Any]:
    page.set_input_files("#file", picture)
    page.locator("#caption", has_text=picture.name).wait_for()
    page.locator(READY).wait_for()
    assert page.locator("#status").text_content() == ""
    answer: dict[str, Any] = page.evaluate(ANSWER)
    return answer


def as_in_python(picture: Path, size: int, geometry: Geometry) -> np.ndarray:
    with Image.open(picture) as image:
        return square(as_viewed(image), size, geometry)


@pytest.mark.parametrize(("precision", "rule"), [("float32", "argmax"), ("int8", "balanced")])
def test_the_page_answers_as_python_and_asks_no_other_place(
    precision: str,
    rule: str,
    pages: Pages,
    opened: Callable[..., Any],
    pictures: list[Path],
    tmp_path: Path,
) -> None:
    model, about = pages.model, pages.description
    how = about.image_size, about.geometry
    squares = np.stack([as_in_python(path, *how) for path in pictures])
    if precision == "int8":
        model = tmp_path / "int8.onnx"
        context: Any = SimpleNamespace(calibration_images=lambda *_: squares)
        OnnxStaticInt8(float_first=0, float_last=0).rewrite(pages.model, model, context)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    probability = np.concatenate(
        [session.run(["probabilities"], {"pictures": one[None]})[0] for one in squares]
    )
    mel = about.classes.index("mel")
    # An untrained net: what it adds to all pictures is taken off, small differences are enlarged.
    decision = Decision("mel", float(np.median(probability[:, mel])), "half of them", 0.1)
    offsets = () if rule == "argmax" else tuple((-np.log(probability).mean(axis=0)).tolist())
    rows = predictions_frame(
        probability, dataclasses.replace(about, decision=decision, offsets=offsets)
    )
    unsure_below = float(rows["confidence"].median())
    rows["unsure"] = rows["confidence"] < unsure_below
    for column in ("decision", "unsure", *(["top"] if offsets else [])):
        assert rows[column].nunique() > 1  # else a constant answer would pass
    changes = {"decision": decision, "rule": rule, "offsets": offsets, "precision": precision}
    page = opened(pages.make(precision, model, unsure_below=unsure_below, **changes))
    assert page.locator("#notice").text_content() == RESEARCH
    page.context.set_offline(True)  # what it needs is loaded
    for picture, (_, row) in zip(pictures, rows.iterrows(), strict=True):
        answer = classify(page, picture)
        shown = [answer["shown"][name] - row[f"calibrated/{name}"] for name in about.classes]
        assert np.abs(shown).max() < MAX_DIFFERENCE
        assert answer["top"] == row["top"]
        assert answer["decision"] == f"Decision: {row['decision']}"
        assert answer["unsure"] == row["unsure"]
    assert page.errors == []
    assert len(page.requests) > 4
    assert all(url.startswith(f"{pages.address}/{precision}/") for url in page.requests)


@pytest.fixture(scope="module")
def exact_pictures(pages: Pages) -> list[str]:
    """Names of PNG files, whose pixels are the same in every program, in the folder of pages."""
    random = np.random.default_rng(0)
    colours = random.integers(0, 256, (70, 90, 4), np.uint8)
    rim = np.hypot(*np.mgrid[-1:1:300j, -1:1:400j]) > 0.9
    lens = random.integers(60, 256, (300, 400, 3), np.uint8)
    lens[rim] //= 20
    tall = random.integers(0, 256, (601, 37, 3), np.uint8)  # more rows than are read at a time
    shapes = {"colours": colours[:, :, :3], "lens": lens, "tall": tall, "small": lens[90:95, 90:97]}
    for name, pixels in shapes.items():
        Image.fromarray(pixels).save(pages.folder / f"{name}.png")
    return [f"{name}.png" for name in shapes]


def test_squares_are_those_of_pillow(
    pages: Pages, opened: Callable[..., Any], exact_pictures: list[str]
) -> None:
    page = opened(pages.plain)
    for geometry in get_args(Geometry):
        for name in exact_pictures:
            here = page.evaluate(SQUARE, [f"../{name}", 24, geometry])
            expected = as_in_python(pages.folder / name, 24, geometry).ravel()
            # Pillow may take columns first where they are longer, and rounds in between.
            difference = np.abs(np.subtract(here, expected, dtype=int)).max()
            assert difference <= (name == "tall.png"), f"{geometry} of {name}"


def test_a_rotated_transparent_or_broken_picture(
    pages: Pages, opened: Callable[..., Any], tmp_path: Path
) -> None:
    page = opened(pages.plain)
    pixels = np.zeros((60, 40, 4), np.uint8)
    pixels[:30, :, 0] = pixels[:30, :, 3] = 255  # red above, transparent below
    Image.fromarray(pixels).save(tmp_path / "half.png")
    rotated = Image.fromarray(pixels[:, :, :3])
    exif = rotated.getexif()
    exif[0x0112] = 6  # the camera was turned: shown a quarter to the right
    rotated.save(tmp_path / "turned.jpg", exif=exif, quality=100, subsampling=0)
    for name in ("half.png", "turned.jpg"):
        classify(page, tmp_path / name)
        shown = page.evaluate(
            "() => Array.from(document.querySelector('#square').getContext('2d')"
            ".getImageData(0, 0, 16, 16).data)"
        )
        seen = np.array(shown).reshape(16, 16, 4)[:, :, :3]
        expected = as_in_python(tmp_path / name, 16, "squash")
        assert np.abs(seen - expected.astype(int)).max() <= 3
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    page.set_input_files("#file", tmp_path / "broken.jpg")
    page.locator("#status", has_text="That did not work").wait_for()
    assert page.locator("#answer").is_hidden()  # not that of the picture before


def test_the_camera_is_classified_and_released(pages: Pages, opened: Callable[..., Any]) -> None:
    page = opened(pages.plain, 390, permissions=["camera"])
    page.locator("#camera").press("Enter")  # by keyboard
    page.locator("#take").click()
    page.locator("#caption", has_text="The camera's picture").wait_for()
    page.locator(READY).wait_for()
    shown = page.evaluate(ANSWER)["shown"]
    assert set(shown) == set(pages.description.classes)
    assert sum(shown.values()) == pytest.approx(1, abs=1e-6)
    tracks = page.evaluate_handle("document.querySelector('#video').srcObject.getTracks()")
    page.locator("#camera").click()
    page.locator("#video").wait_for(state="hidden")
    assert tracks.evaluate("(all) => all.map((track) => track.readyState)") == ["ended"]
    assert page.errors == []


def test_a_measurement_joins_the_record(
    pages: Pages, opened: Callable[..., Any], recorded: SmallStore, tmp_path: Path
) -> None:
    page = opened(pages.plain, 390)
    page.fill("#device", "Anna's phone")
    page.locator("#measure").click()
    with page.expect_download() as download:
        page.locator("#save").click()
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    result = read(file)
    assert (file.stem, result.device.name) == (result.name, "Anna_s_phone")
    (row,) = result.rows
    assert row.figures["queries"] == 200
    assert 0 < row.figures["p50_ms"] <= row.figures["p90_ms"] <= row.figures["p99_ms"]
    assert row.figures["mean_ms"] == pytest.approx(1000 * row.figures["seconds"] / 200)
    assert row.figures["size_mb"] == pages.model.stat().st_size / 1e6
    assert publish(result, file, recorded.store) == [recorded.run_id]
    metrics = recorded.store.client.get_run(recorded.run_id).data.metrics
    assert metrics["benchmark/Anna_s_phone/web/t1/b1/p50_ms"] == row.figures["p50_ms"]
    assert all(url.startswith((pages.address, "blob:")) for url in page.requests)
    assert page.errors == []


@pytest.mark.parametrize("width", [390, 1280])
def test_all_of_the_page_is_within_its_width(
    width: int, pages: Pages, opened: Callable[..., Any], pictures: list[Path]
) -> None:
    page = opened(pages.make("screen", unsure_below=0.99, model="a" * 80), width)
    classify(page, pictures[0])
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    focused = []
    for _ in range(5):
        page.keyboard.press("Tab")
        focused.append(page.evaluate("document.activeElement.id"))
    assert focused == ["file", "camera", "below", "device", "measure"]


def test_export_writes_the_page_and_records_it(
    pages: Pages,
    recorded: SmallStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_entry: Callable[..., tuple[int, str]],
) -> None:
    monkeypatch.setattr(OnnxRuntime, "export", lambda *_: recorded.onnx.read_bytes())
    monkeypatch.chdir(tmp_path)
    uri = f"tracking.uri=sqlite:///{recorded.folder / 'mlruns' / 'mlflow.db'}"
    arguments = [uri, f"cache_dir={recorded.folder / 'cache'}", f"run={recorded.run_id}"]
    arguments += ["format=web", "web.unsure_below=0.5", f"hydra.run.dir={tmp_path / 'log'}"]
    status, output = run_entry(export.main, *arguments)
    assert status == 0, output
    folder = Path("exports") / f"custom_{recorded.run_id[:8]}" / "web"
    assert f"python -m http.server --bind 127.0.0.1 --directory {folder}" in output
    names = ["index.html", "model.json", "model.onnx", "onnxruntime.js", "onnxruntime.wasm.gz"]
    assert sorted(file.name for file in folder.iterdir()) == [*names, "page.js"]
    assert open_file(folder / "model.onnx").description.run_id == recorded.run_id
    content = json.loads((folder / "model.json").read_text())
    assert (content["unsure_below"], content["description"]["run_id"]) == (0.5, recorded.run_id)
    size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    assert size < 5
    metrics = recorded.store.client.get_run(recorded.run_id).data.metrics
    assert metrics["export/web/size_mb"] == pytest.approx(size)


def test_a_page_that_cannot_be_made_leaves_the_former_one(pages: Pages) -> None:
    pages.make("kept")
    before = sorted((pages.folder / "kept").iterdir())
    with pytest.raises(UserError, match="format=web: takes float32 or int8, but the run is bfloat"):
        pages.make("kept", precision="bfloat16")
    large = pages.folder / "large.onnx"
    large.write_bytes(bytes(11_400_000))  # 3.7 MB are the runtime and the page
    with pytest.raises(UserError, match=r"page would take 15\.\d MB, more than 15 MB; take a sm"):
        pages.make("kept", large)
    assert sorted((pages.folder / "kept").iterdir()) == before


@pytest.mark.parametrize(
    ("npm", "message"),
    [
        (None, "because npm is not installed; install it, or name a folder"),
        ("echo npm error code ENOTFOUND >&2; exit 1", "(npm error code ENOTFOUND); name a folder"),
        ("exit 3", "(npm ended with 3); name a folder"),
        ("tar -czf other.tgz --files-from /dev/null", "what npm fetched is not that package"),
    ],
)
def test_a_runtime_that_npm_cannot_fetch_ends_in_one_line(
    npm: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    programs = tmp_path / "programs"
    programs.mkdir()
    if npm:
        (programs / "npm").write_text(f"#!/bin/sh\n{npm}\n")
        (programs / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin" if npm else str(programs))
    with pytest.raises(UserError) as error:
        web.find_runtime(None)
    assert message in str(error.value)
    assert str(error.value).count("\n") == 0
    assert not any((tmp_path / "cache").rglob("*.wasm"))


def test_the_runtime_is_taken_from_a_folder_or_the_cache(
    pages: Pages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = web.find_runtime(None)
    shutil.copytree(cached, tmp_path / "package" / "dist")
    monkeypatch.setenv("PATH", "")  # no npm
    assert web.find_runtime(str(tmp_path / "package")) == tmp_path / "package" / "dist"
    assert web.find_runtime(str(tmp_path / "package" / "dist")) == tmp_path / "package" / "dist"
    assert web.find_runtime(None) == cached
    (tmp_path / "package" / "dist" / web.SCRIPT).write_text("of another version")
    problem = "web.runtime: .*package does not hold ort.wasm.bundle.min.mjs and .*@1.30.0"
    with pytest.raises(ConfigError, match=problem):
        web.find_runtime(str(tmp_path / "package"))
