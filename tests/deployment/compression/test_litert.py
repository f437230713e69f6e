from pathlib import Path

import numpy as np

from compression.nets import Sample, confident, context
from src.deployment.compression.litert import LitertInt8
from src.deployment.runtimes.litert import LitertRuntime


def test_a_file_takes_uint8_returns_float_and_has_int8_weights(
    sample: Sample, tmp_path: Path
) -> None:
    model = LitertInt8(images=32).compress(context(confident(), sample.data, tmp_path))
    assert model.file == tmp_path / "model.tflite"
    runtime = LitertRuntime(model.file)
    assert runtime(sample.pictures[:1]).dtype == np.float32
    assert sample.is_near(runtime)
    assert runtime.description.precision == "int8"
    tensors = {tuple(t["shape"]): t for t in runtime._interpreter.get_tensor_details()}
    assert tensors[64, 392]["dtype"] == np.int8
    assert len(tensors[64, 392]["quantization_parameters"]["scales"]) == 64
    assert model.facts["layers"] == 3
