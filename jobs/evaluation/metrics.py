"""Every figure of a three-class answer, as plain numbers. Rows are films, columns follow model.labels.CLASSES."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from model.labels import CLASSES, NORMAL

BINS = 15
CLIP = 1e-7  # probabilities below it count as it in the log loss


def score(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, Any]:
    """Measures answers.

    Args:
      labels: (N,) int, indices into CLASSES.
      probabilities: (N, 3), each row summing to 1.

    Returns:
      JSON-ready numbers. What the labels leave undefined, such as the sensitivity to a class that is absent, is None;
      macro figures are means over the classes that are present. `binary` is normal against pneumonia: positive is
      pneumonia, its score 1 - p(normal), its decision that the most probable class is not normal.

    Raises:
      ValueError: shapes, ranges or sums are wrong; the message names the value and the bound.
    """
    _check(labels, probabilities)
    decisions = probabilities.argmax(axis=1)
    matrix = np.zeros((len(CLASSES), len(CLASSES)), int)
    np.add.at(matrix, (labels, decisions), 1)
    classes = {
        name: _against_the_rest(labels == label, decisions == label, probabilities[:, label])
        for label, name in enumerate(CLASSES)
    }
    present = [classes[name] for label, name in enumerate(CLASSES) if matrix[label].any()]
    binary = _against_the_rest(labels != NORMAL, decisions != NORMAL, 1 - probabilities[:, NORMAL])
    of_truth = probabilities[np.arange(len(labels)), labels]
    return {
        "count": len(labels),
        "accuracy": float((decisions == labels).mean()),
        "balanced_accuracy": _mean([figures["sensitivity"] for figures in present]),
        "macro_f1": _mean([figures["f1"] for figures in present]),
        "auroc": _mean([figures["auroc"] for figures in present]),
        "average_precision": _mean([figures["average_precision"] for figures in present]),
        "log_loss": float(-np.log(np.clip(of_truth, CLIP, 1)).mean()),
        "ece": expected_calibration_error(labels, probabilities),
        "classes": classes,
        "binary": {
            "accuracy": float(((labels != NORMAL) == (decisions != NORMAL)).mean()),
            **{name: binary[name] for name in ("sensitivity", "specificity", "auroc")},
        },
        "confusion_matrix": matrix.tolist(),
    }


def _check(labels: np.ndarray, probabilities: np.ndarray) -> None:
    if probabilities.ndim != 2 or probabilities.shape != (len(labels), len(CLASSES)) or not len(labels):
        raise ValueError(
            f"{np.shape(labels)} labels and {probabilities.shape} probabilities; (N,) and (N, {len(CLASSES)}) are "
            "needed, N at least 1"
        )
    if not np.isin(labels, range(len(CLASSES))).all():
        raise ValueError(f"labels run from {labels.min()} to {labels.max()}; 0 to {len(CLASSES) - 1} are classes")
    if not np.isfinite(probabilities).all() or probabilities.min() < 0 or probabilities.max() > 1:
        raise ValueError(f"probabilities run from {probabilities.min()} to {probabilities.max()}; 0 to 1 is needed")
    worst = np.abs(probabilities.sum(axis=1) - 1).max()
    if worst > 1e-4:
        raise ValueError(
            f"a row of probabilities is {worst:.2g} off a sum of 1; at most 1e-4 is allowed: softmax first"
        )


def _against_the_rest(truth: np.ndarray, decision: np.ndarray, value: np.ndarray) -> dict[str, Any]:
    """One class against the others; truth and decision (N,) bool, value (N,) its score."""
    hits, count, called = int((truth & decision).sum()), int(truth.sum()), int(decision.sum())
    both = 0 < count < len(truth)
    return {
        "count": count,
        "sensitivity": _ratio(hits, count),
        "specificity": _ratio(int((~truth & ~decision).sum()), len(truth) - count),
        "precision": _ratio(hits, called),
        "f1": _ratio(2 * hits, count + called),
        "auroc": float(roc_auc_score(truth, value)) if both else None,
        "average_precision": float(average_precision_score(truth, value)) if count else None,
    }


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mean(values: list[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def reliability_bins(
    labels: np.ndarray, probabilities: np.ndarray, bins: int = BINS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean confidence, accuracy and count, each (bins,), of equal-width bins of the top class's probability.

    A bin holds (lower, upper]; the means of an empty one are NaN (Guo et al. 2017, section 2).
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(index, minlength=bins)
    filled = np.where(count, count, np.nan)
    return (
        np.bincount(index, weights=confidence, minlength=bins) / filled,
        np.bincount(index, weights=correct, minlength=bins) / filled,
        count,
    )


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = BINS) -> float:
    """Mean distance of accuracy from confidence, weighted by the bins' counts (Guo et al. 2017, eq. 3)."""
    confidence, accuracy, count = reliability_bins(labels, probabilities, bins)
    return float(np.nansum(count * np.abs(accuracy - confidence)) / len(labels))


def table(measured: dict[str, Any]) -> str:
    """The figures of `score` for a terminal."""

    def cell(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f} %"

    def loss(value: float | None) -> str:
        return "-" if value is None else f"{value:.4f}"

    columns = ("sensitivity", "specificity", "precision", "f1", "auroc", "average_precision", "count")
    header = ("", "sensitivity", "specificity", "precision", "F1", "AUROC", "avg. prec.", "films")
    rows = [
        (name, *(cell(figures[column]) for column in columns[:-1]), str(figures["count"]))
        for name, figures in measured["classes"].items()
    ]
    binary = measured["binary"]
    rows.append(
        ("pneumonia", cell(binary["sensitivity"]), cell(binary["specificity"]), "", "", cell(binary["auroc"]), "", "")
    )
    widths = [max(len(row[index]) for row in (header, *rows)) for index in range(len(header))]
    lines = ["  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in (header, *rows)]
    overall = (
        f"{measured['count']} films: accuracy {cell(measured['accuracy'])}, "
        f"balanced {cell(measured['balanced_accuracy'])}, macro-F1 {cell(measured['macro_f1'])}, "
        f"AUROC {cell(measured['auroc'])}\n"
        f"normal against pneumonia: accuracy {cell(binary['accuracy'])}, AUROC {cell(binary['auroc'])}\n"
        f"log loss {loss(measured['log_loss'])}, ECE {loss(measured['ece'])}"
    )
    return "\n".join((overall, "", *lines))
