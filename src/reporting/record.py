"""Report and its settings: computed before anything is drawn."""

from dataclasses import dataclass, field
from typing import Annotated, Any

import pandas as pd
from annotated_types import Ge, Gt, Le, Lt

from src.core.errors import ConfigError
from src.metrics.registry import Limit, Objective
from src.reporting.decisions import Answer
from src.tracking.model_registry import check_name


@dataclass(frozen=True)
class Report:
    """A study, or several side by side, as a report tells it.

    Metrics are called by their recorded names: `best/val/...` at the chosen epoch, `test/...`,
    `efficiency/...`.

    Attributes:
        title: What is reported on: the studies' names or the filter.
        studies: Names of the studies, in the order they were asked for; one, unless several are
            compared.
        objectives: What the front is drawn over.
        limits: What a member of the front has to keep.
        written: When, UTC, to the second, ISO 8601.
        source: The run store, without passwords.
        table: A row a trial, those without a result too. Columns: those of
            `src.reporting.comparison.compare`, then `study`, `label` (short and unique, such as
            "custom #12"), `state` (front, dominated, over limit, pruned, over_limit, failed,
            killed, running, no value), `rank` (0: the front; missing without a result), `crowding`,
            `contribution` (of a front member to the hypervolume), `knee` (bool), `chosen` (names of
            the answers that chose it, joined by ", "; empty for most), `command` (trains it again;
            of members of the front and chosen ones), `ended` (UTC), `quality`, `quality_low`,
            `quality_high` (what pictures show on the y axis, and its interval; missing where
            unknown).
        quality: Name of the metric in the column `quality`, such as best/val/balanced_accuracy.
        costs: Recorded names of the costs that pictures can show on the x axis, those that any run
            has.
        parameters: A row a trial with a result, indexed by run_id; a column a swept parameter,
            values as numbers where all are numbers, else text; missing where the parameter does not
            belong to the trial.
        answers: The decisions.
        intervals: Columns run_id, label, split (val, test), metric (without prefix, such as
            balanced_accuracy, recall/mel), estimate, low, high, images, groups, seeds. Only of
            members of the front and chosen runs.
        pairs: Neighbours on the front: columns run_a, run_b, label_a, label_b, metric, split,
            difference (a - b), low, high, p_bootstrap, p_mcnemar, p_adjusted, tied (bool).
        drops: From val to test: columns run_id, label, metric, val, test, drop (val - test), low,
            high.
        effects: Of one parameter: columns parameter, value (text), position (for sorting and
            numeric axes), objective, mean (over all finished trials with that value), low, high, n,
            best (value of the objective at the best setting of all other parameters), best_run.
        importance: Columns parameter, objective, importance (fractions that sum to one an
            objective).
        curves: Columns run_id, label, state, epoch (from 1), value: the quality by epoch; only
            epochs that were trained.
        progress: Hypervolume over time: columns study, trials (ended so far), ended (UTC),
            hypervolume.
        recalls: Columns run_id, label, split, class, recall, low, high, images.
        reference: How the hypervolume is measured: scales and reference point, one sentence an
            objective.
        hypervolume: Of the front of each study, by its name.
        counts: How many trials ended how, by the names in `table.state`.
        paragraphs: The findings in plain language, the most important first.
        warnings: What a reader must know before believing the figures.
        comparison: Where several studies (or two dates) are compared: columns study, trials, front,
            hypervolume, new_points (front members that no other study's front weakly dominates),
            best of each objective.
        tables: Further tables by name, such as ablation tables with intervals.
    """

    title: str
    studies: list[str]
    objectives: list[Objective]
    limits: list[Limit]
    written: str
    source: str
    table: pd.DataFrame
    quality: str
    costs: list[str]
    parameters: pd.DataFrame
    answers: list[Answer]
    intervals: pd.DataFrame
    pairs: pd.DataFrame
    drops: pd.DataFrame
    effects: pd.DataFrame
    importance: pd.DataFrame
    curves: pd.DataFrame
    progress: pd.DataFrame
    recalls: pd.DataFrame
    reference: list[str]
    hypervolume: dict[str, float]
    counts: dict[str, int]
    paragraphs: list[str]
    warnings: list[str]
    comparison: pd.DataFrame = field(default_factory=pd.DataFrame)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)


@dataclass
class ReportSettings:
    """What is reported on, and how."""

    study: str | list[str] | None = None
    filter: str | None = None
    before: str | None = None
    objectives: list[Any] | None = None
    limits: list[str] | None = None
    margin: Annotated[float, Gt(0), Lt(1)] = 0.02
    budgets: list[str] = field(default_factory=list)
    floors: list[str] = field(default_factory=list)
    test: bool = True
    samples: Annotated[int, Ge(200)] = 2000
    level: Annotated[float, Gt(0.5), Le(0.999)] = 0.95
    seed: Annotated[int, Ge(0)] = 0
    folder: str = "reports"
    publish: bool = True
    register: str | None = None
    alias: str = "champion"
    refresh: bool = False

    @property
    def studies(self) -> list[str]:
        """Names of the studies that are asked for, in order, each once."""
        names = [self.study] if isinstance(self.study, str) else list(self.study or [])
        return list(dict.fromkeys(str(name) for name in names))

    def moment(self) -> pd.Timestamp | None:
        """`before` as a time, UTC unless it says otherwise.

        Raises:
            ConfigError: It is no date.
        """
        if self.before is None:
            return None
        try:
            found = pd.Timestamp(self.before)
        except ValueError as error:
            raise ConfigError(
                "before", f"must be a time such as 2026-11-21T12:00, but got {self.before}"
            ) from error
        return found.tz_localize("UTC") if found.tzinfo is None else found.tz_convert("UTC")

    def check(self) -> None:
        """Refuse what does not go together, before anything is read.

        Raises:
            ConfigError: The message names the key.
        """
        if self.filter and self.study:
            raise ConfigError(
                "filter",
                "stands for itself: leave study out, or add tags.study = '...' to the filter",
            )
        if self.before and len(self.studies) != 1:
            raise ConfigError(
                "before", "compares a study with itself at an earlier time: name one study"
            )
        self.moment()
        if self.register is not None:
            check_name(self.register, "register")
            check_name(self.alias, "alias")
