"""The process that holds one model of a benchmark, and the photograph of its queries."""

import functools
import gc
import importlib
import importlib.metadata
import io
import math
import os
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from src.core.errors import UserError
from src.data.decoding import as_viewed
from src.deployment.description import Description
from src.deployment.runtimes.base import ImageBatch, Runtime, needs, quiet
from src.deployment.runtimes.formats import FORMATS

PICTURES = 8  # different pictures, queried in turn
SIZE = (600, 450)  # px, as HAM10000's photographs
QUALITY = 95
SKIN, LESION = (214, 168, 148), (108, 66, 52)
GRAIN = 9.0  # noise that makes the file as large, and as slow to decode, as HAM10000's


def main() -> None:
    """Emulate, load, and answer messages of the pipe whose handle is the argument.

    An answer that is a text is the reason why there is no other one, and the last.
    """
    pipe = Connection(int(sys.argv[1]))
    try:
        spec = pipe.recv()
        emulate(spec.get("cores"), spec.get("memory_mb"))
        session = Session(spec)
        pipe.send(session.hello)
        while True:
            name, *arguments = pipe.recv()
            pipe.send(getattr(session, name)(*arguments))
    except EOFError:  # the other end is closed: nothing more to do
        return
    except UserError as error:
        pipe.send(" ".join(str(error).split()))
    except MemoryError:
        pipe.send("out of memory")


def emulate(cores: int | None, memory_mb: int | None) -> None:
    """Limit this process to its first cores and to `memory_mb` (10^6 bytes); None: no limit.

    The limit is RLIMIT_DATA: the writable memory of the process. It is closer to the memory of a
    small device than RLIMIT_AS, which counts address space that is never touched and library files
    that are only mapped (torch maps gigabytes). Resident memory is checked too, see `Session`.

    Raises:
        UserError: This system has no such limits.
    """
    if cores:
        if not hasattr(os, "sched_setaffinity"):
            problem = "this system cannot limit a process to cores; leave it out"
            raise UserError(f"cores={cores}: {problem}")
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    if memory_mb:
        try:
            import resource

            resource.setrlimit(resource.RLIMIT_DATA, (memory_mb * 10**6,) * 2)
        except (ImportError, ValueError, OSError) as error:
            problem = f"this system cannot limit a process ({error})"
            raise UserError(f"memory_mb={memory_mb}: {problem}") from error


class Session:
    """A loaded model and the pictures of its queries.

    Attributes:
        hello: Durations, memory, description and version, sent after the first query. Memory is NaN
            where the system does not say.

    Args:
        spec: `BenchmarkModel.spec` with `batch`, `threads` and, in an emulation, `memory_mb`.

    Raises:
        UserError: The model cannot be loaded, takes another batch size, or exceeds the memory.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        self._limit_mb = spec.get("memory_mb")
        form = FORMATS.get(spec["runtime"])
        library = form.library if form else "torch"
        self._runtime, imported, imported_mb = _load(library, spec)
        loaded = time.perf_counter()
        if self._runtime.batch not in (None, spec["batch"]):
            raise UserError(
                f"batch={spec['batch']}: this model takes {self._runtime.batch} a call; "
                "set batch to that"
            )
        size = self._runtime.description.image_size
        self._shape = (int(spec["batch"]), size, size, 3)
        self._runtime(np.full(self._shape, 127, np.uint8))
        self.hello = {
            "load_s": loaded - imported,
            "imported_memory_mb": imported_mb,
            "peak_memory_mb": self._checked_peak_mb(),
            "description": self._runtime.description,
            "version": importlib.metadata.version(library.partition(".")[0].replace("_", "-")),
        }
        self._jpeg = b""
        gc.disable()  # its pauses are Python's, not the model's

    @functools.cached_property
    def _pictures(self) -> list[ImageBatch]:
        """Drawn at the first query, not as a part of the cold start."""
        rng = np.random.default_rng(0)
        return [rng.integers(0, 256, self._shape, np.uint8) for _ in range(PICTURES)]

    def photograph(self, content: bytes) -> None:
        """Let each query begin with the content of a JPEG file from now on."""
        self._jpeg = content
        self._query(0)  # loads the decoder

    def warm_up(self, seconds: float) -> np.ndarray:
        """Query for that long, at least once: times in ms; a UserError if memory is exceeded."""
        times: list[float] = []
        end = time.perf_counter() + seconds
        while not times or time.perf_counter() < end:
            times += self.turn(0, 1)[0].tolist()
        self._checked_peak_mb()
        return np.array(times)

    def turn(self, untimed: int, timed: int) -> tuple[np.ndarray, float]:
        """Query that often: times of the timed queries, and their CPU time (all threads), ms."""
        for number in range(untimed):
            self._query(number)
        times = []
        cpu = time.process_time_ns()
        for number in range(timed):
            began = time.perf_counter_ns()
            self._query(number)
            times.append(time.perf_counter_ns() - began)
        return np.array(times) / 1e6, (time.process_time_ns() - cpu) / 1e6

    def _query(self, number: int) -> None:
        """One call; it decodes the photograph, if there is one, for each picture of the batch."""
        if not self._jpeg:
            self._runtime(self._pictures[number % PICTURES])
            return
        from src.data.cache import square

        size, geometry = self._shape[1], self._runtime.description.geometry
        squares = []
        for _ in range(self._shape[0]):
            with Image.open(io.BytesIO(self._jpeg)) as image:
                squares.append(square(as_viewed(image), size, geometry))
        self._runtime(np.stack(squares))

    def _checked_peak_mb(self) -> float:
        """Peak resident memory, MB; an error if it exceeds the emulated device's."""
        peak, limit = high_water_mb(), self._limit_mb
        if limit and peak > limit:
            resident = f"{peak:.0f} MB resident, more than memory_mb={limit}"
            raise UserError(f"does not fit: {resident} (emulation)")
        return peak


def high_water_mb() -> float:
    """Peak resident memory of this process, MB of 10^6 bytes; NaN if the system does not say.

    VmHWM on Linux, where `ru_maxrss` starts at the value of the parent process.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    try:
        import resource
    except ImportError:
        return math.nan
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _load(library: str, spec: dict[str, Any]) -> tuple[Runtime, float, float]:
    """Load a model; also the time and the peak memory after the imports and before loading."""
    form, threads = FORMATS.get(spec["runtime"]), int(spec["threads"])
    with quiet(), needs(form.name if form else ""):
        try:
            importlib.import_module(library)
        except ModuleNotFoundError:
            raise
        except ImportError as error:  # the library is installed, but could not start
            if not spec.get("memory_mb"):
                raise
            raise UserError(f"does not fit: {library} cannot be loaded: {error}") from error
    if form is None:
        from src.deployment.runtimes.eager import CompiledRuntime, EagerRuntime
        from src.deployment.trained import load_checkpoint
    imported = time.perf_counter(), high_water_mb()
    if form is not None:
        return form(Path(spec["file"]), threads), *imported
    about: Description = spec["description"]
    camera = load_checkpoint(spec["config"], about.classes, Path(spec["checkpoint"]))
    runtime = EagerRuntime if spec["runtime"] == "eager" else CompiledRuntime
    return runtime(camera, about, threads), *imported


def encoded(image: str | None) -> tuple[bytes, str]:
    """The content of a JPEG file, and its description. None: a drawn lesion.

    A picture file that is not a JPEG is encoded as one.

    Raises:
        UserError: The file is not a picture.
    """
    if image is None:
        drawn = Image.new("RGB", SIZE, SKIN)
        ImageDraw.Draw(drawn).ellipse((190, 110, 430, 330), fill=LESION)
        soft = np.asarray(drawn.filter(ImageFilter.GaussianBlur(12)), dtype=np.float64)
        grain = np.random.default_rng(0).normal(0, GRAIN, soft.shape)
        picture = Image.fromarray((soft + grain).clip(0, 255).astype(np.uint8))
        return _jpeg(picture), f"drawn, {SIZE[0]}x{SIZE[1]} px"
    try:
        content = Path(image).read_bytes()
        with Image.open(io.BytesIO(content)) as picture:
            text = f"{Path(image).name}, {picture.width}x{picture.height} px"
            return (content if picture.format == "JPEG" else _jpeg(as_viewed(picture))), text
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"image={image}: cannot be read as a picture ({error})") from error


def _jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


if __name__ == "__main__":
    main()
