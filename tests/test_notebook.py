"""The notebook in docs/ runs from its first cell to its last."""

import json
import os
import subprocess
import sys
from pathlib import Path

from src.core.cli import ROOT


def test_the_notebook_runs(tmp_path: Path) -> None:
    notebook = json.loads((ROOT / "docs" / "notebook.ipynb").read_text())
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    checks = [
        "assert list(probabilities.shape) == [2, 7]",
        "assert torch.allclose(probabilities.sum(1), torch.ones(2), atol=1e-4)",
        "assert len(study.trials) == 2",
        "assert 1 <= len(study.front) <= 2",
        "assert len(predictions) > 0",
    ]
    script = tmp_path / "notebook.py"
    body = "\n\n".join([*cells, *checks])
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    script.write_text(f'if __name__ == "__main__":\n{lines}\n')
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    ended = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
