"""An export from end to end: find the run, write its files, check each, record and tell."""

import math
import sys
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from src.config import check, resolve
from src.deployment.description import Description
from src.deployment.files import FORMATS, format_of
from src.errors import ConfigError, UserError
from src.exporting import images
from src.exporting.check import Exported, Origin, export, of_file, of_net
from src.exporting.settings import Kind, Settings
from src.tracking.existing import existing
from src.tracking.run import Run
from src.tracking.store import Store
from src.trained import load
from src.trained.runs import Evaluated

console = Console(width=100)


def make(config: DictConfig) -> list[Exported]:
    """Make the exports that a config asks for.

    Args:
        config: A composed `conf/export.yaml`.

    Returns:
        Those that were kept, after they were recorded.

    Raises:
        UserError: Bad input, or a file that does not answer as the run does; the others of the list are made.
    """
    settings, store = _settings(config)
    run = load.single(store, settings.wanted)
    _refuse_other_formats(run, load.deployed(store, run), settings.formats)
    origin = _origin(run, store, settings)
    folder = Path(settings.folder) / f"{run.model}_{run.run_id[:8]}"
    tolerance = settings.tolerance if origin.description.precision == "float32" else settings.compressed_tolerance
    kept, refused = [], []
    for kind in settings.formats:
        print(f"{kind}: writing and checking ...", file=sys.stderr, flush=True)
        try:
            kept.append(export(origin, FORMATS[kind], folder, tolerance, settings.threads))
        except UserError as error:
            refused.append(error)
    if kept:
        _tell(kept, origin, run)
        if settings.publish:
            _publish(kept, store, run)
    if refused:
        raise UserError("; ".join(map(str, refused))) from refused[0]
    return kept


def _settings(config: DictConfig) -> tuple[Settings, Store]:
    plain = {key: value for key, value in resolve(config).items() if key != "tracking"}
    check({"_target_": "src.exporting.settings.Settings", **plain})
    settings = Settings(**plain)
    settings.wanted, settings.formats  # noqa: B018  they are refused here, before the store is opened
    return settings, existing(config)


def _refuse_other_formats(run: Evaluated, file: Path | None, formats: list[Kind]) -> None:
    if file is None:
        return
    own = format_of(file).name
    if formats != [own]:
        raise ConfigError("format", f"run {run.run_id} was compressed into a {file.suffix} file; take format={own}")


def _origin(run: Evaluated, store: Store, settings: Settings) -> Origin:
    file = load.deployed(store, run)
    if file is None:
        classifier = load.network(store, run)
        for kind in settings.formats:
            FORMATS[kind].check_installed()
    found = images.load(run, settings.images, settings.root, settings.cache_dir)
    if file is not None:
        return of_file(file, run, found, store)
    return of_net(classifier, load.describe(store, run), found)


def _tell(kept: list[Exported], origin: Origin, run: Evaluated) -> None:
    held = "its recorded predictions" if origin.file else "PyTorch"
    table = Table(title=f"{run.title}, held against {held} on {len(origin.images.ids):,} {origin.images.split} images")
    table.add_column("format")
    for column in (
        "MB",
        "largest difference\nof a probability",
        "same most\nprobable class",
        "same side of\nthe threshold",
    ):
        table.add_column(column, justify="right")
    for each in kept:
        parity = each.parity
        side = "no threshold" if math.isnan(parity.same_side) else f"{parity.same_side:.2%}"
        table.add_row(each.kind, f"{each.size_mb:.2f}", f"{parity.difference:.1e}", f"{parity.same_class:.2%}", side)
    console.print(table)
    if not origin.images.own:
        console.print("These are not the images, labels and split of the run's record; the check holds all the same.")
    console.print(_described(origin.description))
    for each in kept:
        console.print(str(each.path), markup=False, highlight=False, soft_wrap=True)


def _described(description: Description) -> str:
    decision = description.decision
    answer = "none, for there is no threshold"
    if decision is not None:
        answer = f"{decision.positive} from {decision.threshold:.4g} ({decision.aim})"
    return f"Decision: {answer}. Licence: {description.licence}."


def _publish(kept: list[Exported], store: Store, run: Evaluated) -> None:
    record = Run.attach(store, run.run_id)
    try:
        for each in kept:
            prefix, parity = f"export/{each.kind}", each.parity
            record.artifact(each.path, prefix)
            record.log(
                {
                    f"{prefix}/max_difference": parity.difference,
                    f"{prefix}/agreement": parity.agreement,
                    f"{prefix}/size_mb": each.size_mb,
                    f"{prefix}/images": parity.images,
                }
            )
        record.flush()
    except OSError as error:
        raise UserError(f"run={run.run_id}: the export is written, but cannot be recorded ({error})") from error
