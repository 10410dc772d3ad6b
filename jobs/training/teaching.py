"""What is to be learnt of each training film: its label, or that mixed with what a trained network says of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import track

from jobs import JobError
from jobs.datasets.films import Split, learnt
from jobs.training.data import one_hot
from model.predictor import Predictor

CHUNK = 512  # films decoded at once for the teacher


class Lessons(NamedTuple):
    """Of the training films."""

    targets: np.ndarray  # (N, 3) float32, a distribution over CLASSES for each
    teacher: dict[str, Any] | None  # whose answers are in them: from, steps, weights; None: nobody's


def lessons(config: ConfigDict, training: Split, console: Console) -> Lessons:
    """Distillation against noisy labels: (1 - share) label + share answer (Li et al. 2017,
    "Learning from noisy labels with distillation").

    Raises:
      JobError: the teacher did not learn these very films: it may know some that are held out here.
      CheckpointError: there is no teacher to be loaded.
    """
    labels = one_hot(training.labels)
    if not config.teacher:
        return Lessons(labels, None)
    predictor = Predictor.open(config.teacher, calibrated=False)
    mine = learnt(training.facts, config.data)
    for meta in predictor.metas:
        theirs = learnt(meta["dataset"], meta["config"]["data"])
        if theirs != mine:
            raise JobError(
                f"config.teacher, {config.teacher}, learnt the films of {theirs}, and this run learns those of {mine}; "
                "what it knows of films that are held out here would come into the labels: train a teacher on these"
            )
    answers = np.concatenate(list(_answers(predictor, training.images, console)))
    agreed = (answers.argmax(axis=1) == training.labels).mean()
    console.print(
        f"taught by {config.teacher} (step {', '.join(map(str, predictor.steps))}), which agrees with the labels of "
        f"{agreed:.1%} of the films; its answers are {config.teacher_share:.0%} of what is to be learnt",
        soft_wrap=True,
    )
    teacher = {"from": config.teacher, "steps": list(predictor.steps), "weights": list(predictor.weights)}
    return Lessons(((1 - config.teacher_share) * labels + config.teacher_share * answers).astype(np.float32), teacher)


def _answers(predictor: Predictor, images: Any, console: Console) -> Iterator[np.ndarray]:
    """The probabilities of some films at a time; the films may be decoded already, or not."""
    starts = range(0, len(images), CHUNK)
    for start in track(starts, "asking the teacher", console=console, transient=True):
        films = np.stack([images[index] for index in range(start, min(start + CHUNK, len(images)))])
        yield from (raw.probabilities for _, raw in predictor.ask(films))
