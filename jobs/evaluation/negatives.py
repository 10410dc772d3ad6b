"""Pictures that are no upright chest films, made here: what the refusals are scored on."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COUNT = 40  # pictures of each kind
SIZE = 256  # px, of those that are drawn


def _fractal(random: np.random.Generator, size: int, exponent: float) -> np.ndarray:
    """(size, size) in [0, 1]: noise whose amplitude falls with frequency, as in photographs (Field 1987)."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    frequency[0, 0] = np.inf
    spectrum = np.fft.fft2(random.normal(size=(size, size))) / frequency**exponent
    field = np.fft.ifft2(spectrum).real
    low, high = np.percentile(field, [1, 99])
    return np.clip((field - low) / (high - low), 0, 1)


def photograph(random: np.random.Generator) -> Image.Image:
    """A gray texture with the spectrum of photographs, and some objects with edges."""
    pixels = 255 * _fractal(random, SIZE, random.uniform(0.9, 1.5))
    picture = Image.fromarray(pixels.astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(random.integers(3, 9)):
        x, y = random.integers(0, SIZE, 2)
        width, height = random.integers(20, 120, 2)
        shape = draw.ellipse if random.random() < 0.5 else draw.rectangle
        shape((x, y, x + width, y + height), fill=int(random.integers(0, 256)))
    return picture


def colour_photograph(random: np.random.Generator) -> Image.Image:
    """Likewise in colour."""
    channels = [255 * _fractal(random, SIZE, 1.2) for _ in range(3)]
    return Image.fromarray(np.stack(channels, axis=2).astype(np.uint8))


def text_page(random: np.random.Generator) -> Image.Image:
    """A printed page: dark lines of letters on white."""
    picture = Image.new("L", (SIZE, SIZE), 250)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(int(random.integers(8, 16)))
    line_px = int(random.integers(12, 22))
    for y in range(10, SIZE - line_px, line_px):
        letters = random.choice(list("abcdefghijklmnopqrstuvwxyz    "), random.integers(15, 60))
        draw.text((12, y), "".join(letters), fill=20, font=font)
    return picture


def noise(random: np.random.Generator) -> Image.Image:
    """Every pixel by itself."""
    return Image.fromarray(random.integers(0, 256, (SIZE, SIZE), np.uint8))


DRAWN: Mapping[str, Callable[[np.random.Generator], Image.Image]] = {
    "gray textures like photographs": photograph,
    "colour textures like photographs": colour_photograph,
    "text pages": text_page,
    "noise": noise,
}
CHANGED: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "inverted films": lambda film: 255 - film,
    "films turned left": np.rot90,
    "films turned right": lambda film: np.rot90(film, 3),
    "films upside down": lambda film: np.rot90(film, 2),
}


class Picture(NamedTuple):
    """What should be refused."""

    kind: str  # a key of DRAWN or CHANGED, or "phantoms"
    patient: str  # whose film it was; of a drawing, a name of its own
    file: bytes  # PNG


def pictures(films: np.ndarray, patients: Sequence[str], seed: int = 0) -> Iterator[Picture]:
    """COUNT pictures of every kind; of changed films as many as there are patients, where those are fewer.

    Args:
      films: (N, S, S) uint8; those that are inverted and turned are drawn from them, one a patient.
      patients: (N,) who each film is of.
      seed: of everything.
    """
    random = np.random.default_rng(seed)
    for kind, draw in DRAWN.items():
        for index in range(COUNT):
            yield Picture(kind, f"{kind} {index}", _png(draw(random)))
    first = np.unique(np.asarray(patients), return_index=True)[1]  # film of each patient
    for kind, change in CHANGED.items():
        for index in random.choice(first, min(COUNT, len(first)), replace=False):
            changed = Image.fromarray(np.ascontiguousarray(change(films[index])))
            yield Picture(kind, patients[index], _png(changed))


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
