"""One process, one model."""

import gc
import importlib
import importlib.metadata
import io
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from src.core.errors import UserError
from src.deployment.runtimes.base import ImageBatch, Runtime, needs, quiet


def main() -> None:
    """Emulate, load, answer; a mistake of the user's is an answer too, with the key `error`."""
    began, spec = time.perf_counter(), json.loads(sys.argv[1])
    answers = _own_channel()
    try:
        emulate(spec.get("cores"), spec.get("memory_mb"))
        pass  # numpy and the runtime: counted, and limited

        session = Session(spec, began)
        _tell(answers, session.hello())
        for line in sys.stdin:
            _tell(answers, session.obey(json.loads(line)))
    except UserError as error:
        _tell(answers, {"error": " ".join(str(error).split())})
    except MemoryError:
        _tell(answers, {"error": "out of memory"})


def emulate(cores: int | None, memory_mb: int | None) -> None:
    """Hold this process to the first cores that it may use, and to so much memory.

    The limit is RLIMIT_DATA: what the process may make writable for itself. It is nearer to a small
    device's memory than RLIMIT_AS, which counts address space that is never touched and library
    files that are only mapped (torch maps gigabytes). Both count what is asked for; what is
    resident is checked besides, see `Session`.

    Args:
        cores: None: all.
        memory_mb: 10^6 bytes; None: no limit.

    Raises:
        UserError: This system cannot do it.
    """
    if cores:
        if not hasattr(os, "sched_setaffinity"):
            raise UserError(
                f"cores={cores}: this system cannot hold a process to cores; leave it out"
            )
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    if memory_mb:
        try:
            import resource

            resource.setrlimit(resource.RLIMIT_DATA, (memory_mb * 10**6,) * 2)
        except (ImportError, ValueError, OSError) as error:
            raise UserError(
                f"memory_mb={memory_mb}: this system cannot limit a process ({error})"
            ) from error


def _own_channel() -> TextIO:
    """What was standard output, for answers alone: libraries that print do so on standard error."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return channel


def _tell(channel: TextIO, answer: dict[str, Any]) -> None:
    channel.write(json.dumps(answer) + "\n")
    channel.flush()


PICTURES = 8  # different ones, queried in turn


class Library(NamedTuple):
    """What a process imports before it can load a model, apart from what it loads it with.

    Attributes:
        package: Whose version is told.
        module: Of the package.
        ours: Module and class of this project around it.
        extra: That installs it; empty: it is always there.
    """

    package: str
    module: str
    ours: tuple[str, str]
    extra: str = ""


# Not through src.deployment.trained: that imports all of them, and torch with them, and the process
# would be no longer one that a device has.
LIBRARIES = {
    "eager": Library("torch", "torch", ("src.deployment.runtimes.eager", "EagerRuntime")),
    "compile": Library("torch", "torch", ("src.deployment.runtimes.eager", "CompiledRuntime")),
    "onnx": Library(
        "onnxruntime", "onnxruntime", ("src.deployment.runtimes.onnx", "OnnxRuntime"), "onnx"
    ),
    "executorch": Library(
        "executorch",
        "executorch.runtime",
        ("src.deployment.runtimes.executorch", "ExecutorchRuntime"),
        "executorch",
    ),
    "litert": Library(
        "ai-edge-litert",
        "ai_edge_litert.interpreter",
        ("src.deployment.runtimes.litert", "LitertRuntime"),
        "litert",
    ),
}


class Session:
    """A loaded model and what its queries are made of.

    Args:
        spec: From `src.deployment.benchmark.models`, with `batch`, `threads` and, of an emulation,
            `memory_mb`.
        began: When this process began to import, by `time.perf_counter`.

    Raises:
        UserError: The model cannot be loaded, takes another batch, or needs more memory than it may
            have.
    """

    def __init__(self, spec: dict[str, Any], began: float) -> None:
        self._limit_mb = spec.get("memory_mb")
        library = LIBRARIES[spec["runtime"]]
        load = _loader(library, spec)
        imported = time.perf_counter()
        self._imported_mb, self._version = (
            high_water_mb(),
            importlib.metadata.version(library.package),
        )
        self._runtime = load()
        loaded = time.perf_counter()
        if self._runtime.batch not in (None, spec["batch"]):
            raise UserError(
                f"batch={spec['batch']}: this model takes {self._runtime.batch} a call; set batch to that"
            )
        size = self._runtime.description.image_size
        self._shape = (int(spec["batch"]), size, size, 3)
        self._runtime(np.full(self._shape, 127, np.uint8))
        self._seconds = {"import_s": imported - began, "load_s": loaded - imported}
        self._peak_mb = self._within_limit()
        self._pictures: list[ImageBatch] = []
        self._photograph = b""
        gc.disable()  # its pauses are Python's, not the model's

    def hello(self) -> dict[str, Any]:
        """Told unasked, when the first query has been answered: how long that took, the memory, what the model is."""
        return {
            **self._seconds,
            "imported_mb": self._imported_mb,
            "peak_mb": self._peak_mb,
            "description": self._runtime.description.to_json(),
            "version": self._version,
        }

    def obey(self, command: dict[str, Any]) -> dict[str, Any]:
        """Do one command: `warm_up`, `turn`, `photograph` or `jpeg`."""
        if not self._pictures:
            rng = np.random.default_rng(0)
            self._pictures = [rng.integers(0, 256, self._shape, np.uint8) for _ in range(PICTURES)]
        do = command["do"]
        if do == "warm_up":
            return self._warm_up(command["seconds"])
        if do == "photograph":
            self._photograph = Path(command["path"]).read_bytes()
            return {}
        query = self._query if do == "turn" else self._query_from_jpeg
        return _timed(query, command["untimed"], command["timed"])

    def _warm_up(self, seconds: float) -> dict[str, Any]:
        times: list[int] = []
        end = time.perf_counter() + seconds
        while not times or time.perf_counter() < end:
            times += _timed(self._query, 0, 1)["ns"]
        self._within_limit()
        return {"ns": times}

    def _query(self, number: int) -> None:
        self._runtime(self._pictures[number % PICTURES])

    def _query_from_jpeg(self, number: int) -> None:
        """From the photograph's bytes to the answer; each picture of a batch is decoded."""
        from PIL import Image, ImageOps

        from src.data.cache import square

        size, geometry = self._shape[1], self._runtime.description.geometry
        squares = []
        for _ in range(self._shape[0]):
            with Image.open(io.BytesIO(self._photograph)) as image:
                squares.append(
                    square(ImageOps.exif_transpose(image).convert("RGB"), size, geometry)
                )
        self._runtime(np.stack(squares))

    def _within_limit(self) -> float | None:
        """The most memory that was resident so far, MB; refused where the emulated device has less."""
        peak, limit = high_water_mb(), self._limit_mb
        if limit and peak and peak > limit:
            raise UserError(
                f"does not fit: {peak:.0f} MB resident, more than memory_mb={limit} (emulation)"
            )
        return peak


def high_water_mb() -> float | None:
    """The most memory of this process that was resident at once, MB of 10^6 bytes; None where the system tells none.

    On Linux it is VmHWM. `ru_maxrss`, which other systems are asked for, starts on Linux at what
    the parent had when it started this process.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _timed(query: Callable[[int], None], untimed: int, timed: int) -> dict[str, Any]:
    for number in range(untimed):
        query(number)
    times = []
    cpu = time.process_time_ns()
    for number in range(timed):
        began = time.perf_counter_ns()
        query(number)
        times.append(time.perf_counter_ns() - began)
    return {"ns": times, "cpu_ns": time.process_time_ns() - cpu}


def _loader(library: Library, spec: dict[str, Any]) -> Callable[[], Runtime]:
    """Import all that loading needs."""
    _import(library, bool(spec.get("memory_mb")))
    module, name = library.ours
    kind = getattr(importlib.import_module(module), name)
    threads = int(spec["threads"])
    if "file" in spec:
        return lambda: kind(Path(spec["file"]), threads)
    return _net_loader(kind, Path(spec["net"]), threads)


def _import(library: Library, limited: bool) -> None:
    with quiet(), needs(library.extra):
        try:
            importlib.import_module(library.module)
        except ModuleNotFoundError:
            raise
        except ImportError as error:  # it is installed: what failed is its start
            if not limited:
                raise
            raise UserError(f"does not fit: {library.package} cannot be loaded: {error}") from error


def _net_loader(kind: Callable[..., Runtime], folder: Path, threads: int) -> Callable[[], Runtime]:
    """Of a trained net of torch's, from what `src.deployment.benchmark.models` laid into a folder: no run store is read."""
    from omegaconf import DictConfig, OmegaConf

    from src.deployment.description import Description
    from src.deployment.trained import load_checkpoint

    def load_net() -> Runtime:
        description = Description.from_json((folder / "description.json").read_text(), str(folder))
        config = OmegaConf.load(folder / "config.yaml")
        assert isinstance(config, DictConfig)
        return kind(
            load_checkpoint(config, description.classes, folder / "best.ckpt"), description, threads
        )

    return load_net


SIZE = (600, 450)  # px, as HAM10000's photographs
QUALITY = 95
SKIN, LESION = (214, 168, 148), (108, 66, 52)
# deviation of the noise: the file is then about as large as HAM10000's, and as slow to decode
GRAIN = 9.0


def encoded(image: str | None) -> tuple[bytes, str]:
    """A JPEG file's content, and what it is.

    Args:
        image: A picture's file: a JPEG as it is, any other one is encoded. None: a lesion is drawn.

    Raises:
        UserError: The file is no picture.
    """
    if image is None:
        return _jpeg(_drawn()), f"drawn, {SIZE[0]}x{SIZE[1]} px"
    try:
        content = Path(image).read_bytes()
        with Image.open(io.BytesIO(content)) as picture:
            told = f"{Path(image).name}, {picture.width}x{picture.height} px"
            return (content if picture.format == "JPEG" else _jpeg(picture.convert("RGB"))), told
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"image={image}: cannot be read as a picture ({error})") from error


def _drawn() -> Image.Image:
    image = Image.new("RGB", SIZE, SKIN)
    ImageDraw.Draw(image).ellipse((190, 110, 430, 330), fill=LESION)
    grain = np.random.default_rng(0).normal(0, GRAIN, (SIZE[1], SIZE[0], 3))
    soft = np.asarray(image.filter(ImageFilter.GaussianBlur(12)), dtype=np.float64)
    return Image.fromarray((soft + grain).clip(0, 255).astype(np.uint8))


def _jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


if __name__ == "__main__":
    main()
