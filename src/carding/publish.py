"""A card into MLflow: a file on its run, and the description of the run's registered versions."""

from src.carding import page
from src.carding.find import CardSubject
from src.carding.record import Card
from src.tracking import registry
from src.tracking.run import Run
from src.tracking.store import Store

FOLDER = "card"  # within the artifacts of the run
MOST_CHARACTERS = 5000  # of a version's description, as MLflow's database has it
HEADING = "# Model card: "
LIMITS = "Limits"


def publish(card: Card, subject: CardSubject, store: Store) -> list[str]:
    """Write `card/card.md` on the run, and what fits of it as the description of each of its registered versions.

    Args:
        card: Of the subject.
        subject: The model.
        store: That holds it.

    Returns:
        Where it went, for people.
    """
    text = page.render(card)
    run_id = subject.evaluated.run_id
    Run.attach(store, run_id).text(text, f"{FOLDER}/{page.NAME}")
    for version in subject.versions:
        before = version.description.partition(HEADING)[0].strip()
        registry.describe(store, version, shortened(text, before, run_id))
    return [
        f"{FOLDER}/{page.NAME} of run {run_id}",
        *(f"the description of {each.title}" for each in subject.versions),
    ]


def shortened(text: str, before: str, run_id: str) -> str:
    """The card without its head in YAML, behind what stood there before: as many whole paragraphs as there is room for.

    Args:
        text: From `page.render`.
        before: The description as it was, without an earlier card.
        run_id: Whose artifact the whole card is.

    Returns:
        At most `MOST_CHARACTERS`; the limits come first, so that they are not what is left out.
    """
    ending = f"*Shortened: the whole card is `{FOLDER}/{page.NAME}` among the artifacts of run {run_id}.*"
    opening, *sections = text[text.index(HEADING) :].rstrip("\n").split("\n\n## ")
    ordered = sorted(sections, key=lambda section: not section.startswith(LIMITS))
    kept = [before] if before else []
    room = MOST_CHARACTERS - len(ending) - len(before) - 4
    for paragraph in "\n\n## ".join([opening, *ordered]).split("\n\n"):
        room -= len(paragraph) + 2
        if room < 0:
            return "\n\n".join([*kept, ending])
        kept.append(paragraph)
    return "\n\n".join(kept)
