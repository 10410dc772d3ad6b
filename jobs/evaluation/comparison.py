"""Two sets of answers to the same films: which is better, and whether that is more than chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from jobs.evaluation import metrics
from jobs.evaluation.intervals import BIASED, cluster_weights, enough, holding, percentile, reflected


class McNemar(NamedTuple):
    """Films that only one of two got right."""

    only_first: int
    only_second: int
    p_value: float  # exact, two-sided


class DeLong(NamedTuple):
    """Two correlated areas under the ROC curve."""

    first: float
    second: float
    p_value: float  # two-sided; NaN where the areas differ and neither has a spread, as 0 and 1


def mcnemar(first: np.ndarray, second: np.ndarray) -> McNemar:
    """Exact test of whether two sets of answers are right equally often (McNemar 1947; binomial, as Fagerland 2013).

    Args:
      first: (N,) bool, whether each film was answered rightly.
      second: (N,) bool, likewise.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    discordant = only_first + only_second
    p_value = stats.binomtest(only_first, discordant).pvalue if discordant else 1.0
    return McNemar(only_first, only_second, float(p_value))


def delong(truth: np.ndarray, first: np.ndarray, second: np.ndarray) -> DeLong:
    """Test of whether two areas under the ROC curve on the same films are equal (DeLong et al. 1988, section 3).

    Films count as independent; where patients have several, the bootstrap's interval is the one to go by.

    Args:
      truth: (N,) bool, with two of each value at least: of one alone the spread is unknown.
      first: (N,) scores, larger for positives.
      second: (N,) scores.

    Raises:
      ValueError: there are fewer.
    """
    if min(truth.sum(), (~truth).sum()) < 2:
        raise ValueError(f"{truth.sum()} positives and {(~truth).sum()} negatives; two of each are needed at least")
    placements = [_placements(truth, scores) for scores in (first, second)]
    of_positives = np.stack([positives for positives, _ in placements])  # V10, (2, m)
    of_negatives = np.stack([negatives for _, negatives in placements])  # V01, (2, n)
    areas = of_positives.mean(axis=1)
    error = np.sqrt(sum(np.var(one - other, ddof=1) / len(one) for one, other in (of_positives, of_negatives)))
    difference = areas[0] - areas[1]
    p_value = 2 * stats.norm.sf(abs(difference) / error) if error > 0 else 1.0 if difference == 0 else np.nan
    return DeLong(float(areas[0]), float(areas[1]), float(p_value))


def _placements(truth: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each positive the share of negatives below it, of each negative that of positives above it; a tie is half.

    By ranks, as Sun and Xu 2014, equation 5.
    """
    positives, negatives = scores[truth], scores[~truth]
    both = stats.rankdata(np.concatenate([positives, negatives]))
    above = (both[: len(positives)] - stats.rankdata(positives)) / len(negatives)
    below = (both[len(positives) :] - stats.rankdata(negatives)) / len(positives)
    return above, 1 - below


def differences(labels: np.ndarray, first: np.ndarray, second: np.ndarray, patients: Sequence[str]) -> dict[str, Any]:
    """First minus second in every figure of `metrics.score`, with the interval over the same resamples of patients.

    A resample adds to both of two calibration errors, and more to the smaller: each is reflected, then they are
    subtracted.

    Returns:
      Nested as `metrics.measure`; each figure is {"difference", "interval"}, None where it is undefined; the interval
      is None where there are too few patients for one, as `intervals.estimate` says.
    """
    weights = np.concatenate([np.ones((1, len(labels))), cluster_weights(patients)])
    one, other = (metrics.measure(labels, probabilities, weights) for probabilities in (first, second))

    def subtract(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
        return {
            name: subtract(a[name], b[name]) if isinstance(a[name], dict) else stated(name, a[name], b[name])
            for name in a
        }

    def stated(name: str, a: np.ndarray, b: np.ndarray) -> dict[str, Any] | None:
        difference = float(a[0] - b[0])
        if not np.isfinite(difference):
            return None
        if name in BIASED:
            about = reflected(a[0], a[1:]) - reflected(b[0], b[1:])
            interval = holding(difference, about, a[1:] - b[1:])
        else:
            interval = percentile(a[1:] - b[1:])
        return {"difference": difference, "interval": interval if enough(patients) else None}

    return subtract(one, other)
