"""Cross-validation: who trains on which films, and what all of them say of films that they did not train on."""

from __future__ import annotations

import copy
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from rich.progress import track

from jobs import UsageError, check_replaceable, whole
from jobs.datasets import films
from jobs.evaluation import intervals, metrics, predictions, tables
from jobs.training.plan import FIGURES
from jobs.training.runs import Run
from model.checkpoint import MEMBER, holds_steps
from model.predictor import Predictor, Raw

FILES = ("crossval.md", "crossval.json", "predictions.csv")

NOTE = """The best epoch of a member was chosen on the fold that it is measured on, which flatters the figures a little.
The standard deviation is over members that share films: it is no standard error."""


def plan(config: ConfigDict, workdir: Path, folds: int, seeds: int) -> list[Run]:
    """The members: every fold with the first seed, then with the next.

    Raises:
      UsageError: the config holds out a fold of its own, or learns no classes; or a file of `workdir` that would be
        replaced is none of cross-validation.
      JobError: the films are not prepared, or a class has fewer patients than there are folds.
    """
    if config.objective != "supervised":
        raise UsageError(
            f"config.objective is {config.objective!r}, which learns no classes to be measured by; give a config of "
            "'supervised', such as configs/cnn.py"
        )
    if config.data.folds:
        raise UsageError(f"config.data.folds is {config.data.folds}; leave it at 0 and give --folds")
    if holds_steps(workdir):
        raise UsageError(f"{workdir} holds a run, which its members would hide; give another --workdir")
    if not any(workdir.glob(f"{MEMBER}*")):
        for name in FILES:
            check_replaceable(workdir / name, lambda _: False, "result of cross-validation", "--workdir")
    # More folds than can be dealt are refused before so many configs are made.
    films.read(Path(config.data.dir), config.data.dataset, "validation", decoded=False, folds=folds)
    members = []
    for number in range(folds * seeds):
        seed, fold = divmod(number, folds)
        changed = copy.deepcopy(config)
        changed.update_from_flattened_dict({"seed": config.seed + seed, "data.folds": folds, "data.fold": fold})
        name = f"{MEMBER}{number + 1}"
        members.append(Run(f"{name}, fold {fold} of {folds}, seed {changed.seed}", workdir / name, changed))
    return members


def measure(members: Sequence[Run], workdir: Path) -> dict[str, Any]:
    """Asks each member about the films that it did not train on, and writes FILES.

    Args:
      members: those of `plan`, finished.
      workdir: where they are, and where it is written.

    Returns:
      The contents of crossval.json.
    """
    config = members[0].config
    folds = config.data.folds
    rows: list[dict[str, Any]] = []
    names: list[str] = []
    patients: list[str] = []
    labels, probabilities, trained_with = [], [], []
    for fold in track(range(folds), "measuring the folds", transient=True):
        held_out = films.read(Path(config.data.dir), config.data.dataset, "validation", folds=folds, fold=fold)
        answers = []
        for member in members[fold::folds]:
            predictor = Predictor.open(member.workdir, calibrated=False)
            trained_with.append(predictor.meta["config"])
            answers.append(Raw.joined(predictor.ask(held_out.images)).probabilities.astype(float))  # (N, 3)
            rows.append(
                {
                    "member": member.workdir.name,
                    "fold": fold,
                    "seed": member.config.seed,
                    "epoch": predictor.meta["epoch"],
                    "films": len(held_out.labels),
                    "weights": predictor.weights[0],
                    "figures": _figures(metrics.score(held_out.labels, answers[-1])),
                }
            )
        names += held_out.names
        patients += held_out.patients
        labels.append(held_out.labels)
        probabilities.append(np.mean(answers, axis=0))
    rows.sort(key=lambda row: (row["seed"], row["fold"]))
    truth, pooled = np.concatenate(labels), np.concatenate(probabilities)
    measured = {
        "dataset": {key: held_out.facts[key] for key in ("name", "fingerprint")},
        "config": trained_with[0],  # of the first member; the command may say other epochs by now
        "patients": len(set(patients)),
        "members": rows,
        "mean": _over(rows, statistics.fmean),
        "standard_deviation": _over(rows, statistics.stdev),
        "pooled": metrics.score(truth, pooled),
        "intervals": intervals.intervals(truth, pooled, patients),
    }
    with whole(workdir / "predictions.csv") as path:
        predictions.write(path, names, patients, truth, pooled, np.zeros(len(names), bool))
    with whole(workdir / "crossval.md") as path:
        path.write_text(document(measured) + "\n", encoding="utf-8")
    with whole(workdir / "crossval.json") as path:
        path.write_text(json.dumps(measured, indent=1))
    return measured


def _figures(scores: dict[str, Any]) -> dict[str, float | None]:
    """Those of the training log; their names need not say that they are of validation films."""
    return {name.removeprefix("val_"): figure(scores) for name, figure in FIGURES.items()}


def _over(rows: Sequence[dict[str, Any]], function: Callable[[list[float]], float]) -> dict[str, float | None]:
    """`function` of each figure over the members; None where one lacks it."""
    columns = {name: [row["figures"][name] for row in rows] for name in rows[0]["figures"]}
    return {name: None if None in values else function(values) for name, values in columns.items()}


def document(measured: dict[str, Any]) -> str:
    """The contents of crossval.md."""
    config, rows = measured["config"], measured["members"]
    known = ("member", "fold", "seed", "epoch", "films")
    table = [[*known, *(name.replace("_", " ") for name in measured["mean"])]]
    table += [[*(str(row[name]) for name in known), *map(tables.figure, row["figures"].values())] for row in rows]
    for name in ("mean", "standard_deviation"):
        table.append([name.replace("_", " "), *[""] * (len(known) - 1), *map(tables.figure, measured[name].values())])
    folds = config["data"]["folds"]
    no_width = f"\n\n{tables.NO_WIDTH}" if tables.widthless(measured) else ""
    return f"""# Cross-validation

{config["model"]["architecture"]} on {measured["dataset"]["name"]}, {measured["pooled"]["count"]} films of \
{measured["patients"]} patients in {folds} folds, {tables.counted(len(rows) // folds, "seed")}.

## Each member on the fold that it did not train on

{tables.markdown(table)}

{NOTE}

## All films out of fold

Each film by the members that did not train on it, their probabilities averaged over the seeds. An AUROC here ranks
films of all folds by answers of different members: where their scales differ, it can be lower than in every fold.

```
{metrics.table(measured["pooled"], measured["intervals"])}
```{no_width}"""
