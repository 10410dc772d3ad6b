"""predictions.csv: a row a film, as `evaluate.py` writes it and `compare.py` reads it."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jobs import JobError
from jobs.evaluation import metrics
from model.labels import CLASSES

COLUMNS = ("name", "patient", "label", *CLASSES, "refused")
NEEDED = set(COLUMNS) - {"refused"}
HEAD = f"{','.join(COLUMNS[:-1])}(,{COLUMNS[-1]})?$"  # the first line; once there was no `refused`


def write(
    path: Path,
    names: Sequence[str],
    patients: Sequence[str],
    labels: np.ndarray,
    probabilities: np.ndarray,
    refused: np.ndarray,
) -> None:
    """Writes name, patient, label, three probabilities and, as 0 or 1, whether it was refused, of each film.

    Args:
      path: of the file.
      names: (N,).
      patients: (N,).
      labels: (N,) int.
      probabilities: (N, 3).
      refused: (N,) bool; without a calibration none is.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for name, patient, label, row, no in zip(names, patients, labels, probabilities, refused, strict=True):
            writer.writerow((name, patient, CLASSES[label], *(f"{value:.7f}" for value in row), int(no)))


class Predictions(NamedTuple):
    """What was written, by name."""

    names: list[str]
    patients: list[str]
    labels: np.ndarray  # (N,) int
    probabilities: np.ndarray  # (N, 3)


def read(path: Path) -> Predictions:
    """Reads predictions.csv, sorted by name; JobError where it is none."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets mark UTF-8 so
            reader = csv.DictReader(file)
            if absent := NEEDED - set(reader.fieldnames or ()):
                raise ValueError(f"no column {', '.join(sorted(absent))}; columns are parted by commas")
            rows = sorted(reader, key=lambda row: row["name"])
        if not rows:
            raise ValueError("no row below the names of the columns")
        names = [row["name"] for row in rows]
        if twice := next((one for one, other in itertools.pairwise(names) if one == other), None):
            raise ValueError(f"{len(rows)} rows of {len(set(names))} films: {twice} is there more than once")
        patients = [row["patient"] for row in rows]
        if without := sum(not patient for patient in patients):
            raise ValueError(f"{without} of {len(rows)} rows name no patient")
        if other := next((row for row in rows if row["label"] not in CLASSES), None):
            raise ValueError(f"{other['name']} is labelled {other['label']!r}; {', '.join(CLASSES)} are known")
        labels = np.array([CLASSES.index(row["label"]) for row in rows])
        probabilities = np.array([[float(row[name]) for name in CLASSES] for row in rows])
        sums = probabilities.sum(axis=1)
        if (off := np.abs(sums - 1)).max() > metrics.TOLERANCE:
            worst = int(off.argmax())
            raise ValueError(
                f"the probabilities of {names[worst]} sum to {sums[worst]:.7g}, which must be 1 within "
                f"{metrics.TOLERANCE:g}; take the table as it was written, with all its digits"
            )
        metrics.check(labels, probabilities)
        probabilities /= probabilities.sum(axis=1, keepdims=True)  # seven digits were written
        return Predictions(names, patients, labels, probabilities)
    except IsADirectoryError as error:
        raise JobError(f"{path} is a folder; give the predictions.csv of a report") from error
    except OSError as error:
        raise JobError(f"{path} cannot be read ({error.strerror}); python jobs/evaluate.py writes one") from error
    except (KeyError, ValueError, TypeError, IndexError, csv.Error) as error:
        raise JobError(f"{path} holds no predictions ({error}); python jobs/evaluate.py writes them") from error
