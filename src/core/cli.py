"""The wrapper around every command: Hydra, --help, one-line errors, exit status, the console."""

import functools
import os
import re
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NoReturn

import hydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from src.core.errors import ConfigError, UserError, closest
from src.core.files import CONF, ROOT

WIDTH = 100
INTERRUPTED = 130
# Folders of conf/ that are not part of a training config.
NOT_IN_A_RUN = ("command", "hydra", "labels", "paper")

console = Console(width=WIDTH)
# Partial failures of this process, such as unreadable pictures: the exit status becomes 1.
failures: list[str] = []


def say(line: str, wrap: bool = True, style: str | None = None) -> None:
    """Print one line of text to the terminal, without markup, wrapped at 100 columns.

    Paths and commands, which users copy, are not wrapped. `style` is one of rich.
    """
    console.print(line, style=style, markup=False, highlight=False, soft_wrap=not wrap)


@dataclass(frozen=True)
class Command:
    """One command of the project: its config, its help, and how its arguments are read.

    Hydra's grammar reads `run=12e4` as a number, a path with commas or brackets as a list, and
    `model=...` as a choice from conf/model. The last three fields declare what is meant instead.

    Attributes:
        config_name: The primary config below conf/, such as "command/report".
        examples: Shown by --help.
        renamed: Argument as typed -> key in the config.
        texts: Arguments (as typed) whose values are taken as text: ids, paths, filters.
        lists: Arguments (as typed) whose comma-separated values are one list, not a sweep.
    """

    config_name: str
    examples: str
    renamed: Mapping[str, str] = field(default_factory=dict)
    texts: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()

    def hydra_argument(self, typed: str) -> str:
        """The argument in Hydra's grammar, as the fields of this command declare it."""
        key, sign, value = typed.partition("=")
        if not sign:
            return typed
        if key in self.lists and "," in value and value[0] not in "['\"":
            value = f"[{value}]"
        if key in self.texts and value != "null":
            if key in self.lists and value.startswith("[") and value.endswith("]"):
                items = [item.strip() for item in value[1:-1].split(",")]
                value = f"[{','.join(_ensure_quoted(item) for item in items if item)}]"
            else:
                value = _ensure_quoted(value)
        return f"{self.renamed.get(key, key)}={value}"

    def run(self, job: Callable[[DictConfig], object]) -> None:
        """Compose the config from the command line and call `job` with it.

        Of a multirun, the sweeper calls `job`. The process ends with status 2 and one line on
        stderr after a mistake of the user, with 130 after Ctrl+C, with 1 after partial failures
        (`failures`), with a traceback after a bug. `--help` lists what can be set, `--help <group>`
        the choices of a config group. SIGTERM raises SystemExit, so that a run that is terminated
        can be closed. `job` imports what it needs itself: --help must not wait for torch or MLflow.
        """
        arguments = sys.argv[1:]
        if {"--help", "-h"} & set(arguments):
            print(_help(self, arguments))
            return
        flags = {argument.partition("=")[0] for argument in arguments}
        if {"-m", "--multirun"} & flags and {"--cfg", "-c"} & flags:
            fail("--cfg: shows the config of one run: omit -m and give one value for each key")
        sys.argv[1:] = map(self.hydra_argument, arguments)
        signal.signal(signal.SIGTERM, _terminate)
        failures.clear()
        full_error = "HYDRA_FULL_ERROR" in os.environ
        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing and exiting
        refused: list[UserError] = []

        @functools.wraps(job)
        def task(config: DictConfig) -> None:
            try:
                job(config)
            except UserError as error:
                refused.append(error)  # Hydra would print a line of its own

        main = hydra.main(version_base="1.3", config_path=str(CONF), config_name=self.config_name)
        try:
            main(task)()
            for error in refused:
                raise error
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        except (UserError, HydraException, OmegaConfBaseException) as error:
            message = one_line(error, self.config_name)
            if full_error or message is None:
                raise
            fail(message)
        finally:
            del os.environ["HYDRA_FULL_ERROR"]
            os.environ.update({"HYDRA_FULL_ERROR": "1"} if full_error else {})
        if failures:
            sys.exit(1)


def quoted(text: str) -> str:
    """A text as Hydra's grammar reads it: backslashes are escaped before a quote and at the end."""
    return "'" + re.sub(r"(\\*)('|$)", lambda at: 2 * at[1] + at[2].replace("'", r"\'"), text) + "'"


def _ensure_quoted(text: str) -> str:
    """A text in quotes; unchanged if it is empty or in quotes already."""
    return quoted(text) if text and text[0] not in "'\"" else text


def _help(command: Command, arguments: list[str]) -> str:
    """The examples, then the config groups and studies; for other commands the config."""
    if group := next((word for word in arguments if not word.startswith("-")), None):
        return _choices_help(group)
    examples = command.examples.strip("\n")
    if command.config_name != "train":
        text = (CONF / f"{command.config_name}.yaml").read_text()
        body = text.partition("\n\n")[2].partition("\nhydra:")[0].strip("\n")
        return f"{examples}\n\nEvery value can be set by key=value:\n\n{body}"
    groups = []
    for folder in sorted(path for path in CONF.iterdir() if path.is_dir()):
        names = ", ".join(_choices(folder))
        if names and folder.name not in NOT_IN_A_RUN:
            lines = textwrap.wrap(names, 82, subsequent_indent=" " * 14, break_on_hyphens=False)
            groups.append(f"  {folder.name + ':':<11} " + "\n".join(lines))
    return f"""{examples}

A run is composed of config groups. Choose with group=choice, set a value with group.key=value:

{chr(10).join(groups)}

A study sweeps over values. Each file of sweeps/ is a study:

  {"sweeps:":<11} {", ".join(_choices(_folder("sweeps")))}

  --help <group>       the choices of a group, such as --help model, --help sweeps,
                       --help hydra/sweeper/sampler (or pruner, executor)
  --cfg job            print the composed config and do not run it
  -m, --multirun       one run per combination of comma-separated values, compared at the end;
                       the same command again resumes the study
  --hydra-help         Hydra's own flags: folders, shell completion

Every value is checked. A wrong one ends the command with one line that names its key."""


def _choices_help(group: str) -> str:
    """The choices of a config group, each with the first sentence of its file."""
    folder = _folder(group)
    if not folder.is_dir():
        fail(f"--help {group}: there is no such group; see --help")
    width = max(len(name) for name in _choices(folder))
    lines = [f"{group}=..."]
    for name in _choices(folder):
        header = _header(folder / f"{name}.yaml").removeprefix(f"{name}: ")
        first = f"  {name:<{width}}  "
        lines += textwrap.wrap(header, 98, initial_indent=first, subsequent_indent=" " * len(first))
    return "\n".join(lines)


def _header(file: Path) -> str:
    """The first sentence of the comment at the top of a config file."""
    sentence = ""
    for line in re.sub(r"^.*@package.*\n", "", file.read_text(), flags=re.M).splitlines():
        is_example = sentence and re.match(r"# [\w ]+: ", line)
        if not line.startswith("# ") or is_example or sentence.endswith("."):
            break
        sentence = f"{sentence} {line.lstrip('# ')}".strip()
    return sentence


def _folder(group: str) -> Path:
    return ROOT / "sweeps" if group == "sweeps" else CONF / group


def _choices(folder: Path) -> list[str]:
    """Names of the choices, also in subfolders. Files with a leading underscore are no choices."""
    files = [*sorted(folder.glob("[!_]*.yaml")), *sorted(folder.glob("*/[!_]*.yaml"))]
    return [str(file.relative_to(folder).with_suffix("")) for file in files]


def fail(message: str) -> NoReturn:
    """Print the error on one line and exit with status 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)


def one_line(error: BaseException, config_name: str = "train") -> str | None:
    """The message of a user's mistake on one line; None if the error is a bug.

    Errors of Hydra's composition are reworded; the primary config is searched for similar keys.
    """
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if isinstance(error, OmegaConfBaseException):
        return str(ConfigError(error.full_key or "config", str(error).splitlines()[0]))
    if not isinstance(error, HydraException):
        return None
    text = str(error)
    if isinstance(error, OverrideParseException):
        return f"{error.override}: not a valid override, {text.splitlines()[0]}"
    if choice := re.search(r"Could not find '([^']+)'", text):
        group, _, name = choice[1].rpartition("/")
        names = _choices(_folder(group))
        similar = closest(name, names, ", ")
        return f"{group}={name}: no such choice{similar}; {group} has {', '.join(names)}"
    if override := re.search(r"Could not override '([^']+)'", text):
        key, cause = override[1], error.__cause__
        if isinstance(cause, OmegaConfBaseException) and "is not in struct" not in str(cause):
            return f"{key}: {str(cause).splitlines()[0]}"
        return f"{key}: unknown key{closest(key, _known_keys(config_name))}"
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def _known_keys(config_name: str) -> list[str]:
    """All keys of the composed default config; none where it has no default."""
    from hydra.core.global_hydra import GlobalHydra

    from src.core.config import flatten

    keys: set[str] = set()
    with suppress(HydraException, OmegaConfBaseException, ValueError):
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            leaves = flatten(hydra.compose(config_name))
        for leaf in leaves:
            keys |= {leaf[: dot.start()] for dot in re.finditer(r"\.|$", leaf)}
    return sorted(keys)


def format_bug(error: BaseException) -> str:
    """The traceback of an unexpected error, as text."""
    return "".join(traceback.format_exception(error))
