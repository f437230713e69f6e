"""What the fork server imports once, so that no trial has to: a trial then starts in a tenth of a second.

Imported by `multiprocessing`'s fork server before it forks anything. Imports only: a thread, an open connection or a
CUDA context would not survive the fork.
"""

import contextlib
import gc
import importlib
import os
import signal
import sys

VARIABLE = "PARETODERM_PRELOAD"  # names of modules; only a fork server of ours has it in its environment
MODULES = (
    "src",  # first: it lets torchvision's operators be registered in peace
    "torch",
    "torchvision",
    "torch.utils.data",
    "torch.profiler",
    "pytorch_lightning",
    "torchmetrics",
    "timm",
    "fvcore.nn",
    "hydra",
    "hydra.core.hydra_config",
    "omegaconf",
    "optuna",
    "optuna.storages._rdb.storage",
    "optuna.storages._rdb.models",
    "sqlalchemy.dialects.sqlite",
    "sqlalchemy.dialects.postgresql",
    "psycopg",
    "alembic.command",
    "src.tracking.run",
    "mlflow",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_workspace_store",
    "fsspec.implementations.chained",
    "mlflow.store.artifact.local_artifact_repo",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "pandas",
    "pandas.io.formats.csvs",
    "pyarrow.pandas_compat",
    "email.policy",
    "email.contentmanager",
    "PIL.JpegImagePlugin",
    "sklearn.metrics",
    "sklearn.model_selection",
    "kornia.augmentation",
    "src.sweep.executors.process",
    "src.sweep.samplers",
    "src.sweep.pruners",
    "src.sweep.rungs",
    "src.data.synthetic",
    "src.data.ham10000",
    "src.models.custom",
    "src.losses.focal",
    "src.schedules",
)
_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_LOGGING_LEVEL": "WARNING"}


def become_fork_server(modules: list[str]) -> None:
    """Import the modules; one that is missing is left to the trial that needs it.

    Args:
        modules: Dotted names; "package.module:function" is called as well.
    """
    # Ctrl+C and a closed terminal are the owner's affair: it ends the trials in order
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.setsid()
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # so that `torch.cuda.is_available()` starts no CUDA here
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    for name in modules:
        module, _, function = name.partition(":")
        with contextlib.suppress(Exception):
            imported = importlib.import_module(module)
            if function:
                getattr(imported, function)()
    gc.collect()
    gc.freeze()  # the collector of a trial does not walk, and so copy, what all share
    sys.stdout.flush()
    sys.stderr.flush()


if VARIABLE in os.environ:
    become_fork_server(os.environ.pop(VARIABLE).split(","))
