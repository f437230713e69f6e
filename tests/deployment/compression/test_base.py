"""Calibration images, refusals that all compressions share, bfloat16."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_store import CLASSES, classifier

from compression.nets import Sample, confident, context
from src.core.errors import UserError
from src.deployment.compression.base import Bfloat16, Compression, stratified_sample
from src.deployment.compression.executorch import ExecutorchInt8
from src.deployment.compression.litert import LitertInt8
from src.deployment.compression.onnx import OnnxDynamicInt8, OnnxFloat32, OnnxStaticInt8
from src.models.custom import CustomCNN
from src.models.structure import cast
from src.models.svm import RadiomicsSVM
from src.models.weights import load_weights, save_weights


def test_a_model_without_layers_is_refused(sample: Sample, tmp_path: Path) -> None:
    methods: list[Compression] = [OnnxFloat32(), OnnxStaticInt8(), OnnxDynamicInt8()]
    for method in (*methods, Bfloat16(), ExecutorchInt8(), LitertInt8()):
        with pytest.raises(UserError, match="net is not a network"):
            method.compress(context(RadiomicsSVM(len(CLASSES)), sample.data, tmp_path))


def test_calibration_images_are_stratified_training_images(sample: Sample) -> None:
    data = sample.data
    source = context(confident(), data, Path())
    images = source.calibration_images(40, seed=1)
    rows = {data.cache.images[row].tobytes(): row for row in range(len(data.labels))}
    chosen = [rows[image.tobytes()] for image in images]
    assert len(set(chosen)) == 40
    assert set(chosen) <= set(data.rows("train"))
    counts = np.bincount(data.labels[chosen], minlength=7)
    share = 40 * np.array(data.seen_counts) / sum(data.seen_counts)
    assert (np.abs(counts - share) < 1).all() or (counts[share < 1] == 1).all()
    assert (counts >= 1).all()
    assert (images == source.calibration_images(40, seed=1)).all()
    assert (images != source.calibration_images(40, seed=2)).any()


@pytest.mark.parametrize(
    ("number", "counts"), [(9, [5, 3, 1]), (500, [60, 30, 10]), (1, [1, 1, 1])]
)
def test_strata_are_rounded_by_largest_remainders(number: int, counts: list[int]) -> None:
    labels = np.repeat([0, 1, 2], [60, 30, 10])  # of 9 images: 5.4, 2.7 and 0.9
    chosen = stratified_sample(labels, number, np.random.default_rng(0))
    assert np.bincount(labels[chosen]).tolist() == counts


def test_a_bfloat16_net_is_read_from_its_checkpoint(sample: Sample, tmp_path: Path) -> None:
    source = context(confident(), sample.data, tmp_path)
    save_weights(source.classifier, tmp_path / "full.ckpt")
    model = Bfloat16().compress(source)
    assert model.file is None
    images = torch.from_numpy(sample.pictures).permute(0, 3, 1, 2)
    with torch.inference_mode():
        logits = model.classifier(images)
    assert logits.dtype == torch.float32
    assert {weight.dtype for weight in model.classifier.net.parameters()} == {torch.bfloat16}
    assert sample.is_near(logits.softmax(1).numpy())
    save_weights(model.classifier, tmp_path / "half.ckpt")
    assert (tmp_path / "half.ckpt").stat().st_size < 0.6 * (tmp_path / "full.ckpt").stat().st_size
    net = cast(CustomCNN(16, len(CLASSES), width=8, depth=1, dense=[64, 8]))
    restored = classifier(net, 16, [0.5] * 3, [0.2] * 3)
    load_weights(restored, tmp_path / "half.ckpt")
    with torch.inference_mode():
        assert torch.equal(restored(images), logits)
