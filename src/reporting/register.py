"""The chosen model of a report into MLflow's registry."""

import logging

from src.errors import UserError
from src.reporting.reader import Reader
from src.reporting.record import Report
from src.reporting.served import served
from src.reporting.settings import Settings
from src.tracking import read, registry

log = logging.getLogger(__name__)
RECOMMENDED = "cheapest within"


def register(report: Report, reader: Reader, settings: Settings) -> None:
    """Register the cheapest model within the margin of the best, or the best where there is no such answer.

    Of a trial of several seeds the net of the first seed is taken: to take the best of them would be another choice.

    Args:
        report: With its answers.
        reader: Of the same store.
        settings: `register` is the model's name, `alias` what points to it.

    Raises:
        UserError: No answer chose a model, or its files are not there.
    """
    answer = next(
        (each for each in report.answers if each.run_id and each.name.startswith(RECOMMENDED)),
        next((each for each in report.answers if each.run_id), None),
    )
    if answer is None:
        raise UserError(f"register={settings.register}: no model was chosen, see the report")
    row = report.table.set_index("run_id").loc[answer.run_id]
    net_run = reader.study_of(answer.run_id).runs_of(answer.run_id)[0]
    frames = reader.predictions(answer.run_id, "val") or reader.predictions(answer.run_id, "test")
    if not frames:
        raise UserError(f"register={settings.register}: run {net_run} has no predictions that name its classes")
    classes = [str(name).removeprefix("p/") for name in frames[0].columns if str(name).startswith("p/")]
    net, image_size = served(
        read.artifact(reader.store, net_run, "config.yaml"),
        read.artifact(reader.store, net_run, "checkpoint/best.ckpt"),
        classes,
    )
    version = registry.register(
        reader.store,
        net_run,
        str(settings.register),
        settings.alias,
        net,
        image_size,
        classes,
        {"study": row["study"], "trial": row["trial"], "split": row["split"], "answer": answer.name},
        f"{answer.question}\n\n{answer.text}\n\nResearch software, no medical device.",
    )
    log.info("registered %s as version %d of %s, alias %s", row["label"], version, settings.register, settings.alias)
