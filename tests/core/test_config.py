from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
from annotated_types import Ge
from omegaconf import DictConfig, OmegaConf

from src.core.config import (
    _conf_targets,
    check,
    check_recorded,
    instantiate,
    read_recorded,
    resolve,
)
from src.core.errors import ConfigError, DataError, UserError


class Part:
    config_only = ("note",)

    def __init__(
        self,
        width: Annotated[int, Ge(1)],
        kind: Literal["a", "b"] = "a",
        rate: float = 0.5,
        norm: bool = False,
        size: tuple[int, int] = (1, 1),
    ) -> None:
        if rate > 1:
            raise ConfigError("rate", f"must be at most 1, but got {rate}")
        if rate < 0:
            raise ValueError(f"rate is negative: {rate}")
        self.width = width


def refuses() -> None:
    raise DataError("not there", Path("somewhere"))


def is_buggy() -> None:
    raise KeyError("a bug")


TARGET = f"{__name__}.Part"


def node(**values: object) -> dict[str, Any]:
    return {"model": {"net": {"_target_": TARGET, "width": 3, **values}}}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (node(width=0), "model.net.width: input should be greater than or equal to 1, but got 0"),
        (node(width="abc"), "model.net.width: input should be a valid integer"),
        (node(width=2.5), "model.net.width: input should be a valid integer"),
        (node(kind="c"), "model.net.kind: input should be 'a' or 'b', but got 'c'"),
        (node(rate=[1]), "model.net.rate: input should be a valid number"),
        (node(width=True), "model.net.width: input should be a valid integer"),
        (node(norm="no"), "model.net.norm: input should be a valid boolean, but got 'no'"),
        (node(size=[3]), "model.net.size: field required, but got [3]"),
        (node(widht=1), "model.net.widht: unknown key; did you mean width?"),
        (
            {"efficiency": {"_target_": "src.nowhere.Thing"}},
            "efficiency._target_: cannot import src.nowhere",
        ),
        (
            {"trainer": {"_target_": "pytorch_lightning.Trainer", "max_epochs": "ten"}},
            "trainer.max_epochs: input should be a valid integer, but got 'ten'",
        ),
    ],
)
def test_impossible_value_is_refused_with_its_key(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        check(config)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)
    check(node(kind="b", rate=1, note="for the reader"))  # possible values pass


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (node(rate=3.0)["model"]["net"], r"^part\.rate: must be at most 1, but got 3\.0$"),
        (
            {"_target_": "builtins.dict", "inner": {"_target_": TARGET, "width": 1, "rate": 2}},
            r"^part\.inner\.rate: ",
        ),
        ({"_target_": "torch.optim.SGD", "lr": -1.0}, r"^part: Invalid learning rate: -1\.0"),
    ],
)
def test_constructor_that_refuses_names_the_full_key(config: dict[str, Any], message: str) -> None:
    weights = [torch.nn.Parameter(torch.zeros(1))]
    objects = {"params": weights} if "torch" in config["_target_"] else {}
    with pytest.raises(ConfigError, match=message):
        instantiate(OmegaConf.create(config), "part", **objects)


def test_user_errors_pass_as_they_are_and_bugs_keep_their_traceback() -> None:
    with pytest.raises(DataError, match="somewhere: not there"):
        instantiate(OmegaConf.create({"_target_": f"{__name__}.refuses"}), "data")
    with pytest.raises(Exception, match="a bug") as raised:
        instantiate(OmegaConf.create({"_target_": f"{__name__}.is_buggy"}), "data")
    assert not isinstance(raised.value, ConfigError)


def test_interpolations_reach_outside_the_node_and_objects_are_passed() -> None:
    net = {"_target_": TARGET, "width": "${size}", "drop": 1}
    config = OmegaConf.create({"size": 7, "net": net})
    assert instantiate(config.net, "net", without=("drop",)).width == 7
    assert instantiate(config.net, "net", without=("drop", "width"), width=9).width == 9


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"a": "${nowhere}"}, "nowhere"),
        (
            {"loss": {"teacher": "???"}},
            r"^loss\.teacher: has no default: give it one, loss\.teacher=... \(--help loss\)$",
        ),
    ],
)
def test_broken_interpolation_and_missing_value_are_named(
    config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(OmegaConf.create(config))


# Each reaches code that is no part of a model: through a prefix, an import, an alias, a function.
GADGETS = [
    "os.system",
    "builtins.eval",
    "subprocess.run",
    "torch.load",
    "torch.hub.load",
    "torch.nn.functional.torch.load",
    "torch.nn.functional.torch.hub.load",
    "torch.nn.modules.module.functools.partial",
    "torch.optim.lr_scheduler.types.FunctionType",
    "pytorch_lightning.trainer.trainer.os.system",
    "kornia.augmentation.torch.load",
    "src.core.config.importlib.import_module",
    "src.core.config.hydra.utils.get_object",
    "src.models.backbone.torch.load",
    "src.models.custom.nn.Linear",
    "src.models.custom.CustomCNN.__init__.__globals__.get",
    "src.models..custom.CustomCNN",
    "src.models.weights.Path",
    "src.data.folder.Source",
    "src.sweep.executors.local.subprocess.Popen",
    "src.training.loop.build",
    "srcs.models.custom.CustomCNN",
    "src.models.no_such_module.Net",
    ["src.models.custom.CustomCNN"],
]


PARTS_OF_RECORDS = [
    "kornia.augmentation.RandomAffine",  # conf/ names it
    "torch.optim.Adam",
    "src.data.augment.RandomTranspose",
    "src.losses.focal.Focal",
]


@pytest.mark.parametrize("target", GADGETS, ids=str)
def test_a_record_can_name_nothing_but_parts(target: Any) -> None:
    check_recorded({"parts": [{"_target_": part, "width": 3} for part in PARTS_OF_RECORDS]})
    message = r"^model\.net\[0\]\._target_: .* named by no file in conf/"
    with pytest.raises(ConfigError, match=message):
        check_recorded({"model": {"net": [{"_target_": target}]}})


HIDDEN = r"must be neither an interpolation nor a target"


def recorded(text: str, folder: Path) -> DictConfig:
    path = folder / "config.yaml"
    path.write_text(text)
    return read_recorded(path)


@pytest.mark.parametrize(
    "value",
    [
        '"${evil}"',
        "\"${oc.decode:'{_target_: os.system}'}\"",
        '"${oc.env:HOME}"',
        '{"${oc.env:HOME}": 1}',  # a key, of which `tuple` makes a text
        "[[_target_, os.system], [width, 3]]",  # pairs, of which `dict` makes a mapping
    ],
)
def test_a_record_can_hide_nothing(value: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"^model\.net.*: {HIDDEN}"):
        recorded(f"model:\n  net: {value}\n", tmp_path)
    net = OmegaConf.create({"_target_": "builtins.dict"})
    with pytest.raises(ConfigError, match=rf"^model\.classes\[1\]: {HIDDEN}"):
        instantiate(net, "model", classes=("nv", "${oc.decode:'{_target_: os.getcwd}'}"))


def test_files_of_conf_may_quote_a_target(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "net.yaml").write_text("a: {_target_: \"src.a.A\"}\nb:\n  _target_: 'src.b.B'\n")
    monkeypatch.setattr("src.core.config._config_files", lambda: [tmp_path / "net.yaml"])
    assert _conf_targets.__wrapped__() == {"src.a.A", "src.b.B"}


CODE = "a: !!python/object/apply:os.getcwd []"


PARTS = "model: {_target_: src.training.classifier.Classifier, net: {_target_: builtins.dict}}\n"
PARTS = PARTS.replace("builtins.dict", "src.models.custom.CustomCNN") + "data: "
DATA = "{_target_: src.data.module.DataModule}\n"
NO_CONFIG = [
    *("a: [", "- 1\n", "a: &x [*x]", CODE, "\x00", f"a: {'1' * 5000}", "", "seed: 1\n"),
    f"{PARTS}{DATA}a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]\n",  # which could grow for ever
    f"{PARTS}{DATA}decision: nosuch\n",
    f"{PARTS}{DATA}threads: '2'\n",
    f"{PARTS}[1]\n",
    f"data: {DATA}model: custom\n",
    f"data: {DATA}model: {{_target_: src.training.classifier.Classifier, net: null}}\n",
]


@pytest.mark.parametrize("text", NO_CONFIG)
def test_a_record_that_is_no_config_is_one_error(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.yaml: "):
        recorded(text, tmp_path)
