import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.data.ham10000 import HAM10000
from src.data.sampling import class_counts
from src.data.sampling import epoch_indices
from src.data.source import subset
from src.data.siim2020 import SIIM2020
from src.core.errors import ConfigError

labels_lists = st.lists(st.integers(0, 4), min_size=1, max_size=80)


def test_class_counts():
    assert class_counts([0, 2, 2, 0, 2], 4).tolist() == [2, 0, 3, 0]


@given(labels=labels_lists, seed=st.integers(0, 2**31))
def test_natural_visits_each_once(labels, seed):
    assert epoch_indices(labels, None, np.random.default_rng(seed)).tolist() == list(range(len(labels)))


@given(labels=labels_lists, ratio=st.floats(0.01, 1), seed=st.integers(0, 2**31))
def test_oversampling_repeats_evenly_up_to_the_ratio(labels, ratio, seed):
    labels = np.asarray(labels)
    visits = np.bincount(epoch_indices(labels, ratio, np.random.default_rng(seed)), minlength=len(labels))
    counts = np.bincount(labels)
    wanted = round(ratio * int(counts.max()))
    for label in np.unique(labels):
        of_class = visits[labels == label]
        assert of_class.sum() == max(counts[label], wanted)
        assert of_class.max() - of_class.min() <= 1
        assert of_class.min() >= 1


def test_a_ratio_of_a_half_makes_the_malignant_images_a_third():
    labels = np.repeat([0, 1], [900, 30])
    chosen = labels[epoch_indices(labels, 0.5, np.random.default_rng(0))]
    assert chosen.mean() == pytest.approx(1 / 3)


def test_the_remainder_is_drawn_anew():
    labels = np.repeat([0, 1], [50, 7])
    random = np.random.default_rng(0)
    draws = [epoch_indices(labels, 1.0, random).tolist() for _ in range(3)]
    assert draws[0] != draws[1] != draws[2]


@pytest.mark.parametrize("ratio", [0.0, -0.5, 1.01, float("nan")])
def test_impossible_ratio(ratio):
    with pytest.raises(ConfigError, match="oversample: must be above 0 and at most 1"):
        epoch_indices([0, 1], ratio, np.random.default_rng(0))


def test_a_subset_keeps_the_shares_of_the_classes(shared_data):
    manifest = HAM10000(shared_data / "ham10000").manifest()
    few = subset(manifest, 2000).frame
    assert abs(len(few) - 2000) <= 20
    shares = manifest.frame["label"].value_counts(normalize=True).sort_index()
    assert np.abs(few["label"].value_counts(normalize=True).sort_index() - shares).max() < 0.005
    whole = manifest.frame["group"].value_counts()
    assert few["group"].value_counts().to_dict() == {group: whole[group] for group in set(few["group"])}


def test_a_subset_keeps_whole_patients(shared_data):
    manifest = SIIM2020(shared_data / "siim2020").manifest()
    few = subset(manifest, 500).frame
    assert abs(len(few) - 500) <= 60
    whole = manifest.frame["group"].value_counts()
    assert few["group"].value_counts().to_dict() == {group: whole[group] for group in set(few["group"])}


def test_a_subset_as_large_as_the_set_is_the_set(layout):
    manifest = layout("folder")[0].manifest()
    assert subset(manifest, 24) is manifest
