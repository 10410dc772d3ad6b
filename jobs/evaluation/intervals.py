"""What else a figure might have been: the patient-cluster bootstrap.

Films of one patient are alike, so patients are drawn, not films (Field and Welsh 2007, section 2.1): a resample counts
every film as often as its patient was drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jobs.evaluation import metrics

RESAMPLES = 2000
LEVEL = 0.95
LEAST = 6  # patients that an interval or a finding hangs on: if all of five agree, p = .06 in a sign test
BIASED = ("ece", "ece_equal_mass")  # chance alone makes them larger, and a resample adds to it


def cluster_weights(patients: Sequence[str], resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """(resamples, N) how often each film is drawn where its patient is drawn, as many patients as there are."""
    _, cluster = np.unique(np.asarray(patients), return_inverse=True)
    count = cluster.max() + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    return drawn[:, cluster].astype(float)


def enough(patients: Sequence[str]) -> bool:
    """Whether so many differ that a resample of them tells what chance may do."""
    return len(set(patients)) >= LEAST


def percentile(values: np.ndarray) -> list[float] | None:
    """[low, high] of the resamples (B,) in which a figure is defined.

    None where more of them lack it than lie beyond one end of an interval, as where a class is of three patients or
    fewer: what is left would tell of films that have it, and say too little of chance.
    """
    defined, tail = values[np.isfinite(values)], (1 - LEVEL) / 2
    if len(defined) < (1 - tail) * len(values):
        return None
    low, high = np.percentile(defined, [100 * tail, 100 - 100 * tail])
    return [float(low), float(high)]


def reflected(figure: float, values: np.ndarray) -> np.ndarray:
    """Resamples (B,) of a figure that each of them moves the same way, reflected about it, but not below 0.

    The basic bootstrap of Davison and Hinkley 1997, section 5.2, of squares, whose bias adds up: those of the resamples
    are as far above the figure's as that is above what it estimates.
    """
    return np.sqrt(np.maximum(0, 2 * figure**2 - values**2))


def holding(figure: float, about: np.ndarray, values: np.ndarray) -> list[float] | None:
    """[low, high] of a figure that every resample moves: at each end the farther of two intervals, the figure inside.

    Reflected resamples hold the error of a model that is calibrated, but too seldom a larger one; resamples less what
    they are off on average hold that. Together they hold more than LEVEL of what may be true.

    Args:
      figure: of the films themselves.
      about: (B,) the resamples, `reflected`; of a difference, that of both.
      values: (B,) the resamples as they are.
    """
    off = np.mean(values[np.isfinite(values)]) - figure if np.isfinite(values).any() else 0.0
    one, other = percentile(about), percentile(values - off)
    if one is None or other is None:
        return None
    return [float(min(one[0], other[0], figure)), float(max(one[1], other[1], figure))]


def estimate(
    figures: Callable[[np.ndarray], dict[str, Any]], patients: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures of films, and their 95 % intervals: percentiles of the resamples; `holding` those of BIASED.

    Where patients are all alike no resample differs: an interval of no width says no more than that.

    Args:
      figures: of weights (B, N), as metrics.measure.
      patients: (N,) who each film is of.

    Returns:
      Two trees nested as `figures`: float, and [low, high]; None where a figure is undefined, and for an interval
      where there are too few patients for one: fewer than LEAST, or as `percentile` says.
    """
    weights = np.concatenate([np.ones((1, len(patients))), cluster_weights(patients)])
    measured = figures(weights)
    values = metrics.each(measured, lambda figure: float(figure[0]) if np.isfinite(figure[0]) else None)
    return values, _bounds(measured) if enough(patients) else metrics.each(values, lambda _: None)


def _bounds(measured: dict[str, Any]) -> dict[str, Any]:
    """The intervals of figures (1 + B,), the first of each the figure itself."""
    bounds: dict[str, Any] = {}
    for name, figure in measured.items():
        if isinstance(figure, dict):
            bounds[name] = _bounds(figure)
        elif not np.isfinite(figure[0]):
            bounds[name] = None
        elif name in BIASED:
            held = holding(figure[0], reflected(figure[0], figure[1:]), figure[1:])
            bounds[name] = None if held is None else [max(0.0, held[0]), held[1]]  # no error is below 0
        else:
            bounds[name] = percentile(figure[1:])
    return bounds


def mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(N,) values, NaN where a film has none, under (B, N) weights -> (B,) their means."""
    known = np.isfinite(values)
    return metrics.ratio(weights[:, known] @ values[known], weights[:, known].sum(axis=1))


def intervals(labels: np.ndarray, probabilities: np.ndarray, patients: Sequence[str]) -> dict[str, Any]:
    """95 % intervals of every figure of `metrics.score`, nested alike.

    Args:
      labels: (N,) int.
      probabilities: (N, 3).
      patients: (N,) who each film is of.
    """
    metrics.check(labels, probabilities)
    return estimate(lambda weights: metrics.measure(labels, probabilities, weights), patients)[1]
