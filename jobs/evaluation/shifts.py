"""Controlled shifts of films, and other views of them: what a model's answers hang on.

Everything here is a function of uint8 squares, the same for the same film, and keeps the label.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

Shift = Callable[[np.ndarray, float], np.ndarray]  # one film (S, S) uint8, how much -> (S, S) uint8


def _clipped(pixels: np.ndarray) -> np.ndarray:
    return np.round(np.clip(pixels, 0, 255)).astype(np.uint8)


def gamma(film: np.ndarray, exponent: float) -> np.ndarray:
    """Darker in the middle grays above 1, lighter below."""
    return _clipped(255 * (film / 255.0) ** exponent)


def contrast(film: np.ndarray, factor: float) -> np.ndarray:
    """Distances from the film's mean times `factor`."""
    mean = film.mean()
    return _clipped((film - mean) * factor + mean)


def brightness(film: np.ndarray, offset: float) -> np.ndarray:
    """Gray values, of 255, added everywhere."""
    return _clipped(film.astype(float) + offset)


def exposure_slope(film: np.ndarray, offset: float) -> np.ndarray:
    """Gray values, of 255, added at the lower edge and taken away at the upper one, evenly between."""
    return _clipped(film + offset * np.linspace(-1, 1, len(film))[:, None])


def vignetting(film: np.ndarray, offset: float) -> np.ndarray:
    """Gray values, of 255, taken away with the square of the distance from the middle; the mean hardly moves."""
    place = np.linspace(-1, 1, len(film))
    return _clipped(film - offset * (place[:, None] ** 2 + place**2 - 2 / 3))


def detail(film: np.ndarray, factor: float) -> np.ndarray:
    """Distances from a blurred copy (a Gaussian of a sixteenth of the side) times `factor`: local contrast."""
    coarse = ndimage.gaussian_filter(film.astype(float), len(film) / 16, mode="nearest")
    return _clipped(coarse + (film - coarse) * factor)


def equalisation(film: np.ndarray, share: float) -> np.ndarray:
    """`share` of the way to gray values that are all equally frequent."""
    ranks = np.bincount(film.ravel(), minlength=256).cumsum()[film] / film.size
    return _clipped((1 - share) * film + share * 255 * ranks)


def collimation(film: np.ndarray, width: float) -> np.ndarray:
    """Black along all four sides, `width` of the film's side wide."""
    edge = round(width * len(film))
    black = np.zeros_like(film)
    inside = np.s_[edge : len(film) - edge, edge : len(film) - edge]
    black[inside] = film[inside]
    return black


def crop(film: np.ndarray, side: float) -> np.ndarray:
    """The middle of the film, `side` of its height and width, at the size of the whole."""
    size = len(film)
    margin = size * (1 - side) / 2
    box = (margin, margin, size - margin, size - margin)
    return np.asarray(Image.fromarray(film).resize((size, size), Image.Resampling.BILINEAR, box=box))


def blur(film: np.ndarray, deviation_px: float) -> np.ndarray:
    """A Gaussian blur; the standard deviation is in px of a square of 224."""
    return _clipped(ndimage.gaussian_filter(film.astype(float), deviation_px * len(film) / 224, mode="nearest"))


def jpeg_quality(film: np.ndarray, quality: float) -> np.ndarray:
    """Stored as JPEG and read again."""
    buffer = io.BytesIO()
    Image.fromarray(film).save(buffer, "JPEG", quality=int(quality))
    return np.asarray(Image.open(buffer))


def rotation(film: np.ndarray, degrees: float) -> np.ndarray:
    """Counter-clockwise about the middle; beyond the edge it repeats."""
    return _clipped(ndimage.rotate(film.astype(float), degrees, reshape=False, order=1, mode="nearest"))


# By name: what is done, how much, and which of these values stands for the film as it is; all but JPEG's change no bit.
SHIFTS: Mapping[str, tuple[Shift, tuple[float, ...], float]] = {
    "gamma": (gamma, (0.5, 0.7, 1.0, 1.4, 2.0), 1.0),
    "contrast": (contrast, (0.4, 0.6, 0.8, 1.0, 1.3, 1.7), 1.0),
    "brightness": (brightness, (-60, -30, 0, 30, 60), 0),
    "exposure_slope": (exposure_slope, (-60, -30, 0, 30, 60), 0),
    "vignetting": (vignetting, (-60, -30, 0, 30, 60), 0),
    "detail": (detail, (0.5, 1.0, 2.0, 3.0), 1.0),
    "equalisation": (equalisation, (0, 0.5, 1.0), 0),
    "collimation": (collimation, (0, 0.05, 0.1, 0.15), 0),
    "crop": (crop, (0.6, 0.7, 0.8, 0.9, 1.0), 1.0),
    "blur": (blur, (0, 1, 2, 3, 4), 0),
    "jpeg_quality": (jpeg_quality, (5, 10, 20, 40, 100), 100),
    "rotation": (rotation, (-20, -10, 0, 10, 20), 0),
}

AT_ONCE = 4  # of SHIFTS, in `several`
MARGIN = 0.15  # of the film's side, the width of the border


def _middle(size: int) -> np.ndarray:
    """(S, S) bool: not on the border."""
    edge = round(MARGIN * size)
    inside = np.zeros((size, size), bool)
    inside[edge : size - edge, edge : size - edge] = True
    return inside


def border_only(film: np.ndarray) -> np.ndarray:
    """The middle painted over with the film's mean: no lung is left to read."""
    return np.where(_middle(len(film)), round(film.mean()), film).astype(np.uint8)


def centre_only(film: np.ndarray) -> np.ndarray:
    """The border painted over with the film's mean: no marker, no collimation."""
    return np.where(_middle(len(film)), film, round(film.mean())).astype(np.uint8)


def corners_erased(film: np.ndarray) -> np.ndarray:
    """A square of a quarter of the side in each corner painted over with the film's mean."""
    edge = len(film) // 4
    erased = film.copy()
    for rows in (slice(0, edge), slice(-edge, None)):
        for columns in (slice(0, edge), slice(-edge, None)):
            erased[rows, columns] = round(film.mean())
    return erased


def several(film: np.ndarray) -> np.ndarray:
    """AT_ONCE of SHIFTS one after the other, and how much of each, by the lot of the film.

    A model that withstands each of them alone need not withstand them together.
    """
    random = np.random.default_rng(zlib.crc32(film.tobytes()))
    for name in random.choice(list(SHIFTS), AT_ONCE, replace=False):
        change, values, identity = SHIFTS[name]
        film = change(film, random.choice([value for value in values if value != identity]))
    return film


VIEWS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "border only": border_only,
    "centre only": centre_only,
    "corners erased": corners_erased,
    "mirrored": np.fliplr,
    "four changes at once": several,
}


class Variant(NamedTuple):
    """A changed copy of a split."""

    name: str  # a key of SHIFTS or VIEWS
    key: str  # with how much, of a shift
    images: np.ndarray  # (N, S, S) uint8


def key(name: str, value: float) -> str:
    """Of "gamma" and 0.5: "gamma 0.5"."""
    return f"{name} {value:g}"


def variants(images: np.ndarray) -> Iterator[Variant]:
    """Every changed copy of the films, the unchanged ones left out."""
    for name, (change, values, identity) in SHIFTS.items():
        for value in values:
            if value != identity:
                yield Variant(name, key(name, value), np.stack([change(film, value) for film in images]))
    for name, view in VIEWS.items():
        yield Variant(name, name, np.stack([view(film) for film in images]))


COUNT = sum(len(values) - 1 for _, values, _ in SHIFTS.values()) + len(VIEWS)
