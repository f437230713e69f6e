"""What the command line asks for: a study's space, objectives, limits and how it is run, checked before it is begun."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le
from hydra.core.config_loader import ConfigLoader
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src import dry_run
from src.config import check
from src.entry import one_line
from src.errors import ConfigError, UserError
from src.objectives import Limit, Objective, parse_limits, parse_objectives
from src.sweep import space as spaces
from src.sweep.task import Kind

PROBED = 3  # cells that are composed and checked before anything is started


@dataclass
class Settings:
    """The config node `hydra.sweeper`; conf/hydra/sweeper/study.yaml says what each value means."""

    sampler: Any
    pruner: Any
    executor: Any
    study_name: str | None = None
    n_trials: Annotated[int, Ge(1)] | None = None
    storage: str | None = None
    warm_start: str | None = None
    params: dict[str, Any] = field(default_factory=dict)
    conditions: dict[str, dict[str, Any]] = field(default_factory=dict)
    zip: list[dict[str, list[Any]]] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)
    n_jobs: Annotated[int, Ge(1)] | None = None
    time_limit_s: Annotated[float, Gt(0)] | None = None
    retries: Annotated[int, Ge(0)] = 1
    retried: list[Kind] = field(default_factory=lambda: ["killed", "out_of_memory"])
    retry_failed: bool = False
    stop_after: Annotated[int, Ge(0)] = 3
    grace_s: Annotated[float, Ge(0)] = 10
    keep_state_s: Annotated[float, Ge(0)] | None = 20
    drop_p: Annotated[float, Gt(0), Le(0.5)] = 0.1


@dataclass(frozen=True)
class Plan:
    """A study as the command line asks for it.

    Attributes:
        config: The config that all trials share.
        settings: How it is run.
        name: Of the study.
        space: What is swept.
        overrides: What all trials are given.
        objectives: What is made better.
        limits: What has to be kept.
        folder: Of the study.
    """

    config: DictConfig
    settings: Settings
    name: str
    space: spaces.Space
    overrides: list[str]
    objectives: list[Objective]
    limits: list[Limit]
    folder: Path

    @property
    def is_grid(self) -> bool:
        """Whether the cells come in order."""
        return self.settings.n_trials is None or self.settings.sampler.get("name") == "grid"


def make_plan(config: DictConfig, settings: Mapping[str, Any], arguments: list[str]) -> Plan:
    """Read and check what the command line asks for.

    Raises:
        ConfigError: A value that cannot be; the message names the key.
    """
    plain = {key: _plain(value) for key, value in settings.items() if key not in ("_target_", "_recursive_")}
    parts = ("sampler", "pruner", "executor")  # checked where they are built
    check({"_target_": f"{__name__}.Settings", **{k: v for k, v in plain.items() if k not in parts}}, "hydra.sweeper")
    own = Settings(**plain)
    check({"repeats": config.repeats, "dry_run": config.dry_run, "seed": config.seed})
    parsed = spaces.parse(arguments, own.params, own.conditions, own.zip, own.exclude)
    choice = config.hydra.runtime.choices.get("sweeps")
    made = choice or _made_name(arguments, parsed.fixed)
    name = str(own.study_name or config.study or made)
    if parsed.space.n_cells is None and (own.n_trials is None or own.sampler.get("name") == "grid"):
        if own.n_trials is not None:
            raise ConfigError("hydra/sweeper/sampler", "a grid needs cells, but an interval has none: take tpe")
        next(iter(parsed.space.cells()))  # raises, and names the parameter that has no cells
    if config.repeats > 1 and any("seed" in parameter.keys for parameter in parsed.space.parameters):
        raise ConfigError("repeats", "trains under several seeds itself: do not sweep over seed as well")
    objective = _plain(config.objective)
    return Plan(
        config,
        own,
        name,
        parsed.space,
        list(parsed.fixed),
        parse_objectives(objective),
        parse_limits(objective),
        Path(config.hydra.sweep.dir).absolute() / re.sub(r"[^\w.=,+-]", "_", name),
    )


def probe(plan: Plan, loader: ConfigLoader) -> tuple[DictConfig, list[str]] | None:
    """Compose and check some cells: a mistake that they all share is told at once, not trial by trial.

    Returns:
        The first that is as it should be, with its overrides; None where they have mistakes of their own.

    Raises:
        UserError: What is wrong with every one of them.
    """
    problems: dict[str, Exception] = {}
    for overrides in dry_run.sample(plan.space, PROBED, seed=0):
        every = [*plan.overrides, *overrides]
        try:
            return dry_run.compose_cell(loader, plan.config, every), every
        except (UserError, HydraException, OmegaConfBaseException) as error:
            problems[str(one_line(error))] = error
    if len(problems) == 1:
        raise next(iter(problems.values()))
    return None


def _made_name(arguments: list[str], fixed: list[str]) -> str:
    """A name for a study that was given none: it tells what is swept, and differs wherever the command does."""
    swept = [argument for argument in arguments if argument not in fixed]
    words = "-".join(
        argument.partition("=")[0].rpartition(".")[2] + "-" + argument.partition("=")[2] for argument in swept
    )
    readable = re.sub(r"[^\w,.+-]+", "_", words)[:48].strip("-_,.")
    return f"{readable or 'defaults'}-{hashlib.sha256(chr(10).join(sorted(arguments)).encode()).hexdigest()[:6]}"


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
