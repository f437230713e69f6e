"""ENTRY: measure latency, memory and energy of deployed models side by side.

python -m src.benchmark run=<ids or study> runtime=eager,onnx threads=1
python -m src.benchmark file=model.onnx out=result.json
python -m src.benchmark join=result.json
"""

from src.core.cli import Command

COMMAND = Command(
    "command/benchmark",
    "src.deployment.benchmark.benchmark:make",
    """
Paretoderm: latency, memory, cold start and, where a counter exists, energy of trained models.

  python -m src.benchmark run=3f2a9c runtime=onnx                   a run, exported for it
  python -m src.benchmark run=[3f2a9c,77e1b0] runtime=[eager,onnx]  side by side, with ratios
  python -m src.benchmark run=dense_size runtime=onnx               the front of a study
  python -m src.benchmark file=model.onnx out=result.json           a file: needs no run store
  python -m src.benchmark join=result.json                          record another device's result
  python -m src.benchmark run=3f2a9c runtime=onnx cores=1 memory_mb=512      emulate a small device
  python -m src.benchmark run=3f2a9c runtime=[eager,onnx] reference=onnx threads=2

  On a device: copy the project and the exported file, install hydra-core, numpy, pillow, pydantic,
  rich, tqdm and the runtime (such as onnxruntime), measure with file=, and copy result.json back.
""",
    texts=("run", "file", "join", "reference", "device", "image", "out", "folder"),
    lists=("run", "file", "runtime"),
)
main = COMMAND.run

if __name__ == "__main__":
    main()
