"""Fits what `model/calibration.py` holds: on validation films, and what films look like on training ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import optimize, special
from sklearn.covariance import LedoitWolf

from jobs import JobError
from jobs.evaluation import metrics
from jobs.evaluation.intervals import estimate
from model.calibration import SMALLEST
from model.labels import CLASSES, NORMAL
from model.outliers import Gaussians, Outliers, thumbnails

UNDECIDED = 0.1  # share of the validation films, the least sure ones, that are *uncertain*
FALSE_REFUSALS = 0.01  # share of the validation films that are called unlike the training films
SENSITIVITY, SPECIFICITY = 0.98, 0.95  # at least, of the operating points `screening` and `specific`
TEMPERATURE_MAX = 100.0  # all answers are nearly alike by then; what tells nothing would have an infinite one
COMPONENTS = 256  # of the features that the Gaussians are fitted to, at most


def temperature(
    labels: np.ndarray, probabilities: np.ndarray, prior: Sequence[float] | None = None
) -> tuple[float, tuple[float, float, float]]:
    """The temperature, and with a prior the bias, that make the log loss least (Guo et al. 2017, section 4.2).

    The targets are those of as many films as a class has on average and three more, shared among the classes as these
    are common (Platt 1999, section 2.2): where no film is wrong, probabilities would otherwise be driven to 0 and 1.

    Args:
      labels: (N,) int, with every class.
      probabilities: (N, 3), uncalibrated.
      prior: shares of the classes where the model will be used. Films then count as often as their class is there, and
        a bias a class is fitted, too; without one, it is zero.

    Returns:
      (temperature, bias); the temperature is at most TEMPERATURE_MAX, the bias sums to zero.
    """
    weights = as_often(labels, prior, np.ones(len(labels))) / len(labels)
    shares = np.bincount(labels, weights, minlength=len(CLASSES))  # those of the prior, or of the films
    # The same for every class, so that the targets have the shares of the classes on average.
    more = len(CLASSES) / (len(labels) / len(CLASSES) + len(CLASSES))
    logits = np.log(np.maximum(np.asarray(probabilities, float), SMALLEST))
    targets = ((1 - more) * np.eye(len(CLASSES)) + more * shares)[labels] * weights[:, None]  # (N, 3)

    def unpack(parameters: np.ndarray) -> tuple[float, tuple[float, float, float]]:
        bias = np.zeros(len(CLASSES))
        bias[1:] = parameters[1:] if prior is not None else 0
        bias -= bias.mean()
        return 1 / float(parameters[0]), (float(bias[0]), float(bias[1]), float(bias[2]))

    def loss(parameters: np.ndarray) -> float:
        divisor, bias = unpack(parameters)
        return -float((targets * special.log_softmax(logits / divisor + bias, axis=1)).sum())

    # Not clipped again: where all answers are near 0 and 1 it would be flat at the start, and nothing would be fitted.
    # The loss is convex in (1 / temperature, bias), so what is found is the minimum. Where that is at 0 or below, as of
    # a network that takes bacterial films for viral ones, the bound keeps its answers apart.
    bounds = [(1 / TEMPERATURE_MAX, None), (None, None), (None, None)][: 1 if prior is None else len(CLASSES)]
    start = np.eye(len(bounds))[0]  # as the network has it
    exact = {"ftol": 1e-14, "gtol": 1e-8}
    return unpack(optimize.minimize(loss, start, method="L-BFGS-B", bounds=bounds, options=exact).x)


def as_often(labels: np.ndarray, prior: Sequence[float] | None, weights: np.ndarray) -> np.ndarray:
    """How often films count, (..., N) -> that where the classes have the shares of `prior`; as it is without one.

    Where a class has films and none of them counts, nothing can give it its share: NaN.
    """
    if prior is None:
        return weights
    present = weights @ np.eye(len(CLASSES))[labels]  # (..., classes)
    factors = np.divide(prior, present, out=np.full_like(present, np.nan), where=present > 0)
    return weights * factors[..., labels] * weights.sum(axis=-1, keepdims=True)


def figures(
    labels: np.ndarray, probabilities: np.ndarray, patients: Sequence[str], prior: Sequence[float] | None
) -> dict[str, list[float]]:
    """What a person is told of the model, where the classes have the shares of `prior`; without one, of these films.

    Args:
      labels: (N,) int.
      probabilities: (N, 3), calibrated.
      patients: (N,) who each film is of.
      prior: shares of the classes; those of every resample, too, since such a place has no others.

    Returns:
      By name the figure and, but for too few patients, its 95 % interval.
    """

    def measure(weights: np.ndarray) -> dict[str, Any]:
        return metrics.measure(labels, probabilities, as_often(labels, prior, weights))

    values, bounds = estimate(measure, patients)
    told = {name: (values[name], bounds[name]) for name in ("accuracy", "balanced_accuracy", "macro_f1", "ece")}
    told |= {f"binary_{name}": (values["binary"][name], bounds["binary"][name]) for name in ("accuracy", "auroc")}
    return {name: [value, *(interval or ())] for name, (value, interval) in told.items() if value is not None}


def operating_points(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """By name, the probability of pneumonia from which a film is called pneumonia.

    `balanced` has the largest sum of sensitivity and specificity (Youden 1950), `screening` the highest threshold with
    a sensitivity of at least SENSITIVITY that is not above it, `specific` the lowest with a specificity of at least
    SPECIFICITY that is not below it: a model that is better than both asks would otherwise make them change places.

    Raises:
      JobError: without normal films or without others there is nothing to choose by.
    """
    pneumonia = 1 - probabilities[:, NORMAL]
    ill, well = np.sort(pneumonia[labels != NORMAL]), np.sort(pneumonia[labels == NORMAL])
    if not len(ill) or not len(well):
        raise JobError(f"{len(well)} normal films and {len(ill)} of pneumonia: operating points need some of both")
    values = np.unique(pneumonia)
    # Halfway between films, or the last bit of a film's probability would decide about it.
    candidates = np.concatenate([[0.0], (values[:-1] + values[1:]) / 2, [np.nextafter(1, 2)]])
    sensitivity = 1 - np.searchsorted(ill, candidates) / len(ill)
    specificity = np.searchsorted(well, candidates) / len(well)
    balanced = float(candidates[np.argmax(sensitivity + specificity)])
    return {
        "balanced": balanced,
        "screening": min(balanced, float(candidates[sensitivity >= SENSITIVITY][-1])),
        "specific": max(balanced, float(candidates[specificity >= SPECIFICITY][0])),
    }


def confidence(probabilities: np.ndarray, weights: np.ndarray) -> float:
    """The top probability that all but UNDECIDED of the films reach, each counted as often as `weights` (N,) says."""
    top = probabilities.max(axis=1)
    order = np.argsort(top)
    below = np.cumsum(weights[order]) / weights.sum()
    first = int(np.searchsorted(below, UNDECIDED, side="right"))  # index of the first film that is decided
    # Halfway between films, or the last bit of a film's probability would decide about it.
    return float(top[order[max(0, first - 1) : first + 1]].mean())


def gaussians(labels: np.ndarray, features: np.ndarray) -> Gaussians:
    """One Gaussian a class with one covariance, shrunk (Lee et al. 2018, equation 1; Ledoit and Wolf 2004).

    Args:
      labels: (N,) int of the training films, and of what else was learned of them.
      features: (N, C) pooled; their COMPONENTS largest principal components are what is fitted.
    """
    features = features.astype(float)
    spread = np.cov(features, rowvar=False)
    _, axes = np.linalg.eigh(spread)
    kept = axes[:, ::-1][:, : min(COMPONENTS, features.shape[1])]  # (C, k)
    components = features @ kept
    centres = np.stack([components[labels == label].mean(axis=0) for label in range(len(CLASSES))])
    covariance = LedoitWolf(assume_centered=True).fit(components - centres[labels]).covariance_
    values, vectors = np.linalg.eigh(covariance)
    whiten = (vectors / np.sqrt(np.maximum(values, values.max() * 1e-10))).T  # (k, k)
    return Gaussians(projection=whiten @ kept.T, centres=centres @ whiten.T)


def outliers(
    labels: np.ndarray,
    images: np.ndarray,
    features: Sequence[np.ndarray],
    held_out_features: Sequence[np.ndarray],
) -> Outliers:
    """What tells a film from the training films.

    Args:
      labels: (N,) int of the pictures whose features are given: training films, and views of them as in training.
      images: (F, S, S) uint8, the training films as they are.
      features: of each member, (N, C).
      held_out_features: of each member, (M, C) of the validation films, FALSE_REFUSALS of which lie beyond.
    """
    members = tuple(gaussians(labels, of_member) for of_member in features)
    mean_film = thumbnails(images).mean(axis=0)
    fitted = Outliers(members, 0.0, mean_film / mean_film.std())
    distances = np.sort(fitted.distances(held_out_features))
    within = len(distances) - int(FALSE_REFUSALS * len(distances))
    # Halfway between films, or what is rounded when it is stored would decide about one.
    threshold = np.append(distances, 1.02 * distances[-1])[within - 1 : within + 1].mean()
    return dataclasses.replace(fitted, threshold=float(threshold))
