"""Every figure of a three-class answer. Rows are films, columns follow model.labels.CLASSES.

All figures are of weighted films, many weightings at once: a weight of one each gives the figures themselves, the
counts of a bootstrap resample give what they would have been on it (`intervals.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jobs.evaluation.tables import counted, number, share
from model.labels import CLASSES, NORMAL

BINS = 15
TOLERANCE = 1e-4  # of the sum of three probabilities
LOSSES = ("log_loss", "brier", "ece", "ece_equal_mass")  # the smaller the better
LOGGED_LOSSES = ("val_loss", "val_ece")  # of the figures of log.jsonl, those of which the smaller is the better
PLAIN = (*LOSSES, "auroc", "average_precision")  # told as numbers; the rest are shares
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
    check(labels, probabilities)
    figures = measure(labels, probabilities, np.ones((1, len(labels))))
    measured = each(figures, lambda values: float(values[0]) if np.isfinite(values[0]) else None)
    matrix = np.zeros((len(CLASSES), len(CLASSES)), int)
    np.add.at(matrix, (labels, probabilities.argmax(axis=1)), 1)
    for label, name in enumerate(CLASSES):
        measured["classes"][name] = {"count": int(matrix[label].sum()), **measured["classes"][name]}
    return {"count": len(labels), **measured, "confusion_matrix": matrix.tolist()}


def measure(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """The figures of `score`, but for counts, under each of B weightings of the films.

    Args:
      labels: (N,) int.
      probabilities: (N, 3).
      weights: (B, N), at least 0.

    Returns:
      Nested as `score`; each figure is (B,), NaN where it is undefined.
    """
    decisions = probabilities.argmax(axis=1)
    classes = {
        name: _against_the_rest(labels == label, decisions == label, probabilities[:, label], weights)
        for label, name in enumerate(CLASSES)
    }
    present = {name: label for label, name in enumerate(CLASSES) if (labels == label).any()}
    complete = np.all([weights @ (labels == label) > 0 for label in present.values()], axis=0)  # (B,)
    binary = _against_the_rest(labels != NORMAL, decisions != NORMAL, 1 - probabilities[:, NORMAL], weights)
    of_truth = probabilities[np.arange(len(labels)), labels]
    total = weights.sum(axis=1)
    squares = ((probabilities - np.eye(len(CLASSES))[labels]) ** 2).sum(axis=1)

    def macro(name: str) -> np.ndarray:
        """The mean over the classes that are present; a weighting that lacks one of them has none."""
        return np.where(complete, np.mean([classes[of][name] for of in present], axis=0), np.nan)

    return {
        "accuracy": ratio(weights @ (decisions == labels), total),
        "balanced_accuracy": macro("sensitivity"),
        "macro_f1": macro("f1"),
        "auroc": macro("auroc"),
        "average_precision": macro("average_precision"),
        "log_loss": ratio(weights @ -np.log(np.clip(of_truth, CLIP, 1)), total),
        "brier": ratio(weights @ squares, total),
        "ece": _calibration_error(labels, probabilities, weights, equal_width(probabilities)),
        "ece_equal_mass": _calibration_error(labels, probabilities, weights, equal_mass(probabilities)),
        "classes": classes,
        "binary": {
            "accuracy": ratio(weights @ ((labels != NORMAL) == (decisions != NORMAL)), total),
            **{name: binary[name] for name in ("sensitivity", "specificity", "auroc")},
        },
    }


def each(tree: dict[str, Any], function: Callable[[Any], Any]) -> dict[str, Any]:
    """The tree with `function` of every figure."""
    return {name: each(value, function) if isinstance(value, dict) else function(value) for name, value in tree.items()}


def check(labels: np.ndarray, probabilities: np.ndarray) -> None:
    """Raises ValueError where these are no labels and probabilities of the same films."""
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
    if worst > TOLERANCE:
        raise ValueError(
            f"a row of probabilities is {worst:.2g} off a sum of 1; at most {TOLERANCE:g} is allowed: softmax first"
        )


def _against_the_rest(
    truth: np.ndarray, decision: np.ndarray, value: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """One class against the others; truth and decision (N,) bool, value (N,) its score, weights (B, N)."""
    hits, count, called = weights @ (truth & decision), weights @ truth, weights @ decision
    return {
        "sensitivity": ratio(hits, count),
        "specificity": ratio(weights @ (~truth & ~decision), weights @ ~truth),
        "precision": ratio(hits, called),
        "f1": ratio(2 * hits, count + called),
        "auroc": auroc(truth, value, weights),
        "average_precision": _average_precision(truth, value, weights),
    }


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole; NaN where the whole is 0 or NaN."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def by_value(truth: np.ndarray, value: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight of positives and of negatives at each distinct value, from the lowest: (B, distinct values) each."""
    order = np.argsort(value, kind="stable")
    starts = np.flatnonzero(np.diff(value[order], prepend=-np.inf))
    sums = [np.add.reduceat(weights[:, order] * kind[order], starts, axis=1) for kind in (truth, ~truth)]
    return sums[0], sums[1]


def auroc(truth: np.ndarray, value: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(B,) share of pairs of a positive and a negative in which the positive has the higher value; a tie is half.

    Hanley and McNeil 1982, equation 1; truth (N,) bool, value (N,), weights (B, N).
    """
    positive, negative = by_value(truth, value, weights)
    below = np.cumsum(negative, axis=1) - negative / 2
    return ratio((positive * below).sum(axis=1), positive.sum(axis=1) * negative.sum(axis=1))


def _average_precision(truth: np.ndarray, value: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(B,) mean of precision over the recalls, as steps: sum of (R_n - R_(n-1)) P_n; NaN where all are of one kind."""
    positive, negative = (sums[:, ::-1] for sums in by_value(truth, value, weights))
    hits, calls = np.cumsum(positive, axis=1), np.cumsum(positive + negative, axis=1)
    precision = np.divide(hits, calls, out=np.zeros_like(hits), where=calls > 0)
    found = ratio((positive * precision).sum(axis=1), positive.sum(axis=1))
    return np.where(negative.any(axis=1), found, np.nan)  # without a negative any order has 1


def equal_width(probabilities: np.ndarray) -> np.ndarray:
    """(N,) the bin (lower, upper] of equal width that the top probability is in (Guo et al. 2017, section 2)."""
    return np.clip(np.ceil(probabilities.max(axis=1) * BINS).astype(int) - 1, 0, BINS - 1)


def equal_mass(probabilities: np.ndarray) -> np.ndarray:
    """(N,) the bin, all of as many films, that the top probability is in (Nguyen and O'Connor 2015).

    Films of one probability are in one bin, so that their order says nothing.
    """
    top = probabilities.max(axis=1)
    return np.searchsorted(np.sort(top), top) * BINS // len(top)


def _calibration_error(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray, index: np.ndarray
) -> np.ndarray:
    """(B,) mean distance of accuracy from confidence over the bins, by their weights (Guo et al. 2017, equation 3)."""
    gap = (probabilities.argmax(axis=1) == labels) - probabilities.max(axis=1)
    of_bin = np.eye(index.max() + 1)[index]  # (N, bins)
    return ratio(np.abs((weights * gap) @ of_bin).sum(axis=1), weights.sum(axis=1))


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """That of `score`, alone."""
    ones = np.ones((1, len(labels)))
    return float(_calibration_error(labels, probabilities, ones, equal_width(probabilities))[0])


def reliability_bins(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean confidence, accuracy and count, each (BINS,), of equal-width bins; the means of an empty one are NaN."""
    index = equal_width(probabilities)
    count = np.bincount(index, minlength=BINS)
    filled = np.where(count, count, np.nan)
    return (
        np.bincount(index, weights=probabilities.max(axis=1), minlength=BINS) / filled,
        np.bincount(index, weights=probabilities.argmax(axis=1) == labels, minlength=BINS) / filled,
        count,
    )


def line(name: str, value: float | None, interval: Sequence[float] | None, plain: bool = False) -> str:
    """A figure with its interval for a terminal; a loss or an area as it is, anything else as a share."""
    return f"{name:>24}  {number(value, interval, '.4f') if plain else share(value, interval, 5)}"


def table(measured: dict[str, Any], intervals: dict[str, Any]) -> str:
    """The figures of `score`, with their intervals, for a terminal."""

    def stated(name: str, *path: str) -> str:
        value: Any = measured
        interval: Any = intervals
        for step in path:
            value, interval = value[step], interval[step]
        return line(name, value, interval, plain=path[-1] in PLAIN)

    lines = [f"{counted(measured['count'], 'film')}; 95 % intervals over resampled patients"]
    overall = ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "log_loss", "brier", "ece", "ece_equal_mass")
    lines += [stated(name.replace("_", " "), name) for name in overall]
    lines += [stated(f"pneumonia {name}", "binary", name) for name in measured["binary"]]
    for name, figures in measured["classes"].items():
        lines += ["", f"{name}, {counted(figures['count'], 'film')}"]
        lines += [stated(figure.replace("_", " "), "classes", name, figure) for figure in figures if figure != "count"]
    return "\n".join(lines)
