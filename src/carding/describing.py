"""What a model is, what it was made from, what it was trained on and how: the first sections of a card."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from src.carding.record import ABSENT, CardPart, Fact, facts, number
from src.carding.recorded import RunRecord
from src.deployment.description import Description
from src.headline.cells import ResultCell
from src.headline.origin import origin
from src.metrics.formatting import count, joined
from src.metrics.registry import LOST
from src.reporting.clinical.page import NOTHING, AuditTable
from src.reporting.clinical.record import ClinicalAudit

GEOMETRIES = {
    "squash": "squashed to the square, whatever its shape",
    "center_crop": "its middle square is cut out and scaled",
    "pad": "padded to a square and scaled",
}
SPLITS = ("train", "val", "test")
_HIDDEN = (
    "_target_",
    "_partial_",
    "weights",
    "image_size",
)  # of a config's part: told elsewhere, or Hydra's own


def model(recorded: RunRecord, description: Description) -> CardPart:
    """Architecture, size, precision, input, labels, output."""
    evaluated = recorded.subject.evaluated
    size, classes = description.image_size, description.classes
    seeds = [net.seed for net in evaluated.nets]
    several = (
        f", a trial of {len(seeds)} seeds ({', '.join(seeds)})"
        if evaluated.repeated
        else f", seed {seeds[0]}"
    )
    model_config = recorded.config["model"]
    return CardPart(
        facts(
            ("Run", f"{evaluated.run_id}{several}"),
            *(
                ("Net of seed " + net.seed, net.run_id)
                for net in evaluated.nets
                if evaluated.repeated
            ),
            (
                "Registered as",
                "; ".join(each.title for each in recorded.subject.versions) or "not registered",
            ),
            (_architecture(recorded), f"{evaluated.model}: {part(model_config['net'])}"),
            ("Started from", _weights(recorded)),
            ("Parameters", number(recorded.values("efficiency/params"))),
            (
                "of them trained by gradients",
                number(recorded.values("efficiency/trainable_params")),
            ),
            ("Multiply-adds an image", _operations(recorded)),
            ("Size", number(recorded.values("efficiency/size_mb"), 2, "MB")),
            (
                "Precision of the weights",
                ABSENT if fitted_once(recorded) else description.precision,
            ),
            (
                "Input",
                f"RGB pictures, {size} x {size} px; a frame is {GEOMETRIES.get(description.geometry, ABSENT)}",
            ),
            ("Normalisation", _normalisation(model_config)),
            ("Labels, in the order of the output", ", ".join(classes)),
            ("Output", f"a probability for each of the {len(classes)} classes; they add up to 1"),
            *((("Stored decision", _decision(description)),) if not evaluated.repeated else ()),
        )
    )


def _architecture(recorded: RunRecord) -> str:
    """What a config says of a net is not so any more where channels were taken out."""
    pruned = recorded.tag("compression.channels") != ABSENT
    return "Architecture, before channels were taken out" if pruned else "Architecture"


def compression(recorded: RunRecord) -> CardPart:
    """What a compressed net was made from, and what that cost; nothing of any other net."""
    if recorded.own_tag("origin") == ABSENT:
        return CardPart()
    lost, own = recorded.own_metrics(f"{LOST}/"), recorded.metrics("compression/")
    names = [name for name in lost if not name.endswith(("/low", "/high"))]
    split = recorded.own_tag("lost_on")
    others = {
        f"Recorded of it: {name.replace('_', ' ')}": ", ".join(f"{value:.4g}" for value in values)
        for name, values in own.items()
        if not name.startswith("lost/")
    } | {
        f"Recorded of it: {name.replace('_', ' ')}": recorded.tag(f"compression.{name}")
        for name in recorded.tags("compression.")
    }
    return CardPart(
        facts(
            (
                "Compression",
                f"{recorded.tag('compression')}: {part(recorded.config.get('compression') or {})}",
            ),
            ("Made from run", recorded.own_tag("origin")),
            *((f"Lost of {measure(name)}, on {split}", points(lost, name)) for name in names),
            *([] if names else [("Lost", ABSENT)]),
            *others.items(),
            *([("Fine-tuned", _epochs(recorded))] if recorded.values("best/epoch") else []),
            ("Commit of the compression", _commit(recorded)),
        )
    )


def points(lost: Mapping[str, float], name: str) -> str:
    """What was lost of a metric, in points with its paired interval; positive: the compressed net is worse."""
    interval = [lost.get(f"{name}{end}", float("nan")) for end in ("/low", "/high")]
    told = (
        f" [{100 * interval[0]:+.1f}, {100 * interval[1]:+.1f}]"
        if np.isfinite(interval).all()
        else ""
    )
    return f"{100 * lost[name]:+.1f} points{told}"


def data(recorded: RunRecord, audits: Mapping[str, ClinicalAudit]) -> CardPart:
    """Which images, how they were split, how many, and of which classes."""
    evaluated, source = recorded.subject.evaluated, recorded.config["data"]
    counts = {split: recorded.values(f"data/images/{split}") for split in SPLITS}
    limit = (source.get("source") or {}).get("limit")
    told = [
        ("Data set", f"{evaluated.data}{f' (about {limit} images of it)' if limit else ''}"),
        ("Fingerprint of its images", recorded.tag("data_fingerprint")),
        ("Images", "; ".join(f"{split} {number(values)}" for split, values in counts.items())),
        ("Split", _split(recorded)),
        ("Fingerprint of the split", evaluated.split_fingerprint),
        ("Unreadable images left out", number(recorded.values("data/unreadable"))),
    ]
    if source.get("oversample"):
        told.append(
            (
                "Oversampling in training",
                f"every class at least {source['oversample']} of the largest",
            )
        )
    sheets = (_classes(audits),) if audits else ()
    return CardPart(
        facts(*told), ("How the training images fall into the classes is not recorded.",), sheets
    )


def training(subject: RunRecord) -> CardPart:
    """Settings, epochs, what chose, seeds, commit, hardware; of a compressed net those of its origin."""
    recorded = subject.trained
    if recorded is None:
        return CardPart(
            told=(
                "The origin that it was made from is not in the run store: how it was trained is not known.",
            )
        )
    evaluated, config = recorded.subject.evaluated, recorded.config
    study = recorded.tag("study")
    made = origin(
        recorded.store,
        [ResultCell("" if study == ABSENT else study, "", "", {}, "", recorded.nets, [], "")],
    )
    return CardPart(
        facts(
            *(
                [("Run", f"{evaluated.run_id}, from which this model was made")]
                if recorded is not subject
                else []
            ),
            ("Preset", str(config.get("preset") or "none")),
            *((("Study", f"{study}, trial {recorded.tag('trial')}"),) if study != ABSENT else ()),
            ("Its overrides", recorded.tag("overrides").replace(ABSENT, "none")),
            (f"Command{' of the study' if study != ABSENT else ''}", "; ".join(made.commands)),
            *_learning(recorded, config),
            ("Seeds", ", ".join(net.seed for net in evaluated.nets)),
            ("Commit", _commit(recorded)),
            ("Dates", made.dates),
            ("Hardware and software", "; ".join(made.hardware)),
            ("Time to train one net", number(recorded.values("time/fit_s"), 0, "s")),
        )
    )


def _commit(recorded: RunRecord) -> str:
    changes = {"true": " WITH UNCOMMITTED CHANGES", "false": ", without uncommitted changes"}
    return recorded.tag("git_commit") + changes.get(
        recorded.tag("git_dirty").lower(), ", uncommitted changes not known"
    )


def _classes(audits: Mapping[str, ClinicalAudit]) -> AuditTable:
    """How many images and lesions of each class were predicted of each split."""
    shown = [split for split in SPLITS if split in audits]
    counted = {}
    for split in shown:
        table = audits[split].per_class
        recall = table[table["measure"] == "recall"].set_index("class")
        counted[split] = (
            recall["images"].map("{:,}".format) + " / " + recall["groups"].map("{:,}".format)
        )
    found = tuple(
        (name, *(str(counted[split].get(name, NOTHING)) for split in shown))
        for name in audits[shown[0]].classes
    )
    return AuditTable("Images / lesions or patients of each class", ("class", *shown), found)


def part(config: Mapping[str, Any]) -> str:
    """A config's part in a line: its class with its settings, such as "Focal (gamma 2.0, weighted true)"."""
    name = str(config.get("_target_", "")).rpartition(".")[2]
    settings = [
        f"{key} {_value(value)}"
        for key, value in config.items()
        if key not in (*_HIDDEN, "name") or _inner(key, config)
    ]
    inside = [
        part(value)
        for value in config.values()
        if isinstance(value, Mapping) and "_target_" in value
    ]
    shown = ", ".join(each for each in settings if each)
    return "; ".join(filter(None, [f"{name} ({shown})" if shown else name, *inside])) or ABSENT


def fitted_once(recorded: RunRecord) -> bool:
    """Whether the model was fitted at once, so that it has no epochs, no loss, no augmentation: it is no network."""
    return bool(recorded.values("data/images/fitted"))


def _inner(key: str, config: Mapping[str, Any]) -> bool:
    return key == "name" and "_target_" in config and str(config["_target_"]).endswith("Backbone")


def _value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)


def _learning(recorded: RunRecord, config: Mapping[str, Any]) -> list[Fact]:
    if fitted_once(recorded):
        fitted = number(recorded.values("data/images/fitted"))
        return [
            (
                "Fitted",
                f"once, on {fitted} training images; without epochs, loss, optimizer or augmentation",
            ),
            ("Settings chosen by", recorded.tag("chosen_by")),
            *(
                (("Settings that were chosen", recorded.tag("svm")),)
                if recorded.tag("svm") != ABSENT
                else ()
            ),
        ]
    trainer = config["trainer"]
    augment = [
        part(value) for key, value in config["augment"].items() if isinstance(value, Mapping)
    ]
    return [
        ("Loss", part(config["loss"])),
        ("Augmentation", "; ".join(augment) or "none"),
        ("Optimizer", part(config["optimizer"])),
        ("Schedule", part(config["scheduler"])),
        ("Batch size", str(config["data"].get("batch_size", ABSENT))),
        ("Epochs", f"{trainer.get('max_epochs', ABSENT)}; {_epochs(recorded)}"),
        ("Precision while training", str(trainer.get("precision", ABSENT))),
    ]


def not_pretrained(recorded: RunRecord) -> bool:
    """Whether it is a backbone, of which pretrained weights could have been meant, that began with random ones."""
    first = recorded.trained
    return (
        first is not None
        and first.tag("weights") == "random"
        and "weights" in first.config["model"]["net"]
    )


def _weights(recorded: RunRecord) -> str:
    given = recorded.trained.tag("weights") if recorded.trained else ABSENT
    if not_pretrained(recorded):
        return "RANDOM weights: this backbone was not pretrained"
    told = {
        "random": "random weights",
        "imagenet": "ImageNet weights",
        "none": "nothing: no weights are of use to it",
    }
    return told.get(given, given)


def _epochs(recorded: RunRecord) -> str:
    kept = joined([f"{epoch:.0f}" for epoch in recorded.values("best/epoch")]) or ABSENT
    return f"kept: number {kept}{' (one a net)' if len(recorded.nets) > 1 else ''}, by {recorded.tag('chosen_by')}"


def _decision(description: Description) -> str:
    """The threshold that a model's file holds."""
    found = description.decision
    if found is None:
        return "none: the most probable class counts"
    heat = "no temperature" if found.temperature is None else f"temperature {found.temperature:.3f}"
    return f"{found.positive} from a probability of {found.threshold:.4f} ({found.aim}); {heat}"


def _operations(recorded: RunRecord) -> str:
    values = recorded.values("efficiency/flops")
    details = recorded.json("efficiency.json")
    if not values:
        return str(details.get("flop_convention", ABSENT))
    if recorded.own_tag("origin") != ABSENT:
        return f"{number(values)}, of the net whatever its weights are stored as; one multiply-add counts as one"
    uncounted = recorded.tag("flops_uncounted")
    left = f"; operators that are not counted: {uncounted}" if uncounted != ABSENT else ""
    return f"{number(values)}; {details.get('flop_convention', 'one multiply-add counts as one')}{left}"


def _normalisation(config: Mapping[str, Any]) -> str:
    mean, std = (
        joined([f"{value:g}" for value in config.get(key) or []]) for key in ("mean", "std")
    )
    if not mean or not std:
        return ABSENT
    return f"of values in [0, 1], red, green and blue: minus {mean}, divided by {std}"


def _split(recorded: RunRecord) -> str:
    evaluated, source = recorded.subject.evaluated, recorded.config["data"]
    sides = recorded.values("data/groups_on_two_sides")
    grouped_by = recorded.tag("grouped_by")
    # a set that does not say which images show one lesion groups them by image
    told = [evaluated.split or ABSENT, f"images are grouped by {grouped_by}"]
    told.append(f"fractions {_value(source.get('fractions'))}, seed {source.get('split_seed')}")
    if sides:
        number_of = count(int(max(sides)), grouped_by) if max(sides) else f"no {grouped_by}"
        told.append(f"{number_of} on two sides of it")
    return "; ".join(told)


def measure(name: str) -> str:
    """A metric's name behind the split in words, such as "recall of mel"."""
    measure, _, of = name.replace("_", " ").partition("/")
    return f"{measure} of {of}" if of else measure
