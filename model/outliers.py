"""Whether a picture is a chest film at all, and one like those that the model learned from.

Two kinds of objection: plain ones, to what anyone can see (blank, coloured, far too wide; beside the mean film of the
training, which a calibration holds, inverted or turned), and one to features far from those of every class, as Lee et
al. 2018 measure it.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from model.preprocess import Decoded

ASPECT_MAX = 4.0  # of the longer to the shorter side; films of children reach about 3
CHROMA_MAX = 24.0  # gray values, of 255: of Decoded.chroma
SPREAD_MIN = 16  # gray values, of 255, between the darkest and the brightest hundredth
THUMBNAIL = 16  # px, the side of the mean film
LIKENESS = 0.5  # with the mean film, inverted or turned, from which a picture is called a film that is
TURN_MARGIN = 0.1  # by which a turned film must be more like the mean film than an upright one


def objection(film: Decoded) -> str | None:
    """Why this is no film that can be read, a plain sentence; None where nothing speaks against it."""
    height, width = film.pixels.shape
    aspect = max(height, width) / min(height, width)
    if aspect > ASPECT_MAX:
        return (
            f"the longer side of the picture is {aspect:.2f} times the shorter; for a chest film it is at most "
            f"{ASPECT_MAX:.0f} times: crop the picture to the chest"
        )
    if film.chroma > CHROMA_MAX:
        return "this is a colour picture, and X-ray films are gray; if it shows one, save it in grayscale"
    low, high = np.percentile(film.pixels, [1, 99])
    if high - low < SPREAD_MIN:
        return "the picture is blank, or nearly so; send it with more contrast, and nothing transparent"
    return None


def thumbnails(images: np.ndarray) -> np.ndarray:
    """(N, S, S) films -> (N, THUMBNAIL, THUMBNAIL) of mean 0 and standard deviation 1."""
    edges = np.linspace(0, images.shape[1], THUMBNAIL + 1).astype(int)
    small = np.add.reduceat(np.add.reduceat(images.astype(float), edges[:-1], axis=1), edges[:-1], axis=2)
    small /= np.outer(np.diff(edges), np.diff(edges))
    small -= small.mean(axis=(1, 2), keepdims=True)
    return small / np.maximum(small.std(axis=(1, 2), keepdims=True), 1e-6)


@dataclasses.dataclass(frozen=True)
class Gaussians:
    """The Gaussians of one member of an ensemble, one a class, of one covariance: white in the space of `projection`.

    A distance is the square of Mahalanobis' to the nearest class, divided by the components: about 1 for
    what the Gaussians were fitted to (Lee et al. 2018, equation 2).
    """

    projection: np.ndarray  # (k, C) pooled features -> white components
    centres: np.ndarray  # (classes, k) the means of the classes, projected

    def distances(self, features: np.ndarray) -> np.ndarray:
        """(N, C) pooled features -> (N,)."""
        offsets = (features @ self.projection.T)[:, None] - self.centres  # (N, classes, k)
        return (offsets**2).mean(axis=2).min(axis=1)


@dataclasses.dataclass(frozen=True)
class Outliers:
    """What was learned of the training films, to tell what is not like them."""

    members: tuple[Gaussians, ...]
    threshold: float  # of the mean distance over the members, above which a film is refused
    mean_film: np.ndarray  # (THUMBNAIL, THUMBNAIL) of mean 0 and standard deviation 1

    def distances(self, features: Sequence[np.ndarray]) -> np.ndarray:
        """(N, C) pooled features of each member -> (N,) mean distance."""
        of_members = [member.distances(f) for member, f in zip(self.members, features, strict=True)]
        return np.mean(of_members, axis=0)

    def objections(self, images: np.ndarray, features: Sequence[np.ndarray]) -> list[str | None]:
        """For each film why it is not like those of the training set, a plain sentence; None where it is.

        Args:
          images: (N, S, S) uint8.
          features: (N, C) pooled features of each member.
        """
        films = thumbnails(images)
        upright = (films * self.mean_film).mean(axis=(1, 2))  # correlations
        turned = [(films * np.rot90(self.mean_film, quarter)).mean(axis=(1, 2)) for quarter in (1, 2, 3)]
        far = self.distances(features) > self.threshold
        reasons: list[str | None] = []
        for index in range(len(images)):
            other = max(turn[index] for turn in turned)
            inverted = -upright[index] > max(0.0, other)
            wrong_way = other > max(0.0, upright[index] + TURN_MARGIN)
            if inverted and -upright[index] > LIKENESS:
                reasons.append("this looks like an inverted film; bones must be bright and lungs dark")
            elif wrong_way and other > LIKENESS:
                reasons.append("this looks like a film that is turned; turn it head up, and cut off what is around it")
            elif inverted or wrong_way or far[index]:
                reasons.append(
                    "this is not like the chest films that the model learned from; cut off anything around the film"
                )
            else:
                reasons.append(None)
        return reasons

    def to_json(self) -> dict[str, Any]:
        """JSON values; arrays are float32 in base64."""
        return {
            "members": [{"projection": _pack(m.projection), "centres": _pack(m.centres)} for m in self.members],
            "threshold": self.threshold,
            "mean_film": _pack(self.mean_film),
        }

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Outliers:
        """The inverse of `to_json`."""
        members = tuple(Gaussians(_unpack(m["projection"]), _unpack(m["centres"])) for m in stored["members"])
        return cls(members, stored["threshold"], _unpack(stored["mean_film"]))


def _pack(array: np.ndarray) -> dict[str, Any]:
    return {"shape": list(array.shape), "float32": base64.b64encode(array.astype("<f4").tobytes()).decode()}


def _unpack(stored: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(stored["float32"]), "<f4").reshape(stored["shape"]).astype(float)
