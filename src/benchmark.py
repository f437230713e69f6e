"""ENTRY: deployed models, timed side by side as a small device would feel them.

python -m src.benchmark run=<ids or study> runtime=eager,onnx threads=1
python -m src.benchmark file=model.onnx out=result.json
python -m src.benchmark join=result.json
"""

import sys

from omegaconf import DictConfig

from src.core import cli
from src.core.cli import QUOTES, quoted

EXAMPLES = """
Paretoderm: latency, memory, cold start and, where a counter can be read, energy of trained and exported models.

  python -m src.benchmark run=3f2a9c runtime=onnx             a run, exported for it
  python -m src.benchmark run=[3f2a9c,77e1b0] runtime=[eager,onnx]    each in each, in turns; ratios to the first
  python -m src.benchmark run=dense_size runtime=onnx         the members of a study's front
  python -m src.benchmark file=model.onnx out=result.json     an exported file: no run store is needed
  python -m src.benchmark join=result.json                    what another device has measured, into the record
  python -m src.benchmark run=3f2a9c runtime=onnx cores=1 memory_mb=512    emulating a small device
  python -m src.benchmark run=3f2a9c runtime=[eager,onnx] reference=onnx threads=2

  On a device: copy the project and the exported file, install hydra-core, numpy, pillow, pydantic, rich, tqdm and the
  runtime (such as onnxruntime), measure with file=, bring result.json back.
"""
_TEXTS = (
    "run",
    "file",
    "join",
    "reference",
    "device",
    "image",
    "out",
    "folder",
)  # may look like numbers, or odd
_SEVERAL = ("run", "runtime")


def main() -> None:
    """Run the command line. Status 1 if no model could be measured."""

    def job(config: DictConfig) -> None:
        from src.deployment.benchmark import (
            benchmark as make,  # the libraries take seconds to import: not before --help
        )

        make.make(config)

    sys.argv[1:] = [as_hydra_reads(argument) for argument in sys.argv[1:]]
    cli.run_command(job, "benchmark", EXAMPLES)
    if cli.failures:
        sys.exit(1)


def as_hydra_reads(argument: str) -> str:
    """An argument as it is typed, as Hydra's grammar wants it.

    Ids such as 12e4 and paths stay texts, in lists too; several runs or runtimes are a list, not a
    sweep.
    """
    key, sign, value = argument.partition("=")
    if key in _SEVERAL and "," in value and value[0] not in ("[", *QUOTES):
        value = f"[{value}]"
    if key == "runtime":
        return f"{key}{sign}{value}"
    if key not in _TEXTS or not sign or value in ("", "null") or value[0] in QUOTES:
        return argument
    if value.startswith("[") and value.endswith("]"):
        items = [item.strip() for item in value[1:-1].split(",") if item.strip()]
        return f"{key}=[{','.join(item if item[0] in QUOTES else quoted(item) for item in items)}]"
    return f"{key}={quoted(value)}"


if __name__ == "__main__":
    main()
