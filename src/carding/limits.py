"""What a model's figures do not carry: sentences that each follow from something in its record."""

from collections.abc import Iterator, Mapping

import numpy as np

from src.carding import describing
from src.carding.external import NONE, evaluations, nets_of
from src.carding.record import ABSENT
from src.carding.recorded import RunRecord
from src.metrics.registry import LOST
from src.reporting.clinical.record import ClinicalAudit

WIDE = 0.10  # an interval of this width says little
FEW_SEEDS = 5
NET_SIZE = 128  # px; below, structures that dermatologists look for are gone
DRAWN = ("synthetic",)


def limits(recorded: RunRecord, audits: Mapping[str, ClinicalAudit]) -> tuple[str, ...]:
    """All that hold, the gravest first.

    Args:
        recorded: Of the model.
        audits: Of its val and test, those that have been predicted.
    """
    return (
        *beware(recorded),
        *_of_figures(audits),
        *_of_test(audits),
        *_of_subgroups(audits),
        *_of_data(recorded),
        *_of_training(recorded),
        *_of_cost(recorded),
    )


def beware(recorded: RunRecord) -> Iterator[str]:
    """What makes the figures themselves wrong."""
    evaluated = recorded.subject.evaluated
    if "leaking" in evaluated.split:
        yield (
            "THE SPLIT LEAKS: photographs of one lesion or patient are on both sides of it: the figures on val and "
            "test are too good."
        )
    if recorded.tag("grouped_by") == "image":
        yield (
            "The data do not say which images show one lesion or patient: the split may leak, and intervals may be too "
            "narrow."
        )
    if evaluated.data in DRAWN:
        yield "The images are drawn, not photographed: the figures say nothing about skin."


def _of_figures(audits: Mapping[str, ClinicalAudit]) -> Iterator[str]:
    found = audits.get("test") or audits.get("val")
    if found is None:
        yield "No predictions are recorded: nothing is known of how good it is."
        return
    recall = found.verdicts[0]
    if recall.outcome != "PASS":
        said = {"FAIL": "does not reach", "UNDECIDED": "is not shown to reach"}[recall.outcome]
        yield (
            f"It {said} a recall of {recall.goal:g} of {found.positive} on {found.split}: {recall.estimate:.3f}, by "
            f"the most probable class. Of 100 images of {found.positive} it misses about "
            f"{round(100 * (1 - recall.estimate))}."
        )
    width = recall.high - recall.low
    if np.isfinite(width) and width > WIDE:
        yield (
            f"The interval of that recall is {width:.2f} wide: it rests on {recall.images} images of {recall.lesions} "
            "lesions or patients."
        )
    if found.seeds == 1:
        yield "It is one training, of one seed: how much another one would differ is not in the intervals."
    elif found.seeds < FEW_SEEDS:
        yield (
            f"Figures are means of {found.seeds} seeds, which say little of their own spread; the nets are no ensemble."
        )


def _of_test(audits: Mapping[str, ClinicalAudit]) -> Iterator[str]:
    if "test" not in audits and audits:
        yield "The test split has not been looked at: the figures are of validation, which chose, and are too good."
    if audits and "val" not in audits:
        yield "Without predictions of validation there is no threshold, and no temperature for calibration."


def _of_subgroups(audits: Mapping[str, ClinicalAudit]) -> Iterator[str]:
    found = audits.get("test") or audits.get("val")
    if found is None:
        return
    if found.subgroups.empty:
        yield "Nothing is known of age, sex, site and skin type: how it fares on parts of the people is not known."
        return
    recall = found.subgroups[
        (found.subgroups["measure"] == "recall") & (found.subgroups["by"] != "all")
    ]
    silent = int(recall["estimate"].isna().sum())
    if silent:
        yield (
            f"{silent} of {len(recall)} subgroups have fewer than {found.settings.smallest} lesions of "
            f"{found.positive}: nothing is said of them."
        )
    if "skin type" not in set(found.subgroups["by"]):
        yield "The data do not tell skin type: how it fares on darker skin is not known."


def _of_data(recorded: RunRecord) -> Iterator[str]:
    elsewhere = evaluations(recorded)
    if elsewhere.empty:
        yield NONE
    for _, run in elsewhere.iterrows():
        value = run.get(f"metrics.{run['tags.data']}/balanced_accuracy", np.nan)
        if np.isfinite(value):
            of = nets_of(recorded, str(run["tags.evaluated_run"])).replace("all", "all seeds")
            yield f"On {run['tags.data']}, as evaluated there ({of}), its balanced accuracy is {value:.3f}."
    size = recorded.config["data"].get("image_size")
    if isinstance(size, int) and size < NET_SIZE:
        yield f"It sees {size} x {size} pixels: fine structures of a lesion are gone before it looks."
    yield "It knows the classes that it was trained on, and gives one of them to any picture, of whatever it is."


def _of_training(recorded: RunRecord) -> Iterator[str]:
    if describing.not_pretrained(recorded):
        yield "Its backbone began with RANDOM weights: it does not show what that architecture reaches when pretrained."
    records = [each for each in (recorded, recorded.trained) if each is not None]
    if any("true" in each.tag("git_dirty").lower() for each in records):
        yield "It was made with changes that were not committed: its commit does not reproduce it."
    if recorded.tag("git_commit") in (ABSENT, "unknown"):
        yield "The commit that trained it is not recorded: it cannot be reproduced exactly."
    yield from _of_compression(recorded)


def _of_compression(recorded: RunRecord) -> Iterator[str]:
    if recorded.own_tag("origin") == ABSENT:
        return
    lost = recorded.own_metrics(f"{LOST}/")
    if not lost:
        yield "What its compression cost is not recorded."
    for name in (
        each for each in lost if lost.get(f"{each}/low", 0.0) > 0
    ):  # the whole interval is a loss
        yield f"Its compression cost {describing.points(lost, name)} of {describing.measure(name)}."


def _of_cost(recorded: RunRecord) -> Iterator[str]:
    if recorded.values("efficiency/latency_ratio"):
        yield "Latency was measured on one machine, beside other work: on another device it is another."
    else:
        yield "Its latency is not recorded."
