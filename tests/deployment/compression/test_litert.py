from pathlib import Path

import numpy as np

from compression.nets import NEAR, confident, context
from src.data.module import DataModule
from src.deployment.compression.litert import LitertInt8
from src.deployment.runtimes.base import ImageBatch, Probabilities, in_batches
from src.deployment.runtimes.litert import LitertRuntime


def test_a_file_takes_uint8_returns_float_and_has_int8_weights(
    data: DataModule, tmp_path: Path, pictures: ImageBatch, expected: Probabilities
) -> None:
    model = LitertInt8(images=32).compress(context(confident(), data, tmp_path))
    assert model.file == tmp_path / "model.tflite"
    runtime = LitertRuntime(model.file)
    output = in_batches(runtime, pictures)
    assert output.dtype == np.float32
    assert np.abs(output - expected).mean() < NEAR
    assert runtime.description.precision == "int8"
    details = {
        tuple(tensor["shape"]): tensor
        for tensor in runtime._interpreter.get_tensor_details()
        if tensor["shape"].size > 1
    }
    assert details[64, 392]["dtype"] == np.int8
    assert len(details[64, 392]["quantization_parameters"]["scales"]) == 64
    assert model.facts["layers"] == 3
