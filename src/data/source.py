"""What every data source gives: a manifest (one row an image) and its pictures."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from PIL import Image, ImageOps

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Manifest:
    """The images of a data set, before anything is decoded.

    Attributes:
        source: Name of the data set, such as "ham10000".
        classes: Class names in label order.
        frame: One row an image, in a fixed order, with a RangeIndex. Columns: `image_id` (str, unique), `label` (int,
            0 to K-1), `group` (str: lesion or patient; images of one group belong on one side of a split), `path` (str,
            absolute; empty where the source makes its pictures itself), optionally `split` (one of `SPLITS`, where the
            owners published a split) and whatever metadata the owners give (age, sex, localization, original_label
            ...).
        grouped_by: What a group is: "lesion", "patient", "group" (a table's column) or "image" (where the set does
            not say).
        positive: Name of the class that is looked for where there are two, else None.
    """

    source: str
    classes: tuple[str, ...]
    frame: pd.DataFrame
    grouped_by: str
    positive: str | None = None


class Source(ABC):
    """A data set in its owners' layout. Nothing is decoded before `picture` is called."""

    name: str

    @abstractmethod
    def manifest(self) -> Manifest:
        """Read and check the list of images.

        Raises:
            DataError: A folder, file or column is missing, or a label is unknown; the message names it.
        """

    def picture(self, manifest: Manifest, row: int) -> Image.Image:
        """Decode one image, upright, as RGB. Called from several threads at once.

        Raises:
            OSError: The file is absent, truncated or no image.
        """
        with Image.open(Path(str(manifest.frame.at[row, "path"]))) as image:
            return ImageOps.exif_transpose(image).convert("RGB")

    def stamps(self, manifest: Manifest) -> list[str]:
        """What a cache of these pictures depends on, a string an image: a change of any makes the cache anew."""
        return [_file_stamp(Path(path)) for path in manifest.frame["path"]]


def _file_stamp(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return "absent"
    return f"{status.st_size}:{status.st_mtime_ns}"
