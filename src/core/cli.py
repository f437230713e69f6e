"""The wrapper around every command: Hydra, --help, one-line errors, exit status, the console."""

import importlib.metadata
import logging
import os
import re
import runpy
import signal
import sys
import textwrap
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import hydra
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from src.core.environment import require_memory
from src.core.errors import (
    ConfigError,
    UserError,
    closest,
    config_problem,
    full_disk,
    masked,
    out_of_memory,
    printable,
)
from src.core.files import CONF, ROOT

WIDTH = 100  # columns of prose at most; tables take what the terminal has
INTERRUPTED = 130
# Commands of the console script and their modules.
PROGRAM = {name: f"src.{name}" for name in ("train", "report", "evaluate", "predict", "export")}
PROGRAM |= {name: f"src.{name}" for name in ("benchmark", "card", "audit")}
PROGRAM |= {"fetch": "src.data.fetch", "ui": "src.tracking.ui", "dashboard": "src.sweep.dashboard"}
# Folders of conf/ that are not part of a training config.
NOT_IN_A_RUN = ("command", "hydra", "labels", "paper")
OPTIONAL_GROUPS = ("experiment", "sweeps")
# What a config that cannot be composed or resolved raises.
COMPOSE_ERRORS = (UserError, HydraException, OmegaConfBaseException, yaml.YAMLError, UnicodeError)


class PlainConsole(Console):
    """A console without passwords and the control characters of, say, a foreign class name."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        """Called by rich for every part of what is printed."""
        for segment in super().render(renderable, options):
            shown = printable(masked(segment.text))
            yield segment if segment.control else segment._replace(text=shown)


console = PlainConsole()
# Partial failures of this process, such as unreadable pictures: the exit status becomes 1.
failures: list[str] = []


def say(line: str, wrap: bool = True, style: str | None = None) -> None:
    """Print one line of text without markup, wrapped at the terminal's width, at most 100 columns.

    Paths and commands, which users copy, are not wrapped. `style` is one of rich.
    """
    width = min(console.width, WIDTH) if wrap else None
    console.print(line, style=style, markup=False, highlight=False, soft_wrap=not wrap, width=width)


def fitted(text: str, width: int | None = None) -> str:
    """Wrap the lines of a help text that are longer than `width`, by default the terminal's.

    What stands behind a gap of two blanks, such as a comment, is continued below its start.
    """
    wrapper = textwrap.TextWrapper(break_long_words=False, break_on_hyphens=False)
    wrapper.width = width or min(console.width, WIDTH)
    lines = []
    for line in text.splitlines():
        gap = re.search(r"(?<=\S) {2,}(?=\S)", line)
        indent = gap.end() if gap else len(line) - len(line.lstrip())
        if gap and len(line) > wrapper.width and indent > wrapper.width // 2:
            lines.append(line[: gap.start()])
            line, indent = " " * 6 + line[gap.end() :], 6
        wrapper.subsequent_indent = " " * indent
        lines += wrapper.wrap(line) or [""]
    return "\n".join(lines)


@dataclass(frozen=True)
class Command:
    """One command of the project: its config, its help, and how its arguments are read.

    Hydra's grammar reads `run=12e4` as a number, a path with commas or brackets as a list, and
    `model=...` as a choice from conf/model. The last three fields declare what is meant instead.

    Attributes:
        config_name: The primary config below conf/, such as "command/report".
        job: The function that does the work with the composed config, as "module:function". It is
            imported then: --help must not wait for torch or MLflow.
        about: The docstring of the command's module, with examples; shown by --help.
        renamed: Argument as typed -> key in the config.
        texts: Arguments (as typed) whose values are taken as text: ids, paths, filters.
        lists: Arguments (as typed) whose comma-separated values are one list, not a sweep.
    """

    config_name: str
    job: str
    about: str
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
        # src.train sweeps over ids and names: only one that looks like a number is quoted there
        is_plain = self.config_name == "train" and not re.fullmatch(r"\d[\de]*", value)
        if key in self.texts and value != "null" and not is_plain:
            if key in self.lists and value.startswith("[") and value.endswith("]"):
                items = [item.strip() for item in value[1:-1].split(",")]
                value = f"[{','.join(_ensure_quoted(item) for item in items if item)}]"
            else:
                value = _ensure_quoted(value)
        return f"{self.renamed.get(key, key)}={value}"

    def run(self) -> None:
        """Compose the config from the command line and do the job with it.

        Of a multirun, the sweeper does it. The process ends with status 2 and one line on stderr
        after a mistake of the user, with 130 after Ctrl+C, with 1 after partial failures
        (`failures`), with a traceback after a bug. `--help` lists what can be set, `--help <group>`
        the choices of a config group. SIGTERM raises SystemExit, so that a run that is terminated
        can be closed.
        """
        arguments = sys.argv[1:]
        if {"--help", "-h"} & set(arguments):
            _show(fitted(_help(self, arguments)))
            return
        arguments = _flag_first(map(self.hydra_argument, arguments))
        self._refuse_misplaced(arguments)
        sys.argv[1:] = arguments
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        logging.raiseExceptions = False  # a log file on a full disk would print a traceback
        failures.clear()
        full_error, cwd = "HYDRA_FULL_ERROR" in os.environ, Path.cwd()
        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing and exiting
        raised: list[Exception] = []

        def task(config: DictConfig) -> None:
            os.chdir(cwd)  # of hydra.job.chdir=true: paths mean where the command was typed
            module, _, function = self.job.partition(":")
            try:
                require_memory()
                getattr(importlib.import_module(module), function)(config)
            except Exception as error:
                # Hydra would print a line of its own, after a bug with the passwords of overrides.
                raised.append(error)

        task.__module__ = f"src.{self.config_name.rpartition('/')[2]}"  # names the log file
        main = hydra.main(version_base="1.3", config_path=str(CONF), config_name=self.config_name)
        try:
            main(task)()
            for error in raised:
                raise error
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        except Exception as error:
            message = one_line(error, self.config_name, arguments)
            if full_error or message is None:
                sys.stderr.write(masked(traceback.format_exc()))
                sys.exit(1)
            if out_of_memory(error):  # what is collected at the end may fail as well
                sys.unraisablehook = lambda unraisable: None
            fail(message)
        finally:
            del os.environ["HYDRA_FULL_ERROR"]
            os.environ.update({"HYDRA_FULL_ERROR": "1"} if full_error else {})
        if failures:
            sys.exit(1)

    def _refuse_misplaced(self, arguments: list[str]) -> None:
        """Refuse flags and overrides that Hydra would ignore, or whose error names no key."""
        parser = get_args_parser()
        parser.error = fail  # type: ignore[method-assign]
        flags = parser.parse_args(arguments)
        keys = [argument.partition("=")[0].lstrip("+") for argument in flags.overrides]
        is_study = flags.multirun or "sweeps" in keys
        if "hydra.mode" in keys:  # it overrules both
            is_study = flags.overrides[keys.index("hydra.mode")].strip("'\"").endswith("=MULTIRUN")
        if is_study and self.config_name.startswith("command/"):
            fail("-m: belongs to src.train; this command runs once")
        if flags.multirun and flags.cfg:
            fail("--cfg: shows the config of one run: omit -m and give one value for each key")
        for key, argument in zip(keys, flags.overrides, strict=True):
            if not key:
                fail(f"{argument}: names no key")
            if key.startswith(("hydra/launcher", "hydra.launcher")):
                way = "hydra/sweeper/executor=, and hydra.sweeper.n_jobs for parallel trials"
                fail(f"{key}: has no effect: choose {way}")
            if key == "hydra/sweeper":
                fail(f"{argument}: there is one sweeper: choose hydra/sweeper/sampler=")
            if key.startswith(("hydra/sweep", "hydra.sweep")) and not is_study:
                fail(f"{key}: belongs to a study: add -m to src.train")
            _refuse_value(argument)


def _show(text: str) -> None:
    """Print a text, also to a program that stops reading, such as `head`."""
    try:
        print(text, flush=True)
    except BrokenPipeError:  # nothing may be flushed at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refuse_value(argument: str) -> None:
    """Refuse a sweep inside of a list, a deleted config group, and a choice that is no name."""
    try:
        override = OverridesParser.create().parse_override(argument)
    except HydraException:
        return  # Hydra names it
    group, value = override.key_or_group, override.value()
    if isinstance(value, list | dict) and "Sweep(" in repr(value):
        fail(f"{argument}: a sweep inside of a list has no effect: list the whole values")
    names = _choices(_folder(group)) if group else []
    if not names or isinstance(value, dict):
        return
    choices = value.list if isinstance(value, ChoiceSweep) else [value]
    if override.is_delete() and group not in OPTIONAL_GROUPS:
        fail(f"{argument}: cannot be left out; {group} has {', '.join(names)}")
    kinds = str | list if group in ("callbacks", "efficiency", "experiment") else str
    if not override.is_delete() and not all(isinstance(name, kinds) for name in choices):
        fail(f"{argument}: a choice is the name of a file; {group} has {', '.join(names)}")


def main() -> None:
    """The console script: `paretoderm train ...` does what `python -m src.train ...` does.

    To complete a word the shell calls `paretoderm -sc query=<shell>`, with what is typed in the
    variable COMP_LINE. Hydra completes what follows the command.
    """
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h", "help", "--version", "-V"):
        lines = [
            f"paretoderm {importlib.metadata.version('paretoderm')}: each command has --help\n"
        ]
        for word, module in PROGRAM.items():
            text = (ROOT / f"{module.replace('.', '/')}.py").read_text()
            about = text.split('"""')[1].splitlines()[0].partition(": ")[2]
            lines.append(fitted(f"  paretoderm {word:<9}  {about}"))
        _show("\n".join(lines))
        return
    if name in ("-sc", "--shell-completion"):
        line = re.match(r"\s*(\S*)\s*(\S*)(.*)", os.environ.get("COMP_LINE", ""))
        program, typed, rest = line.groups() if line else ("", "", "")
        if arguments and arguments[0].startswith("query=") and not rest:
            print(" ".join(word for word in PROGRAM if word.startswith(typed)))
            return
        os.environ["COMP_LINE"] = " ".join([program, *_flag_first(rest.split(" ")[1:])])
        name, arguments = typed or "train", sys.argv[1:]
        if PROGRAM.get(name) != f"src.{name}":  # no command of Hydra
            return
    if name not in PROGRAM:
        fail(f"{name}: no such command{closest(name, list(PROGRAM), ', ')}; see paretoderm --help")
    sys.argv[1:] = arguments
    runpy.run_module(PROGRAM[name], run_name="__main__")


def _flag_first(arguments: Iterable[str]) -> list[str]:
    """Hydra's parser does not accept -m between or behind overrides."""
    return sorted(arguments, key=lambda word: word not in ("-m", "--multirun"))


def quoted(text: str) -> str:
    """A text as Hydra's grammar reads it: backslashes are escaped before a quote and at the end."""
    return "'" + re.sub(r"(\\*)('|$)", lambda at: 2 * at[1] + at[2].replace("'", r"\'"), text) + "'"


def _ensure_quoted(text: str) -> str:
    """A text in quotes; unchanged if it is empty or in quotes already."""
    return quoted(text) if text and text[0] not in "'\"" else text


def _help(command: Command, arguments: list[str]) -> str:
    """The docstring, then the config groups and studies; for other commands the config."""
    if group := next((word for word in arguments if not word.startswith("-")), None):
        return _choices_help(group)
    about = command.about.replace("ENTRY", "Paretoderm", 1).strip("\n")
    if command.config_name != "train":
        text = (CONF / f"{command.config_name}.yaml").read_text()
        body = text.partition("\n\n")[2].partition("\nhydra:")[0].strip("\n")
        return f"{about}\n\nEvery value can be set by key=value:\n\n{body}"
    groups = []
    for folder in sorted(path for path in CONF.iterdir() if path.is_dir()):
        names = ", ".join(_choices(folder))
        if names and folder.name not in NOT_IN_A_RUN:
            groups.append(f"  {folder.name + ':':<12}  {names}")
    return f"""{about}

A run is composed of config groups. Choose with group=choice, set a value with
group.key=value:

{chr(10).join(groups)}

A study sweeps over values. Each file of sweeps/ is a study:

  {"sweeps:":<12}  {", ".join(_choices(_folder("sweeps")))}

  --help <group>       the choices of a group, such as --help model, --help
                       sweeps, --help hydra/sweeper/sampler (pruner, executor)
  --cfg job            print the composed config and do not run it
  -m, --multirun       one run per combination of comma-separated values, and a
                       comparison; the same command again resumes the study
  --hydra-help         Hydra's own flags: folders, shell completion

Every value is checked. A wrong one ends the command with a line that names it."""


def _choices_help(group: str) -> str:
    """The choices of a config group, each with the first sentence of its file."""
    folder = _folder(group)
    names = _choices(folder)
    if not names or not folder.is_relative_to(ROOT):
        fail(f"--help {group}: there is no such group; see --help")
    width, lines = max(map(len, names)), [f"{group}=..."]
    for name in names:
        sentence, text = "", (folder / f"{name}.yaml").read_text()
        for line in re.sub(r"^.*@package.*\n", "", text, flags=re.M).splitlines():
            is_example = sentence and re.match(r"# [\w ]+: ", line)
            if not line.startswith("# ") or is_example or sentence.endswith("."):
                break
            sentence = f"{sentence} {line.lstrip('# ')}".strip()
        lines.append(f"  {name:<{width}}  {sentence.removeprefix(f'{name}: ')}")
    return "\n".join(lines)


def _folder(group: str) -> Path:
    return ROOT / "sweeps" if group == "sweeps" else CONF / group


def _choices(folder: Path) -> list[str]:
    """Names of the choices, also in subfolders. Files with a leading underscore are no choices."""
    files = [*sorted(folder.glob("[!_]*.yaml")), *sorted(folder.glob("*/[!_]*.yaml"))]
    return [str(file.relative_to(folder).with_suffix("")) for file in files]


def fail(message: str) -> NoReturn:
    """Print the error on one line and exit with status 2."""
    print(f"error: {printable(masked(message))}", file=sys.stderr)
    sys.exit(2)


def one_line(
    error: BaseException, config_name: str = "train", arguments: Sequence[str] = ()
) -> str | None:
    """The message of a user's mistake on one line; None if the error is a bug.

    Errors of Hydra's composition are reworded. Similar keys are searched for in the primary config,
    composed with the choices in `arguments`.
    """
    if isinstance(error, ConfigError):
        return " ".join(f"{error}{_origin_of(error.key, arguments)}".split())
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if problem := full_disk(error) or out_of_memory(error):
        return problem
    if isinstance(error, OmegaConfBaseException):
        text = f"{error.full_key or 'config'}: {config_problem(error)}"
    elif isinstance(error, HydraException):
        text = _composition_error(error, config_name, arguments)
    elif isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        text = f"{mark.name}, line {mark.line + 1}: not valid YAML: {error.problem}"
    else:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        codes = {frame.f_code for frame in frames} - {Command.run.__code__}
        is_of_job = any(Path(code.co_filename).is_relative_to(ROOT / "src") for code in codes)
        if is_of_job and not isinstance(error, UnicodeError):
            return None
        # While the config was composed: the file that Hydra was reading, if any.
        files = [file for frame in frames if (file := frame.f_locals.get("full_path"))]
        name = str(getattr(error, "filename", None) or (files[-1] if files else ""))
        argument = next((word for word in arguments if name and name in word), name)
        first = (str(error).splitlines() or [""])[0]  # the others name positions or inner keys
        text = f"{argument or 'config'}: {getattr(error, 'strerror', None) or first}"
    return " ".join(text.split())


def _origin_of(key: str, arguments: Sequence[str]) -> str:
    """Which experiment or study on the command line sets a key that nobody typed."""
    typed = [argument.lstrip("+~").partition("=") for argument in arguments]
    if any(f"{name}.".startswith(f"{key}.") for name, _, _ in typed):
        return ""
    for group, _, choice in typed:
        file = _folder(group) / f"{choice}.yaml"
        if group not in OPTIONAL_GROUPS or not file.is_file():
            continue
        if OmegaConf.select(OmegaConf.load(file), key) is not None:
            root = key.partition(".")[0]
            groups = [f"{name}={value}" for name, _, value in typed if name == root]
            problem = f", which does not fit {groups[0]}" if groups else ""
            return f"; {group}={choice} sets it{problem}"
    return ""


# Message of Hydra -> ours, with the text of the group.
_REWORDED = {
    r"(?:argument|parameters) '(.+)'": "{0}: several values are a study: add -m; a list is written "
    "key=[a,b], a text with commas key=\"'a,b'\"",
    r"Multiple values for ([\w/]+)": "{0}: is chosen already; write {0}=<choice> without +, "
    "or override /{0} in the defaults of a file",
    r"(?s)\AIn '([^']+)': .*DictConfig with ListConfig": "{0}: must hold keys and values, not a "
    "list, or the other way round",
}


def _composition_error(error: HydraException, config_name: str, arguments: Sequence[str]) -> str:
    text, cause = str(error), error.__cause__
    if isinstance(error, OverrideParseException):
        if str(error.override).endswith(","):
            return f"{error.override}: ends with a comma; write values without spaces: key=a,b"
        problem = text.splitlines()[0].partition(" expecting ")[0]
        ways = "write key=value, and other texts in quotes, key=\"'a b'\""
        problem = re.sub(r"^(\w+Exception: |Error parsing override ).*", ways, problem)
        return f"{error.override}: not a valid override, {problem}"
    for pattern, message in _REWORDED.items():
        if match := re.search(pattern, text):
            return message.format(match[1])
    if choice := re.search(r"Could not (?:find|load) '([^']+)'", text):
        groups = (word.lstrip("+").partition("=")[0] for word in arguments)
        folder = choice[1].rpartition("/")[0]
        group = next((group for group in groups if choice[1].startswith(f"{group}/")), folder)
        name, names = choice[1].removeprefix(f"{group}/"), _choices(_folder(group))
        choices = f"choice{closest(name, names, ', ')}; {group} has {', '.join(names)}"
        return f"{group}={name}: no such {choices if names else 'group of choices'}"
    if missing := re.search(r"You must specify '([^']+)'", text):
        group, names = missing[1], _choices(_folder(missing[1]))
        return f"{group}: name one, as in {group}={names[0]}; there are {', '.join(names)}"
    if override := re.search(r"Could not override '([^']+)'", text):
        if isinstance(cause, OmegaConfBaseException) and "is not in struct" not in str(cause):
            return f"{override[1]}: {config_problem(cause)}"
        key = str(getattr(cause, "full_key", None) or override[1])
        return _unknown_key(key, config_name, arguments)
    if isinstance(cause, OmegaConfBaseException):
        return f"{cause.full_key or 'config'}: {config_problem(cause)}"
    return text


def _unknown_key(key: str, config_name: str, arguments: Sequence[str]) -> str:
    """The message, with a similar key of the configs with the typed choices."""
    from hydra.core.global_hydra import GlobalHydra

    from src.core.config import flatten

    typed = [word.partition("=") for word in arguments if _folder(word.partition("=")[0]).is_dir()]
    choices = {group: re.sub(r"choice\(|\)", "", text).split(",") for group, _, text in typed}
    keys: list[set[str]] = []  # with the first choice of every group, the second, and so on
    with suppress(Exception):
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            for at in range(max(map(len, choices.values()), default=1)):
                chosen = [f"{group}={names[at % len(names)]}" for group, names in choices.items()]
                leaves = flatten(hydra.compose(config_name, chosen))
                dots = [(leaf, dot) for leaf in leaves for dot in re.finditer(r"\.|$", leaf)]
                keys.append({leaf[: dot.start()] for leaf, dot in dots})
    root, known = key.partition(".")[0], sorted(set().union(*keys))
    if key in known:  # of a swept choice, which Hydra leaves out at first
        pairs = zip(choices.get(root, ()), keys, strict=False)
        without = ",".join(name for name, has in pairs if key not in has)
        way = f"leave out {root}={without}, and write" if without else "write"
        return f"{key}: not every swept choice has this key: {way} ++{key}=..."
    return f"{key}: unknown key{closest(key, known)}"
