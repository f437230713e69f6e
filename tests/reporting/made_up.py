"""Realistic synthetic reports, from a study with one finished run to one of 10,000 trials."""

from dataclasses import replace

import numpy as np
import pandas as pd

from src.metrics import pareto
from src.metrics.pareto import Scale
from src.metrics.registry import Limit, Objective
from src.reporting import ablation, collect, uncertainty
from src.reporting.decisions import Answer
from src.reporting.record import Report

QUALITY = "best/val/balanced_accuracy"
COSTS = [
    "efficiency/flops",
    "efficiency/params",
    "efficiency/latency_ms/b1/p50",
    "efficiency/latency_ratio",
]
OBJECTIVES = [
    Objective("val/balanced_accuracy", "maximize"),
    Objective("efficiency/flops", "minimize"),
    Objective("efficiency/latency_ratio", "minimize"),
]
CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
PARAMETERS = ("model.net.width", "model.net.dense", "model.net.dropout", "loss")


def make_report(
    trials: int = 80, seed: int = 0, studies: tuple[str, ...] = ("dense_size",), seeds: int = 3
) -> Report:
    """A made-up study: width and dense size buy quality with FLOPs; a tenth of trials failed."""
    rng = np.random.default_rng(seed)
    drawn = [_study(name, trials, rng) for name in studies]
    values = np.vstack([collect.values_of(table, OBJECTIVES) for table in drawn])
    scale = Scale.fit(values, OBJECTIVES)
    tables = [collect.rank(table, OBJECTIVES, scale)[0] for table in drawn]
    progress = [collect.progress(table, OBJECTIVES, scale) for table in tables]
    table = pd.concat(tables, ignore_index=True)
    table = table.sort_values(QUALITY, ascending=False, na_position="last", ignore_index=True)
    answers = _answers(table)
    names = [[a.name for a in answers if a.run_id == run] for run in table["run_id"]]
    table["chosen"] = ["; ".join(some) for some in names]
    named = table[(table["state"] == "front") | (table["chosen"] != "")]
    command = "python -m src.train model=custom " + table["overrides"]
    table["command"] = command.where(table["run_id"].isin(named["run_id"]), "")
    intervals = _intervals(named, rng, seeds)
    table = uncertainty.with_intervals(table, intervals, QUALITY)
    finished = table[table["status"] == "FINISHED"]
    parameters = finished.set_index("run_id")[list(PARAMETERS)]
    table = table.drop(columns=list(PARAMETERS))
    return Report(
        title=", ".join(studies),
        studies=list(studies),
        objectives=OBJECTIVES,
        limits=[Limit("efficiency/params", "<=", 692e3)],
        written="2026-11-21T10:00:00+00:00",
        source="sqlite:///mlruns/mlflow.db",
        table=table,
        quality=QUALITY,
        costs=COSTS,
        parameters=parameters,
        answers=answers,
        intervals=intervals,
        pairs=_pairs(named, rng),
        drops=_drops(named, rng),
        effects=ablation.effects(finished, parameters, OBJECTIVES),
        importance=_importance(rng),
        curves=_curves(table, rng),
        progress=pd.concat(progress, ignore_index=True),
        recalls=_recalls(named, rng),
        roc=_roc(table[table["chosen"] != ""]),
        layers=_layers(table[table["chosen"] != ""]),
        reference=[
            "balanced accuracy: from 0 to 1, worst 0",
            "FLOPs: logarithmic, from 1 M to 1 G, worst 1 G",
            "latency ratio: logarithmic, worst 10",
        ],
        hypervolume={name: round(float(rng.uniform(0.5, 0.8)), 4) for name in studies},
        counts=table["state"].value_counts().to_dict(),
        warnings=["Only one seed a trial: the spread over repeats is not known."],
        remarks=["Everything was chosen on validation images."],
        comparison=collect.comparison(tables[len(tables) == 1 :], OBJECTIVES, scale),
        tables={
            "Losses": pd.DataFrame(
                {"loss": ["focal", "cross_entropy"], "mean": [0.71, 0.70], "low": [0.69, 0.68]}
            )
        },
    )


def _layers(chosen: pd.DataFrame) -> pd.DataFrame:
    """Of two chosen nets: 3 and 20 layers; layer n has n multiply-adds and 1 parameter."""
    rows = [
        {"layer": f"part.{n}", "type": "Conv2d", "flops": n, "params": 1, **names}
        for count, names in zip(
            (3, 20), chosen[["run_id", "label"]].to_dict("records"), strict=False
        )
        for n in range(1, count + 1)
    ]
    return pd.DataFrame(rows)


def one_run() -> Report:
    """One finished run without latency, swept parameters, repeats, predictions or test figures."""
    report = make_report(12)
    table = report.table[report.table["status"] == "FINISHED"].head(1)
    table = table.assign(state="front", rank=0, knee=False, chosen="")
    table = table.assign(quality_low=np.nan, quality_high=np.nan)
    table = table.drop(columns=[name for name in table if "latency" in name or "test/" in name])
    names = ("intervals", "pairs", "drops", "effects", "importance", "curves", "progress")
    question = "Which model is the best under 1k parameters?"
    return replace(
        report,
        table=table,
        costs=COSTS[:2],
        parameters=report.parameters.loc[table["run_id"], []],
        answers=[Answer("best under a budget", question, "", "No run qualifies.")],
        hypervolume={"dense_size": 0.1},
        counts={"front": 1},
        tables={},
        **{name: pd.DataFrame() for name in (*names, "recalls", "roc", "layers")},
    )


def with_compressed() -> Report:
    """Two members of the front as int8 and one pruned from a run that is no trial of the report."""
    report = make_report(40, seed=5)
    table = report.table.assign(**{"efficiency/size_mb": report.table[COSTS[1]] * 4e-6})
    members = table[table["state"] == "front"].sort_values(COSTS[0])
    first, second = members.iloc[[1, -1]].to_dict("records")
    alien = second | {"run_id": "f" * 32, QUALITY: second[QUALITY] + 0.03}
    alien[COSTS[0]] *= 3
    rows = [_compressed(first, "onnx_int8_static", 0.01)]
    rows.append(_compressed(second, "onnx_int8_static", -0.002))
    rows.append(_compressed(alien, "prune_half", 0.04) | {COSTS[0]: second[COSTS[0]] * 1.5})
    table = pd.concat([table, pd.DataFrame(rows)], ignore_index=True)
    table = table.fillna({"origin": "", "compression": ""}).assign(lost_on="test")
    metrics = [QUALITY, *COSTS, "efficiency/size_mb"]
    origins = pd.DataFrame([first, second, alien])[["run_id", *metrics]]
    origins = origins.rename(columns={name: f"metrics.{name}" for name in metrics})
    table = collect.with_origins(table, origins.assign(**{"tags.model": "custom"}), metrics)
    costs = [COSTS[0], "efficiency/size_mb", *COSTS[1:]]
    return replace(report, table=table, costs=costs, counts=table["state"].value_counts().to_dict())


def _compressed(origin: dict, kind: str, lost: float) -> dict:
    """A trial made from another one: a quarter of its size, half its latency, worse by `lost`."""
    quality, run_id = origin[QUALITY] - lost, origin["run_id"]
    row = {"run_id": f"{kind[:4]}{run_id[4:]}", "label": f"custom {kind} {run_id[:4]}"}
    row |= {"origin": run_id, "compression": kind, "knee": False, "chosen": ""}
    row |= {QUALITY: quality, "quality": quality}
    row |= {"quality_low": quality - 0.02, "quality_high": quality + 0.02}
    for name, share in (("efficiency/size_mb", 4), (COSTS[2], 2), (COSTS[3], 2)):
        row[name] = origin[name] / share
    for metric, value, half in (("balanced_accuracy", lost, 0.01), ("recall/mel", 2 * lost, 0.03)):
        name = f"compression/lost/{metric}"
        row |= {name: value, f"{name}/low": value - half, f"{name}/high": value + half}
    return origin | row


def _study(study: str, trials: int, rng: np.random.Generator) -> pd.DataFrame:
    width = rng.choice([8, 12, 16, 24, 32, 48, 64], trials)
    dense = rng.choice([16, 32, 64, 128, 256], trials)
    dropout = np.round(rng.uniform(0, 0.7, trials), 3)
    loss = rng.choice(["cross_entropy", "focal"], trials)
    flops = 9.2e3 * width**2 + 4.6e4 * width + 3600 * width**0.5 * dense
    params = 270 * width + 90 * width**1.4 + 36 * width * dense / 2
    latency = 0.4 + 2.1 * (width / 32) ** 1.3 * rng.uniform(0.9, 1.2, trials)
    quality = 0.45 + 0.33 * (1 - np.exp(-width / 20)) * (1 - np.exp(-dense / 40))
    quality -= 0.25 * (dropout - 0.3) ** 2
    quality = np.round(quality + rng.normal(0, 0.015, trials), 3)  # three places: there are ties
    states = ["FINISHED", "PRUNED", "OVER_LIMIT", "FAILED"]
    status = rng.choice(states, trials, p=[0.6, 0.2, 0.1, 0.1])
    status[: min(5, trials)] = "FINISHED"
    done, pruned, failed = status == "FINISHED", status == "PRUNED", status == "FAILED"
    values = np.where(done | pruned, quality - 0.05 * pruned, np.nan)
    error = "OutOfMemoryError: <script>alert(1)</script> 2 GiB"
    table = pd.DataFrame(
        {
            "run_id": [rng.bytes(16).hex() for _ in range(trials)],
            "model": "custom",
            "trial": [str(number) for number in range(trials)],
            "overrides": [
                f"model.net.width={w} model.net.dense={d} model.net.dropout={p} loss={o}"
                for w, d, p, o in zip(width, dense, dropout, loss, strict=True)
            ],
            "status": status,
            "failure": np.where(failed, error, ""),
            "feasible": done & (params <= 692e3),
            QUALITY: values,
            "best/val/recall/mel": np.where(
                done, np.clip(quality + rng.normal(0, 0.05, trials), 0, 1), np.nan
            ),
            COSTS[0]: np.where(failed, np.nan, np.round(flops)),
            COSTS[1]: np.where(failed, np.nan, np.round(params)),
            COSTS[2]: np.where(done & (rng.random(trials) > 0.05), latency, np.nan),
            "study": study,
            "label": [f"{study} #{number}" for number in range(trials)],
            "model.net.width": width,
            "model.net.dense": dense,
            "model.net.dropout": np.where(dense == 16, np.nan, dropout),  # of some trials only
            "loss": loss,
        }
    )
    table[COSTS[3]] = table[COSTS[2]] / 2.5
    seconds = pd.to_timedelta(np.arange(trials) * 47, unit="s")
    table["ended"] = pd.Timestamp("2026-11-20", tz="UTC") + seconds
    table["quality"] = table[QUALITY]
    table[f"spread/{QUALITY}"] = np.where(done, 0.01, np.nan)
    table["front"] = pareto.front(collect.values_of(table, OBJECTIVES), OBJECTIVES)
    width = np.where(table["front"], rng.uniform(0.01, 0.03, trials), np.nan)
    return table.assign(quality_low=table["quality"] - width, quality_high=table["quality"] + width)


def _answers(table: pd.DataFrame) -> list[Answer]:
    members = table[table["front"]].sort_values(COSTS[0])
    cheap, good = members.iloc[len(members) // 3], members.loc[members[QUALITY].idxmax()]
    near = "Which model is the cheapest (least FLOPs) within 0.02 of the best?"
    budget = "Which model is the best with at most 692k parameters?"
    floor = "Which model is the best that finds 80% of the melanomas?"
    text = f"{cheap['label']} has {cheap[QUALITY]:.3f}, {good['label']} {good[QUALITY]:.3f}."
    best = f"{good['label']} is the best of those within the budget."
    return [
        Answer("cheapest within 0.02", near, cheap["run_id"], text),
        Answer("best with params <= 692k", budget, good["run_id"], best),
        Answer("melanoma recall >= 0.8", floor, "", "No run qualifies: 0.79 is the most."),
    ]


def _intervals(named: pd.DataFrame, rng: np.random.Generator, seeds: int) -> pd.DataFrame:
    splits = (("val", "balanced_accuracy"), ("test", "balanced_accuracy"), ("test", "recall/mel"))
    rows = []
    for _, run in named.iterrows():
        for split, metric in splits:
            middle, half = run[QUALITY] - 0.02 * (split == "test"), rng.uniform(0.01, 0.04)
            figures = (middle, middle - half, middle + half, 2003, 1494, seeds)
            figures += (half / 2, " ".join([f"{middle:.4f}"] * seeds))
            rows.append((run["run_id"], run["label"], split, metric, *figures))
    return pd.DataFrame(rows, columns=uncertainty.INTERVALS)


def _pairs(named: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    members = named[named["state"] == "front"].sort_values(COSTS[0])
    rows = []
    for (_, a), (_, b) in zip(members[:-1].iterrows(), members[1:].iterrows(), strict=True):
        gap, p = a[QUALITY] - b[QUALITY], float(rng.uniform(0, 0.5))
        names = (a["run_id"], b["run_id"], a["label"], b["label"], "balanced_accuracy", "test")
        tests = (p, min(1.0, p * 1.1), min(1.0, p * 2), p > 0.05)
        rows.append((*names, gap, gap - 0.02, gap + 0.02, *tests))
    return pd.DataFrame(rows, columns=uncertainty.PAIRS)


def _drops(named: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    chosen = named[named["chosen"] != ""][["run_id", "label", QUALITY]].reset_index(drop=True)
    drop = rng.uniform(0, 0.04, len(chosen))
    chosen = chosen.rename(columns={QUALITY: "val"}).assign(metric="balanced_accuracy", drop=drop)
    chosen = chosen.assign(test=chosen["val"] - drop, low=drop - 0.02, high=drop + 0.02)
    return chosen[uncertainty.DROPS]


def _importance(rng: np.random.Generator) -> pd.DataFrame:
    rows = []
    for objective in (QUALITY, COSTS[0], COSTS[3]):
        shares = rng.dirichlet([8, 5, 2, 1])
        rows += [(name, objective, share) for name, share in zip(PARAMETERS, shares, strict=True)]
    return pd.DataFrame(rows, columns=["parameter", "objective", "importance"])


def _curves(table: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    runs = table.loc[table["quality"].notna(), ["run_id", "label", "state", "quality"]]
    lengths = np.where(runs["state"] == "pruned", rng.integers(2, 9, len(runs)), 20)
    frame = runs.loc[runs.index.repeat(lengths)].reset_index(drop=True)
    frame["epoch"] = frame.groupby("run_id", sort=False).cumcount() + 1
    learnt = frame.pop("quality") * (1 - 0.6 * np.exp(-frame["epoch"] / 3))
    return frame.assign(value=learnt + rng.normal(0, 0.01, len(frame)))


def _recalls(named: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    rows = []
    for _, run in named.iterrows():
        for split in ("val", "test"):
            for position, name in enumerate(CLASSES):
                recall = float(np.clip(run[QUALITY] + rng.normal(0, 0.12), 0, 1))
                ends = (recall, max(recall - 0.08, 0), min(recall + 0.08, 1))
                images = 20 + 130 * position
                rows.append((run["run_id"], run["label"], split, name, *ends, images))
    columns = ["run_id", "label", "split", "class", "recall", "low", "high", "images"]
    return pd.DataFrame(rows, columns=columns)


def _roc(chosen: pd.DataFrame) -> pd.DataFrame:
    rates = np.linspace(0, 1, 21)
    rows = [
        (run["run_id"], run["label"], "mel", run[QUALITY], rate, rate ** (1 / run[QUALITY] - 1))
        for _, run in chosen.iterrows()
        for rate in rates
    ]  # x to the power k has the area 1 / (k + 1)
    return pd.DataFrame(rows, columns=uncertainty.ROC)
