"""The synthetic lesions are there to be learnt: not by chance, not perfectly, and better by a bigger net."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from src.core.cli import ROOT
from src.metrics.classification import ClassificationMetrics
from src.training import loop
from src.training.progress import quiet_lightning


def balanced_accuracy(tmp_path: Path, width: int) -> float:
    """On validation and test together: neither has chosen anything, for the last epoch is taken."""
    overrides = [
        f"model.net.width={width}",
        f"data.cache_dir={tmp_path}",
        "trainer.accelerator=cpu",
    ]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", overrides=overrides)
    parts = loop.build(config)
    trainer, _, _ = loop.prepare_fit(config, parts, None, tmp_path / str(width))
    with quiet_lightning():
        trainer.fit(parts.classifier, datamodule=parts.data)
    metrics = ClassificationMetrics(parts.data.classes)
    for split in ("val", "test"):
        trainer.test(parts.classifier, parts.data.loader(split), verbose=False)
        rows, probability = parts.classifier.predictions()
        metrics.update(probability, torch.from_numpy(parts.data.labels[rows.numpy()]))
    return metrics.compute()["balanced_accuracy"]


@pytest.mark.slow
def test_ten_epochs_lie_between_chance_and_perfection_and_a_wider_net_does_better(
    tmp_path: Path,
) -> None:
    small, custom = balanced_accuracy(tmp_path, 8), balanced_accuracy(tmp_path, 32)
    assert 2.5 / 7 < custom < 0.8
    assert custom > small + 0.03
