"""ENTRY: export a trained run to ONNX, ExecuTorch or LiteRT and check the file in its runtime.

python -m src.export run=<id> format=onnx
python -m src.export run=<id> format=[onnx,executorch,litert]
"""

from src.core.cli import Command

COMMAND = Command(
    "command/export",
    "src.deployment.export:export_run",
    """
Paretoderm: export a trained run. The file takes uint8 RGB pictures (N, S, S, 3) and returns
probabilities (N, K). It normalises the picture itself; crop it to a square and resize it before.
Labels, geometry, threshold, licence and the run's id are in the file.

  python -m src.export run=3f2a9c                            ONNX for ONNX Runtime, any batch size
  python -m src.export run=3f2a9c format=executorch          .pte for ExecuTorch, one picture a call
  python -m src.export run=3f2a9c format=litert              .tflite for LiteRT, one picture a call
  python -m src.export run=3f2a9c format=onnx,litert         both
  python -m src.export run=3f2a9c data.root=<folder>         if the images have been moved
  python -m src.export run=3f2a9c images=null publish=false  check on all validation images

The libraries are optional: pip install -e '.[onnx]', '.[executorch]', '.[litert]'.
""",
    renamed={"data.root": "root"},
    texts=("run", "data.root", "root"),
    lists=("format",),
)
main = COMMAND.run

if __name__ == "__main__":
    main()
