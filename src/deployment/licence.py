"""What the licence of the training data means for a model."""

from omegaconf import DictConfig

from src.data.isic_archive import COLLECTIONS

DRAWN = "none applies: drawn pictures"
# sets that are taken from a collection of the archive, and come under its licence
_TAKEN_FROM = {"isic2018": "ham10000", "dermamnist": "ham10000"}


def note(data: DictConfig) -> str:
    """The licence, and whether it forbids commercial use.

    Args:
        data: The part `data` of a run's config.
    """
    source = str(data.source.get("_target_", "")).split(".")[-2]  # by module, for a name can be chosen freely
    source = str(data.source.get("flag", source))  # of MedMNIST's sets
    if source == "synthetic":
        return DRAWN
    collection = COLLECTIONS.get(_TAKEN_FROM.get(source, source))
    if collection is None:
        return f"unknown: ask the owners of {data.get('name', source)}"
    terms, _, cite = collection.licence.removeprefix("Licence: ").partition(". Cite: ")
    use = ": no commercial use" if "NC" in terms else ""
    return f"{terms}{use} (training data: {cite})"
