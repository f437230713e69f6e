"""Report and its settings: everything that is computed before anything is drawn or written."""

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
    """A study, or several side by side.

    Metrics have their recorded names: `best/val/...` at the chosen epoch, `test/...`,
    `efficiency/...`.

    Attributes:
        title: Names of the studies, or the search.
        studies: Names of the studies, in the order of the command line.
        objectives: Of the front.
        limits: That members of the front keep.
        written: UTC, ISO 8601, to the second.
        source: The run store, without passwords.
        table: One row per trial, also without a result. Columns: those of
            `src.reporting.comparison.compare`, then `study`, `label` (unique, such as "custom
            #12"), `state` (front, dominated, over limit, pruned, over_limit, put_back, failed,
            killed, running, no value), `rank` (0: the front; missing without a result), `crowding`,
            `contribution` (to the hypervolume), `knee` (bool), `chosen` (names of the answers that
            chose it, joined by ", "), `command` (trains it again) and `net` (the run of its first
            net), both of trials that can be chosen, `ended` (UTC), `quality`, `quality_low`,
            `quality_high` (y axis of the charts, with its interval).
        quality: Metric in the column `quality`, such as best/val/balanced_accuracy.
        costs: Recorded names of the costs that any run has.
        parameters: One row per trial with a result, indexed by run_id; one column per swept
            parameter, missing if the trial does not have it.
        answers: The decisions.
        intervals: run_id, label, split (val, test), metric (such as recall/mel), estimate, low,
            high, images, groups, seeds; of the front and chosen runs.
        pairs: Neighbours on the front: run_a, run_b, label_a, label_b, metric, split, difference
            (a - b), low, high, p_bootstrap, p_mcnemar, p_adjusted, tied.
        drops: From val to test: run_id, label, metric, val, test, drop (val - test), low, high.
        effects: From `src.reporting.ablation.effects`.
        importance: parameter, objective, importance.
        curves: run_id, label, state, epoch (from 1), value (the quality).
        progress: study, trials (that have ended), ended (UTC), hypervolume.
        recalls: run_id, label, split, class, recall, low, high, images.
        roc: From `src.reporting.uncertainty.roc_curves`, of the chosen runs on validation: run_id,
            label, class, auroc (mean over the nets), false_positive_rate, sensitivity.
        layers: From `src.reporting.collect.files_of`, of the chosen runs: run_id, label, layer,
            type, flops, params.
        sheet: JPEG of a picture and its augmentations, of the first chosen run that has one.
        reference: How the hypervolume is measured: one sentence per objective.
        hypervolume: Of the front of each study.
        counts: Trials by `table.state`.
        warnings: What may change the decision, the most important first.
        remarks: What else to know about the figures.
        comparison: Several studies, or two dates: study, trials, front, hypervolume, new_points
            (members that no other front covers), new (their labels), best of each objective.
        tables: Further tables by title.
        on_test: Chosen models on test, from `src.reporting.uncertainty.on_test`.
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
    roc: pd.DataFrame
    reference: list[str]
    hypervolume: dict[str, float]
    counts: dict[str, int]
    warnings: list[str]
    remarks: list[str]
    comparison: pd.DataFrame = field(default_factory=pd.DataFrame)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    on_test: pd.DataFrame = field(default_factory=pd.DataFrame)
    layers: pd.DataFrame = field(default_factory=pd.DataFrame)
    sheet: bytes = b""

    @property
    def members(self) -> pd.DataFrame:
        """The front, sorted by the first cost."""
        rows = self.table[self.table["state"] == "front"]
        costs = [cost for cost in self.costs[:1] if cost in rows]
        return rows.sort_values(costs, kind="stable") if costs else rows

    @property
    def named(self) -> pd.DataFrame:
        """The knee and the chosen runs; the column `name` has up to two of their answers."""
        chosen, knee = self.table["chosen"].fillna(""), self.table["knee"].astype(bool)
        answers = (knee.map({True: "knee; ", False: ""}) + chosen).str.strip("; ").str.split("; ")
        more = [f"; {len(items) - 2} more" if len(items) > 2 else "" for items in answers]
        names = answers.str[:2].str.join("; ") + more
        return self.table.assign(name=names)[names != ""]

    @property
    def important(self) -> list[str]:
        """Run ids of the front, sorted by cost, then of the chosen runs."""
        return list(dict.fromkeys([*self.members["run_id"], *self.named["run_id"]]))


@dataclass
class StudySettings:
    """What the commands that read studies have in common."""

    study: str | list[str] | None = None
    samples: Annotated[int, Ge(200)] = 2000
    level: Annotated[float, Gt(0.5), Le(0.999)] = 0.95
    seed: Annotated[int, Ge(0)] = 0
    folder: str = "reports"
    publish: bool = True

    @property
    def studies(self) -> list[str]:
        """Names of the studies, in order, without repetitions."""
        names = [self.study] if isinstance(self.study, str) else list(self.study or [])
        return list(dict.fromkeys(str(name) for name in names))


@dataclass
class ReportSettings(StudySettings):
    """The command's config, see conf/command/report.yaml."""

    filter: str | None = None
    before: str | None = None
    objectives: list[Any] | None = None
    limits: list[str] | None = None
    margin: Annotated[float, Gt(0), Lt(1)] = 0.02
    budgets: list[str] = field(default_factory=list)
    floors: list[str] = field(default_factory=list)
    test: bool = True
    register: str | None = None
    alias: str = "champion"
    refresh: bool = False

    def moment(self) -> pd.Timestamp | None:
        """`before` as a time, in UTC unless it has a time zone.

        Raises:
            ConfigError: It is not a time.
        """
        if self.before is None:
            return None
        try:
            time = pd.Timestamp(self.before)
        except ValueError as error:
            problem = f"must be a time such as 2026-11-21T12:00, but got {self.before}"
            raise ConfigError("before", problem) from error
        return time.tz_localize("UTC") if time.tzinfo is None else time.tz_convert("UTC")

    def __post_init__(self) -> None:
        """Check combinations of keys before anything is read.

        Raises:
            ConfigError: The message names the key.
        """
        if self.filter and self.study:
            problem = "excludes study: leave study out, or add tags.study = '...' to the filter"
            raise ConfigError("filter", problem)
        if self.before and len(self.studies) != 1:
            problem = "compares a study with itself at an earlier time: name one study"
            raise ConfigError("before", problem)
        self.moment()
        if self.register is not None:
            check_name(self.register, "register")
            check_name(self.alias, "alias")
