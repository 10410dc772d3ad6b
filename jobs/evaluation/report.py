"""One split, one checkpoint: every figure, every prediction, every plot, in one folder."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from jobs import whole
from jobs.datasets.films import Split
from jobs.evaluation import metrics, plots
from jobs.evaluation.intervals import intervals
from model.gradcam import upsample
from model.labels import CLASSES
from model.predictor import Predictor

CASES_SHOWN = 6  # right ones, and as many wrong ones


def write(
    predictor: Predictor, split: Split, split_name: str, method: str, out: Path
) -> tuple[dict[str, Any], list[Path]]:
    """Measures and writes, all of it or nothing; only a report with metrics.json is one.

    Returns:
      The contents of metrics.json, and the paths of what was written.

    Raises:
      ValueError: the split is stored at another size than the checkpoint was trained on.
    """
    answers = list(
        track(
            predictor.predict(split.images, method),
            f"evaluating {split_name}",
            total=len(split.labels),
            transient=True,
        )
    )
    probabilities = np.asarray([answer.probabilities for answer in answers])
    heatmaps = np.asarray([answer.heatmaps for answer in answers])  # (N, 3, h, w)
    blank = np.asarray([answer.blank for answer in answers])  # (N, 3)
    assert len(probabilities) == len(split.labels)

    measured = {
        "checkpoint": {"step": predictor.step, "sha256": predictor.meta["sha256"]},
        "dataset": {key: split.facts[key] for key in ("name", "fingerprint")},
        "split": split_name,
        **metrics.score(split.labels, probabilities),
        "intervals": intervals(split.labels, probabilities, split.patients),
    }
    if split.masks is not None:
        measured["pointing_game"] = pointing_game(heatmaps, blank, split.masks, split.labels)

    def predictions(path: Path) -> None:
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("name", "patient", "label", *CLASSES))
            for name, patient, label, row in zip(split.names, split.patients, split.labels, probabilities, strict=True):
                writer.writerow((name, patient, CLASSES[label], *(f"{value:.7f}" for value in row)))

    parts: dict[str, Callable[[Path], Any]] = {
        "predictions.csv": predictions,
        "confusion_matrix.png": lambda path: plots.confusion_matrix(measured, path),
        "roc.png": lambda path: plots.roc_curves(split.labels, probabilities, path),
        "precision_recall.png": lambda path: plots.precision_recall_curves(split.labels, probabilities, path),
        "reliability.png": lambda path: plots.reliability_diagram(split.labels, probabilities, path),
        "class_distribution.png": lambda path: plots.class_distribution({split_name: split.labels}, path),
        "heatmaps.png": lambda path: plots.heatmap_grid(cases(split, probabilities, heatmaps), path),
    }
    # What is in the folder belongs together: metrics.json goes first and comes back last.
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".report-", dir=out) as scratch:
        for name, make in parts.items():
            make(Path(scratch) / name)
        (out / "metrics.json").unlink(missing_ok=True)
        for name in parts:
            (Path(scratch) / name).replace(out / name)
    with whole(out / "metrics.json") as path:
        path.write_text(json.dumps(measured, indent=1))
    return measured, [out / name for name in ("metrics.json", *parts)]


def pointing_game(
    heatmaps: np.ndarray, blank: np.ndarray, masks: np.ndarray, labels: np.ndarray
) -> dict[str, float | None]:
    """Share of films whose true class's map peaks inside the lesion (Zhang et al. 2018, section 4.2), by class.

    The map is upsampled bilinearly to the film first, as a reader sees it. A blank map is a miss; a class without
    lesions or without films has None.
    """
    shares: dict[str, float | None] = {}
    for label, name in enumerate(CLASSES):
        films = [index for index in np.flatnonzero(labels == label) if masks[index].any()]
        hits = 0
        for index in films:
            map_px = upsample(heatmaps[index, label], *masks.shape[1:])
            peak = np.unravel_index(map_px.argmax(), map_px.shape)
            hits += bool(masks[index][peak] and not blank[index, label])
        shares[name] = hits / len(films) if films else None
    return shares


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
