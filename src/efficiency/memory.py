"""Peak memory of inference."""

import tracemalloc
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_memory_mb(net: nn.Module, image_size: int, batch_size: int, device: torch.device) -> float:
    """Peak memory of a forward pass: weights, buffers, input, activations, in MB of 10^6 bytes.

    On CUDA it is the peak of the allocator: with its rounding and cuDNN's workspaces, without the
    CUDA context and other tensors of the process. On the CPU it is the bytes of the tensors that
    are alive at once, which is reproducible; internal memory of libraries (oneDNN's reordered
    weights and scratch space, temporaries within one fused operator) is not included. For a network
    that works outside torch it is the peak of Python's and numpy's allocations, besides weights
    and input.

    The network is on `device`, in evaluation mode, and takes images (B, 3, S, S). Call it once
    before, so that CUDA's libraries are loaded.
    """
    channels_last = any(
        parameter.dim() == 4
        and parameter.is_contiguous(memory_format=torch.channels_last)
        and not parameter.is_contiguous()
        for parameter in net.parameters()
    )
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shape = (batch_size, 3, image_size, image_size)
    with torch.inference_mode():
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            net(torch.zeros(shape, device=device).contiguous(memory_format=layout))
            torch.cuda.synchronize(device)
            weights = sum(tensor.nbytes for tensor in (*net.parameters(), *net.buffers()))
            return (torch.cuda.max_memory_allocated(device) - before + weights) / 1e6
        images = torch.zeros(shape, device=device).to(memory_format=layout)
        with _LiveStorages() as live:
            for tensor in (*net.parameters(), *net.buffers(), images):
                live.add(tensor)
            if getattr(net, "outside_torch", False):
                tracing = tracemalloc.is_tracing()
                try:
                    tracemalloc.start()
                    tracemalloc.reset_peak()
                    before = tracemalloc.get_traced_memory()[0]
                    net(images)
                    of_python = tracemalloc.get_traced_memory()[1] - before
                finally:
                    if not tracing:
                        tracemalloc.stop()
                return (live.peak + of_python) / 1e6
            net(images)
        return live.peak / 1e6


class _LiveStorages(TorchDispatchMode):
    """The bytes of storages that operators return, until they are freed, and their `peak`.

    Views share one storage.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._current = 0
        self._alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return result

    def add(self, tensor: Tensor) -> None:
        """Count the storage of a tensor if it is new."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return

        def freed(_: Any) -> None:
            del self._alive[key]
            self._current -= size

        self._alive[key] = weakref.ref(storage, freed)
        self._current += size
        self.peak = max(self.peak, self._current)
