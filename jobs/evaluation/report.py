"""One split, one checkpoint: every figure, every prediction, every plot, in one folder."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from jobs import UsageError, check_replaceable, headed
from jobs.datasets.films import Split
from jobs.datasets.lineage import unchecked
from jobs.evaluation import decisions, examine, faithfulness, metrics, plots, predictions
from jobs.evaluation.intervals import estimate, intervals, mean
from model import checkpoint
from model.gradcam import upsample
from model.labels import CLASSES
from model.predictor import BATCH_SIZE, REFUSED, Prediction, Predictor

TRAINED_ON, HELD_OUT = "trained on", "held out"
# Of these two it was not checked whether a patient is in both.
APART = "prepared apart from the training data"
UNCHECKED = "held out, but perhaps not from the weights that the training began with"
OF_FULL = ("shifts.png", "maps.png")
PLOTS = (
    *("confusion_matrix.png", "roc.png", "precision_recall.png", "reliability.png", "risk_coverage.png"),
    *("class_distribution.png", "heatmaps.png", *OF_FULL),
)
FILES = ("metrics.json", *PLOTS, "predictions.csv")  # in the order that they are moved away
CASES_SHOWN = 6  # right ones, and as many wrong ones


def write(
    predictor: Predictor,
    split: Split,
    split_name: str,
    method: str,
    prevalence: float | None,
    full: bool,
    out: Path,
) -> tuple[dict[str, Any], list[Path]]:
    """Measures and writes, all of it or nothing; only a report with metrics.json is one.

    Args:
      predictor: what is measured, with its calibration where it has one.
      split: the films.
      split_name: as it is told in the report.
      method: of the heat maps, a key of gradcam.METHODS.
      prevalence: of pneumonia, which PPV and NPV are stated for; None: that of the split.
      full: whether shifts, shortcuts, other pictures and the maps are examined, too.
      out: the folder.

    Returns:
      The contents of metrics.json, and the paths of what was written.

    Raises:
      UsageError: what would be replaced there is none of a report, or it is a place for steps of a checkpoint.
      ValueError: the split is stored at another size than the checkpoint was trained on.
    """
    _check_replaceable(out)
    out.mkdir(parents=True, exist_ok=True)  # an --out that cannot be is known before the work
    batches = -(-len(split.labels) // BATCH_SIZE)
    before: list[np.ndarray] = []
    answers: list[Prediction] = []
    for images, raw in track(
        predictor.ask(split.images, method), f"evaluating {split_name}", total=batches, transient=True
    ):
        before.append(raw.probabilities)
        answers += predictor.answer(images, raw)
    uncalibrated = np.concatenate(before).astype(float)
    probabilities = np.asarray([answer.probabilities for answer in answers]).astype(float)
    heatmaps = np.asarray([answer.heatmaps for answer in answers])  # (N, 3, h, w)
    assert len(probabilities) == len(split.labels)

    measured = {
        "checkpoint": {"steps": list(predictor.steps), "weights": list(predictor.weights)},
        "dataset": {key: split.facts[key] for key in ("name", "fingerprint", "citation")},
        "split": split_name,
        "method": method,
        "films_are": relation(predictor, split, split_name),
        "patients": len(set(split.patients)),
        **metrics.score(split.labels, probabilities),
        "intervals": intervals(split.labels, probabilities, split.patients),
    }
    refused = np.asarray([answer.decision == REFUSED for answer in answers])  # without a calibration none is
    if calibration := predictor.calibration:
        raw_figures = metrics.score(split.labels, uncalibrated)
        before_it = intervals(split.labels, uncalibrated, split.patients)
        measured["calibration"] = {
            "sha256": calibration.sha256,
            "temperature": calibration.temperature,
            "bias": list(calibration.bias),
            "confidence": calibration.confidence,
            "thresholds": dict(calibration.operating_points),
            "before": {name: raw_figures[name] for name in metrics.LOSSES},
            "intervals": {"before": {name: before_it[name] for name in metrics.LOSSES}},
        }
        figures, their_intervals = estimate(
            lambda weights: decisions.measure(
                split.labels,
                probabilities,
                refused,
                calibration.confidence,
                calibration.operating_points,
                prevalence,
                weights,
            ),
            split.patients,
        )
        measured["decisions"] = {"prevalence": prevalence, **figures, "intervals": their_intervals}
    if split.masks is not None:
        hits = pointing_game(heatmaps, split.masks, split.labels)
        measured["pointing_game"], measured["intervals"]["pointing_game"] = estimate(
            lambda weights: metrics.each(hits, lambda of_class: mean(of_class, weights)), split.patients
        )
    if full:
        measured |= examine.examine(predictor, split, heatmaps, probabilities)

    decided = measured["decisions"]["abstention"] if calibration else None
    shown = {"before calibration": uncalibrated, "after": probabilities} if calibration else {"": probabilities}
    parts: dict[str, Callable[[Path], Any]] = {
        "predictions.csv": lambda path: predictions.write(
            path, split.names, split.patients, split.labels, probabilities, refused
        ),
        "confusion_matrix.png": lambda path: plots.confusion_matrix(measured, path),
        "roc.png": lambda path: plots.roc_curves(split.labels, probabilities, path),
        "precision_recall.png": lambda path: plots.precision_recall_curves(split.labels, probabilities, path),
        "reliability.png": lambda path: plots.reliability_diagrams(split.labels, shown, path),
        "risk_coverage.png": lambda path: plots.risk_coverage_curve(split.labels, probabilities, decided, path),
        "class_distribution.png": lambda path: plots.class_distribution({split_name: split.labels}, path),
        "heatmaps.png": lambda path: plots.heatmap_grid(cases(split, probabilities, heatmaps), path),
    }
    if full:
        parts["shifts.png"] = lambda path: plots.shift_curves(measured["shifts"], path)
        parts["maps.png"] = lambda path: plots.map_methods(measured["maps"], path)
    parts["metrics.json"] = lambda path: path.write_text(json.dumps(measured, indent=1))
    with tempfile.TemporaryDirectory(prefix=".report-", dir=out) as scratch:
        for name, make in parts.items():
            make(Path(scratch) / name)
        _take_place(Path(scratch), list(parts), out)
    return measured, [out / name for name in parts]


def _take_place(new: Path, names: Sequence[str], out: Path) -> None:
    """Moves the files of a report to `out`; those of an older one there are back where that fails.

    What is in the folder belongs together: metrics.json, the last of `names`, goes first and comes back last. The table
    goes last and comes back first, since by it pictures are known as those of a report.
    """
    older = new / "older"
    older.mkdir()
    placed: list[Path] = []
    try:
        for name in FILES:
            if (out / name).exists():
                (out / name).rename(older / name)
        for name in names:
            placed.append((new / name).rename(out / name))  # noqa: PERF401  (those moved before a failure count)
    except BaseException:
        for path in placed:
            path.unlink()
        for name in reversed(FILES):
            if (older / name).exists():
                (older / name).replace(out / name)
        raise


def told(out: Path) -> str:
    """What report lies in `out`, for a person who is about to replace it; empty where there is none."""
    try:
        measured = json.loads((out / "metrics.json").read_text())
        steps = ", ".join(map(str, measured["checkpoint"]["steps"]))
        return f"step {steps}; {measured['split']}{'; --full' if 'shifts' in measured else ''}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _check_replaceable(out: Path) -> None:
    """Raises UsageError where a file of `out` that a report would replace is of none, or `out` is for checkpoints."""
    if within := checkpoint.claimed(out):
        raise UsageError(f"{out} is inside the checkpoint {within}, in the place of its steps; give another --out")
    for name in FILES:
        if (out / name).is_dir():
            raise UsageError(f"{out / name} is a folder, where a report has a file; give another --out")
    table = out / "predictions.csv"
    check_replaceable(
        table,
        lambda path: headed(predictions.HEAD)(path) and not (out / "crossval.json").exists(),
        "table of a report",
    )
    figures = out / "metrics.json"
    check_replaceable(figures, lambda path: path.read_bytes().startswith(b'{\n "checkpoint": {'), "figures of a report")
    # That table is the first of a report to be there; people take it along.
    for name in () if table.exists() or figures.exists() else PLOTS:
        check_replaceable(out / name, lambda _: False, "picture of a report")


def from_elsewhere(predictor: Predictor, facts: Mapping[str, Any]) -> bool:
    """Whether films are of another source than those that were trained on, as far as their citations tell."""
    return facts["citation"] != predictor.meta["dataset"]["citation"]


def relation(predictor: Predictor, split: Split, split_name: str) -> str:
    """What the films are to the model: one of TRAINED_ON, HELD_OUT, APART and UNCHECKED."""
    if split.facts["fingerprint"] != predictor.meta["dataset"]["fingerprint"]:
        return APART
    if split_name == "train":
        return TRAINED_ON
    return UNCHECKED if any(unchecked(meta.get("origin"), split.facts) for meta in predictor.metas) else HELD_OUT


def pointing_game(heatmaps: np.ndarray, masks: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """By class (N,) whether a film's map of it, upsampled to the film as a reader sees it, peaks inside the lesion.

    Films of other classes and without a lesion are NaN.
    """
    hits = {name: np.full(len(labels), np.nan) for name in CLASSES}
    for index in np.flatnonzero(masks.any(axis=(1, 2))):
        as_seen = upsample(heatmaps[index, labels[index]], *masks.shape[1:])
        hits[CLASSES[labels[index]]][index] = faithfulness.points_into(as_seen[None], masks[index][None])[0]
    return hits


def cases(split: Split, probabilities: np.ndarray, heatmaps: np.ndarray) -> list[plots.Case]:
    """The most confidently wrong films and, spread over the classes, the most confidently right ones."""
    decisions, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    wrong = [index for index in order if decisions[index] != split.labels[index]][:CASES_SHOWN]
    right = []
    for label in range(len(CLASSES)):
        hits = [index for index in order if decisions[index] == split.labels[index] == label]
        right += hits[: CASES_SHOWN // len(CLASSES)]
    return [
        plots.Case(
            image=split.images[index],
            heatmap=upsample(heatmaps[index, decisions[index]], *split.images.shape[1:]),
            title=(
                f"{CLASSES[split.labels[index]]}, read as {CLASSES[decisions[index]]} ({100 * confidence[index]:.0f} %)"
            ),
            correct=bool(decisions[index] == split.labels[index]),
        )
        for index in [*wrong, *right]
    ]
