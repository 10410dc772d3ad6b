"""Compares two sets of predictions of the same films, as `evaluate.py` writes them.

    python jobs/compare.py runs/a/report/predictions.csv runs/b/report/predictions.csv

Prints the differences (first minus second) with 95 % intervals over resampled patients, McNemar's test of whether they
are right equally often, and DeLong's of whether their areas under the ROC curve, normal against pneumonia, are equal.
An interval that does not contain 0 is marked *: the choice of patients does not explain the difference. Where the two
differ on fewer than six patients (in their decisions, or in their probabilities for figures of those), that number is
shown instead of the mark: five may all point one way by chance. With fewer than six patients in all there are no
intervals. About one figure in twenty is marked even where nothing differs, so choose the one to go by before you look.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jobs import JobError, UsageError, run
from jobs.evaluation import comparison, predictions
from jobs.evaluation.intervals import enough
from jobs.evaluation.predictions import Predictions
from jobs.evaluation.tables import ALIKE, counted, number, widthless
from model.labels import CLASSES, NORMAL

SHOWN = ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "log_loss", "brier", "ece")


def main(arguments: list[str]) -> None:
    if len(arguments) != 2:
        raise UsageError(f"{len(arguments)} files given; two are compared: python jobs/compare.py A.csv B.csv")
    first, second = (predictions.read(Path(argument)) for argument in arguments)
    different = "the two are not of the same films: {}; evaluate both on the same split"
    if missing := set(first.names) ^ set(second.names):
        alone = min(missing)
        where = arguments[0] if alone in first.names else arguments[1]
        raise JobError(different.format(f"{counted(len(missing), 'film')} in one alone, such as {alone!r} in {where}"))
    for what, one, other in (("labels", first.labels, second.labels), ("patients", first.patients, second.patients)):
        if differing := [name for name, a, b in zip(first.names, one, other, strict=True) if a != b]:
            raise JobError(
                different.format(f"their {what} differ in {counted(len(differing), 'film')}, such as {differing[0]!r}")
            )
    print(table(first, second))


def table(first: Predictions, second: Predictions) -> str:
    """The comparison for a terminal."""
    labels, patients = first.labels, np.array(first.patients)
    one, other = (p.probabilities.argmax(axis=1) for p in (first, second))
    found = comparison.differences(labels, first.probabilities, second.probabilities, first.patients)
    rows = [(name.replace("_", " "), found[name]) for name in SHOWN]
    rows += [(f"pneumonia {name}", value) for name, value in found["binary"].items()]
    rows += [(f"{name} sensitivity", found["classes"][name]["sensitivity"]) for name in CLASSES]
    ill = (one != NORMAL) != (other != NORMAL)
    answered = (first.probabilities != second.probabilities).any(axis=1)
    differing = {  # the films behind a figure
        **dict.fromkeys((name for name, _ in rows), answered),
        **dict.fromkeys(("accuracy", "balanced accuracy", "macro f1"), one != other),
        "pneumonia accuracy": ill,
        "pneumonia sensitivity": ill & (labels != NORMAL),
        "pneumonia specificity": ill & (labels == NORMAL),
        **{
            f"{name} sensitivity": (labels == label) & ((one == label) != (other == label))
            for label, name in enumerate(CLASSES)
        },
    }
    films, people = counted(len(labels), "film"), counted(len(set(first.patients)), "patient")
    lines = [f"{films} of {people}; first minus second, 95 % interval"]
    for name, value in rows:
        if value is None:
            lines.append(f"{name:>24}  not defined")
            continue
        interval = value["interval"]
        mark = "" if interval is None or interval[0] <= 0 <= interval[1] else "  *"
        if mark and not enough(differ := patients[differing[name]]):
            how = "answered" if differing[name] is answered else "decided"
            mark = f"  {counted(len(set(differ)), 'patient')} {how} differently"
        lines.append(f"{name:>24}  {number(value['difference'], interval, '+.4f')}{mark}")
    for name, right in (
        ("three classes", [decided == labels for decided in (one, other)]),
        ("pneumonia", [(decided != NORMAL) == (labels != NORMAL) for decided in (one, other)]),
    ):
        test = comparison.mcnemar(*right)
        lines.append(
            f"McNemar, {name}: {counted(test.only_first, 'film')} right in the first alone, "
            f"{test.only_second} in the second; p = {test.p_value:.3g}"
        )
    if 2 <= (labels == NORMAL).sum() <= len(labels) - 2:
        areas = comparison.delong(labels != NORMAL, *(1 - p.probabilities[:, NORMAL] for p in (first, second)))
        p_value = "not defined, as neither has a spread" if np.isnan(areas.p_value) else f"{areas.p_value:.3g}"
        lines.append(f"DeLong, pneumonia: AUROC {areas.first:.4f} and {areas.second:.4f}; p = {p_value}")
    if len(set(first.patients)) < len(labels):
        lines.append(
            "McNemar and DeLong take films for independent; "
            + (
                "the intervals know that some are of one patient."
                if enough(first.patients)
                else "of so few patients their p says nothing."
            )
        )
    if widthless(dict(rows)):
        lines.append(ALIKE)
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
