import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from src.data.synthetic import SHARES, Synthetic

HAM10000 = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
SCRIPT = """
import hashlib, numpy as np
from src.data.synthetic import Synthetic
s = Synthetic(native_size=48, seed=3)
m = s.manifest()
x = np.stack([np.asarray(s.picture(m, r)) for r in range(12)])
print(hashlib.sha256(x.tobytes()).hexdigest())
"""


def pixels(source, rows):
    manifest = source.manifest()
    return np.stack([np.asarray(source.picture(manifest, row)) for row in rows])


def test_manifest_lists_every_view_of_every_lesion_once():
    manifest = Synthetic(lesions=150, max_views=3).manifest()
    frame = manifest.frame
    assert manifest.classes == HAM10000
    assert manifest.grouped_by == "lesion"
    assert frame["image_id"].is_unique
    assert frame["group"].nunique() == 150
    assert (frame.groupby("group")["label"].nunique() == 1).all()
    views = frame.groupby("group")["view"].agg(["min", "max", "size"])
    assert (views["min"] == 0).all()
    assert (views["max"] + 1 == views["size"]).all()
    assert sorted(views["size"].unique()) == [1, 2, 3]


@pytest.mark.parametrize("seed", [0, 1, 17])
def test_long_tail_follows_the_shares(seed):
    frame = Synthetic(seed=seed).manifest().frame
    lesions = frame.drop_duplicates("group")["label"].value_counts(sort=False).sort_index()
    shares = np.array(list(SHARES.values()))
    assert shares.sum() == pytest.approx(1)
    np.testing.assert_allclose(lesions, 540 * shares, atol=3)
    assert lesions.idxmax() == HAM10000.index("nv")
    assert lesions.min() >= 20
    assert 1000 <= len(frame) <= 1200
    smallest = Synthetic(lesions=100, max_views=1, seed=seed).manifest().frame
    assert smallest["label"].value_counts().reindex(range(7)).min() >= 3


def test_same_pictures_in_another_process_and_others_from_another_seed():
    here = pixels(Synthetic(native_size=48, seed=3), range(12))
    command = [sys.executable, "-c", SCRIPT]
    there = subprocess.run(command, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == hashlib.sha256(here.tobytes()).hexdigest()
    other = pixels(Synthetic(native_size=48, seed=4), range(3))
    assert not np.array_equal(other, here[:3])


def test_pictures_do_not_depend_on_order_threads_and_size_of_the_set():
    source = Synthetic(lesions=120, native_size=32)
    manifest, rows = source.manifest(), range(30)
    forwards = pixels(Synthetic(lesions=300, native_size=32), rows)
    with ThreadPoolExecutor(4) as pool:
        pictures = list(pool.map(partial(source.picture, manifest), reversed(rows)))
    np.testing.assert_array_equal(forwards, np.stack(pictures[::-1]))
    large = Synthetic(lesions=100, native_size=96)
    pictures.append(large.picture(large.manifest(), 5))
    for picture, size in zip(pictures[-2:], (32, 96), strict=True):
        assert (picture.mode, picture.size) == ("RGB", (size, size))
        assert np.asarray(picture).std() > 5


def test_views_of_a_lesion_differ_but_less_than_lesions_do():
    source = Synthetic(native_size=24)
    frame = source.manifest().frame
    pairs = frame[frame["view"] == 1].index[:50].to_numpy()  # each follows view 0 of its lesion
    colour = pixels(source, range(pairs.max() + 1)).mean(axis=(1, 2))
    same = np.linalg.norm(colour[pairs] - colour[pairs - 1], axis=1)
    other = np.linalg.norm(colour[pairs] - np.roll(colour[pairs - 1], 1, axis=0), axis=1)
    assert same.min() > 0
    assert np.median(same) < 0.8 * np.median(other)


def test_typical_kinds_differ_like_real_ones():
    source = Synthetic(lesions=250, ambiguity=0.0, max_views=1, native_size=24)
    labels = source.manifest().frame["label"].to_numpy()
    images = pixels(source, range(len(labels))).astype(float)
    middle = images[:, 8:16, 8:16].mean(axis=(1, 2))
    colours = np.array([middle[labels == label].mean(axis=0) for label in range(7)])
    darkness = dict(zip(HAM10000, colours.sum(axis=1), strict=True))
    assert min(darkness, key=darkness.get) == "mel"
    assert HAM10000[(colours[:, 0] / colours[:, 1]).argmax()] == "vasc"  # the reddest
    assert darkness["nv"] < min(darkness["akiec"], darkness["df"])


def test_colour_alone_does_not_separate_the_kinds():
    """A linear model on mean colours beats chance; most of the task is shape and texture."""
    source = Synthetic(lesions=200, max_views=2, native_size=24)
    frame = source.manifest().frame
    images = pixels(source, range(len(frame))).astype(float)
    cells = images.reshape(len(frame), 4, 6, 4, 6, 3).mean(axis=(2, 4))
    logistic = LogisticRegression(class_weight="balanced", max_iter=500)
    guess = cross_val_predict(
        make_pipeline(StandardScaler(), logistic),
        cells.reshape(len(frame), -1),
        frame["label"],
        groups=frame["group"],
        cv=GroupKFold(3),
    )
    assert 1.5 / 7 < balanced_accuracy_score(frame["label"], guess) < 0.75


def test_stamps_depend_on_every_parameter_of_the_pixels():
    def stamps(**arguments):
        source = Synthetic(lesions=100, **arguments)
        return source.stamps(source.manifest())

    base = stamps()
    assert len(base) == len(set(base)) == len(Synthetic(lesions=100).manifest().frame)
    assert stamps() == base
    for change in ({"seed": 1}, {"native_size": 64}, {"ambiguity": 0.9}):
        assert not set(stamps(**change)) & set(base)
