"""What ties the runs of a multirun together: one parent run, and the comparison at the end.

It does not matter who launches the runs, in which process or on which machine: the multirun's folder says which parent
they have (the first run to need it makes it), and the process in which the multirun was started compares them.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from src.tracking.store import Store

RECORD = "study.json"  # in the multirun's folder: the parent's run id, its store, and what it compares
OWNER = "owner.json"  # in the multirun's folder: the process that owns the parent


class Announcement(Callback):
    """Hydra's callback: remembers the folder of the multirun that starts in this process."""

    folder: Path | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Hydra calls this before its sweeper."""
        from src.tracking.orphans import owner_tags

        folder = Path(config.hydra.sweep.dir).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / OWNER, owner_tags())
        type(self).folder = folder


def study_name(config: DictConfig, folder: Path) -> str:
    """The study that a multirun belongs to: the config's, else the name of its folder."""
    return str(config.study or folder.name)


def parent_run(config: DictConfig, folder: Path, store: "Store") -> str:
    """The parent's run id; the run is made on the first call, from whichever process.

    Args:
        config: A composed `conf/train.yaml` of one of the runs.
        folder: The multirun's folder, shared by its runs.
        store: Where the parent is or will be.
    """
    from src.tracking.run import Run

    with FileLock(folder / f"{RECORD}.lock"):
        record = folder / RECORD
        if record.exists():
            return str(json.loads(record.read_text())["run_id"])
        name = study_name(config, folder)
        owner = json.loads((folder / OWNER).read_text())
        parent = Run.start(store, name, {**owner, "study": name, "kind": "study"})
        content = {
            "run_id": parent.id,
            "study": name,
            "tracking": OmegaConf.to_container(config.tracking, resolve=True),
            "objective": OmegaConf.to_container(config.objective, resolve=True),
            "test": config.test,
        }
        _write(record, content)
        return parent.id


@contextmanager
def compared(finish: Callable[[dict[str, Any], BaseException | None], None]) -> Iterator[None]:
    """Around an entry: when a multirun that was started within ends, in whatever way, its parent is finished.

    Args:
        finish: Called with the content of the multirun's record and the exception that ended it, if one did. Not called
            where no run of the multirun got as far as needing a parent.
    """
    Announcement.folder = None
    try:
        yield
    except BaseException as error:
        _finish(finish, error)
        raise
    _finish(finish, None)


def _finish(finish: Callable[[dict[str, Any], BaseException | None], None], error: BaseException | None) -> None:
    folder = Announcement.folder
    if folder is not None and (folder / RECORD).exists():
        finish(json.loads((folder / RECORD).read_text()), error)


def _write(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2))
    temporary.replace(path)
