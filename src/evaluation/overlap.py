"""Images of another data set that a net has met before: the same id, the same picture, the same lesion or patient.

Other images of the lesion or patient that such an image shows, by the other set's own groups, are found with it.

A picture is the same if its perceptual hash (pHash of the package ImageHash: the signs of the 8x8 lowest frequencies of
the grey picture; Zauner, Implementation and benchmarking of perceptual image hash functions, 2010) differs in few bits
and its pixels correlate. Measured on HAM10000 at 64 px: 400 images made smaller (32 to 128 px), squashed, compressed
anew or made brighter were all found; none of 12,381 of BCN_20000 and 2,980 of SIIM-ISIC 2020 was taken for one of its
images. A copy that was cropped by more than a few per cent, turned or mirrored is not found, unless its id tells.
"""

import re
import sys
from collections.abc import Iterator

import imagehash
import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image
from tqdm import tqdm

BITS = 64
MOST_BITS = 10  # that differ between the hashes of two encodings of one picture
LEAST_CORRELATION = 0.98  # of their grey pixels
SIDE = 32  # px of those
CHUNK = 1000  # hashes that are compared with all others at once
# ids that mean the same wherever they stand: images, lesions and patients of the ISIC archive
ARCHIVE = re.compile(r"((?:ISIC|HAM|BCN|MSK\d*|IP|IL)_\d+)(?:_downsampled)?")
COLUMNS = ["image_id", "why", "own_image_id", "own_split", "hash_bits", "correlation"]
REASONS = ("same image id", "same picture", "same lesion or patient", "lesion or patient of such an image")


def find(
    external: pd.DataFrame,
    own: pd.DataFrame,
    external_images: npt.NDArray[np.uint8],
    own_images: npt.NDArray[np.uint8],
    listed: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Images of a set that are also in another one, each once, by the first of `REASONS` that holds.

    Args:
        external: Manifest rows: image_id and group; N images.
        own: The other set's, with their `split` beside it; M images.
        external_images: uint8 (N, S, S, 3), whole frames squashed.
        own_images: uint8 (M, T, T, 3), likewise.
        listed: More of the other set's images, of which there are no pictures: image_id, group and split.

    Returns:
        Columns image_id, why, own_image_id, own_split, hash_bits (of 64 that differ) and correlation, the last two
        missing unless the picture gave it away. Sorted by image id.
    """
    known = own if listed is None else pd.concat([listed, own], ignore_index=True)
    table = _together(
        _shared(external, known, "image_id", REASONS[0]),
        _same_pictures(external, own, external_images, own_images) if len(own) else own.iloc[:0],
        _shared(external, known, "group", REASONS[2]),
    )
    table = _together(table, _beside(external, table))
    return table.sort_values("image_id", ignore_index=True)


def _together(*found: pd.DataFrame) -> pd.DataFrame:
    """Each image once, by the first table that has it."""
    some = [each for each in found if len(each)] or [pd.DataFrame(columns=COLUMNS)]
    return pd.concat(some, ignore_index=True).drop_duplicates("image_id")[COLUMNS]


def _beside(external: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """All images of the external groups that an image that was found is of."""
    groups = external[["image_id", "group"]]
    met = found.merge(groups, on="image_id").drop_duplicates("group")[["group", "own_image_id", "own_split"]]
    return groups.merge(met, on="group").assign(why=REASONS[3], hash_bits=np.nan, correlation=np.nan)


def _shared(external: pd.DataFrame, own: pd.DataFrame, column: str, why: str) -> pd.DataFrame:
    """Rows whose id of the archive stands in both sets."""
    ours = pd.DataFrame(
        {"key": own[column].map(_archive_id), "own_image_id": own["image_id"], "own_split": own["split"]}
    )
    theirs = pd.DataFrame({"image_id": external["image_id"], "key": external[column].map(_archive_id)})
    both = theirs.dropna().merge(ours.dropna(subset="key").drop_duplicates("key"), on="key")
    return both.drop(columns="key").assign(why=why, hash_bits=np.nan, correlation=np.nan)


def _archive_id(name: object) -> str | None:
    match = ARCHIVE.fullmatch(str(name))
    return match[1] if match else None


def _same_pictures(
    external: pd.DataFrame, own: pd.DataFrame, external_images: npt.NDArray[np.uint8], own_images: npt.NDArray[np.uint8]
) -> pd.DataFrame:
    theirs, ours = _hashes(external_images, "external images"), _hashes(own_images, "own images")
    rows = []
    for row, candidates, bits in _close(theirs, ours):
        correlation = _grey(own_images[candidates]) @ _grey(external_images[row : row + 1])[0]
        best = int(correlation.argmax())
        if correlation[best] >= LEAST_CORRELATION:
            place = candidates[best]
            rows.append((row, place, int(bits[best]), float(correlation[best])))
    table = pd.DataFrame(rows, columns=["row", "place", "hash_bits", "correlation"])
    return pd.DataFrame(
        {
            "image_id": external["image_id"].to_numpy()[table["row"].to_numpy(dtype=int)],
            "why": REASONS[1],
            "own_image_id": own["image_id"].to_numpy()[table["place"].to_numpy(dtype=int)],
            "own_split": own["split"].to_numpy()[table["place"].to_numpy(dtype=int)],
            "hash_bits": table["hash_bits"],
            "correlation": table["correlation"],
        }
    )


def _hashes(images: npt.NDArray[np.uint8], what: str) -> npt.NDArray[np.float32]:
    """PHash of each image as signs, float32 (N, 64): the product of two counts the bits that differ."""
    bar = tqdm(images, desc=f"hashing {what}", unit="image", file=sys.stderr, disable=None, leave=False)
    found = np.array([imagehash.phash(Image.fromarray(image)).hash.ravel() for image in bar], dtype=bool)
    return 2 * found.reshape(-1, BITS).astype(np.float32) - 1


def _close(
    theirs: npt.NDArray[np.float32], ours: npt.NDArray[np.float32]
) -> Iterator[tuple[int, npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    """Each row with a close hash: its number, the rows of `ours` that are close, and the bits that differ."""
    for start in range(0, len(theirs), CHUNK):
        differ = (BITS - theirs[start : start + CHUNK] @ ours.T) / 2
        for offset in np.flatnonzero((differ <= MOST_BITS).any(axis=1)):
            places = np.flatnonzero(differ[offset] <= MOST_BITS)
            yield start + int(offset), places, differ[offset, places]


def _grey(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Grey pixels without mean and of length 1, float32 (N, SIDE^2): products are correlations."""
    size = (SIDE, SIDE)
    small = [Image.fromarray(each).convert("L").resize(size, Image.Resampling.BILINEAR) for each in images]
    pixels = np.stack([np.asarray(each, dtype=np.float32).ravel() for each in small])
    pixels -= pixels.mean(axis=1, keepdims=True)
    return pixels / np.maximum(np.linalg.norm(pixels, axis=1, keepdims=True), 1e-6)
