"""Peak memory of inference."""

import tracemalloc
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_memory_mb(net: nn.Module, image_size: int, batch_size: int, device: torch.device) -> float:
    """Most memory in use at one moment of a forward pass: weights, buffers, input, activations. MB of 10^6 bytes.

    On CUDA it is the allocator's peak: blocks rounded up as it does, cuDNN's workspaces included,
    but not the CUDA context and not what else the process keeps on the GPU. On the CPU it is the
    bytes of the tensors that are alive at once, which is the same each time; what a library
    allocates for itself (oneDNN's reordered weights and scratch space, temporaries within one fused
    operator) is not seen. Of a net that works outside torch it is the peak of what Python and numpy
    allocate, beside weights and input.

    Args:
        net: Images (B, 3, S, S) -> anything, on `device`, in eval mode. Let it run once before:
            CUDA's libraries load then.
        image_size: S, px.
        batch_size: B.
        device: Where the net is.
    """
    layout = torch.channels_last if _is_channels_last(net) else torch.contiguous_format
    with torch.inference_mode():
        if device.type == "cuda":
            return _cuda_peak(net, (batch_size, 3, image_size, image_size), device, layout) / 1e6
        images = torch.zeros(batch_size, 3, image_size, image_size, device=device).to(
            memory_format=layout
        )
        return _tensor_peak(net, images) / 1e6


def _cuda_peak(
    net: nn.Module, shape: tuple[int, ...], device: torch.device, layout: torch.memory_format
) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    net(torch.zeros(shape, device=device).contiguous(memory_format=layout))
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before + _weight_bytes(net)


def _tensor_peak(net: nn.Module, images: Tensor) -> int:
    with _LiveStorages() as live:
        for tensor in (*net.parameters(), *net.buffers(), images):
            live.see(tensor)
        if getattr(net, "outside_torch", False):
            return live.peak + _python_peak(net, images)
        net(images)
    return live.peak


def _python_peak(net: nn.Module, images: Tensor) -> int:
    """Most bytes that Python and numpy, which reports its arrays to it, have allocated at once during a call."""
    running = tracemalloc.is_tracing()
    if not running:
        tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        net(images)
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        if not running:
            tracemalloc.stop()


def _weight_bytes(net: nn.Module) -> int:
    return sum(
        tensor.numel() * tensor.element_size() for tensor in (*net.parameters(), *net.buffers())
    )


def _is_channels_last(net: nn.Module) -> bool:
    return any(
        parameter.dim() == 4
        and parameter.is_contiguous(memory_format=torch.channels_last)
        and not parameter.is_contiguous()
        for parameter in net.parameters()
    )


class _LiveStorages(TorchDispatchMode):
    """Adds up the storages that operators return, from their birth until they are freed; views share one.

    Attributes:
        peak: Most bytes alive at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._now = 0
        self._alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.see(leaf)
        return result

    def see(self, tensor: Tensor) -> None:
        """Count the tensor's storage, if it is a new one."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return

        def freed(_: Any) -> None:
            del self._alive[key]
            self._now -= size

        self._alive[key] = weakref.ref(storage, freed)
        self._now += size
        self.peak = max(self.peak, self._now)
