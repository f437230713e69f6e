"""The few figures of a clinical audit that stand in the run record, and what a reader must know beside them."""

import numpy as np

from src.analysis.bootstrap import Predictions
from src.clinical import calibration, isic
from src.clinical.record import ClinicalAudit


def metrics(found: ClinicalAudit) -> dict[str, float]:
    """Figures by record names, `<split>/...`; what is not defined is left out."""
    values: dict[str, float] = {}
    for row in found.ranking.to_dict("records"):
        values[f"{row['metric']}/{row['class']}"] = row["estimate"]
    for row in [*found.overall.to_dict("records"), *found.fixed.to_dict("records")]:
        values[row["metric"]] = row["estimate"]
    values = {name: value for name, value in values.items() if "/" in name or name == isic.BALANCED_ACCURACY}
    for row in found.calibration.to_dict("records"):
        values |= {row["measure"]: row["before"], f"{row['measure']}_scaled": row["after"]}
    if found.temperatures:
        values["temperature"] = float(np.mean(found.temperatures))
    chosen = found.operating[found.operating["rule"] == f"sensitivity >= {found.settings.sensitivity:g}"]
    for row in chosen.to_dict("records"):
        values[f"chosen/{row['measure']}/{found.positive}"] = row["estimate"]
    return {f"{found.split}/{name}": float(value) for name, value in values.items() if np.isfinite(value)}


def notes(found: ClinicalAudit, given: Predictions) -> tuple[str, ...]:
    """Plain sentences that a reader needs to judge the figures.

    Args:
        found: The audit, but for its notes.
        given: What it was made from.
    """
    share = found.positives / found.images
    several = f"Figures are means over {found.seeds} nets (seeds). " if found.seeds > 1 else ""
    told = [
        f"{several}Intervals: {100 * found.settings.level:g}%, {found.settings.samples} resamplings of whole lesions "
        f"or patients{' and of seeds' if found.seeds > 1 else ''}. Shares (recall, specificity, precision, predictive "
        "values, accuracy) get the wider of that and the exact one (Clopper-Pearson, a lesion counted once), end by "
        "end; * where an end is exact. A figure without an interval rests on fewer than two lesions of a kind, or no "
        "resampling changes it.",
        f"{share:.1%} of these images are {found.positive}. PPV and NPV hold for that share only; where it is rarer, "
        "PPV is lower.",
    ]
    if found.lesions == found.images:
        told.append("Every image is a group of its own: if some show the same lesion, the intervals are too narrow.")
    missing = [name for label, name in enumerate(given.classes) if not (given.target == label).any()]
    if missing:
        told.append(f"No images of {', '.join(missing)}: nothing is said of them, and means leave them out.")
    if found.temperatures:
        told += _on_temperatures(found)
    elif found.split == "val":
        told.append("Thresholds and temperatures are chosen on these very images: here they are not applied.")
    else:
        told.append("No validation predictions: no threshold was chosen and no temperature fitted.")
    told.append(
        "A calibration error is biased upwards, more so with fewer images, and has no interval; sensitivity at a fixed "
        "specificity (and the reverse) is read off the ROC curve of these very images, so that it flatters."
    )
    return (*told, *_on_subgroups(found))


def _on_temperatures(found: ClinicalAudit) -> list[str]:
    told = [
        "Thresholds and temperatures were chosen on validation, one a net, and applied as they were; the intervals "
        "take them as given."
    ]
    if any(not calibration.TEMPERATURES[0] < each < calibration.TEMPERATURES[1] for each in found.temperatures):
        told.append(
            "A temperature stands at the bound of the search: validation does not tell how sure the net may be."
        )
    return told


def _on_subgroups(found: ClinicalAudit) -> list[str]:
    if found.informed is None:
        return ["No metadata: no subgroups."]
    if not found.informed:
        return [f"No metadata: those given name none of the {found.images} images. No subgroups."]
    told = []
    if found.informed < found.images:
        told.append(f"The metadata know {found.informed} of the {found.images} images; the others are unknown.")
    if "skin type" not in set(found.subgroups["by"]):
        told.append("The metadata do not tell skin type: how it fares on darker skin is not known.")
    return told
