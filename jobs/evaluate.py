"""Measures a checkpoint on a prepared split: figures, every prediction, and plots.

    python jobs/evaluate.py --checkpoint runs/cnn --split validation --out runs/cnn/report
    python jobs/evaluate.py --checkpoint runs/cnn --split test --prevalence 0.2 --out report

Every figure of films comes with a 95 % interval over 2,000 resamples of the patients. Where the checkpoint is
calibrated (`python jobs/calibrate.py`), the probabilities are calibrated, and the operating points, the uncertain and
the refused films are measured, too. Written to OUT: metrics.json, predictions.csv (name, patient, label, three
probabilities, whether it is refused) and the plots confusion_matrix, roc, precision_recall, reliability, risk_coverage,
class_distribution and heatmaps as PNG. An older report in OUT is replaced.
For phantoms, whose lesions are known, the share of heat maps that peak inside the lesion is reported, too.

With --full, also: figures on shifted copies of the films (gamma, contrast, brightness, uneven exposure, detail,
equalisation, collimation, crop, blur, JPEG, rotation), on their border or centre alone, mirrored, with four of those
changes at once, by file series, brightness and size; how many pictures that are not upright chest films are refused;
and whether the heat maps show what the model uses, move with the film, and depend on the model (shifts.png, maps.png).
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from jobs import UsageError, command, run
from jobs.datasets import films
from jobs.evaluation import decisions, examine, metrics, report
from jobs.evaluation.tables import NO_WIDTH, widthless
from model import gradcam
from model.checkpoint import CheckpointError
from model.predictor import Predictor

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run directory or a bundle.", required=True)
_SPLIT = flags.DEFINE_enum("split", "validation", list(films.SPLITS), "Which split to measure.")
_DATA_DIR = flags.DEFINE_string("data_dir", "data", "Where `python jobs/prepare.py --data_dir` wrote.")
_OUT = flags.DEFINE_string("out", None, "The folder for figures and plots.", required=True)
_PREVALENCE = flags.DEFINE_float(
    "prevalence",
    None,
    "The share of pneumonia, 0 to 1, that PPV and NPV are stated for; else that of the split.",
)
_FULL = flags.DEFINE_bool("full", False, "Also shifts, shortcuts, other pictures, and the maps; takes minutes.")
_METHOD = flags.DEFINE_enum("method", "gradcam", list(gradcam.METHODS), "How the heat maps are made.")


def main() -> None:
    if _PREVALENCE.value is not None and not 0 <= _PREVALENCE.value <= 1:  # NaN, too, which the bounds of a flag let by
        raise UsageError(f"--prevalence={_PREVALENCE.value}: it must be from 0 to 1; give a share, such as 0.2")
    predictor = Predictor.open(Path(_CHECKPOINT.value))
    calibrate = command("calibrate", "--checkpoint", _CHECKPOINT.value)
    if _PREVALENCE.value is not None and not predictor.calibration:
        raise UsageError(
            "--prevalence is of PPV and NPV, which are those of operating points, and there are none: "
            f"{_CHECKPOINT.value} is not calibrated; do that first: {calibrate}"
        )
    facts = predictor.calibration.facts if predictor.calibration else None
    fitted_to = (facts["dataset"]["fingerprint"], facts["split"]) if facts else None
    replaced = report.told(Path(_OUT.value))
    split = films.read_as_trained(predictor.metas, Path(_DATA_DIR.value), _SPLIT.value)
    measured, written = report.write(
        predictor, split, _SPLIT.value, _METHOD.value, _PREVALENCE.value, _FULL.value, Path(_OUT.value)
    )
    print(f"{_CHECKPOINT.value}, step {', '.join(map(str, predictor.steps))}, on {split.facts['name']} {_SPLIT.value}")
    if report.from_elsewhere(predictor, split.facts):
        print(f"These films are of another source than those of training: {split.facts['citation']}")
    if measured["films_are"] == report.TRAINED_ON:
        print("The model was trained on films of this split, so these figures flatter it.")
    elif fitted_to == (split.facts["fingerprint"], _SPLIT.value):
        print("The calibration and its thresholds were fitted to these films, so these figures are optimistic.")
    if measured["films_are"] not in (report.HELD_OUT, report.TRAINED_ON):
        print(f"These films are {measured['films_are']}: where the model has seen them, the figures flatter it.")
    if unnamed := sum(not films.named(patient) for patient in split.patients):
        print(
            f"{unnamed} of {len(split.patients)} films name no patient and count as of one each: where some are of one "
            "child, the intervals are too narrow."
        )
    print(metrics.table(measured, measured["intervals"]))
    print(
        "\n" + decisions.table(measured)
        if predictor.calibration
        else f"not calibrated; for operating points: {calibrate}"
    )
    print("\n" + examine.table(measured) if _FULL.value else "\n--full examines shifts, shortcuts and the maps, too")
    if "pointing_game" in measured:
        print(f"\n{_METHOD.value} peaks inside the lesion")
        for name, share in measured["pointing_game"].items():
            if share is not None:
                print(metrics.line(name, share, measured["intervals"]["pointing_game"][name]))
    if widthless(measured):
        print(f"\n{NO_WIDTH}\n")
    if replaced:
        print(f"replaced the older report ({replaced}) with:")
    print("\n".join(f"  {path}" for path in written))


if __name__ == "__main__":
    run(main, CheckpointError)
