"""What comes of the probabilities: operating points, films left undecided, films refused. Weighted as `metrics.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jobs.evaluation.metrics import by_value, line, ratio
from model.labels import NORMAL


def operating_point(
    labels: np.ndarray, probabilities: np.ndarray, threshold: float, prevalence: float | None, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Pneumonia called from a probability of `threshold`: (B,) sensitivity, specificity, PPV and NPV.

    The predictive values are those at `prevalence`, by Bayes' theorem (Altman and Bland 1994); None: of the films.
    """
    ill, called = labels != NORMAL, 1 - probabilities[:, NORMAL] >= threshold
    hits, misses = weights @ (ill & called), weights @ (ill & ~called)
    cleared, alarms = weights @ (~ill & ~called), weights @ (~ill & called)
    sensitivity, specificity = ratio(hits, hits + misses), ratio(cleared, cleared + alarms)
    if prevalence is not None:
        hits, misses = sensitivity * prevalence, (1 - sensitivity) * prevalence
        cleared, alarms = specificity * (1 - prevalence), (1 - specificity) * (1 - prevalence)
    return {
        "sensitivity": sensitivity,
        "specificity": specificity,
        "ppv": ratio(hits, hits + alarms),
        "npv": ratio(cleared, cleared + misses),
    }


def selective(
    labels: np.ndarray, probabilities: np.ndarray, refused: np.ndarray, confidence: float, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Films that are refused, or below a top probability of `confidence`, left undecided (El-Yaniv and Wiener 2010,
    section 2).

    Returns:
      (B,) coverage, the share that is decided; accuracy of those; and the area under the risk-coverage curve, the mean
      share of wrong ones over all confidences (Geifman et al. 2019, section 2), refused films among them, which is 0
      at best.
    """
    right, top = probabilities.argmax(axis=1) == labels, probabilities.max(axis=1)
    decided = (top >= confidence) & ~refused
    _, risk, mass = _risk_coverage(right, top, weights)
    return {
        "coverage": ratio(weights @ decided, weights.sum(axis=1)),
        "accuracy": ratio(weights @ (decided & right), weights @ decided),
        "risk_coverage_area": ratio((mass * risk).sum(axis=1), mass.sum(axis=1)),
    }


def _risk_coverage(
    right: np.ndarray, top: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(B, confidences) coverage, risk and weight from the most confident films on."""
    wrong, kept = by_value(~right, -top, weights)
    mass = wrong + kept
    decided = np.cumsum(mass, axis=1)
    risk = np.divide(np.cumsum(wrong, axis=1), decided, out=np.zeros_like(decided), where=decided > 0)
    return decided / decided[:, -1:], risk, mass


def risk_coverage(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and risk, each one a confidence, from the most confident films on."""
    right = probabilities.argmax(axis=1) == labels
    coverage, risk, _ = _risk_coverage(right, probabilities.max(axis=1), np.ones((1, len(labels))))
    return coverage[0], risk[0]


def measure(
    labels: np.ndarray,
    probabilities: np.ndarray,
    refused: np.ndarray,
    confidence: float,
    operating_points: Mapping[str, float],
    prevalence: float | None,
    weights: np.ndarray,
) -> dict[str, Any]:
    """All of it: (B,) figures, nested."""
    return {
        "refused": ratio(weights @ refused, weights.sum(axis=1)),
        "abstention": selective(labels, probabilities, refused, confidence, weights),
        "operating_points": {
            name: operating_point(labels, probabilities, threshold, prevalence, weights)
            for name, threshold in operating_points.items()
        },
    }


def table(measured: Mapping[str, Any]) -> str:
    """What `report.write` measured of the decisions, for a terminal."""
    found, intervals, fitted = measured["decisions"], measured["decisions"]["intervals"], measured["calibration"]
    lines = [f"calibrated with temperature {fitted['temperature']:.3f}; before:"]
    for name, value in fitted["before"].items():
        lines.append(line(name.replace("_", " "), value, fitted["intervals"]["before"][name], plain=True))
    lines.append("")
    lines.append(line("refused", found["refused"], intervals["refused"]))
    lines += ["", f"uncertain below {fitted['confidence']:.3f}"]
    for name, value in found["abstention"].items():
        lines.append(line(name.replace("_", " "), value, intervals["abstention"][name], plain=name.endswith("area")))
    prevalence = found["prevalence"]
    of = "of these films" if prevalence is None else f"of {100 * prevalence:g} %"
    for name, figures in found["operating_points"].items():
        lines += ["", f"{name}: pneumonia from {fitted['thresholds'][name]:.4f}; PPV and NPV at a prevalence {of}"]
        lines += [line(key, value, intervals["operating_points"][name][key]) for key, value in figures.items()]
    return "\n".join(lines)
