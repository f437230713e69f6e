"""What every entry script shares: Hydra around a job, and bad input told in one line."""

import difflib
import functools
import os
import re
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

import hydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from src.core.errors import ConfigError, UserError

ROOT = Path(__file__).resolve().parents[2]
INTERRUPTED = 130
OTHERS = (
    "hydra",
    "paper",
    "labels",
)  # folders of conf/ that are no part of a run: Hydra's and other entries'
QUOTES = ("'", '"')  # that a value may stand in on the command line
failures: list[
    str
] = []  # what did not end well in this process, though nothing was raised: its status becomes 1


def run_command(job: Callable[[DictConfig], None], config_name: str, examples: str) -> None:
    """Compose `conf/<config_name>.yaml` from the command line and hand it to `job`, once or once a cell of a multirun.

    A mistake of the user ends the process with one line on stderr and status 2; anything else is
    our bug and shows its traceback. `--help` lists the config groups, `--help <group>` what each
    choice of one is. SIGTERM unwinds the stack as Ctrl+C does, so that a terminated run can still
    be closed.
    """
    if {"--help", "-h"} & set(sys.argv[1:]):
        group = next((argument for argument in sys.argv[1:] if not argument.startswith("-")), None)
        print(choices_help(group) if group else general_help(examples, config_name))
        return
    flags = {argument.partition("=")[0] for argument in sys.argv[1:]}
    if {"-m", "--multirun"} & flags and {"--cfg", "-c"} & flags:
        fail("--cfg: shows the config of one run: leave -m out, and name one value a key")
    signal.signal(signal.SIGTERM, _terminate)
    full_error = "HYDRA_FULL_ERROR" in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let Hydra raise instead of printing and leaving
    refused: list[UserError] = []

    @functools.wraps(job)
    def task(config: DictConfig) -> None:
        try:
            job(config)
        except UserError as error:
            refused.append(error)  # not through Hydra, which would print a line of its own

    with one_line_errors(full_error):
        try:
            hydra.main(version_base="1.3", config_path=str(ROOT / "conf"), config_name=config_name)(
                task
            )()
        finally:
            if not full_error:
                del os.environ["HYDRA_FULL_ERROR"]
        for error in refused:
            raise error


@contextmanager
def one_line_errors(full_error: bool = False) -> Iterator[None]:
    """Turn the user's mistakes into one line and status 2, and Ctrl+C into the status that shells know it by.

    Args:
        full_error: Let them through with their traceback.
    """
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except (UserError, HydraException, OmegaConfBaseException) as error:
        message = one_line(error)
        if full_error or message is None:
            raise
        fail(message)


def quoted(text: str) -> str:
    """A text as Hydra's grammar reads it back: backslashes are escaped before a quote and at the end alone."""
    return "'" + re.sub(r"(\\*)('|$)", lambda at: 2 * at[1] + at[2].replace("'", r"\'"), text) + "'"


def general_help(examples: str, config_name: str = "train") -> str:
    """What can be typed: examples, then each config group with its choices; of other programs their config itself."""
    if config_name != "train":
        body = (
            (ROOT / "conf" / f"{config_name}.yaml")
            .read_text()
            .partition("\n\n")[2]
            .partition("\nhydra:")[0]
        )
        return "\n".join(
            [examples.strip("\n"), "", "Every value can be set by key=value:", "", body.strip("\n")]
        )
    groups = [folder for folder in sorted((ROOT / "conf").iterdir()) if folder.is_dir()]
    lines = [
        examples.strip("\n"),
        "",
        "A run is made of parts. Choose one by part=choice, set a value by part.key=value:",
        "",
    ]
    for folder in groups:
        names = ", ".join(_choices(folder))
        if names and folder.name not in OTHERS:
            wrapped = textwrap.wrap(
                names, width=82, subsequent_indent=" " * 14, break_on_hyphens=False
            )
            lines.append(f"  {folder.name + ':':<11} " + "\n".join(wrapped))
    lines += ["", "A study sweeps over some of them; each file of sweeps/ is one:", ""]
    lines.append(f"  {'sweeps:':<11} {', '.join(_choices(_folder('sweeps')))}")
    return "\n".join(
        [
            *lines,
            "",
            "  --help <part>        what each choice of a part is, such as --help model, --help sweeps,",
            "                       --help hydra/sweeper/sampler (or pruner, executor)",
            "  --cfg job            all values of a composed run, without running it",
            "  -m, --multirun       one run per combination of comma-separated values, compared at the end;",
            "                       the same command again goes on with what is left of it",
            "  --hydra-help         Hydra's own flags: folders, shell completion",
            "",
            "Every value is checked; a wrong one ends with one line that names its key.",
        ]
    )


def choices_help(group: str) -> str:
    """The header line of each choice of a group."""
    folder = _folder(group)
    if not folder.is_dir():
        fail(f"--help {group}: there is no such part; see --help")
    width = max(len(name) for name in _choices(folder))
    lines = [f"{group}=..."]
    for name in _choices(folder):
        header = _header(folder / f"{name}.yaml").removeprefix(f"{name}: ")
        indent = " " * (width + 4)
        lines += textwrap.wrap(
            header, 98, initial_indent=f"  {name:<{width}}  ", subsequent_indent=indent
        )
    return "\n".join(lines)


def _header(file: Path) -> str:
    """The first sentence of the comment that a config file starts with."""
    sentence = ""
    for line in file.read_text().splitlines():
        if "@package" in line:
            continue
        if not line.startswith("# ") or (sentence and re.match(r"# [\w ]+: ", line)):
            break
        sentence = f"{sentence} {line.lstrip('# ')}".strip()
        if sentence.endswith("."):
            break
    return sentence


def _folder(group: str) -> Path:
    """Where the choices of a group are."""
    return ROOT / "sweeps" if group == "sweeps" else ROOT / "conf" / group


def _choices(folder: Path) -> list[str]:
    """Names that can be chosen, in folders too; files with a leading underscore are shared pieces of others."""
    files = [file for pattern in ("*.yaml", "*/*.yaml") for file in sorted(folder.glob(pattern))]
    return [
        str(file.relative_to(folder).with_suffix(""))
        for file in files
        if not file.stem.startswith("_")
    ]


def fail(message: str) -> NoReturn:
    """Print the one line and leave with status 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)


def one_line(error: BaseException) -> str | None:
    """The user's mistake in one line, or None if the error is not the user's.

    Args:
        error: What was raised; Hydra's composition errors are put in our words.
    """
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if isinstance(error, HydraException):
        return _hydra_line(error)
    if isinstance(error, OmegaConfBaseException):
        return str(ConfigError(error.full_key or "config", str(error).splitlines()[0]))
    return None


def _hydra_line(error: HydraException) -> str:
    text = str(error)
    if isinstance(error, OverrideParseException):
        return f"{error.override}: not a valid override, {text.splitlines()[0]}"
    choice = re.search(r"Could not find '([^']+)'", text)
    if choice:
        group, _, name = choice[1].rpartition("/")
        known = _choices(_folder(group))
        return (
            f"{group}={name}: no such choice{_suggest(name, known)}; {group} has {', '.join(known)}"
        )
    override = re.search(r"Could not override '([^']+)'", text)
    if override:
        key = override[1]
        if isinstance(error.__cause__, OmegaConfBaseException) and "is not in struct" not in str(
            error.__cause__
        ):
            return f"{key}: {str(error.__cause__).splitlines()[0]}"
        return f"{key}: unknown key{_suggest_key(key)}"
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def _suggest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f", did you mean {close[0]}?" if close else ""


def _suggest_key(key: str) -> str:
    """Close names among all keys of the composed default config."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    known: list[str] = []
    with suppress(HydraException, OmegaConfBaseException, ValueError):
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            known = list(_keys(compose("train")))
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _keys(config: DictConfig, path: str = "") -> list[str]:
    found = []
    for key in map(str, config):
        where = f"{path}.{key}" if path else key
        found.append(where)
        node = config._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_interpolation():
            found.extend(_keys(node, where))
    return found


def format_bug(error: BaseException) -> str:
    """The traceback of an unexpected error, as text."""
    return "".join(traceback.format_exception(error))
