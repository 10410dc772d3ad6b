"""predictions.csv: a row a film, as `evaluate.py` writes it and `compare.py` reads it."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
            columns = reader.fieldnames or ()
            if not columns:
                raise ValueError("the file is empty")
            if absent := NEEDED - set(columns):
                raise ValueError(f"no column {', '.join(sorted(absent))}; columns are parted by commas")
            if twice := [name for name in COLUMNS if columns.count(name) > 1]:
                raise ValueError(f"more than one column {', '.join(twice)}")
            rows = sorted((_row(row, f"line {reader.line_num}") for row in reader), key=lambda row: row.name)
        if not rows:
            raise ValueError("no row below the names of the columns")
        names = [row.name for row in rows]
        if again := next((one for one, other in itertools.pairwise(names) if one == other), None):
            raise ValueError(f"{len(rows)} rows of {len(set(names))} films: {again!r} is there more than once")
        probabilities = np.array([row.probabilities for row in rows])
        probabilities /= probabilities.sum(axis=1, keepdims=True)  # seven digits were written
        return Predictions(names, [row.patient for row in rows], np.array([row.label for row in rows]), probabilities)
    except IsADirectoryError as error:
        raise JobError(f"{path} is a folder; give the predictions.csv of a report") from error
    except OSError as error:
        raise JobError(f"{path} cannot be read ({error.strerror}); python jobs/evaluate.py writes one") from error
    except (ValueError, csv.Error) as error:
        raise JobError(f"{path} holds no predictions ({error}); python jobs/evaluate.py writes them") from error


class _Row(NamedTuple):
    name: str
    patient: str
    label: int
    probabilities: list[float]


def _row(cells: dict[str | None, Any], where: str) -> _Row:
    """What a line says; ValueError where it is invalid, with the line and the cell."""
    if any(cells.pop(None, [])):  # DictReader's place for what has no column
        raise ValueError(f"{where} has more cells than there are columns")
    if short := [name for name, cell in cells.items() if cell is None]:
        raise ValueError(f"{where} ends before {', '.join(map(str, short))}; the file may be cut short")
    for name in ("name", "patient"):
        if not cells[name].strip():
            raise ValueError(f"{where} has no {name}")
    if cells["label"] not in CLASSES:
        raise ValueError(f"{where} is labelled {cells['label']!r}; {', '.join(CLASSES)} are known")
    probabilities = []
    for name in CLASSES:
        try:
            probabilities.append(float(cells[name]))
        except ValueError:
            raise ValueError(f"{where} has {cells[name]!r} for {name}, which is no number") from None
        if not 0 <= probabilities[-1] <= 1:  # NaN, too
            raise ValueError(f"{where} has {cells[name]} for {name}; a probability is from 0 to 1")
    if abs(sum(probabilities) - 1) > metrics.TOLERANCE:
        raise ValueError(
            f"{where} has probabilities of sum {sum(probabilities):.7g}, which must be 1 within {metrics.TOLERANCE:g}; "
            "take the table as it was written, with all its digits"
        )
    return _Row(cells["name"], cells["patient"], CLASSES.index(cells["label"]), probabilities)
