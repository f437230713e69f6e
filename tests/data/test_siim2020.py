from src.data.siim2020 import SIIM2020


def test_malignant_is_the_positive_class(layout):
    manifest = layout("siim2020")[0].manifest()
    assert manifest.classes == ("benign", "malignant")
    assert manifest.grouped_by == "patient"
    assert manifest.frame["label"].value_counts().to_dict() == {0: 12, 1: 12}


def test_counts_of_the_real_set(shared_data):
    frame = SIIM2020(shared_data / "siim2020").manifest().frame
    assert len(frame) == 2980
    assert (frame["label"] == 1).sum() == 426
    assert frame["group"].nunique() == 639
    assert (frame.loc[frame["label"] == 1, "benign_malignant"] == "malignant").all()
    # Rotemberg et al. 2021: 33,126 images, 584 of them melanomas
    assert SIIM2020.published == {"benign": 33_126 - 584, "malignant": 584}
