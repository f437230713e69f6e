"""What a trial that was broken off leaves to the one that is made in its place: the state of its training."""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

STATE = "checkpoint/last.ckpt"  # in a run's folder; of a trial with several seeds each has one, in a folder below
_UNFINISHED = ".part"


def seed_folder(folder: Path, seed: int) -> Path:
    """Where one of several seeds of a trial has its own files."""
    return folder / f"seed-{seed}"


def inherit(earlier: Sequence[Path], folder: Path) -> None:
    """Bring the training state that an earlier try left to this one's own folder: it may be broken off too.

    Args:
        earlier: Folders of the tries before, the newest first.
        folder: This one's.
    """
    left = next((found for each in earlier if (found := each / STATE).exists()), None)
    if left is None:
        return
    own = folder / STATE
    own.parent.mkdir(parents=True, exist_ok=True)
    part = own.with_suffix(_UNFINISHED)
    shutil.copyfile(left, part)
    part.replace(own)


def discard(folders: Iterable[Path]) -> None:
    """Take away the training states of a trial that nobody will go on with.

    Args:
        folders: Of the trial's tries, or of one of its seeds; what is not there is passed over.
    """
    for folder in folders:
        for own in (folder, *folder.glob("seed-*")):
            for state in (own / STATE, (own / STATE).with_suffix(_UNFINISHED)):
                state.unlink(missing_ok=True)
