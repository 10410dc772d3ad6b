"""The phantom dataset: synthetic films that know where their lesions are. Never to be presented as real."""

from __future__ import annotations

import hashlib

from jobs.datasets.films import Film, FilmBuilder, png
from jobs.datasets.phantom import drawing
from model.preprocess import STORAGE_SIZE


class Phantom(FilmBuilder):
    """Writes the phantom films."""

    DESCRIPTION = "Synthetic paediatric chest films, drawn by a program. No patient was ever in front of them."
    LICENSE = "Apache-2.0"
    HAS_MASK = True


def film(index: int) -> Film:
    """Phantom number `index` as the dataset stores it."""
    phantom = drawing.draw(index, STORAGE_SIZE)
    return Film(
        name=phantom.name,
        patient=phantom.patient,
        label=phantom.label,
        png=png(phantom.image),
        sha256=hashlib.sha256(phantom.image.tobytes()).hexdigest(),
        width=STORAGE_SIZE,
        height=STORAGE_SIZE,
        mode="L",
        mask=png(phantom.mask.astype("uint8") * 255),
    )
