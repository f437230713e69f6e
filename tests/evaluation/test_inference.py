"""The nets say here what they said when they were trained."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_world import HAM, Place

from src.core.config import instantiate
from src.core.errors import UserError
from src.data.cache import square
from src.data.ham10000 import HAM10000
from src.deployment import trained as inference
from src.deployment import trained as runs
from src.tracking import read


def test_recorded_predictions_come_out_again(trained: Place) -> None:
    store = trained.store
    found = runs.find(store, trained.single)
    [recorded] = found.predictions(store, "test")
    source = HAM10000(trained.folder / "ham")
    manifest = source.manifest()
    images = np.stack(
        [square(source.picture(manifest, row), 32, "squash") for row in range(len(manifest.frame))]
    )
    rows = manifest.frame.index[manifest.frame["image_id"].isin(recorded["image_id"])].to_numpy()
    classifier = inference.load_checkpoint(
        found.config, HAM, read.artifact(store, trained.single, "checkpoint/best.ckpt")
    )
    probability = inference.predict(classifier, images, rows, 5, "test")
    expected = recorded.set_index("image_id").loc[manifest.frame["image_id"][rows]]
    assert probability.shape == (len(recorded), 7)
    np.testing.assert_allclose(probability, expected[[f"p/{name}" for name in HAM]], atol=1e-5)


def test_another_precision_than_the_runs_is_told(trained: Place) -> None:
    config = runs.find(trained.store, trained.single).config
    assert inference.precision_warnings(config) == []
    config.trainer.precision = "bf16-mixed"
    [told] = inference.precision_warnings(config)
    assert told.startswith(
        "The run's own figures and thresholds come from a trainer in bf16-mixed precision"
    )


def test_another_nets_checkpoint_is_told(trained: Place, tmp_path: Path) -> None:
    found = runs.find(trained.store, trained.single)
    with pytest.raises(UserError, match="not a checkpoint of this network"):
        inference.load_checkpoint(
            found.config,
            HAM[:5],
            read.artifact(trained.store, trained.single, "checkpoint/best.ckpt"),
        )
    with pytest.raises(UserError, match="no such checkpoint"):
        inference.load_checkpoint(found.config, HAM, tmp_path / "best.ckpt")


def test_two_classes_come_from_one_logit(trained: Place, tmp_path: Path) -> None:
    config = runs.find(trained.store, trained.single).config
    torch.manual_seed(0)
    net = instantiate(config.model.net, "model.net", outputs=1).eval()
    state = {f"net.{name}": value for name, value in net.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "best.ckpt")
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    classifier = inference.load_checkpoint(config, ("benign", "malignant"), tmp_path / "best.ckpt")
    probability = inference.predict(classifier, images, np.array([4, 1]), 8, "test")
    mean, std = (np.array(config.model[name], dtype=np.float32) for name in ("mean", "std"))
    normal = torch.from_numpy((images[[4, 1]] / np.float32(255) - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = torch.sigmoid(net(normal))[:, 0].numpy()
    np.testing.assert_allclose(probability[:, 1], expected, rtol=1e-4)
    np.testing.assert_allclose(probability.sum(axis=1), 1, rtol=1e-5)
