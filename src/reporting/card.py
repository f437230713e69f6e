"""The model card of a trained model (Mitchell et al., FAT* 2019), filled from its recorded runs."""

import functools
import json
import logging
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from markupsafe import Markup
from omegaconf import DictConfig, OmegaConf
from rich.markdown import Markdown

from src.core.cli import console, say
from src.core.config import load_settings
from src.core.errors import ConfigError, UserError
from src.core.files import atomic_folder
from src.core.tables import MISSING, Table, escape_markdown, shorten_markdown
from src.deployment import trained
from src.deployment.runtimes import formats
from src.metrics.formatting import joined, label
from src.metrics.registry import LOST, MELANOMA, PRIMARY, describe, overall_metrics
from src.metrics.settings import AuditSettings
from src.reporting.clinical import evaluate, presentation
from src.reporting.clinical.results import ClinicalAudit, EvaluateSettings
from src.tracking import model_registry, read
from src.tracking.run import Run
from src.tracking.store import Store, TrackingError, existing

ABSENT = "not recorded"
NAME, FOLDER = "card.md", "card"  # the file, and its folder among the artifacts of a run
HEADING = "# Model card: "
MAX_DESCRIPTION = 5000  # characters of a version's description in MLflow's database
TAGS = ["image-classification", "dermatology", "skin-lesions", "research-only"]
TAGS += ["not-a-medical-device"]
BENCHMARKED = ["reference", "p50_ms", "p90_ms", "p99_ms", "ratio", "jpeg_p50_ms", "cold_start_s"]
BENCHMARKED += ["peak_memory_mb", "size_mb", "energy_mj"]
# Columns of the table of external evaluations -> CSV file of the audit, its row.
EXTERNAL = {
    "balanced accuracy": ("overall", f"metric == '{PRIMARY}'"),
    "recall": ("per_class", "measure == 'recall' and `class`.str.lower() in @MELANOMA"),
    "recall at the threshold": (
        "operating",
        "measure == 'sensitivity' and rule.str.startswith('sensitivity')",
    ),
}
# Overrides that say where a run was recorded.
LOCAL = ("tracking.", "hydra.run", "hydra.sweep.", "study=", "sweeps=")
log = logging.getLogger(__name__)


@dataclass
class CardSettings:
    """The values of conf/command/card.yaml, which explains them."""

    subject: str | None = None
    own_root: str | None = None
    folder: str = "reports"
    publish: bool = True

    def __post_init__(self) -> None:
        if not (self.subject or "").strip():
            problem = "a run id, a registered model (derm, derm@champion, derm/3) or a file"
            raise ConfigError("model", f"name one: {problem}")


@dataclass(frozen=True)
class CardSubject:
    """A run or trial, its registered versions (the requested one first), the requested file."""

    model: trained.RecordedModel
    versions: Sequence[model_registry.Version]
    file: Path | None


def make(config: DictConfig) -> ModelCard:
    """Write, publish and show the card that a composed `conf/command/card.yaml` asks for.

    Raises:
        UserError: Bad input.
    """
    settings = load_settings(config, CardSettings, without=("clinical", "tracking"))
    clinical = load_settings(config.clinical, AuditSettings, "clinical")
    store = existing(config)
    subject = find(store, str(settings.subject).strip())
    trained.data_config(subject.model, settings.own_root)  # refuses a folder of data without one
    card = build(store, subject, clinical, settings.own_root)
    folder = Path(settings.folder) / f"card_{subject.model.run_id[:8]}"
    with atomic_folder(folder, "the model card") as draft:
        (draft / NAME).write_text(str(card), encoding="utf-8")
    written = [str(folder / NAME), *(publish(card, subject, store) if settings.publish else [])]
    opening, *sections = card.text.split("\n## ")
    limits = next(section for section in sections if section.startswith("Limits"))
    console.print(Markdown(f"{opening}\n## {limits}"))
    for path in written:
        say(f"look: {path}", wrap=False)
    return card


def attach(config: DictConfig) -> None:
    """Publish the card of the model that a composed `conf/command/report.yaml` registers.

    A failure is only logged.
    """
    name = f"{config.register}@{config.alias}"
    try:
        store = existing(config, config.from_experiment)
        subject = find(store, name)
        written = publish(build(store, subject, AuditSettings(fixed=())), subject, store)
    except UserError as error:
        log.warning("%s has no model card: %s", name, error)
        return
    log.info("model card: %s", "; ".join(written))


def find(store: Store, name: str) -> CardSubject:
    """Find a model: an exported file, a registered model, or the start of a run's id.

    Raises:
        UserError: No such model, or one without a trained net.
    """
    path, file, version = Path(name), None, None
    if path.suffix in {form.suffix for form in formats.FORMATS.values()}:
        if not path.is_file():
            raise UserError(f"model={path}: no such file")
        file, run_id = path, formats.open_file(path).description.run_id
        try:
            model = trained.find(store, run_id)
        except UserError as error:
            problem = str(error).removeprefix(f"run={run_id}: ")
            raise UserError(f"model={path} (of run {run_id}): {problem}") from error
    else:
        model, version = trained.named(store, name)
    versions = model_registry.of_run(store, model.run_id)
    if version:
        requested = (version.name, version.number)
        versions.sort(key=lambda other: (other.name, other.number) != requested)
    return CardSubject(model, versions, file)


def publish(card: ModelCard, subject: CardSubject, store: Store) -> list[str]:
    """Write the card to the run, and what fits of it to the descriptions of its versions.

    Returns:
        Where it was written, for people.
    """
    run_id = subject.model.run_id
    Run.attach(store, run_id).text(str(card), f"{FOLDER}/{NAME}")
    for version in subject.versions:
        before = version.description.partition(HEADING)[0].strip()
        model_registry.describe(store, version, shortened(card.text, before, run_id))
    titles = [f"the description of {version.title}" for version in subject.versions]
    return [f"{FOLDER}/{NAME} of run {run_id}", *titles]


def shortened(text: str, before: str, run_id: str) -> str:
    """As many paragraphs of a card as fit into a version's description, the limits first.

    Args:
        text: The card without its metadata.
        before: The description without an earlier card; it stays above the card.
        run_id: The run that has the complete card.
    """
    artifact = f"`{FOLDER}/{NAME}` among the artifacts of run {run_id}"
    ending = f"*Shortened: the complete card is {artifact}.*"
    opening, *sections = text.strip("\n").split("\n\n## ")
    sections.sort(key=lambda section: not section.startswith("Limits"))
    complete = f"{before}\n\n" + "\n\n## ".join([opening, *sections])
    return shorten_markdown(complete, MAX_DESCRIPTION, f"\n\n{ending}")


class RunRecord:
    """The recorded values of a model: of its run, and of the runs of its nets by seed."""

    def __init__(self, store: Store, model: trained.RecordedModel) -> None:
        self.store, self.model = store, model
        self.runs = read.cached_runs(store).set_index("run_id", drop=False)
        self.nets = self.runs.loc[[net.run_id for net in model.nets]]
        self.run: dict[Any, Any] = self.runs.loc[model.run_id].dropna().to_dict()
        self.config: Any = OmegaConf.to_container(model.config, resolve=True)

    @property
    def origin(self) -> "RunRecord | None":
        """The record of what was trained: the origin of a compressed model; None if it is gone."""
        if "tags.origin" not in self.run:
            return self
        try:
            return RunRecord(self.store, trained.find(self.store, self.run["tags.origin"])).origin
        except UserError:
            return None

    def tag(self, name: str) -> str:
        """The different values of a tag of the nets, else the value of the model's run."""
        values = self.nets.get(f"tags.{name}", pd.Series(dtype=str)).dropna().unique()
        texts = [str(value) for value in values if str(value)]
        return joined(texts) or str(self.run.get(f"tags.{name}") or ABSENT)

    def values(self, name: str) -> list[float]:
        """A metric of each net that has it, else of the model's run; may be empty."""
        column = f"metrics.{name}"
        values = self.nets.get(column, pd.Series(dtype=float)).dropna().tolist()
        return values or [float(self.run[key]) for key in (column,) if key in self.run]

    def means(self, prefix: str) -> dict[str, float]:
        """The means of the metrics with a prefix, by the rest of their names."""
        start = f"metrics.{prefix}"
        names = [name.removeprefix(start) for name in map(str, self.runs) if start in name]
        values = {name: self.values(f"{prefix}{name}") for name in names}
        return {name: float(np.mean(numbers)) for name, numbers in values.items() if numbers}

    def json(self, name: str) -> dict[str, Any]:
        """A JSON artifact of the first net; empty if it is not recorded."""
        try:
            path = read.artifact(self.store, self.model.nets[0].run_id, name)
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (TrackingError, ValueError):
            return {}
        return content

    def command(self) -> str:
        """A command that trains this configuration, without paths of this machine."""
        if self.tag("own_config") != ABSENT:
            recorded = ["--config-path", "<the artifacts of this run>", "--config-name", "config"]
            return shlex.join(["python", "-m", "src.train", *recorded])
        columns = ["tags.study", "tags.kind", "tags.sweeps", "tags.fixed_overrides"]
        runs = self.runs.reindex(columns=columns).fillna("")
        studies = runs[(runs["tags.kind"] == "study") & (runs["tags.study"] != "")]
        studies = studies[studies["tags.study"] == self.run.get("tags.study")].tail(1)
        sweeps, fixed = studies["tags.sweeps"].sum() or "", studies["tags.fixed_overrides"].sum()
        words = shlex.split(f"{fixed or ''} {self.nets.iloc[0].get('tags.overrides') or ''}")
        words = [re.sub(r"=/.*", "=...", word) for word in words if not word.startswith(LOCAL)]
        file = [f"sweeps={sweeps}", "hydra.mode=RUN"] if sweeps else []
        return shlex.join(["python", "-m", "src.train", *file, *words])


def build(
    store: Store, subject: CardSubject, clinical: AuditSettings, own_root: str | None = None
) -> ModelCard:
    """Fill the template card.md.j2 from the record of a model.

    Args:
        store: That has the model's runs.
        subject: The model.
        clinical: Settings of the audit of its predictions.
        own_root: The folder of its own data, if it has moved since the training.

    Raises:
        UserError: A record that cannot be read, or no class that could be the positive one.
    """
    model, record = subject.model, RunRecord(store, subject.model)
    net = trained.single(store, model.nets[0].run_id)
    file, about = trained.deployed_file(store, net.run_id), trained.describe(store, net)
    predicted = net.run_id
    if subject.file:
        predicted, about = subject.file.name, formats.open_file(subject.file).description
    elif subject.versions:
        predicted = f"{subject.versions[0].name}/{subject.versions[0].number}"
    audits: Mapping[str, ClinicalAudit] = {}
    if any(model.predictions(store, split) for split in ("val", "test")):
        settings = EvaluateSettings(own_root=own_root)
        audits = evaluate.recorded_splits(model, settings, clinical, store).audits
    audit = audits.get("test") or audits.get("val")
    evaluations = _evaluations(record)
    try:
        code = metadata.metadata("paretoderm").json.get("license_expression", ABSENT)
    except metadata.PackageNotFoundError:
        code = ABSENT
    environment = jinja2.Environment(  # noqa: S701  the output is Markdown
        trim_blocks=True,
        lstrip_blocks=True,
        # every text is escaped, unless it is Markdown already
        finalize=lambda value: value if isinstance(value, Markup) else escape_markdown(value),
    )
    template = environment.from_string(Path(__file__).with_name("card.md.j2").read_text("utf-8"))
    text = template.render(
        absent=ABSENT,
        label=label,
        code_licence=code,
        record=record,
        origin=record.origin,
        subject=subject,
        about=about,
        audit=audit,
        splits=list(audits),
        lost=record.means(f"{LOST}/"),
        estimate=presentation.estimate_text,
        summary=presentation.summary(audit)[:-1] if audit else [],
        evaluations=evaluations.to_dict("records"),
        predicted=Markup(" ".join(predicted.split())),
        export=formats.format_of(file).name if file else next(iter(formats.FORMATS)),
        tables=_tables(record, audits, evaluations),
    )
    data = _metadata(record, about.precision, audit)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def _metadata(record: RunRecord, precision: str, audit: ClinicalAudit | None) -> ModelCardData:
    """The front matter that the Hugging Face Hub reads."""
    # names of a record could hold HTML, and not every reader of a card hides its front matter
    clean = functools.partial(re.sub, "[<>&]", "_")
    model, dataset = record.model.model, clean(record.model.data)
    hub_names = {name: describe(f"test/{name}").hub for name in overall_metrics()}
    results = [
        EvalResult(
            task_type="image-classification",
            metric_type=hub_names[name],
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split=audit.split,
            metric_value=round(float(value), 4),
        )
        for name, value in (audit.overall[["metric", "estimate"]].to_numpy() if audit else ())
        if audit and hub_names.get(name) and np.isfinite(value)
    ]
    tags = [*TAGS, model, record.tag("compression"), precision]
    return ModelCardData(
        license="other",
        license_name="no-licence-stated",
        library_name="pytorch",
        pipeline_tag="image-classification",
        datasets=[dataset],
        tags=[clean(tag) for tag in dict.fromkeys(tags) if tag != ABSENT],
        metrics=[name for name in hub_names.values() if name],
        model_name=clean(model),
        eval_results=results or None,
    )


def _evaluations(record: RunRecord) -> pd.DataFrame:
    """The evaluations of this model on other data, as src.evaluate recorded them."""
    nets = {net.run_id: f"seed {net.seed}" for net in record.model.nets}
    nets |= {record.model.run_id: "all"} if record.model.repeated else {}
    columns = [f"tags.{name}" for name in ("kind", "evaluated_run", "data", "part", "overlap")]
    runs = record.runs.reindex(columns=record.runs.columns.union(columns))
    runs = runs[(runs["tags.kind"] == trained.EVALUATION) & (runs["status"] == "FINISHED")]
    rows = []
    for run_id, run in runs[runs["tags.evaluated_run"].isin(list(nets))].iterrows():
        data, chosen = run["tags.data"], run["tags.part"]
        texts = {}
        for column, (file, query) in EXTERNAL.items():
            name = f"{presentation.CLINICAL}/{data}/{file}.csv"
            try:
                table = pd.read_csv(read.artifact(record.store, str(run_id), name))
                names = {"MELANOMA": MELANOMA}
                row = table.query(query, engine="python", local_dict=names).iloc[0]
                texts[column] = presentation.estimate_text(row.to_dict())
            except (TrackingError, IndexError):
                texts[column] = MISSING  # recorded without its files, or without the class
        overlap = f"{run.get(f'metrics.{data}/overlap', np.nan):,.0f}"
        rows.append(
            {
                "data": f"{data} ({chosen})" if chosen in ("train", "val", "test") else data,
                "nets": nets[run["tags.evaluated_run"]],
                "images": run.get(f"metrics.{data}/images"),
                "left out": f"{overlap} (KEPT)" if run["tags.overlap"] == "keep" else overlap,
                **texts,
                "run": str(run_id)[:8],
                "value": run.get(f"metrics.{data}/{PRIMARY}", np.nan),
            }
        )
    return pd.DataFrame(rows, columns=None if rows else ["value"])


def _tables(
    record: RunRecord, audits: Mapping[str, ClinicalAudit], evaluations: pd.DataFrame
) -> dict[str, list[Markup]]:
    """The tables of the card as Markdown, by section."""
    sections: dict[str, list[Markup]] = {"Quality": [], "Subgroups": []}
    for split, audit in audits.items():
        for table in presentation.audit_tables(audit):
            section = "Subgroups" if table.title.startswith("Subgroups: ") else "Quality"
            text = replace(table, title=f"{table.title} ({split})").to_markdown()
            if split == next(iter(audits)) or table.title.startswith(("All classes", "Each")):
                sections[section].append(Markup(text))
    tags = record.nets.iloc[0].dropna().filter(like="tags.benchmark/")
    references = {str(name)[len("tags.benchmark/") :]: value for name, value in tags.items()}
    rows, spec = evaluations.drop(columns="value"), {"images": ",.0f"}
    other = [Table(rows, "Evaluations on other data", formats=spec)]
    ratio = "Benchmarks; ratio: the median divided by that of the reference, below 1 is faster"
    cost = [
        _by_line(record.means("efficiency/latency_ms/"), "Latency of a batch, ms"),
        _by_line(record.means("export/"), "Exports, compared with the run's own predictions"),
        _by_line(references | record.means("benchmark/"), ratio, BENCHMARKED),
    ]
    for section, tables in (("Other data", other), ("Cost", cost)):
        sections[section] = [Markup(table.to_markdown()) for table in tables if len(table.frame)]
    return sections


def _by_line(values: Mapping[str, object], title: str, only: Sequence[str] = ()) -> Table:
    """Values named "onnx/agreement": a row for each prefix, a column for each last part."""
    rows: dict[str, dict[str, str]] = {}
    for name, value in values.items():
        line, _, column = name.rpartition("/")
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        rows.setdefault(line, {})[column.replace("_", " ")] = text
    frame = pd.DataFrame(rows.values(), index=pd.Index(rows, name="of", dtype=object))
    names = [name.replace("_", " ") for name in only]
    frame = frame[[name for name in names or sorted(map(str, frame)) if name in frame]]
    return Table(frame.reset_index(), title)
