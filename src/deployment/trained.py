"""A recorded run as a trained net again: find, describe, load, write as a file, predict.

MLflow loads the models of `log_model` through this module, for `mlflow models serve` too.
"""

import functools
import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc import locate
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf

from src.core.config import instantiate, read_recorded
from src.core.errors import ConfigError, UserError
from src.core.files import atomic_file
from src.deployment.description import Decision, Description, sentences
from src.deployment.runtimes.base import Runtime, in_batches
from src.deployment.runtimes.formats import FORMATS, open_file
from src.metrics.registry import melanoma_of
from src.tracking import model_registry, read
from src.tracking.store import Store

if TYPE_CHECKING:  # torch, and Lightning: a recorded net is used without it
    from torch import nn

    from src.deployment.runtimes.eager import CameraNet
    from src.training.classifier import Classifier

EVALUATION = "evaluation"  # the tag `kind` of a run that evaluates another one
DEPLOYED = "deployed"  # artifact folder of a run whose model is a file, not a checkpoint
CHECKPOINT = "checkpoint/best.ckpt"
_NET_FILES = ("config.yaml", CHECKPOINT)  # artifacts from which a net is built again
_DESCRIPTION = "description.json"  # beside copies of them in a logged model
CLASSIFIER = "src.training.classifier.Classifier"  # _target_ of a network's config
_SHOWN = 5  # run ids in a message
# Runtimes round differently: the stored threshold lies at most this far below the chosen score.
_SLACK = 1e-5


@dataclass(frozen=True)
class RecordedNet:
    """A trained net: its run, its seed, and whether its model is a file, not a checkpoint."""

    run_id: str
    seed: str
    deployed: bool


@dataclass(frozen=True)
class RecordedModel:
    """A run, or a trial with the runs of its seeds (then `repeated` is true)."""

    run_id: str
    repeated: bool
    model: str  # name of the architecture
    data: str  # name of the training data set
    split: str  # how the data set was split, such as "grouped" or "image (leaking)"
    split_fingerprint: str  # of images, labels and split
    nets: tuple[RecordedNet, ...]  # in the order of their seeds
    config: DictConfig  # of the first net

    @property
    def title(self) -> str:
        """For people: the model and the start of the id."""
        seeds = f", {len(self.nets)} seeds" if len(self.nets) > 1 else ""
        return f"{self.model} ({self.run_id[:8]}{seeds})"

    def count_predicted(self, store: Store, split: str) -> int:
        """Number of nets that were evaluated on a split."""
        return sum(read.has_predictions(store, net.run_id, split) for net in self.nets)

    def predictions(self, store: Store, split: str) -> list[pd.DataFrame]:
        """Predictions of each net; empty unless all nets were evaluated on the split.

        Raises:
            TrackingError: The predictions cannot be read.
        """
        if self.count_predicted(store, split) < len(self.nets):
            return []
        return [read.predictions(store, net.run_id, split) for net in self.nets]


def require_run_id(run: str | None) -> str:
    """The value of the key `run`; ConfigError if it is empty."""
    if run is None or not run.strip():
        example = "name one, as in run=3f2a9c; the tables of src.train and src.report show the ids"
        raise ConfigError("run", example)
    return run.strip()


def find(store: Store, prefix: str) -> RecordedModel:
    """The run or trial of an id, or of an unambiguous start of it.

    Raises:
        UserError: There is no such run, or it has no trained net; the message gives the reason.
    """
    is_id = re.fullmatch("[0-9a-f]{32}", prefix)
    runs = read.runs(store, f"attributes.run_id = '{prefix}'") if is_id else read.cached_runs(store)
    matches = runs[runs["run_id"].str.startswith(prefix)]
    if matches.empty:
        where = "`make ui` and the tables of src.train and src.report show the ids"
        raise UserError(f"run={prefix}: no such run; {where}")
    if len(matches) > 1:
        ids = ", ".join(matches["run_id"].head(_SHOWN))
        more = f" and {len(matches) - _SHOWN} more" if len(matches) > _SHOWN else ""
        raise UserError(f"run={prefix}: several runs start so: {ids}{more}; name more of the id")
    run = matches.iloc[0]
    kind = _tag(run, "kind") or "run"
    if kind not in ("run", "trial"):
        what = f"a {kind}"
        if kind == EVALUATION:
            what = f"an evaluation of run {_tag(run, 'evaluated_run')}"
        raise UserError(f"run={prefix}: is {what}, not a trained run; name one of its runs")
    of_model = read.children(store, run["run_id"]) if kind == "trial" else matches
    members = [member for _, member in of_model.iterrows()]
    trained = [member for member in members if not _missing_net(member)]
    if not trained:
        reasons = "; ".join(sorted(set(map(_missing_net, members)))) or "it has no seeds"
        problem = f"has no trained net to evaluate ({reasons}); name a finished run"
        raise UserError(f"run={prefix}: {problem}")
    trained.sort(key=lambda member: int(_tag(member, "seed") or 0))
    nets = []
    for member in trained:
        run_id = str(member["run_id"])
        deployed = bool(read.artifacts(store, run_id, DEPLOYED))
        if not deployed:
            read.artifact(store, run_id, "checkpoint")  # an error if there is none
        nets.append(RecordedNet(run_id, _tag(member, "seed"), deployed))
    tags = ("model", "data", "split", "split_fingerprint")
    model, data, split, fingerprint = (_tag(trained[0], name) for name in tags)
    config, run_id = recorded_config(store, nets[0].run_id), str(run["run_id"])
    repeated = kind == "trial"
    return RecordedModel(run_id, repeated, model, data, split, fingerprint, tuple(nets), config)


def named(store: Store, name: str) -> tuple[RecordedModel, model_registry.Version | None]:
    """The model that a registered name (derm, derm@champion, derm/3) or a start of a run id means.

    Returns:
        The run or trial; the version if a registered model is named.

    Raises:
        UserError: Neither or both have this name, or there is no trained net.
    """
    is_run = bool(read.cached_runs(store)["run_id"].str.startswith(name).any())
    version = None
    try:
        version = model_registry.resolve(store, name)
    except UserError as error:
        if not is_run:
            problem = f"{error}; no run id starts like this, and no exported file has this name"
            raise ConfigError("model", problem) from error
    if version and is_run:
        problem = f"{name} is a registered model, and a run's id starts so too"
        raise ConfigError("model", f"{problem}; say {name}/<version>")
    try:
        return find(store, version.run_id if version else name), version
    except UserError as error:
        raise UserError(str(error).replace("run=", "model=", 1)) from error


def recorded_config(store: Store, run_id: str) -> DictConfig:
    """The resolved config of a run, with its `_target_`s checked."""
    return read_recorded(read.artifact(store, run_id, "config.yaml"))


def _missing_net(run: pd.Series) -> str:
    """Why a run has no trained net; empty if it has one."""
    if run["status"] != "FINISHED":
        reason = _tag(run, "failure")
        return f"it is {run['status']}{': ' + reason if reason else ''}"
    state = _tag(run, "trial_state") or "complete"
    return "" if state == "complete" else f"it was ended early: {_tag(run, 'ended_early') or state}"


def _tag(run: pd.Series, name: str) -> str:
    value = run.get(f"tags.{name}")
    return value if isinstance(value, str) else ""


def single(store: Store, prefix: str) -> RecordedModel:
    """As `find`, but a trial of several seeds is refused; the message names its runs."""
    run = find(store, prefix)
    if run.repeated:
        seeds = ", ".join(f"{net.run_id} (seed {net.seed})" for net in run.nets)
        problem = f"is a trial of several seeds, each a model of its own; name one: {seeds}"
        raise UserError(f"run={prefix}: {problem}")
    return run


def deployed_file(store: Store, run_id: str) -> Path | None:
    """The model file of a compressed run; None if its model is a checkpoint."""
    suffixes = {form.suffix for form in FORMATS.values()}
    names = read.artifacts(store, run_id, DEPLOYED)
    name = next((name for name in names if Path(name).suffix in suffixes), None)
    return read.artifact(store, run_id, name) if name else None


def class_names(store: Store, run: RecordedModel) -> list[str]:
    """The classes in label order, from the columns of the recorded predictions."""
    for split in ("val", "test"):
        for frame in run.predictions(store, split):
            return [str(name).removeprefix("p/") for name in frame if str(name).startswith("p/")]
    problem = "has no recorded predictions, which tell its classes; train it again"
    raise UserError(f"run={run.run_id}: {problem}")


def build_net(config: DictConfig, classes: Sequence[str]) -> "nn.Module":
    """The net of a run's config, with random weights; it needs no training data.

    Raises:
        UserError: The run's model is not a network.
    """
    if config.model.get("_target_") != CLASSIFIER:
        problem = "is not a network; it cannot be evaluated on other data"
        raise UserError(f"{config.model.get('name')}: {problem}")
    import torch

    from src.models.structure import cast_as_recorded

    recipe = config.model.net.copy()
    if "weights" in recipe:
        recipe.weights = "random"  # the checkpoint's follow
    outputs = 1 if len(classes) == 2 else len(classes)
    net: nn.Module = instantiate(recipe, "model.net", (), torch.nn.Module, outputs=outputs)
    return cast_as_recorded(net, config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # stub


def load_checkpoint(config: DictConfig, classes: Sequence[str], checkpoint: Path) -> "CameraNet":
    """As `build_net`, with the weights of a checkpoint; UserError if it is of another net."""
    from torch import nn

    from src.deployment.runtimes.eager import CameraNet
    from src.models.weights import load_weights

    net = build_net(config, classes)
    load_weights(nn.ModuleDict({"net": net}), checkpoint)
    try:
        return CameraNet(net, config.model.mean, config.model.std)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError("model.mean, model.std", "must be three numbers each") from error


def load(store: Store, run_id: str, config: DictConfig, classes: Sequence[str]) -> "CameraNet":
    """The trained net of a run, or a net around its model file.

    Raises:
        UserError: There is no checkpoint, it is of another network, or a runtime is not installed.
    """
    file = deployed_file(store, run_id)
    if file is None:
        return load_checkpoint(config, classes, read.artifact(store, run_id, CHECKPOINT))
    from src.deployment.runtimes.eager import CameraNet, RuntimeNet

    return CameraNet(RuntimeNet(open_file(file)), [0.0] * 3, [1.0] * 3)


def load_network(store: Store, run: RecordedModel) -> "CameraNet":
    """`load` for a single run; a model that is fitted without epochs (an SVM) is refused."""
    camera = load(store, run.run_id, run.config, class_names(store, run))
    if hasattr(camera.net, "fit_once"):
        problem = f"{run.model} is not a network, and no file format supports it"
        raise UserError(f"run={run.run_id}: {problem}")
    return camera


def restore(classifier: "Classifier", store: Store, run_id: str) -> "Classifier":
    """The trained classifier of a run, for an evaluation by Lightning.

    `classifier`, built from the run's config, gets the weights of the checkpoint. If the run's
    model is a file, a new classifier around the file is returned.

    Raises:
        UserError: As for `load`.
    """
    file = deployed_file(store, run_id)
    if file is not None:
        from src.deployment.runtimes.eager import as_classifier

        return as_classifier(open_file(file), classifier)
    from src.models.weights import load_weights

    load_weights(classifier, read.artifact(store, run_id, CHECKPOINT))
    return classifier


def write_file(store: Store, run: RecordedModel, name: str, folder: Path) -> Path:
    """Write the net of a single run in the format `name`, as `<run id>.<suffix>`.

    Raises:
        UserError: The format does not hold this net, its extra is not installed, or the file
            cannot be written.
    """
    path = folder / f"{run.run_id}{FORMATS[name].suffix}"
    camera, description = load_network(store, run), describe(store, run)
    with atomic_file(path, "the model") as draft:
        FORMATS[name].write(camera, description, draft)
    return path


def log_model(store: Store, run_id: str) -> tuple[str, str]:
    """Log the net of a run as the run's model in MLflow, unless it has one already.

    Of a trial with several seeds it is the net of the first seed: the best seed would be another
    choice.

    Returns:
        The run that trained the net, and the URI of its model.

    Raises:
        UserError: The run has no trained net, or the store refuses.
    """
    run = find(store, run_id)
    if run.repeated:
        run = single(store, run.nets[0].run_id)
    if model := model_registry.logged_model(store, run.run_id):
        return run.run_id, model
    about, file = describe(store, run), deployed_file(store, run.run_id)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "net"
        folder.mkdir()
        files = [file] if file else [read.artifact(store, run.run_id, n) for n in _NET_FILES]
        for path in files:
            shutil.copy(path, folder)
        if file is None:  # else it has a description inside
            (folder / _DESCRIPTION).write_text(about.to_json(), encoding="utf-8")
        content, shape = json.loads(about.to_json()), (about.image_size, len(about.classes))
        model = model_registry.log_model(store, run.run_id, __name__, folder, *shape, content)
    return run.run_id, model


def _load_pyfunc(folder: str) -> SimpleNamespace:
    """Called by MLflow with the folder of `log_model`; nothing in it is executed.

    The method `predict` takes RGB pictures, uint8 (N, S, S, 3), N at least 1.
    """
    import torch

    from src.deployment.runtimes.eager import EagerRuntime

    content, threads = Path(folder), torch.get_num_threads()
    runtime: Runtime
    if (file := content / _DESCRIPTION).exists():
        about = Description.from_json(file.read_text(encoding="utf-8"), str(file))
        config, checkpoint = (content / Path(name).name for name in _NET_FILES)
        camera = load_checkpoint(read_recorded(config), about.classes, checkpoint)
        runtime = EagerRuntime(camera, about, threads)
    else:
        runtime = open_file(next(content.iterdir()), threads)
    return SimpleNamespace(predict=functools.partial(in_batches, runtime))


def describe(store: Store, run: RecordedModel) -> Description:
    """The description of a run or trial; of a single run that in its model file, if it has one."""
    net = run.nets[0]
    file = deployed_file(store, net.run_id) if net.deployed and not run.repeated else None
    if file is not None:
        return open_file(file).description
    tags, classes = store.client.get_run(net.run_id).data.tags, class_names(store, run)
    data: Any = OmegaConf.to_container(run.config.data)
    described = Description(
        run_id=run.run_id,
        model=run.model,
        classes=tuple(classes),
        image_size=data.get("image_size"),
        geometry=data.get("geometry"),
        data=run.data,
        split=run.split,
        licence=licence_note(run.config.data),
        precision=tags.get("precision", Description.precision),
        **choose_decision(store, run, classes),
    )
    return Description.from_json(described.to_json(), f"run {run.run_id}")  # which checks it


def choose_decision(store: Store, run: RecordedModel, classes: list[str]) -> dict[str, Any]:
    """Choose how to decide on validation; of a trial for its nets as one model.

    Returns:
        Fields of a `Description`: rule and offsets, unless the rule is "argmax"; decision, with a
        temperature and the strictest threshold with the default sensitivity of a clinical audit on
        val, if there is a melanoma class and a useful threshold. Empty without a validation split.

    Raises:
        UserError: The nets were evaluated on different images.
    """
    frames, chosen = run.predictions(store, "val"), dict[str, Any]()
    if not frames:
        return chosen
    images, labels = [frame["image_id"].tolist() for frame in frames], frames[0]["label"]
    if images.count(images[0]) < len(images):
        ids = ", ".join(net.run_id for net in run.nets)
        problem = f"its seeds were not evaluated on the same images; name one of {ids}"
        raise UserError(f"run={run.run_id}: {problem}")
    from src.metrics import calibration, decision_rules
    from src.metrics.thresholds import choose

    columns = [f"p/{name}" for name in classes]
    probability = np.mean([frame[columns].to_numpy(float) for frame in frames], axis=0)
    target, positive = pd.Categorical(labels, classes).codes.astype(int), melanoma_of(classes)
    label = None if positive is None else classes.index(positive)
    if (rule := run.config.get("decision", "argmax")) != "argmax":
        offsets = decision_rules.fit(rule, probability, target, label)
        chosen |= {"rule": rule, "offsets": tuple(offsets.tolist())}
    if positive is None:
        return chosen
    score = probability[:, label]
    threshold = choose(score, target == label, decision_rules.FLOOR)
    if threshold.problem:
        return chosen
    below = score[score < threshold.value].max(initial=threshold.value - 2 * _SLACK)
    middle, aim = float((threshold.value + below) / 2), f"{decision_rules.FLOOR} on val"
    chosen["decision"] = Decision(positive, middle, aim, calibration.fit(probability, target))
    return chosen


def licence_note(data: DictConfig) -> str:
    """What the licence of the training data allows, from the part `data` of a run's config."""
    target = str(data.source.get("_target_", ""))
    source: Any = locate(target) if target.startswith("src.data.") else None
    licence: str = source.licence_of(data.source) if hasattr(source, "licence_of") else ""
    if not licence:
        return f"unknown: ask the owners of {data.get('name', target)}"
    terms, _, cite = licence.partition(". Cite: ")
    use = ": no commercial use" if "NC" in terms else ""
    return f"{terms}{use} (training data: {cite})" if cite else terms


def data_config(run: RecordedModel, root: str | None, key: str = "own_root") -> DictConfig:
    """The `data` part of a run's config, in another folder if `root` is not None.

    Raises:
        ConfigError: The data lie in no folder, such as synthetic data; it names the `key`.
    """
    config: DictConfig = run.config.data.copy()
    if root is not None:
        if "root" not in config.source:
            problem = f"the run's own data ({run.data}) lie in no folder; leave it out"
            raise ConfigError(key, problem)
        config.root = config.source.root = root
    return config


def precision_warnings(config: DictConfig) -> list[str]:
    """Warnings if a run's record was made in another precision than `predict` uses."""
    return sentences("precision", precision=str(config.trainer.get("precision", "32")))
