"""An audit for readers: a table for the terminal, Markdown for people, CSV for programs."""

from pathlib import Path

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from src.auditing.audit import Audit, Audited, shown
from src.auditing.verdicts import (
    CONTRADICTED,
    NOT_REPRODUCED,
    NOT_TESTABLE,
    OTHER_READING,
    REPRODUCED,
)

STYLES = {
    REPRODUCED: "green",
    OTHER_READING: "cyan",
    CONTRADICTED: "bold red",
    NOT_REPRODUCED: "red",
    NOT_TESTABLE: "yellow",
}
_SIGNS = {"equal": "", "below": "< ", "above": "> "}
_WITH_REASON = (
    OTHER_READING,
    CONTRADICTED,
    NOT_REPRODUCED,
)  # on the terminal; of the others the files have it


def write(audit: Audit, folder: Path, made: str) -> None:
    """Write audit.md, claims.csv and readings.csv.

    Args:
        audit: What is written.
        folder: Made if need be.
        made: When, with what and from which store; a line.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "audit.md").write_text(markdown(audit, made), encoding="utf-8")
    claims(audit).to_csv(folder / "claims.csv", index=False)
    readings(audit).to_csv(folder / "readings.csv", index=False)


def claims(audit: Audit) -> pd.DataFrame:
    """A row a claim: what is printed, what was found and its range, the verdict and what it rests on.

    Columns id, claim, where, printed, relation, value (of the print), found, low, high, verdict,
    reading, reason. Percentages are fractions. Without a figure `found`, `low` and `high` are
    missing.
    """
    rows = []
    for each in audit.claims:
        outcome, claim = each.verdict.outcome, each.claim
        rows.append(
            {
                "id": claim.id,
                "claim": claim.claim,
                "where": claim.where,
                "printed": claim.printed,
                "relation": claim.relation,
                "value": each.number.value if each.number else None,
                "found": outcome.found.value if outcome else None,
                "low": outcome.found.low if outcome else None,
                "high": outcome.found.high if outcome else None,
                "verdict": each.verdict.name,
                "reading": outcome.reading if outcome else "",
                "reason": each.reason,
            }
        )
    return pd.DataFrame(rows)


def readings(audit: Audit) -> pd.DataFrame:
    """A row a reading of a claim: id, reading, found, low, high, agrees, beside, from (printed ...), how, problem."""
    rows = []
    for each in audit.claims:
        for outcome in each.outcomes:
            found = outcome.found
            rows.append(
                {
                    "id": each.claim.id,
                    "reading": outcome.reading,
                    "found": found.value,
                    "low": found.low,
                    "high": found.high,
                    "agrees": outcome.agrees,
                    "beside": outcome.beside,
                    "from": " and ".join(sorted(found.origins)),
                    "how": found.how,
                    "problem": found.problem,
                }
            )
    columns = [
        "id",
        "reading",
        "found",
        "low",
        "high",
        "agrees",
        "beside",
        "from",
        "how",
        "problem",
    ]
    return pd.DataFrame(rows, columns=columns)


def terminal(audit: Audit) -> Table:
    """The claims and their verdicts, for 100 columns."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title, width in (("claim", 24), ("printed", 14), ("here", 22), ("verdict", 33)):
        table.add_column(title, width=width, overflow="fold")
    for each in audit.claims:
        name = each.verdict.name
        verdict = f"[{STYLES[name]}]{name}[/]"
        if name in _WITH_REASON and each.verdict.outcome is not None:
            verdict += f" ({escape(each.verdict.outcome.reading)})"
        table.add_row(escape(each.claim.id), escape(_printed(each)), escape(each.found), verdict)
    return table


def markdown(audit: Audit, made: str) -> str:
    """The whole audit: what was read, the verdicts in a table, then each claim with all its readings.

    Args:
        audit: What is told.
        made: When, with what and from which store; a line.
    """
    paper = audit.paper
    counts = ", ".join(f"{number} {name}" for name, number in audit.counts.items())
    lines = [
        f"# Audit: {paper.title}",
        "",
        f"{paper.citation} {paper.source}",
        "",
        f"Read: {paper.read}",
        "",
        made,
    ]
    lines += ["", f"**{len(audit.claims)} claims: {counts}.**", ""]
    lines += [
        "A printed number agrees with a figure here if the figure, or any value in its range, would be printed so; a "
        "printed limit is kept or broken by the whole range, else undecided. Measured figures of too few seeds, or of "
        "runs that are not the paper's system, are shown and decide nothing."
    ]
    lines += ["", "## Protocol", "", *(f"- {note}" for note in paper.protocol), ""]
    lines += [
        "## Verdicts",
        "",
        "| claim | where | printed | here | verdict |",
        "|---|---|---|---|---|",
    ]
    for each in audit.claims:
        cells = (each.claim.claim, each.claim.where, _printed(each), each.found, each.verdict.name)
        lines.append(f"| {' | '.join(map(_cell, cells))} |")
    lines += ["", "## Claim by claim", ""]
    for each in audit.claims:
        lines += _section(each)
    return "\n".join(lines).rstrip() + "\n"


def _section(each: Audited) -> list[str]:
    claim = each.claim
    lines = [f"### {claim.id}", "", f"{claim.claim} ({claim.where})", ""]
    lines += [f"Printed: {each.printed}. **{each.verdict.name}**: {each.reason}.", ""]
    if each.outcomes:
        lines += ["| reading | here | agrees | how |", "|---|---|---|---|"]
        for outcome in each.outcomes:
            told = "; ".join(part for part in (outcome.found.how, outcome.found.problem) if part)
            agreed = "" if outcome.agrees is None else "yes" if outcome.agrees else "no"
            agreed += (
                " (beside)"
                if outcome.beside
                else " (decides nothing)"
                if agreed and not outcome.decides
                else ""
            )
            cells = (outcome.reading, shown(outcome, each.number), agreed.strip(), told)
            lines.append(f"| {' | '.join(map(_cell, cells))} |")
        lines.append("")
    return [*lines, f"Note: {claim.note}", ""] if claim.note else lines


def _printed(each: Audited) -> str:
    return f"{_SIGNS[each.claim.relation] if each.claim.value is None else ''}{each.claim.printed}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
