"""One compression from its origin's record to a measured run of its own."""

import logging
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from src import training
from src.checkpoint import save_weights
from src.classifier import Classifier
from src.compression import lost
from src.compression.record import Compressed, Compression, Tune
from src.config import instantiate
from src.data.module import DataModule
from src.deployment.description import Description
from src.deployment.module import as_classifier
from src.efficiency.profile import static_cost
from src.errors import ConfigError
from src.tracking import history
from src.tracking.run import Run
from src.tracking.store import Store
from src.trained.load import describe, open_file, single
from src.trained.restore import DEPLOYED, restore

log = logging.getLogger(__name__)
REPORTED = "lost_on"  # tag: the split on which `compression/lost/...` is measured


def origin_parts(config: DictConfig, store: Store) -> training.Parts:
    """The origin's data and its trained classifier.

    Args:
        config: From `src.compression.origin.adopt`.
        store: That holds the origin.

    Raises:
        UserError: The data are not those that the origin was trained on: its test images could come into training.
    """
    as_the_origin = config.copy()
    as_the_origin.compression = None
    parts = training.build(as_the_origin, pretrained=False)
    _same_split(parts.data, store, config.origin)
    parts.classifier = restore(parts.classifier, store, config.origin).eval()
    return parts


def _same_split(data: DataModule, store: Store, origin: str) -> None:
    recorded = store.client.get_run(origin).data.tags.get("split_fingerprint", data.split_fingerprint)
    if recorded != data.split_fingerprint:
        raise ConfigError(
            "origin",
            f"images, labels or split of {data.name} are not those that run {origin} was trained on (split "
            f"{data.split_fingerprint}, there {recorded}): its test images could be trained on; give the right folder "
            "as data.root=",
        )


def compress(config: DictConfig, parts: training.Parts, store: Store, run: Run, folder: Path) -> Compressed:
    """Compress the origin's classifier, and save what comes of it in the run.

    Args:
        config: From `adopt`.
        parts: From `origin_parts`; its classifier becomes the compressed one, as it is evaluated.
        store: That holds the origin.
        run: Of the compressed net.
        folder: The run's own.
    """
    method: Compression = instantiate(config.compression, "compression", ("name",))
    (target := folder / DEPLOYED).mkdir(parents=True, exist_ok=True)
    description = _description(store, config.origin, run.id)
    found = method.compress(parts.classifier, parts.data, description, _tuner(config, parts, run, folder), target)
    run.tag(precision=found.precision)
    run.tag(**{f"compression.{name}": value for name, value in found.facts.items() if isinstance(value, str)})
    numbers = {f"compression/{name}": value for name, value in found.facts.items() if not isinstance(value, str)}
    run.log(numbers, step=0)
    if found.file is None:
        checkpoint = folder / "checkpoint" / "best.ckpt"
        save_weights(found.classifier, checkpoint)
        run.artifact(checkpoint, "checkpoint")
        parts.classifier = found.classifier
    else:
        run.artifact(found.file, DEPLOYED)
        threads = int(config.efficiency.get("threads", 1))  # as the reference net is timed
        parts.classifier = as_classifier(open_file(found.file, threads), found.classifier)
    return found


def _description(store: Store, origin: str, run_id: str) -> Description:
    """Of the compressed net's file, which is written before the net is evaluated: the origin's decision, said so."""
    found = describe(store, single(store, origin))
    decision = found.decision
    inherited = decision and replace(decision, aim=f"{decision.aim}, for the net that this one was made from")
    return replace(found, run_id=run_id, decision=inherited)


def known_cost(found: Compressed) -> dict[str, float | None]:
    """What is counted of a compressed net, whose file no counter reads.

    Multiply-adds and parameters are those of the net in the file, whatever they are stored as; the size is the file's.
    Peak memory of a runtime outside torch is not seen from within: it is left out (see `src.benchmark`).
    """
    cost: dict[str, float | None] = dict(static_cost(found.classifier.net, found.classifier.image_size))
    if found.file is None:
        return cost
    return {**cost, "efficiency/size_mb": found.file.stat().st_size / 1e6, "efficiency/peak_memory_mb": None}


def record_lost(store: Store, run: Run, pairs: list[tuple[str, str]]) -> None:
    """Record what a compression cost, on test where origin and compressed net are both evaluated on it, else on val.

    Args:
        store: That holds the runs.
        run: Whose metrics these are: the compressed run's, or the trial's above those of several seeds.
        pairs: Ids of origin and compressed run, a pair a seed.
    """
    for split in ("test", "val"):
        if all(history.has_predictions(store, run_id, split) for pair in pairs for run_id in pair):
            before, after = zip(*pairs, strict=True)
            frames = [[history.predictions(store, each, split) for each in side] for side in (before, after)]
            run.log(lost.lost(*frames), step=0)
            run.tag(**{REPORTED: split})
            return
    log.warning("run %s: its origin has no recorded predictions, so that nothing is known of what was lost", run.id)


def _tuner(config: DictConfig, parts: training.Parts, run: Run, folder: Path) -> Tune:
    def tune(classifier: Classifier, epochs: int, lr: float) -> None:
        own = config.copy()
        own.trainer.max_epochs, own.optimizer.lr = epochs, lr
        if "teacher" in own.loss:  # none was needed so far
            classifier.loss = training.build_loss(own, parts.data)
        classifier.train_with(instantiate(own.optimizer, "optimizer"), instantiate(own.scheduler, "scheduler"))
        classifier.train()  # Lightning leaves modules in the mode that it finds
        training.train(own, training.Parts(parts.data, classifier), run, folder / "tuning")
        classifier.eval()

    return tune
