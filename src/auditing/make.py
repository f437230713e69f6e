"""An audit from end to end: read the claims and the runs, compute, write, publish, and tell the terminal."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
from omegaconf import DictConfig
from rich.console import Console

from src.auditing import claims, tables
from src.auditing.audit import Audit, audit
from src.auditing.recorded import ClaimBootstrap, Runs
from src.auditing.settings import ClaimsSettings
from src.auditing.verdicts import CONTRADICTED
from src.core.cli import ROOT
from src.core.config import check, instantiate, resolve
from src.core.environment import git_state
from src.core.files import atomic_folder
from src.metrics.formatting import joined
from src.tracking import read
from src.tracking.run import Run, masked, recordable
from src.tracking.store import Store

console = Console(width=100)
KIND = "audit"  # the tag `kind` of its run, and the folder of its artifacts


def make(config: DictConfig) -> Audit:
    """Audit the paper that a config names.

    Args:
        config: A composed `conf/command/audit.yaml`.

    Returns:
        The audit, after it was written and published.

    Raises:
        UserError: Bad input; the message names the culprit.
    """
    plain = resolve(config)
    own = {key: value for key, value in plain.items() if key not in ("tracking", "paper")}
    check({"_target_": "src.auditing.settings.ClaimsSettings", **own})
    check(plain["tracking"], "tracking")
    settings, paper = ClaimsSettings(**own), claims.parse(plain["paper"])
    store: Store = instantiate(config.tracking, "tracking")
    runs = _runs(store)
    bootstrap = ClaimBootstrap(settings.samples, settings.seed, settings.level)
    reader = Runs(runs, store, paper, settings.studies, settings.seeds, bootstrap)
    done = audit(paper, reader)
    folder = Path(settings.folder) / recordable(f"audit_{paper.name}").replace("/", "_")
    commit, dirty = git_state(ROOT)
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    with_changes = " with changes" if dirty else ""
    made = f"Made {now} UTC at commit {commit or 'unknown'}{with_changes}; runs from {masked(store.uri)}."
    write(done, folder, made)
    if settings.publish:
        tags = {
            "kind": KIND,
            "paper": paper.name,
            "git_commit": commit or "unknown",
            "git_dirty": dirty,
        }
        publish(done, folder, store, tags, own)
    show(done, folder)
    return done


def write(done: Audit, folder: Path, made: str) -> None:
    """Write the files: the whole folder or, if that fails, nothing; what was there goes.

    Raises:
        UserError: The folder cannot be written.
    """
    with atomic_folder(folder, "the audit") as draft:
        tables.write(done, draft, made)


def publish(
    done: Audit,
    folder: Path,
    store: Store,
    tags: Mapping[str, object],
    settings: Mapping[str, object],
) -> None:
    """Record the audit as a run of its own: its files, and how many claims came to each verdict."""
    with Run.start(store, f"audit {done.paper.name}", tags, {KIND: settings}) as run:
        run.artifact(folder, KIND)
        run.log(
            {
                f"audit/{name.replace(' ', '_')}": float(number)
                for name, number in done.counts.items()
            }
        )


def show(done: Audit, folder: Path) -> None:
    """Tell the verdicts on the terminal, 100 columns wide."""
    console.rule(f"{done.paper.name}: what it claims, and what is found here", align="left")
    console.print(tables.terminal(done))
    console.print(
        ", ".join(f"{number} {name}" for name, number in done.counts.items()), highlight=False
    )
    for each in done.claims:
        if each.verdict.name == CONTRADICTED:
            console.print(f"! {each.claim.id}: {each.reason}", markup=False, highlight=False)
    untested: dict[str, list[str]] = {}
    for each in done.claims:
        for reason in each.problems:
            untested.setdefault(reason, []).append(each.claim.id)
    for reason, ids in untested.items():
        console.print(f"- not testable: {joined(ids)}: {reason}", markup=False, highlight=False)
    if any(each.command for each in done.claims):
        console.print(
            f"record the missing runs: {done.paper.command}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    console.print(f"look: {folder / 'audit.md'}", markup=False, highlight=False, soft_wrap=True)


def _runs(store: Store) -> pd.DataFrame:
    """All runs of the store's experiment; none where there is no store yet."""
    if store.database is not None and not store.database.exists():
        return pd.DataFrame(columns=["run_id", "status"])
    return read.cached_runs(store.open(create=False))
