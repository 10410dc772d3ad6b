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


def cluster_weights(patients: Sequence[str], resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """(resamples, N) how often each film is drawn where its patient is drawn, as many patients as there are."""
    _, cluster = np.unique(np.asarray(patients), return_inverse=True)
    count = cluster.max() + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    return drawn[:, cluster].astype(float)


def percentile(values: np.ndarray) -> list[float] | None:
    """[low, high] of the resamples in which a figure is defined; None where it never is."""
    defined = values[np.isfinite(values)]
    if not len(defined):
        return None
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(defined, [tail, 100 - tail])
    return [float(low), float(high)]


def estimate(
    figures: Callable[[np.ndarray], dict[str, Any]], patients: Sequence[str], seed: int = 0
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures of films, and their 95 % percentile intervals.

    Args:
      figures: of weights (B, N), as metrics.measure.
      patients: (N,) who each film is of.
      seed: of the resamples.

    Returns:
      Two trees nested as `figures`: float, and [low, high]; None where a figure is undefined.
    """
    weights = np.concatenate([np.ones((1, len(patients))), cluster_weights(patients, seed=seed)])
    measured = figures(weights)
    values = metrics.each(measured, lambda figure: float(figure[0]) if np.isfinite(figure[0]) else None)
    return values, metrics.each(measured, lambda figure: percentile(figure[1:]) if np.isfinite(figure[0]) else None)


def intervals(labels: np.ndarray, probabilities: np.ndarray, patients: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """95 % intervals of every figure of `metrics.score`, nested alike.

    Args:
      labels: (N,) int.
      probabilities: (N, 3).
      patients: (N,) who each film is of.
      seed: of the resamples.
    """
    metrics.check(labels, probabilities)
    return estimate(lambda weights: metrics.measure(labels, probabilities, weights), patients, seed)[1]
