"""Lightning's Trainer for small modules in tests: on the CPU, silent, without files."""

from typing import Any

from pytorch_lightning import Trainer


def quiet_trainer(epochs: int = 1, **options: Any) -> Trainer:
    """A trainer; `options` are Lightning's."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": epochs,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": "callbacks" in options,
        "num_sanity_val_steps": 0,
    }
    return Trainer(**defaults | options)
