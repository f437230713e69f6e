"""Values that no constructor takes are refused by their keys, before anything is built."""

import pytest

from src.core.config import check
from src.core.errors import ConfigError

INVALID = {  # class of src, and its place in a config -> arguments
    "models.custom.CustomCNN model.net": [
        *(("width", 0), ("width", 2.5), ("depth", 0), ("padding", -1), ("head", "max")),
        *(("dense", [0]), ("dense", -3), ("dense", "wide")),
        *(("dropout", 1.3), ("dropout", 1.0), ("dropout", -0.1), ("norm", "layer")),
    ],
    "models.backbone.Backbone model.net": [
        *(("dropout", 1.3), ("dense", [0]), ("pool", "max"), ("image_size", 0)),
    ],
    "models.svm.RadiomicsSVM model.net": [
        *(("kernels", ["linear", "cosine"]), ("costs", [0.0]), ("descriptors", []), ("bins", 1)),
        *(("folds", 1), ("class_weight", "even"), ("kernel", "rbf")),
    ],
    "losses.cross_entropy.CrossEntropy loss": [
        *(("label_smoothing", 1.0), ("label_smoothing", -0.1), ("weighted", "perhaps")),
    ],
    "losses.focal.Focal loss": [("gamma", -1)],
    "training.averaging.AveragedWeights callbacks": [("decay", 1), ("decay", 1.5), ("decay", -0.1)],
    "deployment.compression.onnx.OnnxStaticInt8 compression": [("method", "best"), ("images", 0)],
    "deployment.compression.executorch.ExecutorchInt8 compression": [("method", "entropy")],
    "deployment.compression.litert.LitertInt8 compression": [("method", "best")],
    "deployment.compression.prune.Prune compression": [("layer_limit", 1)],
}


@pytest.mark.parametrize(
    ("place", "key", "value"), [(name, *pair) for name, pairs in INVALID.items() for pair in pairs]
)
def test_an_invalid_value_is_refused_with_its_key(place: str, key: str, value: object) -> None:
    target, path = place.split()
    config: dict[str, object] = {"_target_": f"src.{target}", key: value}
    for name in reversed(path.split(".")):
        config = {name: config}
    with pytest.raises(ConfigError, match=rf"^{path}\.{key}: ") as caught:
        check(config)
    assert "\n" not in str(caught.value)
