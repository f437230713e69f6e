import pytest
import torch
from torch import nn

from src.models.head import dense_head


@pytest.mark.parametrize(
    ("dense", "kinds"),
    [
        ([8, 4], ["Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear"]),
        (8, ["Linear", "ReLU", "Dropout", "Linear"]),
        ([], ["Dropout", "Linear"]),
    ],
)
def test_layers(dense: int | list[int], kinds: list[str]) -> None:
    head = dense_head(10, dense, 0.5, 3)
    assert [type(layer).__name__ for layer in head] == kinds
    assert head(torch.zeros(2, 10)).shape == (2, 3)
    assert {layer.p for layer in head if isinstance(layer, nn.Dropout)} == {0.5}


def test_features_are_not_written_over() -> None:
    features = torch.randn(2, 10)
    before = features.clone()
    dense_head(10, [4], 0.0, 3)(features)
    assert torch.equal(features, before)
