"""Fits what turns a network's numbers into answers, and writes it beside the checkpoint as calibration.json.

    python jobs/calibrate.py --checkpoint runs/cnn
    python jobs/calibrate.py --checkpoint runs/cnn --prior 0.6,0.25,0.15

Fitted on the validation films: the temperature of the probabilities; the operating points balanced, screening
(sensitivity at least .98) and specific (specificity at least .95), each the same as balanced where that already meets
the bound; and the confidence below which an answer is *uncertain*. Fitted on the training films, and on one random view
of each as in training: what films look like, so that anything else is refused. Every command that opens the checkpoint
then uses the calibration; one that was fitted to other weights is refused.

With --prior, one bias per class is fitted as well, for a place where the classes are as common as stated: the
probabilities, the confidence and the figures that are written here are then those of such a place. The sensitivity and
specificity of an operating point do not depend on it. What `evaluate.py` measures with these probabilities is of the
split as it is; give it the --prevalence of the place, for PPV and NPV there.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from rich.progress import track

from jobs import JobError, UsageError, run, whole
from jobs.datasets import films
from jobs.evaluation import fit, metrics
from jobs.training.augment import views
from model.calibration import FILE, Calibration, rescale
from model.checkpoint import CheckpointError
from model.labels import CLASSES
from model.predictor import BATCH_SIZE, Predictor, Raw

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run directory or a bundle.", required=True)
_DATA_DIR = flags.DEFINE_string("data_dir", "data", "Where `python jobs/prepare.py --data_dir` wrote.")
SHARE_MIN = 0.001  # of a class, in a prior
_PRIOR = flags.DEFINE_list(
    "prior", None, f"Shares of normal, bacterial and viral films, each at least {SHARE_MIN}, such as 0.6,0.25,0.15."
)


def main() -> None:
    calibrate(Path(_CHECKPOINT.value), Path(_DATA_DIR.value), _prior(_PRIOR.value))


def _prior(words: list[str] | None) -> tuple[float, ...] | None:
    if words is None:
        return None
    try:
        shares = tuple(float(word) for word in words)
    except ValueError as error:
        raise UsageError(f"--prior={','.join(words)}: {error}; give three shares, such as 0.6,0.25,0.15") from error
    if len(shares) != len(CLASSES) or min(shares) < SHARE_MIN or not np.isclose(sum(shares), 1, atol=1e-3):
        raise UsageError(
            f"--prior={','.join(words)}: {len(CLASSES)} shares of at least {SHARE_MIN} and of sum 1 are needed, of "
            f"{', '.join(CLASSES)}"
        )
    return shares


def calibrate(directory: Path, data_dir: Path, prior: tuple[float, ...] | None) -> Calibration:
    """Fits, writes calibration.json into `directory`, and prints what changed.

    Raises:
      JobError: the data are not those that the checkpoint was trained on, or lack a class; or the file cannot be
        written.
    """
    predictor = Predictor.open(directory, calibrated=False)
    dataset = predictor.meta["dataset"]
    train, validation = (films.read_as_trained(predictor.metas, data_dir, split) for split in ("train", "validation"))
    if train.facts["fingerprint"] != dataset["fingerprint"]:
        raise JobError(
            f"{data_dir} holds another {dataset['name']} than {directory} was trained on: films it has seen would pass "
            "for new ones; give the --data_dir it was trained from"
        )
    for name, split in (("train", train), ("validation", validation)):
        if missing := set(range(len(CLASSES))) - set(split.labels.tolist()):
            raise JobError(
                f"no film of the {name} split is {' or '.join(CLASSES[label] for label in missing)}; every class is "
                "needed there: prepare a source that has two patients of each at least"
            )
    if (directory / FILE).is_dir():
        raise JobError(f"{directory / FILE} is a folder; the calibration is a file of that name: move the folder away")
    try:
        with tempfile.TemporaryFile(dir=directory):  # a place that cannot be is known before the work
            pass
    except OSError as error:
        raise JobError(
            f"{directory} cannot be written to ({error.strerror}), and its {FILE} belongs there; copy the checkpoint "
            "to a place that can be"
        ) from error
    seen, held_out = (
        _ask(predictor, train.images, "training films"),
        _ask(predictor, validation.images, "validation films"),
    )
    changes = [meta["config"]["augment"] for meta in predictor.metas]
    viewed = _ask(predictor, views(train.images, changes), "views of the training films")
    labels, before = validation.labels, held_out[0]
    temperature, bias = fit.temperature(labels, before, prior)
    after = rescale(before, temperature, bias)
    weights = fit.as_often(labels, prior, np.ones(len(labels)))
    measured = {
        when: metrics.measure(labels, probabilities, weights[None])
        for when, probabilities in (("before", before), ("after", after))
    }
    calibration = Calibration(
        weights=predictor.weights,
        steps=predictor.steps,
        temperature=temperature,
        bias=bias,
        confidence=fit.confidence(after, weights),
        operating_points=fit.operating_points(labels, after),
        outliers=fit.outliers(
            np.concatenate([train.labels, train.labels]),
            train.images,
            [np.concatenate(both) for both in zip(seen[1], viewed[1], strict=True)],
            held_out[1],
        ),
        facts={
            "dataset": {key: dataset[key] for key in ("name", "fingerprint")},
            "split": "validation",
            "prior": prior,
            "splits": {name: _counts(split) for name, split in (("train", train), ("validation", validation))},
            **{when: {name: float(of[name][0]) for name in metrics.LOSSES} for when, of in measured.items()},
            "figures": fit.figures(labels, after, validation.patients, prior),
        },
    )
    with whole(directory / FILE) as path:
        path.write_text(calibration.to_text())
    print(table(calibration))
    print(f"written: {directory / FILE}")
    return calibration


def _ask(predictor: Predictor, images: np.ndarray, what: str) -> tuple[np.ndarray, list[np.ndarray]]:
    """The probabilities (N, 3), and the pooled features (N, C) of each member."""
    batches = -(-len(images) // BATCH_SIZE)
    raw = Raw.joined(track(predictor.ask(images), what, total=batches, transient=True))
    return raw.probabilities.astype(float), list(raw.features)


def _counts(split: films.Split) -> dict[str, Any]:
    """How much there was to learn and to fit from."""
    classes = np.bincount(split.labels, minlength=len(CLASSES)).tolist()
    return {
        "films": len(split.labels),
        "patients": len(set(split.patients)),
        "classes": dict(zip(CLASSES, classes, strict=True)),
    }


def table(calibration: Calibration) -> str:
    """What was fitted, for a terminal."""
    bias = ", ".join(f"{name} {value:+.3f}" for name, value in zip(CLASSES, calibration.bias, strict=True))
    told = "validation" if calibration.facts["prior"] is None else "at that prior"
    lines = [f"temperature {calibration.temperature:.3f}; bias {bias}"]
    if calibration.temperature > 0.999 * fit.TEMPERATURE_MAX:
        lines.append("No temperature fits: the probabilities say no more of these films than guesses; train longer.")
    lines += ["", f"{told:>16}  before   after"]
    before, after = calibration.facts["before"], calibration.facts["after"]
    lines += [f"{name.replace('_', ' '):>16}  {before[name]:.4f}  {after[name]:.4f}" for name in metrics.LOSSES]
    lines += ["", f"uncertain below a top probability of {calibration.confidence:.3f}"]
    for name, threshold in calibration.operating_points.items():
        lines.append(f"{name}: pneumonia from a probability of {threshold:.4f}")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main, CheckpointError)
