"""The values of conf/results.yaml, which says what each means."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pydantic
from annotated_types import Ge, Gt, Le, MinLen

from src.core.errors import ConfigError
from src.metrics.registry import Limit, parse_limits

WHOLE = "docs/results.md"
_STRICT_KEYS = pydantic.ConfigDict(extra="forbid")
Names = Annotated[list[str], MinLen(1)]
Commands = Annotated[dict[str, str], MinLen(1)]
Weights = Literal["imagenet"] | None


@pydantic.dataclasses.dataclass(frozen=True, config=_STRICT_KEYS)
class SystemRows:
    """A system of a paper.

    Attributes:
        preset: The tag `preset` of its runs.
        printed: What the paper prints of it: metric -> value, by the names of `Systems.metrics`;
            also efficiency/params and efficiency/flops.
        px: Image size at which it is the paper's system: at another one it is shown without what
            the paper prints, and is still missing. None: any.
        weights: With which it is the paper's system, as for `px`: what began with random ones is
            not.
        corrected: What the paper should have printed by its own counts, as `printed`; shown beside
            it, marked.
        command: Records its missing seeds; None: the section's.
    """

    preset: str
    printed: dict[str, float] = field(default_factory=dict)
    px: int | None = None
    weights: Weights = None
    corrected: dict[str, float] = field(default_factory=dict)
    command: str | None = None


@pydantic.dataclasses.dataclass(frozen=True, config=_STRICT_KEYS)
class Against:
    """A system that is held against another one, image by image.

    Attributes:
        system: Its preset.
        less: The other's preset.
    """

    system: str
    less: str


@pydantic.dataclasses.dataclass(frozen=True, config=_STRICT_KEYS)
class Systems:
    """A table of systems, each with every split that it is asked for under.

    Attributes:
        title: Of the section.
        studies: Names of the studies whose runs it shows.
        command: Records what is missing.
        metrics: Columns, by the run record's names without the split; `<measure>/melanoma` is that
            of the class that is looked for, whatever the data set calls it.
        systems: Those that should be there; others of the studies are shown below them.
        splits: Under each of which every system should be there: "image", "grouped".
        paper_split: Beside which of them the paper's values stand.
        differences: Of which of the systems the difference is told, with an interval, under each
            split.
        about: A paragraph below the title.
    """

    kind: Literal["systems"]
    title: str
    studies: Names
    command: str
    metrics: Names
    systems: list[SystemRows] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    paper_split: str = "image"
    differences: list[Against] = field(default_factory=list)
    about: str = ""


@pydantic.dataclasses.dataclass(frozen=True, config=_STRICT_KEYS)
class Leakage:
    """A table of differences between the arms of `data.siblings`.

    Attributes:
        title: Of the section.
        studies: That hold both arms, each with the command that records what is missing of it.
        metrics: What is compared, see `Systems.metrics`.
        about: A paragraph below the title.
    """

    kind: Literal["leakage"]
    title: str
    studies: Commands
    metrics: Names
    about: str = ""


@pydantic.dataclasses.dataclass(frozen=True, config=_STRICT_KEYS)
class Reference:
    """What a candidate has to beat.

    Attributes:
        name: For people.
        studies: Where its runs are.
        preset: The tag `preset` of its runs.
        command: Records it.
        px: Image size at which it is what it is called: another is compared with as a stand-in,
            named as what it is, and it is still missing. None: any.
        weights: With which it is what it is called, likewise.
        control: It is shown, and what is said of it is no part of the verdict.
    """

    name: str
    studies: Names
    preset: str
    command: str
    px: int | None = None
    weights: Weights = None
    control: bool = False


@pydantic.dataclasses.dataclass(frozen=True, config=_STRICT_KEYS)
class Better:
    """A table of candidates less references.

    Attributes:
        title: Of the section.
        studies: That hold the candidates, each with the command that records what is missing of it.
        search: Those of the studies in which they were looked for: what has too few seeds there is
            not missing.
        references: To be beaten, all of them.
        limits: What a candidate has to keep, such as "efficiency/params <= 691911".
        split: Of all of them.
        metrics: Columns of the candidates' own table, and of the differences; the first has to be
            better.
        at_most: Candidates that are compared: the best on the validation split.
        about: A paragraph below the title.
    """

    kind: Literal["better"]
    title: str
    studies: Commands
    references: Annotated[list[Reference], MinLen(1)]
    metrics: Names
    search: list[str] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)
    split: str = "grouped"
    at_most: Annotated[int, Ge(1)] = 3
    about: str = ""

    @property
    def metric(self) -> str:
        """What has to be better."""
        return self.metrics[0]

    def parsed_limits(self) -> list[Limit]:
        """The limits, parsed.

        Raises:
            ConfigError: One that is no limit.
        """
        return parse_limits({"limits": self.limits})


@pydantic.dataclasses.dataclass(frozen=True, config=_STRICT_KEYS)
class Compressed:
    """A table of compressed nets beside those that they were made from.

    Attributes:
        title: Of the section.
        studies: That hold the compressed runs, each with the command that records what is missing
            of it.
        metrics: What is compared, see `Systems.metrics`; the first one decides what is said.
        about: A paragraph below the title.
    """

    kind: Literal["compressed"]
    title: str
    studies: Commands
    metrics: Names
    about: str = ""


Section = Systems | Leakage | Better | Compressed
_SECTION: pydantic.TypeAdapter[Section] = pydantic.TypeAdapter(
    Annotated[Systems | Leakage | Better | Compressed, pydantic.Field(discriminator="kind")]
)


@dataclass
class ResultsSettings:
    """What the page holds, and how."""

    file: str = WHOLE
    seeds: Annotated[int, Ge(2)] = 3
    samples: Annotated[int, Ge(200)] = 2000
    level: Annotated[float, Gt(0.5), Le(0.999)] = 0.95
    seed: Annotated[int, Ge(0)] = 0
    only: list[str] | None = None
    sections: dict[str, Any] = field(default_factory=dict)

    def chosen(self) -> dict[str, Section]:
        """The sections that are asked for, by name.

        Raises:
            ConfigError: There is none of that name, some would take the place of the whole page, or
                a section is not as it should be; the message names the key.
        """
        unknown = sorted(set(self.only or ()) - set(self.sections))
        if unknown:
            raise ConfigError(
                "only", f"must name sections ({', '.join(self.sections)}), but got {unknown[0]}"
            )
        names = self.only or list(self.sections)
        if self.only and self.file == WHOLE:
            raise ConfigError(
                "file",
                f"must be another than {WHOLE}, which holds all sections, where only= is given",
            )
        if not names:
            raise ConfigError("sections", "must hold at least one section, but is empty")
        return {name: _parsed(name, self.sections[name]) for name in names}


def _parsed(name: str, entry: Mapping[str, Any]) -> Section:
    try:
        section = _SECTION.validate_python(entry)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        kinds = [
            kind
            for kind in first["loc"][:1]
            if kind in ("systems", "leakage", "better", "compressed")
        ]
        place = ".".join(["sections", name, *map(str, first["loc"][len(kinds) :])])
        raise ConfigError(place, first["msg"]) from None
    if isinstance(section, Better):
        if unknown := sorted(set(section.search) - set(section.studies)):
            raise ConfigError(
                f"sections.{name}.search", f"must name some of its studies, but got {unknown[0]}"
            )
        try:
            section.parsed_limits()
        except ConfigError as error:
            raise ConfigError(f"sections.{name}.limits", error.problem) from None
    return section
