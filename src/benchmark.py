"""ENTRY: latency, memory, cold start and, where there is a counter, energy of deployed models.

  python -m src.benchmark run=3f2a9c runtime=onnx           an exported run
  python -m src.benchmark run=[3f2a9c,77e1b0] runtime=[eager,onnx]  side by side
  python -m src.benchmark run=dense_size runtime=onnx       the front of a study
  python -m src.benchmark file=model.onnx out=result.json   needs no run store
  python -m src.benchmark join=result.json                  of another device
  python -m src.benchmark run=3f2a9c runtime=onnx cores=1 memory_mb=512
  python -m src.benchmark run=3f2a9c runtime=[eager,onnx] reference=onnx

On a device: copy the project and the exported file, install hydra-core, numpy,
pillow, pydantic, rich, tqdm and the runtime (such as onnxruntime), measure with
file=, and copy result.json back.
"""

from src.core.cli import Command

COMMAND = Command(
    "command/benchmark",
    "src.deployment.benchmark.benchmark:make",
    __doc__,
    texts=("run", "file", "join", "reference", "device", "image", "out", "folder"),
    lists=("run", "file", "runtime"),
)
main = COMMAND.run

if __name__ == "__main__":
    main()
