"""An ONNX file is used without torch and without this project."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from runtimes.nets import SEVEN, SIDE, describe, expected, varied
from src.deployment.runtimes.base import ImageBatch
from src.deployment.runtimes.formats import FORMATS
from src.models.custom import CustomCNN

PROGRAM = """
import json, sys

class OnlyNumpyAndOnnxRuntime:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in ("numpy", "onnxruntime"):
            raise ModuleNotFoundError(f"refused: {name}", name=name)

sys.meta_path.insert(0, OnlyNumpyAndOnnxRuntime())
for name in ("torch", "src"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        pass
    else:
        sys.exit(f"{name} could be imported")

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
about = json.loads(session.get_modelmeta().custom_metadata_map["paretoderm"])
pictures = np.load(sys.argv[2])
assert pictures.shape[1:] == (about["image_size"], about["image_size"], 3)
assert about["geometry"] == "squash"
(first,) = session.get_inputs()
(probabilities,) = session.run(None, {first.name: pictures})
column = about["classes"].index(about["decision"]["positive"])
print(json.dumps({
    "top": [about["classes"][label] for label in probabilities.argmax(axis=1)],
    "positive": (probabilities[:, column] >= about["decision"]["threshold"]).tolist(),
    "run": about["run_id"], "licence": about["licence"],
    "loaded": sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "src"}),
}))
"""


def test_a_file_decides_alike_where_only_numpy_and_onnx_runtime_are_installed(
    pictures: ImageBatch, tmp_path: Path
) -> None:
    camera = varied(CustomCNN(SIDE, 7, width=4, depth=1, dense=[8]), pictures)
    FORMATS["onnx"].write(camera, describe(SEVEN), tmp_path / "model.onnx")
    np.save(tmp_path / "pictures.npy", pictures)
    (empty := tmp_path / "empty").mkdir()
    ended = subprocess.run(
        [sys.executable, "-I", "-c", PROGRAM, "../model.onnx", "../pictures.npy"],
        cwd=empty,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    output, probabilities = json.loads(ended.stdout), expected(camera, pictures)
    assert output["top"] == [SEVEN[label] for label in probabilities.argmax(axis=1)]
    assert output["positive"] == (probabilities[:, 1] >= 0.3).tolist()
    assert len(set(output["top"])) > 1
    assert (output["run"], output["licence"], output["loaded"]) == ("3f2a", "a licence", [])
