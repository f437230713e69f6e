"""What a section of the page is made of, before it is drawn as Markdown or on a terminal."""

from dataclasses import dataclass, field

Lines = tuple[str, ...]  # of a table's cell, below each other
NOTHING: Lines = ("-",)


@dataclass(frozen=True)
class Grid:
    """A table of texts.

    Attributes:
        columns: Heads.
        rows: As many cells each.
        stacks: So many columns each, from the first, are put below each other where there is little
            room; the first stack says what a row is, and the columns behind all stacks stand alone.
    """

    columns: tuple[str, ...]
    rows: list[tuple[Lines, ...]]
    stacks: tuple[int, ...] = (1,)


@dataclass(frozen=True)
class Missing:
    """A figure that should be there and is not.

    Attributes:
        what: Which.
        why: In a few words.
        command: Records it.
    """

    what: str
    why: str
    command: str


@dataclass(frozen=True)
class Origin:
    """Where a section's figures come from.

    Attributes:
        commands: As they were typed, without machine paths and without Hydra's own options
            (hydra.*), which are not recorded; a study's name, where it is not that of its file, is
            put back.
        hardware: One line a kind of machine.
        commits: Abbreviated, with what is to be said of them.
        chosen_by: What chose the epoch or the settings of a run, with how many runs.
        dates: First start and last end, UTC; empty without runs.
        runs: How many trained runs.
        minutes: How long a training took, by configuration.
    """

    commands: tuple[str, ...] = ()
    hardware: tuple[str, ...] = ()
    commits: tuple[str, ...] = ()
    chosen_by: tuple[str, ...] = ()
    dates: str = ""
    runs: int = 0
    minutes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """A section of the page.

    Attributes:
        title: Its head.
        about: The paragraph below it; may be empty.
        grids: Its tables.
        findings: What they say, in sentences.
        notes: What a reader must know to read them.
        missing: What should be there and is not.
        origin: Where the figures come from.
    """

    title: str
    about: str
    grids: list[Grid]
    findings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    origin: Origin = field(default_factory=Origin)
