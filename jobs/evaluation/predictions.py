"""predictions.csv: a row a film, as `evaluate.py` writes it and `compare.py` reads it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from model.labels import CLASSES


def write(
    path: Path, names: Sequence[str], patients: Sequence[str], labels: np.ndarray, probabilities: np.ndarray
) -> None:
    """Writes name, patient, label and three probabilities of each film; labels (N,) int, probabilities (N, 3)."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("name", "patient", "label", *CLASSES))
        for name, patient, label, row in zip(names, patients, labels, probabilities, strict=True):
            writer.writerow((name, patient, CLASSES[label], *(f"{value:.7f}" for value in row)))
