"""ENTRY: export a trained run to ONNX, ExecuTorch, LiteRT or a web page; check the file.

The file takes uint8 RGB pictures (N, S, S, 3) and returns probabilities (N, K).
It normalises a picture itself; crop it to a square and resize it before.
Labels, geometry, threshold, licence and the run's id are in the file.

  python -m src.export run=3f2a9c                      ONNX, any batch size
  python -m src.export run=3f2a9c format=executorch    .pte, one picture a call
  python -m src.export run=3f2a9c format=litert        .tflite, likewise
  python -m src.export run=3f2a9c format=onnx,litert   both
  python -m src.export run=3f2a9c format=web           a page that runs it in a browser
  python -m src.export run=3f2a9c data.root=<folder>   if the images were moved
  python -m src.export run=3f2a9c images=null publish=false  check on all images

The libraries are optional: pip install -e '.[onnx,executorch,litert]'.
"""

from src.core.cli import Command

COMMAND = Command(
    "command/export",
    "src.deployment.export:export_run",
    __doc__,
    renamed={"data.root": "root"},
    texts=("run", "data.root", "root", "web.runtime"),
    lists=("format",),
)
main = COMMAND.run

if __name__ == "__main__":
    main()
