"""Facts of a source as its files give them, before anything is merged, split or left out.

Where `sort` refuses a source that leaks, the audit counts the leaks.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.tree import DecisionTreeClassifier

from jobs import JobError
from jobs.datasets.chest_xray.source import SetAside, read, reasons, split_folder
from jobs.datasets.films import named
from jobs.datasets.splits import patient_groups
from jobs.evaluation import metrics
from jobs.evaluation.intervals import estimate
from model.labels import CLASSES, NORMAL

NO_FOLDER = "no split"  # of images that stand below no train, val or test
FOLDS = 5
_PERSON = re.compile(r"(person\d+)_", re.IGNORECASE)


class Image(NamedTuple):
    """What a file says of itself."""

    name: str  # path within the source
    folder: str  # train, val, test, ... or NO_FOLDER
    label: int  # index into CLASSES
    patient: str
    sha256: str
    content: str  # equal for files that show the same picture
    mode: str  # as Pillow calls it
    width_px: int
    height_px: int
    size_bytes: int


class Contents(NamedTuple):
    """A source, read."""

    images: list[Image]
    copies: int  # second copies of a file in the same split under the same name, as nested archives hold; not in images
    set_aside: list[SetAside]  # what is no image of a known class


class Told(NamedTuple):
    """How well one number of a file tells its class, out of fold."""

    balanced_accuracy: float  # over the classes there are
    chance: float  # the balanced accuracy of a guess
    auroc: float | None  # of pneumonia against normal; None where one of them is absent
    intervals: dict[str, list[float] | None]  # of both, over resampled patients


def collect(source: Path, advance: Callable[[int, int], None] = lambda done, total: None) -> Contents:
    """Reads every file of a source.

    Args:
      source: a folder or a zip file, in any layout that `sort` reads.
      advance: called with (files done, files in all).

    Raises:
      JobError: the source is neither, or holds no image of a known class.
    """
    images: dict[Hashable, Image] = {}
    copies = 0
    set_aside = []
    for file, outcome in read(source, advance):
        if isinstance(outcome, SetAside):
            set_aside.append(outcome)
            continue
        film, _ = outcome
        folder = split_folder(file.path) or NO_FOLDER
        key = (folder, PurePosixPath(file.path).name, film.label, film.sha256)
        if key in images:
            copies += 1
            continue
        patient = film.patient if named(film.patient) else file.path
        size = len(file.data)
        images[key] = Image(
            file.path, folder, film.label, patient, film.sha256, film.content, film.mode, film.width, film.height, size
        )
    if not images:
        why = "".join(f" ({count} {entry.reason}: {entry.detail})" for entry, count in reasons(set_aside)[:1])
        raise JobError(
            f"0 of the {len(set_aside)} files of {source} are images of a known class{why}; "
            "give the folder or zip that holds NORMAL and PNEUMONIA, or bacterial, normal and viral"
        )
    return Contents(list(images.values()), copies, set_aside)


def person(image: Image) -> str:
    """The naive patient key, `person<N>` alone: it takes a bacterial and a viral child of one number for the same."""
    match = _PERSON.match(image.patient)
    return match[1] if match else image.patient


def folders(images: Sequence[Image]) -> list[str]:
    """The split folders there are, test last."""
    return sorted({image.folder for image in images}, key=lambda folder: (folder == "test", folder))


def shared(images: Sequence[Image], key: Callable[[Image], str]) -> dict[tuple[str, str], set[str]]:
    """The keys (patients, contents) that stand in both of two split folders, for each two."""
    holds = {folder: {key(image) for image in images if image.folder == folder} for folder in folders(images)}
    return {(one, other): holds[one] & holds[other] for one, other in itertools.combinations(holds, 2)}


def duplicates(images: Sequence[Image], key: Callable[[Image], str]) -> list[list[Image]]:
    """Groups of files with the same bytes, or showing the same picture."""
    groups = defaultdict(list)
    for image in images:
        groups[key(image)].append(image)
    return [group for group in groups.values() if len(group) > 1]


def tell(images: Sequence[Image], values: np.ndarray) -> Told | str:
    """How well one number of each file tells its class: a small decision tree, cross-validated by patient.

    Args:
      images: N images.
      values: (N,) what the tree sees, in any unit.

    Returns:
      The figures, or in words why there are none.
    """
    if len(set(values)) == 1:
        return f"says nothing: it is {values[0]:.4g} in all files"
    groups = patient_groups(images)
    of_image = {image.name: key for key, members in groups.items() for image in members}
    labels = np.array([image.label for image in images])
    present = np.unique(labels)
    patients = {label: len({of_image[image.name] for image in images if image.label == label}) for label in present}
    scarce = min(present, key=lambda label: patients[label])
    if len(present) == 1:
        return f"cannot be said: all files are {CLASSES[scarce]}"
    if patients[scarce] < FOLDS:
        return f"cannot be said: {patients[scarce]} patients are {CLASSES[scarce]}, {FOLDS} are needed"
    tree = DecisionTreeClassifier(max_leaf_nodes=8, min_samples_leaf=0.02, class_weight="balanced", random_state=0)
    probabilities = cross_val_predict(
        tree,
        values[:, None],
        labels,
        groups=[of_image[image.name] for image in images],
        cv=StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0),
        method="predict_proba",
    )  # (N, classes present)
    right = present[probabilities.argmax(axis=1)] == labels

    def figures(weights: np.ndarray) -> dict[str, np.ndarray]:
        of_classes = [metrics.ratio(weights @ (right & (labels == one)), weights @ (labels == one)) for one in present]
        normal = probabilities[:, 0] if present[0] == NORMAL else np.zeros(len(labels))
        return {
            "balanced_accuracy": np.mean(of_classes, axis=0),
            "auroc": metrics.auroc(labels != NORMAL, 1 - normal, weights),
        }

    told, intervals = estimate(figures, [of_image[image.name] for image in images])
    return Told(told["balanced_accuracy"], 1 / len(present), told["auroc"], intervals)
